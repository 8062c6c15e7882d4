"""Two specialists and their students: nbs/results/specialists.json.

    python tests/measure_specialists.py OUT.jsonl FAULT... [--seeds 0 1 2] [--scale small]

FAULT careless, reckless or stubborn; scale `long`: the sums specialist alone, with longer books.
A line after every student, with all that its seed and fault have so far.
    python tests/measure_specialists.py --merge nbs/results/specialists.json OUT.jsonl...
"""
import argparse, json, os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

WORK = ('verified', 'verified, steps too', 'routed', 'routed, verified', 'mixture')
SIZES = dict(full={}, small=dict(n=1600, book=1200, epochs=2, batch=16, rules=WORK),
             long=dict(n=6000),  # one teacher alone, twice the pages
             tiny=dict(n=480, book=600, epochs=2))

def measure(out, fault, seed, scale):
    import torch
    import r1nb
    from r1nb.core import hardware
    from r1nb.specialists import examine_both, experiment, specialist
    torch.set_num_threads(1)
    begun, here, assets = time.perf_counter(), hardware(), Path(r1nb.__file__).parent/'assets'
    size = SIZES[scale]
    large = 'nano' if scale in ('full', 'long') else 'nano-student'
    bases = str(assets/large), str(assets/'nano-student')
    def log(row):
        row = row | dict(scale=scale, seconds=round(time.perf_counter() - begun, 1), hardware=here)
        with open(out, 'a') as f: f.write(json.dumps(row) + '\n')
        print(fault, seed, [*row['students']][-1:], row['seconds'], 's', flush=True)
    if scale != 'long': return experiment(*bases, fault, seed, log=log, **size)
    does = examine_both(specialist(bases[0], 'sums', fault, seed, **size), seed=seed)
    log(dict(fault=fault, seed=seed, students={}, teachers={'sums': does}))

def read(path):
    "Rows of a part, or of an older results file."
    if not path.exists(): return []
    if path.suffix != '.json': return [*map(json.loads, path.read_text().splitlines())]
    old = json.loads(path.read_text())
    return [r | dict(hardware=old['hardware']) for r in old['rows']]

def merge(out, parts):
    from r1nb.core import write_atomic
    lines = sorted((r for p in parts for r in read(Path(p))), key=lambda r: len(r['students']))
    rows = {(r['scale'], r['fault'], r['seed']): r for r in lines}  # the fullest of each
    each = lambda x: x if isinstance(x, list) else [x]
    was = {json.dumps(h, sort_keys=True) for r in rows.values() for h in each(r.pop('hardware'))}
    what = dict(what='two specialists, one student, by the rule that settles their conflicts',
                command='python tests/measure_specialists.py OUT.jsonl careless reckless stubborn; '
                        'then careless --scale small --seeds 0 1 2 3 4 (seeds 3, 4: three rules); '
                        'careless --scale long',
                hardware=[*map(json.loads, sorted(was))])
    lines = ',\n'.join(json.dumps(rows[k], separators=(',', ':')) for k in sorted(rows))
    write_atomic(out, json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('out', type=Path); ap.add_argument('faults', nargs='+')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    ap.add_argument('--workers', type=int, default=2)
    ap.add_argument('--scale', default='full', choices=SIZES)
    ap.add_argument('--merge', action='store_true')
    a = ap.parse_args()
    if a.merge: return merge(a.out, a.faults)
    os.environ['OMP_NUM_THREADS'] = '1'
    left = [(f, s) for s in a.seeds for f in a.faults]
    if a.workers == 1: return [measure(a.out, *t, a.scale) for t in left]  # no child to outlive us
    with ProcessPoolExecutor(a.workers, get_context('spawn')) as pool:
        for job in [pool.submit(measure, a.out, *t, a.scale) for t in left]: job.result()

if __name__ == '__main__': main()
