"""The command: problems, prices, progress, exit status."""
import io, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
import typer
from fake_teacher import Fake, sums
from typer.testing import CliRunner
from r1nb import order
from r1nb.ask import Plan
from r1nb.core import R1Error
from r1nb.endpoint import Busy
from r1nb.generate import check_run, generate
from r1nb.order import ProblemFile, Watch, outcome, read_problems
from r1nb.traces import run_rows

LOCAL = 'local:nano@licence=MIT,usd_out=2,batch=2'

@pytest.fixture
def app():
    app = typer.Typer()
    app.command('other')(lambda: None)
    order.join(app)
    return app

def call(app, *args):
    r = CliRunner().invoke(app, ['generate', *map(str, args)])
    if r.exception and not isinstance(r.exception, SystemExit): raise r.exception
    return r.exit_code, r.stdout, r.stderr

def test_files_of_problems(tmp_path):
    f = tmp_path/'p.jsonl'
    f.write_text('{"prompt": "a", "gold": 3}\n\n{"question": "b", "answer": "4", "id": 7, '
                 '"task": "countdown", "meta": {"target": 3}}\n{"problem": "c"}\n')
    a, b, c = ProblemFile(f)
    assert (a.id, a.gold, b.id, b.meta, c.gold, c.id) == ('p-1', '3', '7', {'target': 3}, '', 'p-4')
    assert len(list(ProblemFile(f))) == len(list(read_problems(str(f)))) == 3
    for line, why in {'[]': 'not a JSON object', '{"text": 1}': 'no prompt .has text',
                      '{"prompt": "a", "gold": [1]}': 'gold is', '{"prompt": ""}': 'no prompt',
                      '{"prompt": "a", "meta": 3}': 'meta is', '\xff': 'not a JSON object'}.items():
        f.write_bytes(b'{"prompt": "a"}\n' + line.encode('latin-1') + b'\n')
        with pytest.raises(R1Error, match=f'p.jsonl, line 2: {why}'): list(ProblemFile(f))
    with pytest.raises(R1Error, match='no such file'): list(ProblemFile(tmp_path/'none'))

@pytest.mark.parametrize('source, why', [
    ('task:chess', "no task 'chess'"), ('task:countdown?m=3', "'m' is no setting"),
    ('task:countdown?n=x', 'a whole number'), ('task:countdown?n', "n=''"),
    ('task:countdown?split=test', 'choose')])
def test_wrong_tasks(source, why):
    with pytest.raises(R1Error, match=why): read_problems(source)

def test_tasks_to_order():
    assert len(read_problems('task:countdown?n=7&seed=3&split=held_out')) == 7
    assert read_problems('task:arithmetic?n=2')[0].prompt.startswith('Compute')

def test_the_command(app, tmp_path):
    out = tmp_path/'r'
    args = ['task:countdown?n=5', '--teacher', LOCAL, '--n', 2, '--max-new', 40, '--out', out]
    code, said, _ = call(app, *args, '--dry-run')
    assert code == 0 and 'at most' in said and 'no limit' in said and not out.exists()
    code, said, told = call(app, *args, '--budget-usd', .0005)
    assert code == 3 and '--resume' in said and 'over the budget' in said and 'at most' in told
    with pytest.raises(R1Error, match='--resume'): call(app, *args)
    code, said, told = call(app, *args, '--resume')
    assert code == 0 and '10 rows' in said and '10/10 rows' in told
    assert check_run(out)['complete']
    row = next(run_rows(out))
    assert row['source']['engine'] == 'local' and len(row['source']['weights']) == 64
    assert row['licence'] == 'MIT' and row['usd'] == pytest.approx(row['tokens']*2e-6)
    card = json.loads((out/'card.json').read_text())
    assert card['teachers'][0]['sha256'] == row['source']['weights']
    for bad, why in {'nano': 'names no teacher', 'local:none': 'no checkpoint',
                     'local:nano@price=1': 'no setting'}.items():
        with pytest.raises(R1Error, match=why):
            call(app, 'task:countdown?n=5', '--teacher', bad, '--out', tmp_path/'s')
    assert not (tmp_path/'s').exists()

def test_lines_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    watch = Watch(400, every=0., out=out)
    generate(sums(100), [Fake(usd_out=1., pause=.003)], tmp_path/'r', watch=watch)
    watch.close()
    lines = out.getvalue().splitlines()
    assert len(lines) > 2 and re.fullmatch(
       r'400/400 rows · [\d.]+% kept · [\d,]+ tokens/s · \$0.\d{4} · 0 faults · 00:00:00 left',
        lines[-1])

def test_a_bar_on_a_terminal(tmp_path):
    class Screen(io.StringIO):
        def isatty(self): return True
    out = Screen()
    watch = Watch(400, out=out)
    generate(sums(100), [Fake(pause=.003)], tmp_path/'r', watch=watch)
    watch.close()
    assert '400/400 rows' in out.getvalue()

def test_control_c_keeps_what_is_paid(tmp_path):
    text = (f'import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n'
            'from fake_teacher import Fake, sums\nfrom r1nb.generate import generate\n'
            'from r1nb.ask import Plan\n'
            f'r = generate(sums(3000), [Fake(workers=4, fixed=.05)], {str(tmp_path/"r")!r}, '
            'watch=lambda *a: print("tick", flush=True))\nprint("OVER", r["complete"])')
    p = subprocess.Popen([sys.executable, '-c', text], stdout=subprocess.PIPE, text=True)
    for _ in range(4): p.stdout.readline()
    p.send_signal(signal.SIGINT)
    said, _ = p.communicate(timeout=20)
    assert p.returncode == 0 and 'OVER False' in said
    journal = (tmp_path/'r'/'journal.jsonl').read_text()
    found = check_run(tmp_path/'r')
    assert found['rows'] and found['repeated'] == 0 and '"begin"' not in journal

def test_it_stays_light():
    code = 'import sys, r1nb.order; print([m for m in ("torch", "pyarrow", "rich.progress") ' \
           'if m in sys.modules])'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == '[]', r.stdout + r.stderr

def test_a_plan_that_no_teacher_would_take(app, tmp_path):
    "Said before the run, with the value; not as calls that are put aside."
    for args, why in {('--top-p', '0'): 'top_p=0.0', ('--top-p', '2'): 'top_p=2.0',
                      ('--temperature', 'inf'): 'temperature=inf',
                      ('--temperature', '0'): 'n=4 at temperature 0',
                      ('--expect', 'inf'): 'expect=inf'}.items():
        with pytest.raises(R1Error, match=why):
            call(app, 'task:countdown?n=5', '--teacher', 'local:nano', '--out', tmp_path/'s', *args)
    assert not (tmp_path/'s').exists()

def test_a_pipe_cannot_be_gone_through_twice(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for source in ('-', tmp_path/'pipe', tmp_path):
        with pytest.raises(R1Error, match='is no file'): read_problems(str(source))

def test_faults_are_told_once_and_the_last_reason_at_the_end(tmp_path):
    class Down(Fake):
        def ask(self, *a, **k): raise Busy('the server said: \x1b[31mno', .01)
    out = io.StringIO()
    plan = Plan(n=1, tries=2, pause=.01)
    report = generate(sums(5), [Down()], tmp_path/'r', plan, watch=Watch(5, out=out))
    assert out.getvalue().count('the server said') == 1 and '\x1b' not in out.getvalue()
    assert 'the last because: the server said: [31mno' in outcome(report, tmp_path/'r')
