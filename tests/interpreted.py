"""The Triton kernels without a GPU: Triton's interpreter runs them on CPU tensors of odd shapes.

TRITON_INTERPRET=1 python tests/interpreted.py     (needs Triton; 20 s)

The interpreter rounds to eight bits in a way of its own and multiplies bf16 as if they were whole
numbers; both are mended here, with the roundings of room 21, which are a GPU's (tests/gpu_fp8.py).
"""
import json, os, random
import numpy as np
import torch
from triton.runtime import interpreter
from r1nb import grouped_gemm, kv_cache, mla_decode
from r1nb.fp8 import dequantize, encode, quantize, quantize_weight
from r1nb.fp8_training import Recipe, fp8_linear
from r1nb.gemm import matmul
from r1nb.kernels import jit, mla_decode_triton, quantize_triton
from r1nb.roofline import error, poisoned

FP, LET = torch.float32, random.Random(0)
assert os.environ.get('TRITON_INTERPRET') == '1', 'set TRITON_INTERPRET=1'
torch.set_num_threads(1)
jit.missing = lambda impl, *_: '' if impl == 'triton' else 'not asked for'
quantize_triton.div_rn = lambda a, b: a/b         # numpy's division rounds; CUDA's library is away

def rounded(data, src, dst, mode, usual=interpreter._convert_float):
    "Numbers of one kind as another's bits."
    kinds, x = (str(src), str(dst)), np.ascontiguousarray(data)
    if kinds == ('fp32', 'fp8e4nv'): return encode(torch.from_numpy(x)).numpy()
    if kinds == ('fp32', 'bf16'):
        return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return usual(data, src, dst, mode)

def widened(h):
    if not h.dtype.scalar.is_bf16(): return h
    wide = (h.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(wide, interpreter.tl.float32)

class Whole(type):
    def __instancecheck__(cls, x): return isinstance(x, int)

class Index(int, metaclass=Whole):    # numpy 2.4 makes no whole number of an array of one
    def __new__(cls, x=0, *a): return int(x.item() if isinstance(x, np.ndarray) else x, *a)

interpreter.int = Index
dot, interpreter._convert_float = interpreter.InterpreterBuilder.create_dot, rounded
interpreter.InterpreterBuilder.create_dot = \
    lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)

def same(codes, want):
    a, b = (t.contiguous().view(torch.uint8).flatten() for t in (codes, want))
    assert torch.equal(a, b), f'{(a != b).sum()} of {len(a)} codes differ'

def one_quantise(M, K):
    x, kw = torch.randn(M, K)*10.**LET.randint(-9, 9), dict(pow2=LET.random() < .5)
    odd_one = LET.choice([None, None, np.nan, np.inf, 0, 3e38])
    if odd_one is not None: x[LET.randrange(M), LET.randrange(K)] = odd_one
    if LET.random() < .3: x[:, :128] = 0
    by_rows = LET.random() < .6
    f, kw = (quantize, kw | dict(mn_major=LET.random() < .5)) if by_rows else (quantize_weight, kw)
    with poisoned(): q, s = f(x, 'triton', **kw)
    p, t = f(x, **kw)
    assert torch.equal(s.nan_to_num(-1), t.nan_to_num(-1)), 'scales'
    y, z = dequantize(p, t.contiguous(), impl='triton'), dequantize(p, t)
    assert torch.equal(y.nan_to_num(-9), z.nan_to_num(-9)), 'dequantised'
    same(q, p)
    return 0.

def one_product(M, N, K):
    tall = lambda n: torch.logspace(-2, 2, n)[:, None]
    a, b = quantize(torch.randn(M, K)*tall(M)), quantize_weight(torch.randn(N, K)*tall(N))
    want = dequantize(*a).double() @ dequantize(*b).double().t()
    with poisoned(): got = matmul(*a, *b, FP, 'triton')
    return error(got, want)

