"Ranks under accident: whoever dies, however, there is one line of error and nobody left behind."
import hashlib, json, os, shutil, signal, subprocess, sys, textwrap, time
from pathlib import Path
import pytest, torch
import torch.distributed as dist
from r1nb.core import R1Error
from r1nb.ranks import Ranks, fit, helpers, interleave, last_words

REPO = str(Path(__file__).parents[1])
ODD = '''
import os, signal, time
from r1nb.core import R1Error
def act(ranks, how='', who=1, at=1, pids=None):
    if pids: open(f'{pids}/{ranks.rank}', 'w').write(str(os.getpid()))
    for i in range(3):
        ranks.total([1])
        if (i, ranks.rank) != (at, who): continue
        if pids: open(f'{pids}/died', 'w').write(str(time.time()))
        if how == 'raise': raise RuntimeError('no more' + chr(10) + 'coffee')
        if how == 'user': raise R1Error('seed -1 is negative')
        if how == 'exit': os._exit(3)
        if how: os.kill(os.getpid(), getattr(signal, how))
        time.sleep(5)
    return 'fine'
def forever(ranks, pids):
    open(f'{pids}/{ranks.rank}', 'w').write(str(os.getpid()))
    while True: ranks.total([1])
def many(ranks):
    return ranks.gather([dict(rank=ranks.rank, text='x'*ranks.rank*1000)]*ranks.rank)
'''


@pytest.fixture
def odd(tmp_path, monkeypatch):
    "A module in a folder with a space, on this process's path alone."
    folder = tmp_path/'a b'
    folder.mkdir()
    (folder/'odd.py').write_text(ODD)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop('odd', None)
    import odd
    return odd

@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    assert not dist.is_initialized() and 'GLOO_SOCKET_IFNAME' not in os.environ

def alive(pid):
    "Running, and not merely unburied."
    try: return ') Z' not in Path(f'/proc/{pid}/stat').read_text()
    except OSError: return False

def gone(pids, seconds=5):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end: time.sleep(.05)
    return not any(map(alive, pids))


# ---- arithmetic ------------------------------------------------------------------------------
def test_interleave_undoes_share():
    for n in range(12):
        for size in range(1, 6):
            parts = [x for r in range(size) for x in Ranks(r, size).share(list(range(n)))]
            assert interleave(parts, size) == list(range(n))

def test_three_are_one_and_agree_to_the_bit(monkeypatch):
    "Twice in one process; an environment that points gloo and OpenMP elsewhere does no harm."
    alone = fit(Ranks(), rows=62)['weights']
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    for size, name in ((3, None), (2, 'nosuch0')):
        if name: monkeypatch.setenv('GLOO_SOCKET_IFNAME', name)
        with helpers(size, 'r1nb.ranks:fit', dict(rows=62)) as ranks: got = fit(ranks, rows=62)
        assert os.environ.pop('GLOO_SOCKET_IFNAME', None) == name
        assert (got['weights'] - alone).abs().max() <= 1e-6  # fp32, sums of 62 terms, 5 steps
        mine = hashlib.sha256(got['weights'].numpy().tobytes()).hexdigest()
        assert got['digests'] == [mine]*size

def test_gather_of_unequal_lists(odd):
    with helpers(3, 'odd:many', {}) as ranks: rows = odd.many(ranks)
    assert [r['rank'] for r in rows] == [1, 2, 2] and len(rows[2]['text']) == 2000

def test_gradients_from_a_generator_and_missing_ones(monkeypatch):
    w = [torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    w[0].sum().backward()
    monkeypatch.setattr(dist, 'all_reduce', lambda t: t.mul_(2))
    Ranks(0, 2).add_gradients(p for p in w)
    assert w[0].grad.tolist() == [2, 2, 2] and w[1].grad.tolist() == [[0, 0], [0, 0]]


# ---- accidents -------------------------------------------------------------------------------
@pytest.mark.parametrize('how,who,size,says', [
    ('raise', 1, 2, 'helper process 1 failed: RuntimeError: no more'),
    ('raise', 2, 3, 'helper process 2 failed: RuntimeError: no more'),
    ('user', 1, 2, 'helper process 1 failed: seed -1 is negative'),
    ('exit', 1, 2, 'helper process 1 failed: exit code 3'),
    ('SIGKILL', 1, 2, 'helper process 1 failed: killed by signal 9 (Killed)')])
def test_a_helper_dies(odd, how, who, size, says, tmp_path):
    with pytest.raises(R1Error) as e:
        with helpers(size, 'odd:act', dict(how=how, who=who, pids=str(tmp_path))) as ranks:
            odd.act(ranks)
    assert str(e.value) == says
    assert time.time() - float((tmp_path/'died').read_text()) < 15  # a second, on an idle machine
    assert gone([int((tmp_path/str(r)).read_text()) for r in range(1, size)], 0)

@pytest.mark.parametrize('target,kwargs,says', [
    ('nosuch:act', {}, "helper process 1 failed: ModuleNotFoundError: No module named 'nosuch'"),
    ('odd:nosuch', {}, "helper process 1 failed: AttributeError: module 'odd' has no attribute"),
    ('odd', {}, "'odd' is not module:function")])
def test_a_helper_never_arrives(odd, target, kwargs, says):
    with pytest.raises(R1Error) as e:
        with helpers(2, target, kwargs): raise AssertionError('not reached')
    assert str(e.value).startswith(says)

def test_an_error_of_ours_stays_ours_and_ends_the_helper(odd, tmp_path):
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error, match='mine'):
            with helpers(2, 'odd:forever', dict(pids=str(tmp_path))) as ranks:
                ranks.total([1])
                raise error('mine')
        assert gone([int((tmp_path/'1').read_text())], 0)

