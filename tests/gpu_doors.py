"""The doors of chapter 2 on a GPU: every implementation, and the next best one.

python tests/gpu_doors.py [NAME ...]    (all checks, or these; compiling takes most of the time)
"""
import importlib.util, os, sys, tempfile, traceback, warnings
from dataclasses import replace
import torch
from r1nb import grouped_gemm, model as room_13
from r1nb.core import R1Error
from r1nb.fp8 import dequantize, quantize, quantize_weight
from r1nb.fp8_training import Recipe, fp8_linear
from r1nb.gemm import matmul
from r1nb.kernels import jit
from r1nb.kv_cache import PagedCache, append
from r1nb.mla_decode import decode
from r1nb.roofline import error
from r1nb.train import NANO, adamw, descend

IMPLS, FAILED = ('ref', 'triton', 'cuda', None), []
u8 = lambda t: t.contiguous().view(torch.uint8).cpu()

def check(f):
    "Run one check and say how it went."
    if sys.argv[1:] and f.__name__ not in sys.argv: return
    try: print(f'{f.__name__:32} {f() or "right"}', flush=True)
    except Exception as e:
        FAILED.append(f.__name__)
        print(f'{f.__name__:32} FAILED {type(e).__name__}: {e!s:.300}', flush=True)
        traceback.print_exc(limit=-3)

@check
def shapes_of_no_rows():
    for impl in IMPLS:
        q, s = quantize(torch.empty(0, 256, device='cuda'), impl)
        w, t = quantize_weight(torch.randn(200, 256, device='cuda'), impl)
        assert q.shape == (0, 256) and s.shape == (0, 2)
        assert dequantize(q, s, impl=impl).shape == q.shape
        assert matmul(q, s, w, t, impl=impl).shape == (0, 200)
        assert matmul(w, s.new_ones(200, 2), w[:0], t[:0], impl=impl).shape == (200, 0)

@check
def three_dimensions_by_columns():
    x = torch.randn(2, 5, 300)
    for impl in IMPLS:
        q, s = quantize(x.cuda(), impl, mn_major=True)
        p, t = quantize(x)
        assert s.shape == t.shape == (2, 5, 3) and torch.equal(s.cpu(), t)
        assert torch.equal(u8(q), u8(p))

@check
def turned_codes_come_back_right():
    q, s = quantize(torch.randn(130, 260, device='cuda'))
    turned = q.t().contiguous().t()
    for impl in IMPLS: assert torch.equal(dequantize(turned, s, impl=impl), dequantize(q, s)), impl

@check
def odd_products():
    worst = {}
    for M, N, K in ((1, 1, 1), (1, 200, 300), (3, 131, 144), (129, 65, 16), (129, 264, 1040)):
        a, b = quantize(torch.randn(M, K)), quantize_weight(torch.randn(N, K))
        want = dequantize(*a).double() @ dequantize(*b).double().t()
        for impl in IMPLS:
            if impl == 'cuda' and K % 16: continue
            got = matmul(*(t.cuda() for t in (*a, *b)), torch.float32, impl)
            worst[impl] = max(worst.get(impl, 0), error(got.cpu(), want))
    assert max(worst.values()) < 3e-4, worst
    return worst

def three(x, w, dy, r):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = fp8_linear(x, w, r)
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, w.grad

@check
def training_products():
    worst = {}
    for T, O, I in ((1, 128, 128), (129, 400, 272), (300, 131, 77), (1024, 512, 640)):
        x, w, dy = torch.randn(T, I), torch.randn(O, I)*.02, torch.randn(T, O)
        for wgrad in ('block', 'plain'):
            want = three(x, w, dy, Recipe(wgrad=wgrad))
            for impl in ('triton', 'cuda', None):
                if impl == 'cuda' and (O % 16 or I % 16): continue
                got = three(x.cuda(), w.cuda(), dy.cuda(), Recipe(impl, wgrad))
                off = max(error(a.cpu(), b) for a, b in zip(got, want))
                worst[impl] = max(worst.get(impl, 0), off)
    assert max(worst.values()) < 1e-3, worst      # 14 bits within 128 terms
    return worst

@check
def a_layer_that_is_no_multiple_of_16():
    x, w = torch.randn(4, 33, device='cuda'), torch.randn(17, 33, device='cuda')
    try: fp8_linear(x, w, Recipe('cuda')); raise AssertionError('not refused')
    except R1Error as e: return str(e)

@check
def experts():
    torch.manual_seed(0)
    m = room_13.R1Model(NANO).eval().requires_grad_(False)
    ids, out = torch.randint(0, 256, (2, 70)), {}
    plain = m(ids)
    want = grouped_gemm.use(m, impl='ref')(ids)
    m.cuda()
    for impl in IMPLS:
        for layout in ('contiguous', 'masked'):
            out[impl, layout] = error(grouped_gemm.use(m, layout, impl)(ids.cuda()).cpu(), want)
    assert max(out.values()) < .2*error(want, plain) + 1e-3, out
    return f'{error(want, plain):.1e} off fp32,', {k: f'{v:.1e}' for k, v in out.items()}

