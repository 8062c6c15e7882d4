"""The whole run, killed everywhere and damaged on purpose: it ends with the figures of an unbroken
one, or says in one line why not and loses nothing."""
import errno, json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
import r1nb.core, r1nb.lineage, r1nb.pipeline as pipeline
from r1nb.core import R1Error
from r1nb.lineage import gather, read_card
from r1nb.pipeline import FIGURES, PRESETS, SHOWN, Preset, run
from r1nb.r1_zero import ZeroConfig
from r1nb.view import View

TINY = Preset(zero=ZeroConfig(steps=5, prompts=2, G=4, max_new=40), held_out=12, max_new=50,
              train=100, asked=40, epochs=2, batch=2, votes=4, voters=4, save_every=2)
ROOT = Path(__file__).parent.parent

# what a doomed process runs: the same order, and an accident at a place named by TINY's tests
DOOMED = '''
import os, signal, sys
from pathlib import Path
import r1nb.core as core, r1nb.lineage as lineage, r1nb.pipeline as pipeline
from r1nb.model import R1Model
from r1nb.pipeline import PRESETS, Preset, run
from r1nb.r1_zero import ZeroConfig
from r1nb.view import View
PRESETS['tiny'] = {preset!r}
pipeline.usable_cores = lambda: {cores}
stage, point = {where!r}
def die(): os.kill(os.getpid(), signal.SIGKILL)
def helper():
    for p in Path('/proc').glob('[0-9]*/stat'):
        try: fields = p.read_text().rpartition(')')[2].split()
        except OSError: continue
        if int(fields[1]) == os.getpid(): os.kill(int(p.parent.name), signal.SIGKILL)
finish, log, save = core.Stage.finish, core.Log.append, R1Model.save_pretrained
def doomed_finish(self, **card):
    if (self.path.name, 'card') == (stage, point): die()
    finish(self, **card)
    if (self.path.name, 'after') == (stage, point): die()
def doomed_log(self, **row):
    log(self, **row)
    if self.path.parent.name == stage and point in (row['step'], -row['step']):
        die() if point > 0 else helper()
def doomed_save(self, folder):
    if (Path(folder).parent.name, 'checkpoint') == (stage, point): die()
    return save(self, folder)
core.Stage.finish, core.Log.append, R1Model.save_pretrained = doomed_finish, doomed_log, doomed_save
try: run('tiny', seed=3, out={out!r}, resume=True, view=View())
except core.R1Error as e: print(e); sys.exit(2)
'''

@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, 'tiny', TINY)
    monkeypatch.setattr(pipeline, 'usable_cores', lambda: 1)

def go(out, **kw): return run('tiny', **{'seed': 3, 'out': out, 'view': View(), **kw})

def doomed(out, stage, point, cores=1):
    code = DOOMED.format(preset=TINY, cores=cores, where=(stage, point), out=str(out))
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)

def figures(s): return {n: {k: s[n][k] for k in SHOWN} for n in FIGURES} | dict(cons=s['cons'])

def weights(out):
    return [(out/n/'checkpoint'/'model.safetensors').read_bytes()
            for n in ('zero', 'student_distilled', 'student_rl')]

def curves(out):
    drop = ('seconds',)
    return {n: [{k: v for k, v in r.items() if not k.endswith(drop)}
                for r in r1nb.core.Log(out/n/'metrics.csv').rows()]
            for n in ('zero', 'student_distilled', 'student_rl')}

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "One process, never interrupted."
    out = tmp_path_factory.mktemp('runs')/'unbroken'
    with pytest.MonkeyPatch.context() as m:
        m.setitem(PRESETS, 'tiny', TINY)
        m.setattr(pipeline, 'usable_cores', lambda: 1)
        return out, go(out)

def fresh(unbroken, tmp_path, *without):
    "A copy of the unbroken run, some stages missing."
    out = tmp_path/'run'
    shutil.copytree(unbroken[0], out)
    for n in without: shutil.rmtree(out/n)
    return out


