"""Kills, full disks, corrupt files: what `r1nb.core` must survive."""
import errno, json, math, os, signal, subprocess, sys, time
from pathlib import Path
from random import Random
import pytest
from hypothesis import given, settings, strategies as st
from r1nb import core
from r1nb.core import (Log, Meter, R1Error, Stage, hardware, mean_ci, on_disk, optional,
                       proportion_ci, recover_folder, replace_folder, require, rewind, sha256,
                       write_atomic)

REPO = Path(core.__file__).parent.parent

def one_line(error):
    text = str(error.value)
    assert '\n' not in text and ': ' in text, text
    return text

def python(code, *args):
    env = dict(os.environ, PYTHONPATH=str(REPO))
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=env)


# ---- SIGKILL ---------------------------------------------------------------------------------
WORKER = '''
import json, sys
from random import Random
from r1nb.core import Stage, replace_folder
stage = Stage(sys.argv[1], dict(steps=int(sys.argv[2])), resume=True)
ckpt = stage.path/'checkpoint'
start, w = json.loads((ckpt/'w.json').read_text()) if ckpt.exists() else (0, 0.)
stage.rewind(start)
for step in range(start, int(sys.argv[2])):
    w = .9*w + Random(f'0/{step}').gauss(.1, .05)
    stage.log(step=step, w=w, note='a, "quoted" text')
    if (step+1) % 5 == 0:
        replace_folder(ckpt, lambda d: (d/'w.json').write_text(json.dumps([step+1, w])))
stage.finish(w=w)
'''

STEPS = 600  # long enough for a fast disk to be caught in the middle

def size_of(path): return path.stat().st_size if path.exists() else 0

def test_kill_9_anywhere_resumes_to_the_same_log(tmp_path):
    assert python(WORKER, tmp_path/'whole', STEPS).wait(60) == 0
    want = (tmp_path/'whole/metrics.csv').read_bytes()
    rng, killed = Random(0), 0
    for trial in range(3):
        folder = tmp_path/f'killed{trial}'
        for life in range(9):
            p = python(WORKER, folder, STEPS)
            deadline = time.time() + 20  # wait for the first row of this life, then kill soon after
            size = size_of(folder/'metrics.csv')
            while p.poll() is None and time.time() < deadline:
                if size_of(folder/'metrics.csv') != size: break
                time.sleep(.001)
            time.sleep(rng.random()*.03)
            if life == 8: p.wait(60)  # the ninth life is left alone
            if p.poll() is not None: break
            p.send_signal(signal.SIGKILL); p.wait(); killed += 1
        assert (folder/'metrics.csv').read_bytes() == want
        assert Stage(folder, dict(steps=STEPS), resume=True).done
    assert killed >= 3

@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10**6), rows=st.integers(0, 8))
def test_a_log_cut_at_any_byte_keeps_its_whole_rows(tmp_path_factory, cut, rows):
    path = tmp_path_factory.mktemp('log')/'metrics.csv'
    log = Log(path)
    for step in range(rows): log.append(step=step, x=step/7, name='é, "q"')
    data = path.read_bytes() if rows else b''
    path.write_bytes(data[:cut % (len(data)+1)])
    log = Log(path)
    kept = log.rows() if log.columns else []
    assert kept == [dict(step=s, x=s/7, name='é, "q"') for s in range(len(kept))]
    log.append(step=len(kept), x=.5, name='next')
    assert [r['step'] for r in Log(path).rows()] == list(range(len(kept)+1))

def test_kill_between_the_two_renames(tmp_path):
    path = tmp_path/'checkpoint'
    replace_folder(path, lambda d: (d/'w').write_text('1'))
    path.rename(tmp_path/'.checkpoint.old')
    assert (recover_folder(path)/'w').read_text() == '1'
    path.rename(tmp_path/'.checkpoint.old')
    (tmp_path/'.checkpoint.new').mkdir()
    replace_folder(path, lambda d: (d/'w').write_text('2'))
    assert (path/'w').read_text() == '2' and [p.name for p in tmp_path.iterdir()] == ['checkpoint']

def test_a_kill_before_config_json_leaves_a_folder_that_starts(tmp_path):
    (tmp_path/'.config.json.123.tmp').write_text('{')
    assert Stage(tmp_path, dict(a=1)).config == dict(a=1)


# ---- full and forbidden disks ----------------------------------------------------------------
def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device')

def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path/'a.json', 'old')
    monkeypatch.setattr(core.os, 'fsync', full)
    with pytest.raises(R1Error) as e: write_atomic(path, 'new')
    assert str(path) in one_line(e) and 'disk is full: free' in str(e.value)
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1

