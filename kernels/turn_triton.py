"""The other way round in Triton: FP8 codes transposed, and re-quantised along what were the rows.

A backward pass sums over other axes than the forward pass did, and the copy engine wants the summed
axis contiguous. `turn` takes [M,K], in bf16, fp32 or FP8 with scales, and writes [K,M rounded up to
128] in one pass; past the last row stand zeros, so that a product over M needs no mask.

ROWS 1    one scale for 128 neighbours of the new rows: amax over a column of the tile (wgrad)
ROWS 128  one scale for 128 x 128 (wgrad by gemm.cu)
ROWS 0    codes only: the blocks of a weight are squares and keep their scales (dgrad)

A program takes a tile of 128 x 128. Loads run along K and stores along M; Triton turns the tile in
shared memory between the two.
"""
import torch, triton
import triton.language as tl
from r1nb.kernels.quantize_triton import codes, magnitude, scale_of


@triton.jit(do_not_specialize=['M', 'in_m', 'in_k', 'out_k', 'out_m'])
def turn_tiles(x, s_in, q, s_out, M, K, P, in_m, in_k, out_k, out_m, POW2: tl.constexpr,
               ROWS: tl.constexpr, SCALED: tl.constexpr):
    m = (tl.program_id(0)*128 + tl.arange(0, 128)).to(tl.int64)
    k = (tl.program_id(1)*128 + tl.arange(0, 128)).to(tl.int64)
    v = tl.load(x + m[:, None]*K + k[None, :], (m < M)[:, None] & (k < K)[None, :], 0)
    at = k[:, None]*P + m[None, :]
    if ROWS == 0:
        tl.store(q + at, tl.trans(v), (k < K)[:, None])
    else:
        if SCALED:
            s = tl.load(s_in + m*in_m + tl.program_id(1)*in_k, m < M, 0.)
            v = v.to(tl.float8e4nv, bitcast=True).to(tl.float32)*s[:, None]
        else:
            v = v.to(tl.float32)
        top = tl.max(magnitude(v), 0)
        if ROWS == 128:
            top = tl.zeros_like(top) + tl.max(top, 0)
        s, r, finite = scale_of(top, POW2)
        tl.store(q + at, tl.trans(codes(v, r[None, :], finite[None, :])), (k < K)[:, None])
        if ROWS == 1:
            tl.store(s_out + k*out_k + tl.program_id(0)*out_m, s, k < K)
        else:
            tl.store(s_out + tl.program_id(1)*out_k + tl.program_id(0)*out_m, tl.max(s, 0))


def turn(
    x,               # [M,K] bf16, fp32 or float8_e4m3fn, contiguous, on the GPU
    scale=None,      # fp32 [M,K/128], any strides, with FP8 only
    rows:int=1,      # 1, 128, or 0: codes only
    pow2:bool=False, # scales rounded up to powers of two
):                   # codes [K,M up to 128], scales fp32 [K/rows,M/128], or None for rows 0
    "Transposed codes, and scales along the new rows."
    (M, K), fp8 = x.shape, x.element_size() == 1
    P, C, none = triton.cdiv(M, 128)*128, triton.cdiv(K, 128), (0, 0)
    q = torch.empty(K, P, dtype=torch.float8_e4m3fn, device=x.device)
    s = None
    if rows == 1: s = torch.empty(P//128, triton.cdiv(K, 4)*4, device=x.device).t()[:K]
    if rows == 128: s = torch.empty(C, P//128, device=x.device)
    strides = *(none if scale is None else scale.stride()), *(none if s is None else s.stride())
    args = x.view(torch.uint8) if fp8 else x, scale, q.view(torch.uint8), s
    turn_tiles[(P//128, C)](*args, M, K, P, *strides, pow2, rows, scale is not None, num_warps=8)
    return q, s
