"""The command as a user meets it: in a process of its own, with everything going wrong."""
import json, math, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest
from r1nb.cli import main

ROOT = Path(__file__).parent.parent
MAIN = 'import sys; from r1nb.cli import main; sys.exit(main())'
FAKE = '''
import sys, types, time, errno
from pathlib import Path
def run(preset='nano', seed=0, out=None, steps=None, device='auto', reward='accuracy',
        resume=False, view=None, **kw):
    view.stage('base', 2); view.step(0, reward=.1)
    what = {what!r}
    if what == 'wait': print('ready', flush=True); time.sleep(60)
    if what == 'bug': return [][1]
    if what == 'full': raise OSError(errno.ENOSPC, 'No space left on device', 'x/metrics.csv')
    Path(out).mkdir(parents=True, exist_ok=True)
    return dict(base=dict(pass1=.5, ci95=(.4, .6), n=100, mean_tokens=50, seconds=3),
                cons={{'1': .5, '4': .6}}, wall_seconds=12, seed=seed)
sys.modules['r1nb.pipeline'] = types.SimpleNamespace(PRESETS=dict(nano=1, mini=2), run=run)
'''

def start(*args, code='', **kw):
    env = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING='utf-8', COLUMNS='80')
    command = [sys.executable, '-c', code + MAIN, *map(str, args)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **kw)

def r1nb(*args, **kw):
    p = start(*args, **kw)
    out, err = p.communicate(timeout=120)
    return p.returncode, out, err

def test_help_imports_nothing_heavy():
    # numpy and tokenizers, which `curate` and `process` bring, take a tenth of a second together
    heavy = ('torch', 'transformers', 'matplotlib', 'rich', 'IPython', 'datasets', 'pint',
             'pandas', 'pyarrow', 'sympy')
    code = ('import sys\nfrom r1nb.cli import main\n'
            'for a in ([], ["--help"], ["--version"], ["run", "--help"], ["cost", "--help"],\n'
            '    ["cost", "train", "--help"], ["claims", "--help"]): assert main(a) == 0\n'
            f'print([m for m in {heavy} if m in sys.modules])')
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                       env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert r.returncode == 0 and r.stdout.strip().endswith('[]'), r.stdout + r.stderr

def test_help_and_version():
    from r1nb import __version__
    code, out, _ = r1nb('--help')
    listed = re.findall(r'^  ([\w-]+) ', out.split('Commands:')[1], re.M)
    assert code == 0 and listed == ['run', 'report', 'sample', 'doctor', 'verify', 'run-tests',
                                   'process', 'generate', 'curate', 'claims', 'hardware', 'cost']
    assert r1nb('--version')[1].strip() == f'r1nb {__version__}'

@pytest.mark.parametrize('args, says', [
    (['run', '--seed', '-1'], 'seed -1'), (['run', '--seed', 'x'], '--seed x'),
    (['run', '--seed', '9'*30], 'too large'), (['run', '--steps', '0'], 'steps 0'),
    (['run', '--device', 'cdua'], "did you mean 'cuda'"),
    (['run', '--reward', 'rand'], "did you mean 'random'"),
    (['run', '--preset', 'nno'], "did you mean 'nano'?): choose nano or mini"),
    (['run', '--out', str(ROOT/'tests')], '--resume'), (['run', '--out', __file__], 'is a file'),
    (['run', '--out', 'x'*300], 'mend that'), (['run', '--sed', '1'], '--seed'),
    (['run', 'extra'], 'extra'), (['reprot'], "Did you mean 'report'"), (['report'], 'RUN'),
    (['report', '/nowhere/at/all'], '/nowhere/at/all'), (['report', 'a\nb\x1b[2J'], 'a b\ufffd[2J'),
    (['sample', '/nowhere', 'Make'], '/nowhere')])
def test_mistakes_are_one_line(args, says):
    one_line(says, *args, code=FAKE.format(what=''))