@check
def strides_and_offsets():
    "Every other element of something, and tensors that start anywhere."
    a, b = quantize(torch.randn(70, 256)), quantize_weight(torch.randn(200, 256))
    want = matmul(*a, *b, torch.float32)
    off = lambda t: torch.cat([t.flatten().view(torch.uint8)[:1], t.flatten().view(torch.uint8)]
                              ).cuda()[1:].view(t.dtype).view(t.shape)
    for impl in ('triton', 'cuda'):
        got = matmul(off(a[0]), a[1].cuda(), off(b[0]), b[1].cuda(), torch.float32, impl)
        assert error(got.cpu(), want) < 3e-4, impl
    q, cache = torch.randn(4, 16, 576).bfloat16(), torch.randn(9, 64, 576).bfloat16()
    table = torch.randperm(8).view(4, 2).int() + 1
    n = torch.tensor([[70, 1], [0, 1], [64, 1], [128, 1]], dtype=torch.int32)
    want = decode(q, cache, table, n[:, 0].contiguous(), .07)
    x, at = torch.randn(5, 576).bfloat16(), torch.tensor([3, -1, 64, 9, 127])[:, None].repeat(1, 2)
    for impl in ('triton', 'cuda'):
        got = decode(q.cuda(), cache.cuda(), table.cuda(), n.cuda()[:, 0], .07, impl)
        assert error(got[0].cpu(), want[0]) < 6e-3 and not got[0][1].any(), impl
        none = decode(q.cuda()[:0], cache.cuda(), table.cuda()[:0], n.cuda()[:0, 0], .07, impl)
        assert none[0].shape == (0, 16, 512), impl
        here, there = (PagedCache(2, 1, precision='fp8', device=d).pool(0) for d in ('cuda', 'cpu'))
        append(here, at.cuda()[:, 0], x.cuda(), 'fp8', impl)
        append(there, at[:, 0].contiguous(), x, 'fp8')
        assert all(torch.equal(u8(here[k]), u8(there[k])) for k in here), impl

# ---- what is missing ---------------------------------------------------------------------------
def warned(impl):
    "Which implementation ran, and what was said."
    x = torch.randn(3, 256)
    q = quantize(x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        name = jit.pick(impl, 'cuda')
        got = quantize(x.cuda(), impl)
    assert torch.equal(u8(got[0]), u8(q[0]))
    return name, {str(w.message) for w in said}

def pretend(**changes):
    "Put something else in the place of functions for a while; what `warned` says of 'cuda'."
    kept = {k: getattr(*places[k]) for k in changes}
    try:
        for k, v in changes.items(): setattr(*places[k], v)
        return warned('cuda')
    finally:
        for k, v in kept.items(): setattr(*places[k], v)

places = dict(capability=(torch.cuda, 'get_device_capability'), nvrtc=(jit, 'nvrtc'),
              spec=(importlib.util, 'find_spec'))

@check
def an_older_gpu():
    name, said = pretend(capability=lambda d=None: (8, 9))
    assert name == 'triton' and len(said) == 1, (name, said)
    name, more = pretend(capability=lambda d=None: (8, 0))
    assert name == 'ref' and len(more) == 1, (name, more)
    return f'{said | more}'

@check
def no_compiler():
    def gone(): raise R1Error('CUDA kernels need NVRTC')
    name, said = pretend(nvrtc=gone)
    assert name == 'triton' and len(said) == 1, (name, said)
    name, more = pretend(nvrtc=gone, spec=lambda n, p=None: None)
    assert name == 'ref' and len(more) == 1, (name, more)
    return f'{said | more}'

@check
def a_cache_that_cannot_be_written():
    with tempfile.NamedTemporaryFile() as f:
        old, os.environ['R1NB_CACHE'] = os.environ.get('R1NB_CACHE'), f.name + '/below'
        try: assert jit.cubin('quantize.cu', 'sm_90a', dict(FLOAT=0, VECTOR=1, POW2=0, COLUMNS=0))
        finally:
            os.environ.pop('R1NB_CACHE')
            if old: os.environ['R1NB_CACHE'] = old

@check
def the_loop_of_room_14():
    "Every implementation as written, then compiled; dense, for few kernels."
    small = replace(NANO, n_routed_experts=None, num_hidden_layers=1, num_nextn_predict_layers=0)
    said, windows = {}, torch.randint(0, 256, (32, 64), generator=torch.Generator().manual_seed(0))
    for fp8, stance in ((None, 'force_eager'), ('ref', 'force_eager'), ('triton', 'force_eager'),
                        ('cuda', 'force_eager'), ('cuda', 'default')):
        torch.manual_seed(0)
        m = room_13.R1Model(small).cuda()
        with torch.compiler.set_stance(stance):
            steps = descend(m, adamw(m, 3e-3), windows.byte(), 4, 3e-3, batch=8, fp8=fp8)
            said[fp8, stance] = [round(main.item(), 4) for _, main, _ in steps]
        print(fp8, stance, said[fp8, stance], flush=True)
        assert not any(hasattr(x, 'recipe') for x in m.modules())
    plain = said[None, 'force_eager']
    assert all(abs(a/b - 1) < .01 for v in said.values() for a, b in zip(v, plain)), said

print('FAILED: ' + ', '.join(FAILED) if FAILED else 'all right')
sys.exit(bool(FAILED))
