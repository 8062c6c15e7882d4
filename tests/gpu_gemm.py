"""The FP8 products on a GPU: every implementation, odd shapes, experts. Writes gemm_check.json.

python tests/gpu_gemm.py [FOLDER]      (about half a minute on an H200, most of it compilers)
"""
import sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import torch, triton
import triton.language as tl
from r1nb.core import R1Error
from r1nb.fp8 import dequantize, quantize, quantize_weight, tensor_core
from r1nb.gemm import matmul
from r1nb.grouped_gemm import grouped_matmul, quantize_experts, use
from r1nb.kernels import gemm as cuda, jit
from r1nb.moe import MoE, MoEConfig
from r1nb.roofline import bench, error, poison, record

DEV, BF, FP = 'cuda', torch.bfloat16, torch.float32
SHAPES = [(1, 256, 144), (3, 129, 272), (129, 130, 272), (300, 1000, 1040), (64, 2112, 7168)]
ODD_K = [(5, 7, 130), (129, 65, 201)]           # not for the copy engine
EMULATED = (64, 64, 384)
t0 = time.time()
def say(*x): print(f'{time.time() - t0:5.1f}', *x, flush=True)

def factors(M, N, K, positive=False):
    "Random codes and scales; rows of a differ in size, so that a wrong scale shows."
    a = torch.randn(M, K, device=DEV)*torch.logspace(-2, 2, M, device=DEV)[:, None]
    b = torch.randn(N, K, device=DEV)*torch.logspace(-1, 1, N, device=DEV)[:, None]
    if positive: a, b = a.abs(), b.abs()
    return *quantize(a, 'ref'), *quantize_weight(b, 'ref')

def exact(a, sa, b, sb): return dequantize(a, sa, FP).double() @ dequantize(b, sb, FP).double().t()

def dirty(*shapes):
    for s in shapes:
        for dt in (BF, FP): poison(torch.empty(s, dtype=dt, device=DEV))

def dense():
    "Both kernels against fp64; in fp32 the 14 bits of the tensor core show, over 128 terms."
    rows = []
    for M, N, K in SHAPES + ODD_K:
        for positive in (False, True):
            f = factors(M, N, K, positive); want = exact(*f)
            for impl in ('triton', 'cuda')[:1 if (M, N, K) in ODD_K else 2]:
                for dt, most in ((FP, 2e-3), (BF, 5e-3)):
                    dirty((M, N), (1, M, N))
                    e = error(matmul(*f, dt, impl), want)
                    rows.append(dict(M=M, N=N, K=K, impl=impl, out=str(dt)[6:],
                                     positive=positive, error=e))
                    assert e < most, rows[-1]
        last = [f"{r['impl']} {r['out'][:2]} {r['error']:.1e}" for r in rows[-8:]]
        say('dense', (M, N, K), *last)
    f = factors(5, 7, 130)
    try: matmul(*f, BF, 'cuda'); raise AssertionError('K=130 was not refused')
    except R1Error as e: say(e)
    assert error(matmul(*f, FP), exact(*f)) < 2e-3                      # None finds another way
    f = factors(8, 48, 256)
    for impl in ('triton', 'cuda'):
        nothing = f[0][:0], f[1][:0]
        assert matmul(*nothing, *f[2:], impl=impl).shape == (0, 48), impl
    return rows

def bits():
    "The emulation of room 21, promoted as gemm.cu does it, gives how many of the GPU's bits?"
    M, N, K = EMULATED
    f = factors(M, N, K); a, sa, b, sb = (t.cpu() for t in f)
    total = torch.zeros(M, N, dtype=torch.float64)
    for k in range(K//128):
        cut = slice(128*k, 128*k + 128)
        part = tensor_core(a[:, cut].float(), b[:, cut].float())
        scale = sa[:, k, None]*sb.repeat_interleave(128, 0)[:N, k]
        total = (total + scale.double()*part.double()).float().double()   # one fused multiply-add
    tile = cuda.Tile(64, 64, FLOAT=1)
    d = torch.empty(1, M, N, device=DEV)
    scales = cuda.aligned(f[1].t())[None], cuda.aligned(f[3])[None]
    got = cuda.launch(tile, f[0][None], scales[0], f[2][None], scales[1], d)
    same = (got[0].cpu() == total.float()).double().mean().item()
    tri = (matmul(*f, FP, 'triton').cpu() == total.float()).double().mean().item()
    say(f'bits as emulated: cuda {same:.2%}, triton {tri:.2%}')
    return dict(cuda=same, triton=tri)

def grouped():
    "Contiguous with a block of nobody's, masked with an empty group."
    E, N, K, out = 5, 256, 512, []
    b = quantize_experts(torch.randn(E, N, K, device=DEV), 'ref')
    groups = torch.tensor([0, 0, 2, 4, -1, 3, 1, -1], dtype=torch.int32, device=DEV)
    a = quantize(torch.randn(128*8, K, device=DEV), 'ref')
    rows = torch.tensor([0, 1, 63, 17, 64], dtype=torch.int32, device=DEV)
    apart = quantize(torch.randn(E, 64, K, device=DEV), 'ref')
    for impl in ('triton', 'cuda'):
        got = grouped_matmul(*a, *b, groups, 'contiguous', FP, impl)
        for g, e in enumerate(groups.tolist()):
            cut = slice(128*g, 128*g + 128)
            if e < 0: continue
            out.append(error(got[cut], exact(a[0][cut], a[1][cut], b[0][e], b[1][e])))
        got = grouped_matmul(*apart, *b, rows, 'masked', FP, impl)
        for e, n in enumerate(rows.tolist()):
            want = exact(apart[0][e, :n], apart[1][e, :n], b[0][e], b[1][e])
            if n: out.append(error(got[e, :n], want))
        assert max(out) < 2e-3, (impl, out)
    say(f'grouped: worst {max(out):.1e}')
    return max(out)

@torch.no_grad()
def layer():
    "Room 11's layer in FP8: the GPU's kernels, in a CUDA graph too, against the CPU's reference."
    torch.manual_seed(1)
    c = MoEConfig(hidden_size=512, moe_intermediate_size=256, num_experts_per_tok=3)
    moe, x = MoE(c).eval(), torch.randn(1, 61, 512)
    for p in moe.parameters(): torch.nn.init.normal_(p, std=.05)
    plain = moe(x)
    want, out = use(moe, impl='ref')(x), {}
    out['cpu fp8'] = error(want, plain)
    moe, first = moe.to(DEV), x
    x = first.to(DEV)
    for impl in ('triton', 'cuda'):
        for layout in ('contiguous', 'masked'):
            out[f'{impl} {layout}'] = error(use(moe, layout, impl)(x).cpu(), want)
            torch.cuda.synchronize(); graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph): y = moe(x)
            x.copy_(torch.randn_like(x)); graph.replay()
            assert error(y, moe(x)) < 1e-6, 'the graph does not follow its input'
            x.copy_(first)
    assert max(v for k, v in out.items() if k[:3] != 'cpu') < 1e-2, out
    say('layer:', *(f'{k} {v:.1e}' for k, v in out.items()))
    return out