def one_line(says, *args, **kw):
    code, out, err = r1nb(*args, **kw)
    assert code == 2 and out == '', (code, out, err)
    assert err.count('\n') == 1 and says in err and 'Traceback' not in err, err

NANO = ROOT/'r1nb'/'assets'/'nano'
ASK = 'Make 43 from 20 4 16 11 .'

@pytest.mark.parametrize('args, says', [
    ([''], 'is empty'), (['Make 43 from bananas .'], "'bananas'"), (['Make <|end|>'], "'<|end|>'"),
    (['Make '*2000], 'shorten the prompt'), (['Make '*300], 'lower max_new to 211'),
    ([ASK, '--max-new', 0], 'max_new 0'), ([ASK, '--seed', -1], 'seed -1'),
    ([ASK, '--temperature', 'nan'], 'temperature nan'), ([ASK, '--temperature', 1e-40], '1e-40')])
def test_mistakes_of_asking(capfd, args, says): asked(capfd, says, NANO, *args)

def asked(capfd, says, *args):
    "`one_line` in this process, which loads torch once."
    assert main(['sample', *map(str, args)]) == 2
    out, err = capfd.readouterr()
    assert out == '' and err.count('\n') == 1 and says in err, err

def damage(folder, how):
    "A copy of the shipped base with one thing wrong in it."
    from safetensors.torch import load_file, save_file
    weights = shutil.copytree(NANO, folder)/'model.safetensors'
    state = load_file(weights)
    name = sorted(state)[2]
    if how == 'cut': weights.write_bytes(weights.read_bytes()[:100_000])
    elif how == 'gone': weights.unlink()
    elif how == 'missing': save_file({k: v for k, v in state.items() if k != name}, weights)
    elif how == 'extra': save_file(state | {'odd': state[name].clone()}, weights)
    elif how == 'shape': save_file(state | {name: state[name][:3].clone()}, weights)
    elif how == 'nan': save_file(state | {name: state[name]*math.nan}, weights)
    else: (folder/how).write_text('{"a":')
    return name

@pytest.mark.parametrize('how, says', [
    ('cut', 'is damaged'), ('gone', 'no model.safetensors'), ('missing', 'lacks 1 tensor'),
    ('extra', "'odd'"), ('shape', 'config.json wants'), ('nan', 'NaN'),
    ('config.json', 'config.json is not'), ('tokenizer.json', 'tokenizer.json is damaged')])
def test_damaged_checkpoints(tmp_path, capfd, how, says):
    name = damage(tmp_path/'c', how)
    asked(capfd, says, tmp_path/'c', ASK)
    if how in ('missing', 'shape', 'nan'): asked(capfd, name, tmp_path/'c', ASK)

def test_sample_on_a_latin_terminal(capfd):
    plain = "import sys; sys.stdout.reconfigure(encoding='latin-1', errors='strict'); "
    ask = ['sample', str(NANO), ASK, '--temperature', '100']
    code, out, err = r1nb(*ask, code=plain)
    assert (code, err) == (0, '') and out.isascii(), (code, out, err)
    assert main(ask) == 0 and not capfd.readouterr().out.isascii(), 'nothing to replace: other seed'

def test_run_reports(tmp_path):
    fine = FAKE.format(what='')
    code, out, err = r1nb('run', '--seed', 3, '--out', tmp_path/'r', '--quiet', code=fine)
    assert (code, err) == (0, ''), err
    for s in ('50.0 %', 'of 4 60.0 %', f'report: {tmp_path}/r/report.html'): assert s in out
    assert '== base' not in out
    code, out, _ = r1nb('run', '--plain', '--out', tmp_path/'s', code=fine)
    assert code == 0 and '== base' in out
    (tmp_path/'r'/'x').touch()
    assert r1nb('run', '--out', tmp_path/'r', code=fine)[0] == 2
    assert r1nb('run', '--out', tmp_path/'r', '--resume', code=fine)[0] == 0