def test_summary(unbroken):
    out, s = unbroken
    assert set(s) == {*FIGURES, 'cons', 'wall_seconds', 'seed', 'version'}
    for n in FIGURES: assert set(s[n]) == {'pass1', 'ci95', 'n', 'mean_tokens', 'seconds'}
    assert list(s['cons']) == ['1', '2', '4'] and json.loads((out/'summary.json').read_text()) == s
    assert (out/'report.html').read_text().startswith('<!doctype html>')
    assert not list(out.rglob('state.safetensors')) and not list(out.rglob('*.tmp'))

def test_equal_compute_is_counted(unbroken):
    out, _ = unbroken
    card, step = read_card(out/'student_rl'), curves(out)['student_rl']
    of = card['budget']['of']
    assert of == {n: read_card(out/n)['flops'] for n in ('traces', 'student_distilled')}
    assert card['budget']['flops'] == sum(of.values()) <= card['flops'] == step[-1]['flops']
    assert step[-2]['flops'] < sum(of.values())

def test_no_path_of_this_machine_in_a_run(unbroken):
    out, _ = unbroken
    for f in [*out.rglob('*.json'), *out.rglob('*.jsonl'), out/'report.html']:
        text = f.read_text()
        assert str(ROOT) not in text and str(out.parent) not in text, f

def test_traces_keep_what_was_refused(unbroken):
    rows = [json.loads(l) for l in open(unbroken[0]/'traces'/'traces.jsonl')]
    assert len(rows) == TINY.asked and 0 < sum(r['kept'] for r in rows) < len(rows)
    bad = next(r for r in rows if not r['kept'])
    assert bad['verdict']['reason'] and bad['response'] and bad['licence'] == 'MIT'
    card = read_card(unbroken[0]/'traces')
    assert abs(sum(r['seconds'] for r in rows) - card['seconds']) < 1e-6*card['seconds'] + 1e-9
    assert abs(sum(r['usd'] for r in rows) - card['usd']) < 1e-9

def test_killed_again_and_again(unbroken, tmp_path):
    "SIGKILL before cards, inside GRPO and fine-tuning, between checkpoint and card, in the vote."
    out = tmp_path/'run'
    for stage, point in (('base', 'card'), ('zero', 3), ('zero', 'card'), ('traces', 'after'),
                         ('student_distilled', 3), ('student_rl', 'checkpoint'), ('vote', 'card')):
        r = doomed(out, stage, point)
        assert r.returncode == -signal.SIGKILL, (stage, point, r.stdout, r.stderr[-500:])
    assert not (out/'summary.json').exists()
    moved = out.rename(tmp_path/'elsewhere')
    s = go(moved, resume=True)
    assert figures(s) == figures(unbroken[1])
    assert weights(moved) == weights(unbroken[0]) and curves(moved) == curves(unbroken[0])
    assert not list(moved.rglob('state.safetensors'))

def test_two_processes(tmp_path, monkeypatch):
    "Either of two processes killed; resumed with the ranks of the folder, not of the machine."
    monkeypatch.setattr(pipeline, 'usable_cores', lambda: 2)
    whole, out = go(tmp_path/'whole'), tmp_path/'run'
    assert doomed(out, 'zero', 3, cores=2).returncode == -signal.SIGKILL
    r = doomed(out, 'student_rl', -1, cores=2)
    assert r.returncode == 2 and r.stdout.count('\n') == 1 and 'helper process' in r.stdout, r
    monkeypatch.setattr(pipeline, 'usable_cores', lambda: 1)
    assert figures(go(out, resume=True)) == figures(whole)
    assert weights(out) == weights(tmp_path/'whole')
    assert json.loads((out/'config.json').read_text())['ranks'] == 2
    assert helpers_of(out) == []