@triton.jit
def scalar_scales(a, sa, b, sb, d, M, N, K, C, BM: tl.constexpr, BN: tl.constexpr,
                  SCALAR: tl.constexpr):
    "Whole tiles only: what gemm_triton does, with B's scale as one scalar or as a vector."
    om, on = tl.program_id(0)*BM + tl.arange(0, BM), tl.program_id(1)*BN + tl.arange(0, BN)
    ok = tl.arange(0, 128)
    sum = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K//128):
        x = tl.load(a + om[:, None]*K + ok[None, :] + k*128)
        y = tl.load(b + on[None, :]*K + ok[:, None] + k*128)
        s = tl.load(sa + om*C + k)
        if SCALAR: sum += tl.dot(x, y)*s[:, None]*tl.load(sb + tl.program_id(1)*BN//128*C + k)
        else: sum += tl.dot(x, y)*s[:, None]*tl.load(sb + on//128*C + k)[None, :]
    tl.store(d + om[:, None]*N + on[None, :], sum)

def race():
    "Does a scalar load of B's scales go wrong at three stages or more? Counts wrong outputs."
    M = N = K = 2048
    f, out = factors(M, N, K), {}
    want = exact(*f)
    for scalar in (True, False):
        for stages in (2, 3, 4):
            d = torch.empty(M, N, device=DEV); bad = 0
            for _ in range(20):
                poison(d)
                scalar_scales[(M//128, N//128)](*f, d, M, N, K, K//128, 128, 128, scalar,
                                                num_warps=8, num_stages=stages)
                far = (d - want).abs() > 1e-2*want.abs().amax(1, keepdim=True)
                bad += (far | d.isnan()).sum().item()
            out[f'{"scalar" if scalar else "vector"} {stages}'] = bad
    say('outputs that are wrong, of', 20*M*N, out)
    return out

def speed():
    "Microseconds of Triton and CUDA, L2-cold."
    out = []
    for M, N, K in ((64, 4096, 7168), (4096, 4096, 7168)):
        n = max(2, int(240e6/(M*K + N*K)))
        sets = [factors(M, N, K) for _ in range(n)]
        for impl in ('triton', 'cuda'):
            s = bench(lambda *f: matmul(*f, impl=impl), sets)
            out.append(dict(M=M, N=N, K=K, impl=impl, seconds=s))
            say(impl, (M, N, K), f'{1e6*s:.1f} us {2*M*N*K/s/1e12:.0f} TFLOP/s')
    return out

def compile_one(x): jit.cubin('gemm.cu', 'sm_90a', x)

def prepare():
    "All the CUDA kernels at once, on as many cores as there are."
    FLOATS = lambda N: (1, 2 if N % 8 else 0)
    todo = [dict(cuda.choose(M, N, K, fl).defines(), STEPS=-(-K//128))
            for M, N, K in SHAPES for fl in FLOATS(N)]
    todo += [dict(cuda.Tile(64, 64, FLOAT=1).defines(), STEPS=3)]
    todo += [*(dict(t.defines(), STEPS=k) for k in (2, 4)
              for t in (cuda.Tile(128, 192, 2, 1, 16, 1, 1), cuda.Tile(64, 128, 1, 0, 64, 1, 2)))]
    todo += [dict(cuda.choose(M, 4096, 7168).defines(), STEPS=56) for M in (64, 4096)]
    with ProcessPoolExecutor(14) as pool: list(pool.map(compile_one, todo))

if __name__ == '__main__':
    prepare(); say('compiled')
    torch.manual_seed(0)
    with torch.no_grad():
        found = dict(dense=dense(), bits=bits(), grouped=grouped(), layer=layer())
        found |= dict(race=race(), speed=speed())
    if len(sys.argv) > 1: record(Path(sys.argv[1])/'gemm_check.json', **found)
    say('done')
