"""The block-scaled product in Triton: the functions of gemm.py, for any GPU that multiplies E4M3.

One program makes one tile of D. Each 128 of K it multiplies in FP8 with a fresh accumulator, scales
the part by s_a[m]*s_b[n/128] and adds it in fp32: the promotion of the reference. Compared with
gemm.cu, the compiler writes the pipeline, every program copies for itself, and nobody works while a
program promotes. Any M, N, K; sm_89 and up. H200, Triton 3.6: 842 TFLOP/s at 4096 x 4096 x 7168
(nbs/results/gemm_check.json).

Rows past the end wrap round (`% M`) instead of being masked: what they compute is not stored, and a
load without a mask may be pipelined. BN divides 128, so a tile needs one scale of B at a time, a
scalar: as a vector over the columns it would cost 32 registers, and 128 x 128 spills as it is.
(Others met a race between such scalar loads and three or more stages; tests/gpu_gemm.py looks for
it, with both kinds of load and two to four stages, and found none.)
"""
import torch, triton
import triton.language as tl
from r1nb.core import require


@triton.jit
def gemm_tile(a, sa, b, sb, d, groups, M, N, K, a_g, b_g, sa_g, sa_m, sa_k, sb_g, sb_n,
              KIND: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
              GROUP: tl.constexpr):
    # GROUP tiles of M are walked together, so that their A stays in L2
    across, tall = tl.cdiv(N, BN), tl.cdiv(M, BM)
    band = tl.program_id(0) // (GROUP*across)
    inside = tl.program_id(0) - band*GROUP*across
    height = min(GROUP, tall - band*GROUP)
    m, n = band*GROUP + inside % height, inside // height
    g = tl.program_id(1).to(tl.int64)                # which A and D
    whose, rows = g, M                               # which B; how many rows are real
    if KIND == 1:
        whose = tl.load(groups + m*BM // 128).to(tl.int64)
        rows = tl.where(whose < 0, 0, M)
    if KIND == 2: rows = tl.load(groups + g)
    if m*BM >= rows: return

    om, on, ok = m*BM + tl.arange(0, BM), n*BN + tl.arange(0, BN), tl.arange(0, 128)
    row, column = (om % M).to(tl.int64), (on % N).to(tl.int64)
    pa = a + g*a_g + row[:, None]*K + ok[None, :]
    pb = b + whose*b_g + column[None, :]*K + ok[:, None]
    psa = sa + g*sa_g + row*sa_m
    psb = sb + whose*sb_g + n*BN//128*sb_n
    sum = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, 128)):
        if WHOLE: x, y = tl.load(pa + k*128), tl.load(pb + k*128)
        else:
            x = tl.load(pa + k*128, ok[None, :] < K - k*128, 0.)
            y = tl.load(pb + k*128, ok[:, None] < K - k*128, 0.)
        s, t = tl.load(psa + k*sa_k), tl.load(psb + k)
        sum += tl.dot(x, y)*(s*t)[:, None]  # dot starts from zero: the promotion
    at = (g*M + om)[:, None]*N + on[None, :]
    tl.store(d + at, sum.to(d.dtype.element_ty), (om < rows)[:, None] & (on < N)[None, :])


def launch(
    kind:int,        # 0 one product, 1 groups one after another, 2 groups apart: as KIND in gemm.cu
    a,               # [G,M,K] e4m3
    sa,              # [G,M,K/128] fp32, any strides
    b,               # [E,N,K] e4m3
    sb,              # [E,N/128,K/128] fp32, contiguous
    groups,          # int32, as gemm.cu says, or None
    dtype,           # of D
    rows:int,        # how many rows a product is expected to have
):                   # [G,M,N]
    "One program a tile; few rows get flat tiles and a deep pipeline."
    (G, M, K), (E, N, Kb) = a.shape, b.shape
    require(K == Kb, f'a has K={K} and b has K={Kb}: they are summed over the same K')
    d = torch.empty(G, M, N, device=a.device, dtype=dtype)
    if not d.numel(): return d
    a, b, sb = a.contiguous(), b.contiguous(), sb.contiguous()
    bm, bn, warps, stages = (64, 64, 4, 5) if rows <= 64 else (128, 128, 8, 3)
    grid = triton.cdiv(M, bm)*triton.cdiv(N, bn), G
    gemm_tile[grid](a, sa, b, sb, d, groups, M, N, K, a.stride(0), b.stride(0),
                    *sa.stride(), *sb.stride()[:2], kind, K % 128 == 0, bm, bn, 16,
                    num_warps=warps, num_stages=stages)
    return d


def gemm(a, sa, b, sb, dtype):
    "As gemm.gemm: [M,K], [M,K/128], [N,K], [N/128,K/128] -> [M,N]."
    return launch(0, a[None], sa[None], b[None], sb[None], None, dtype, len(a))[0]


def contiguous(a, sa, b, sb, groups, dtype):
    "As gemm.contiguous: groups [M/128] int32 says whose each 128 rows are; negative: nobody's."
    require(len(a) == 128*len(groups),
            f'{len(a)} rows of a are not 128 for each of {len(groups)} entries of groups')
    return launch(1, a[None], sa[None], b, sb, groups, dtype, 128)[0]


def masked(a, sa, b, sb, rows, dtype, expected=None):
    "As gemm.masked: a [E,M,K], the first rows[e] of each group are real; no copy to the CPU."
    return launch(2, a, sa, b, sb, rows, dtype, expected or a.shape[1])
