"""How far can a verdict on a program be trusted? python tests/measure_trials.py [--short]

Three piles, each run through `r1nb run-tests` in a process of its own: programs known to be right
(reference solutions), known to be wrong (five ways, for every problem), and hostile. Writes
nbs/results/trials.json. Needs ../shared/data (or R1NB_DATA); --short takes every 21st problem and
writes nothing.
"""
import json, os, subprocess, sys, tempfile
from pathlib import Path
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from r1nb.roofline import record
from r1nb.sandbox import tests_of
from r1nb.tasks import load
import test_sandbox as battery

RUN = """import sys, typer
from r1nb import trials
app = typer.Typer(); app.callback()(lambda: None); trials.join(app)
try: app(['run-tests', *sys.argv[1:]])
except SystemExit as e: code = e.code
peak = [s for s in open('/proc/self/status') if s.startswith('VmHWM')][0].split()[1]
print('RSS', peak, file=sys.stderr)
sys.exit(code)"""

def run(rows, folder):
    "(verdicts, peak resident MB of the parent, seconds) of rows by the command line."
    import time
    file, out = Path(folder)/'rows.jsonl', Path(folder)/'verdicts.jsonl'
    with open(file, 'w') as f:
        for r in rows: f.write(json.dumps(r) + '\n')
    start = time.time()
    env = dict(os.environ, PYTHONPATH=str(HERE.parent))
    done = subprocess.run([sys.executable, '-c', RUN, str(file), '--out', str(out)], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = time.time() - start
    mb = int(done.stderr.split('RSS ')[1])/1024
    return [json.loads(s) for s in open(out)], round(mb, 1), round(seconds, 1)

def rows(name):
    "The published rows of a set."
    path = battery.DATA/name/f'{name}.jsonl'
    return [json.loads(s) for s in open(path, encoding='utf-8')]

def wrong(name, published):
    "Programs that cannot be right, by kind: for every problem one of each."
    problems = load(name, battery.DATA)
    entry = [r.get('entry_point') or tests_of(p).entry for r, p in zip(published, problems)]
    for i, r in enumerate(published):
        f = entry[i]
        if not f: continue
        j = (i + 37) % len(published)
        while not entry[j]: j = (j + 1) % len(published)
        other = problems[j].gold if name == 'mbpp' else published[j]['prompt'] + problems[j].gold
        equal = 'class A:\n  __eq__ = __le__ = __ge__ = lambda s, o: True\n  __hash__ = None\n'
        yield 'says nothing', r | {'program': f'def {f}(*a, **k): pass'}
        yield 'raises', r | {'program': f'def {f}(*a, **k): raise ValueError'}
        yield 'leaves', r | {'program': f'import os\ndef {f}(*a, **k): os._exit(0)'}
        yield 'equals everything', r | {'program': f'{equal}def {f}(*a, **k): return A()'}
        yield "another's solution", r | {'program': f'{other}\n{f} = {entry[j]}'}

def main(short=False):
    found, step = {}, 21 if short else 1
    with tempfile.TemporaryDirectory() as folder:
        for name in ('humaneval', 'mbpp'):
            published = rows(name)
            said, mb, seconds = run(published[::step], folder)
            found[name] = dict(programs=len(said), passed=sum(v['answer'] for v in said),
                               peak_mb=mb, seconds=seconds)
            print(name, found[name], flush=True)
            bad = list(wrong(name, published))[::step]
            said, mb, seconds = run([r for _, r in bad], folder)
            kinds = {k: [0, 0] for k, _ in bad}
            for (k, r), v in zip(bad, said):
                kinds[k][0] += 1; kinds[k][1] += v['answer'] == 1
            found[f'{name} wrong'] = dict(
                kinds=kinds, peak_mb=mb, seconds=seconds, programs=len(said),
                passed=[dict(id=str(r['task_id']), kind=k, program=r['program'][-400:])
                        for (k, r), v in zip(bad, said) if v['answer']])
            print(name, 'wrong', {k: v for k, v in found[f'{name} wrong'].items()}, flush=True)
        host = dict(CANARY=f'{folder}/canary', PORT=9)
        Path(host['CANARY']).write_text('canary')
        as_row = lambda p, t=battery.TESTS: dict(program=p, tests=getattr(t, 'code', t),
            setup=getattr(t, 'setup', ''), entry=getattr(t, 'entry', ''))
        hostile = [as_row(battery.attack(host, a)) for a in battery.ESCAPES.values()]
        hostile += [as_row(battery.attack(host, a, 'return 0')) for a in battery.FLOODS.values()]
        hostile += [as_row(p) for p in battery.FORGERIES.values()]
        hostile += [as_row(*p) for p in battery.HELPED.values()]
        before = battery.children()
        said, mb, seconds = run(hostile[::step], folder)
        found['hostile'] = dict(programs=len(said), passed=sum(v['answer'] for v in said),
            peak_mb=mb, seconds=seconds, canary=Path(host['CANARY']).read_text() == 'canary',
            processes_left=len(battery.children() - before))
        print('hostile', found['hostile'], flush=True)
        small = dict(program='def f(x): return x*x', tests='assert f(3) == 9')
        memory = {}
        for n in (500, 5000)[:1 if short else 2]:
            said, mb, seconds = run((dict(small, id=f'{i:040}') for i in range(n)), folder)
            memory[n] = dict(peak_mb=mb, seconds=seconds)
        found['memory'] = memory
        print(memory)
    if not short: record(HERE.parent/'nbs/results/trials.json', **found)

if __name__ == '__main__': main('--short' in sys.argv)
