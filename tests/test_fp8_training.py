"""FP8 layers over odd shapes, hooks, refusals; the ledger against storages counted."""
import sys, weakref
from dataclasses import replace
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
import r1nb.fp8_training as room
from r1nb.core import R1Error
from r1nb.fp8 import dequantize, quantize, quantize_weight
from r1nb.fp8_training import (Fp8Linear, Recipe, TrainableExperts, disable, enable, fp8_linear,
                               layer_costs, memory, product, weight_gradient)
from r1nb.model import R1Config, R1Model
from r1nb.moe import MLP
from r1nb.roofline import error
from r1nb.train import adamw, descend, pretrain

TOY = R1Config(hidden_size=64, num_hidden_layers=2, intermediate_size=128, n_routed_experts=4,
               moe_intermediate_size=32, initializer_range=.05)
SHAPES = [(1, 1, 1), (3, 129, 127), (127, 1, 300), (129, 400, 272), (256, 128, 128)]

def three(x, w, dy, r):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = fp8_linear(x, w, r)
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, w.grad

def back(x, rows=1, **kw): return dequantize(*(quantize if rows == 1 else quantize_weight)(x, **kw))

@pytest.mark.parametrize('T,O,I', SHAPES)
@pytest.mark.parametrize('wgrad', ['row', 'block', 'plain'])
def test_equals_products_of_dequantised_numbers(T, O, I, wgrad):
    torch.manual_seed(T + O)
    x, w, dy = torch.randn(T, I), torch.randn(O, I), torch.randn(T, O)
    y, dx, dw = three(x, w, dy, Recipe(wgrad=wgrad))
    xq, wq = back(x, pow2=True), back(w, 128)
    turn = lambda t, rows=1, **kw: back(t.t().contiguous(), rows, **kw).t()
    want = dy.t() @ x if wgrad == 'plain' else \
        turn(dy).t() @ turn(xq, 1 if wgrad == 'row' else 128, pow2=True)
    # the same terms in another order: fp32 sums of up to 400
    for got, exact in ((y, xq @ wq.t()), (dx, back(dy) @ wq), (dw, want)):
        assert error(got, exact) < 2e-6

def test_product_promotes_every_128():
    "Each partial sum of 128 is scaled by its own scales: the exact sum in fp64 is near."
    torch.manual_seed(0)
    a, b = torch.randn(5, 700)*torch.logspace(-3, 3, 700), torch.randn(130, 700)
    qa, qb = quantize(a), quantize_weight(b)
    exact = dequantize(*qa).double() @ dequantize(*qb).double().t()
    assert error(product(qa, qb), exact) < 1e-6
    assert product(qa, qb, torch.bfloat16).dtype == torch.bfloat16

def test_leading_dimensions_bias_and_empty():
    torch.manual_seed(0)
    layer = enable(nn.Linear(48, 24))
    x = torch.randn(2, 3, 48)
    assert torch.equal(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))
    assert error(layer(x) - layer.bias, fp8_linear(x, layer.weight)) < 1e-6
    none = torch.zeros(0, 48, requires_grad=True)
    layer(none).sum().backward()
    assert none.grad.shape == (0, 48) and not layer.weight.grad.any()

def test_only_what_is_asked_for_is_computed():
    x, w = torch.randn(4, 32), torch.randn(16, 32, requires_grad=True)
    fp8_linear(x, w).sum().backward()
    assert w.grad is not None and x.grad is None
    x, w = x.requires_grad_(), w.detach()
    fp8_linear(x, w).sum().backward()
    assert x.grad is not None and w.grad is None

def test_gradients_add_up_in_fp32():
    torch.manual_seed(0)
    x, w = torch.randn(256, 32), torch.randn(16, 32, requires_grad=True)
    for part in x.split(128): fp8_linear(part.bfloat16(), w).sum().backward()
    twice, w.grad = w.grad, None
    assert twice.dtype == torch.float32
    fp8_linear(x.bfloat16(), w).sum().backward()
    assert error(twice, w.grad) < 1e-6   # blocks of 128 tokens are the same blocks

def test_autocast_decides_the_type():
    x, w = torch.randn(8, 32), torch.randn(16, 32)
    with torch.autocast('cpu', torch.bfloat16): assert fp8_linear(x, w).dtype == torch.bfloat16
    assert fp8_linear(x.bfloat16(), w).dtype == torch.bfloat16
    with pytest.raises(R1Error, match='float16'): fp8_linear(x.half(), w)

def test_planted_token_hurts_one_scale_for_all():
    torch.manual_seed(0)
    x, w = torch.randn(256, 256), torch.randn(64, 256)
    x[0] *= 2.**17
    far = {s: error(fp8_linear(x, w, Recipe(scaling=s))[1:], x[1:] @ w.t())
           for s in ('fine', 'tensor')}
    assert far['fine'] < .05 and far['tensor'] > .5

