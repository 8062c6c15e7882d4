"""FP8 training on a GPU: values against the CPU's, a step's time, the ledger. Writes JSON.

python tests/gpu_fp8_training.py [FOLDER]      (under 40 s on an H200)
"""
import copy, json, sys, time, traceback
from dataclasses import replace
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
from r1nb.fp8 import dequantize, quantize, quantize_weight
from r1nb.fp8_training import (Recipe, disable, enable, fp8_linear, layer_costs, layers_of, memory,
                               predicted_seconds)
from r1nb.model import R1Config, R1Model
from r1nb.moe import MLP
from r1nb.roofline import bench, error, fresh, predict, record
from r1nb.train import adamw, pretrain_loss

D, I, LAYERS, CUDA = 7168, 18432, 2, Recipe(impl='cuda')
BF16, BEGUN = torch.bfloat16, time.time()
ROOFLINE = Path(__file__).parent.parent/'nbs'/'results'/'roofline.json'


class Stack(nn.Module):
    "x + MLP(x), as wide as DeepSeek-V3's dense layers."
    def __init__(self, D, I, layers):
        super().__init__()
        self.mlps = nn.ModuleList([MLP(D, I) for _ in range(layers)])
        for p in self.parameters(): nn.init.normal_(p, std=.02)
    def forward(self, x):
        for m in self.mlps: x = x + m(x)
        return x

def wide():
    with torch.device('cuda'): return Stack(D, I, LAYERS)

def all_three(x, w, dy, r):
    "The three products of a layer."
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    y = fp8_linear(x, w, r)
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, w.grad

def turned():
    "Codes and scales of a transpose: the CPU's, bit for bit."
    from r1nb.kernels.turn_triton import turn
    u8, n = lambda t: t.view(torch.uint8).cpu(), 0
    ways = [(torch.float32, 1, False), (BF16, 1, False), (BF16, 128, False), ('fp8', 1, True),
            ('fp8', 128, True)]            # as the layer uses them; each is compiled once
    for M, K in ((1, 16), (128, 128), (129, 272), (300, 640)):
        for kind, rows, pow2 in ways:
            x, scale = torch.randn(M, K), None
            if kind == 'fp8':
                given, scale = quantize(x, pow2=pow2)
                x = dequantize(given, scale)
            else: given = x = x.to(kind)
            full = F.pad(x, (0, 0, 0, -M % 128)).t().contiguous()
            want = (quantize if rows == 1 else quantize_weight)(full, pow2=pow2)
            got = turn(given.cuda(), None if scale is None else scale.cuda(), rows, pow2)
            assert torch.equal(u8(got[0]), u8(want[0])), ('codes', M, K, kind, rows)
            assert torch.equal(got[1].cpu(), want[1]), ('scales', M, K, kind, rows)
            n += 1
        q, _ = quantize_weight(torch.randn(M, K))
        assert torch.equal(u8(turn(q.cuda(), rows=0)[0])[:, :M], u8(q).t()), (M, K)
    return n

def values():
    "GPU against the CPU emulation; errors of the three products, the largest over shapes."
    worst = {}
    for wgrad in ('block', 'plain'):
        for T, O, K in ((1, 128, 128), (129, 400, 272), (300, 512, 640), (1024, 1024, 1536)):
            x, w, dy = torch.randn(T, K), torch.randn(O, K)*.02, torch.randn(T, O)
            try:
                cpu = all_three(x, w, dy, Recipe(wgrad=wgrad))
                gpu = all_three(x.cuda(), w.cuda(), dy.cuda(), replace(CUDA, wgrad=wgrad))
                es = [error(a.cpu(), b) for a, b in zip(gpu, cpu)]
                bf = all_three(x.cuda().bfloat16(), w.cuda(), dy.cuda(), replace(CUDA, wgrad=wgrad))
                cpu = all_three(x.bfloat16(), w, dy.bfloat16(), Recipe(wgrad=wgrad))
                es += [error(a.cpu(), b) for a, b in zip(bf, cpu)]
            except Exception as e:
                print(f'  {wgrad} {(T, O, K)}: {type(e).__name__} {e!s:.200}', flush=True)
                continue
            print(f'  {wgrad:6}{(T, O, K)!s:20}', ' '.join(f'{e:.2e}' for e in es), flush=True)
            worst[wgrad] = [max(p) for p in zip(worst.get(wgrad, es), es)]
    # fp32 out: 14 bits in the tensor core; bf16 out: its rounding
    close = {k: max(es[:3]) < 1e-3 and max(es[3:]) < 5e-3 for k, es in worst.items()}
    a = all_three(x.cuda(), w.cuda(), dy.cuda(), CUDA)
    b = all_three(x.cuda(), w.cuda(), dy.cuda(), CUDA)
    same = all(torch.equal(s, t) for s, t in zip(a, b))
    print('  close:', close, '· the same bits a second time:', same)
    return dict(worst=worst, close=close, repeats=same)

