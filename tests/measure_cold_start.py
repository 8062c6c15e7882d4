"""Reinforcement from a base and from cold starts: nbs/results/cold_start.json.

    OMP_NUM_THREADS=1 python tests/measure_cold_start.py FOLDER ZEROS [WORKERS SEEDS ...]
ZEROS holds a reasoner's checkpoint for each seed, in zero0, zero1, …: the `zero/checkpoint` of
`r1nb run --seed SEED`. One process a run (kind and seed), one JSON file a run in FOLDER;
`python tests/measure_cold_start.py join OUT FOLDER` makes the result of them.
"""
import json, os, sys, time
from dataclasses import asdict, replace
from pathlib import Path
import torch
import r1nb
from r1nb.cold_start import cold_start, drafts, editors_report
from r1nb.core import hardware, write_atomic
from r1nb.model import R1Model
from r1nb.r1_zero import ZeroConfig, zero
from r1nb.rollout import ask
from r1nb.tasks import countdown
sys.path.insert(0, str(Path(__file__).parent))
from sweep import sweep

ASSETS = Path(r1nb.__file__).parent/'assets'
RECIPE, LESSONS, ASKED, LONG = ZeroConfig(steps=40), 1200, 1600, 400
KINDS = ('base', 'rewritten', 'shuffled', 'answer only', 'rewritten strict', 'base strict', 'raw')
SHORT = dict.fromkeys(('shuffled', 'answer only'), 12)  # steps of the controls
KEPT = ('accuracy', 'mean_tokens', 'format', 'truncated', 'arithmetic_errors', 'flops')
HELD = int(os.environ.get('HELD', 600))

def look(model, seed, n=HELD, of=1, **how):
    problems = countdown(n, of, split='held_out')
    traces = ask(model, problems, max_new=LONG, seed=seed, **how)
    samples = [[t.prompt, t.response] for t in traces[:6]]
    return editors_report(problems, traces) | dict(n=n, samples=samples)

def one(kind, seed, zeros, file):
    torch.set_num_threads(1)
    start, lessons, asked = time.perf_counter(), LESSONS, ASKED
    c = replace(RECIPE, steps=SHORT.get(kind, RECIPE.steps))
    what = kind.removesuffix(' strict')
    if what != kind: c = replace(c, overlong=0.)  # a cut-off answer counts like any wrong one
    if 'TINY' in os.environ: c, lessons, asked = replace(c, steps=2, prompts=4), 32, 120
    model = R1Model.from_pretrained(ASSETS/'nano')
    run = dict(kind=kind, seed=seed, curve={k: [] for k in KEPT})
    if what != 'base':
        teacher = R1Model.from_pretrained(Path(zeros)/f'zero{seed}')
        problems = countdown(asked, seed + 500)
        traces = ask(teacher, problems, 2, 160, seed=seed)
        run['teacher'] = editors_report([p for p in problems for _ in range(2)], traces)
        model = cold_start(model, drafts(problems, traces, lessons, what, seed), seed=seed)
    run['before'] = look(model, seed)
    if kind not in SHORT: run['calm'] = look(model, seed + 50, temperature=.6, top_p=.95)
    if kind == 'rewritten': run['wide'] = look(model, seed + 10, 5*HELD, 2)
    def log(row):
        for k in KEPT: run['curve'][k].append(round(row[k], 4))
        write_atomic(file, json.dumps(run))
    zero(model, countdown(20_000, seed), c, seed, log=log)
    run['after'] = look(model, seed + 100)
    run['seconds'] = round(time.perf_counter() - start, 1)
    write_atomic(file, json.dumps(run))
    both = lambda k: [round(run[w][k], 3) for w in ('before', 'after')]
    shown = {k: both(k) for k in ('right', 'readable', 'format', 'tokens')}
    print(kind, seed, run['seconds'], shown, flush=True)

def main(folder, zeros, workers=4, seeds='0,1,2', until=460, *kinds):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder/'hardware.json', json.dumps(hardware()))
    file = lambda kind, seed: folder/f'{kind.replace(" ", "_")}-{seed}.json'
    sweep([['one', kind, seed, zeros, file(kind, seed)] for seed in seeds.split(',')
           for kind in kinds or KINDS], workers, until, .8)

def join(out, folder):
    runs = [json.loads(f.read_text()) for f in sorted(Path(folder).glob('*-*.json'))]
    runs.sort(key=lambda r: (KINDS.index(r['kind']), r['seed']))
    part = [{k: r[k] for k in ('kind', 'seed', 'curve')} for r in runs if 'after' not in r]
    runs = [r for r in runs if 'after' in r]
    what = dict(what='GRPO from the nano base and from cold starts of it', lessons=LESSONS,
                asked=ASKED, longest=LONG, recipe=asdict(RECIPE),
                command='python tests/measure_cold_start.py FOLDER ZEROS, then join OUT FOLDER',
                hardware=json.loads((Path(folder)/'hardware.json').read_text()), unfinished=part)
    note = Path(folder)/'note.txt'
    if note.exists(): what['note'] = note.read_text().strip()
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in runs)
    Path(out).write_text(json.dumps(what)[:-1] + ', "runs": [\n' + lines + ']}\n')

if __name__ == '__main__':
    if sys.argv[1] == 'join': join(*sys.argv[2:])
    elif sys.argv[1] == 'one': one(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else: main(*sys.argv[1:])
