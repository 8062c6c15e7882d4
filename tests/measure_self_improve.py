"""Loops that learn from themselves: nbs/results/self_improve.json. Goes on where it stopped.

    OMP_NUM_THREADS=1 python tests/measure_self_improve.py FOLDER [WORKERS SEEDS SECONDS KIND …]
One process a loop (kind and seed), one JSON line a round in FOLDER/KIND-SEED.jsonl;
`python tests/measure_self_improve.py join OUT FOLDER` makes the result of them.
"""
import json, os, sys, time
from dataclasses import asdict, replace
from pathlib import Path
import torch
import r1nb
from r1nb.core import hardware
from r1nb.model import R1Model
from r1nb.self_improve import Loop, improve
from r1nb.tasks import countdown
sys.path.insert(0, str(Path(__file__).parent))
from sweep import sweep

ASSETS = Path(r1nb.__file__).parent/'assets'
KINDS = {'verifier': Loop(rounds=7), 'nobody': Loop(rounds=3, keep='anything'),
         'own verdict': Loop(rounds=7, keep='believed'),
         'verifier, going on': Loop(rounds=7, restart=False)}
HELD, K = int(os.environ.get('HELD', 300)), 8

def loop(kind, seed, file):
    torch.set_num_threads(1)
    c, file, start = KINDS[kind], Path(file), time.perf_counter()
    if 'TINY' in os.environ: c = replace(c, rounds=2, lessons=64)
    file.unlink(missing_ok=True)
    def log(row):
        row = dict(kind=kind, seed=seed, seconds=round(time.perf_counter() - start, 1)) | row
        with file.open('a') as f: f.write(json.dumps(row) + '\n')
        print(kind, seed, {k: row[k] for k in ('round', 'seconds', 'asked', 'pass1')}, flush=True)
    base = R1Model.from_pretrained(ASSETS/'nano')
    improve(base, c, countdown(HELD, 1, split='held_out'), seed, log, K)

def whole(file, rounds):
    return file.exists() and sum(1 for _ in file.open()) > rounds

def main(folder, workers=4, seeds='1,2,3', until=460, *kinds):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = lambda k, seed: folder/f'{k.replace(", ", "_").replace(" ", "_")}-{seed}.jsonl'
    sweep([['loop', k, seed, file(k, seed)] for seed in seeds.split(',') for k in kinds or KINDS
           if not whole(file(k, seed), KINDS[k].rounds)], workers, until)

def join(out, folder):
    rows = [json.loads(s) for f in sorted(Path(folder).glob('*.jsonl')) for s in f.open()]
    rows.sort(key=lambda r: (list(KINDS).index(r['kind']), r['seed'], r['round']))
    card = json.loads((Path(folder)/'hardware.json').read_text())
    what = dict(what='self-improving loops from the shipped nano base', held_out=HELD, answers=K,
                command='python tests/measure_self_improve.py FOLDER, then join OUT FOLDER',
                hardware=card, loops={k: asdict(c) for k, c in KINDS.items()})
    note = Path(folder)/'note.txt'
    if note.exists(): what['note'] = note.read_text().strip()
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    Path(out).write_text(json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

if __name__ == '__main__':
    if sys.argv[1] == 'join': join(*sys.argv[2:])
    elif sys.argv[1] == 'loop': loop(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        (Path(sys.argv[1])/'hardware.json').write_text(json.dumps(hardware()))
        main(*sys.argv[1:])
