"Latent attention against transformers and against itself, over odd sizes."

import random

import pytest
import torch

from r1nb.attention import (
    AttentionConfig,
    LatentCache,
    MLA,
    absorbed_attention,
    causal_mask,
    column_mask,
    naive_attention,
    rope_table,
)
from r1nb.core import R1Error

YARN = [
    None,
    dict(factor=8, original_max_position_embeddings=16),
    dict(
        factor=4.0,
        original_max_position_embeddings=32,
        beta_fast=16,
        beta_slow=2,
        mscale=1.0,
        mscale_all_dim=0.7,
    ),
]


def odd_config(seed, yarn=None):
    "Sizes drawn from what nobody would choose."
    r = random.Random(seed)
    return AttentionConfig(
        hidden_size=r.randint(9, 70),
        num_attention_heads=r.choice([1, 3, 5]),
        q_lora_rank=r.choice([None, r.randint(3, 20)]),
        kv_lora_rank=r.randint(3, 30),
        qk_nope_head_dim=r.randint(1, 20),
        qk_rope_head_dim=2 * r.randint(1, 9),
        v_head_dim=r.randint(1, 20),
        max_position_embeddings=64,
        rope_scaling=yarn,
    )


def layer(c, seed=0):
    torch.manual_seed(seed)
    m = MLA(c)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else torch.nn.init.uniform_(p, 0.5, 1.5)
    return m.eval().requires_grad_(False)


def theirs(m):
    "transformers' layer with our weights, and its rotary table."
    hf = pytest.importorskip('transformers.models.deepseek_v3.modeling_deepseek_v3')
    from transformers import DeepseekV3Config

    c, s = m.c, m.c.rope_scaling
    rope = (
        dict(s, rope_type='yarn', rope_theta=c.rope_theta)
        if s
        else dict(rope_type='default', rope_theta=c.rope_theta)
    )
    names = (
        'hidden_size',
        'num_attention_heads',
        'q_lora_rank',
        'kv_lora_rank',
        'qk_nope_head_dim',
        'qk_rope_head_dim',
        'v_head_dim',
        'max_position_embeddings',
    )
    config = DeepseekV3Config(
        **{n: getattr(c, n) for n in names},
        num_key_value_heads=c.num_attention_heads,
        rope_parameters=rope,
        rope_interleave=True,
        attn_implementation='eager',
    )
    att = hf.DeepseekV3Attention(config, 0).eval().requires_grad_(False)
    att.load_state_dict(m.state_dict())  # strict: the names are DeepSeek's
    return att, hf.DeepseekV3RotaryEmbedding(config)


def their_output(m, x, dtype):
    att, rotary = theirs(m)
    T = x.shape[1]
    hidden = torch.zeros(1, 1, T, T, dtype=dtype).masked_fill(
        ~causal_mask(T, T), torch.finfo(dtype).min
    )
    rope = rotary(x.float(), torch.arange(T)[None])
    return att.to(dtype)(
        x.to(dtype), position_embeddings=tuple(t.to(dtype) for t in rope), attention_mask=hidden
    )[0]


@pytest.mark.parametrize('seed', range(6))
def test_equals_transformers_fp32(seed):
    c = odd_config(seed, YARN[seed % 3])
    m, x = layer(c, seed), torch.randn(2, 23, c.hidden_size)
    want, got = their_output(m, x, torch.float32), m(x, *rope_table(c, 23))
    # fp32: 24 bits and sums of at most 70 terms, relative to the size of the output
    assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())


@pytest.mark.parametrize('seed', range(3))
def test_equals_transformers_bf16(seed):
    c = odd_config(seed, YARN[seed % 3])
    m, x = layer(c, seed), torch.randn(2, 23, c.hidden_size)
    want32 = their_output(m, x, torch.float32)
    rope = tuple(t.bfloat16() for t in rope_table(c, 23))
    got, want = (
        m.bfloat16()(x.bfloat16(), *rope).float(),
        their_output(m, x, torch.bfloat16).float(),
    )
    # bf16: 8 significant bits, rounded in about ten places;
    # ours may stray from fp32 no further than twice theirs does
    size = want32.abs().mean()
    assert (got - want32).abs().mean() <= 2 * (want - want32).abs().mean() + 2**-9 * size
    assert (got - want).abs().mean() <= 2**-4 * size


@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('absorb', [True, False])
def test_pieces_equal_whole(seed, absorb):
    r, c = random.Random(seed), odd_config(seed, YARN[seed % 3])
    m, T = layer(c, seed), 21
    x, (cos, sin), cache = (
        torch.randn(3, T, c.hidden_size),
        rope_table(c, T),
        LatentCache(c, 2, 3, T + 4),
    )
    whole, out = m(x, cos, sin), []
    while cache.length < T:
        t = slice(cache.length, min(T, cache.length + r.choice([1, 1, 2, 7])))
        out.append(m(x[:, t], cos[t], sin[t], cache, layer=1, absorb=absorb))
        cache.length = t.stop
    # fp32: the same sums in another order, relative to the size of the output
    assert (torch.cat(out, 1) - whole).abs().max() <= 1e-5 * max(1, whole.abs().max())
    assert not cache.data[0].any() and not cache.data[1, :, T:].any()


