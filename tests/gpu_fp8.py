"""Quantisation on a GPU: the same bits from CPU, Triton and CUDA; then its speed. Writes fp8.json.

python tests/gpu_fp8.py [FOLDER] [--quick]      (under a minute on an H200)
"""
import hashlib, itertools, json, sys
from pathlib import Path
import torch, triton
import triton.language as tl
from r1nb.fp8 import E4M3, E5M2, decode, dequantize, encode, quantize, quantize_weight
from r1nb.roofline import Point, bench, fresh, poison, quantise, record, stream, table

SHAPES = [(1, 1), (1, 128), (3, 130), (8, 512), (129, 7), (64, 1536), (130, 2112), (257, 1000), (5, 576), (33, 7168)]
u8 = lambda t: torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t).view(torch.uint8)

def patterns(M, K, salt):
    "Numbers by integer arithmetic: the same on every machine and in every version."
    i = torch.arange(M*K, dtype=torch.int64) + salt*7919
    h = (i*2654435761 + 40503) % 2**32
    h = ((h ^ (h >> 15))*2246822519) % 2**32
    return h ^ (h >> 13)

def contents(M, K, salt=0):
    "name -> fp32 [M,K]; the last ones are nasty."
    h = patterns(M, K, salt)
    plain = ((h % 65536).double()/32768 - 1).float().view(M, K)
    raw = (h & 0xffffffff).to(torch.int64)
    bits = torch.where(raw >= 2**31, raw - 2**32, raw).to(torch.int32).view(torch.float32).view(M, K)
    yield 'plain', plain
    yield 'wide', plain*torch.exp2((h >> 16).view(M, K) % 40 - 20.)
    yield 'zeros', plain*((h >> 20).view(M, K) % 3 == 0)*0
    yield 'tiny', plain*2.**-133
    yield 'huge', plain*3e38
    yield 'any bits', bits

def digest(*ts):
    d = hashlib.sha256()
    for t in ts: d.update(u8(t).cpu().numpy().tobytes())
    return d.hexdigest()

def dirty(like):
    "Leave NaN where the next output will be allocated."
    for t in like: poison(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device))

def same(a, b): return all(x.shape == y.shape and torch.equal(u8(x).cpu(), u8(y).cpu()) for x, y in zip(a, b))

def bits(impls):
    "Every shape, dtype, content and option: codes and scales equal the CPU's, bit for bit."
    n, hashes = 0, []
    for (M, K), dt, pow2 in itertools.product(SHAPES, (torch.bfloat16, torch.float32), (False, True)):
        for name, x in contents(M, K, M + K):
            x = x.to(dt); g = x.cuda()
            for fn, more in ((quantize, {}), (quantize, dict(mn_major=True)), (quantize_weight, {})):
                want = fn(x, pow2=pow2, **more); hashes.append(digest(*want))
                for impl in impls:
                    dirty([t.cuda() for t in want])
                    got = fn(g, impl=impl, pow2=pow2, **more)
                    assert got[1].stride() == want[1].stride(), (impl, more, got[1].stride())
                    assert same(got, want), (impl, fn.__name__, M, K, dt, pow2, name, more)
                    n += 1
                for out, impl in itertools.product((torch.float32, torch.bfloat16), impls):
                    back = dequantize(*want, out)
                    got = dequantize(*(t.cuda() for t in want), out, impl=impl).cpu()
                    assert torch.equal(back.isnan(), got.isnan()), (impl, 'nan', M, K, name)
                    assert torch.equal(u8(back.nan_to_num(0.)), u8(got.nan_to_num(0.))), (impl, M, K, dt, out, name)
    return n, hashlib.sha256(''.join(hashes).encode()).hexdigest()

def odd_views(impls):
    "A row view that starts at an odd address must not be read 16 bytes at a time."
    x = torch.randn(40, 136, device='cuda').bfloat16()
    y = x.flatten()[3:3 + 32*136].view(32, 136)
    for impl in impls: assert same(quantize(y, impl=impl), quantize(y.cpu())), impl

def hand():
    "Encoding by hand on the GPU equals the CPU's, all 65536 bf16 numbers and all codes."
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for f in (E4M3, E5M2):
        assert torch.equal(encode(x, f), encode(x.cuda(), f).cpu())
        assert same([decode(f.codes, f).nan_to_num(-1)], [decode(f.codes.cuda(), f).nan_to_num(-1)])

@triton.jit
def one_block(x, q, s, K: tl.constexpr):
    "A program for every block of 128: the plainest kernel, and the shape of DeepSeek's act_quant."
    at = tl.program_id(0)*128 + tl.arange(0, 128)
    v = tl.load(x + at).to(tl.float32)
    scale = tl.max(tl.abs(v))/448.
    tl.store(q + at, (v/scale).to(tl.float8e4nv))
    tl.store(s + tl.program_id(0), scale)

