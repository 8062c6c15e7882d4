"""The append kernels on a GPU: bit for bit the reference, then GB/s. Prints a table, writes JSON.

python tests/gpu_kv_cache.py [--out kv_append.json] [--quick]
"""
import argparse, json
from pathlib import Path
import torch
from r1nb.core import hardware
from r1nb.kv_bits import BITS
from r1nb.kv_cache import PagedCache, append

KINDS = 'bf16', 'fp8', 'int8', 'int6', 'int4'


def raw(t): return t.view(torch.uint8)


def poisoned(precision, pages, latent, rope):
    "A pool in which nothing that was left alone looks like something that was written."
    cache = PagedCache(pages, 1, latent, rope, precision, device='cuda')
    for t in cache.store.values(): t.view(torch.uint8).fill_(0xff)
    return cache.pool(0)


def check(impl, precision, latent, rope, N, seed, odd=False):
    "The same tensors as the reference, on the GPU and on the CPU, untouched places included."
    torch.manual_seed(seed)
    pages = N//64 + 2
    size = torch.logspace(-3, 3, N, device='cuda')[:, None]
    x = torch.randn(N, latent + rope, device='cuda')*size
    if odd and N > 5:
        x[0], x[1], x[2, :latent//2], x[3, 5], x[4] = 0, 1e-36, 0, 3e38, 1e-42
    x = x.to(torch.bfloat16)
    slots = torch.randperm(pages*64, device='cuda')[:N]
    if N > 2: slots[N//2] = -1
    ours, ref, cpu = (poisoned(precision, pages, latent, rope) for _ in range(3))
    cpu = {k: t.cpu() for k, t in cpu.items()}
    append(ours, slots, x, precision, impl)
    append(ref, slots, x, precision)
    append(cpu, slots.cpu(), x.cpu(), precision)
    torch.cuda.synchronize()
    for name in ours:
        for other, where in ((ref[name].cpu(), 'GPU'), (cpu[name], 'CPU')):
            wrong = (raw(ours[name].cpu()) != raw(other)).sum().item()
            assert not wrong, (f'{impl} {precision} {latent}+{rope} N={N}: {wrong} bytes of '
                               f'{name} differ from the reference on the {where}')


def see_nan(impl, precision):
    "A broken number must stay broken."
    x = torch.randn(3, 576, device='cuda').to(torch.bfloat16)
    x[0, 3], x[1, 500] = float('nan'), float('inf')
    cache = PagedCache(1, 1, 512, 64, precision, device='cuda')
    append(cache.pool(0), torch.arange(3, device='cuda'), x, precision, impl)
    cache.allocate(3)
    y = cache.read(0, [0])[0]
    assert y[:, :512].isfinite().all(1).tolist() == [False, False, True], (impl, precision)


def seconds(calls, floor=6e-3, rounds=7):
    "Median of graph replays of at least 6 ms; the calls walk through memory that no L2 holds."
    for f in calls[:3]: f()
    torch.cuda.synchronize()
    def graph(n):
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g):
            for i in range(n): calls[i % len(calls)]()
        return g
    def once(g):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record(); g.replay(); b.record(); torch.cuda.synchronize()
        return a.elapsed_time(b)/1e3
    g = graph(len(calls))
    once(g)
    n = len(calls)*max(1, -int(-floor//once(g)))
    g = graph(n)
    once(g)
    return sorted(once(g) for _ in range(rounds))[rounds//2]/n


def measure(impl, precision, N, total=1 << 18):
    "Microseconds and GB/s, tokens read once and what is stored written once."
    torch.manual_seed(0)
    x = torch.randn(total, 576, device='cuda').to(torch.bfloat16)
    cache = PagedCache(total//64, 1, 512, 64, precision, device='cuda')
    pool = cache.pool(0)
    if N < 1024: slots = torch.randperm(total, device='cuda')      # decoding: one token a sequence
    else: slots = (torch.randperm(total//64, device='cuda')[:, None]*64
                   + torch.arange(64, device='cuda')).flatten()    # prefill: whole pages
    parts = [(slots[i:i + N], x[i:i + N]) for i in range(0, total, N)]
    t = seconds([lambda s=s, v=v: append(pool, s, v, precision, impl) for s, v in parts])
    moved = N*(576*2 + 8 + cache.token_bytes)
    return dict(impl=impl, precision=precision, N=N, us=t*1e6, GBps=moved/t/1e9)


def uncaptured(precision, N, rounds=20):
    "The reference: its boolean indices wait for the GPU, so no graph can hold it."
    x = torch.randn(N, 576, device='cuda').to(torch.bfloat16)
    cache = PagedCache(N//64, 1, 512, 64, precision, device='cuda')
    slots = torch.randperm(N, device='cuda')
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(rounds + 3):
        if i == 3: a.record()
        append(cache.pool(0), slots, x, precision)
    b.record(); torch.cuda.synchronize()
    t = a.elapsed_time(b)/1e3/rounds
    moved = N*(1160 + cache.token_bytes)
    return dict(impl='ref', precision=precision, N=N, us=t*1e6, GBps=moved/t/1e9)


def say(r):
    print('{impl:7}{precision:6}{N:>7}{us:>10.2f} us{GBps:>8.0f} GB/s'.format(**r), flush=True)


def check_all(impl, k):
    check(impl, k, 512, 64, 3, 0)
    print(impl, k, 'tiny: equal', flush=True)
    for N in (1, 2, 63, 64, 65, 129, 1000): check(impl, k, 512, 64, N, N, odd=True)
    check(impl, k, 512, 64, 50_000, 9)
    if impl == 'cuda':
        for sizes in ((128, 64), (384, 64), (256, 16)): check(impl, k, *sizes, 130, 3)
    if k != 'bf16': see_nan(impl, k)
    print(impl, k, 'all: equal', flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', type=Path); p.add_argument('--quick', action='store_true')
    a = p.parse_args()
    jobs = [('cuda', k) for k in KINDS] + [('triton', 'bf16'), ('triton', 'fp8')]
    rows = []
    for some in jobs[:5], jobs[5:]:
        for impl, k in some: check_all(impl, k)
        for impl, k in [] if a.quick else some:
            for N in (128, 4096, 65536):
                rows.append(measure(impl, k, N))
                say(rows[-1])
    for k in () if a.quick else KINDS:
        rows.append(uncaptured(k, 65536))
        say(rows[-1])
    how = 'graph replays of 6 ms or more, median of 7, walking through 256k tokens and places'
    out = dict(rows=rows, how=how, hardware=hardware(), gpu=torch.cuda.get_device_name())
    if a.out: a.out.write_text(json.dumps(out, indent=1))


if __name__ == '__main__': main()
