"""MLA decode, up to 16 heads, bf16 and FP8 cache, on a GPU: right first (fp64 of the very numbers
in the cache, poisoned outputs, NaN wherever nothing may be read), then timed with a cold L2.

python tests/gpu_mla16.py [--check] [--time] [--only bf16|fp8] [--shapes 32x4096,…]
                          [--variants 'GROUPS=1;'] [--split] [--out FILE.json]
"""
import argparse, json, statistics, sys, time
import torch
from r1nb.core import hardware
from r1nb.mla_decode import plan
from r1nb.kernels.mla_decode16 import OVERHEAD, UNIT, buffers, decode16, split, workers

SCALE, BAD = 192**-.5, float('nan')
BYTES = dict(bf16=1152, fp8=656)   # a token
ROWS = dict(bf16=((512+64,),), fp8=((512,), (4,), (64,)))


def quantise(x):
    "Latent to e4m3 with a scale for each 128, as the cache keeps it."
    y = x.view(*x.shape[:-1], 4, 128)
    scale = y.abs().amax(-1).clamp_min(1e-30)/448
    return (y/scale[..., None]).to(torch.float8_e4m3fn).view(x.shape), scale


def pages(kind, n, g, growing=0., uneven=0.):
    "n random pages as the kernel takes them; `uneven`: log2 spread of the second 128's scales."
    x = torch.randn(n, 64, 576, device='cuda', generator=g)
    if growing: x *= torch.linspace(.1, growing, n, device='cuda')[:, None, None]
    if uneven: x[..., 128:256] *= 2**(uneven*(2*torch.rand(n, 64, 1, device='cuda', generator=g)-1))
    if kind == 'bf16': return (x.bfloat16(),)
    return *quantise(x[..., :512]), x[..., 512:].bfloat16().contiguous()


def spoil(t, where):
    raw = t.view(torch.uint8); raw[where] = 255          # NaN in each of the types


