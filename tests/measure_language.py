"""Reinforcement with and without a reward for language: nbs/results/language.json.

    OMP_NUM_THREADS=1 python tests/measure_language.py FOLDER [WORKERS] [SEEDS] [SECONDS] [KIND ...]
One process a run (kind and seed), one JSON file a run in FOLDER, rewritten as it goes;
`python tests/measure_language.py join OUT FOLDER` makes the result of them.
"""
import json, os, sys, time
from dataclasses import asdict, replace
from pathlib import Path
import torch
import r1nb
from r1nb.core import hardware, write_atomic
from r1nb.eval import arithmetic_errors, rate_ci
from r1nb.language import LanguageConfig, speak, tongue
from r1nb.model import R1Model
from r1nb.r1_zero import zero
from r1nb.rollout import ask
from r1nb.tasks import countdown
sys.path.insert(0, str(Path(__file__).parent))
from sweep import sweep

ASSETS = Path(r1nb.__file__).parent/'assets'
BASE = LanguageConfig(steps=90, floor=.5)
FREE = replace(BASE, language=0.)
def after(n, steps=90, then=BASE): return [replace(FREE, steps=n), replace(then, steps=steps - n)]
KINDS = {'none': [FREE], 'weight 1': [BASE], 'by lot': [replace(BASE, steps=20, by_lot=True)],
         'after 20': after(20), 'lot after 20': after(20, 70, replace(BASE, by_lot=True)),
         'later': after(45), 'after 30': after(30), 'long': after(30, 120),
         'weight .3': [replace(BASE, language=.3)]}
HELD, DOCS, EVERY = int(os.environ.get('HELD', 500)), int(os.environ.get('DOCS', 1500)), 10

def look(model, n, k, seed):
    problems = countdown(n, 1, split='held_out')
    traces = ask(model, problems, k, 160, seed=seed)
    hits = [[t.answer for t in traces[i:i + k]] for i in range(0, len(traces), k)]
    wrong, steps = map(sum, zip(*(arithmetic_errors(t.response) for t in traces)))
    mean = lambda f: sum(map(f, traces))/len(traces)
    return dict(pass1=mean(lambda t: t.answer), ci95=list(rate_ci(hits)), n=n, k=k,
                format=mean(lambda t: t.format), tokens=mean(lambda t: len(t.ids)),
                cut=mean(lambda t: not t.done), slips=wrong/max(steps, 1),
                tries=mean(lambda t: t.response.count('Try') + t.response.count('试')),
                samples=[[t.prompt, t.response] for t in traces[:4*k:k]], **tongue(traces))

def one(kind, seed, file):
    torch.set_num_threads(1)
    parts, start, curve, done = KINDS[kind], time.perf_counter(), [], 0
    if 'TINY' in os.environ: parts = [replace(c, steps=2, prompts=4) for c in parts]
    model = speak(R1Model.from_pretrained(ASSETS/'nano'), DOCS, seed)
    run = dict(kind=kind, seed=seed, base=look(model, HELD, 2, seed))
    def after(step, opt, spent):
        if step % EVERY == 0 or done + step == 1:
            found = look(model, 100, 1, done + step)
            curve.append(dict(step=done + step, share=found['share'], pure=found['pure'],
                              pass1=found['pass1'], tokens=found['tokens']))
        write_atomic(file, json.dumps(run | dict(curve=curve)))
    for c in parts:
        own = seed + 1000*done
        zero(model, countdown(20_000, own), c, own, log=lambda row: None, after=after)
        done += c.steps
    run['end'] = look(model, HELD, 2, seed + 100)
    run['seconds'] = round(time.perf_counter() - start, 1)
    write_atomic(file, json.dumps(run | dict(curve=curve)))
    print(kind, seed, run['seconds'], {k: [round(run[w][k], 3) for w in ('base', 'end')]
                                       for k in ('pass1', 'share', 'pure', 'tokens')}, flush=True)

def main(folder, workers=4, seeds='0,1,2', until=460, *kinds):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder/'hardware.json', json.dumps(hardware()))
    file = lambda kind, seed: folder/f'{kind.replace(" ", "_")}-{seed}.json'
    sweep([['one', kind, seed, file(kind, seed)] for seed in seeds.split(',')
           for kind in kinds or KINDS], workers, until)

def join(out, folder):
    runs = [json.loads(f.read_text()) for f in sorted(Path(folder).glob('*-*.json'))]
    order = lambda r: (list(KINDS).index(r['kind']), r['seed'])
    runs = sorted(runs, key=order)
    part = [{k: r[k] for k in ('kind', 'seed', 'curve')} for r in runs if 'end' not in r]
    runs = [r for r in runs if 'end' in r]
    pilots = [{k: r[k] for k in ('kind', 'seed', 'end')} for r in runs if r['seed'] >= 10]
    for r in pilots: r['end'] = {k: v for k, v in r['end'].items() if k != 'samples'}
    runs = [r for r in runs if r['seed'] < 10]
    what = dict(what='R1-Zero on a bilingual nano base, with a reward for English thoughts',
                command='python tests/measure_language.py FOLDER, then join OUT FOLDER',
                documents=DOCS,
                hardware=json.loads((Path(folder)/'hardware.json').read_text()),
                recipes={k: [asdict(c) for c in cs] for k, cs in KINDS.items()})
    what |= dict(pilots=pilots, unfinished=part)  # pilots: the design was chosen on these
    note = Path(folder)/'note.txt'
    if note.exists(): what['note'] = note.read_text().strip()
    lines = ',\n'.join(json.dumps(r, separators=(',', ':'), ensure_ascii=False) for r in runs)
    Path(out).write_text(json.dumps(what)[:-1] + ', "runs": [\n' + lines + ']}\n')

if __name__ == '__main__':
    if sys.argv[1] == 'join': join(*sys.argv[2:])
    elif sys.argv[1] == 'one': one(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else: main(*sys.argv[1:])
