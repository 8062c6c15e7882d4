"""What students inherit from flawed teachers: nbs/results/inheritance.json.

    python tests/measure_inheritance.py OUT.jsonl KIND... [--seeds 0 1 2] [--workers 2] [--tiny]

KIND: bugs (a forgotten ten, four doses), slips (a careless teacher), quarter (a fifth of the size),
hole (a student without a base and without a single example of the edge). One line a seed and kind,
appended as it is finished; lines that are there are not measured again.
    python tests/measure_inheritance.py --merge nbs/results/inheritance.json OUT.jsonl...
"""
import argparse, json, os, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

DOSES = {'bugs': (0., .25, .5, 1.), 'slips': (.08,), 'quarter': (0.,), 'hole': (1.,)}

def tasks(kinds, seeds):
    return [(kind, dose, seed) for seed in seeds for kind in kinds for dose in DOSES[kind]]

def measure(kind, dose, seed, tiny):
    import torch
    import r1nb
    from r1nb import inheritance as room
    torch.set_num_threads(1)
    begun, assets = time.perf_counter(), Path(r1nb.__file__).parent/'assets'
    base, student = str(assets/'nano'), str(assets/'nano-student')
    flaws = room.Flaws(slip=dose) if kind == 'slips' else room.Flaws(bug=dose)
    small = dict(n=1000, epochs=2) if tiny else {}
    teacher = room.schooled(base, flaws, seed, **small)
    row = dict(kind=kind, dose=dose, seed=seed, teacher=room.examine(teacher, seed=seed))
    if kind in ('bugs', 'slips'):
        leaks = (1., 0.) if kind == 'slips' or dose < 1 else (1., .1, .01, 0.)
        if tiny: small['asked'] = 3000
        row['students'] = room.generation(teacher, student, leaks, seed, **small)
    else:
        ways = {'steps': True, 'answers': False} if kind == 'quarter' else {'steps': True}
        row['students'] = {name: room.examine(room.shrink(teacher, seed, steps=s, **small),
                                              seed=seed) for name, s in ways.items()}
    return row | dict(seconds=round(time.perf_counter() - begun, 1))

def done(out):
    rows = map(json.loads, Path(out).read_text().splitlines()) if Path(out).exists() else ()
    return {(r['kind'], r['dose'], r['seed']) for r in rows}

def merge(out, parts):
    from r1nb.core import hardware, write_atomic
    rows = [json.loads(s) for p in parts for s in Path(p).read_text().splitlines()]
    rows = sorted({(r['kind'], r['dose'], r['seed']): r for r in rows}.values(),
                  key=lambda r: (r['kind'], r['dose'], r['seed']))
    was = {json.dumps(r.pop('hardware', hardware()), sort_keys=True) for r in rows}
    what = dict(what='flawed teachers and the students that read them', hardware=[*map(json.loads,
                was)], command='python tests/measure_inheritance.py OUT bugs slips quarter hole')
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    write_atomic(out, json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('out'); ap.add_argument('kinds', nargs='+')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    ap.add_argument('--workers', type=int, default=2)
    ap.add_argument('--tiny', action='store_true'); ap.add_argument('--merge', action='store_true')
    a = ap.parse_args()
    if a.merge: return merge(a.out, a.kinds)
    os.environ['OMP_NUM_THREADS'] = '1'
    from r1nb.core import hardware
    here, left = hardware(), [t for t in tasks(a.kinds, a.seeds) if t not in done(a.out)]
    with ProcessPoolExecutor(a.workers, get_context('spawn')) as pool, open(a.out, 'a') as f:
        for job in as_completed([pool.submit(measure, *t, a.tiny) for t in left]):
            row = job.result() | dict(hardware=here)
            f.write(json.dumps(row) + '\n'); f.flush()
            print(row['kind'], row['dose'], row['seed'], row['seconds'], 's', flush=True)

if __name__ == '__main__': main()
