"""FP8 and back on Hopper: `quantize.cu`, launched.

quantize    x [M,K] bf16 or fp32 -> codes [M,K] float8_e4m3fn, scale fp32 [M,K/128] or [M/128,K/128], in one pass
dequantize  the way back, to bf16 or fp32

The reference, and what a scale is, stand in the notebook of r1nb.fp8; the picture of the pipeline in quantize.cu.
"""
import torch
from r1nb.core import require
from r1nb.kernels.jit import kernel

TYPES = {torch.bfloat16: 0, torch.float32: 1}
REPEAT = 2    # groups of 4 blocks that a warp has in flight


def _up(a, b): return -(-a//b)


def _entry(name, wide, dtype, K, **defines):
    "The kernel for these tensors: 16 bytes at a time where rows allow it."
    require(dtype in TYPES, f'{name}: {dtype} is not read by the CUDA kernel: give bf16 or fp32, or use impl="ref"')
    aligned = K % 8 == 0 and all(t.data_ptr() % 16 == 0 for t in wide)
    return kernel('quantize.cu', name, FLOAT=TYPES[dtype], VECTOR=int(aligned), **defines)


def quantize(
    x,               # [M,K] bf16 or fp32, contiguous, on the GPU
    rows:int,        # rows that share a scale: 1 (activations) or 128 (weights)
    pow2:bool=False, # scales rounded up to powers of two
    mn_major:bool=False, # rows == 1: lay out scales as [K/128, M rounded up to 4]; the result is its transpose
    repeat:int=REPEAT,   # how much a warp has in flight
):                   # codes [M,K], scale [M,K/128] or [M/128,K/128]
    "One read of x, one write of codes and scales."
    (M, K), C = x.shape, _up(x.shape[1], 128)
    require(x.is_contiguous(), f'x has strides {x.stride()}: make it contiguous')
    require(M <= 65535*max(rows, 8), f'x has {M} rows, the kernel takes {65535*max(rows, 8)}: quantise it in parts')
    q = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=x.device)
    stride = _up(M, 4)*4
    scale = torch.empty((C, stride) if mn_major else (_up(M, rows), C), device=x.device)
    name = 'quantize_rows' if rows == 1 else 'quantize_tiles'
    more = dict(COLUMNS=int(mn_major), REPEAT=repeat) if rows == 1 else {}
    k = _entry(name, (x, q), x.dtype, K, POW2=int(pow2), **more)
    grid = (_up(K, 512*repeat), _up(M, 8)) if rows == 1 else (C, _up(M, 128))
    k(grid, 256, x, q, scale, M, K, *([stride] if rows == 1 else []), overlap=True)
    return q, scale.t()[:M] if mn_major else scale


def dequantize(
    q,               # [M,K] float8_e4m3fn, contiguous, on the GPU
    scale,           # fp32 [M,K/128] or [M/128,K/128], contiguous
    rows:int,        # rows that share a scale: 1 or 128
    dtype=torch.bfloat16, # of the result, or fp32
):                   # [M,K]
    "Code times scale."
    M, K = q.shape
    y = torch.empty(M, K, dtype=dtype, device=q.device)
    _entry('dequantize', (q, y), dtype, K, ROWS=rows)((_up(K, 512), _up(M, 32)), 256, q, scale, y, M, K, overlap=True)
    return y
