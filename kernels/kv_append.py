"""Append to the paged latent cache: quantise and scatter in one pass (kv_append.cu).

x [N, latent+rope] bf16, slots [N] int64 (negative: dropped) -> one layer's pool, in place:
bf16: `all` (pages,64,latent+rope); else `latent`, `scale` (pages,64,latent/128), `rope`.
The reference is `r1nb.kv_cache.append(impl='ref')`; codes and scales agree with it bit for bit.
"""
from r1nb.core import require
from r1nb.kernels.jit import kernel

BITS = dict(bf16=16, fp8=8, int8=8, int6=6, int4=4)


def append(
    pool,       # name -> tensor of one layer, as r1nb.kv_cache names them
    slots,      # [N] int64 on the GPU
    x,          # [N,latent+rope] bf16 on the GPU
    precision,  # a key of BITS
    warps=4,    # of a block
):
    "Launch one warp a token."
    import torch
    rope = pool['rope'].shape[-1] if 'rope' in pool else 0
    latent = x.shape[-1] - rope
    require(precision in BITS and x.dtype == torch.bfloat16, f"impl='cuda' stores bf16 tokens as "
            f"{', '.join(BITS)}: not {x.dtype} as {precision}, use impl='ref'")
    unit = 8 if precision == 'bf16' else 128
    whole = latent % unit == 0 and rope % 8 == 0 and rope <= 256
    require(whole, f"impl='cuda' needs a latent of whole {unit}s, a rope of whole 8s to 256, not "
            f"{latent} and {rope}: use impl='ref'")
    first = pool['all' if precision == 'bf16' else 'latent']
    room = first.shape[0]*first.shape[1]
    require(room < 2**31 and slots.dtype == torch.int64 and slots.shape == x.shape[:1],
            f'slots {slots.dtype} {tuple(slots.shape)} for {x.shape[0]} tokens, {room} places: '
            'one int64 slot a token, fewer than 2^31 places')
    require(all(t.is_contiguous() for t in pool.values()), 'a pool must be contiguous')
    x, slots, n = x.contiguous(), slots.contiguous(), len(slots)
    require(x.data_ptr() % 16 == 0, 'tokens must start at a multiple of 16 bytes: clone() them')
    run = kernel('kv_append.cu', 'kv_append', LATENT=latent, ROPE=rope, BITS=BITS[precision],
                 FLOAT8=int(precision == 'fp8'))
    if n: run(-(-n//warps), 32*warps, x, slots, first, pool.get('scale'), pool.get('rope'), n, room)
