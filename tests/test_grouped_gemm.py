"Tokens to experts and back, grouped products in both layouts, room 11's layer through all of it."

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from r1nb.core import R1Error
from r1nb.fp8 import dequantize, quantize
from r1nb.gemm import matmul_blocks
from r1nb.grouped_gemm import (Fp8Experts, grouped_matmul, permute, places, plain, quantize_experts,
                               run_experts, unpermute, use)
from r1nb.model import R1Config, R1Model
from r1nb.moe import MoE, MoEConfig
from r1nb.roofline import error

FP = torch.float32


def choices(N, E, k, seed, crowded=False):
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(N, E, generator=g)
    if crowded: score[:, :k] += 2           # everybody wants the same
    return score.topk(k, 1).indices


# ---- there and back ----------------------------------------------------------------------------
shapes = dict(N=st.integers(0, 300), E=st.integers(1, 20), k=st.integers(1, 6),
              seed=st.integers(0, 999), crowded=st.booleans())

@settings(max_examples=150, deadline=None)
@given(**shapes, layout=st.sampled_from(['contiguous', 'masked']))
def test_round_trip(N, E, k, seed, crowded, layout):
    idx = choices(N, E, min(k, E), seed, crowded)
    k, x = idx.shape[1], torch.randn(N, 3)
    rows = permute(x, idx, E, layout)
    flat, flat_place = rows.x.flatten(0, -2), rows.place.flatten()
    assert flat_place.unique().numel() == N*k                     # nobody shares a row
    assert torch.equal(flat[flat_place], x.repeat_interleave(k, 0))
    rest = torch.ones(len(flat), dtype=torch.bool); rest[flat_place] = False
    assert flat[rest].abs().sum() == 0                            # padding is zeros
    assert torch.equal(rows.counts.long(), idx.flatten().bincount(minlength=E))
    gate = torch.rand(N, k)
    assert error(unpermute(rows.x, rows.place, gate), x*gate.sum(1)[:, None]) < 1e-6 or N == 0

