"""Two specialists and their students: nbs/results/specialists.json.

    python tests/measure_specialists.py OUT.jsonl careless stubborn [--seeds 0 1 2] [--tiny]

One line a seed and fault, appended as it is finished; lines that are there are not measured again.
    python tests/measure_specialists.py --merge nbs/results/specialists.json OUT.jsonl...
"""
import argparse, json, os, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

def measure(fault, seed, tiny):
    import torch
    import r1nb
    from r1nb.specialists import experiment
    torch.set_num_threads(1)
    begun, assets = time.perf_counter(), Path(r1nb.__file__).parent/'assets'
    bases = str(assets/('nano-student' if tiny else 'nano')), str(assets/'nano-student')
    row = experiment(*bases, fault, seed, **dict(n=480, book=600, epochs=2) if tiny else {})
    return row | dict(seconds=round(time.perf_counter() - begun, 1))

def read(path):
    return [json.loads(s) for s in Path(path).read_text().splitlines()] if path.exists() else []

def merge(out, parts):
    from r1nb.core import write_atomic
    rows = {(r['fault'], r['seed']): r for p in parts for r in read(Path(p))}
    was = {json.dumps(r.pop('hardware'), sort_keys=True) for r in rows.values()}
    what = dict(what='two specialists, one student, by the rule that settles their conflicts',
                command='python tests/measure_specialists.py OUT.jsonl careless stubborn',
                hardware=[*map(json.loads, was)])
    lines = ',\n'.join(json.dumps(rows[k], separators=(',', ':')) for k in sorted(rows))
    write_atomic(out, json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('out', type=Path); ap.add_argument('faults', nargs='+')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    ap.add_argument('--workers', type=int, default=2)
    ap.add_argument('--tiny', action='store_true'); ap.add_argument('--merge', action='store_true')
    a = ap.parse_args()
    if a.merge: return merge(a.out, a.faults)
    os.environ['OMP_NUM_THREADS'] = '1'
    from r1nb.core import hardware
    here, kept = hardware(), {(r['fault'], r['seed']) for r in read(a.out)}
    left = [(f, s) for s in a.seeds for f in a.faults if (f, s) not in kept]
    with ProcessPoolExecutor(a.workers, get_context('spawn')) as pool, open(a.out, 'a') as f:
        for job in as_completed([pool.submit(measure, *t, a.tiny) for t in left]):
            row = job.result() | dict(hardware=here)
            f.write(json.dumps(row) + '\n'); f.flush()
            print(row['fault'], row['seed'], row['seconds'], 's', flush=True)

if __name__ == '__main__': main()
