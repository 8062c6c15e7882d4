"""The experts of room 11 in bf16 and in FP8 on a GPU: one layer, seconds and error. Writes JSON.

python tests/gpu_moe_layer.py FOLDER      (under 60 s on an H200)

32 experts as wide as DeepSeek-V3's, 8 for each token: what a GPU holds that shares 256 with seven
others. `loop` is room 11's `grouped` (it reads the counts back), `all` its static form, both bf16.
"""
import json, sys, time
from pathlib import Path
import torch
from r1nb.grouped_gemm import Fp8Experts
from r1nb.moe import Experts
from r1nb.roofline import bench, error, fresh, grouped_matmul, predict, record, stream

D, I, E, K, BF16 = 7168, 2048, 32, 8, torch.bfloat16

def tokens(N):
    "x, gates, choices."
    x, score = torch.randn(N, D, device='cuda', dtype=BF16), torch.rand(N, E, device='cuda')
    return x, torch.rand(N, K, device='cuda'), score.topk(K, 1).indices

def eager(fn, inputs, least=.3):
    "Median seconds of calls that a CUDA graph cannot hold, waits included."
    times, begun = [], time.perf_counter()
    while time.perf_counter() - begun < least or len(times) < 7:
        torch.cuda.synchronize(); t = time.perf_counter()
        fn(*inputs[len(times) % len(inputs)])
        torch.cuda.synchronize(); times.append(time.perf_counter() - t)
    return sorted(times[2:])[len(times[2:])//2]

def costs(idx):
    "What the FP8 layer cannot avoid: products, and passes over rows between them."
    counts, rows = idx.flatten().bincount(minlength=E).tolist(), idx.numel()
    return [stream(rows*D, 2, 2), stream(rows*D, 2, 1), grouped_matmul(counts, 2*I, D),
            stream(rows*I, 4, 2), stream(rows*I, 2, 1), grouped_matmul(counts, D, I),
            stream(rows*D, 2, 2/K)]

@torch.no_grad()
def main(folder):
    root = Path(__file__).parent.parent
    top = json.loads((root/'nbs'/'results'/'roofline.json').read_text())['ceilings']
    with torch.device('cuda'): e = Experts(E, D, I).to(BF16)
    for p in e.parameters(): torch.nn.init.normal_(p, std=.02)
    rows = []
    for N in (16, 128, 1024, 4096):
        inputs = fresh(lambda: tokens(N), most=4)
        want, seconds, off = e(*inputs[0]), {}, {}
        seconds['loop'] = eager(lambda *t: e(*t), inputs)
        seconds['all'] = bench(lambda *t: e(*t, 'all'), inputs)
        for layout in ('contiguous', 'masked'):
            if layout == 'masked' and N > 1024: continue      # room for all tokens in each
            run = Fp8Experts(layout, 'cuda')
            off[layout] = error(run(e, *inputs[0]), want)
            seconds[f'FP8 {layout}'] = bench(lambda *t: run(e, *t), inputs)
            seconds[f'FP8 {layout}, not recorded'] = eager(lambda *t: run(e, *t), inputs)
        seconds['predicted'] = sum(predict(c, top) for c in costs(inputs[0][2]))
        rows.append(dict(N=N, seconds=seconds, error=off))
        print(f'{N:5} tokens ' + '  '.join(f'{k} {1e6*s:.0f} us' for k, s in seconds.items()),
              {k: f'{v:.2%}' for k, v in off.items()}, flush=True)
        record(Path(folder)/'moe_layer.json', D=D, I=I, experts=E, per_token=K, rows=rows,
               command='python tests/gpu_moe_layer.py')

if __name__ == '__main__': main(sys.argv[1])