def test_a_full_disk_keeps_the_whole_rows_of_a_log(tmp_path, monkeypatch):
    log = Log(tmp_path/'m.csv')
    log.append(step=0)
    before = log.path.read_bytes()
    with monkeypatch.context() as m:
        m.setattr(core.os, 'fsync', full)
        with pytest.raises(R1Error, match='disk is full'): log.append(step=1)
    assert log.path.read_bytes() == before
    log.append(step=1)
    assert Log(log.path).rows() == [dict(step=0), dict(step=1)]

def test_a_full_disk_at_the_first_row(tmp_path, monkeypatch):
    log = Log(tmp_path/'m.csv')
    with monkeypatch.context() as m:
        m.setattr(core.os, 'fsync', full)
        with pytest.raises(R1Error): log.append(step=0)
    log.append(step=0, x=1)
    assert Log(log.path).rows() == [dict(step=0, x=1)]

def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    replace_folder(tmp_path/'c', lambda d: (d/'w').write_text('1'))
    with pytest.raises(R1Error, match='disk is full'): replace_folder(tmp_path/'c', full)
    assert (tmp_path/'c/w').read_text() == '1'

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_device_that_is_really_full():
    with pytest.raises(R1Error, match='/dev/full: the disk is full'):
        with on_disk('/dev/full'), open('/dev/full', 'wb', buffering=0) as f: f.write(b'x')

def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path/'runs').write_text('')
    with pytest.raises(R1Error) as e: Stage(tmp_path/'runs', {})
    assert 'choose another folder' in one_line(e)
    with pytest.raises(R1Error): Stage(tmp_path/'runs'/'zero', {})

@pytest.mark.skipif(os.name == 'nt' or os.getuid() == 0, reason='root may write anywhere')
def test_a_folder_one_may_not_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(R1Error, match='no permission'): Stage(tmp_path/'a', {})
    tmp_path.chmod(0o700)

def test_permission_errors_are_one_line(tmp_path, monkeypatch):
    def denied(*_, **__): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(core.os, 'replace', denied)
    with pytest.raises(R1Error) as e: Stage(tmp_path/'a', {})
    assert 'no permission: choose a folder' in one_line(e)


# ---- resume rules and corrupt files ----------------------------------------------------------
CONFIG = {'seed': 0, 'sizes': (3, 4), 'grpo': {'lr': 1e-3, 'clip': None}}

def test_a_run_is_not_overwritten_and_resumes(tmp_path):
    Stage(tmp_path/'a', CONFIG).log(step=0, x=1)
    with pytest.raises(R1Error) as e: Stage(tmp_path/'a', CONFIG)
    assert 'resume it' in one_line(e)
    assert Stage(tmp_path/'a', CONFIG, resume=True).rows() == [dict(step=0, x=1)]
    assert not Stage(tmp_path/'new', CONFIG, resume=True).done

@pytest.mark.parametrize('change, words', [
    ({'seed': 1}, ['seed was 0 and is now 1']),
    ({'grpo': {'lr': 1e-3, 'clip': .2}}, ['grpo.clip was None and is now 0.2']),
    ({'grpo': {}}, ['grpo.lr was 0.001']),
    ({'extra': 5}, ['extra was not set and is now 5'])])
def test_another_config_is_refused_by_key_and_values(tmp_path, change, words):
    Stage(tmp_path, CONFIG)
    with pytest.raises(R1Error) as e: Stage(tmp_path, CONFIG | change, resume=True)
    for w in words: assert w in one_line(e)

@pytest.mark.parametrize('text', ['', '{', '[1]', 'null', '\x00\x01'])
def test_corrupt_config_and_card(tmp_path, text):
    stage = Stage(tmp_path, {})
    (tmp_path/'card.json').write_text(text)
    with pytest.raises(R1Error) as e: stage.card
    assert 'card.json' in one_line(e) and 'delete it' in str(e.value)
    (tmp_path/'config.json').write_text(text)
    with pytest.raises(R1Error) as e: Stage(tmp_path, {}, resume=True)
    assert 'config.json' in one_line(e)

def test_corrupt_rows_are_named_by_line(tmp_path):
    path = tmp_path/'m.csv'
    for bad in (b'1,2,3', b'1', b'', b'\xff\xfe', b'\x00'*20):
        path.write_bytes(b'step,x\n0,1\n' + bad + b'\n2,3\n')
        with pytest.raises(R1Error, match='line 3') as e: Log(path).rows()
        assert str(path) in one_line(e)
    path.write_bytes(b'step,x\n0,1\nzero,1\n')
    with pytest.raises(R1Error, match='line 3'): rewind(Log(path), 1)
    path.write_bytes(b'a,x\n0,1\n')
    with pytest.raises(R1Error, match='named step'): rewind(Log(path), 1)

