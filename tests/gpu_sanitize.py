"""compute-sanitizer over every CUDA kernel, on small odd shapes, results checked on the way.

    python tests/gpu_sanitize.py [--tools memcheck,racecheck] [--only mla,mla16] [--out FILE.json]

One process for each kernel and tool, all at once: the tools are slow, the GPU is mostly idle.
Exit 1 if a tool reports anything, or a result is wrong.
"""
import argparse, json, re, subprocess, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))


def gemm():
    import torch
    from r1nb.kernels import bench, gemm as g
    T = g.Tile
    for tile in (T(64, 64, 2, 3), T(64, 80, 4, 3), T(128, 192, 2, 1), T(256, 128, 2, 1), T(64, 96),
                 T(128, 128, 2, 2)):
        a, sa, b, sb = bench.operands(65, 264, 512)
        d = torch.empty(1, 65, 264, device='cuda', dtype=bench.BF16)
        g.launch(tile, a[None], g.aligned(sa.t())[None], b[None], g.aligned(sb)[None], d)
        torch.cuda.synchronize()
        assert bench.error(d[0], bench.exact(a, sa, b, sb)) < 4e-3, tile
    bench.check_masked(3, 64, [0, 1, 63], 264, 256)
    bench.check_contiguous([0, -1, 1], 264, 256)


def quantize():
    import torch
    from r1nb.kernels import quantize as Q
    for dtype in (torch.bfloat16, torch.float32):
        for M, K in ((1, 1), (3, 130), (129, 1000), (33, 7168), (7, 7)):
            x = torch.randn(M, K, device='cuda').to(dtype)
            for rows, mn in ((1, False), (1, True), (128, False)):
                q, s = Q.quantize(x, rows, mn_major=mn)
                y = Q.dequantize(q, s.contiguous(), rows, dtype) if not mn else x
                assert (y - x).norm() < .04*x.norm()             # three bits of mantissa


def kv_append():
    from gpu_kv_cache import KINDS, check
    for kind in KINDS:
        for N, latent, rope in ((1, 512, 64), (37, 512, 64), (5, 128, 16)):
            check('cuda', kind, latent, rope, N, seed=N, odd=True)


def mla():
    from gpu_mla import check, cuda
    for fp8 in (False, True):
        assert check('small', cuda, [1, 0, 129, 330], 128, fp8)
        assert check('one long', cuda, [3000], 128, fp8)
        assert check('several steps a block', cuda, [20_000], 128, fp8)


def mla16():
    from gpu_mla16 import checks
    for kind in ('bf16', 'fp8'): assert checks(kind, {}, small=True)


KERNELS = {f.__name__: f for f in (gemm, quantize, kv_append, mla, mla16)}


def main():
    a = argparse.ArgumentParser()
    a.add_argument('--tools', default='memcheck,racecheck')
    a.add_argument('--only', default=','.join(KERNELS)); a.add_argument('--out')
    a.add_argument('--run', help='(what the tool watches)')
    a = a.parse_args()
    if a.run: KERNELS[a.run](); print('right'); return
    jobs = {(k, t): subprocess.Popen(['compute-sanitizer', '--tool', t, sys.executable, __file__,
                                      '--run', k], stdout=-1, stderr=subprocess.STDOUT, text=True)
            for k in a.only.split(',') for t in a.tools.split(',')}
    rows = []
    for (k, t), job in jobs.items():
        text = job.communicate()[0]
        found = re.findall(r'(?:ERROR|RACECHECK) SUMMARY: (.*)', text)
        clean = job.returncode == 0 and bool(found) and re.match(r'0 (errors|hazards)', found[0])
        rows.append(dict(kernel=k, tool=t, summary=found[0] if found else None,
                         right='right' in text.splitlines(), clean=bool(clean)))
        print('clean' if clean else 'FOUND', k, t, found, flush=True)
        if not clean: print(text[-3000:], flush=True)
        if a.out:
            import torch
            about = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__)
            Path(a.out).write_text(json.dumps(about | dict(rows=rows), indent=1))
    sys.exit(not all(r['clean'] and r['right'] for r in rows))


if __name__ == '__main__': main()
