"""FP8 and back on Hopper: `quantize.cu`, launched.

quantize    x [M,K] bf16 or fp32 -> codes [M,K] float8_e4m3fn,
            scale fp32 [M,K/128] or [M/128,K/128], in one pass
dequantize  the way back, to bf16 or fp32

The reference, and what a scale is, stand in the notebook of r1nb.fp8; the picture of the pipeline
in quantize.cu. Measured on an H200: nbs/results/fp8.json.
"""
import torch
from r1nb.core import require
from r1nb.kernels.jit import kernel

TYPES = {torch.bfloat16: 0, torch.float32: 1}


def _up(a, b): return -(-a//b)


def _entry(name, wide, dtype, K, **defines):
    "The kernel for these tensors: 16 bytes at a time where rows allow it."
    require(dtype in TYPES, f'{name}: the CUDA kernel knows bf16 and fp32, not {dtype}: '
            'convert, or use impl="triton"')
    aligned = K % 8 == 0 and all(t.data_ptr() % 16 == 0 for t in wide)
    return kernel('quantize.cu', name, FLOAT=TYPES[dtype], VECTOR=int(aligned), **defines)


def quantize(
    x,               # [M,K] bf16 or fp32, contiguous, on the GPU
    rows:int,        # rows that share a scale: 1 (activations) or 128 (weights)
    pow2:bool=False, # scales rounded up to powers of two
    mn_major:bool=False, # rows == 1: scales lie as [K/128, M rounded up to 4]; returned transposed
):                   # codes [M,K], scale [M,K/128] or [M/128,K/128]
    "One read of x, one write of codes and scales."
    (M, K), C, most = x.shape, _up(x.shape[1], 128), 65535*max(rows, 4)
    require(x.is_contiguous(), f'x has strides {x.stride()}: make it contiguous')
    require(M <= most, f'x has {M} rows, the kernel takes {most}: quantise it in parts')
    q = torch.empty(M, K, dtype=torch.float8_e4m3fn, device=x.device)
    if rows > 1:
        scale = torch.empty(_up(M, 128), C, device=x.device)
        k = _entry('quantize_tiles', (x, q), x.dtype, K, POW2=int(pow2))
        k((C, len(scale)), 512, x, q, scale, M, K, overlap=True)
        return q, scale
    room = torch.empty((C, _up(M, 4)*4) if mn_major else (M, C), device=x.device)
    k = _entry('quantize_rows', (x, q), x.dtype, K, POW2=int(pow2), COLUMNS=int(mn_major))
    high, wide = (8, 4) if mn_major else (4, 8)
    k((_up(C, wide), _up(M, high)), 256, x, q, room, M, K, room.shape[1], overlap=True)
    return q, room.t()[:M] if mn_major else room


def dequantize(
    q,               # [M,K] float8_e4m3fn, contiguous, on the GPU
    scale,           # fp32 [M,K/128] or [M/128,K/128], contiguous
    rows:int,        # rows that share a scale: 1 or 128
    dtype=torch.bfloat16, # of the result, or fp32
):                   # [M,K]
    "Code times scale."
    M, K = q.shape
    require(M <= 65535*32, f'{M} rows, the kernel takes {65535*32}: dequantise in parts')
    y = torch.empty(M, K, dtype=dtype, device=q.device)
    k = _entry('dequantize', (q, y), dtype, K, ROWS=rows)
    k((_up(K, 512), _up(M, 32)), 256, q, scale, y, M, K, overlap=True)
    return y