def inputs(kind, lengths, H, seed=0, loud=1., uneven=0., growing=0.):
    "Random q, pages in random order; NaN beyond each request and in the page unused entries name."
    g = torch.Generator('cuda').manual_seed(seed)
    need = [-(-n//64) for n in lengths]
    cache = pages(kind, sum(need)+1, g, growing, uneven)
    order = torch.randperm(sum(need), device='cuda', generator=g).int() + 1
    for t in cache: spoil(t, 0)
    table = torch.zeros(len(lengths), max(1, *need)+1, dtype=torch.int32, device='cuda')
    at = 0
    for b, (n, p) in enumerate(zip(lengths, need)):
        table[b, :p] = order[at:at+p] if not growing else order[at:at+p].sort().values
        at += p
        if n % 64:
            for t in cache: spoil(t, (table[b, p-1].long(), slice(n % 64, None)))
    q = torch.randn(len(lengths), H, 576, device='cuda', generator=g)*loud
    if uneven: q[..., 128:256] = 0
    cache = cache[0] if kind == 'bf16' else cache
    return q.bfloat16(), cache, table, torch.tensor(lengths, dtype=torch.int32, device='cuda')


def dense(cache, rows):
    "The numbers in some pages of the cache, in float64."
    if not isinstance(cache, tuple): return cache[rows].view(-1, 576).double()
    latent, scale, rope = (t[rows] for t in cache)
    x = latent.double().view(*latent.shape[:-1], 4, 128)*scale.double()[..., None]
    return torch.cat([x.view(latent.shape), rope.double()], -1).view(-1, 576)


def reference(q, cache, table, lengths):
    out = q.new_zeros(*q.shape[:2], 512, dtype=torch.float64)
    lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float64)
    for b, n in enumerate(lengths.tolist()):
        if not n: continue
        k = dense(cache, table[b, :-(-n//64)].long())[:n]
        s = q[b].double() @ k.T*SCALE
        out[b], lse[b] = s.softmax(-1) @ k[:, :512], s.logsumexp(-1)
    return out, lse


def check(name, kind, lengths, H=16, defines={}, **kw):
    "Relative error of each 128 columns by themselves; the worst is judged."
    q, cache, table, n = x = inputs(kind, lengths, H, seed=len(lengths)*7+H+lengths[0], **kw)
    room = buffers(q, 2*workers(q))
    for t in room: t.fill_(BAD)
    out, lse = decode16(*x, SCALE, out=room, **defines)
    torch.cuda.synchronize()
    want, want_lse = reference(*x)
    live = want_lse > -torch.inf
    parts = lambda t: t.double().view(-1, 4, 128).norm(dim=(0, 2))
    error = (parts(out-want)/parts(want).clamp_min(1e-30)).max().item()
    error_lse = (lse.double()-want_lse)[live].abs().max().item() if live.any() else 0.
    empty = bool((lse[~live] == -torch.inf).all() and (out[~live] == 0).all())
    ok = error < 4e-3 and error_lse < 1e-3 and empty
    word = 'ok ' if ok else 'BAD'
    print(f'{word} {kind} {name}: out {error:.2e}, lse {error_lse:.1e}', flush=True)
    return ok


def checks(kind, defines, small=False):
    g, ok = torch.Generator().manual_seed(1), True
    if small: return check('small, for compute-sanitizer', kind, [1, 129, 200], 3, defines)
    for n in (1, 63, 64, 65, 129, 4097): ok &= check(f'{n} tokens', kind, [n], defines=defines)
    if not ok: return ok
    for H in (1, 3, 8): ok &= check(f'H={H}', kind, [700, 64, 3000], H, defines)
    some = lambda top, n: torch.randint(1, top, (n,), generator=g).tolist()
    ok &= check('ragged', kind, some(3000, 32), defines=defines)
    ok &= check('very unequal', kind, [20000, 1, 0, 64, 5, 300, 0], defines=defines)
    ok &= check('128 requests', kind, some(700, 128), defines=defines)
    ok &= check('none cut', kind, [64 + i for i in range(100)], defines=defines)
    ok &= check('nothing at all', kind, [0, 0], defines=defines)
    ok &= check('loud', kind, [1000, 2000, 3000], defines=defines, loud=5.)
    ok &= check('very loud', kind, [1000, 2000, 3000], defines=defines, loud=30.)
    ok &= check('growing', kind, [1000, 2000, 30000], defines=defines, growing=4.)
    if kind == 'fp8':
        ok &= check('uneven scales', kind, [1000, 2000, 3000], 16, defines, uneven=25., loud=3.)
    return ok


def timed(kind, B, L, H=16, only_split=False, overhead=OVERHEAD, **defines):
    "Median microseconds of a call (split and combine): graph replays, cold L2."
    each = B*L*BYTES[kind]
    sets = max(2, min(64, -(-240_000_000//each)))
    xs = [inputs(kind, [L]*B, H, seed=i) for i in range(sets)]
    p = plan([L]*B, workers(xs[0][0]), UNIT, overhead).to('cuda')
    room = buffers(xs[0][0], 2*workers(xs[0][0]))
    def call(x):
        if only_split: split(*x[:3], SCALE, p, room, **defines)
        else: decode16(*x, SCALE, plan=p, out=room, **defines)
    for x in xs[:2]: call(x)
    torch.cuda.synchronize()
    count = max(sets, int(.008/(each/4e12 + 8e-6)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count): call(xs[i % sets])
    times = []
    for i in range(8):
        time.sleep(.03)                                  # from cool, as the benchmark does
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
        times.append(a.elapsed_time(b)*1e3/count)
    us = statistics.median(times[1:])
    return us, (each + B*H*(576+512)*2)/us/1e3


def main():
    a = argparse.ArgumentParser()
    a.add_argument('--check', action='store_true'); a.add_argument('--time', action='store_true')
    a.add_argument('--small', action='store_true', help='one check, for compute-sanitizer')
    a.add_argument('--split', action='store_true', help='time the split kernel alone, too')
    a.add_argument('--only', default='bf16,fp8'); a.add_argument('--variants', default='')
    shapes = [f'{B}x{L}' for B in (1, 32, 128) for L in (1024, 4096, 8192, 32768)]
    a.add_argument('--shapes', default=','.join(shapes))
    a.add_argument('--out')
    a = a.parse_args()
    pairs = lambda s: (kv.split('=') for kv in s.split(',') if kv)
    variants = [{k: int(v) for k, v in pairs(s)} for s in a.variants.split(';')]
    ok, rows = {}, []
    for kind in a.only.split(','):
        for v in variants:
            ok[kind, str(v)] = not (a.check or a.small) or checks(kind, v, a.small)
    if a.time:
        for B, L in (tuple(map(int, s.split('x'))) for s in a.shapes.split(',')):
            for kind in a.only.split(','):
                for v in variants:
                    if not ok[kind, str(v)]: continue
                    us, gb = timed(kind, B, L, **v)
                    row = dict(heads=16, cache=kind, batch=B, length=L, us=us, gbps=gb, **v)
                    if a.split: row['split_us'] = timed(kind, B, L, only_split=True, **v)[0]
                    rows.append(row)
                    alone = f'split alone {row["split_us"]:.1f} us' if a.split else ''
                    print(f'{kind} b{B} L{L}: {us:.1f} us, {gb:.0f} GB/s', alone, v or '')
                    torch.cuda.empty_cache()
    if a.out:
        about = dict(hardware(), gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)
        text = json.dumps(dict(about=about, rows=rows), indent=1, default=str)
        with open(a.out, 'w') as f: f.write(text)
    sys.exit(not all(ok.values()))


if __name__ == '__main__': main()
