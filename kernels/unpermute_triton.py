"""Experts' rows back to their tokens in Triton: a sum of k rows, each read once.

y [M,D] rows in any order, place [N,k] int64 where a token's rows lie, in the order of the sum
-> [N,D]. PyTorch would gather, widen and add in 2k + 3 passes over [N,D] in fp32; this reads k rows
and writes one. Sums run in fp32 and in the given order, so the bits are the reference's
(`r1nb.grouped_gemm.unpermute`). A program takes one token and 1024 columns; any GPU.
"""
import torch, triton
import triton.language as tl


@triton.jit
def add_rows(y, place, out, D, K: tl.constexpr, COLUMNS: tl.constexpr):
    n, column = tl.program_id(0).to(tl.int64), tl.program_id(1)*COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for j in tl.static_range(K):
        row = tl.load(place + n*K + j)
        total += tl.load(y + row*D + column, column < D, 0.).to(tl.float32)
    tl.store(out + n*D + column, total.to(out.dtype.element_ty), column < D)


def unpermute(
    y,       # [M,D], contiguous, on the GPU
    place,   # [N,k] int64, contiguous
):           # [N,D], of y's type
    "One launch."
    (N, k), D = place.shape, y.shape[1]
    out = torch.empty(N, D, dtype=y.dtype, device=y.device)
    if out.numel(): add_rows[N, triton.cdiv(D, 1024)](y, place, out, D, k, 1024, num_warps=4)
    return out
