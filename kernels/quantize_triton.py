"""FP8 and back in Triton: the functions of `quantize.py`, for any GPU with E4M3 (sm_89 and up).

A program takes a tile of whole blocks, so that a maximum over the tile's columns is a block's.
Three things need care to equal the reference bit for bit: Triton's `/` is approximate (`div_rn` is
not), its maximum drops NaN (the bits, compared as integers, do not), and a block with a NaN must
come out as the same NaN everywhere. Measured on an H200: nbs/results/fp8.json.
"""
import torch, triton
import triton.language as tl
from triton.language.extra.libdevice import div_rn
from r1nb.core import require


@triton.jit
def scale_of(amax, POW2: tl.constexpr):   # bits of the largest magnitude
    finite = amax < 0x7f800000
    s = div_rn(amax.to(tl.float32, bitcast=True), 448.)
    s = tl.where(s > 1.1754943508222875e-38, s, 1.1754943508222875e-38)
    if POW2:
        s = ((s.to(tl.int32, bitcast=True) + 0x7fffff) & -0x800000).to(tl.float32, bitcast=True)
    return tl.where(finite, s, float('nan')), div_rn(1., tl.where(finite, s, 1.)), finite


@triton.jit
def magnitude(x):                         # bits without the sign compare like the numbers
    return x.to(tl.int32, bitcast=True) & 0x7fffffff


@triton.jit
def codes(x, r, finite):
    c = (x*r).to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    return tl.where(finite, c, 0x7f).to(tl.uint8)


@triton.jit
def quantize_rows(x, q, scale, M, K, s_row, s_block, POW2: tl.constexpr, ROWS: tl.constexpr):
    row = (tl.program_id(0)*ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block = tl.program_id(1)
    column = block*128 + tl.arange(0, 128)
    here = (row < M)[:, None] & (column < K)[None, :]
    at = row[:, None]*K + column[None, :]
    v = tl.load(x + at, here, 0.).to(tl.float32)
    s, r, finite = scale_of(tl.max(magnitude(v), 1), POW2)
    tl.store(q + at, codes(v, r[:, None], finite[:, None]), here)
    tl.store(scale + row*s_row + block*s_block, s, row < M)


@triton.jit
def quantize_tiles(x, q, scale, M, K, POW2: tl.constexpr):
    row = (tl.program_id(0)*128 + tl.arange(0, 128)).to(tl.int64)
    column = tl.program_id(1)*128 + tl.arange(0, 128)
    here = (row < M)[:, None] & (column < K)[None, :]
    at = row[:, None]*K + column[None, :]
    v = tl.load(x + at, here, 0.).to(tl.float32)
    s, r, finite = scale_of(tl.max(tl.max(magnitude(v), 1), 0), POW2)
    tl.store(q + at, codes(v, r, finite), here)
    tl.store(scale + tl.program_id(0)*tl.num_programs(1) + tl.program_id(1), s)


@triton.jit
def dequantize_tiles(q, scale, y, M, K, C, ROWS: tl.constexpr):
    row = (tl.program_id(0)*32 + tl.arange(0, 32)).to(tl.int64)
    block = tl.program_id(1)
    column = block*128 + tl.arange(0, 128)
    here = (row < M)[:, None] & (column < K)[None, :]
    at = row[:, None]*K + column[None, :]
    s = tl.load(scale + (row//ROWS)*C + block, row < M, 0.)
    v = tl.load(q + at, here, 0.).to(tl.float32)*s[:, None]
    tl.store(y + at, v.to(y.dtype.element_ty), here)


def quantize(
    x,               # [M,K] float of any width, contiguous, on the GPU
    rows:int,        # rows that share a scale: 1 or 128
    pow2:bool=False, # scales rounded up to powers of two
    mn_major:bool=False, # rows == 1: scales lie as [K/128, M rounded up to 4]; returned transposed
):                   # codes [M,K] float8_e4m3fn, scale fp32 [M,K/128] or [M/128,K/128]
    "One read of x, one write of codes and scales."
    (M, K), C = x.shape, triton.cdiv(x.shape[1], 128)
    require(x.is_contiguous(), f'x has strides {x.stride()}: make it contiguous')
    q = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=x.device)
    if rows == 128:
        scale = torch.empty(triton.cdiv(M, 128), C, device=x.device)
        quantize_tiles[(len(scale), C)](x, q.view(torch.uint8), scale, M, K, pow2, num_warps=8)
        return q, scale
    room = torch.empty((C, triton.cdiv(M, 4)*4) if mn_major else (M, C), device=x.device)
    scale = room.t()[:M] if mn_major else room
    quantize_rows[(triton.cdiv(M, 32), C)](x, q.view(torch.uint8), scale, M, K, *scale.stride(),
                                           pow2, 32, num_warps=4)
    return q, scale


def dequantize(
    q,               # [M,K] float8_e4m3fn, contiguous, on the GPU
    scale,           # fp32 [M,K/128] or [M/128,K/128], contiguous
    rows:int,        # rows that share a scale: 1 or 128
    dtype=torch.bfloat16, # of the result
):                   # [M,K]
    "Code times scale."
    M, K = q.shape
    y, C = torch.empty(M, K, dtype=dtype, device=q.device), triton.cdiv(K, 128)
    dequantize_tiles[(triton.cdiv(M, 32), C)](q, scale, y, M, K, C, rows, num_warps=4)
    return y
