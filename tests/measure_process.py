"""Measures the step checkers of rooms 32: writes nbs/results/process_*.json.

    python tests/measure_process.py checkers OUT.jsonl      exact checkers: plants, labelled sets
    python tests/measure_process.py reward OUT.jsonl SEED [controls]   learned judges, one seed
    python tests/measure_process.py zero OUT.jsonl SEED     right but wrong, along R1-Zero
The labelled sets are looked for in R1NB_DATA. Lines are appended as they are measured, so that a
killed run keeps what it has; R1NB_SMALL=20 divides all sizes, to try the script.
"""
import json, os, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
import torch
import r1nb
from r1nb.core import hardware
from r1nb.model import R1Model
from r1nb.tasks import countdown
from r1nb.tokens import END, chat, decode, encode
from r1nb.verify import verify

ASSETS = Path(r1nb.__file__).parent/'assets'
DATA = Path(os.environ.get('R1NB_DATA', Path(__file__).parent.parent/'../shared/data'))

SMALL = int(os.environ.get('R1NB_SMALL', 1))

def lines(path): return [json.loads(s) for s in path.read_text().splitlines()]
def put(out, **row):
    with open(out, 'a') as f: f.write(json.dumps(row) + '\n')
    print({k: v for k, v in row.items() if not isinstance(v, (dict, list))}, flush=True)

# ---- learned judges ----------------------------------------------------------------------------
def found(scorer, bar, rows):
    "Share of traces with a step below the bar, by kind of mistake."
    from r1nb.process_reward import score_rows
    from r1nb.process_replay import PLANTS
    flags = [min(s) < bar for s in score_rows(scorer, rows)]
    out = {'sound': [sum(flags[::2]), len(flags[::2])]}
    for k, kind in enumerate(PLANTS):
        x = [f for i, f in enumerate(flags[1::2]) if i % len(PLANTS) == k]
        out[kind] = [sum(x), len(x)]
    return out

def auc(pos, neg):
    "Chance that a wrong step scores lower than a sound one."
    order = sorted([(s, 1) for s in pos] + [(s, 0) for s in neg])
    below, total, i = 0., 0., 0
    while i < len(order):
        j = i
        while j < len(order) and order[j][0] == order[i][0]: j += 1
        p = sum(y for _, y in order[i:j]); n = j - i - p
        total += n*(below + p/2); below += p; i = j
    return total/max(len(pos)*len(neg), 1)

def samples(model, n, k, seed, split='held_out', max_new=160):
    from r1nb.sample import generate
    problems = [p for p in countdown(n, seed=seed, split=split) for _ in range(k)]
    out = []
    for i in range(0, len(problems), 256):
        s = generate(model, [chat(p.prompt) for p in problems[i:i+256]], max_new, seed=seed + i)
        out += [decode([t for t in ids if t != END]) for ids in s.ids]
    return problems, out

