"""The whole model against transformers' over odd shapes, and broken or hostile checkpoints."""
import json, math, shutil
from dataclasses import replace
import pytest
import torch
from safetensors.torch import load_file, save_file
from r1nb import model as room
from r1nb.attention import LatentCache
from r1nb.core import R1Error
from r1nb.model import (R1Config, R1Model, V2_LITE, V3, count, load, read_config, save,
                        split_experts, stack_experts)

YARN = dict(type='yarn', factor=8, original_max_position_embeddings=64, beta_fast=32, beta_slow=1,
            mscale=1.0, mscale_all_dim=0.7)
NANO = R1Config(initializer_range=.1)
ODD = dict(
    nano=NANO,
    lora=replace(NANO, hidden_size=96, num_attention_heads=3, q_lora_rank=40, kv_lora_rank=24,
        qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=28, n_routed_experts=12, n_group=4,
        topk_group=2, num_experts_per_tok=3, routed_scaling_factor=2.5, first_k_dense_replace=2,
        num_hidden_layers=4, rope_scaling=YARN),
    no_dense=replace(NANO, first_k_dense_replace=0, n_shared_experts=2, n_group=2, topk_group=1,
        norm_topk_prob=False, rope_theta=5000., num_nextn_predict_layers=2,
        rope_scaling=dict(type='yarn', factor=4, original_max_position_embeddings=64)),
    all_dense=replace(NANO, first_k_dense_replace=9, rms_norm_eps=1e-5),
    no_experts=replace(NANO, n_routed_experts=None, num_nextn_predict_layers=0),
    other_words=replace(NANO, vocab_size=999, num_hidden_layers=1))

def fresh(c, seed=0):
    torch.manual_seed(seed)
    m = R1Model(c).eval()
    for n, b in m.named_buffers():
        if n.endswith('_bias'): b.normal_(std=.1)
    for n, p in m.named_parameters():
        if p.dim() == 1: torch.nn.init.uniform_(p, .5, 1.5)
    return m

@pytest.fixture(scope='module')
def ids(): return torch.randint(0, 256, (3, 50), generator=torch.Generator().manual_seed(1))

@pytest.fixture(scope='module')
def hf():
    t = pytest.importorskip('transformers')
    t.utils.logging.set_verbosity_error()
    return t

@pytest.mark.parametrize('name', ODD)
@torch.no_grad()
def test_transformers_opens_ours_and_we_open_theirs(name, tmp_path, ids, hf):
    ours = fresh(ODD[name])
    ours.save_pretrained(tmp_path/'ours')
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path/'ours').eval()
    assert isinstance(theirs, hf.DeepseekV3ForCausalLM)
    want = ours(ids)
    assert want.std() > .1
    assert (theirs(ids).logits - want).abs().max() < 1e-4    # fp32, sums in another order
    theirs.save_pretrained(tmp_path/'one')
    theirs.save_pretrained(tmp_path/'many', max_shard_size='200KB')
    assert (tmp_path/'many'/'model.safetensors.index.json').exists()
    for folder in ('one', 'many'):
        back = R1Model.from_pretrained(tmp_path/folder)
        assert back.config.num_nextn_predict_layers == 0
        assert (back(ids) - want).abs().max() < 1e-4

@torch.no_grad()
def test_transformers_own_weights(tmp_path, ids, hf):
    "A model that transformers initialised, with its defaults for what we did not name."
    torch.manual_seed(3)
    c = hf.DeepseekV3Config(vocab_size=256, hidden_size=64, intermediate_size=96,
        moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, kv_lora_rank=32,
        num_key_value_heads=4, q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=16,
        v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, initializer_range=.1)
    theirs = hf.DeepseekV3ForCausalLM(c).eval()
    theirs.save_pretrained(tmp_path/'theirs')
    ours = load(tmp_path/'theirs')
    assert ours.config.routed_scaling_factor == 2.5 and ours.config.max_position_embeddings == 4096
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4

@torch.no_grad()
def test_generate_of_transformers_stops_at_end(tmp_path, hf):
    from r1nb.tokens import END, chat
    m = fresh(NANO)
    m.model.norm.weight.copy_(torch.ones(128)*1e-3)
    m.lm_head.weight.zero_()
    m.save_pretrained(tmp_path/'m')                  # every token equally likely, argmax is 0
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path/'m').eval()
    theirs.lm_head.weight[END] = theirs.model.norm.weight*0 + 1.
    theirs.model.norm.weight.fill_(1.)
    prompt = torch.tensor([chat('Make 43 from 20 4 16 11 .')])
    h = theirs.model(prompt).last_hidden_state[0, -1].sum()
    theirs.lm_head.weight[END] *= h.sign()           # the end is now the likeliest first token
    out = theirs.generate(prompt, max_new_tokens=20, do_sample=False,
                          attention_mask=torch.ones_like(prompt))
    assert out[0, prompt.shape[1]:].tolist() == [END]