def helpers_of(out):
    "Processes that still mention this run folder."
    found = []
    for p in Path('/proc').glob('[0-9]*/cmdline'):
        try: text = p.read_bytes().decode(errors='replace')
        except OSError: continue
        if 'r1nb.ranks' in text and str(out) in text: found.append(text)
    return found

def test_ctrl_c_leaves_nobody(tmp_path):
    code = ('import sys; sys.argv=["r1nb"]\nimport r1nb.pipeline as p\np.usable_cores = lambda: 2\n'
            'from r1nb.r1_zero import ZeroConfig\nfrom r1nb.pipeline import Preset\n'
            f'p.PRESETS["nano"] = {replace(TINY, held_out=50_000)!r}\n'
            'from r1nb.cli import main\n'
            f'sys.exit(main(["run", "--quiet", "--out", {str(tmp_path/"run")!r}]))')
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    p = subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.PIPE, text=True,
                         start_new_session=True)
    while not (tmp_path/'run'/'base'/'config.json').exists():
        assert p.poll() is None, p.stderr.read()
        time.sleep(.05)
    time.sleep(.5)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate(timeout=30)[1]
    assert p.returncode == 130 and err.count('\n') == 1 and '--resume' in err, err
    with pytest.raises(ProcessLookupError):
        for _ in range(100): os.killpg(p.pid, 0); time.sleep(.05)

@pytest.mark.parametrize('kw, says', [
    (dict(preset='nno'), "preset 'nno'"), (dict(seed=-1), 'seed -1'), (dict(seed=1.5), 'seed 1.5'),
    (dict(steps=0), 'steps 0'), (dict(device='gpu'), "device 'gpu'"), (dict(reward='x'), "'x'")])
def test_arguments(tmp_path, kw, says):
    with pytest.raises(R1Error, match=says): run(**{'out': tmp_path/'r', 'view': View(), **kw})
    assert not (tmp_path/'r').exists()

def test_a_held_folder(unbroken, tmp_path):
    out, before = unbroken[0], r1nb.core.sha256(unbroken[0])
    with pytest.raises(R1Error, match='already holds files'): go(out)
    for kw, says in ((dict(seed=4), 'seed was 3 and is now 4'),
                     (dict(steps=9), 'steps was 5 and is now 9'),
                     (dict(reward='random'), 'reward was accuracy and is now random')):
        with pytest.raises(R1Error, match=says) as e: go(out, resume=True, **kw)
        assert '\n' not in str(e.value)
    (tmp_path/'file').touch()
    with pytest.raises(R1Error): go(tmp_path/'file')
    with r1nb.lineage.alone(out), pytest.raises(R1Error, match='in use'): go(out, resume=True)
    assert r1nb.core.sha256(out) == before

def test_another_recipe_on_resume(unbroken, tmp_path, monkeypatch):
    out = fresh(unbroken, tmp_path)
    monkeypatch.setitem(PRESETS, 'tiny', replace(TINY, lr=1e-3))
    with pytest.raises(R1Error, match='lr was 0.002 and is now 0.001'): go(out, resume=True)

def cut(path, keep=.6):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data)*keep)])

def test_damage(unbroken, tmp_path):
    "A line that names the file; the named mending; the same figures."
    out = fresh(unbroken, tmp_path, 'vote', 'student_rl')
    good, same = unbroken[0], figures(unbroken[1])
    for file in ('zero/checkpoint/model.safetensors', 'zero/card.json', 'traces/traces.jsonl'):
        cut(out/file)
        named = file.removesuffix('/model.safetensors')
        with pytest.raises(R1Error, match=named) as e: go(out, resume=True)
        assert '\n' not in str(e.value)
        shutil.copy(good/file, out/file)
    flipped = out/'traces'/'traces.jsonl'
    flipped.write_text(flipped.read_text().replace('Make', 'make', 1))
    with pytest.raises(R1Error, match='has changed since'): go(out, resume=True)
    shutil.rmtree(out/'traces')
    shutil.rmtree(out/'zero')
    assert figures(go(out, resume=True)) == same

