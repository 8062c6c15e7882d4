"""The benchmark's command line and its summary, without a GPU."""
import subprocess, sys
import pytest
from r1nb.kernels import bench


def row(M, **seconds): return dict(M=M, seconds=seconds)


def test_means_skip_what_was_not_timed():
    rows = [row(64, ours=1., torch=2.), row(64, ours=1., torch=8.),
            row(4096, ours=2., torch=2., deepgemm=1.)]
    lines = list(bench.means(rows))
    assert lines[0].startswith('M=64: 4.000 times as fast as torch')
    assert [l.split(':')[0] for l in lines] == ['M=64', 'M=4096', 'M=4096']
    assert 'M=4096: 0.500 times as fast as deepgemm' in lines[2]


@pytest.mark.parametrize('args,said', [
    (['gemms'], "unknown section ['gemms']"), (['--batches', '3'], '--batches 3'), 
    (['--batches', '0x64'], '--batches 0x64'),
    (['--rows', '0'], '--rows [0]')])
def test_bad_arguments_are_one_line(args, said, capsys):
    with pytest.raises(SystemExit) as e: bench.main(args)
    err = capsys.readouterr().err
    assert e.value.code == 2 and said in err and err.count('\n') == 1


@pytest.mark.skipif(bench.torch.cuda.is_available(), reason='there is a GPU here')
def test_without_a_gpu_it_says_so():
    command = [sys.executable, '-m', 'r1nb.kernels.bench', 'gemm']
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.returncode == 2 and 'H100 or H200' in got.stderr
