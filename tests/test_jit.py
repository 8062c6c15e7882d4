"""Which implementation runs on machines that miss something, and what is said; the cache."""
import importlib.util, shutil, subprocess, sys, warnings, zipfile
from pathlib import Path
import pytest
import torch
from r1nb.core import R1Error
from r1nb.kernels import jit

ROOT = Path(__file__).parent.parent
ORDER = ('cuda', 'triton', 'ref')


@pytest.fixture
def gpu(monkeypatch):
    "A machine with everything, of which a test takes something away."
    def build(capability=(9, 0), nvrtc=True, triton=True, compiler=True, hip=None):
        def missing_rtc(): raise R1Error('CUDA kernels need NVRTC (libnvrtc.so 12 or later)')
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda d=None: capability)
        monkeypatch.setattr(torch.version, 'hip', hip)
        monkeypatch.setattr(jit, 'nvrtc', (lambda: 1) if nvrtc else missing_rtc)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, 'find_spec', lambda n, p=None:
                            triton or None if n == 'triton' else find(n, p))
        monkeypatch.setattr(shutil, 'which', lambda n: '/bin/' + n if compiler else None)
    return build


def ask(impl, order=ORDER):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        name = jit.pick(impl, 'cuda', order)
    return name, [str(w.message) for w in said]


@pytest.mark.parametrize('machine, runs, why', [
    (dict(), 'cuda', None),
    (dict(capability=(8, 9)), 'triton', '8.9 is not 9.x'),
    (dict(capability=(10, 0)), 'triton', '10.0 is not 9.x'),
    (dict(capability=(8, 0)), 'ref', '8.0 is not 9.x'),          # E4M3 came with 8.9
    (dict(nvrtc=False), 'triton', 'need NVRTC'),
    (dict(nvrtc=False, triton=False), 'ref', 'need NVRTC'),
    (dict(nvrtc=False, compiler=False), 'ref', 'need NVRTC'),
    (dict(triton=False, compiler=False), 'cuda', None),
    (dict(capability=(9, 4), hip='6.0'), 'ref', 'not from NVIDIA')])
def test_the_next_best_and_one_line(gpu, machine, runs, why):
    gpu(**machine)
    assert ask('ref') == ('ref', [])
    name, said = ask('cuda')
    assert name == runs and len(said) == (why is not None)
    assert ask(None) == (name, said)                  # the fastest was meant
    for line in said:
        assert why in line and f"using the next best, '{runs}'" in line and '\n' not in line


@pytest.mark.parametrize('machine, why', [
    (dict(triton=False), 'triton is not installed'), (dict(compiler=False), 'needs a C compiler'),
    (dict(capability=(7, 5)), '7.5 has no eight-bit numbers')])
def test_without_triton(gpu, machine, why):
    gpu(**machine)
    name, said = ask('triton')
    assert name == 'ref' and len(said) == 1 and why in said[0]


def test_no_gpu_and_nonsense(gpu):
    gpu()
    with pytest.warns(UserWarning, match='the tensors are on cpu.*ref'):
        assert jit.pick('cuda', 'cpu') == 'ref'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert jit.pick(None, 'cpu') == jit.pick(None, torch.device('cpu')) == 'ref'
    for impl, order in (('fast', ORDER), ('triton', ('cuda', 'ref'))):
        with pytest.raises(R1Error, match=f"'{impl}' is none of {', '.join(order)}"):
            jit.pick(impl, 'cpu', order)


def nvrtc_here():
    try: jit.nvrtc()
    except R1Error: return False
    return True

needs_nvrtc = pytest.mark.skipif(not nvrtc_here(), reason='pip install nvidia-cuda-nvrtc')
SMALL = 'quantize.cu', 'sm_90a', dict(FLOAT=0, VECTOR=1, POW2=0, COLUMNS=0)


@needs_nvrtc
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path/'file').write_text('in the way')
    monkeypatch.setenv('R1NB_CACHE', str(tmp_path/'file'))
    assert jit.cubin(*SMALL)[:4] == b'\x7fELF'
    said = capsys.readouterr().err.splitlines()
    assert 'compiling quantize.cu' in said[0] and said[1].startswith('not kept') and len(said) == 2


@needs_nvrtc
def test_a_damaged_cubin_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('R1NB_CACHE', str(tmp_path))
    code = jit.cubin(*SMALL)
    kept, = (tmp_path/'kernels').iterdir()
    kept.write_bytes(b'')
    assert jit.cubin(*SMALL) == code == kept.read_bytes()
    capsys.readouterr()
    assert jit.cubin(*SMALL) == code and capsys.readouterr().err == ''


def test_an_error_of_the_compiler_names_the_file(tmp_path, monkeypatch):
    if not nvrtc_here(): pytest.skip('pip install nvidia-cuda-nvrtc')
    monkeypatch.setenv('R1NB_CACHE', str(tmp_path))
    monkeypatch.setattr(jit, 'HERE', tmp_path)
    (tmp_path/'bad.cu').write_text('extern "C" __global__ void f() { nonsense; }')
    with pytest.raises(R1Error, match='bad.cu does not compile'): jit.cubin('bad.cu')
    assert not list((tmp_path/'kernels').glob('*')) if (tmp_path/'kernels').exists() else True


def test_the_headers_command(tmp_path):
    run = lambda *a: subprocess.run([sys.executable, '-m', 'r1nb.kernels.jit', *a],
                                    capture_output=True, text=True)
    got = run()
    assert got.returncode == 1 and got.stderr.strip() == 'usage: python -m r1nb.kernels.jit FOLDER'
    assert run(str(tmp_path)).returncode == 0
    assert {'hopper.cuh', 'wgmma.cuh'} <= {p.name for p in tmp_path.iterdir()}


def test_importing_everything_brings_no_compiler():
    code = '''import sys, pkgutil, importlib, r1nb, r1nb.kernels
for m in pkgutil.iter_modules(r1nb.__path__):
    if m.name != 'cli': importlib.import_module('r1nb.' + m.name)
for m in ('jit', 'gemm', 'quantize', 'kv_append', 'mla_decode', 'mla_decode16', 'mla_combine'):
    importlib.import_module('r1nb.kernels.' + m)
print([m for m in ('triton', 'transformers', 'ipywidgets') if m in sys.modules])'''
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert got.stdout.strip() == '[]', got.stderr[-500:]


def test_a_wheel_holds_every_source(tmp_path):
    "Built from what git tracks, without a GPU."
    pytest.importorskip('build')
    names = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout
    if not names: pytest.skip('not a git checkout')
    for name in names.splitlines():
        if name.startswith('nbs/') or not (ROOT/name).is_file(): continue
        (tmp_path/'src'/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT/name, tmp_path/'src'/name)
    made = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o',
                           tmp_path/'out', tmp_path/'src'], capture_output=True, text=True)
    if 'Missing dependencies' in made.stdout + made.stderr: pytest.skip('needs setuptools')
    assert made.returncode == 0, made.stderr[-1000:]
    wheel, = (tmp_path/'out').glob('*.whl')
    held = {n.removeprefix('r1nb/') for n in zipfile.ZipFile(wheel).namelist()}
    tracked = {n for n in names.splitlines() if n.startswith('kernels/')}
    assert tracked and tracked <= held
    assert {Path(n).suffix for n in tracked} == {'.py', '.cu', '.cuh'}
