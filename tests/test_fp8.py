"""Eight bits over odd shapes and hostile numbers, against a slow version; sums; checkpoints."""
import json, math, sys
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
import r1nb
from r1nb.core import R1Error
from r1nb.fp8 import (E4M3, E5M2, decode, dequantize, dequantize_checkpoint, encode, explore,
                      is_stored_in_fp8, load, quantize, quantize_weight, save_fp8, show,
                      tensor_core)
from r1nb.model import R1Config, R1Model, load as load_plain, read_tensors
import fp8_contents

NANO = Path(r1nb.__file__).parent/'assets'/'nano'
ROOT = Path(__file__).parent.parent
u8 = lambda t: t.view(torch.uint8)

# ---- the format -------------------------------------------------------------------------------
def value(code, exponent, fraction, bias):
    "From the definition, in Python's own numbers."
    e, m = (code & 127) >> fraction, code & (2**fraction - 1)
    x = m*2.**(1 - bias - fraction) if e == 0 else (2**fraction + m)*2.**(e - bias - fraction)
    return -x if code > 127 else x

@pytest.mark.parametrize('f', [E4M3, E5M2], ids=lambda f: f.name)
def test_all_codes_by_definition(f):
    for c, v in enumerate(decode(f.codes, f).tolist()):
        if c & 127 <= f.top: assert v == value(c, f.exponent, f.fraction, f.bias)
        else: assert math.isnan(v) or f is E5M2 and c & 127 == 0x7c and math.isinf(v)

@pytest.mark.parametrize('f', [E4M3, E5M2], ids=lambda f: f.name)
@settings(max_examples=300, deadline=None)
@given(x=st.floats(width=32))
def test_nothing_is_nearer(f, x):
    c = encode(torch.tensor([x]), f).item()
    if math.isnan(x): assert c & 127 == 0x7f; return
    assert c & 127 <= f.top and (c > 127) == (math.copysign(1, x) < 0)
    a, grid = min(abs(x), f.largest), decode(f.codes[:f.top + 1], f).double()
    gaps = (grid - a).abs()
    assert gaps[c & 127] == gaps.min()
    if (gaps == gaps.min()).sum() == 2: assert c % 2 == 0       # ties to even

def test_beyond_the_largest_saturates():
    x = torch.tensor([1e9, math.inf, -math.inf, 465., 448.])
    assert encode(x).tolist() == [0x7e, 0x7e, 0xfe, 0x7e, 0x7e]
    assert encode(x, E5M2)[:3].tolist() == [0x7b, 0x7b, 0xfb]
    for dt in (torch.float64, torch.bfloat16, torch.float16):
        assert encode(torch.ones(3, dtype=dt)).tolist() == [0x38]*3

def test_show_speaks_of_every_number():
    for x in (0., -0., 1e-30, 448., 1e30, math.inf, math.nan, -3.): assert 'E4M3' in show(x)