def test_ctrl_c_is_not_a_failure(odd):
    with pytest.raises(KeyboardInterrupt):
        with helpers(2, 'odd:act', dict(how='SIGINT')) as ranks: odd.act(ranks)

def test_not_inside_another_group(tmp_path):
    store = dist.FileStore(str(tmp_path/'s'), 1)
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        with pytest.raises(R1Error, match='in a torch.distributed group already'):
            with helpers(2, 'r1nb.ranks:fit', {}): pass
    finally: dist.destroy_process_group()

def test_alone_starts_nobody():
    with helpers(1, 'no such thing', {}) as ranks: assert ranks == Ranks(0, 1)

@pytest.mark.parametrize('log,code,says', [
    ('', 1, 'exit code 1'), ('', -9, 'killed by signal 9 (Killed)'), ('a\nb\n', 2, 'b'),
    ('warn\nTraceback (most recent call last):\n  File\nValueError: x\ny\n', 1, 'ValueError: x'),
    ('Traceback (most recent call last):\n  File\nr1nb.core.R1Error: x', 1, 'x')])
def test_last_words(log, code, says): assert last_words(log, code) == says


# ---- the main process, from outside ----------------------------------------------------------
def main_script(folder, body, session=False):
    (folder/'odd.py').write_text(ODD)
    (folder/'main prog.py').write_text(textwrap.dedent(body))
    env = dict(os.environ, PYTHONPATH=REPO, TMPDIR=str(folder), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, 'main prog.py'], cwd=folder, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=session)

def started(p, folder, size):
    "Process ids, once every rank is at work."
    end = time.monotonic() + 300
    while not all((folder/str(r)).exists() for r in range(size)) and time.monotonic() < end:
        time.sleep(.05)
    time.sleep(.3)
    pids = [int((folder/str(r)).read_text()) for r in range(size)]
    assert pids[0] == p.pid and all(map(alive, pids))
    return pids

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
def test_main_is_killed(tmp_path):
    "No `finally` runs in the main process; the helpers end all the same, and tidy up."
    p = main_script(tmp_path, '''
        import odd
        from r1nb.ranks import helpers
        with helpers(3, 'odd:forever', dict(pids='.')) as ranks: odd.forever(ranks, '.')
    ''')
    pids = started(p, tmp_path, 3)
    p.kill()
    p.communicate(timeout=10)
    assert gone(pids)
    assert not [f for f in tmp_path.glob('r1nb-*') if any(f.iterdir())]

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
def test_ctrl_c_breaks_a_deadlock(tmp_path):
    "Each rank is inside a sum that the other will never join; the terminal interrupts both."
    p = main_script(tmp_path, '''
        import os
        from r1nb.ranks import helpers
        with helpers(2, 'odd:forever', dict(pids='.')) as ranks:
            open('0', 'w').write(str(os.getpid()))
            ranks.gather([1])
    ''', session=True)
    pids = started(p, tmp_path, 2)
    os.killpg(p.pid, signal.SIGINT)
    out = p.communicate(timeout=30)[0]
    assert gone(pids, 0) and 'KeyboardInterrupt' in out and 'R1Error' not in out

@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='reads /proc')
def test_main_is_killed_before_the_helpers_arrive(tmp_path):
    p = main_script(tmp_path, '''
        import os, signal
        from pathlib import Path
        from r1nb import ranks
        procs = ranks.start(3, 'r1nb.ranks:fit', {}, Path('.').resolve())
        print(*[q.pid for q in procs], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    ''')
    pids = [int(x) for x in p.communicate(timeout=300)[0].split()]
    assert len(pids) == 2 and gone(pids, 60)  # they are still importing torch

def test_a_cwd_full_of_traps_and_no_main_guard(tmp_path):
    "Modules lying about shadow nothing; a script needs no guard; runpy has no complaint."
    for name in ('json', 'socket', 'r1nb', 'select'): (tmp_path/f'{name}.py').write_text('1/0')
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'prog.py').write_text('from r1nb.ranks import fit, helpers\n'
        "with helpers(2, 'r1nb.ranks:fit', {}) as r: print(len(set(fit(r)['digests'])))\n")
    env = dict(os.environ, PYTHONPATH=REPO)
    r = subprocess.run([sys.executable, 'bin/prog.py'], cwd=tmp_path, env=env, text=True,
                       capture_output=True, timeout=300)
    assert (r.stdout, r.stderr) == ('1\n', '')

@pytest.mark.skipif(not shutil.which('unshare'), reason='needs unshare')
def test_a_machine_whose_name_nobody_knows(tmp_path):
    "Its own host name does not resolve, and the first network interface is a dead end."
    setup = 'hostname no-such-host.invalid && ip link set lo up'
    if subprocess.run(['unshare', '-u', '-n', 'sh', '-c', setup], capture_output=True).returncode:
        pytest.skip('namespaces are not allowed here')
    code = ("from r1nb.ranks import fit, helpers\n"
            "with helpers(2, 'r1nb.ranks:fit', {}) as r: print(len(set(fit(r)['digests'])))")
    r = subprocess.run(['unshare', '-u', '-n', 'sh', '-c', f'{setup} && exec "$0" -c "$1"',
                        sys.executable, code], capture_output=True, text=True, timeout=300,
                       env=dict(os.environ, PYTHONPATH=REPO))
    assert (r.stdout, r.stderr) == ('1\n', '')
