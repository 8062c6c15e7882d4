"""Sampling and speculation on small random models of many shapes (the lessons: rooms 15, 16)."""
from dataclasses import replace
import pytest, torch
from r1nb.core import R1Error
from r1nb.model import R1Config, R1Model
from r1nb.sample import (Fold, Replay, Step, as_bias, choose, draw, generate, nucleus, prefill,
                         sees)
from r1nb.attention import LatentCache
from r1nb.speculate import accept, law, speculate

YARN = dict(type='yarn', factor=4, original_max_position_embeddings=16, beta_fast=32, beta_slow=1,
            mscale=1.0, mscale_all_dim=1.0)
BASE = R1Config(vocab_size=40, hidden_size=24, intermediate_size=40, moe_intermediate_size=12,
    num_hidden_layers=2, num_attention_heads=3, kv_lora_rank=10, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=5, max_position_embeddings=64, n_routed_experts=6,
    num_experts_per_tok=2, initializer_range=.3)
ODD = dict(
    moe={},
    dense=dict(n_routed_experts=None),
    lora=dict(q_lora_rank=7),
    yarn=dict(rope_scaling=YARN),
    groups=dict(n_routed_experts=8, n_group=4, topk_group=2, routed_scaling_factor=2.5),
    softmax=dict(scoring_func='softmax', norm_topk_prob=False),
    shared=dict(n_shared_experts=2, first_k_dense_replace=0),
    unshared=dict(n_shared_experts=0),
    one_head=dict(num_attention_heads=1, q_lora_rank=5, rope_scaling=YARN))
PROMPTS = [[5, 6, 7], [9], [8, 7, 6, 5, 4, 3, 2], [5, 6, 7], [30, 31]]


@pytest.fixture(params=ODD)
def model(request):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    m = R1Model(replace(BASE, **ODD[request.param])).eval()
    for n, b in m.named_buffers():
        if n.endswith('_bias'): b.uniform_(-.3, .3)
    for n, p in m.named_parameters():
        if 'norm' in n: p.data.uniform_(.5, 1.5)
    return m


@pytest.fixture
def tiny():
    torch.manual_seed(1)
    return R1Model(BASE).eval()


@torch.no_grad()
def slow(model, prompt, n):
    ids = list(prompt)
    for _ in range(n): ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt):]


@torch.no_grad()
def trained_side(model, prompt, ids, temperature=1.):
    logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1:-1]/temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


# ---- the engine ------------------------------------------------------------------------------
def test_greedy_is_the_slow_engine(model):
    s = generate(model, PROMPTS, 12, temperature=0., stop=-1)
    assert s.ids == [slow(model, p, 12) for p in PROMPTS] and not any(s.done)


def test_log_probabilities_are_the_training_side_s(model):
    for T in (1., .7):
        s = generate(model, PROMPTS, 12, T, stop=-1, seed=3)
        for p, ids, lp in zip(PROMPTS, s.ids, s.lp):
            assert (trained_side(model, p, ids, T) - torch.tensor(lp)).abs().max() < 1e-5


def test_padding_changes_nothing(model):
    together = generate(model, PROMPTS, 10, temperature=0., stop=-1)
    for p, ids, lp in zip(PROMPTS, together.ids, together.lp):
        alone = generate(model, [p], 10, temperature=0., stop=-1)
        assert alone.ids == [ids]
        assert (torch.tensor(alone.lp[0]) - torch.tensor(lp)).abs().max() < 1e-5


def test_leaving_rows_change_nothing(tiny):
    prompts = [[i] for i in range(2, 38)]
    full = generate(tiny, prompts, 30, 1.3, stop=-1, seed=5)
    cut = generate(tiny, prompts, 30, 1.3, stop=11, seed=5)
    ends = [r.index(11) + 1 if 11 in r else 30 for r in full.ids]
    assert len(set(ends)) > 5 and min(ends) < 10
    assert cut.ids == [r[:n] for r, n in zip(full.ids, ends)]
    assert cut.done == [11 in r for r in full.ids] and cut.passes == max(ends)
    assert [len(a) for a in cut.lp] == ends


def test_seeds(tiny):
    a, b, c = (generate(tiny, PROMPTS, 20, seed=s) for s in (1, 1, 2))
    assert a == b and a.ids != c.ids
    assert a.ids[0] != a.ids[3]  # one prompt twice, two answers


