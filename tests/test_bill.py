"The commands of economics as a user meets them: through `r1nb`, with good, bad and absurd input."
import csv, json, math, os, pty, re, shlex, subprocess, sys
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from r1nb.cli import main
from r1nb.core import Stage

ROOT = Path(__file__).parent.parent
MAIN = 'import sys; from r1nb.cli import main; sys.exit(main())'

@pytest.fixture
def r1nb(capfd):
    "The real command in this process: (status, stdout, stderr)."
    def call(*args):
        capfd.readouterr()
        status = main([str(a) for a in args])
        return status, *capfd.readouterr()
    return call

def answer(r1nb, *args):
    status, out, err = r1nb(*args, '--json')
    assert status == 0 and err == '', err
    return json.loads(out)

def refused(r1nb, *args):
    status, out, err = r1nb(*args)
    assert status == 2 and out == '' and err.startswith('r1nb: '), (args, status, out[:200], err)
    assert err.count('\n') == 1 and len(err) < 600 and 'Traceback' not in err, err
    return err


# ---- cost train ------------------------------------------------------------------------------
def test_the_published_bill_in_a_process_of_its_own():
    command = 'cost train --gpu-hours 2788e3 --usd-per-gpu-hour 2 --json'.split()
    r = subprocess.run([sys.executable, '-c', MAIN, *command], capture_output=True, text=True,
                       env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert r.returncode == 0 and r.stderr == '' and json.loads(r.stdout)['cost_usd'] == 5576000

@pytest.mark.parametrize('options, key, want', [
    ('--gpu-hours 2788e3 --usd-per-gpu-hour 2', 'cost_usd', 5.576e6),
    ('--gpu-hours 2788e3 --usd-per-gpu-hour 1', 'cost_usd', 2.788e6),
    ('--gpu-hours 2788e3 --usd-per-gpu-hour 4', 'cost_usd', 11.152e6),
    ('--gpu-hours 147e3 --usd-per-gpu-hour 2', 'cost_usd', 294e3),
    ('--gpu-hours "2788e3 gpu_h" --usd-per-gpu-hour "2 usd/gpu_h"', 'cost_usd', 5.576e6),
    ('--gpu-hours "2788e3*60 gpu*minute" --usd-per-gpu-hour "200e-2 usd/(gpu*hour)"',
     'cost_usd', 5.576e6),
    ('--gpu-hours 2664e3 --gpus 2048', 'days', 2664e3/2048/24),
    ('--gpu-hours 2664e3 --active 37e9 --tokens 14.8e12', 'flop_per_gpu_second', 342.6e12),
    ('--params 671e9 --active 37e9 --tokens 14.8e12 --gpu H800 --mfu 0.35', 'gpu_hours', 2.6356e6),
    ('--params "671 Gparam" --active "37e9 param" --tokens "14.8 Ttoken" --mfu "35 %"',
     'gpu_hours', 2.6356e6),
    ('--params 7e9 --tokens 140e9 --mfu .5 --gpu h100', 'flop', 6*7e9*140e9)])
def test_train(r1nb, options, key, want):
    got = answer(r1nb, 'cost', 'train', *shlex.split(options))[key]
    rounded = key in ('gpu_hours', 'flop_per_gpu_second')
    assert got == pytest.approx(want, rel=2e-4 if rounded else 1e-12)

BAD = ['-1', '0', 'nan', 'inf', '-inf', '1e999', '', ' ', 'x', '1e40', '5 bananas', '1,000',
       '9**9**9', '__import__("os")', '5 usd**2', '\x1b[2J']
OPTIONS = {'--params': '671e9', '--active': '37e9', '--tokens': '14.8e12', '--mfu': '.35',
           '--usd-per-gpu-hour': '2', '--gpus': '2048'}

@pytest.mark.parametrize('option', list(OPTIONS))
@pytest.mark.parametrize('bad', BAD)
def test_train_refuses_every_bad_value(r1nb, option, bad):
    args = [a for kv in {**OPTIONS, option: bad}.items() for a in kv]
    err = refused(r1nb, 'cost', 'train', *args)
    assert option.strip('-').replace('-', '_') in err.replace('-', '_') and '\x1b' not in err

@pytest.mark.parametrize('bad', BAD + ['5 usd', '54 days', '3 gpu', '2 usd/gpu_h'])
def test_train_refuses_bad_hours(r1nb, bad):
    assert '--gpu-hours' in refused(r1nb, 'cost', 'train', '--gpu-hours', bad)

@pytest.mark.parametrize('args, says', [
    ([], 'missing'), (['--params', '671e9'], 'missing'),
    (['--tokens', '1e12', '--mfu', '.3'], 'missing'),
    (['--gpu-hours', '1', '--mfu', '.3'], 'not both'),
    (['--gpu-hours', '1', '--gpu', 'H8000'], 'H800'),
    (['--gpu-hours', '1', '--gpu', ''], 'unknown'),
    (['--gpu-hours', '1', '--gpus', '2.5'], 'whole'),
    (['--active', '2e9', '--params', '1e9', '--tokens', '1e9', '--mfu', '.3'], 'active'),
    (['--params', '1e9', '--tokens', '1e9', '--mfu', '1.5'], 'mfu'),
    (['--params', '1e9', '--tokens', '1e9', '--mfu', '40'], 'mfu'),
    (['--gpu-hours', '1', '--active', '37e9', '--tokens', '14.8e12'], 'more than H800 can do'),
    (['--usd-per-gpu-hour', '2 usd/h', '--gpu-hours', '1'], '--usd-per-gpu-hour'),
    (['--usd-per-gpu-hour', '2 usd/Mtoken', '--gpu-hours', '1'], '--usd-per-gpu-hour'),
    (['--gpu-hours'], 'requires an argument'), (['--gpu-hour', '1'], '--gpu-hours'),
    (['1'], 'unexpected')])
def test_train_refuses_what_does_not_fit_together(r1nb, args, says):
    assert says in refused(r1nb, 'cost', 'train', *args)

@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e3), st.floats(1.1, 10))
def test_a_bill_is_linear_in_hours_and_rent(hours, rent, times):
    from r1nb.training_cost import train_cost
    bill = lambda h, r: train_cost(h, usd_per_gpu_hour=r).cost_usd
    assert bill(hours, rent) >= 0
    assert math.isclose(bill(hours*times, rent), bill(hours, rent)*times)
    assert math.isclose(bill(hours, rent*times), bill(hours, rent)*times)


