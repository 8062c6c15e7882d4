"""Append to the paged latent cache in Triton: the same pass as kv_append.cu for bf16 and fp8.

x [N, latent+rope] bf16, slots [N] int64 (negative: dropped) -> one layer's pool, in place.
Import this file only where Triton is wanted: `r1nb.kv_cache.append(impl='triton')` does.
"""
import triton
import triton.language as tl
from r1nb.core import require


@triton.jit
def copy_rows(x, slots, out, N, WIDTH: tl.constexpr, PAD: tl.constexpr, TOKENS: tl.constexpr):
    "bf16: a scatter of whole rows."
    token = tl.program_id(0).to(tl.int64)*TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token, mask=token < N, other=-1)
    i = tl.arange(0, PAD)[None, :]
    here = (slot >= 0)[:, None] & (i < WIDTH)
    v = tl.load(x + token[:, None]*WIDTH + i, mask=here)
    tl.store(out + slot[:, None]*WIDTH + i, v, mask=here)


@triton.jit
def quantise_rows(x, slots, latent, scale, rope, N, LATENT: tl.constexpr, ROPE: tl.constexpr,
                  TOKENS: tl.constexpr):
    "fp8: the largest magnitude of each group of 128, then codes, scales and the rotary key."
    GROUPS: tl.constexpr = LATENT//128
    token = tl.program_id(0).to(tl.int64)*TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token, mask=token < N, other=-1)
    here = slot >= 0
    g, i = tl.arange(0, GROUPS), tl.arange(0, 128)
    column = g[:, None]*128 + i[None, :]
    three = here[:, None, None]
    v = tl.load(x + token[:, None, None]*(LATENT + ROPE) + column[None], mask=three, other=0.)
    v = v.to(tl.float32)
    size = tl.abs(v)
    s = tl.div_rn(tl.max(size, 2), tl.full([TOKENS, GROUPS], 448., tl.float32))
    s = tl.maximum(s, tl.full([TOKENS, GROUPS], 1.17549435e-38, tl.float32))
    broken = tl.max(tl.where(size < float('inf'), 0, 1), 2) > 0    # a NaN is not below infinity
    s = tl.where(broken, tl.full([TOKENS, GROUPS], float('nan'), tl.float32), s)
    inverse = tl.div_rn(tl.full([TOKENS, GROUPS], 1., tl.float32), s)
    y = tl.clamp(v*inverse[:, :, None], -448., 448., propagate_nan=tl.PropagateNan.ALL)
    y = y.to(tl.float8e4nv)
    tl.store(latent + slot[:, None, None]*LATENT + column[None], y, mask=three)
    tl.store(scale + slot[:, None]*GROUPS + g[None], s, mask=here[:, None])
    r = tl.arange(0, ROPE)[None]
    key = tl.load(x + token[:, None]*(LATENT + ROPE) + LATENT + r, mask=here[:, None])
    tl.store(rope + slot[:, None]*ROPE + r, key, mask=here[:, None])


def append(
    pool,       # name -> tensor of one layer, as r1nb.kv_cache names them
    slots,      # [N] int64 on the GPU
    x,          # [N,latent+rope] bf16 on the GPU
    precision,  # 'bf16' or 'fp8'
    tokens=4,   # a program
):
    "Launch one program for a few tokens."
    import torch
    require(precision in ('bf16', 'fp8') and x.dtype == torch.bfloat16, "impl='triton' stores bf16 "
            f"tokens as bf16 or fp8: not {x.dtype} as {precision}, use impl='ref'")
    require(all(t.is_contiguous() for t in pool.values()), 'a pool must be contiguous')
    x, slots, N = x.contiguous(), slots.contiguous(), len(slots)
    grid = (triton.cdiv(max(N, 1), tokens),)
    if precision == 'bf16':
        width = x.shape[1]
        copy_rows[grid](x, slots, pool['all'], N, width, triton.next_power_of_2(width), tokens)
        return
    rope = pool['rope'].shape[-1]
    latent = x.shape[1] - rope
    whole = lambda n: n & (n - 1) == 0
    require(latent % 128 == 0 and whole(latent) and whole(rope), "impl='triton' needs powers of 2, "
            f"a latent of whole 128s, not {latent} and {rope}: use impl='ref'")
    quantise_rows[grid](x, slots, pool['latent'], pool['scale'], pool['rope'], N, latent, rope,
                        tokens)