def test_a_bug_is_one_line_and_a_file(tmp_path):
    code, out, err = r1nb('run', '--out', tmp_path/'r', '--quiet', code=FAKE.format(what='bug'))
    assert code == 1 and err.count('\n') == 1 and 'IndexError' in err
    file = Path(re.search(r'saved in (.*)\)', err)[1])
    assert 'Traceback' in file.read_text() and 'in run\nIndexError' in file.read_text()
    file.unlink()

def test_a_bug_without_a_disk_shows_itself(tmp_path):
    full = FAKE.format(what='bug') + '''
import tempfile
def mkstemp(*a): raise OSError(28, 'full')
tempfile.mkstemp = mkstemp
'''
    code, out, err = r1nb('run', '--out', tmp_path/'r', '--quiet', code=full)
    assert code == 1 and 'Traceback' in err and 'IndexError' in err

def test_full_disk(tmp_path):
    code, out, err = r1nb('run', '--out', tmp_path/'r', '--quiet', code=FAKE.format(what='full'))
    assert code == 2 and err.count('\n') == 1 and 'No space left' in err and '--resume' in err

def test_ctrl_c_says_how_to_go_on(tmp_path):
    p = start('run', '--seed', 7, '--out', tmp_path/'a b', '--quiet', code=FAKE.format(what='wait'))
    assert p.stdout.readline() == 'ready\n'
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130 and 'Traceback' not in err
    again = f"r1nb run --seed 7 --out '{tmp_path}/a b' --quiet --resume"
    assert err.strip().splitlines()[-1].endswith(again)

def test_a_reader_that_leaves():
    p = start('doctor', '--json')
    p.stdout.close()
    err = p.stderr.read()
    assert p.wait(30) in (0, 141) and 'Traceback' not in err and 'Exception' not in err, err

def test_doctor():
    code, out, err = r1nb('doctor', '--json')
    c = json.loads(out)
    assert code == 0 and c['cores'] >= 1
    assert {'python', 'torch', 'compilers', 'extras', 'ram_gib'} <= set(c)
    code, out, err = r1nb('doctor')
    assert code == 0 and c['python'] in out
    for extra, names in c['extras'].items():
        assert f'[{extra}] ' in out
        if None in names.values(): assert f'pip install "r1nb[{extra}]"' in out

def test_report_command(tmp_path):
    from test_report import make_run
    code, out, err = r1nb('report', make_run(tmp_path/'run', ('base',)))
    assert code == 0 and Path(out.strip()).read_text().startswith('<!doctype html>')

def test_verify_grades_a_file(tmp_path):
    pytest.importorskip('math_verify')
    rows = [dict(gold='1/2', response=r'\boxed{0.5}'), dict(gold='7', response='It is 8.')]
    path = tmp_path/'answers.jsonl'
    path.write_text('\n\n'.join(map(json.dumps, rows)))
    code, out, err = r1nb('verify', str(path))
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(v['line'], v['answer']) for v in found] == [(1, 1.), (3, 0.)]
    assert all(v['reason'] for v in found) and '2 answers, 1 right' in err
    to = tmp_path/'verdicts.jsonl'
    assert r1nb('verify', str(path), '--out', str(to))[0] == 0 and to.read_text() == out

@pytest.mark.parametrize('text, says', [
    ('{"gold": "1"}', "line 1: no field 'response'"), ('nonsense', 'line 1: not a JSON object'),
    ('{"gold": [1], "response": "1"}', 'line 1: gold is [1]')])
def test_verify_names_the_bad_line(tmp_path, text, says):
    pytest.importorskip('math_verify')
    path = tmp_path/'bad.jsonl'
    path.write_text(text)
    code, out, err = r1nb('verify', str(path))
    assert code == 2 and says in err and err.count('\n') == 1 and 'Traceback' not in err