# ---- cost serve ------------------------------------------------------------------------------
def test_serve(r1nb):
    here = 'cost', 'serve', '--gpu', 'H800', '--gpus', 16, '--context', '4989 token'
    s = answer(r1nb, *here)
    assert (s['model'], s['gpu'], s['n_gpus'], s['context']) == ('R1', 'H800', 16, 4989)
    assert s['usd_per_million_output'] == pytest.approx(16*2/3600/s['tokens_per_second']*1e6)
    half = answer(r1nb, *here, '--share', '50 %')
    assert half['usd_per_million_output'] == pytest.approx(2*s['usd_per_million_output'])
    few = answer(r1nb, *here, '--batch', 8)
    assert few['usd_per_million_output'] > s['usd_per_million_output'] and few['batch'] == 8

@pytest.mark.parametrize('option', '--gpus --context --batch --weight-bits --cache-bits '
                         '--usd-per-gpu-hour --share --sold --accept --hits'.split())
@pytest.mark.parametrize('bad', BAD)
def test_serve_refuses_every_bad_value(r1nb, option, bad):
    if bad == '0' and option in ('--accept', '--hits'): return     # no drafts, no cache: fine
    err = refused(r1nb, 'cost', 'serve', option, bad)
    assert option.strip('-').replace('-', '_') in err.replace('-', '_')

@pytest.mark.parametrize('args, says', [
    (['--gpu', 'H800'], '--gpus 13'), (['--model', 'no-such'], 'no-such'),
    (['--gpu', 'x'], 'unknown'),
    (['--model', ''], ''), (['--model', str(ROOT)], ''), (['--model', __file__], ''),
    (['--gpus', '2.5'], 'whole'), (['--batch', '10000000'], 'batch'), (['--hits', '1'], 'hits'),
    (['--usd-per-gpu-hour', '2 usd'], '--usd-per-gpu-hour'), (['--context', '4096 GB'], 'context')])
def test_serve_refuses_what_does_not_fit(r1nb, args, says):
    assert says in refused(r1nb, 'cost', 'serve', *args)


# ---- cost run --------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path):
    for name, seconds, flop in (('zero', 134.6, 8.6e12), ('student_distilled', 35.5, .6e12)):
        card = dict(seconds=seconds, flops=flop, tokens=125e3, joules=1800.)
        Stage(tmp_path/'run'/name, {}).finish(**card)
    return tmp_path/'run'