def reward(out, seed, part='main'):
    from r1nb import process_reward as pr
    from r1nb.process_replay import PLANTS, replay
    torch.set_num_threads(1)
    rows, t0 = {}, time.time()
    def data(n, kinds=PLANTS, tag=0):
        key = (n, kinds, tag)
        if key not in rows: rows[key] = pr.rows_of(n, f'{tag}/{seed}', kinds)
        return rows[key]
    val, test = data(320//SMALL, tag='val'), data(800//SMALL, tag='test')
    nano = R1Model.from_pretrained(ASSETS/'nano')
    problems, texts = samples(nano, 120//SMALL, 4, seed + 77)
    own = []
    for p, r in zip(problems, texts):
        try: own.append(pr.read_row(p, r, False))
        except Exception: pass
    def run(name, n, kinds=PLANTS, trunk='nano', shuffled=False, lr=1e-3):
        begun, train = time.time(), data(n//SMALL, kinds)
        if shuffled:
            rng = Random(seed)
            train = [r._replace(labels=rng.sample(r.labels, len(r.labels))) for r in train]
            flat = [x for r in train for x in r.labels]; rng.shuffle(flat); it = iter(flat)
            train = [r._replace(labels=[next(it) for _ in r.labels]) for r in train]
        torch.manual_seed(seed)
        base = R1Model.from_pretrained(ASSETS/'nano')
        if trunk == 'random': base = R1Model(base.config)
        scorer = pr.train_scorer(base, train, epochs=2, lr=lr, seed=seed)
        clean = pr.score_rows(scorer, [r for r in val if not r.planted])
        bar = pr.threshold_for(clean)
        scores = pr.score_rows(scorer, test)
        steps = [(s, y) for ss, r in zip(scores, test) for s, y in zip(ss, r.labels)]
        mine = [(s, y) for ss, r in zip(pr.score_rows(scorer, own), own)
                for s, y in zip(ss, r.labels)]
        area = lambda xs: auc([s for s, y in xs if not y], [s for s, y in xs if y])
        put(out, what='reward', name=name, seed=seed, pairs=n, bar=bar,
            found=found(scorer, bar, test),
            step_auc=area(steps), own_step_auc=area(mine), own_wrong=sum(not y for _, y in mine),
            own_steps=len(mine), own_hits=sum(s < bar and not y for s, y in mine),
            own_false=sum(s < bar and y > 0 for s, y in mine), seconds=time.time() - begun)
        return scorer, bar
    if part == 'controls':
        run('shuffled labels', 1000, shuffled=True)
        run('wrong results only', 1000, kinds=('result',))
        run('random weights', 1000, trunk='random')
    else:
        pressure(out, *run('pretrained', 1000), seed)
        judge(out, seed)
        run('pretrained', 250)
        run('pretrained', 2000)
    put(out, what='done', seed=seed, seconds=time.time() - t0)

def pressure(out, scorer, bar, seed, problems=60//SMALL, tries=64):
    "Write ever more wrong traces with the right answer and keep the one the scorer likes best."
    from r1nb import process_reward as pr
    from r1nb.process_replay import PLANTS, replay, sound_trace, spoil, written
    fooled, exact, ks = Counter(), 0, [1, 2, 4, 8, 16, 32, 64]
    for j in range(problems):
        rng = Random(f'pressure/{seed}/{j}')
        t, rows = sound_trace(rng, most=0), []
        while len(rows) < tries:
            kind = PLANTS[int(rng.random()*(len(PLANTS) - 1))]
            if steps := spoil(t.steps, t.problem.meta['numbers'], kind, rng):
                text = written(t, steps)
                exact += replay(t.problem, text).flagged
                rows.append(pr.read_row(t.problem, text, True))
        ok = [min(s) >= bar for s in pr.score_rows(scorer, rows)]
        for k in ks: fooled[k] += any(ok[:k])
    put(out, what='pressure', seed=seed, problems=problems, tries=ks,
        fooled=[fooled[k] for k in ks], exact_found=exact, exact_of=problems*tries)

def judge(out, seed, n=6000//SMALL):
    "Nano taught to say right. or wrong. of a sum, then asked as a judge through generate."
    from r1nb import process_reward as pr
    from r1nb.process import detection
    from r1nb.process_replay import PLANTS, planted
    from r1nb.train import sft
    begun = time.time()
    model = R1Model.from_pretrained(ASSETS/'nano')
    sft(model, pr.lessons(n, seed), epochs=2, batch=64, lr=1e-3, seed=seed, log=lambda r: None)
    taught = pr.Judge(pr.nano_ask(model), pr.SUM_BY_SUM, max_new=2)
    tests = [(kind, *planted(Random(f'judge/{seed}/{i}'), kind))
             for i in range(max(30//SMALL, 2)) for kind in PLANTS]
    got = {}
    for kind in PLANTS:
        mine = [(p, b) for k, p, g, b in tests if k == kind]
        got[kind] = [sum(v.flagged for v in taught.check_all(*zip(*mine))), len(mine)]
    clean = [(p, g) for _, p, g, _ in tests]
    got['sound'] = [sum(v.flagged for v in taught.check_all(*zip(*clean))), len(clean)]
    put(out, what='judge', seed=seed, lessons=n, found=got, seconds=time.time() - begun)

# ---- right but wrong, before and after R1-Zero ---------------------------------------------------
def zero(out, seed):
    from r1nb.process import right_but_wrong
    from r1nb.process_replay import replay
    from r1nb.r1_zero import ZeroConfig, zero as train
    torch.set_num_threads(1)
    model = R1Model.from_pretrained(ASSETS/'nano')
    def look(step):
        problems, texts = samples(model, 128//SMALL, 4, 5000 + seed, max_new=246)
        verdicts = [verify(p, r) for p, r in zip(problems, texts)]
        for name, path in (('path', True), ('anywhere', False)):
            ps = [replay(p, r, path=path) for p, r in zip(problems, texts)]
            why = Counter(kind_of(s.reason) for v, p in zip(verdicts, ps) if v.answer
                          for s in p.steps if s.sound is False)
            put(out, what='zero', seed=seed, step=step, where=name, reasons=dict(why),
                **right_but_wrong(verdicts, ps))
    look(0)
    begun = time.time()
    def after(step, opt, spent):
        if step in (20, 40): look(step)
    train(model, countdown(4000, seed=seed), ZeroConfig(steps=max(60//SMALL, 2), prompts=16//min(SMALL, 4), G=16, max_new=134),
          seed=seed, log=lambda r: None, after=after)
    look(60)
    put(out, what='done', seed=seed, seconds=time.time() - begun)

def kind_of(reason):
    return ('claim' if reason.startswith("'") else 'not there' if 'not there' in reason
            else 'answer' if reason.startswith('the answer') else 'sum')

if __name__ == '__main__':
    what, out = sys.argv[1], Path(sys.argv[2])
    if what in ('reward', 'zero'):
        put(out, what='machine', command=' '.join(sys.argv), hardware=hardware())
        dict(reward=reward, zero=zero)[what](out, int(sys.argv[3]), *sys.argv[4:])