def test_rewind_keeps_bytes(tmp_path):
    log = Log(tmp_path/'m.csv')
    rewind(log, 0)
    for s in (0, 0, 1, 2, 2): log.append(step=s, x=1/3, ok=True, none=None, nan=math.nan, s='a\nb')
    data = log.path.read_bytes().splitlines(True)
    rewind(log, 2)
    assert log.path.read_bytes() == b''.join(data[:4])
    row = log.rows()[0]
    assert row['x'] == 1/3 and row['ok'] is True and row['none'] is None and math.isnan(row['nan'])
    assert row['s'] == 'a b'
    rewind(log, 0)
    assert log.rows() == [] and log.path.read_bytes() == data[0]
    with pytest.raises(R1Error, match=r"new columns \['y'\]"): log.append(step=3, y=1)

def test_the_card_is_last_and_complete(tmp_path):
    stage = Stage(tmp_path, dict(seed=0))
    with pytest.raises(R1Error, match='unfinished'): stage.card
    stage.finish(parents={'base': 'ab'}, pass1=.5, half=math.inf, path=tmp_path, at=[math.nan, 1])
    card = json.loads((tmp_path/'card.json').read_text())
    assert card['half'] is None and card['at'] == [None, 1] and card['path'] == str(tmp_path)
    assert card['config_sha256'] == sha256(tmp_path/'config.json')
    assert {'commit', 'hardware', 'version'} <= card.keys() and stage.done

def test_what_json_cannot_hold(tmp_path):
    with pytest.raises(R1Error) as e: Stage(tmp_path, dict(f=print))
    assert 'builtin_function' in one_line(e)
    import numpy as np
    assert Stage(tmp_path, dict(x=np.float32(.5), n=np.int64(3))).config == dict(x=.5, n=3)


# ---- figures ---------------------------------------------------------------------------------
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(kn):
    k, n = kn
    low, high = proportion_ci(k, n)
    assert 0 <= low <= k/n <= high <= 1
    for p in (low, high):  # the ends are where the score test is exactly at 1.96
        if 0 < p < 1: assert abs(abs(k/n-p) - 1.959964*math.sqrt(p*(1-p)/n)) < 1e-9

def test_intervals_of_nothing_and_nonsense():
    assert proportion_ci(0, 0) == (0, 1)
    for k, n in ((3, 2), (-1, 2), (0, -1)):
        with pytest.raises(R1Error): proportion_ci(k, n)
    with pytest.raises(R1Error): mean_ci([])
    assert mean_ci([2.]) == (2., math.inf)

@pytest.mark.parametrize('n, t', [(2, 12.7062), (3, 4.3027), (4, 3.1824), (11, 2.2281),
                                  (12, 2.2010), (20, 2.0930), (31, 2.0423), (121, 1.9799)])
def test_student_factor(n, t):
    xs = [0., 1.]*(n//2) + [.5]*(n % 2)
    sd = math.sqrt(sum((x-.5)**2 for x in xs)/(n-1))
    tol = 3e-3  # the expansion stops at second order
    assert abs(mean_ci(xs)[1]/(sd/math.sqrt(n)) - t) < tol

def test_sha256_sees_names_and_contents(tmp_path):
    for d, files in (('a', {'x': '1', 's/y': '2'}), ('b', {'s/y': '2', 'x': '1'}), ('c',
        {'x': '1', 'sy': '2'})):
        for name, text in files.items():
            (tmp_path/d/name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/d/name).write_text(text)
    a, b, c = (sha256(tmp_path/d) for d in 'abc')
    assert a == b != c
    with pytest.raises(R1Error, match='no such file'): sha256(tmp_path/'none')

def test_light_import_and_hardware():
    code = ('import sys, r1nb.core as c; h = c.hardware(); '
            'assert not {"torch", "numpy", "matplotlib"} & set(sys.modules); '
            'assert h["cores"] >= 1')
    assert python(code).wait(60) == 0
    assert hardware()['r1nb'] == core.__version__

def test_meter_counts_while_running_and_then_stands_still():
    with Meter() as m:
        a = m.seconds
        time.sleep(.01)
        assert m.seconds > a
    assert m.seconds == m.seconds >= .01 and (m.joules is None or m.joules >= 0)

def test_optional_and_require():
    assert optional('json', 'json') is json
    with pytest.raises(R1Error, match='pip install thing'): optional('nothing_here.at_all', 'thing')
    with pytest.raises(ValueError, match='x=3: give 2'): require(False, 'x=3: give 2')
