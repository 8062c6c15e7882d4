"The Triton kernels on CPU tensors, where Triton is installed (it comes with CUDA builds of torch)."
import importlib.util, json, os, subprocess, sys
from pathlib import Path
import pytest


@pytest.mark.skipif(not importlib.util.find_spec('triton'), reason='needs Triton')
def test_triton_kernels_interpreted():
    "In a process of its own: the switch is read when Triton is imported."
    env = dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1')
    command = [sys.executable, '-W', 'ignore', str(Path(__file__).parent/'interpreted.py')]
    got = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert got.returncode == 0, got.stderr[-2000:]
    assert len(json.loads(got.stdout.splitlines()[-1])) == 6