def test_nan_and_infinity_stay_visible():
    x, w = torch.randn(4, 256), torch.randn(8, 256)
    x[1, 3], x[2, 200] = float('nan'), float('inf')
    y = fp8_linear(x, w)
    assert y[1:3].isnan().all() and y[[0, 3]].isfinite().all()

# ---- switching --------------------------------------------------------------------------------
def test_what_is_switched_and_back():
    model = R1Model(TOY)
    before, ids = {k: v.clone() for k, v in model.state_dict().items()}, torch.arange(20)[None]
    model.eval()
    with torch.no_grad(): plain = model(ids)
    params = [id(p) for p in model.parameters()]
    enable(model)
    on = {n for n, m in model.named_modules() if type(m) in (Fp8Linear, TrainableExperts)}
    assert not any(k in n for n in on for k in ('lm_head', 'embed', 'norm', 'eh_proj', 'kv_b_proj'))
    assert not any(n.endswith('mlp.gate') for n in on)
    assert any(n.endswith('experts') for n in on) and any(n.endswith('o_proj') for n in on)
    with torch.no_grad(): assert not torch.equal(model(ids), plain)
    assert [id(p) for p in model.parameters()] == params
    disable(model)
    with torch.no_grad(): assert torch.equal(model(ids), plain)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(hasattr(m, 'recipe') for m in model.modules())
    with pytest.raises(R1Error, match='no linear layer'): enable(nn.ReLU())

def test_a_second_recipe_replaces_the_first():
    layer = enable(enable(nn.Linear(16, 16)), Recipe(wgrad='plain'))
    assert layer.recipe.wgrad == 'plain' and type(layer) is Fp8Linear

def run(switch, fp8=None):
    torch.manual_seed(0)
    model = switch(R1Model(TOY))
    windows = torch.randint(0, 256, (16, 64), generator=torch.Generator().manual_seed(0))
    steps = descend(model, adamw(model, .003), windows.to(torch.uint8), 3, .003, batch=4, fp8=fp8)
    return model, [main.item() for _, main, _ in steps]

def test_the_loop_of_room_14_repeats_to_the_bit():
    torch.set_num_threads(1)
    (a, la), (b, lb), (_, plain) = run(enable), run(enable), run(lambda m: m)
    assert la == lb and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert la != plain and abs(la[0]/plain[0] - 1) < .005

@pytest.mark.parametrize('impl', ['cuda', 'triton'])
def test_without_a_gpu_a_kernel_warns_once_and_is_ref(impl):
    x, w = torch.randn(8, 32), torch.randn(16, 32)
    if torch.cuda.is_available(): pytest.skip('this machine has one')
    with pytest.warns(UserWarning, match=f"impl='{impl}' cannot run here") as said:
        assert torch.equal(fp8_linear(x, w, Recipe(impl=impl)), fp8_linear(x, w))
    assert len(said) == 1 and "next best, 'ref'" in str(said[0].message)
    assert 'triton' not in sys.modules

def test_the_fastest_here_says_nothing(recwarn):
    x, w = torch.randn(8, 33), torch.randn(17, 33)
    for r in (Recipe(impl=None), Recipe(impl=None, wgrad='row'), Recipe(None, scaling='tensor')):
        assert torch.equal(fp8_linear(x, w, r), fp8_linear(x, w, replace(r, impl='ref')))
    assert not recwarn.list

def test_the_switch_of_room_14():
    "The flag is `enable` for as long as the loop runs; a state goes on, under the same flag only."
    torch.set_num_threads(1)
    model, with_flag = run(lambda m: m, fp8='ref')
    other, by_hand = run(enable)
    assert with_flag == by_hand and type(model.model.layers[0].self_attn.o_proj) is nn.Linear
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))
    with pytest.raises(R1Error, match="impl='fast'"): run(lambda m: m, fp8='fast')

def test_a_stopped_run_goes_on_in_fp8(tmp_path):
    torch.set_num_threads(1)
    windows = torch.randint(0, 256, (16, 64), generator=torch.Generator().manual_seed(0)).byte()
    def go(steps_of_state, rows, fp8='ref', stop=None):
        torch.manual_seed(0)
        def log(row):
            rows.append(row['loss'])
            if stop == len(rows): raise KeyboardInterrupt
        return pretrain(R1Model(TOY), windows, 60, .003, 2, log, tmp_path/steps_of_state, 40, fp8)
    whole, part = [], []
    a = go('whole', whole)
    with pytest.raises(KeyboardInterrupt): go('part', part, stop=2)
    with pytest.raises(R1Error, match='belongs to another run'): go('part', [], fp8=None)
    b = go('part', part)
    assert part[-1] == whole[-1] and all(map(torch.equal, a.parameters(), b.parameters()))

