"""Absorbed MLA decode over a paged latent cache, 64 heads a thread block (mla_decode.cu, sm_90a).

q [B,H,576] bf16, H a multiple of 64; cache (pages,64,576) bf16, or (latent, scale, rope) in FP8;
page_table [B,max_pages] int32, lengths [B] int32. `r1nb.mla_decode.decode(impl='ref')` is the
specification. Two launches: segments of requests, then the merge of what was cut.
"""
import functools, math
from r1nb.core import require
from r1nb.kernels.jit import kernel, tensor_map
from r1nb.kernels.mla_combine import combine

SMEM = 3*576*64*2 + 4*64*4 + 8*32 + 1024     # Q and two pages, m and l, barriers, alignment


@functools.cache
def multiprocessors(device):
    import torch
    return torch.cuda.get_device_properties(device).multi_processor_count


def workers(q):
    "Thread blocks that share the tokens of one group of 64 heads."
    return max(1, multiprocessors(q.device)//(q.shape[1]//64))


def schedule(q, lengths):
    "The plan for these lengths (on the host, or it waits); of a step, for all of its layers."
    from r1nb.mla_decode import plan
    return plan(lengths, workers(q)).to(q.device)


def buffers(q, slots):
    "What a call writes: out, lse, and room for the pieces of split requests."
    import torch
    B, H = q.shape[:2]
    new = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device=q.device)
    return new(B, H, 512, dtype=torch.bfloat16), new(B, H), new(slots, H, 512), new(slots, H)


def decode64(
    q,           # [B,H,576] bf16, 512 absorbed latent columns then 64 of rope
    cache,       # (pages,64,576) bf16; FP8: latent (pages,64,512), scale (pages,64,4), rope
    page_table,  # [B,max_pages] int32
    lengths,     # [B] int32 on the GPU
    scale,       # of the scores, natural units
    plan=None,   # `schedule(q, lengths)`, then it and page_table must be older than the kernel
                 # launched just before this one; None: made here
    out=None,    # what `buffers` returned, to use again
    **defines,   # macros of mla_decode.cu
):               # out [B,H,512] bf16, lse [B,H] fp32
    "Launch the split kernel and, where a request was cut, the merge."
    B, H, D = q.shape
    require(H % 64 == 0 and D == 576, f'q is {tuple(q.shape)}: use [B, a multiple of 64, 576]')
    plan = plan or schedule(q, lengths)
    n, fp8 = len(plan.first) - 1, isinstance(cache, tuple)
    out, lse, part, part_lse = out or buffers(q, 2*n)
    cluster = defines.setdefault('CLUSTER', 2 if H % 128 == 0 and not fp8 else 1)
    latent, scales, boxed = cache if fp8 else (None, None, cache)
    run = kernel('mla_decode.cu', 'mla_decode', FP8=int(fp8), **defines)
    run(n*H//64, 384, tensor_map(q.view(B*H, D), (64, 64)), tensor_map(boxed, (1, 64//cluster, 64)),
        tensor_map(out.view(B*H, 512), (64, 64)), tensor_map(part.view(-1, 512), (64, 32)),
        plan.first, plan.segments, page_table, page_table.stride(0), lse, part_lse,
        H, scale*math.log2(math.e), latent, scales, smem=SMEM, cluster=cluster, overlap=True)
    if not plan.whole: combine(part, part_lse, plan, lengths, out, lse)
    return out, lse
