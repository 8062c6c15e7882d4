"""Absorbed MLA decode for up to 16 heads over a paged latent cache (mla_decode16.cu, sm_90a).

q [B,H,576] bf16, H <= 16; cache (pages,64,576) bf16, or a tuple (latent (pages,64,512) e4m3,
scale (pages,64,4) fp32, rope (pages,64,64) bf16); page_table [B,max_pages], lengths [B] int32.
The reference is `r1nb.mla_decode.decode(impl='ref')`.
"""
import ctypes, math
from r1nb.core import require
from r1nb.kernels.jit import kernel, tensor_map
from r1nb.kernels.mla_combine import combine
from r1nb.kernels.mla_decode import buffers, multiprocessors

UNIT, OVERHEAD = 64, 3                       # how r1nb.mla_decode.plan should cut: by pages
GROUPS, SMEM = 2, 232448                     # warpgroups that take pages in turn; an SM's memory


class Work(ctypes.Structure):
    "struct Work of mla_decode16.cu."
    _fields_ = [('q', ctypes.c_void_p), ('table', ctypes.c_void_p), ('pages', ctypes.c_int),
                *((name, ctypes.c_void_p) for name in ('first', 'segments', 'out', 'lse')),
                ('part', ctypes.c_void_p), ('part_lse', ctypes.c_void_p),
                ('scale', ctypes.c_float), ('heads', ctypes.c_int)]


def workers(q):
    "Thread blocks that share the tokens."
    return multiprocessors(q.device)


def schedule(q, lengths):
    "The plan for these lengths (on the host, or it waits); of a step, for all of its layers."
    from r1nb.mla_decode import plan
    return plan(lengths, workers(q), UNIT, OVERHEAD).to(q.device)


def maps(cache, promote=128):
    "Entry point, and the cache as the copy engine sees it: boxes of 64 rows of 128 bytes."
    boxes = lambda t, width: tensor_map(t, (1, 64, width), promote=promote)
    if not isinstance(cache, tuple): return 'mla_decode16_bf16', [boxes(cache, 64)]
    latent, scale, rope = cache
    scales = tensor_map(scale.view(-1, 256), (1, 256), swizzle=0)     # a page's in one row
    return 'mla_decode16_fp8', [boxes(latent, 128), boxes(rope, 64), scales]


def split(q, cache, page_table, scale, plan, out, promote=128, **defines):
    "The split-KV kernel alone."
    entry, boxes = maps(cache, promote)
    groups = defines.setdefault('GROUPS', GROUPS)
    at = lambda *ts: [t.data_ptr() for t in ts]
    work = Work(*at(q, page_table), page_table.stride(0), *at(plan.first, plan.segments, *out),
                scale*math.log2(math.e), q.shape[1])
    run = kernel('mla_decode16.cu', entry, **defines)
    threads = 128*groups + (128 if groups > 1 and len(boxes) > 1 else 32)   # Room::THREADS
    run(len(plan.first) - 1, threads, *boxes, work, smem=SMEM, overlap=True)


def decode16(
    q,           # [B,H,576] bf16, 512 absorbed latent columns then 64 of rope; H at most 16
    cache,       # (pages,64,576) bf16, or (latent, scale, rope)
    page_table,  # [B,max_pages] int32
    lengths,     # [B] int32 on the GPU
    scale,       # of the scores, natural units
    plan=None,   # `schedule(q, lengths)`, then it and page_table must be older than the kernel
                 # launched just before this one; None: made here
    out=None,    # what `buffers` returned, to use again
    **defines,   # macros of mla_decode16.cu
):               # out [B,H,512] bf16, lse [B,H] fp32
    "Launch the split kernel and, where a request was cut, the merge."
    require(q.shape[1] <= 16 and q.shape[2] == 576,
            f'q is {tuple(q.shape)}: the kernel wants [B, up to 16, 576]')
    plan = plan or schedule(q, lengths)
    out = out or buffers(q, 2*(len(plan.first) - 1))
    split(q, cache, page_table, scale, plan, out, **defines)
    if not plan.whole: combine(*out[2:], plan, lengths, *out[:2])
    return out[:2]