@pytest.mark.parametrize('name', ODD)
@torch.no_grad()
def test_round_trip(name, tmp_path, ids):
    c = ODD[name]
    m = fresh(c)
    assert save(m, tmp_path/'a') == tmp_path/'a'
    back = load(tmp_path/'a')
    a, b = m.state_dict(), back.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    if c.n_routed_experts: assert back.config == c == read_config(tmp_path/'a')
    assert torch.equal(m(ids), back(ids))
    back.save_pretrained(tmp_path/'b')
    one, two = (tmp_path/f/'model.safetensors' for f in 'ab')
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path/'a/tokenizer.json').exists() == (c.vocab_size == 256)
    assert all(p.requires_grad for p in back.parameters())

@pytest.mark.parametrize('name', ODD)
def test_counter_is_the_sum(name):
    m, n = R1Model(ODD[name]), count(ODD[name])
    assert n['total'] + n['mtp'] == sum(p.numel() for p in m.parameters())
    assert n['mtp'] == sum(p.numel() for p in m.mtp.parameters())
    assert n['active'] <= n['total'] and n['active_no_embedding'] < n['active']

def test_half_precision_keeps_the_balancing_bias(tmp_path, ids):
    m = fresh(NANO)
    m.save_pretrained(tmp_path/'a')
    half = R1Model.from_pretrained(tmp_path/'a', dtype=torch.bfloat16)
    kinds = {k: v.dtype for k, v in half.state_dict().items()}
    assert {v for k, v in kinds.items() if k.endswith('_bias')} == {torch.float32}
    assert {v for k, v in kinds.items() if not k.endswith('_bias')} == {torch.bfloat16}
    half.save_pretrained(tmp_path/'b')
    assert json.loads((tmp_path/'b/config.json').read_text())['torch_dtype'] == 'bfloat16'
    with torch.no_grad():   # bf16: 8 significant bits, through 3 layers
        assert (load(tmp_path/'b')(ids) - m(ids)).abs().mean() < .05

@torch.no_grad()
def test_cache_positions_and_context(ids):
    m = fresh(NANO)
    cache = LatentCache(NANO, 3, 3, 50)
    parts = [m(ids[:, :30], cache=cache), m(ids[:, 30:45], cache=cache)]
    parts += [m(ids[:, t:t+1], cache=cache) for t in range(45, 50)]
    assert (torch.cat(parts, 1) - m(ids)).abs().max() < 1e-4
    with pytest.raises(R1Error, match='51 tokens in a cache made for 50'):
        m(ids[:, :1], cache=cache)
    for bad in (ids[0], ids.float(), ids[:, :0], ids.bool()):
        with pytest.raises(R1Error, match=r'must be whole numbers \[B,T\]'): m(bad)
    with pytest.raises(R1Error, match='token id -1 is not'): m(ids*0 - 1)
    assert torch.equal(m(ids.int()), m(ids))

def test_first_call_while_sampling_does_not_spoil_training(ids):
    m = R1Model(NANO)
    with torch.inference_mode(): m(ids)
    m(ids).sum().backward()

def test_only_sigmoid_gates_are_saved(tmp_path):
    tiny = replace(V2_LITE, hidden_size=32, num_hidden_layers=2, num_attention_heads=1,
                   vocab_size=9, kv_lora_rank=8, n_routed_experts=8, moe_intermediate_size=8,
                   intermediate_size=8)
    with pytest.raises(R1Error, match="scoring_func='softmax'"):
        R1Model(tiny).save_pretrained(tmp_path/'x')
    assert not (tmp_path/'x').exists()

# ---- numbers that cannot be -------------------------------------------------------------------
@pytest.mark.parametrize('field,value', [
    ('hidden_size', -1), ('hidden_size', 0), ('hidden_size', 10**12), ('hidden_size', '128'),
    ('hidden_size', 128.), ('hidden_size', True), ('hidden_size', None), ('hidden_size', [1]),
    ('num_hidden_layers', 10**6), ('num_hidden_layers', 0), ('n_routed_experts', 10**9),
    ('num_experts_per_tok', 9), ('n_group', 3), ('topk_group', 2), ('n_group', 8),
    ('num_nextn_predict_layers', -1), ('num_nextn_predict_layers', 999), ('qk_rope_head_dim', 15),
    ('rope_theta', float('nan')), ('rope_theta', float('inf')), ('rms_norm_eps', 0.),
    ('rms_norm_eps', 'x'*10**6), ('routed_scaling_factor', -2.), ('norm_topk_prob', 'yes'),
    ('scoring_func', 'tanh\n'), ('rope_scaling', [1]), ('rope_scaling', {}),
    ('rope_scaling', {'type': 'linear', 'factor': 2}), ('rope_scaling', {'type': 'yarn'}),
    ('rope_scaling', YARN | {'factor': 0}), ('rope_scaling', YARN | {'factor': '8'}),
    ('rope_scaling', YARN | {'attention_factor': 1.}),
    ('rope_scaling', YARN | {'mscale': math.nan})])
