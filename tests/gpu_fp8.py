"""Quantisation on a GPU: the same bits from CPU, Triton and CUDA; then its speed. Writes fp8.json.

python tests/gpu_fp8.py [FOLDER]      (under a minute on an H200)
"""
import hashlib, itertools, sys
from pathlib import Path
import torch, triton
import triton.language as tl
from r1nb.fp8 import E4M3, E5M2, decode, dequantize, encode, quantize, quantize_weight
from r1nb.roofline import Point, bench, fresh, poison, quantise, record, stream, table
from fp8_contents import KINDS, LENGTHS, OPTIONS, WAYS, contents, digest, factors, u8

IMPLS = 'ref', 'triton', 'cuda'

def dirty(like):
    "Leave NaN where the next output will be allocated."
    for t in like: poison(torch.empty(t.shape, dtype=t.dtype, device='cuda'))

def same(a, b):
    return all(x.shape == y.shape and torch.equal(u8(x).cpu(), u8(y).cpu()) for x, y in zip(a, b))

def bits():
    "Every shape, dtype, content and option: codes and scales equal the CPU's, bit for bit."
    n, hashes = 0, []
    for (M, K), dt, pow2 in OPTIONS:
        for (name, x), (fn, more) in itertools.product(contents(M, K), WAYS):
            x = x.to(dt)
            want = fn(x, pow2=pow2, **more)
            hashes.append(digest(want))
            for impl in IMPLS:
                dirty(want)
                got = fn(x.cuda(), impl=impl, pow2=pow2, **more)
                what = impl, fn.__name__, M, K, dt, pow2, name, more
                assert got[1].stride() == want[1].stride() and same(got, want), what
                n += 1
            if not more: n += back(want, what)
    return n, hashlib.sha256(''.join(hashes).encode()).hexdigest()

def back(want, what):
    "Dequantised: NaN where the CPU has NaN, else the same bits."
    for out, impl in itertools.product((torch.float32, torch.bfloat16), IMPLS):
        a, b = dequantize(*want, out), dequantize(*(t.cuda() for t in want), out, impl=impl).cpu()
        assert torch.equal(a.isnan(), b.isnan()), ('nan', out, impl, *what)
        assert same([a.nan_to_num(0.)], [b.nan_to_num(0.)]), (out, impl, *what)
    return 2*len(IMPLS)

def odd_views():
    "A row view that starts at an odd address must not be read 16 bytes at a time."
    x = torch.randn(40, 136, device='cuda').bfloat16()
    y = x.flatten()[3:3 + 32*136].view(32, 136)
    for impl in IMPLS: assert same(quantize(y, impl=impl), quantize(y.cpu())), impl

def hand():
    "Encoding by hand on the GPU equals the CPU's: all bf16 numbers and all codes."
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for f in (E4M3, E5M2):
        assert torch.equal(encode(x, f), encode(x.cuda(), f).cpu())
        values = [decode(c, f).nan_to_num(-1).cpu() for c in (f.codes, f.codes.cuda())]
        assert same(values[:1], values[1:])

@triton.jit
def one_block(x, q, s, n: tl.constexpr):
    "A program for every block of 128: the plainest kernel, the shape of DeepSeek's act_quant."
    at = tl.program_id(0)*128 + tl.arange(0, 128)
    v = tl.load(x + at).to(tl.float32)
    scale = tl.max(tl.abs(v))/448.
    tl.store(q + at, (v/scale).to(tl.float8e4nv))
    tl.store(s + tl.program_id(0), scale)

def plainest(x):
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    s = torch.empty(x.numel()//128, device='cuda')
    one_block[(len(s),)](x, q, s, 128, num_warps=4)
    return q, s

def rows_speed():
    for M, K in ((128, 7168), (4096, 2048), (4096, 7168), (16384, 7168)):
        make = lambda *shape: fresh(lambda: (torch.randn(*shape, device='cuda').bfloat16(),))
        c, sets = quantise(M, K), make(M, K)
        ways = {'ref': quantize, 'a program a block': plainest}
        for impl, mn in itertools.product(IMPLS[1:], (False, True)):
            ways[impl + ', by columns'*mn] = lambda x, i=impl, m=mn: quantize(x, i, mn_major=m)
        for name, fn in ways.items():
            if name != 'ref' or M <= 4096: yield Point(f'{M} × {K}: {name}', c, bench(fn, sets))
        same_bytes, sets = int(c.bytes//4), None
        if M == 4096:      # is the cache cold? Five times as many inputs must take as long.
            more = fresh(lambda: (torch.randn(M, K, device='cuda').bfloat16(),), 1.1e9, 80)
            t = bench(ways['cuda'], more)
            yield Point(f'{M} × {K}: cuda, over 1.1 GB', c, t)
        t = bench(torch.neg, make(same_bytes))
        yield Point(f'{M} × {K}: copy of as much', stream(same_bytes), t)

def other_speed():
    N, K = 7168, 7168
    for dt, b in ((torch.bfloat16, 2), (torch.float32, 4)):
        sets = fresh(lambda: (torch.randn(N, K, device='cuda').to(dt),))
        for impl in IMPLS[1:]:
            t = bench(lambda w: quantize_weight(w, impl), sets)
            yield Point(f'weight {N} × {K}, {8*b} bits: {impl}', stream(N*K, b, 1), t)
    sets = fresh(lambda: quantize(torch.randn(4096, 7168, device='cuda')))
    for impl in IMPLS[1:]:
        t = bench(lambda q, s: dequantize(q, s, torch.bfloat16, impl), sets)
        yield Point(f'dequantise 4096 × 7168: {impl}', stream(4096*7168, 1 + 4/128, 2), t)

def sums():
    "What the tensor core makes of a sum: fp32 bits of 4 rows, with and without promotion."
    one, out = torch.ones((), device='cuda'), {}
    for K, kind in itertools.product(LENGTHS, KINDS):
        a, b = (t.view(E4M3.dtype).cuda() for t in factors(K, kind))
        for fast in (True, False):
            y = torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.float32, use_fast_accum=fast)
            name = f"{K}/{kind}/" + ("fast" if fast else "promoted")
            out[name] = y[:4].cpu().view(torch.int32).tolist()
    return out

if __name__ == '__main__':
    folder = Path(sys.argv[1] if sys.argv[1:] else '.')
    torch.manual_seed(0)
    x = torch.randn(8, 512).bfloat16()
    for impl in IMPLS:
        assert same(quantize(x.cuda(), impl=impl), quantize(x)), impl
        print('tiny', impl, flush=True)
    hand(); odd_views()
    n, sha = bits()
    print(f'{n} comparisons, all equal to the CPU bit for bit; {sha[:16]}', flush=True)
    points = [*rows_speed(), *other_speed()]
    print(table(points, dict(copy=4.236e12, launch=9e-7)), flush=True)
    rows = [dict(name=p.name, flops=p.cost.flops, bytes=p.cost.bytes, seconds=p.seconds)
            for p in points]
    record(folder/'fp8.json', command='python tests/gpu_fp8.py', comparisons=n, sha256=sha,
           points=rows, sums=sums())