def test_run(r1nb, folder):
    c = answer(r1nb, 'cost', 'run', folder, '--usd-per-hour', '0.1 usd/h')
    assert c['cost_usd'] == pytest.approx(170.1/3600*.1) and c['flop'] == 9.2e12
    assert [s['stage'] for s in c['stages']] == ['zero', 'student_distilled']
    status, out, err = r1nb('cost', 'run', folder, '--usd-per-hour', .1)
    assert status == 0 and not err
    for words in ('zero', 'student_distilled', 'all', "R1-Zero's work", 'was reported to cost'):
        assert words in out
    one = answer(r1nb, 'cost', 'run', folder/'zero', '--usd-per-hour', .1)
    assert one['seconds'] == 134.6

def test_run_without_counted_operations(r1nb, tmp_path):
    Stage(tmp_path/'run'/'base', {}).finish(seconds=60.)
    c = answer(r1nb, 'cost', 'run', tmp_path/'run', '--usd-per-hour', 6)
    assert c['cost_usd'] == pytest.approx(.1) and c['flop'] is None and c['r1_zero_usd'] is None
    status, out, _ = r1nb('cost', 'run', tmp_path/'run', '--usd-per-hour', 6)
    assert status == 0 and "R1-Zero's work" not in out and 'None' not in out

@pytest.mark.parametrize('bad', BAD + ['2 usd/gpu_h', '2 usd'])
def test_run_refuses_bad_prices(r1nb, folder, bad):
    assert '--usd-per-hour' in refused(r1nb, 'cost', 'run', folder, '--usd-per-hour', bad)

def test_run_refuses_what_is_no_run(r1nb, tmp_path, folder):
    for bad in (tmp_path/'nothing', tmp_path, __file__, '', 'x'*300, 'a\nb'):
        refused(r1nb, 'cost', 'run', bad, '--usd-per-hour', 1)
    (tmp_path/'torn'/'zero').mkdir(parents=True)
    (tmp_path/'torn'/'zero'/'card.json').write_text('{"seconds": 3')
    refused(r1nb, 'cost', 'run', tmp_path/'torn', '--usd-per-hour', 1)
    Stage(tmp_path/'begun'/'zero', {})
    assert 'nothing to bill' in refused(r1nb, 'cost', 'run', tmp_path/'begun', '--usd-per-hour', 1)
    refused(r1nb, 'cost', 'run')


# ---- claims, hardware ------------------------------------------------------------------------
def test_claims(r1nb):
    rows = answer(r1nb, 'claims')
    assert isinstance(rows, list) and len(rows) >= 125 and len({r['id'] for r in rows}) == len(rows)
    for r in rows: assert {'id', 'quote', 'seeds', 'source', 'verdict', 'check'} <= set(r)
    status, out, err = r1nb('claims')
    assert status == 0 and not err
    for r in rows: assert re.search(rf'^{r["id"]} .*{re.escape(r["quote"])}$', out, re.M), r['id']
    some = answer(r1nb, 'claims', '--verdict', 'refuted', '--seed', 'S1')
    assert some and all(r['verdict'] == 'REFUTED' and 's1' in r['seeds'] for r in some)
    assert [r['id'] for r in some] == [r['id'] for r in rows if r in some]
    assert answer(r1nb, 'claims', '--search', 'no such words at all') == []
    assert r1nb('claims', '--search', 'no such words at all')[0] == 0

def test_a_claim_shows_its_working(r1nb):
    row = answer(r1nb, 'claims', 'a03')
    assert row['id'] == 'A03' and row['check']['ok'] is True
    status, out, err = r1nb('claims', 'A03')
    assert status == 0 and not err and row['quote'] in out and f'def {row["working"]}()' in out
    assert out.count('holds') >= len(row['expected'])
    plain = next(r['id'] for r in answer(r1nb, 'claims') if not r['working'])
    assert r1nb('claims', plain)[0] == 0

@pytest.mark.parametrize('args, says', [
    (['A99'], 'A99'), ([''], ''), (['x'*500], ''), (['A03', 'A04'], 'unexpected'),
    (['--verdict', 'maybe'], 'SUPPORTED'), (['--verdict', ''], 'verdict'), (['--seed', 's9'], 's0'),
    (['--seed', ''], 'seed'), (['--search', ' '], '--search'), (['--section', 'Z'], 'A'),
    (['A03', '--verdict', 'refuted'], 'not both'), (['--verdic', 'x'], '--verdict')])