def test_absurd_numbers(field, value):
    with pytest.raises(R1Error) as e: replace(NANO, **{field: value})
    said = str(e.value)
    assert '\n' not in said and len(said) < 300
    assert field in said or field in ('topk_group',) or 'rope_scaling' in said

@pytest.mark.parametrize('change,said', [
    (dict(model_type='llama'), "model_type='llama'"),
    (dict(hidden_act='gelu'), "hidden_act='gelu'"),
    (dict(attention_bias=True), 'attention_bias=True'),
    (dict(tie_word_embeddings=True), 'tie_word'),
    (dict(quantization_config={'quant_method': 'fp8'}), "'fp8'"),
    (dict(num_key_value_heads=1), 'num_key_value_heads=1'),
    (dict(rope_interleave=False), 'interleave'),
    (dict(rope_scaling='yarn'), 'must be an object'), (dict(hidden_size=-5), 'hidden_size=-5'),
    (dict(rope_parameters={'rope_type': 'llama3', 'factor': 8}), 'llama3'),
    (dict(num_experts_per_tok=64), 'num_experts_per_tok=64')])
def test_config_that_would_compute_something_else(change, said, tmp_path):
    fresh(NANO).save_pretrained(tmp_path/'m')
    f = tmp_path/'m/config.json'
    f.write_text(json.dumps(json.loads(f.read_text()) | change))
    with pytest.raises(R1Error, match=said) as e: load(tmp_path/'m')
    assert str(f) in str(e.value) and '\n' not in str(e.value)

# ---- broken and hostile checkpoints -----------------------------------------------------------
def tensors(change):
    def damage(d):
        t = load_file(d/'model.safetensors')
        change(t)
        save_file(t, d/'model.safetensors')
    return damage
def cut(f): f.write_bytes(f.read_bytes()[:-9])
def text(name, s): return lambda d: (d/name).write_bytes(s)
def index(d, where):
    (d/'model.safetensors').rename(d/'part.safetensors')
    (d/'model.safetensors.index.json').write_text(json.dumps(where))
Q, LAST = 'model.layers.1.self_attn.q_proj.weight', 'model.layers.3.'
BROKEN = {
    'no folder': (lambda d: shutil.rmtree(d), 'config.json is missing'),
    'no weights': (lambda d: (d/'model.safetensors').unlink(), 'only safetensors are read'),
    'pickle': (lambda d: (d/'model.safetensors').rename(d/'pytorch_model.bin'), 'only safetensors'),
    'cut': (lambda d: cut(d/'model.safetensors'), 'is damaged'),
    'empty': (text('model.safetensors', b''), 'is damaged'),
    'long header': (text('model.safetensors', b'\xff'*64), 'is damaged'),
    'noise': (text('model.safetensors', b'\x10' + bytes(7) + b'{"a":{"dtype":"X"}}'), 'is damaged'),
    'not json': (text('config.json', b'{"hidden_size": 12'), 'not a JSON object'),
    'a list': (text('config.json', b'[1]'), 'not a JSON object'),
    'deep': (text('config.json', b'['*10**5), 'not a JSON object'),
    'not text': (text('config.json', b'\xff\xfe{}'), 'not a JSON object'),
    'empty config': (text('config.json', b'{}'), 'lacks first_k_dense_replace'),
    'missing': (tensors(lambda t: t.pop(Q)), f'lacks 1 tensor.*{Q}'),
    'missing expert': (tensors(lambda t: t.pop('model.layers.2.mlp.experts.7.up_proj.weight')),
                       'lacks 1 tensor.*experts.7.up_proj'),
    'missing bias': (tensors(lambda t: t.pop('model.layers.2.mlp.gate.e_score_correction_bias')),
                     'lacks 1 tensor.*correction_bias'),
    'half an MTP': (tensors(lambda t: t.pop(LAST + 'eh_proj.weight')), 'lacks 1 tensor.*eh_proj'),
    'extra': (tensors(lambda t: t.update(evil=torch.zeros(1))), "has unknown 1 tensor.*'evil'"),
    'ninth expert': (tensors(lambda t: t.update({'model.layers.2.mlp.experts.8.up_proj.weight':
                     torch.zeros(64, 128)})), 'has unknown 1 tensor.*experts.8'),
    'misshapen': (tensors(lambda t: t.update({Q: torch.zeros(128, 127)})),
                  r'q_proj.weight has shape \(128, 127\), config.json wants \(128, 128\)'),
    'transposed expert': (tensors(lambda t: t.update({'model.layers.2.mlp.experts.0.up_proj.weight':
                          torch.zeros(128, 64)})), r'shape \(128, 64\)'),
    'whole numbers': (tensors(lambda t: t.update({Q: torch.zeros(128, 128, dtype=torch.int64)})),
                      'q_proj.weight is torch.int64'),
    'fp8': (tensors(lambda t: t.update({Q: torch.zeros(128, 128).to(torch.float8_e4m3fn)})),
            'float8_e4m3fn, not a plain float'),
    'nan': (tensors(lambda t: t[Q].fill_(math.nan)), 'q_proj.weight holds a NaN'),
    'other head': (tensors(lambda t: t[LAST + 'shared_head.head.weight'].add_(1)),
                   'shared_head.head.weight differs from lm_head.weight'),
    'outside': (lambda d: index(d, {'weight_map': {Q: '../m/part.safetensors'}}), 'no file of'),
    'absolute': (lambda d: index(d, {'weight_map': {Q: str(d/'part.safetensors')}}), 'no file of'),
    'no shard': (lambda d: index(d, {'weight_map': {Q: 'model-2.safetensors'}}), 'no file of'),
    'no map': (lambda d: index(d, {'weight_map': [1]}), 'has no weight_map'),
    'number': (lambda d: index(d, {'weight_map': {Q: 3}}), 'no file of'),
    'lying map': (lambda d: index(d, {'weight_map': {'x': 'part.safetensors'}}), 'is damaged'),
    'short map': (lambda d: index(d, {'weight_map': {Q: 'part.safetensors'}}), 'lacks'),
}