@pytest.mark.parametrize('x, w, words', [
    (torch.randn(4, 33), torch.randn(16, 32), r'x \(4, 33\) and a weight \(16, 32\)'),
    (torch.randn(4, 0), torch.randn(16, 0), 'are wanted'),
    (torch.randn(4, 32), torch.randn(32), 'are wanted')])
def test_shapes_refused(x, w, words):
    with pytest.raises(R1Error, match=words): fp8_linear(x, w)

def test_no_second_derivative():
    x, w = torch.randn(4, 32, requires_grad=True), torch.randn(16, 32)
    g, = torch.autograd.grad(fp8_linear(x, w).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): g.sum().backward()

@pytest.mark.parametrize('bad', [dict(impl='fast'), dict(impl='triton', wgrad='row'),
                                 dict(wgrad='col'), dict(scaling=2),
                                 dict(impl='cuda', scaling='tensor'),
                                 dict(impl='cuda', wgrad='row')])
def test_recipes_refused(bad):
    with pytest.raises(R1Error) as e: Recipe(**bad)
    assert '\n' not in str(e.value)

# ---- the ledger -------------------------------------------------------------------------------
class Live(TorchDispatchMode):
    "Bytes of all storages alive, and the most there were: an allocator without a device."
    def __init__(self):
        super().__init__()
        self.seen, self.now, self.top = {}, 0, 0

    def __torch_dispatch__(self, f, types, args=(), kw=None):
        out = f(*args, **(kw or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor): self.add(t.untyped_storage())
        return out

    def add(self, s):
        key, n = s._cdata, s.nbytes()
        if key in self.seen: return
        self.seen[key] = n
        self.now, self.top = self.now + n, max(self.top, self.now + n)
        weakref.finalize(s, self.gone, key, n)

    def gone(self, key, n): del self.seen[key]; self.now -= n

def empty(*shape, dtype=torch.float32): return torch.empty(*shape, dtype=dtype, device='meta')
def up(n): return -(-n//128)
def scaled(x, rows, r, pow2=False):
    return empty(*x.shape, dtype=torch.float8_e4m3fn), empty(-(-len(x)//rows), up(x.shape[1]))
def turned(x, scale, rows, r, pow2=False):
    T, K = x.shape
    s = empty(-(-K//rows), up(T)) if rows else None
    return empty(K, up(T)*128, dtype=torch.float8_e4m3fn), s

@pytest.mark.parametrize('T', [1024, 4096, 16384])
@pytest.mark.parametrize('fp8', [False, True])
def test_the_ledger_against_a_backward_pass(T, fp8, monkeypatch):
    "Shapes only, at full width: autograd frees what it frees, the ledger must be within a tenth."
    D, I, L, r = 7168, 18432, 2, Recipe(impl='cuda')
    bf16 = lambda m, x: F.linear(x, m.weight.bfloat16())
    eight = lambda m, x: room._Fp8.apply(x, m.weight, r, torch.bfloat16)
    monkeypatch.setattr(room, '_scaled', scaled)
    monkeypatch.setattr(room, '_turned', turned)
    monkeypatch.setattr(room, 'product', lambda a, b, dtype=torch.float32, impl=None:
                        empty(len(a[0]), len(b[0]), dtype=dtype))
    monkeypatch.setattr(nn.Linear, 'forward', eight if fp8 else bf16)
    with Live() as live, torch.device('meta'):
        blocks = [MLP(D, I) for _ in range(L)]
        moments = [torch.empty(2, *p.shape) for b in blocks for p in b.parameters()]
        x = h = torch.randn(T, D, dtype=torch.bfloat16, requires_grad=True)
        state, live.top = live.now, live.now
        for b in blocks: h = h + b(h)
        forward = live.now
        h.backward(torch.ones_like(h))
    m = memory(D, I, L, T, fp8)
    held = m['master'] + m['moments']
    assert held == pytest.approx(state, rel=.03) and len(moments) == 3*L
    assert held + m['copies'] + m['activations'] == pytest.approx(forward, rel=.04)
    assert m['peak'] == pytest.approx(live.top, rel=.05)

def test_costs_count_the_three_products():
    for fp8 in (False, True):
        heavy = [c for c in layer_costs(512, 1024, 2048, fp8) if c.flops > 1e9]
        assert len(heavy) == 3 and all(c.flops == 2*512*1024*2048 for c in heavy)
        assert {c.kind for c in heavy} == {'fp8' if fp8 else 'bf16'}