def plainest(x):
    q, s = torch.empty_like(x, dtype=torch.float8_e4m3fn), torch.empty(x.numel()//128, device='cuda')
    one_block[(len(s),)](x, q, s, x.shape[1], num_warps=4)
    return q, s

def speed():
    from r1nb.kernels.quantize import quantize as raw
    make = lambda M, K, dt: lambda: (torch.randn(M, K, device='cuda').to(dt),)
    for M, K in ((128, 7168), (4096, 7168), (16384, 7168), (4096, 2048)):
        bf, c = make(M, K, torch.bfloat16), quantise(M, K)
        sets = fresh(bf)
        ways = {'ref': quantize, 'a program a block (Triton)': plainest, 'triton': lambda x: quantize(x, 'triton'),
                'triton, mn': lambda x: quantize(x, 'triton', mn_major=True),
                **{f'cuda x{r}': lambda x, r=r: raw(x, 1, repeat=r) for r in (1, 2, 4)},
                **{f'cuda x{r}, mn': lambda x, r=r: raw(x, 1, mn_major=True, repeat=r) for r in (1, 2, 4)}}
        for name, fn in ways.items():
            if name == 'ref' and M > 4096: continue
            yield Point(f'{M} x {K} {name}', c, bench(fn, sets))
        yield Point(f'{M} x {K} copy of as many bytes', stream(c.bytes//4, 2, 2), bench(lambda x: torch.neg(x),
                    fresh(make(1, int(c.bytes//4), torch.bfloat16))))
        del sets
    N, K = 7168, 7168
    for dt, b in ((torch.bfloat16, 2), (torch.float32, 4)):
        for impl in ('triton', 'cuda'):
            t = bench(lambda w: quantize_weight(w, impl), fresh(make(N, K, dt)))
            yield Point(f'weight {N} x {K} from {b} bytes {impl}', stream(N*K, b, 1), t)
    sets = fresh(lambda: quantize(torch.randn(4096, 7168, device='cuda')))
    for impl in ('triton', 'cuda'):
        t = bench(lambda q, s: dequantize(q, s, torch.bfloat16, impl), sets)
        yield Point(f'dequantise 4096 x 7168 to bf16 {impl}', stream(4096*7168, 1 + 4/128, 2), t)

def probe(folder):
    "What the tensor core's sums look like: raw inputs and fp32 outputs, to be compared with the emulation."
    one, out = torch.ones((), device='cuda'), {}
    for K, kind in itertools.product((32, 64, 128, 512, 4096), ('normal', 'positive', 'steps')):
        g = torch.Generator().manual_seed(K)
        a, b = (torch.randn(16, K, generator=g) for _ in range(2))
        if kind == 'positive': a, b = a.abs(), b.abs()
        if kind == 'steps':   # one product of 2^16 and a tail of 2^-j
            a, b = torch.ones(16, K), torch.exp2(4. - torch.arange(16.))[:, None].expand(16, K).clone()
            a[:, 0] = 256; b[:, 0] = 256
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        out[f'{K}.{kind}.a'], out[f'{K}.{kind}.b'] = a.view(torch.uint8), b.view(torch.uint8)
        for fast in (True, False):
            y = torch._scaled_mm(a.cuda(), b.cuda().t(), one, one, out_dtype=torch.float32, use_fast_accum=fast)
            out[f'{K}.{kind}.{"fast" if fast else "promoted"}'] = y.cpu()
            exact = a.double() @ b.double().t()
            print(K, kind, fast, f'{((y.cpu() - exact).norm()/exact.norm()).item():.3e}', flush=True)
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in out.items()}, folder/'probe.safetensors')

if __name__ == '__main__':
    args = [a for a in sys.argv[1:] if a[:2] != '--']
    folder = Path(args[0] if args else '.')
    torch.manual_seed(0)
    impls = ['ref', 'triton', 'cuda']
    x = torch.randn(8, 512).bfloat16()
    for impl in impls: assert same(quantize(x.cuda(), impl=impl), quantize(x)), impl; print('tiny', impl, flush=True)
    hand(); odd_views(impls)
    n, sha = bits(impls)
    print(f'{n} comparisons, all equal to the CPU bit for bit; {sha[:16]}', flush=True)
    probe(folder)
    points = list(speed())
    here = Path(__file__).parent.parent/'nbs'/'results'/'roofline.json'
    top = json.loads(here.read_text())['ceilings'] if here.exists() else dict(copy=4.254e12)
    print(table(points, top), flush=True)
    record(folder/'fp8.json', command='python tests/gpu_fp8.py', comparisons=n, sha256=sha, points=[dict(name=p.name,
           flops=p.cost.flops, bytes=p.cost.bytes, seconds=p.seconds) for p in points])
