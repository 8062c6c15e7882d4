"""The block-scaled product: odd shapes, refusals, the ring of barriers; gemm.cu compiled."""
import importlib.util
import itertools
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from r1nb.core import R1Error
from r1nb.fp8 import dequantize, quantize, quantize_weight, tensor_core
from r1nb.gemm import Barrier, Cycles, busy, matmul, matmul_blocks, pipeline, source
from r1nb.kernels import gemm as cuda, jit
from r1nb.roofline import error

FP = torch.float32


def factors(M, N, K, seed=0, positive=False):
    "Rows of different sizes, so that a wrong scale shows."
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(M, K, generator=g)*torch.logspace(-2, 2, M)[:, None]
    b = torch.randn(N, K, generator=g)*torch.logspace(-2, 2, N)[:, None]
    if positive: a, b = a.abs(), b.abs()
    return *quantize(a), *quantize_weight(b)


def exact(a, sa, b, sb): return dequantize(a, sa).double() @ dequantize(b, sb).double().t()


# ---- right -------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(M=st.integers(1, 140), N=st.integers(1, 300), K=st.integers(1, 400), seed=st.integers(0, 99))
def test_against_fp64(M, N, K, seed):
    f = factors(M, N, K, seed)
    # fp32: 24 bits, sums of 128 and then of four; bf16: 8 bits, half a step at most
    assert error(matmul(*f, out_dtype=FP), exact(*f)) < 1e-6
    assert error(matmul(*f), exact(*f)) < 2**-8
    assert matmul(*f).dtype == torch.bfloat16


@pytest.mark.parametrize('M', [0, 1, 3, 129])
@pytest.mark.parametrize('N, K', [(1, 16), (127, 144), (129, 272), (2112, 128)])
def test_odd_shapes(M, N, K):
    f = factors(max(M, 1), N, K)
    d = matmul(f[0][:M], f[1][:M], *f[2:], out_dtype=FP)
    assert d.shape == (M, N) and d.isfinite().all()
    assert M == 0 or error(d, exact(*f)) < 1e-6


