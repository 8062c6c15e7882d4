"""MLA decode on a GPU: right first (poisoned outputs, NaN in every place that must not be read), then timed.

python tests/gpu_mla.py [--check] [--time] [--variants 'TURNS=0;CLUSTER=1,PREFETCH=0'] [--out FILE.json]
"""
import argparse, concurrent.futures, json, multiprocessing, statistics, sys
import torch
from r1nb.mla_decode import plan
from r1nb.kernels.mla_decode import buffers, decode64, workers

SCALE, BAD, FP8 = 192**-.5, float('nan'), False


def inputs(lengths, H, seed=0, loud=1., growing=False):
    "Random q and pages in random order; what lies beyond a request is NaN, and its table entries name a NaN page."
    g = torch.Generator('cuda').manual_seed(seed)
    pages = [-(-n//64) for n in lengths]
    cache = torch.randn(sum(pages)+1, 64, 576, device='cuda', generator=g).bfloat16()
    order = torch.randperm(sum(pages), device='cuda', generator=g).int() + 1
    cache[0] = BAD
    table = torch.zeros(len(lengths), max(1, *pages)+1, dtype=torch.int32, device='cuda')
    at = 0
    for b, (n, p) in enumerate(zip(lengths, pages)):
        table[b, :p] = order[at:at+p]; at += p
        if growing: cache[table[b, :p].long()] *= torch.linspace(.1, 3, max(p, 1), device='cuda')[:p, None, None]
        if n % 64: cache[table[b, p-1].long(), n % 64:] = BAD
    q = (torch.randn(len(lengths), H, 576, device='cuda', generator=g)*loud).bfloat16()
    return q, cache, table, torch.tensor(lengths, dtype=torch.int32, device='cuda')


def in_fp8(x):
    "The same request with its cache in FP8: (latent, scale, rope) of each page, a scale per 128 columns."
    q, cache, table, lengths = x
    latent, scale = [], []
    for part in cache[..., :512].split(1024):            # pieces: the float copies are large
        part = part.float().view(-1, 64, 4, 128)
        scale.append((part.abs().amax(-1)/448).contiguous())
        latent.append((part/scale[-1][..., None]).to(torch.float8_e4m3fn).view(-1, 64, 512))
    return q, (torch.cat(latent), torch.cat(scale), cache[..., 512:].contiguous()), table, lengths


def reference(q, cache, table, lengths):
    "Float64 of the same stored numbers."
    out, lse = q.new_zeros(*q.shape[:2], 512, dtype=torch.float64), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float64)
    for b, n in enumerate(lengths.tolist()):
        if not n: continue
        pages = table[b, :-(-n//64)].long()
        if isinstance(cache, tuple):
            latent, scale, rope = (t[pages].double() for t in cache)
            latent = (latent.view(-1, 64, 4, 128)*scale[..., None]).view(-1, 64, 512)
            k = torch.cat([latent.float().bfloat16().double(), rope], -1)      # the kernel widens to bf16
        else: k = cache[pages].double()
        k = k.reshape(-1, 576)[:n]
        s = q[b].double() @ k.T*SCALE
        out[b], lse[b] = s.softmax(-1) @ k[:, :512], s.logsumexp(-1)
    return out, lse


def check(name, lengths, H, run, **kw):
    x = inputs(lengths, H, seed=len(lengths)*7+H+lengths[0], **kw)
    if FP8: x = in_fp8(x)
    out, lse = run(*x)
    torch.cuda.synchronize()
    want, want_lse = reference(*x)
    live = want_lse > -torch.inf
    error = ((out.double()-want).norm()/want.norm().clamp_min(1e-30)).item()
    error_lse = (lse.double()-want_lse)[live].abs().max().item() if live.any() else 0.
    ok = error < 5e-3 and error_lse < 2e-3 and bool((lse[~live] == -torch.inf).all()) and bool((out[~live] == 0).all())
    print(f'{"ok " if ok else "BAD"} {name}: out {error:.2e}, lse {error_lse:.1e}', flush=True)
    return ok


def poisoned(**defines):
    def run(q, cache, table, lengths):
        room = buffers(q, 2*workers(q))
        for t in room: t.fill_(BAD)
        return decode64(q, cache, table, lengths, SCALE, out=room, **defines)
    return run


def checks(defines):
    run, ok = poisoned(**defines), True
    for n in (1, 63, 64, 65, 128, 129, 257, 4097): ok &= check(f'one request, {n} tokens, {defines}', [n], 128, run)
    for H in (64, 256) if not defines else (): ok &= check(f'H={H}', [700, 64, 3000], H, run)
    g = torch.Generator().manual_seed(1)
    ragged = torch.randint(1, 3000, (32,), generator=g).tolist()
    ok &= check('ragged', ragged, 128, run)
    ok &= check('very unequal', [20000, 1, 0, 64, 5, 300, 0], 128, run)
    ok &= check('128 requests', torch.randint(1, 700, (128,), generator=g).tolist(), 128, run)
    ok &= check('loud', [1000, 2000, 3000], 128, run, loud=5.)
    ok &= check('growing', [1000, 2000, 3000], 128, run, growing=True)
    return ok


def timed(B, L, variants, H=128, lengths=None, overhead=2):
    "Median microseconds of one call (split and combine) in replayed graphs, inputs rotated through 220 MB and more."
    lengths = lengths or [L]*B
    total, each = sum(lengths), 656 if FP8 else 1152
    sets = max(2, min(64, -(-220_000_000//(total*each))))
    xs = [in_fp8(inputs(lengths, H, seed=i)) if FP8 else inputs(lengths, H, seed=i) for i in range(sets)]
    p = plan(lengths, workers(xs[0][0]), overhead=overhead).to('cuda')
    room = buffers(xs[0][0], 2*workers(xs[0][0]))
    flops = 2*H*total*(576+512)
    count, graphs, times = max(sets, int(.006/(flops/500e12 + 10e-6))), [], [[] for _ in variants]
    for v in variants:
        call = lambda x: decode64(*x, SCALE, plan=p, out=room, **v)
        for x in xs[:2]: call(x)
        torch.cuda.synchronize()
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for i in range(count): call(xs[i % sets])
    for i in range(8):                                   # variants in turn: heat is shared fairly
        for graph, t in zip(graphs, times):
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
            t.append(a.elapsed_time(b)*1e3/count)
    for t in times:
        us = statistics.median(t[1:])
        yield us, flops/us/1e6, (total*each + len(lengths)*H*(576+512)*2)/us/1e3


def prepare(defines):
    "Compile in a process of its own: sixteen cores are idle."
    from r1nb.kernels.jit import cubin
    defines = dict(defines, FP8=int(FP8)); defines.pop('OVERLAP', None)
    defines.setdefault('CLUSTER', 1 if FP8 else 2)
    cubin('mla_decode.cu', 'sm_90a', defines)


def main():
    a = argparse.ArgumentParser()
    a.add_argument('--check', action='store_true'); a.add_argument('--time', action='store_true')
    a.add_argument('--variants', default=''); a.add_argument('--shapes', default=''); a.add_argument('--out')
    a.add_argument('--fp8', action='store_true')
    a = a.parse_args()
    global FP8; FP8 = a.fp8
    variants = [dict((k, int(v)) for k, v in (kv.split('=') for kv in s.split(',') if kv)) for s in a.variants.split(';')]
    with concurrent.futures.ProcessPoolExecutor(8, multiprocessing.get_context('fork')) as pool: list(pool.map(prepare, variants))
    ok, rows = True, []
    for v in variants:
        if a.check: ok &= checks(v) if v == variants[0] else check(f'ragged {v}', [1, 5000, 64, 777, 130], 128, poisoned(**v))
    shapes = [tuple(map(int, s.split('x'))) for s in a.shapes.split(',')] if a.shapes else \
        [(1, 1024), (1, 8192), (1, 32768), (32, 1024), (32, 4096), (32, 8192), (32, 32768), (128, 1024), (128, 4096), (128, 8192)]
    for B, L in shapes if a.time and ok else ():
        for v, (us, tf, gb) in zip(variants, timed(B, L, variants)):
            rows.append(dict(cache='fp8' if FP8 else 'bf16', heads=128, batch=B, length=L, us=us, tflops=tf, gbps=gb, **v))
            print(f'h128 b{B} L{L}: {us:.1f} us {tf:.0f} TFLOP/s {gb:.0f} GB/s {v}', flush=True)
    if a.out: json.dump(dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__, rows=rows), open(a.out, 'w'), indent=1)
    sys.exit(not ok)


if __name__ == '__main__': main()