def test_damaged_state_and_log(unbroken, tmp_path):
    out = tmp_path/'run'
    assert doomed(out, 'zero', 4).returncode == -signal.SIGKILL
    state, log = out/'zero'/'state.safetensors', out/'zero'/'metrics.csv'
    kept, rows = state.read_bytes(), log.read_bytes()
    log.write_bytes(b''.join(rows.splitlines(True)[:3]))
    with pytest.raises(R1Error, match='holds 2 of the 4 steps done'): go(out, resume=True)
    log.write_bytes(rows)
    for bad in (kept[:len(kept)//2], b'', b'x'*1000):
        state.write_bytes(bad)
        with pytest.raises(R1Error, match='state.safetensors') as e: go(out, resume=True)
        assert '\n' not in str(e.value) and log.read_bytes() == rows
    state.unlink()
    assert figures(go(out, resume=True)) == figures(unbroken[1])

def test_full_disk(unbroken, tmp_path, monkeypatch):
    "fsync says ENOSPC after 3 writings, after 9, … until the run is through."
    out, real, count, lines = tmp_path/'run', os.fsync, [0], []
    for patience in (3, 9, 15, 25, 10**9):
        count[0] = 0
        def fsync(fd):
            count[0] += 1
            if count[0] >= patience: raise OSError(errno.ENOSPC, 'No space left on device')
            real(fd)
        monkeypatch.setattr(os, 'fsync', fsync)
        try: s = go(out, resume=True)
        except R1Error as e: lines.append(str(e))
    assert len(lines) == 4 and all('disk is full' in l and '\n' not in l for l in lines), lines
    assert figures(s) == figures(unbroken[1]) and weights(out) == weights(unbroken[0])
    assert not list(out.rglob('.*.tmp'))

def test_seconds_add_up(tmp_path, monkeypatch):
    out, clock = tmp_path/'run', [0.]
    class Tick(r1nb.core.Meter):
        seconds = property(lambda self: clock[0])
        joules = property(lambda self: 2*clock[0])
    monkeypatch.setattr(r1nb.lineage, 'Meter', Tick)
    real = pipeline.zero
    def dying(*a):
        *rest, after = a
        def upto(n, opt, spent):
            clock[0] = n*10.
            after(n, opt, spent)
            if n == 3: raise KeyboardInterrupt
        return real(*rest, upto)
    monkeypatch.setattr(pipeline, 'zero', dying)
    with pytest.raises(KeyboardInterrupt): go(out)
    monkeypatch.setattr(pipeline, 'zero', real)
    clock[0] = 7.
    go(out, resume=True)
    card = read_card(out/'zero')
    assert (card['seconds'], card['joules']) == (27., 54.) # 20 when step 2 was saved, 7 since

def test_control_has_no_reward(tmp_path):
    s = go(tmp_path/'r', reward='random')
    assert json.loads((tmp_path/'r'/'zero'/'config.json').read_text())['reward'] == 'random' and s

def test_gather(unbroken, tmp_path):
    out, s = unbroken
    part = fresh(unbroken, tmp_path, 'traces', 'vote', *FIGURES[2:])
    d = gather([out, part, tmp_path/'nothing'], tmp_path/'g.json')
    a, b = d['runs']
    assert json.loads((tmp_path/'g.json').read_text()) == d and a['teacher'] == 'nano'
    assert set(a['figures']) == set(FIGURES) and set(b['figures']) == {'base', 'zero'}
    assert b['cons'] is None and len(b['curve']['accuracy']) == TINY.zero.steps
    assert a['figures']['zero']['pass1'] == pytest.approx(s['zero']['pass1'], rel=1e-4)
    student = gather([part], tmp_path/'h.json', {'other': TINY.student})
    assert student['runs'][0]['teacher'] == 'nano'
    with pytest.raises(R1Error, match='nothing to gather'): gather([tmp_path], tmp_path/'i.json')
