"""Check the kernels, then time them.

    python -m r1nb.kernels.bench [gemm] [grouped] [quantize] [mla] --out nbs/results

Correctness first: fresh random inputs, outputs poisoned with NaN, fp64 references, fp32 output as
well as bf16 (whose own rounding would hide how sums were kept). Then every contender in turn on
the same inputs, as replays of CUDA graphs over more input sets than L2 can hold. Results go to
one JSON a section, with hardware and versions.
"""
import argparse, itertools, math, multiprocessing, re, sys, time
from pathlib import Path
import torch
from r1nb.core import on_disk, require
from r1nb.fp8 import dequantize, quantize, quantize_weight
from r1nb.kernels import gemm as ours
from r1nb.kernels.jit import cubin
from r1nb.roofline import error, fresh, poisoned, record

# (N, K) of DeepSeek-V3's layers
V3 = (2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)
BF16, FP32 = torch.bfloat16, torch.float32


# --- how to time ---------------------------------------------------------------------------------

def graph(fn, inputs, n):
    "n calls over the input sets in turn, recorded."
    for x in inputs[:2]: fn(*x)
    torch.cuda.synchronize()
    recorded, kept = torch.cuda.CUDAGraph(), [None]*len(inputs)
    with torch.cuda.graph(recorded):
        for i in range(n): kept[i % len(inputs)] = fn(*inputs[i % len(inputs)])
    recorded.replay()
    return recorded, kept


def once(run):
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record(); run(); b.record(); b.synchronize()
    return a.elapsed_time(b)/1e3