# ---- scales -----------------------------------------------------------------------------------
def slow(x, rows, pow2):
    "Block by block, number by number, with numpy's fp32."
    import numpy as np
    x, one = x.float().numpy(), np.float32
    M, K = x.shape
    q = np.zeros((M, K), np.uint8); s = np.zeros((-(-M//rows), -(-K//128)), np.float32)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            b = x[i*rows:(i+1)*rows, j*128:(j+1)*128]
            at = (slice(i*rows, i*rows + b.shape[0]), slice(j*128, j*128 + b.shape[1]))
            if not np.isfinite(b).all(): q[at], s[i, j] = 0x7f, one(math.nan); continue
            scale = max(one(abs(b).max())/one(448), one(2.**-126))
            if pow2: m, e = math.frexp(float(scale)); scale = one(2.**(e if m > .5 else e - 1))
            q[at] = encode(torch.from_numpy(b*(one(1)/scale))).numpy(); s[i, j] = scale
    return torch.from_numpy(q), torch.from_numpy(s)

def same(a, b):
    return all(x.shape == y.shape and torch.equal(u8(x.contiguous()), u8(y.contiguous()))
               for x, y in zip(a, b))

@settings(max_examples=60, deadline=None)
@given(M=st.integers(1, 140), K=st.integers(1, 300), power=st.integers(-140, 125),
       rows=st.sampled_from([1, 128]), pow2=st.booleans(), seed=st.integers(0, 99),
       nasty=st.sampled_from([None, 0., math.nan, math.inf, -math.inf, 3e38, 1e-44]),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_shape_and_size_of_numbers(M, K, power, rows, pow2, seed, nasty, dtype):
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(M, K, generator=g).double()*2.**power).to(dtype)
    if nasty is not None: x.view(-1)[torch.randint(0, M*K, (), generator=g)] = nasty
    if nasty == 0.: x[:, :128] = 0
    got = (quantize if rows == 1 else quantize_weight)(x, pow2=pow2)
    assert same((u8(got[0]), got[1]), slow(x, rows, pow2))
    back = dequantize(*got)
    ok = got[1].repeat_interleave(rows, 0)[:M].repeat_interleave(128, 1)[:, :K].isfinite()
    assert back[ok].isfinite().all() and back[~ok].isnan().all()
    whole = x.float().abs() <= 3.3e38
    unit = got[1].repeat_interleave(rows, 0)[:M].repeat_interleave(128, 1)[:, :K]
    gap, ok = (back - x.float()).abs(), ok & whole
    assert (gap <= x.float().abs()/15.9 + unit*2.**-10 + 2e-45)[ok].all()

@pytest.mark.parametrize('shape', [(5,), (2, 3, 130), (1, 1), (4, 0, 128)])
def test_leading_dimensions(shape):
    x = torch.randn(shape)
    q, s = quantize(x)
    assert q.shape == x.shape and s.shape == (*shape[:-1], -(-shape[-1]//128))
    assert dequantize(q, s).shape == x.shape
    p, t = quantize(x, mn_major=True)
    assert t.shape == s.shape and torch.equal(t, s) and torch.equal(u8(p), u8(q))

@pytest.mark.parametrize('K', [1, 128, 300])
def test_no_rows_are_no_mistake(K):
    for f in (quantize, quantize_weight):
        q, s = f(torch.empty(0, K))
        assert q.shape == (0, K) and s.shape == (0, -(-K//128)) and q.dtype == E4M3.dtype
        assert dequantize(q, s).shape == (0, K)

def test_strides_are_followed():
    x = torch.randn(130, 260)
    q, s = quantize(x)
    assert torch.equal(dequantize(q.t().contiguous().t(), s.t().contiguous().t()), dequantize(q, s))
    q, s = quantize_weight(x)
    assert torch.equal(dequantize(q.t().contiguous().t(), s), dequantize(q, s))

def test_a_window_between_promotions_is_whole_steps():
    a = torch.ones(1, 256)
    with pytest.raises(R1Error, match='promote=100'): tensor_core(a, a, promote=100)
    with pytest.raises(R1Error, match='K=256 and 128'): tensor_core(a, a[:, :128])
    assert tensor_core(a, a, promote=96).item() == 256

@pytest.mark.parametrize('M,K', [(1, 1), (4, 128), (7, 300), (130, 257)])
def test_scales_by_columns_are_the_same_scales(M, K):
    x = torch.randn(M, K)
    (q, s), (q2, s2) = quantize(x), quantize(x, mn_major=True)
    assert torch.equal(u8(q), u8(q2)) and torch.equal(s, s2)
    assert s2.stride() == (1, -(-M//4)*4)
    assert torch.equal(dequantize(q, s), dequantize(q2, s2))

def test_views_and_gradients():
    x = torch.randn(256, 64, requires_grad=True)
    assert same(quantize(x.t()), quantize(x.t().contiguous())) and not quantize(x)[1].requires_grad

@pytest.mark.parametrize('x,says', [(torch.arange(4), 'int64'), (torch.randn(3, 0), r'\(3, 0\)'),
    (torch.zeros(4).to(torch.float8_e4m3fn), 'float8'), (torch.tensor(1.), r'shape \(\)')])
def test_refused(x, says):
    with pytest.raises(R1Error, match=says): quantize(x)

def test_weights_are_matrices():
    with pytest.raises(R1Error, match='matrix'): quantize_weight(torch.randn(2, 3, 4))
    q, s = quantize_weight(torch.randn(256, 300))
    for bad in (s[:1], s.t(), s.flatten(), s.double(), s.bfloat16(), s.to('meta')):
        with pytest.raises(R1Error, match='do not fit'): dequantize(q, bad)
    with pytest.raises(R1Error, match='do not fit'): dequantize(torch.zeros(256, 300), s)

def test_without_a_gpu_the_next_best_is_taken():
    x = torch.randn(3, 200)
    for impl in ('cuda', 'triton'):
        with pytest.warns(UserWarning, match=f'impl={impl!r} cannot run here'):
            got = quantize(x, impl)
        assert same(got, quantize(x))
    assert same(quantize(x, None), quantize(x)) and 'triton' not in sys.modules
    with pytest.raises(R1Error, match="impl='fast'"): quantize(x, 'fast')

@pytest.fixture(scope='module')
def recorded():
    "What tests/gpu_fp8.py wrote on a GPU."
    return json.loads((ROOT/'nbs'/'results'/'fp8.json').read_text())

def test_same_bits_as_the_gpu(recorded):
    assert fp8_contents.fingerprint() == recorded['sha256'] and recorded['comparisons'] > 3000

# ---- sums -------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', fp8_contents.KINDS)
@pytest.mark.parametrize('K', fp8_contents.LENGTHS)
def test_sums_are_the_tensor_cores_to_the_last_bit(recorded, K, kind):
    a, b = (decode(t) for t in fp8_contents.factors(K, kind))
    for way, promote in (('fast', None), ('promoted', 128)):
        got = tensor_core(a[:4], b, promote=promote)
        assert got.view(torch.int32).tolist() == recorded['sums'][f'{K}/{kind}/{way}'], way

def test_enough_bits_are_an_exact_sum():
    g = torch.Generator().manual_seed(0)
    a, b = (decode(encode(torch.randn(5, 200, generator=g))) for _ in range(2))
    want = (a.double() @ b.double().t()).float()
    assert torch.equal(tensor_core(a, b, bits=50), want)
    few = [(tensor_core(a, b, bits=n) - want).norm().item() for n in (8, 11, 14, 20)]
    assert few == sorted(few, reverse=True) and few[-1] < 1e-4

def test_promotion_at_the_end_only_or_of_zeros_changes_nothing():
    a = b = torch.ones(1, 64)
    assert tensor_core(a, b).item() == tensor_core(a, b, promote=64).item() == 64
    assert tensor_core(a*0, b, promote=32).item() == 0

# ---- checkpoints ------------------------------------------------------------------------------
@pytest.fixture
def stored(tmp_path): return save_fp8(NANO, tmp_path/'fp8')

def edit(folder, change):
    path = folder/'model.safetensors'
    state = load_file(path); change(state)
    save_file(state, path)

def test_layout_is_the_official_one(stored):
    config, state = json.loads((stored/'config.json').read_text()), read_tensors(stored)
    assert config['quantization_config'] == dict(activation_scheme='dynamic', fmt='e4m3',
        quant_method='fp8', weight_block_size=[128, 128])
    plain = read_tensors(NANO)
    assert {n for n in state if not n.endswith('_scale_inv')} == set(plain)
    for n, t in plain.items():
        assert (state[n].dtype == torch.float8_e4m3fn) == is_stored_in_fp8(n, t)
        if is_stored_in_fp8(n, t):
            s = state[n + '_scale_inv']
            assert s.dtype == torch.float32 and s.shape == tuple(-(-k//128) for k in t.shape)
            assert not any(k in n for k in ('embed', 'head', 'norm', '.gate.', 'eh_proj'))
    assert sum(t.dtype == torch.float8_e4m3fn for t in state.values()) == 4*4 + 3 + 3*15

def test_back_and_forth_is_stable(stored, tmp_path):
    plain = dequantize_checkpoint(stored, tmp_path/'plain')
    model, again = load(stored), load_plain(plain)
    for (n, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), n
    twice = read_tensors(save_fp8(plain, tmp_path/'twice'))
    for n, t in read_tensors(stored).items():
        if t.element_size() == 1: assert torch.equal(u8(t), u8(twice[n])), n
    assert load(stored, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    assert sorted(f.name for f in stored.iterdir()) == sorted(
        f.name for f in NANO.iterdir() if f.name != 'card.json')

def test_room_13_says_what_to_do(stored):
    with pytest.raises(R1Error, match='quantization_config'): load_plain(stored)
    with pytest.raises(R1Error, match='quantised already'): save_fp8(stored, stored.parent/'x')
    with pytest.raises(R1Error, match='is not quantised'): load(NANO)
    with pytest.raises(R1Error, match='config.json is missing'): load(stored.parent/'nowhere')

NAME = 'model.layers.0.mlp.up_proj.weight'
@pytest.mark.parametrize('change,says', [
    (lambda s: s.pop(NAME + '_scale_inv'), f'{NAME} .* needs finite scales'),
    (lambda s: s.pop(NAME), 'no weight beside it'),
    (lambda s: s.update({NAME + '_scale_inv': torch.ones(1, 1)}), 'of shape'),
    (lambda s: s[NAME + '_scale_inv'].fill_(math.inf), 'needs finite scales'),
    (lambda s: u8(s[NAME])[3].fill_(0x7f), 'NaN')])
def test_damage_is_named(stored, change, says):
    edit(stored, change)
    with pytest.raises(R1Error, match=says): load(stored)

@pytest.mark.parametrize('key,v', [('quant_method', 'awq'), ('fmt', 'e5m2'),
                                   ('weight_block_size', [64, 64])])
def test_other_schemes_are_refused(stored, key, v):
    path = stored/'config.json'
    c = json.loads(path.read_text()); c['quantization_config'][key] = v
    path.write_text(json.dumps(c))
    with pytest.raises(R1Error, match=key): load(stored)

def test_a_nan_is_not_stored(tmp_path):
    import shutil
    bad = shutil.copytree(NANO, tmp_path/'bad')
    edit(bad, lambda s: s[NAME].view(-1)[7].fill_(math.nan))
    with pytest.raises(R1Error, match='holds a NaN'): save_fp8(bad, tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_transformers_reads_the_same_numbers(tmp_path):
    "Where every matrix is whole blocks, or one partial block: others it refuses (version 5.17)."
    hf = pytest.importorskip('transformers')
    hf.utils.logging.set_verbosity_error(); hf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    c = R1Config(kv_lora_rank=112, qk_rope_head_dim=16, v_head_dim=16, intermediate_size=256,
                 moe_intermediate_size=128, num_nextn_predict_layers=0, initializer_range=.1)
    folder = save_fp8(R1Model(c).save_pretrained(tmp_path/'plain'), tmp_path/'fp8')
    theirs = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
        quantization_config=hf.FineGrainedFP8Config(dequantize=True)).eval()
    ids = torch.randint(0, 256, (2, 30))
    with torch.no_grad(): a, b = theirs(ids).logits, load(folder).eval()(ids)
    assert b.std() > .5 and (a - b).abs().max() < 1e-4      # fp32, sums in another order

@pytest.mark.parametrize('x', [.3, -5., 0., 1e9, 1e-30, math.nan, math.inf])
def test_the_explorer(x):
    "The slider sets the switches, a switch changes the number, and nothing else moves."
    pytest.importorskip('ipywidgets')
    slider, kind, box, said = explore(x, live=True).children
    code = lambda: int(''.join(b.description for b in box.children), 2)
    for f in (E4M3, E5M2):
        kind.value = f
        for v in (3.3, 448., 1e6, .001):
            slider.value = v
            assert code() == encode(torch.tensor([slider.value]), f).item()
            assert show(slider.value, f) in said.value
        slider.value = 1.
        for c in (0, 1, 0x7f, 0x80, f.top, 0xff):
            for i, b in enumerate(box.children): b.value = bool(c >> 7 - i & 1)
            v = decode(torch.tensor([c], dtype=torch.uint8), f).item()
            assert code() == c and f'the switches: {v:g}' in said.value and slider.value == 1.
    assert [b.button_style for b in box.children] == ['danger'] + ['info']*5 + ['']*2