def test_weights_are_read_afresh(tiny):
    before = generate(tiny, PROMPTS, 8, 0., stop=-1)
    with torch.no_grad():
        for p in tiny.parameters(): p.add_(.1*torch.randn_like(p))
    after = generate(tiny, PROMPTS, 8, 0., stop=-1)
    assert before.ids != after.ids == [slow(tiny, p, 8) for p in PROMPTS]


def test_training_still_works_after_sampling(tiny):
    generate(tiny, PROMPTS, 4)
    tiny(torch.tensor([[3, 4, 5]])).sum().backward()
    assert tiny.lm_head.weight.grad is not None


def test_static_step_is_the_step(model):
    with torch.inference_mode():
        out = []
        for kind in (Step, Replay):
            _, first, cache, h = prefill(model, PROMPTS, 9)
            step = kind(Fold(model), cache, first, 0., 1.)
            tokens = [choose(model.lm_head(h[:, -1]), 0.)[0]]
            for _ in range(8):
                tokens.append(step(tokens[-1], torch.zeros(len(PROMPTS), 1).double())[0].clone())
            out.append(torch.stack(tokens, 1).tolist())
    assert out[0] == out[1] == [slow(model, p, 9) for p in PROMPTS]


@pytest.mark.parametrize('most', [0, 2, 1000])
def test_fold_of_many_words_at_ragged_columns(model, most):
    c, ids = model.config, torch.randint(0, 40, (3, 6))
    cache, fold = LatentCache(c, c.num_hidden_layers, 3, 9), Fold(model, most)
    first, start = torch.zeros(3, dtype=torch.int64), torch.tensor([[0], [2], [3]])
    with torch.inference_mode():
        whole, got = model.hidden(ids), torch.zeros(3, 6, c.hidden_size)
        for n, T in ((0, 4), (4, 2)):
            pos = torch.arange(n, n + T).expand(3, T)
            bias = as_bias(sees(first, pos, 9), torch.float)
            got[:, n:n + T] = fold.hidden(ids[:, n:n + T], cache, pos, bias)
    assert (got - whole).abs().max() < 2e-5*max(1, whole.abs().max())


def test_bfloat16_decodes():
    torch.manual_seed(0)
    m = R1Model(BASE).to(torch.bfloat16).eval()
    s = generate(m, PROMPTS, 6, stop=-1)
    assert all(len(r) == 6 and max(p) <= 0 for r, p in zip(s.ids, s.lp))


# ---- drawing ---------------------------------------------------------------------------------
def test_draw_never_takes_what_has_no_weight():
    g = torch.Generator().manual_seed(0)
    p = torch.rand(2000, 17, generator=g)*(torch.rand(2000, 17, generator=g) > .6)
    p[:, 3] += 1e-30
    u = torch.rand(2000, 1, generator=g, dtype=torch.float64)
    for x in (u, torch.zeros_like(u), torch.full_like(u, 1 - 2**-53)):
        ids = draw(p, x)
        assert ids.max() < 17 and (p.gather(1, ids) > 0).all()


@pytest.mark.parametrize('top_p', [.05, .3, .9, .999])
def test_nucleus_is_the_smallest_set(top_p):
    p = (torch.randn(200, 33, generator=torch.Generator().manual_seed(0))*2).softmax(-1)
    kept = nucleus(p, top_p)
    for row, k in zip(p, kept):
        ranked = row.sort(descending=True).values
        n = int((ranked.cumsum(0) < top_p).sum()) + 1
        assert (k > 0).sum() == n and torch.allclose(k.sum(), torch.ones(()), atol=1e-5)
        assert torch.allclose(k[k > 0], row[k > 0]/ranked[:n].sum(), rtol=1e-4)


def test_top_p_reaches_the_engine(tiny):
    near = generate(tiny, PROMPTS, 10, 1., top_p=1e-6, stop=-1, seed=1)
    greedy = generate(tiny, PROMPTS, 10, 0., stop=-1)
    assert near.ids == greedy.ids and max(map(max, near.lp)) == min(map(min, near.lp)) == 0


