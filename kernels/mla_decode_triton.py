"""Absorbed MLA decode over a paged latent cache, in Triton: any number of heads, bf16 or FP8 pages.

The same plan as the CUDA kernels: a program takes one segment (some tokens of one request) for a
group of heads, and a second kernel merges the pieces. The compiler does the pipelining; nothing
here is particular to a GPU, except that 64 heads of 512 columns want eight warps' registers.
Shapes as in r1nb.mla_decode.decode, whose impl='ref' is the specification.
"""
import math
import torch, triton
import triton.language as tl


@triton.jit
def attend(q, cache, scales, ropes, table, segments, out, lse, part, part_lse, c, H, most,
           FP8: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr):
    at = segments + tl.program_id(1)*4
    b, first, end, slot = tl.load(at), tl.load(at+1), tl.load(at+2), tl.load(at+3)
    heads = tl.program_id(0)*BLOCK + tl.arange(0, BLOCK)
    wide, narrow = tl.arange(0, 512), tl.arange(0, 64)
    real = heads < H
    mine = q + ((b*H + heads)*576)[:, None]
    q_c = tl.load(mine + wide, mask=real[:, None], other=0.)
    q_r = tl.load(mine + 512 + narrow, mask=real[:, None], other=0.)
    m = tl.full([BLOCK], float('-inf'), tl.float32)
    l, O = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK, 512], tl.float32)
    for n in range(first, end, TOKENS):
        t = n + tl.arange(0, TOKENS)
        ours = t < end
        row = tl.load(table + b*most + t//64, mask=ours, other=0).to(tl.int64)*64 + t % 64
        if FP8:
            k_c = tl.load(cache + row[:, None]*512 + wide, mask=ours[:, None], other=0.)
            scale = tl.load(scales + row[:, None]*4 + wide//128, mask=ours[:, None], other=0.)
            k_c = (k_c.to(tl.float32)*scale).to(tl.bfloat16)
            k_r = tl.load(ropes + row[:, None]*64 + narrow, mask=ours[:, None], other=0.)
        else:
            k_c = tl.load(cache + row[:, None]*576 + wide, mask=ours[:, None], other=0.)
            k_r = tl.load(cache + row[:, None]*576 + 512 + narrow, mask=ours[:, None], other=0.)
        s = (tl.dot(q_c, tl.trans(k_c)) + tl.dot(q_r, tl.trans(k_r)))*c
        s = tl.where(ours[None, :], s, float('-inf'))
        top = tl.maximum(m, tl.max(s, 1))
        old, p = tl.exp2(m - top), tl.exp2(s - top[:, None])
        l, m = l*old + tl.sum(p, 1), top
        O = O*old[:, None] + tl.dot(p.to(tl.bfloat16), k_c)
    O, m = O/l[:, None], (m + tl.log2(l))*0.6931471805599453
    if end > first:
        if slot < 0:
            tl.store(out + ((b*H + heads)*512)[:, None] + wide, O.to(tl.bfloat16),
                     mask=real[:, None])
            tl.store(lse + b*H + heads, m, mask=real)
        else:
            tl.store(part + ((slot*H + heads)*512)[:, None] + wide, O, mask=real[:, None])
            tl.store(part_lse + slot*H + heads, m, mask=real)


@triton.jit
def merge(part, part_lse, splits, lengths, out, lse, H):
    h, b, wide = tl.program_id(0), tl.program_id(1), tl.arange(0, 512)
    first, end, n = tl.load(splits + b), tl.load(splits + b + 1), tl.load(lengths + b)
    m, l, y = float('-inf'), 0., tl.zeros([512], tl.float32)
    for s in range(first, end):
        x, z = tl.load(part + (s*H + h)*512 + wide), tl.load(part_lse + s*H + h)
        top = tl.maximum(m, z)
        l, y = l*tl.exp(m - top) + tl.exp(z - top), y*tl.exp(m - top) + x*tl.exp(z - top)
        m = top
    if (end > first) | (n == 0):
        y = tl.where(n == 0, 0., y/tl.maximum(l, 1e-30))
        tl.store(out + (b*H + h)*512 + wide, y.to(tl.bfloat16))
        tl.store(lse + b*H + h, m + tl.log(l))


def decode(
    q,           # [B,H,576] bf16
    cache,       # (pages,64,576) bf16; or FP8: (latent, scale, rope)
    page_table,  # [B,max_pages] int32
    lengths,     # [B] int32
    scale,       # of the scores
    plan=None,   # r1nb.mla_decode.plan(lengths, workers) on the GPU; None: made here
):               # out [B,H,512] bf16, lse [B,H] fp32
    "Two launches; the plan has one program a segment and group of heads."
    B, H, block = *q.shape[:2], 64 if q.shape[1] > 16 else 16
    groups, fp8 = -(-H//block), isinstance(cache, tuple)
    if plan is None:
        from r1nb.mla_decode import plan as make
        n = torch.cuda.get_device_properties(q.device).multi_processor_count
        plan = make(lengths, max(1, n*(2 if block == 16 else 1)//groups), unit=64).to(q.device)
    slots = len(plan.segments)
    new = lambda *shape, dtype=torch.float32: torch.empty(*shape, dtype=dtype, device=q.device)
    out, lse = new(B, H, 512, dtype=torch.bfloat16), new(B, H)
    part, part_lse = new(slots, H, 512), new(slots, H)
    latent, scales, ropes = cache if fp8 else (cache, cache, cache)
    shape = dict(TOKENS=64, num_warps=8, num_stages=1) if block == 64 else \
        dict(TOKENS=32, num_warps=4, num_stages=2)
    attend[groups, slots](q, latent, scales, ropes, page_table, plan.segments, out, lse, part,
                          part_lse, scale*math.log2(math.e), H, page_table.stride(0),
                          FP8=fp8, BLOCK=block, **shape)
    merge[H, B](part, part_lse, plan.splits, lengths, out, lse, H, num_warps=4)
    return out, lse
