"""Absorbed MLA decode over a paged latent cache, 64 heads a thread block (mla_decode.cu, sm_90a).

q [B,H,576] bf16, H a multiple of 64; cache (pages,64,576) bf16, or (latent, scale, rope) in FP8;
page_table [B,max_pages] int32, lengths [B] int32. The reference is `r1nb.mla_decode.decode(impl='ref')`.
"""
import functools, math
from r1nb.core import require
from r1nb.kernels.jit import kernel, tensor_map
from r1nb.kernels.mla_combine import combine

SMEM = 3*576*64*2 + 4*64*4 + 8*32 + 1024


@functools.cache
def multiprocessors(device):
    import torch
    return torch.cuda.get_device_properties(device).multi_processor_count


def workers(q):
    "Thread blocks that share the tokens of one group of 64 heads."
    return max(1, multiprocessors(q.device)//(q.shape[1]//64))


def buffers(q, slots):
    "What a call writes: out, lse, and room for the pieces of split requests."
    import torch
    B, H = q.shape[:2]
    new = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device=q.device)
    return new(B, H, 512, dtype=torch.bfloat16), new(B, H), new(slots, H, 512), new(slots, H)


def decode64(
    q,           # [B,H,576] bf16, 512 absorbed latent columns then 64 of rope; H a multiple of 64
    cache,       # (pages,64,576) bf16; or FP8: latent (pages,64,512), scale (pages,64,4), rope (pages,64,64)
    page_table,  # [B,max_pages] int32
    lengths,     # [B] int32 on the GPU
    scale,       # of the scores, natural units
    plan=None,   # r1nb.mla_decode.plan(lengths, workers(q)) on the GPU; None: made here (waits for the GPU)
    out=None,    # what `buffers` returned, to use again
    **defines,   # macros of mla_decode.cu
):               # out [B,H,512] bf16, lse [B,H] fp32
    "Launch the split kernel and the combine."
    B, H, D = q.shape
    require(H % 64 == 0 and D == 576, f'q is {tuple(q.shape)}: the kernel wants [B, multiple of 64, 576]')
    n = workers(q)
    if plan is None:
        from r1nb.mla_decode import plan as make
        plan = make(lengths, n).to(q.device)
    out, lse, part, part_lse = out or buffers(q, 2*n)
    overlap = bool(defines.pop('OVERLAP', 1))
    fp8 = isinstance(cache, tuple)
    cluster = defines.setdefault('CLUSTER', 2 if H % 128 == 0 and not fp8 else 1)
    q_map = tensor_map(q.view(B*H, D), (64, 64))
    latent, weights, rope = cache if isinstance(cache, tuple) else (cache, None, cache)
    k_map = tensor_map(rope, (1, 64//cluster, 64))
    run = kernel('mla_decode.cu', 'mla_decode', FP8=int(fp8), **defines)
    run(n*H//64, 384, q_map, k_map, plan.first, plan.segments, page_table, page_table.stride(0), out, lse,
        part, part_lse, H, scale*math.log2(math.e), latent, weights, smem=SMEM, cluster=cluster, overlap=overlap)
    combine(part, part_lse, plan, lengths, out, lse)
    return out, lse