@pytest.mark.parametrize('bad, word', [
    (dict(prompts=[]), 'none of them empty'), (dict(prompts=[[3], []]), 'none of them empty'),
    (dict(prompts=[[40]]), 'token id 40'), (dict(prompts=[[3, -1]]), 'token id -1'),
    (dict(prompts=[[3]*64]), 'max_new to 1'), (dict(prompts=[[3]*65]), 'shorten the prompt'),
    (dict(prompts=[[3]*10], max_new=56), 'max_new to 55'), (dict(max_new=0), 'max_new=0'),
    (dict(temperature=-.1), 'temperature=-0.1'), (dict(top_p=1.5), 'top_p=1.5')])
def test_one_line_for_each_impossible_request(tiny, bad, word):
    ask = dict(prompts=PROMPTS, max_new=5) | bad
    with pytest.raises(R1Error, match=word) as e: generate(tiny, **ask)
    assert '\n' not in str(e.value)


def test_the_last_column_can_be_used(tiny):
    assert len(generate(tiny, [[3]*60], 5, 0., stop=-1).ids[0]) == 5
    assert len(speculate(tiny, [[3]*60], 4, 0., stop=-1).ids[0]) == 4
    with pytest.raises(R1Error, match='max_new to 4'): speculate(tiny, [[3]*60], 5)


# ---- speculation -----------------------------------------------------------------------------
@pytest.mark.parametrize('stop', [-1, 11])
def test_speculation_writes_what_generation_writes(model, stop):
    prompts = PROMPTS + [[i, i + 1] for i in range(2, 30)]
    a = generate(model, prompts, 25, 0., stop=stop)
    b = speculate(model, prompts, 25, 0., stop=stop)
    assert a.ids == b.ids and a.done == b.done
    for x, y in zip(a.lp, b.lp): assert (torch.tensor(x) - torch.tensor(y)).abs().max() < 1e-5


def test_sampled_speculation_reports_the_training_side_s_log_probabilities(model):
    s = speculate(model, PROMPTS, 20, .8, stop=-1, seed=2)
    assert s.drafted >= s.accepted >= 0
    for p, ids, lp in zip(PROMPTS, s.ids, s.lp):
        assert len(ids) == 20
        assert (trained_side(model, p, ids, .8) - torch.tensor(lp)).abs().max() < 1e-5


@pytest.mark.parametrize('max_new', [1, 2, 3])
def test_short_answers(tiny, max_new):
    for T in (0., 1.):
        s = speculate(tiny, PROMPTS, max_new, T, stop=-1)
        assert [len(r) for r in s.ids] == [max_new]*len(PROMPTS)
    assert s.passes <= max_new


def test_perfect_drafts_are_all_kept():
    p = torch.randn(500, 9).softmax(-1)
    g = torch.Generator().manual_seed(0)
    u = torch.rand(500, 3, generator=g, dtype=torch.float64)
    draft = draw(p, u[:, :1])
    token, kept = accept(p, p.clone(), draft, u[:, 1:])
    assert kept.all() and torch.equal(token, draft)


def test_any_pair_of_distributions_gives_the_first():
    g = torch.Generator().manual_seed(1)
    for k in range(12):
        p, q = (3*torch.randn(2, 7, generator=g)).softmax(-1)
        if k % 3 == 0: p[:3], q[2:] = 0, 0  # partly or wholly apart
        p, q, n = p/p.sum(), q/q.sum(), 40_000
        u = torch.rand(n, 3, generator=g, dtype=torch.float64)
        P, Q = p.expand(n, 7), q.expand(n, 7)
        token, kept = accept(P, Q, draw(Q, u[:, :1]), u[:, 1:])
        share = token[:, 0].bincount(minlength=7)/n
        assert (share - p).abs().max() < 5*.5/n**.5  # five standard errors of a share
        assert abs(kept.double().mean() - torch.minimum(p, q).sum()) < 5*.5/n**.5


def test_greedy_law_is_one_hot():
    p, lp = law(torch.tensor([[1., 3., 2.]]), 0.)
    assert p.tolist() == [[0, 1, 0]] and torch.allclose(lp.exp().sum(), torch.ones(()))


def test_seeds_of_speculation(tiny):
    a, b, c = (speculate(tiny, PROMPTS, 20, seed=s) for s in (1, 1, 2))
    assert a == b and a.ids != c.ids