@pytest.mark.parametrize('absorb', [True, False])
@pytest.mark.parametrize('given', ['mask', 'nothing'])
def test_ragged_rows_equal_lockstep(absorb, given):
    c = odd_config(1, YARN[1])
    m, T, lengths = layer(c), 12, torch.tensor([3, 7, 5])
    x, (cos, sin) = torch.randn(3, T, c.hidden_size), rope_table(c, T)
    whole, cache = m(x, cos, sin), LatentCache(c, 1, 3, T)
    first = torch.arange(7).expand(3, 7)  # short rows write columns they will overwrite later
    m(x[:, :7], cos[first], sin[first], cache, pos=first, mask=column_mask(first, T), absorb=absorb)
    for step in range(5):
        pos = (lengths + step)[:, None]
        new = x.gather(1, pos[..., None].expand(-1, -1, x.shape[2]))
        mask = column_mask(pos, T) if given == 'mask' else None
        got = m(new, cos[pos], sin[pos], cache, pos=pos, mask=mask, absorb=absorb)
        want = whole.gather(1, pos[..., None].expand(-1, -1, x.shape[2]))
        assert (got - want).abs().max() <= 1e-5 * max(1, whole.abs().max())  # fp32, another order


def test_masks():
    for T, S in ((1, 1), (1, 9), (4, 4), (3, 8)):
        late = torch.arange(S - T, S)[None]
        assert torch.equal(causal_mask(T, S), column_mask(late, S))
        assert causal_mask(T, S).sum() == sum(range(S - T + 1, S + 1))
    q_nope, q_rope, latent, w = (
        torch.randn(*s) for s in ((2, 4, 3, 5), (2, 4, 3, 2), (2, 4, 9), (3, 11, 7))
    )
    for f in (naive_attention, absorbed_attention):
        diagonal = torch.eye(4, dtype=torch.bool)[None, None]
        y = f(
            q_nope, q_rope, latent, w, 1.0, diagonal
        )  # who sees only itself returns its own value
        want = torch.einsum('btc,hvc->bthv', latent[..., :7], w[:, 5:])
        assert (y - want).abs().max() <= 1e-5  # fp32, 7-term sums
        seen = f(q_nope, q_rope, latent, w, 1.0)
        changed = latent.clone()
        changed[:, 2:] = 1e3
        assert torch.equal(
            f(q_nope, q_rope, changed, w, 1.0)[:, :2], seen[:, :2]
        )  # no look into the future


def test_gradients_agree():
    w = torch.randn(3, 11, 7, dtype=torch.double, requires_grad=True)
    inputs = [
        torch.randn(*s, dtype=torch.double, requires_grad=True)
        for s in ((2, 4, 3, 5), (2, 4, 3, 2), (2, 4, 9))
    ]
    grads = [
        torch.autograd.grad(f(*inputs, w, 0.7).square().sum(), [*inputs, w])
        for f in (naive_attention, absorbed_attention)
    ]
    for a, b in zip(*grads):
        assert (a - b).abs().max() <= 1e-10 * max(1, a.abs().max())  # fp64: 53 bits


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('sizes', [(1, 1, 1), (3, 5, 7), (61, 2, 33)])
def test_cache_bytes(dtype, sizes):
    (L, B, T), c = sizes, odd_config(4)
    cache = LatentCache(c, L, B, T, dtype=dtype)
    assert cache.nbytes == L * (c.kv_lora_rank + c.qk_rope_head_dim) * T * B * dtype.itemsize
    assert cache.data.untyped_storage().nbytes() == cache.nbytes
    cache.data += torch.arange(B, dtype=dtype)[None, :, None, None]
    cache.keep(torch.tensor([B - 1]))
    assert cache.nbytes == L * c.latent_dim * T * dtype.itemsize and (cache.data == B - 1).all()


def test_refuses_what_does_not_fit():
    c = AttentionConfig()
    cache, m, rope = LatentCache(c, 1, 2, 6), layer(c), rope_table(c, 7)
    before = cache.data.clone()
    with pytest.raises(R1Error, match='7 tokens do not fit a cache of 6: make it with T=7'):
        m(torch.randn(2, 7, 128), *rope, cache)
    with pytest.raises(R1Error, match='rows or width'):
        m(torch.randn(1, 6, 128), rope[0][:6], rope[1][:6], cache)
    with pytest.raises(R1Error, match=r'got shape \(2, 6, 127\)'):
        m(torch.randn(2, 6, 127), *rope)
    assert torch.equal(cache.data, before)
    cache.length = 6
    with pytest.raises(R1Error, match='7 tokens'):
        m(torch.randn(2, 1, 128), rope[0][:1], rope[1][:1], cache)
    for bad in (
        dict(qk_rope_head_dim=7),
        dict(qk_rope_head_dim=0),
        dict(rope_scaling=dict(type='linear', factor=2)),
        dict(rope_scaling=dict(type='yarn', factor=2)),
    ):
        with pytest.raises(R1Error) as e:
            AttentionConfig(**bad)
        assert '\n' not in str(e.value)


def test_table_made_while_sampling_serves_training():
    c = AttentionConfig()
    with torch.inference_mode():
        rope = rope_table(c, 4)
    MLA(c)(torch.randn(1, 4, 128), *rope).sum().backward()