def training(steps=20):
    "The same small model by three arithmetics: losses of each step."
    c = R1Config(hidden_size=256, num_hidden_layers=2, intermediate_size=512, n_routed_experts=4,
                 moe_intermediate_size=128, initializer_range=.05)
    ids, out = torch.randint(0, 32, (8, 128), device='cuda'), {}
    for name, r in (('bf16', None), ('ref', Recipe()), ('cuda', CUDA)):
        torch.manual_seed(0)
        model = R1Model(c).cuda().train()
        if r: enable(model, r)
        opt, losses = adamw(model, 1e-3), []
        for _ in range(steps):
            with torch.autocast('cuda', BF16): loss, main, _ = pretrain_loss(model, ids)
            loss.backward(); opt.step(); opt.zero_grad()
            losses.append(main.item())
        out[name] = losses
        print(f'  {name:5} {losses[0]:.4f} -> {losses[-1]:.4f}', flush=True)
    return out

def timed(fn, n=3, rounds=4):
    "Seconds of one call, the median; work is far longer than its launches."
    times = []
    for i in range(rounds + 1):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        for _ in range(n): fn()
        b.record(); b.synchronize()
        if i: times.append(a.elapsed_time(b)/1e3/n)
    return sorted(times)[rounds//2]

def arms(stack):
    "Name, stack prepared, under autocast or not."
    yield 'bf16 weights', copy.deepcopy(stack).bfloat16(), False
    yield 'bf16 from fp32', stack, True
    for wgrad in ('block', 'plain'):
        yield f'fp8, {wgrad}', enable(stack, replace(CUDA, wgrad=wgrad)), True
        disable(stack)

def step(stack, x, dy, autocast):
    with torch.autocast('cuda', BF16, enabled=autocast): y = stack(x)
    y.backward(dy)
    x.grad = None
    for p in stack.parameters(): p.grad = None

def speed(top):
    "Forward and backward of the wide stack."
    rows, stack = [], wide()
    shapes = layers_of(stack)
    for T in (4096, 8192):
        x = torch.randn(T, D, device='cuda', dtype=BF16, requires_grad=True)
        dy = torch.randn(T, D, device='cuda', dtype=BF16)
        for name, s, autocast in arms(stack):
            try: t = timed(lambda: step(s, x, dy, autocast))
            except Exception as e:
                print(f'  {T} {name}: {type(e).__name__} {e!s:.300}', flush=True); continue
            flops = 6*T*sum(o*i for o, i in shapes)
            p = predicted_seconds(shapes, T, name.startswith('fp8'), top)
            rows.append(dict(tokens=T, arm=name, seconds=t, predicted=p, flops=flops))
            print(f'  {T} {name:15} {t*1e3:7.2f} ms {flops/t/1e12:6.0f} TFLOP/s, linear layers '
                  f'predicted {p*1e3:7.2f} ms', flush=True)
            del s
        between = timed(lambda: elementwise(T))
        rows.append(dict(tokens=T, arm='between', seconds=between*LAYERS))
        print(f'  {T} between the products {between*LAYERS*1e3:7.2f} ms', flush=True)
    return rows

def elementwise(T, kept={}):
    "What one MLP does beside its products, forward and back."
    if T not in kept:
        kept.clear()
        make = lambda n: torch.randn(T, n, device='cuda', dtype=BF16, requires_grad=True)
        kept[T] = make(I), make(I), make(D), make(D)
    a, b, x, y = kept[T]
    (F.silu(a)*b).backward(b.detach()); (x + y).backward(x.detach())
    for t in kept[T]: t.grad = None

def parts(top, T=4096):
    "Each operation of one wide layer, measured beside its prediction."
    from r1nb.kernels.gemm import gemm
    from r1nb.kernels.turn_triton import turn
    noise = lambda *s: torch.randn(*s, device='cuda').to(BF16)
    col = lambda x: quantize(x, 'cuda', mn_major=True)
    fprop = lambda: (*col(noise(T, D)), *quantize_weight(noise(I, D), 'cuda'))
    wgrad = lambda: (*turn(noise(T, I)), *turn(noise(T, D), None, 128))
    weight = lambda: quantize_weight(noise(I, D), 'cuda')
    ops = {'quantise x': (lambda x: quantize(x, 'cuda', True, True), lambda: (noise(T, D),)),
           'quantise W': (lambda w: quantize_weight(w, 'cuda'), lambda: (noise(I, D).float(),)),
           'y': (lambda *t: gemm(*t, BF16), fprop),
           'quantise dy': (lambda x: quantize(x, 'cuda', False, True), lambda: (noise(T, I),)),
           'turn W': (lambda q: turn(q, rows=0), lambda: (weight()[0],)),
           'dx': (lambda *t: gemm(*t, BF16), lambda: (*col(noise(T, I)),
                                                      *quantize_weight(noise(D, I), 'cuda'))),
           'turn dy': (lambda x: turn(x), lambda: (noise(T, I),)),
           'turn x': (lambda q, s: turn(q, s, 128, True), lambda: col(noise(T, D))),
           'dW': (lambda *t: gemm(*t, torch.float32), wgrad)}
    rows = []
    for (name, (fn, make)), cost in zip(ops.items(), layer_costs(T, I, D)):
        try: t = bench(fn, fresh(make, most=4), rounds=3)
        except Exception as e:
            print(f'  {name}: {type(e).__name__} {e!s:.300}', flush=True); continue
        p = predict(cost, top)
        rows.append(dict(name=name, seconds=t, predicted=p, flops=cost.flops, bytes=cost.bytes))
        print(f'  {name:12} {t*1e6:8.1f} us, predicted {p*1e6:8.1f}', flush=True)
    return rows

def ledger(T=4096):
    "What the allocator holds at its highest in a step with AdamW, against the count."
    rows = []
    for fp8 in (False, True):
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        stack = wide()
        if fp8: enable(stack, CUDA)
        held = lambda: torch.cuda.memory_allocated() - base
        opt = torch.optim.AdamW(stack.parameters(), 1e-4, fused=True)
        x = torch.randn(T, D, device='cuda', dtype=BF16, requires_grad=True)
        seen = {}
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            seen['state'] = held()
            with torch.autocast('cuda', BF16): y = stack(x)
            seen['forward'] = held()
            y.backward(torch.ones_like(y)); del y
            seen['backward'] = held()
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen['peak'] = torch.cuda.max_memory_allocated() - base
        m = memory(D, I, LAYERS, T, fp8)
        seen['predicted'] = m
        seen['off'] = m['peak']/seen['peak'] - 1
        rows.append(dict(fp8=fp8, tokens=T, **seen))
        live = m['master'] + m['moments']
        want = dict(state=live, forward=live + m['copies'] + m['activations'], peak=m['peak'])
        told = [f'{k} {seen[k]/1e9:.3f} (predicted {v/1e9:.3f})' for k, v in want.items()]
        print(f"  {'fp8' if fp8 else 'bf16'}, GB:", *told, f"{seen['off']:+.1%}", flush=True)
        del stack, opt, x
    return rows

if __name__ == '__main__':
    torch.manual_seed(0)
    top, out = json.loads(ROOFLINE.read_text())['ceilings'], {}
    jobs = dict(turned=turned, values=values, ledger=ledger, speed=lambda: speed(top),
                parts=lambda: parts(top), training=training)
    for name, job in jobs.items():
        print(f'{name}, at {time.time() - BEGUN:.0f} s', flush=True)
        try: out[name] = job()
        except Exception as e:
            traceback.print_exc(limit=4)
            out[name] = f'failed: {type(e).__name__} {e!s:.200}'
        torch.cuda.empty_cache()
        folder = Path(sys.argv[1] if sys.argv[1:] else '.')
        record(folder/'fp8_training_gpu.json', command='python tests/gpu_fp8_training.py', **out)
    print(f'done after {time.time() - BEGUN:.0f} s')
