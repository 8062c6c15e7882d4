"""What one GPU does at best, and how close plain operations come. Writes roofline.json.

python tests/gpu_roofline.py [FOLDER]      (under a minute on an H200)
"""
import sys
from pathlib import Path
import torch
from r1nb.roofline import Cost, Point, bench, ceilings, fresh, matmul, record, stream, table

def point(name, cost, fn, make): return Point(name, cost, bench(fn, fresh(make)))

def copies():
    "Seconds of a copy by a kernel, by bytes moved."
    out = []
    for k in range(12, 29):
        n, make = 2**k, lambda: (torch.ones(2**k, device='cuda'), torch.empty(2**k, device='cuda'))
        out.append([8*n, bench(lambda x, y: torch.neg(x, out=y), fresh(make, most=256))])
    return out

def products():
    "Row counts from one word to a long prompt, in bf16 and (per-tensor) FP8."
    K, one = 7168, torch.ones((), device='cuda')
    mm8 = lambda a, b: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16,
                                        use_fast_accum=True)
    for M in (1, 16, 64, 256, 1024, 4096):
        make = lambda dt: tuple(torch.randn(n, K, device='cuda').to(dt) for n in (M, K))
        mm = lambda a, b: torch.mm(a, b.t())
        yield point(f'bf16, {M} rows', matmul(M, K, K), mm, lambda: make(torch.bfloat16))
        if M < 16: continue
        c = matmul(M, K, K, 'fp8')
        yield point(f'fp8, {M} rows', c, mm8, lambda: make(torch.float8_e4m3fn))

def streams():
    x = lambda n, dt: torch.randn(n, device='cuda').to(dt)
    n = 4096*7168
    yield point('bf16 to fp32, 4096 × 7168', stream(n, 2, 4), lambda a: a.float(),
                lambda: (x(n, torch.bfloat16),))
    yield point('sum of three, bf16', stream(n, 6, 2), lambda a, b, c: torch.addcmul(a, b, c),
                lambda: tuple(x(n, torch.bfloat16) for _ in range(3)))

def memcpy_node():
    "The trap: `copy_` in a graph is a memcpy node and not a kernel."
    make = lambda: (torch.ones(2**28, device='cuda'), torch.empty(2**28, device='cuda'))
    return 8*2**28/bench(lambda x, y: y.copy_(x), [make()])

if __name__ == '__main__':
    torch.manual_seed(0)
    top = ceilings('cuda')
    print({k: f'{v:.4g}' for k, v in top.items()}, flush=True)
    points = [*streams(), *products()]
    print(table(points, top), flush=True)
    by_size = copies()
    for b, s in by_size: print(f'{b/1e6:10.3f} MB {1e6*s:8.2f} us {b/s/1e9:7.0f} GB/s')
    bad = memcpy_node()
    print(f'copy_ in a graph: {bad/1e9:.0f} GB/s', flush=True)
    folder = Path(sys.argv[1] if sys.argv[1:] else '.')
    rows = [dict(name=p.name, flops=p.cost.flops, bytes=p.cost.bytes, kind=p.cost.kind,
                 seconds=p.seconds) for p in points]
    record(folder/'roofline.json', command='python tests/gpu_roofline.py', ceilings=top,
           copy_by_size=by_size, memcpy_node=bad, points=rows)
