"""Measure the sandbox and store the figures: python tests/measure_sandbox.py

Writes nbs/results/sandbox.json: verdicts per second for small programs (warm and cold), the
battery's outcome, the published reference solutions, agreement with the graded programs.
"""
import json, os, sys, time
from pathlib import Path
from r1nb.core import hardware
from r1nb.jail import Limits
from r1nb.sandbox import Jail, Sandbox, Tests, isolation, tests_of, whole_program
from r1nb.tasks import load
sys.path.insert(0, str(Path(__file__).parent))
import test_sandbox as battery

OUT = Path(__file__).parent.parent/'nbs/results/sandbox.json'
SMALL = 'def f(xs):\n    out = []\n    for x in sorted(xs):\n'\
    '        if x not in out: out.append(x)\n    return out'
CHECKS = 'assert f([3, 1, 3]) == [1, 3]\nassert f([]) == []\nassert f([2, 2, 2]) == [2]'

def processor():
    "Processor seconds of this process and of all below it so far."
    total, tick = sum(os.times()[:2]), os.sysconf('SC_CLK_TCK')
    for pid in battery.children():
        try: fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[11:15]
        except OSError: continue
        total += sum(map(int, fields))/tick
    return total

def speed(workers, n=300, rounds=5):
    with Sandbox(workers, Limits()) as box:
        box.run_all([(SMALL, CHECKS)]*20)
        rates, spent = [], processor()
        for _ in range(rounds):
            start = time.time()
            said = box.run_all([(SMALL, CHECKS)]*n)
            rates.append(n/(time.time()-start))
            assert all(v.answer == 1 for v in said)
        spent = processor() - spent
    return dict(per_second=[round(r) for r in rates],
                processor_ms=round(spent/n/rounds*1e3, 2))

def cold(n=10):
    level, start = isolation().split(':')[0], time.time()
    for _ in range(n):
        jail = Jail(level, Limits())
        jail.run(SMALL, Tests(CHECKS))
        jail.close()
    return round(n/(time.time()-start), 1)

def attacks():
    host = dict(CANARY='/tmp/r1nb-canary', PORT=9)
    Path(host['CANARY']).write_text('canary')
    jobs = {f'escape: {k}': (battery.attack(host, v), battery.TESTS) for k,
    v in battery.ESCAPES.items()}
    jobs |= {f'flood: {k}': (battery.attack(host, v, 'return 0'), battery.TESTS)
             for k, v in battery.FLOODS.items()}
    jobs |= {f'forgery: {k}': (v, battery.TESTS) for k, v in battery.FORGERIES.items()}
    jobs |= {f'lean: {k}': v for k, v in battery.HELPED.items()}
    jobs |= {f'hollow: {k}': v for k, v in battery.hostile.HOLLOW.items()}
    before = battery.children()
    with Sandbox(2, battery.SHORT) as box: said = dict(zip(jobs, box.run_all(jobs.values())))
    with Sandbox(1, Limits()) as box: refused = battery.honest(box)
    left = len(battery.children() - before)
    canary = Path(host['CANARY']).read_text() == 'canary'
    Path(host['CANARY']).unlink()
    return dict(programs=len(jobs), passed=[k for k, v in said.items() if v.answer], canary=canary,
                processes_left=left, kinds={k: sum(j.startswith(k) for j in jobs) for k in
                                            ('escape', 'flood', 'forgery', 'lean', 'hollow')},
                honest=len(battery.hostile.HONEST), refused=refused)

def published(data):
    out = {}
    with Sandbox(2, Limits(seconds=30., cpu=30)) as box:
        for name in ('humaneval', 'mbpp'):
            ps, start = load(name, data), time.time()
            said = box.run_all([(whole_program(p, p.gold), tests_of(p)) for p in ps])
            out[name] = dict(problems=len(ps), passed=sum(v.answer == 1 for v in said), failed={
                p.id: v.reason for p, v in zip(ps, said) if v.answer != 1},
                seconds=round(time.time()-start))
        rows = [json.loads(line) for line in (data/'code_graded/reflexion_runs.jsonl').open()]
        said = box.run_all(battery.graded(rows))
    differ = [dict(row=i, task=r['task'], label=r['label'], rerun_passed=r['rerun_passed'],
        ours=v.answer == 1,
                   reason=v.reason) for i,
                   (r, v) in enumerate(zip(rows, said)) if (v.answer == 1) != r['rerun_passed']]
    return out | dict(graded=dict(programs=len(rows), agree=len(rows)-len(differ), differ=differ))

if __name__ == '__main__':
    found = dict(date=time.strftime('%Y-%m-%d'), hardware=hardware(), isolation=isolation())
    found['load_before'] = [round(x, 1) for x in os.getloadavg()]
    found['cold_per_second'] = cold()
    found['warm'] = {w: speed(w) for w in (1, 2, 4)}
    found['attacks'] = attacks()
    if battery.DATA.is_dir(): found |= published(battery.DATA)
    kept = json.loads(OUT.read_text()).get('beside')         # old code beside new: not repeatable
    if kept: found['beside'] = kept
    OUT.write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps(found, indent=1))