def test_each_scale_belongs_to_its_block():
    "Ones everywhere: an output is a sum over blocks of the two scales times the terms."
    a, b = (torch.ones(n, 300).to(torch.float8_e4m3fn) for n in (2, 200))
    sa, sb = torch.tensor([[1., 2, 4], [8, 16, 32]]), torch.tensor([[1., 10, 100], [3, 30, 300]])
    d = matmul(a, sa, b, sb, FP)
    terms = torch.tensor([128., 128, 44])
    for m, n in itertools.product(range(2), (0, 127, 128, 199)):
        assert d[m, n] == (sa[m]*sb[n//128]*terms).sum()


def test_views_and_strides():
    "Scales by columns, and factors that are slices of something larger, change nothing."
    a, sa, b, sb = factors(5, 40, 256)
    wide = torch.zeros(5, 300, dtype=a.dtype); wide[:, :256] = a
    want = matmul(a, sa, b, sb, FP)
    assert torch.equal(matmul(wide[:, :256], sa.t().contiguous().t(), b, sb, FP), want)


def test_nan_stays_in_its_row():
    a, sa, b, sb = factors(3, 20, 256)
    sa[1, 0] = torch.nan
    bad = matmul(a, sa, b, sb, FP).isnan()
    assert bad[1].all() and not bad[[0, 2]].any()


def emulated(a, sa, b, sb, promote):
    "What a Hopper kernel computes: the tensor core's sums, moved to fp32 every 128 or never."
    if not promote:                                # scales would have to be one number
        return tensor_core(a.float(), b.float())*sa[:, :1]*sb[0, 0]
    total = torch.zeros(len(a), len(b))
    for k in range(sa.shape[1]):
        cut = slice(128*k, 128*k + 128)
        scale = sa[:, k, None]*sb.repeat_interleave(128, 0)[:len(b), k]
        total += scale*tensor_core(a[:, cut].float(), b[:, cut].float())
    return total


@pytest.mark.parametrize('positive', [False, True])
def test_promotion_shows_in_fp32(positive):
    "The limits the GPU tests use let promoted sums pass and catch unpromoted ones."
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(6, 4096, generator=g), torch.randn(6, 4096, generator=g)
    if positive: a, b = a.abs(), b.abs()
    q, p = ((x*16).to(torch.float8_e4m3fn) for x in (a, b))
    sa, sb = torch.full((6, 32), 1/16), torch.full((1, 32), 1/16)
    want, limit = exact(q, sa, p, sb), 2e-3 if positive else 3e-4
    good, bad = (error(emulated(q, sa, p, sb, on), want) for on in (True, False))
    assert good < limit < bad
    assert error(matmul_blocks(q, sa, p, sb, FP), want) < 1e-6


# ---- refused -----------------------------------------------------------------------------------
@pytest.mark.parametrize('change, words', [
    (dict(a=torch.ones(3, 256)), 'quantise both to float8_e4m3fn'),
    (dict(b=torch.zeros(20, 128).to(torch.float8_e4m3fn)), 'a has K=256 and b has K=128'),
    (dict(a_scale=torch.ones(2, 3)), 'a_scale is torch.float32 (2, 3): float32 (3, 2)'),
    (dict(b_scale=torch.ones(20, 2)), 'b_scale is torch.float32 (20, 2): float32 (1, 2)'),
    (dict(b_scale=torch.ones(1, 2).double()), 'b_scale is torch.float64'),
    (dict(out_dtype=torch.float16), 'bfloat16 or float32'),
    (dict(impl='fast'), "impl='fast' is none of"),
    (dict(a=torch.zeros(1, 3, 256).to(torch.float8_e4m3fn)), 'two matrices')])
def test_refusals(change, words):
    f = dict(zip(('a', 'a_scale', 'b', 'b_scale'), factors(3, 20, 256))) | change
    with pytest.raises(R1Error, match=re.escape(words)) as e: matmul(**f)
    assert '\n' not in str(e.value)


def test_nothing_to_sum():
    none = torch.zeros(3, 0).to(torch.float8_e4m3fn)
    with pytest.raises(R1Error, match='of at least 1'):
        matmul(none, torch.ones(3, 0), none, torch.ones(1, 0))


@pytest.mark.parametrize('impl', ['cuda', 'triton'])
def test_next_best_on_a_cpu(impl):
    f = factors(3, 20, 256)
    with pytest.warns(UserWarning, match='using the next best'):
        assert torch.equal(matmul(*f, impl=impl), matmul(*f, impl='ref'))


def test_the_copy_engine_wants_sixteen_bytes():
    a, _, b, _ = factors(3, 20, 130)
    with pytest.raises(R1Error, match='K=130'): cuda.output(a[None], b[None], FP)


def test_import_is_light():
    code = 'import sys, r1nb.gemm, r1nb.grouped_gemm; print("triton" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'


# ---- the ring ----------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 30), stages=st.integers(1, 6), groups=st.integers(1, 3),
       waves=st.integers(1, 3), copy=st.floats(1, 2000), latency=st.floats(0, 3000))
def test_every_step_is_copied_before_it_is_read(steps, stages, groups, waves, copy, latency):
    done = pipeline(steps, stages, groups, waves, Cycles(copy, latency))
    copies = {k: (start, end) for unit, k, start, end in done if unit == 'copies'}
    reads = {k: [] for k in range(steps)}
    for unit, k, start, end in done:
        if unit == 'tensor cores': reads[k].append((start, end))
    assert sorted(copies) == list(range(steps))
    for k, times in reads.items():
        assert len(times) == groups*waves and min(t for t, _ in times) >= copies[k][1] + latency
        if k + stages < steps:          # a stage is overwritten when all have read it
            assert copies[k + stages][0] >= max(t for _, t in times)
    for unit in {u for u, *_ in done}:  # nobody does two things at once
        spans = sorted((s, e) for u, _, s, e in done if u == unit)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@settings(max_examples=30, deadline=None)
@given(stages=st.integers(1, 5), forget=st.integers(0, 20))
def test_a_forgotten_arrival_stops_everything(stages, forget):
    run = lambda: pipeline(forget + stages + 1, stages, forget=forget)
    with pytest.raises(R1Error, match=rf'copier waits for empty\[{forget % stages}\]'): run()
    pipeline(forget + stages, stages, forget=forget)    # nobody comes back for that stage


@pytest.mark.parametrize('what', ['steps', 'stages', 'groups', 'waves'])
def test_a_ring_of_nothing_is_refused(what):
    with pytest.raises(R1Error, match='at least one of each'): pipeline(**{what: 0})


def test_more_stages_and_groups_never_hurt():
    share = [busy(pipeline(stages=s)) for s in (1, 2, 3, 4, 5)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(share))
    assert 0 < share[0] < share[-1] <= 1
    assert busy(pipeline(groups=1, waves=4)) < busy(pipeline(groups=2, waves=2))


def test_a_barrier_starts_over():
    bar = Barrier('b', 3)
    for turn in range(4):
        for _ in range(3):
            assert not bar.passes(turn % 2)
            bar.arrive()
        assert bar.passes(turn % 2)


# ---- quoted source -----------------------------------------------------------------------------
@pytest.mark.parametrize('name, file', [
    ('copy_in', 'gemm.cu'), ('multiply', 'gemm.cu'), ('store_split', 'gemm.cu'),
    ('release', 'gemm.cu'), ('matrix_of', 'hopper.cuh'), ('Walk', 'gemm.cu')])
def test_source_is_whole(name, file):
    text = source(name, file)
    assert text.count('{') == text.count('}') > 0 and text.splitlines()[-1].endswith(('}', '};'))


def test_source_of_python():
    text = source('gemm_tile', 'gemm_triton.py')
    compile(text, 'quoted', 'exec')
    with pytest.raises(R1Error, match='no kernel file'): source('x', 'none.cu')
    with pytest.raises(R1Error, match="no 'nobody'"): source('nobody')
    with pytest.raises(R1Error, match="no '\\('"): source('(')


# ---- the tile, and the compiler ----------------------------------------------------------------
@pytest.mark.parametrize('M', [1, 64, 128, 4096])
@pytest.mark.parametrize('N, K', [(8, 16), (2112, 7168), (24576, 1536), (7168, 16384)])
def test_the_chosen_tile_fits(M, N, K):
    t = cuda.choose(M, N, K)
    assert 3 <= t.STAGES <= 16 and t.smem <= cuda.SMEM
    assert cuda.seconds(t, M, N, K) == min(cuda.seconds(c, M, N, K) for c in cuda.CANDIDATES
                                           if c.STAGES >= 3)
    # no tile is predicted to beat four fifths of what the chip's arithmetic takes
    assert cuda.seconds(t, M, N, K) > .8*2*M*N*K/1500e12


def nvrtc_here():
    try: jit.nvrtc()
    except R1Error: return False
    return True


T = cuda.Tile
@pytest.mark.skipif(not nvrtc_here(), reason='needs NVRTC: pip install nvidia-cuda-nvrtc')
@pytest.mark.parametrize('tile, steps', [
    (T(256, 128, 2, 1, UNROLL=8), 16), (T(128, 192, 2, 1), 4), (T(64, 80, 4, 3), 56),
    (T(128, 112, FLOAT=1), 2), (T(64, 64, FLOAT=2), 1), (T(128, 192, 2, 1, 16, 0, 1), 4),
    (T(64, 128, 1, 0, 64, 0, 2), 4)], ids=lambda t: str(t)[5:40])
def test_gemm_cu_compiles(tile, steps, tmp_path, monkeypatch):
    monkeypatch.setenv('R1NB_CACHE', str(tmp_path))
    code = jit.cubin('gemm.cu', 'sm_90a', dict(tile.defines(), STEPS=steps))
    assert code[:4] == b'\x7fELF' and b'gemm' in code
    kept = list((tmp_path/'kernels').glob('gemm-sm_90a-*.cubin'))
    assert len(kept) == 1 and kept[0].read_bytes() == code
    if tile.BM == 256:                       # a change of a macro is another kernel
        more = replace(tile, UNROLL=4)
        jit.cubin('gemm.cu', 'sm_90a', dict(more.defines(), STEPS=steps))
        assert len(list((tmp_path/'kernels').iterdir())) == 2


@pytest.mark.skipif(not importlib.util.find_spec('triton'), reason='needs Triton')
def test_triton_kernel_imports():
    from r1nb.kernels import gemm_triton
    assert all(callable(getattr(gemm_triton, n)) for n in ('gemm', 'contiguous', 'masked'))