def one_grouped(N, E, rows, K):
    b, x = grouped_gemm.quantize_experts(torch.randn(E, rows, K)), torch.randn(N, K)
    idx, worst = torch.rand(N, E).topk(min(2, E), 1).indices, 0
    for layout in grouped_gemm.LAYOUTS:
        there = grouped_gemm.permute(x, idx, E, layout)
        q = quantize(there.x)
        with poisoned(): y = grouped_gemm.grouped_matmul(*q, *b, there.groups, layout, FP, 'triton')
        want = grouped_gemm.grouped_matmul(*q, *b, there.groups, layout, FP, 'ref')
        pick = lambda t: t.flatten(0, -2)[there.place.flatten()]
        worst = max(worst, error(pick(y), pick(want)))
        for t in (want, want.bfloat16()):
            with poisoned(): back = grouped_gemm.unpermute(t, there.place, impl='triton')
            same(back, grouped_gemm.unpermute(t, there.place))
    return worst

def one_training(T, O, I):
    x, w, dy = torch.randn(T, I), torch.randn(O, I), torch.randn(T, O)
    def three(r):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = fp8_linear(a, b, r)
        y.backward(dy)
        return y.detach(), a.grad, b.grad
    with poisoned(): got = three(Recipe('triton'))
    return max(error(a, b) for a, b in zip(got, three(Recipe())))

def one_append(N, precision):
    x, slots = torch.randn(N, 576).bfloat16(), torch.randperm(192)[:N]
    slots[torch.rand(N) < .3] = -1
    ours, theirs = (kv_cache.PagedCache(3, 1, precision=precision).pool(0) for _ in range(2))
    for pool, impl in ((ours, 'triton'), (theirs, 'ref')):
        for t in pool.values(): t.view(torch.uint8).fill_(7)      # what is not written stays
        kv_cache.append(pool, slots, x, precision, impl)
    for name in ours: same(ours[name], theirs[name])
    return 0.

def one_decode(lengths, H, fp8):
    pages = [-(-n//64) for n in lengths]
    c, order = torch.randn(sum(pages) + 1, 64, 576).bfloat16(), torch.randperm(sum(pages)).int() + 1
    q, n = torch.randn(len(lengths), H, 576).bfloat16(), torch.tensor(lengths, dtype=torch.int32)
    table = torch.zeros(len(lengths), 1 + max(pages), dtype=torch.int32)
    for b, k in enumerate(pages): table[b, :k] = order[sum(pages[:b]):sum(pages[:b + 1])]
    if fp8: c = *quantize(c[..., :512].float()), c[..., 512:].contiguous()
    want = mla_decode.decode(q, c, table, n, .07)
    parts = mla_decode.plan(lengths, LET.randint(1, 9), unit=64, overhead=LET.randint(0, 2))
    with poisoned(): got = mla_decode.decode(q, c, table, n, .07, 'triton', parts)
    empty = n == 0
    assert torch.equal(got[1].isinf(), want[1].isinf()) and not got[0][empty].any(), 'empty'
    return error(got[0][~empty], want[0][~empty]) if not empty.all() else 0.

BARS = dict(quantise=1e-9, product=1e-6, grouped=1e-6, training=1e-5, append=1e-9, decode=6e-3)
odd = lambda top: LET.choice([1, 2, 3, 31, 64, 65, 127, 128, 129, 130, LET.randint(1, top)])
def case(name):
    if name == 'quantise': return odd(300), odd(400)
    if name == 'product': return odd(200), odd(300), odd(400)
    if name == 'grouped': return odd(150), LET.randint(1, 6), odd(200), odd(300)
    if name == 'training': return odd(200), odd(200), odd(200)
    if name == 'append': return LET.choice([1, 2, 5, 64]), LET.choice(['bf16', 'fp8'])
    lengths = [0, 1, 63, 64, 65, 128, LET.randint(0, 300)]
    lengths = LET.choices(lengths, k=LET.randint(1, 4))
    return lengths, LET.choice([1, 3, 16, 17, 70]), LET.random() < .5

if __name__ == '__main__':
    torch.manual_seed(0)
    said = {}
    for name, bar in BARS.items():
        for _ in range(12):
            args = case(name)
            off = globals()[f'one_{name}'](*args)
            assert off < bar, f'{name} {args}: {off:.1e} is over {bar:.0e}'
            said[name] = max(said.get(name, 0.), off)
    print(json.dumps(said))