@settings(max_examples=150, deadline=None)
@given(**shapes)
def test_every_row_is_its_experts(N, E, k, seed, crowded):
    idx = choices(N, E, min(k, E), seed, crowded)
    rows = permute(torch.zeros(N, 1), idx, E)
    assert len(rows.x) == 128*len(rows.groups) and rows.groups.dtype == torch.int32
    assert torch.equal(rows.groups[rows.place//128].long(), idx)
    used = rows.groups >= 0
    assert torch.equal(used, used.sort(descending=True).values)   # the unused ones come last
    needed = ((rows.counts + 127)//128).sum()
    assert used.sum() == needed and (rows.groups[used].diff() >= 0).all()
    apart = permute(torch.zeros(N, 1), idx, E, 'masked')
    assert N == 0 or torch.equal(apart.place//N, idx)
    assert (apart.place < 0).sum() == 0 and torch.equal(apart.groups, apart.counts)

@settings(max_examples=50, deadline=None)
@given(N=st.integers(1, 60), E=st.integers(2, 9), seed=st.integers(0, 99))
def test_shapes_do_not_depend_on_the_routing(N, E, seed):
    one, other = (permute(torch.zeros(N, 2), choices(N, E, 2, seed, c), E) for c in (True, False))
    assert one.x.shape == other.x.shape and one.groups.shape == other.groups.shape

def test_tokens_keep_their_order():
    place, end, counts = places(torch.tensor([[1], [0], [1], [1], [0]]), 3, pad=4)
    assert place.flatten().tolist() == [4, 0, 5, 6, 1]
    assert end.tolist() == [4, 8, 8] and counts.tolist() == [2, 3, 0]

def test_unpermute_adds_in_fp32():
    y = torch.tensor([[256.], [1.], [1.], [1.]]).bfloat16()      # 257 is no bf16 number
    assert unpermute(y, torch.tensor([[0, 1, 2, 3]])).item() == 260.


# ---- products ----------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(N=st.integers(1, 90), E=st.integers(1, 6), rows=st.integers(1, 150), K=st.integers(1, 280),
       seed=st.integers(0, 99))
def test_both_layouts_against_fp64(N, E, rows, K, seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(E, rows, K, generator=g)*torch.logspace(-2, 2, E)[:, None, None]
    b, x = quantize_experts(w), torch.randn(N, K, generator=g)
    idx, q = choices(N, E, min(2, E), seed), dequantize(*quantize(x)).double()
    want = torch.stack([q[n] @ dequantize(b[0][e], b[1][e]).double().t()
                        for n in range(N) for e in idx[n]])
    for layout in ('contiguous', 'masked'):
        there = permute(x, idx, E, layout)
        y = grouped_matmul(*quantize(there.x), *b, there.groups, layout, FP)
        assert error(y.flatten(0, -2)[there.place.flatten()], want) < 1e-6

def test_block_by_block_the_same_bits():
    b, x = quantize_experts(torch.randn(3, 20, 130)), torch.randn(5*128, 130)
    groups, q = torch.tensor([2, -1, 0, 0, 1], dtype=torch.int32), quantize(x)
    y = grouped_matmul(*q, *b, groups, out_dtype=FP)
    assert y[128:256].abs().sum() == 0
    for cut, e in ((slice(128), 2), (slice(256, 512), 0), (slice(512, 640), 1)):
        assert torch.equal(y[cut], matmul_blocks(q[0][cut], q[1][cut], b[0][e], b[1][e], FP))

@pytest.mark.parametrize('change, words', [
    (dict(layout='other'), "layout='other'"),
    (dict(layout='masked'), 'masked: a (256, 130) must have 3 dimensions'),
    (dict(groups=torch.tensor([0, 1])), 'groups torch.int64 (2,)'),
    (dict(groups=torch.tensor([0], dtype=torch.int32)), 'one for each 128 rows'),
    (dict(a_scale=torch.ones(256, 3)), 'float32 (256, 2) is wanted'),
    (dict(b_scale=torch.ones(2, 2, 2)), 'float32 (2, 1, 2) is wanted'),
    (dict(groups=torch.tensor([0, 2], dtype=torch.int32)), 'groups from 0 to 2: 1 is the last'),
    (dict(groups=torch.zeros(2, dtype=torch.int32, device='meta')), 'where a is'),
    (dict(impl='fast'), "impl='fast' is none of")])
def test_refusals(change, words):
    a, s = quantize(torch.randn(256, 130)); b, t = quantize_experts(torch.randn(2, 20, 130))
    ok = dict(a=a, a_scale=s, b=b, b_scale=t, groups=torch.tensor([0, 1], dtype=torch.int32))
    grouped_matmul(**ok)
    with pytest.raises(R1Error) as e: grouped_matmul(**ok | change)
    assert words in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('counts', [(0, 65), (-1, 3), (64, 10**9)])
def test_counts_that_do_not_fit(counts):
    a, b = quantize(torch.randn(2, 64, 130)), quantize_experts(torch.randn(2, 20, 130))
    rows = torch.tensor(counts, dtype=torch.int32)
    with pytest.raises(R1Error, match='0 to 64 rows'): grouped_matmul(*a, *b, rows, 'masked')

@pytest.mark.parametrize('layout', ['contiguous', 'masked'])
@pytest.mark.parametrize('idx, words', [
    (torch.tensor([[0], [9]]), 'choices from 0 to 9'), (torch.tensor([[0], [-1]]), 'from -1 to 0'),
    (torch.tensor([[0], [1]]).int(), 'int64'), (torch.tensor([[0]]), 'choices .* (1, 1)'),
    (torch.tensor([0, 1]), 'int64, a row for each')])
def test_choices_refused(idx, words, layout):
    with pytest.raises(R1Error, match=words.replace('(', '\\(').replace(')', '\\)')):
        permute(torch.randn(2, 8), idx, 3, layout)

def test_an_expert_chosen_twice_has_no_room_in_the_masked_layout():
    idx = torch.tensor([[0, 1], [1, 1], [0, 1]])
    assert permute(torch.ones(3, 2), idx, 2).counts.tolist() == [2, 4]
    with pytest.raises(R1Error, match='token 1 chose an expert twice'):
        permute(torch.ones(3, 2), idx, 2, 'masked')

def test_a_model_without_experts():
    with pytest.raises(R1Error, match='Linear has no layer of experts'): use(torch.nn.Linear(3, 3))
    with pytest.raises(R1Error, match="layout='other'"): use(layer(), 'other')

@pytest.mark.parametrize('layout', ['contiguous', 'masked'])
def test_products_of_nothing(layout):
    b = quantize_experts(torch.randn(3, 20, 130))
    for idx in (torch.zeros(0, 2, dtype=torch.long), torch.tensor([[2]])):     # empty groups
        x = torch.randn(len(idx), 130)
        rows = permute(x, idx, 3, layout)
        y = grouped_matmul(*quantize(rows.x), *b, rows.groups, layout, FP)
        out = unpermute(y, rows.place)
        assert out.shape == (len(idx), 20) and out.isfinite().all()
        q = quantize(x)
        if len(idx): assert torch.equal(out, matmul_blocks(*q, b[0][2], b[1][2], FP))

def test_rows_that_are_no_whole_blocks():
    a, b = quantize(torch.randn(100, 16)), quantize_experts(torch.randn(1, 8, 16))
    with pytest.raises(R1Error, match='128 rows'):
        grouped_matmul(*a, *b, torch.zeros(1, dtype=torch.int32))


# ---- the layer ---------------------------------------------------------------------------------
def layer(k=3, seed=0, **kw):
    torch.manual_seed(seed)
    c = MoEConfig(hidden_size=72, moe_intermediate_size=40, num_experts_per_tok=k, **kw)
    m = MoE(c).requires_grad_(False)
    for p in m.parameters(): torch.nn.init.normal_(p, std=.1)
    return m

@pytest.mark.parametrize('dtype', [FP, torch.bfloat16])
@pytest.mark.parametrize('layout', ['contiguous', 'masked'])
@pytest.mark.parametrize('N', [1, 2, 37, 150])
def test_unquantised_equals_room_11_bit_for_bit(dtype, layout, N):
    m, x = layer(), torch.randn(N, 72)
    gate, idx = m.gate(x)
    e, x = m.experts.to(dtype), x.to(dtype)
    got = run_experts(x, gate, idx, 8, layout, plain(e.gate_up_proj), plain(e.down_proj))
    assert torch.equal(got, e(x, gate, idx))

@pytest.mark.parametrize('layout', ['contiguous', 'masked'])
def test_fp8_is_the_dequantised_layer(layout):
    "Against a loop over tokens on dequantised matrices, hidden numbers quantised as well."
    m, x = layer(), torch.randn(9, 72)
    gate, idx = m.gate(x)
    up, down = (torch.stack([dequantize(*q) for q in zip(*quantize_experts(w))])
                for w in (m.experts.gate_up_proj, m.experts.down_proj))
    q, want = dequantize(*quantize(x)), torch.zeros(9, 72)
    for n in range(9):
        for g, e in zip(gate[n], idx[n]):
            a, b = (up[e] @ q[n]).chunk(2)
            want[n] += down[e] @ dequantize(*quantize((F.silu(a)*b*g)[None]))[0]
    got = Fp8Experts(layout)(m.experts, x, gate, idx)
    assert error(got, want) < 2e-3       # a hidden number may fall on the other side of a rounding
    assert .005 < error(got, m.experts(x, gate, idx)) < .08

def test_weights_are_quantised_once_and_again_when_they_change():
    m, x = layer(), torch.randn(1, 5, 72)
    use(m, impl='ref')
    y, kept = m(x), m.impl.weights
    assert torch.equal(m(x), y) and m.impl.weights is kept
    m.experts.down_proj.mul_(2)
    assert m(x).ne(y).any() and m.impl.weights is not kept

def test_a_whole_model_switches_and_back():
    torch.manual_seed(0)
    c = R1Config(hidden_size=64, num_hidden_layers=3, vocab_size=50)
    model = R1Model(c).eval().requires_grad_(False)
    ids = torch.randint(50, (2, 7))
    first = lambda out: out[0] if isinstance(out, tuple) else getattr(out, 'logits', out)
    plainly = first(model(ids))
    assert use(model) is model
    quantised = first(model(ids))
    assert 0 < error(quantised, plainly) < .1
    layers = [m for m in model.modules() if isinstance(m, MoE)]
    assert len({id(m.impl) for m in layers}) == len(layers) > 0   # each its own weights
    again = first(copy.deepcopy(model)(ids))
    assert torch.equal(again, quantised)
    for m in layers: m.impl = 'ref'
    assert torch.equal(first(model(ids)), plainly)

def test_no_tokens_and_no_gradient():
    m = use(layer())
    assert m(torch.zeros(1, 0, 72)).shape == (1, 0, 72)
    with pytest.raises(R1Error, match='no backward pass'):
        m(torch.zeros(1, 3, 72, requires_grad=True))
    m.experts.requires_grad_(True)
    with pytest.raises(R1Error, match='no backward pass'): m(torch.zeros(1, 3, 72))