@pytest.fixture(scope='module')
def good(tmp_path_factory): return fresh(NANO).save_pretrained(tmp_path_factory.mktemp('good')/'m')

@pytest.mark.parametrize('how', BROKEN)
def test_broken_checkpoint(how, good, tmp_path):
    damage, said = BROKEN[how]
    d = shutil.copytree(good, tmp_path/'m')
    damage(d)
    with pytest.raises(R1Error, match=said) as e: load(d)
    assert '\n' not in str(e.value) and len(str(e.value)) < 500

def test_pickle_beside_the_weights_is_not_opened(good, tmp_path):
    d = shutil.copytree(good, tmp_path/'m')
    (d/'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"touch pwned"\ntR.')
    assert load(d).config == NANO

def test_mtp_is_all_there_or_absent(good, tmp_path):
    d = shutil.copytree(good, tmp_path/'m')
    tensors(lambda t: [t.pop(k) for k in list(t) if k.startswith(LAST)])(d)
    assert load(d).config == replace(NANO, num_nextn_predict_layers=0)
    d = shutil.copytree(good, tmp_path/'n')       # the copies of embedding and head may be left out
    tensors(lambda t: [t.pop(LAST + k) for k in room.TWINS])(d)
    assert load(d).config == NANO

# ---- saving -----------------------------------------------------------------------------------
def test_a_failed_save_leaves_the_old_checkpoint(good, tmp_path, monkeypatch, ids):
    d = shutil.copytree(good, tmp_path/'m')
    def full(folder): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(room, 'save_tokenizer', full)
    with pytest.raises(R1Error, match='disk is full'): fresh(NANO, 5).save_pretrained(d)
    with torch.no_grad(): assert torch.equal(load(d)(ids), load(good)(ids))

def test_a_kill_between_the_renames_is_mended(good, tmp_path):
    d = shutil.copytree(good, tmp_path/'m')
    d.rename(tmp_path/'.m.old')
    assert load(d).config == NANO

@pytest.mark.parametrize('name', ['notes.txt', 'metrics.csv', 'optimizer.pt'])
def test_what_is_not_a_checkpoint_is_not_replaced(name, good, tmp_path):
    d = shutil.copytree(good, tmp_path/'m')
    (d/name).write_text('mine')
    with pytest.raises(R1Error, match=f'holds {name}'): fresh(NANO).save_pretrained(d)
    assert (d/name).read_text() == 'mine'
    (tmp_path/'file').write_text('mine')
    with pytest.raises(R1Error, match='file'): fresh(NANO).save_pretrained(tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'mine'

def test_names_of_experts_there_and_back():
    m = fresh(replace(NANO, n_routed_experts=12, num_experts_per_tok=3))
    back = stack_experts(split_experts(m.state_dict()), m.config)
    assert all(torch.equal(v, back[k]) for k, v in m.state_dict().items())

def test_v3_is_never_allocated():
    with torch.device('meta'): m = R1Model(V3)
    assert m.lm_head.weight.is_meta and len(m.model.layers) == 62
    assert 'model.layers.60.mlp.experts.255.down_proj.weight' in split_experts(m.state_dict())
