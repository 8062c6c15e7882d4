"""Students of a marked teacher, questioned: nbs/results/provenance.json. Goes on where it stopped.

    OMP_NUM_THREADS=1 python tests/measure_provenance.py SEEDS PART PARTS FILE [UNTIL [KINDS]]
One process does the seeds with seed % PARTS == PART and keeps one JSON line a student in FILE;
`python tests/measure_provenance.py join OUT FILE ...` makes the result of them.
"""
import json, platform, sys, time
from pathlib import Path
import torch
import r1nb
from r1nb.model import R1Model
from r1nb.provenance import canaries, grade_answers, interview, mixture, suspect, votes, web_pages

BASE = Path(r1nb.__file__).parent/'assets/nano-student'
N, ASKED = 1200, (300, 600, 1200, 2400, 4800)
MIXES = {'0 %': 0., '10 %': .1, '0 % again': 0., '30 %': .3, '5 %': .05, '2 %': .02}
KINDS = ['0 %', '10 %', 'web alone', 'web', 'rival', '30 %', '0 % again', '5 %', '2 %']

def student(kind, seed):
    key, own = f'secret {seed}', f'{seed}/{kind}'
    if kind in MIXES: return suspect(BASE, mixture(N, MIXES[kind], key, own), seed=seed)
    if kind == 'rival': return suspect(BASE, mixture(N, 0., key, own, rival=True), seed=seed)
    pages, honest = web_pages(N, .1, key, own), mixture(N//3, 0., key, own)
    return suspect(BASE, *([pages] if kind == 'web alone' else [pages, honest]), seed=seed)

def row(kind, seed, model):
    t = time.perf_counter()
    model = model or student(kind, seed)
    taught = time.perf_counter() - t
    asked, said = interview(model, ASKED[-1], seed)
    exam = interview(model, 300, seed, 48)
    flat = lambda v: [[*c, *n] for c, n in v.items()]
    return dict(kind=kind, seed=seed, seconds=round(taught, 1), right=grade_answers(*exam),
                votes={str(q): flat(votes(said[:q])) for q in ASKED},
                canaries={str(q): canaries(f'secret {seed}', asked[:q], said[:q]) for q in ASKED})

def main(seeds, part, parts, file, until='99:99', kinds=len(KINDS)):
    torch.set_num_threads(1)
    file = Path(file)
    old = map(json.loads, file.open()) if file.exists() else ()
    done = {(r['kind'], r['seed']) for r in old}
    for seed in range(int(part), int(seeds), int(parts)):
        for kind in ['untaught', *KINDS[:int(kinds)]]:
            if (kind, seed) in done: continue
            if time.strftime('%H:%M') >= until: return
            r = row(kind, seed, R1Model.from_pretrained(BASE) if kind == 'untaught' else None)
            with file.open('a') as f: f.write(json.dumps(r) + '\n')
            print(kind, seed, r['seconds'], r['right'], r['canaries']['4800'], flush=True)

def join(out, *files):
    rows = sorted((json.loads(s) for f in files for s in open(f)),
                  key=lambda r: (r['seed'], ['untaught', *KINDS].index(r['kind'])))
    what = dict(what='students of a marked teacher; the key of seed S is "secret S"',
                command='python tests/measure_provenance.py SEEDS PART PARTS FILE, then join',
                lessons=N, hardware=f'{platform.machine()}, 1 thread; torch {torch.__version__}')
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    Path(out).write_text(json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

if __name__ == '__main__':
    if sys.argv[1] == 'join': join(*sys.argv[2:])
    else: main(*sys.argv[1:])