def test_claims_refuse(r1nb, args, says): assert says in refused(r1nb, 'claims', *args)

def test_hardware(r1nb):
    with open(ROOT/'r1nb/assets/hardware.csv', encoding='utf-8') as f:
        known = [r['name'] for r in csv.DictReader(f)]
    rows = answer(r1nb, 'hardware')
    assert [r['name'] for r in rows] == known
    status, out, err = r1nb('hardware')
    assert status == 0 and not err and all(re.search(rf'^{r["name"]} ', out, re.M) for r in rows)
    one = answer(r1nb, 'hardware', 'nvidia h800')
    assert one == next(r for r in rows if r['name'] == 'H800')
    status, out, _ = r1nb('hardware', 'H800')
    assert status == 0 and one['source'] in out and one['price_source'] in out
    prices = answer(r1nb, 'hardware', '--prices')
    assert {'provider', 'model', 'usd_per_million_output', 'source', 'verified'} <= set(prices[0])
    out = r1nb('hardware', '--prices')[1]
    assert all(p['model'] in out for p in prices)

@pytest.mark.parametrize('args, says', [
    (['H80'], 'H800'), ([''], 'unknown'), (['x'*400], 'unknown'),
    (['H800', 'H100'], 'unexpected'), (['H800', '--prices'], 'one of them'), (['--jsn'], '--json')])
def test_hardware_refuses(r1nb, args, says): assert says in refused(r1nb, 'hardware', *args)

def test_hardware_of_ones_own(r1nb, tmp_path, monkeypatch):
    monkeypatch.setenv('R1NB_HARDWARE', str(tmp_path/'none.csv'))
    for args in (['hardware'], ['hardware', 'H800'], ['cost', 'train', '--gpu-hours', '1']):
        assert 'none.csv' in refused(r1nb, *args)


# ---- all of them -----------------------------------------------------------------------------
COMMANDS = [['cost'], ['cost', 'train'], ['cost', 'serve'], ['cost', 'run'], ['claims'],
            ['hardware']]

@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_help_has_examples_that_work(r1nb, command, folder, tmp_path):
    from r1nb.anatomy import R1
    (config := tmp_path/'config.json').write_text(json.dumps(R1))
    status, out, err = r1nb(*command, '--help')
    assert status == 0 and not err and 'None' not in out
    examples = [l.strip() for l in out.splitlines() if l.strip().startswith('r1nb ')]
    assert len(examples) >= (command != ['cost']), out
    for line in examples:
        assert line.startswith(shlex.join(['r1nb', *command]))
        line = line.replace('path/to/config.json', str(config))
        line = line.replace('runs/nano-seed0', str(folder))
        status, out, err = r1nb(*shlex.split(line)[1:])
        assert status == 0 and out and not err, (line, err)

def test_cost_alone_lists_its_commands(r1nb):
    status, out, err = r1nb('cost')
    assert status == 0 and not err and all(w in out for w in ('train', 'serve', 'run'))
    assert 'train' in refused(r1nb, 'cost', 'trian')

SHOWN = [['cost', 'train', '--gpu-hours', '2788e3'], ['claims', 'A03'], ['cost', 'serve'],
         ['hardware'], ['hardware', 'H800']]

@pytest.mark.parametrize('command', SHOWN, ids=' '.join)
def test_a_terminal_gets_the_same_words(command):
    "Rich draws the tables where stdout is a terminal, and loses nothing but the spacing."
    env = dict(os.environ, PYTHONPATH=str(ROOT), TERM='xterm-256color', COLUMNS='200')
    whole = [sys.executable, '-c', MAIN, *command]
    piped = subprocess.run(whole, env=env, capture_output=True, text=True)
    boss, worker = pty.openpty()
    p = subprocess.Popen(whole, env=env, stdout=worker, stderr=worker)
    os.close(worker)
    seen = b''
    while True:
        try: more = os.read(boss, 65536)
        except OSError: break
        if not more: break
        seen += more
    assert p.wait() == piped.returncode == 0
    os.close(boss)
    shown = re.sub(r'\x1b\[[0-9;]*m', '', seen.decode())
    assert '━' in shown or '┏' in shown or '─' in shown
    bag = lambda s: sorted(re.sub(r'[^\w$%.,?±]', '', s))
    assert bag(shown) == bag(piped.stdout)
