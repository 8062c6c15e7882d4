"""Absorbed MLA decode for up to 16 heads over a paged latent cache (mla_decode16.cu, sm_90a).

q [B,H,576] bf16, H <= 16; cache (pages,64,576) bf16, or the tuple (latent (pages,64,512) e4m3,
scale (pages,64,4) fp32, rope (pages,64,64) bf16); page_table [B,max_pages] int32, lengths [B] int32.
The reference is `r1nb.mla_decode.decode(impl='ref')`.
"""
import ctypes, math
from r1nb.core import require
from r1nb.kernels.jit import kernel, tensor_map
from r1nb.kernels.mla_combine import combine
from r1nb.kernels.mla_decode import multiprocessors

UNIT, OVERHEAD = 64, 1                       # how r1nb.mla_decode.plan should cut: by pages
GROUPS = dict(mla_decode16_bf16=1, mla_decode16_fp8=2)   # warpgroups that take pages in turn


class Work(ctypes.Structure):
    "struct Work of mla_decode16.cu."
    _fields_ = [('q', ctypes.c_void_p), ('table', ctypes.c_void_p), ('pages', ctypes.c_int),
                *((name, ctypes.c_void_p) for name in ('first', 'segments', 'out', 'lse', 'part', 'part_lse')),
                ('scale', ctypes.c_float), ('heads', ctypes.c_int), ('splits', ctypes.c_void_p),
                ('lengths', ctypes.c_void_p), ('pieces', ctypes.c_void_p), ('requests', ctypes.c_int)]


def workers(q):
    "Thread blocks that share the tokens."
    return multiprocessors(q.device)


def buffers(q, slots):
    "What a call writes: out, lse, room for the pieces of split requests, and counters (zero between calls)."
    import torch
    B, H = q.shape[:2]
    new = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device=q.device)
    return (new(B, H, 512, dtype=torch.bfloat16), new(B, H), new(slots, H, 512), new(slots, H),
            torch.zeros(B, 2, dtype=torch.int32, device=q.device))


def maps(cache, promote):
    "Entry point, and the cache as the copy engine sees it: boxes of 64 rows of 128 bytes."
    if not isinstance(cache, tuple): return 'mla_decode16_bf16', [tensor_map(cache, (1, 64, 64), promote=promote)]
    latent, scale, rope = cache
    return 'mla_decode16_fp8', [tensor_map(latent, (1, 64, 128), promote=promote), tensor_map(rope, (1, 64, 64), promote=promote),
                                tensor_map(scale.view(-1, 256), (1, 256), swizzle=0)]


def split(q, cache, page_table, lengths, scale, plan, out, merge=True, promote=256, **defines):
    "The split-KV kernel; with `merge`, whoever wrote a piece of a request also merges a share of it."
    entry, boxes = maps(cache, promote)
    groups = defines.setdefault('GROUPS', GROUPS[entry])
    work = Work(q.data_ptr(), page_table.data_ptr(), page_table.stride(0), plan.first.data_ptr(),
                plan.segments.data_ptr(), *(t.data_ptr() for t in out[:4]), scale*math.log2(math.e), q.shape[1],
                plan.splits.data_ptr(), lengths.data_ptr(), out[4].data_ptr() if merge else None, len(q))
    run = kernel('mla_decode16.cu', entry, **defines)
    run(len(plan.first) - 1, 128*groups + (128 if groups > 1 else 32), *boxes, work, smem=232448, overlap=True)


def decode16(
    q,           # [B,H,576] bf16, 512 absorbed latent columns then 64 of rope; H at most 16
    cache,       # (pages,64,576) bf16, or (latent, scale, rope)
    page_table,  # [B,max_pages] int32
    lengths,     # [B] int32 on the GPU
    scale,       # of the scores, natural units
    plan=None,   # r1nb.mla_decode.plan(lengths, workers(q), UNIT, OVERHEAD) on the GPU; None: made here (waits)
    out=None,    # what `buffers` returned, to use again
    merge=True,  # pieces are merged by the kernel that made them; False: by mla_combine.cu
    **defines,   # macros of mla_decode16.cu
):               # out [B,H,512] bf16, lse [B,H] fp32
    "One launch: split over all multiprocessors, and merge."
    require(q.shape[1] <= 16 and q.shape[2] == 576, f'q is {tuple(q.shape)}: the kernel wants [B, up to 16, 576]')
    if plan is None:
        from r1nb.mla_decode import plan as make
        plan = make(lengths, workers(q), UNIT, OVERHEAD).to(q.device)
    out = out or buffers(q, 2*(len(plan.first) - 1))
    split(q, cache, page_table, lengths, scale, plan, out, merge, **defines)
    if not merge: combine(*out[2:4], plan, lengths, *out[:2])
    return out[:2]
