"""Merge the pieces of split attention rows (mla_combine.cu): the last launch of MLA decode."""
from r1nb.kernels.jit import kernel


def shape(rows, pieces):
    "WARPS, TOGETHER for so many rows, of so many pieces each."
    if rows >= 2048: return 1, 2
    return 8, 1 if pieces <= 8 else 4


def combine(
    part,      # [slots,H,512] fp32, each piece divided by its own sum
    part_lse,  # [slots,H] fp32, natural logarithm
    plan,      # r1nb.mla_decode.Plan on the GPU
    lengths,   # [B] int32 on the GPU
    out,       # [B,H,512] bf16, written where a request was split or is empty
    lse,       # [B,H] fp32, likewise
):
    "Launch so that it starts while the kernel before it ends."
    B, H = lse.shape
    warps, together = shape(B*H, len(plan.segments)/B)
    rows = 4 if warps == 1 else 1
    run = kernel('mla_combine.cu', 'mla_combine', WARPS=warps, TOGETHER=together)
    run((-(-H//rows), B), 32*warps*rows, part, part_lse, plan.splits, lengths, out, lse, H,
        overlap=True)