def race(
    fns,            # name -> function of one input set
    inputs,         # the sets, used in turn
    burst=.008,     # seconds of back-to-back calls in one measurement
    rounds=7,       # measurements of each, taken in turn, so that heat is shared fairly
    rest=.03,       # seconds of idling before each
):                  # name -> median seconds of one call
    "Time contenders beside each other."
    graphs, counts, times = {}, {}, {name: [] for name in fns}
    for name, fn in fns.items():
        trial, kept = graph(fn, inputs, len(inputs))
        counts[name] = len(inputs)*max(1, round(burst/once(trial.replay)))
        graphs[name] = graph(fn, inputs, counts[name])
    for _ in range(rounds):
        for name, (recorded, _) in graphs.items():
            time.sleep(rest)
            times[name].append(once(recorded.replay)/counts[name])
    return {name: sorted(t)[rounds//2] for name, t in times.items()}


def compile_all(jobs):
    "Compile (file, macros) on all cores: a check would otherwise wait for one compiler at a time."
    with multiprocessing.get_context('spawn').Pool() as pool: pool.map(compiled, list(jobs))


def compiled(job): cubin(job[0], 'sm_90a', job[1])


def tiles(shapes, dtypes):
    "What `ours.gemm` will want compiled."
    for M, N, K in shapes:
        for float_ in {1 if t == FP32 else 2 if N % 8 else 0 for t in dtypes}:
            yield 'gemm.cu', ours.choose(M, N, K, float_).defines() | dict(STEPS=-(-K//128))


# --- dense products ------------------------------------------------------------------------------

def noise(*shape): return torch.randn(*shape, device='cuda', dtype=BF16)


def operands(M, N, K, E=1):
    "Random, quantised: a, its scales by columns, b, its scales."
    a, sa = quantize(noise(M, K), impl='cuda', mn_major=True)
    b, sb = zip(*(quantize_weight(noise(N, K), impl='cuda') for _ in range(E)))
    return (a, sa, b[0], sb[0]) if E == 1 else (a, sa, torch.stack(b), torch.stack(sb))


def exact(a, sa, b, sb):
    "fp64 of the dequantised numbers."
    return dequantize(a, sa.contiguous()).double() @ dequantize(b, sb).double().t()


def blockwise(a, sa, b, sb):
    "torch's own: cuBLAS with the same scales."
    from torch.nn.functional import ScalingType as S, scaled_mm
    return scaled_mm(a, b.t(), sa, S.BlockWise1x128, ours.aligned(sb).t(), S.BlockWise128x128,
                     output_dtype=BF16)


def deep_gemm(a, sa, b, sb):
    "DeepSeek's, where it is installed."
    import deep_gemm as dg
    d = torch.empty(len(a), len(b), device=a.device, dtype=BF16)
    dg.fp8_gemm_nt((a, sa), (b, sb), d)
    return d


PEERS = {'torch': blockwise, 'deepgemm': deep_gemm}


def check_gemm(shapes):
    "Every shape in bf16 and fp32, poisoned; the fp32 error tells whether sums were promoted."
    for M, N, K in shapes:
        x = operands(M, N, K); want = exact(*x)
        for dtype, limit in ((BF16, 3e-3), (FP32, 3e-4)):
            with poisoned(): d = ours.gemm(*x, dtype)
            e = error(d, want)
            require(e < limit, f'gemm {M}x{N}x{K} {dtype}: error {e:.1e} is over {limit:.0e}')
    print(f'gemm: {len(shapes)} shapes right in bf16 and fp32', flush=True)


def gemm(a):
    "Ours beside torch's (and DeepGEMM's, where installed) on the shapes of DeepSeek-V3."
    odd = [(1, 512, 256), (3, 136, 528), (129, 131, 144), (65, 7168, 2048), (130, 2112, 7168),
           (300, 520, 1040), (513, 264, 128)]
    real = [(M, N, K) for M in a.rows for N, K in V3]
    compile_all([*tiles(odd, (BF16, FP32)), *tiles([] if a.check else real, (BF16,))])
    check_gemm(odd)
    if a.check: return
    rows = []
    for M in a.rows:
        for N, K in V3:
            inputs = fresh(lambda: operands(M, N, K), most=8)
            peers = {k: f for k, f in PEERS.items() if works(f, inputs[0])}
            fns = {'ours': lambda *x: ours.gemm(*x, BF16)} | peers
            t, tile = race(fns, inputs), ours.choose(M, N, K)
            rows.append(dict(kernel='dense', M=M, N=N, K=K, seconds=t, tile=str(tile),
                             predicted=ours.seconds(tile, M, N, K), tflops=2*M*N*K/t['ours']/1e12,
                             error=error(ours.gemm(*inputs[0], BF16), exact(*inputs[0]))))
            print(f'{M:5} {N:6} {K:6} ' + '  '.join(f'{k} {1e6*s:7.1f} us' for k, s in t.items()),
                  flush=True)
    for line in means(rows): print(line)
    save(a, 'gemm', rows)


def means(rows):
    "How ours compares with each peer at each M, over the shapes where both were timed."
    for M in dict.fromkeys(r['M'] for r in rows):
        for peer in PEERS:
            ratio = [r['seconds'][peer]/r['seconds']['ours'] for r in rows
                     if r['M'] == M and peer in r['seconds']]
            if not ratio: continue
            mean = math.prod(ratio)**(1/len(ratio))
            yield f'M={M}: {mean:.3f} times as fast as {peer} (geometric mean of {len(ratio)})'


def works(fn, x):
    try: fn(*x); return True
    except Exception as e:
        print(f'{fn.__name__}: not here ({type(e).__name__}: {str(e)[:80]})')
        return False


# --- grouped products ----------------------------------------------------------------------------

def check_masked(E, M, counts, N, K):
    a, sa, b, sb = operands(E*M, N, K, E)
    a, sa = a.view(E, M, K), sa.contiguous().view(E, M, -1)
    rows = torch.tensor(counts, dtype=torch.int32, device='cuda')
    for dtype, limit in ((BF16, 3e-3), (FP32, 3e-4)):
        with poisoned(): d = ours.masked(a, sa, b, sb, rows, dtype)
        for i, n in enumerate(counts):
            if not n: continue
            e = error(d[i, :n], exact(a[i, :n], sa[i, :n], b[i], sb[i]))
            require(e < limit, f'masked group {i} of {counts}, {dtype}: error {e:.1e}')


def check_contiguous(blocks, N, K):
    "blocks: whose each 128 rows are."
    E = max(blocks) + 1
    a, sa, b, sb = operands(128*len(blocks), N, K, E)
    whose = torch.tensor(blocks, dtype=torch.int32, device='cuda')
    for dtype, limit in ((BF16, 3e-3), (FP32, 3e-4)):
        with poisoned(): d = ours.contiguous(a, sa, b, sb, whose, dtype)
        for i, g in enumerate(blocks):
            part = slice(128*i, 128*i + 128)
            if g < 0: continue
            e = error(d[part], exact(a[part], sa[part], b[g], sb[g]))
            require(e < limit, f'contiguous block {i} of {blocks}, {dtype}: error {e:.1e}')


def grouped(a):
    "Products of experts: rows one group after another, and rows apart with counts on the GPU."
    check_masked(5, 64, [0, 1, 63, 17, 64], 264, 512)
    check_masked(3, 256, [256, 3, 129], 512, 1040)
    check_contiguous([0, 0, 2, -1, 1, 2], 264, 512); check_contiguous([1, 0, 1], 520, 144)
    print('grouped: masked and contiguous right in bf16 and fp32', flush=True)
    if a.check: return
    rows = []
    sizes = (4096, 7168), (7168, 2048)
    for (E, M, n), (N, K) in itertools.product(((32, 64, 32), (4, 256, 256)), sizes):
        x = operands(E*M, N, K, E)
        q, s = x[0].view(E, M, K), x[1].t().view(-1, E, M).transpose(0, 1)
        s = s.contiguous().transpose(1, 2)
        counts = torch.full((E,), n, dtype=torch.int32, device='cuda')
        t = race({'ours': lambda q: ours.masked(q, s, x[2], x[3], counts, BF16, n)}, [(q,)])['ours']
        moved = E*(N*K + n*K + 2*n*N)
        rows.append(dict(kernel='masked', E=E, M=n, N=N, K=K, seconds=t, gbps=moved/t/1e9,
                         tflops=2*E*n*N*K/t/1e12))
    for (E, M), (N, K) in itertools.product(((4, 8192), (8, 4096)), sizes):
        x = operands(E*M, N, K, E)
        whose = torch.arange(E, device='cuda', dtype=torch.int32).repeat_interleave(M//128)
        t = race({'ours': lambda q: ours.contiguous(q, *x[1:], whose, BF16)}, [x[:1]])['ours']
        rows.append(dict(kernel='contiguous', E=E, M=M, N=N, K=K, seconds=t,
                         tflops=2*E*M*N*K/t/1e12))
    for r in rows:
        print(f'{r["kernel"]:10} {r["E"]:3} x {r["M"]:5} {r["N"]:6} {r["K"]:6} '
              f'{1e6*r["seconds"]:7.1f} us {r["tflops"]:6.0f} TFLOP/s'
              + (f' {r["gbps"]:5.0f} GB/s' if 'gbps' in r else ''), flush=True)
    save(a, 'grouped_gemm', rows)


# --- quantise ------------------------------------------------------------------------------------

def quantise(a):
    "1x128: bf16 in, codes and scales out, in both layouts of the scales."
    for M, K in ((1, 128), (3, 200), (129, 7168)):
        x = torch.randn(M, K, device='cuda', dtype=BF16)
        for way in (dict(), dict(mn_major=True)):
            with poisoned(): q, s = quantize(x, impl='cuda', **way)
            p, t = quantize(x.cpu(), **way)
            same = torch.equal(q.view(torch.uint8).cpu(), p.view(torch.uint8))
            require(same and torch.equal(s.cpu(), t),
                    f'quantise {M}x{K} {way}: the GPU and the CPU disagree')
    print('quantise: bit for bit what the CPU gives', flush=True)
    if a.check: return
    rows = []
    for M, K in ((128, 7168), (4096, 7168), (16384, 7168)):
        inputs = fresh(lambda: (torch.randn(M, K, device='cuda', dtype=BF16),))
        fns = {'rows': lambda x: quantize(x, impl='cuda'),
               'columns': lambda x: quantize(x, impl='cuda', mn_major=True)}
        t, moved = race(fns, inputs), M*K*3 + M*K//128*4
        rows.append(dict(M=M, K=K, seconds=t, gbps={k: moved/s/1e9 for k, s in t.items()}))
        print(f'quantise {M:6} x {K} ' + '  '.join(
              f'{k} {1e6*s:6.1f} us {moved/s/1e9:5.0f} GB/s' for k, s in t.items()), flush=True)
    save(a, 'quantize', rows)


# --- attention over the latent cache -------------------------------------------------------------

def pages(B, L, fp8, H):
    "q, a cache with its pages in random order, the page table, the lengths."
    n = -(-L//64)
    c = noise(B*n, 64, 576)
    table = torch.randperm(B*n, device='cuda').int().view(B, n)
    if fp8:
        parts = c[..., :512].reshape(-1, 512).split(2**17)     # rows that one launch takes
        q, s = (torch.cat(x) for x in zip(*(quantize(p.contiguous(), impl='cuda') for p in parts)))
        c = q.view(B*n, 64, 512), s.view(B*n, 64, 4), c[..., 512:].contiguous()
    return noise(B, H, 576), c, table, torch.full((B,), L, dtype=torch.int32, device='cuda')


def attend(q, cache, table, lengths):
    "fp64 of the numbers in the cache, one request at a time."
    out = []
    for b, L in enumerate(lengths.tolist()):
        p = table[b].long()
        if isinstance(cache, tuple):
            k = torch.cat([dequantize(cache[0][p], cache[1][p]), cache[2][p].float()], -1)
        else: k = cache[p]
        k = k.reshape(-1, 576)[:L].double()
        out.append((q[b].double() @ k.t()*192**-.5).softmax(-1) @ k[:, :512])
    return torch.stack(out)


def mla(a):
    "Absorbed decode: 128 and 16 heads, bf16 and FP8 cache; split, combine, nothing else."
    from r1nb.kernels import mla_decode as wide, mla_decode16 as narrow
    def call(H, x, p=None):
        if H > 16: return wide.decode64(*x, 192**-.5, plan=p)[0]
        return narrow.decode16(*x, 192**-.5, plan=p)[0]
    for H in (128, 16):
        for fp8 in (False, True):
            for B, L in ((1, 1), (3, 65), (2, 1000), (1, 4097), (32, 200), (33, 64)):
                x = pages(B, L, fp8, H)
                with poisoned(): y = call(H, x)
                e = error(y, attend(*x))
                require(e < 6e-3, f'mla {H} heads, {B} x {L}, fp8={fp8}: error {e:.1e}')
    print('mla: right for 128 and 16 heads, both caches', flush=True)
    if a.check: return
    rows = []
    for H in (128, 16):
        for B, L in a.batches:
            for fp8 in (False, True):
                first = pages(B, L, fp8, H)
                p = (wide if H > 16 else narrow).schedule(first[0], [L]*B)
                each = B*L*(656 if fp8 else 1152)
                sets = min(16, math.ceil(220e6/each))
                inputs = [first] + [pages(B, L, fp8, H) for _ in range(sets - 1)]
                t = race({'ours': lambda *x: call(H, x, p)}, inputs)['ours']
                moved, flops = each + 2*B*H*(576 + 512), 2*B*H*L*(576 + 512)
                kind = 'fp8' if fp8 else 'bf16'
                rows.append(dict(H=H, B=B, L=L, cache=kind, seconds=t, gbps=moved/t/1e9,
                                 tflops=flops/t/1e12))
                print(f'mla {H:4} heads {B:4} x {L:6} {kind:4} {1e6*t:7.1f} us '
                      f'{moved/t/1e9:5.0f} GB/s {flops/t/1e12:4.0f} TFLOP/s', flush=True)
    save(a, 'mla_decode', rows)


# --- the command ---------------------------------------------------------------------------------

def save(a, name, rows):
    if a.out: print('wrote', record(Path(a.out)/f'{name}.json', rows=rows))


SECTIONS = dict(gemm=gemm, grouped=grouped, quantize=quantise, mla=mla)


def main(args=None):
    p = argparse.ArgumentParser(prog='python -m r1nb.kernels.bench', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sections', nargs='*', default=[], metavar='SECTION',
                   help=f'of {", ".join(SECTIONS)}; all of them by default')
    p.add_argument('--out', help='folder for the results, one JSON a section')
    p.add_argument('--check', action='store_true',
                   help='only check that results are right (small: compute-sanitizer can watch it)')
    p.add_argument('--rows', type=int, nargs='+', default=[64, 128, 4096], metavar='M',
                   help='rows of A to time (%(default)s)')
    p.add_argument('--batches', nargs='+', metavar='BxL',
                   default=['1x8192', '32x4096', '32x8192', '32x32768', '128x4096'],
                   help='requests x cached tokens to time (%(default)s)')
    a = p.parse_args(args)
    wrong = [s for s in a.sections if s not in SECTIONS]
    try:
        require(not wrong, f'unknown section {wrong[:1]}: choose from {", ".join(SECTIONS)}')
        require(all(re.fullmatch('[1-9][0-9]*x[1-9][0-9]*', b) for b in a.batches),
                f'--batches {" ".join(map(str, a.batches))}: write requests x tokens, as 32x4096')
        require(all(m > 0 for m in a.rows), f'--rows {a.rows}: rows are counted from 1')
        require(torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9,
                'the kernels run on an H100 or H200 (compute capability 9.x): there is none here')
        a.batches = [tuple(map(int, b.split('x'))) for b in a.batches]
        with on_disk(a.out): Path(a.out or '.').mkdir(parents=True, exist_ok=True)
        for name in a.sections or SECTIONS: SECTIONS[name](a)
    except ValueError as e:
        print(f'error: {e}', file=sys.stderr); sys.exit(2)


if __name__ == '__main__': main()
