"""`r1nb run-tests`: rows of every kind, broken rows, the weak sandbox by request only."""
import json, os, threading
from pathlib import Path
import pytest, typer
from typer.testing import CliRunner
from r1nb import sandbox, trials
from r1nb.core import R1Error
from r1nb.sandbox import isolation

HERE = Path(__file__).parent
STRONG = not isolation().startswith('weak')
needs_walls = pytest.mark.skipif(not STRONG, reason=f'no isolation here: {isolation()}')
GOOD = dict(program='def f(x): return x*x', tests='assert f(3) == 9')

def command(*args):
    app = typer.Typer()
    app.callback()(lambda: None)
    trials.join(app)
    return CliRunner().invoke(app, ['run-tests', *map(str, args)])

def file(tmp_path, *rows):
    path = tmp_path/'rows.jsonl'
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path

def verdicts(path): return [json.loads(s) for s in path.read_text().splitlines()]

@needs_walls
def test_rows_of_every_kind(tmp_path):
    human = dict(task_id='HumanEval/x', prompt='def f(x):\n    "Square."\n', entry_point='f',
                 test='def check(candidate):\n    assert candidate(3) == 9\n',
                 canonical_solution='    return x*x\n')
    mbpp = dict(task_id=7, text='square', code='def f(x): return x*x', test_setup_code='',
                test_list=['assert f(3) == 9', 'assert f(2) == 4'])
    rows = [(GOOD, 1), (GOOD | {'program': 'def f(x): return 9', 'tests': ['assert f(3) == 9',
        'assert f(2) == 4']}, 0), (human, 1), (mbpp, 1),
            (human | {'completion': '    return 9\n'}, 1),
        (human | {'program': 'def f(x): return x'}, 0),
        (mbpp | {'program': 'def f(x): return 9'}, 0),
        (GOOD | {'program': None}, 0), (GOOD | {'program': 7}, 0), (GOOD | {'program': ''}, 0),
        (GOOD | {'program': 'x'*(1 << 19)}, 0), (GOOD | {'program': '\ud800'}, 0),
        (GOOD | {'tests': 'assert f(3) =='}, 0), (mbpp | {'test_list': ['assert (']}, 0),
        (GOOD | {'program': 'import os; os._exit(0)'}, 0), (GOOD, 1)]
    path, out = file(tmp_path, *(r for r, _ in rows)), tmp_path/'out.jsonl'
    r = command(path, '--out', out, '--seconds', 2)
    assert r.exit_code == 0, r.output
    said = verdicts(out)
    assert [v['answer'] for v in said] == [float(ok) for _, ok in rows], said
    assert [v['line'] for v in said] == list(range(1, len(rows) + 1))
    assert said[2]['id'] == 'HumanEval/x' and 'id' not in said[0] and all(v['reason'] for v in said)
    assert not out.with_name('out.jsonl.part').exists()

@pytest.mark.parametrize('row, says', [
    ('{', 'line 2: not a JSON object'), ('[]', 'line 2: not a JSON object'),
    ('['*10**5, 'line 2'),
    ({'program': 'x'}, 'line 2: no field tests'),
    ({'tests': 'assert 1'}, 'line 2: no field program'),
    ({'program': 'x', 'tests': {'a': 1}}, 'line 2: tests are'), ({'program': 'x', 'test': 'y',
        'entry_point': 'f'}, 'line 2: no prompt')])
def test_broken_rows_are_named(tmp_path, row, says):
    with pytest.raises(R1Error, match=says):
        rows = trials.judge_programs(file(tmp_path, GOOD, row), None)
        list(rows)

def test_missing_file(tmp_path):
    with pytest.raises(R1Error, match='nowhere'):
        list(trials.judge_programs(tmp_path/'nowhere', None))

@needs_walls
def test_the_input_is_not_overwritten(tmp_path):
    path = file(tmp_path, GOOD)
    r = command(path, '--out', path)
    assert isinstance(r.exception, R1Error) and 'input itself' in str(r.exception)

def test_the_weak_sandbox_wants_to_be_asked(tmp_path, monkeypatch):
    "Where nothing isolates: refused without the switch, loud with it."
    monkeypatch.setattr(trials, 'isolation', lambda: 'weak: nothing here')
    path, out = file(tmp_path, GOOD, GOOD | {'program': 'def f(x): return 0'}), tmp_path/'out.jsonl'
    r = command(path, '--out', out)
    assert isinstance(r.exception, R1Error) and '--allow-weak-sandbox' in str(r.exception)
    assert not out.exists() and '\n' not in str(r.exception)
    r = command(path, '--out', out, '--allow-weak-sandbox')
    assert r.exit_code == 0 and 'WEAK SANDBOX' in r.output and '1 passed' in r.output
    assert [v['answer'] for v in verdicts(out)] == [1., 0.]

@pytest.mark.parametrize('missing', ['bwrap', 'both'])
def test_what_is_missing_is_noticed(monkeypatch, missing):
    "No bubblewrap: namespaces by hand. Neither: weak, and the reasons are given."
    real = sandbox.probe
    gone = ('bwrap',) if missing == 'bwrap' else ('bwrap', 'namespaces')
    monkeypatch.setattr(sandbox, 'probe', lambda level: (False, f'{level}: not here')
                        if level in gone else real(level))
    said = sandbox.isolation()
    if missing == 'both': assert said.startswith('weak') and 'namespaces: not here' in said
    elif STRONG: assert said.split(':')[0] in ('namespaces', 'weak') and 'bwrap: not here' in said

@needs_walls
def test_programs_of_models(tmp_path):
    "Graded programs that travel with the repository: our verdict is the graded one."
    rows = verdicts(HERE/'fixtures/programs.jsonl')
    out = tmp_path/'out.jsonl'
    r = command(HERE/'fixtures/programs.jsonl', '--out', out)
    assert r.exit_code == 0, r.output
    assert [bool(v['answer']) for v in verdicts(out)] == [r['passed'] for r in rows]
    assert {r['passed'] for r in rows} == {True, False}

@needs_walls
def test_a_pipe_and_a_folder_and_going_on(tmp_path):
    "A pipe is read as it comes; a folder is refused before the work; a killed run goes on."
    rows = [GOOD, GOOD | {'program': 'def f(x): return 0'}]*300
    path, out = file(tmp_path, *rows), tmp_path/'out.jsonl'
    with pytest.raises(R1Error, match='is a folder'):
        trials.Verdicts(path, tmp_path, 'x', print, False)
    with pytest.raises(R1Error, match='nothing|there is no'):
        trials.Verdicts(path, out, 'x', print, True)
    os.mkfifo(tmp_path/'pipe')
    threading.Thread(target=lambda: (tmp_path/'pipe').write_bytes(path.read_bytes())).start()
    assert command(tmp_path/'pipe', '--out', out).exit_code == 0
    whole = out.read_bytes()
    assert whole.count(b'\n') == 600
    part = tmp_path/'again.jsonl.part'
    for cut in (0, 1, 700, len(whole) - 3, len(whole)):
        part.write_bytes(whole[:cut])
        r = command(path, '--out', tmp_path/'again.jsonl', '--resume')
        assert r.exit_code == 0 and '600 programs, 300 passed' in r.output
        assert (tmp_path/'again.jsonl').read_bytes() == whole and not part.exists()
