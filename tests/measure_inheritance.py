"""What students inherit from flawed teachers: nbs/results/inheritance.json.

    python tests/measure_inheritance.py OUT.jsonl KIND... [--seeds 0 1] [--doses 0 .5] [--tiny]

KIND: bugs (a forgotten ten, four doses), slips (a careless teacher), hole (a student without a base
that never reads the edge). One line a seed and kind, appended as it is finished; lines that are
there are not measured again. Parts are put together, an older results file among them, by
    python tests/measure_inheritance.py --merge nbs/results/inheritance.json OUT.jsonl...
"""
import argparse, json, os, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

DOSES = {'bugs': (1., .5, .25, 0.), 'slips': (.08,), 'hole': (1.,)}

def tasks(kinds, seeds, doses=None):
    return [(kind, dose, seed) for seed in seeds for kind in kinds for dose in DOSES[kind]
            if doses is None or dose in doses]

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
        row['students'] = {'steps': room.examine(room.shrink(teacher, seed, **small), seed=seed)}
    return row | dict(seconds=round(time.perf_counter() - begun, 1))

def done(out):
    rows = map(json.loads, Path(out).read_text().splitlines()) if Path(out).exists() else ()
    return {(r['kind'], r['dose'], r['seed']) for r in rows}

def parts_of(path):
    "Rows and machines of a part, or of an older results file."
    text = Path(path).read_text()
    if path.endswith('.json'): old = json.loads(text); return old['rows'], old['hardware']
    rows = [*map(json.loads, text.splitlines())]
    return rows, [r.pop('hardware') for r in rows]

def merge(out, parts):
    from r1nb.core import write_atomic
    found = [*map(parts_of, parts)]
    one, was = {}, {json.dumps(h, sort_keys=True) for _, hs in found for h in hs}
    key = lambda r: (r['kind'], r['dose'], r['seed'])
    for r in sorted((r for rows, _ in found for r in rows), key=key): one[key(r)] = r
    what = dict(what='flawed teachers and the students that read them',
                command='python tests/measure_inheritance.py OUT bugs slips hole',
                hardware=[*map(json.loads, sorted(was))])
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in one.values())
    write_atomic(out, json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('out'); ap.add_argument('kinds', nargs='+')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    ap.add_argument('--doses', type=float, nargs='+')
    ap.add_argument('--workers', type=int, default=2)
    ap.add_argument('--tiny', action='store_true'); ap.add_argument('--merge', action='store_true')
    a = ap.parse_args()
    if a.merge: return merge(a.out, a.kinds)
    os.environ['OMP_NUM_THREADS'] = '1'
    from r1nb.core import hardware
    here, all_ = hardware(), tasks(a.kinds, a.seeds, a.doses)
    left = [t for t in all_ if t not in done(a.out)]
    def each():
        if a.workers == 1: yield from (measure(*t, a.tiny) for t in left); return  # no child
        with ProcessPoolExecutor(a.workers, get_context('spawn')) as pool:
            jobs = [pool.submit(measure, *t, a.tiny) for t in left]
            for job in as_completed(jobs): yield job.result()
    with open(a.out, 'a') as f:
        for row in each():
            row |= dict(hardware=here)
            f.write(json.dumps(row) + '\n'); f.flush()
            print(row['kind'], row['dose'], row['seed'], row['seconds'], 's', flush=True)

if __name__ == '__main__': main()
