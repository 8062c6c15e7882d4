"""The MTP chain: causal at any depth, shared parts trained, equal to transformers' own module."""
from dataclasses import replace
import pytest
import torch
from r1nb.model import R1Config, R1Model

NANO = R1Config(initializer_range=.1)

def fresh(**kw):
    torch.manual_seed(0)
    m = R1Model(replace(NANO, **kw)).eval()
    for n, p in m.named_parameters():
        if p.dim() == 1: torch.nn.init.uniform_(p, .5, 1.5)
    return m

@pytest.mark.parametrize('depth', [1, 2, 3])
@pytest.mark.parametrize('T', [2, 5, 12])
@torch.no_grad()
def test_causal_chain(depth, T):
    m = fresh(num_nextn_predict_layers=depth, first_k_dense_replace=0)
    ids = torch.randint(0, 256, (1, T), generator=torch.Generator().manual_seed(T))
    def look(ids): return m.ahead(m.hidden(ids)[:, :-1], ids[:, 1:])
    base = look(ids)
    assert [a.shape for a in base] == [(1, max(T - 1 - k, 0), 256) for k in range(depth)]
    for j in range(T):
        other = ids.clone(); other[0, j] = (ids[0, j] + 1) % 256
        for k, (a, b) in enumerate(zip(base, look(other))):
            moved = (a - b).abs().amax(-1)[0] > 1e-5    # below: fp32 rounding
            assert moved.tolist() == [j <= i + k + 1 for i in range(T - 1 - k)]

def test_embedding_and_head_are_the_main_models():
    m = fresh()
    names = {n for n, _ in m.mtp.named_parameters()}
    assert not any('embed' in n or n.endswith('head.weight') for n in names)
    ids = torch.randint(0, 256, (2, 9))
    h = m.hidden(ids).detach()
    m.ahead(h[:, :-1], ids[:, 1:])[0].sum().backward()
    assert all(w.grad.abs().sum() > 0 for w in (m.model.embed_tokens.weight, m.lm_head.weight))
    assert all(p.grad is None for p in m.layers.parameters())

@torch.no_grad()
def test_no_module_no_prediction():
    m = fresh(num_nextn_predict_layers=0)
    ids = torch.randint(0, 256, (2, 9))
    assert m.ahead(m.hidden(ids)[:, :-1], ids[:, 1:]) == []

@pytest.mark.parametrize('kw', [{}, dict(first_k_dense_replace=0), dict(n_group=2, q_lora_rank=24),
    dict(rope_scaling=dict(type='yarn', factor=8, original_max_position_embeddings=64, beta_fast=32,
                           beta_slow=1, mscale=1., mscale_all_dim=.7))], ids=str)
@torch.no_grad()
def test_equal_to_the_module_of_transformers(kw, tmp_path):
    t = pytest.importorskip('transformers')
    layers = pytest.importorskip('transformers.modeling_layers')
    if not hasattr(layers, 'MtpModel'): pytest.skip('this transformers has no MtpModel')
    t.utils.logging.set_verbosity_error()
    m = fresh(**kw)
    m.save_pretrained(tmp_path/'m')
    hf = t.AutoModelForCausalLM.from_pretrained(tmp_path/'m').eval()
    hf._keys_to_ignore_on_load_unexpected = [r'model\.layers\.3.*']  # theirs looks for layer 61
    theirs = layers.MtpModel.from_pretrained(hf).eval()
    ids = torch.randint(0, 256, (1, 20))
    emb, pos = hf.model.embed_tokens(ids[:, 1:]), torch.arange(19)[None]
    rope = hf.model.rotary_emb(emb, position_ids=pos)
    got = hf.lm_head(theirs.layers[0](emb, hf.model(ids[:, :-1]).last_hidden_state,
        position_embeddings=rope, attention_mask=None, position_ids=pos, past_key_values=None))
    want = m.ahead(m.hidden(ids)[:, :-1], ids[:, 1:])[0]
    assert want.std() > .1 and (got - want).abs().max() < 1e-4    # fp32, sums in another order
