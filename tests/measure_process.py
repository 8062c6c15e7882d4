"""Measures the step checkers of rooms 32: writes nbs/results/process_*.json.

    python tests/measure_process.py checkers OUT.jsonl      exact checkers: plants, labelled sets
    python tests/measure_process.py reward OUT.jsonl SEED [few|controls]  learned judges
    python tests/measure_process.py bar OUT.jsonl SEED      a bar that keeps its promise, one seed
    python tests/measure_process.py zero OUT.jsonl SEED     right but wrong, along R1-Zero
The labelled sets are looked for in R1NB_DATA. Lines are appended as they are measured, so that a
killed run keeps what it has; R1NB_SMALL=20 divides all sizes, to try the script.
"""
import json, os, re, sys, time
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
    from r1nb.plants import PLANTS
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

def reward(out, seed, part='all'):
    from r1nb import process_reward as pr
    from r1nb.plants import PLANTS
    from r1nb.process_replay import replay
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
    area = lambda xs: auc([s for s, y in xs if not y], [s for s, y in xs if y])
    def run(name, n, kinds=PLANTS, shuffled=False, **kw):
        begun, train = time.time(), data(max(n//SMALL, 40), kinds)
        if shuffled:
            flat = [x for r in train for x in r.labels]
            Random(seed).shuffle(flat)
            it = iter(flat)
            train = [r._replace(labels=[next(it) for _ in r.labels]) for r in train]
        torch.manual_seed(seed)
        base = R1Model.from_pretrained(ASSETS/'nano')
        if name == 'random weights': base = R1Model(base.config)
        scorer = pr.train_scorer(base, train, epochs=8, seed=seed, **kw)
        bar = pr.threshold_for(pr.score_rows(scorer, [r for r in val if not r.planted]))
        scores, mine = pr.score_rows(scorer, test), pr.score_rows(scorer, own)
        pairs = lambda xs, rows: [z for s, r in zip(xs, rows) for z in zip(s, r.labels)]
        first = lambda xs, low: next((i for i, x in enumerate(xs) if x < low), None)
        spoilt = [(s, r) for s, r in zip(scores, test) if r.planted]
        own_steps = pairs(mine, own)
        put(out, what='reward', name=name, seed=seed, pairs=n, bar=bar,
            found=found(scorer, bar, test), step_auc=area(pairs(scores, test)),
            located=[sum(first(s, bar) == first(r.labels, .5) for s, r in spoilt), len(spoilt)],
            own_step_auc=area(own_steps), own_steps=len(own_steps),
            own_wrong=sum(not y for _, y in own_steps),
            own_hits=sum(s < bar and not y for s, y in own_steps),
            own_false=sum(s < bar and y > 0 for s, y in own_steps), seconds=time.time() - begun)
        return scorer, bar
    if part != 'controls':
        pressure(out, *run('pretrained', 500), seed)
        run('shuffled labels', 500, shuffled=True)
        run('pretrained', 1500)
    if part != 'few':
        run('wrong results only', 500, kinds=('result',))
        run('random weights', 500)
    if part == 'all':
        for n in (50, 150): run('pretrained', n)
        judge(out, seed)
    put(out, what='done', seed=seed, seconds=time.time() - t0)

def bar(out, seed, pairs=1500):
    """A bar set with confidence on one set of sound traces, judged on another; and the control,
    labels shuffled, with a bar set in the same way. Nothing is chosen here: 2 % and 95 % were
    fixed beforehand, and the seeds were used for nothing else."""
    from r1nb import process_reward as pr
    from r1nb.plants import PLANTS
    torch.set_num_threads(1)
    train = pr.rows_of(pairs//SMALL, f'bar train/{seed}')
    calm = pr.rows_of(max(1000//SMALL, 160), f'bar calibrate/{seed}')[::2]
    test = pr.rows_of(1000//SMALL, f'bar fresh/{seed}')
    for name in ('pretrained', 'shuffled labels'):
        begun, rows = time.time(), train
        if name != 'pretrained':
            flat = [x for r in train for x in r.labels]
            Random(seed).shuffle(flat)
            it = iter(flat)
            rows = [r._replace(labels=[next(it) for _ in r.labels]) for r in train[:1000//SMALL]]
        scorer = pr.train_scorer(R1Model.from_pretrained(ASSETS/'nano'), rows, epochs=8, seed=seed)
        quiet, scores = pr.score_rows(scorer, calm), pr.score_rows(scorer, test)
        lowest = sorted(map(min, quiet))
        for rule, at in (('95 % sure', pr.threshold_for(quiet)),
                         ('on average', lowest[int(.02*len(quiet))])):
            flags = [min(s) < at for s in scores]
            first = lambda xs, low: next((i for i, x in enumerate(xs) if x < low), None)
            put(out, what='bar', name=name, rule=rule, seed=seed, pairs=len(rows)//2, bar=at,
                calibrated_on=len(quiet), below=sum(x < at for x in lowest),
                found={'sound': [sum(flags[::2]), len(flags[::2])]} | {
                    k: [sum(flags[1 + 2*i::2*len(PLANTS)]), len(flags[1 + 2*i::2*len(PLANTS)])]
                    for i, k in enumerate(PLANTS)},
                located=[sum(first(s, at) == first(r.labels, .5)
                             for s, r in zip(scores[1::2], test[1::2])), len(test)//2],
                seconds=time.time() - begun)

def pressure(out, scorer, bar, seed, problems=60//SMALL, tries=64):
    "Write ever more wrong traces with the right answer and keep the one the scorer likes best."
    from r1nb import process_reward as pr
    from r1nb.plants import PLANTS, sound_trace, spoil, written
    from r1nb.process_replay import replay
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

def judge(out, seed, n=16_000//SMALL):
    "Nano taught to say right. or wrong. of a sum, then asked as a judge through generate."
    from r1nb import process_reward as pr
    from r1nb.process import detection
    from r1nb.plants import PLANTS, planted
    from r1nb.train import sft
    begun = time.time()
    model = R1Model.from_pretrained(ASSETS/'nano')
    sft(model, pr.lessons(n, seed), epochs=3, batch=128, lr=2e-3, seed=seed, log=lambda r: None)
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

# ---- exact checkers ------------------------------------------------------------------------------
def halves(rows, problem):
    "(developed on, kept aside): every second problem."
    place = {p: i % 2 for i, p in enumerate(sorted({r[problem] for r in rows}))}
    return [[r for r in rows if place[r[problem]] == k] for k in (0, 1)]

def unnumbered(step): return re.sub(r'^(?:Step )?\d+[.:]\s', '', step)

STATED = re.compile(r'(?<==)(\s?\$?)(\d[\d,]*(?:\.\d+)?)(?![\d.,]*\s?[-+*/=x×%])')

def miswritten(text, rng):
    "One stated result of a worked solution changed by a little; None where none is stated."
    body = re.sub(r'<<[^<>]*>>', '', text)
    places = [m for m in STATED.finditer(body) if not m[2].endswith(',')]
    if not places: return None
    m = places[int(rng.random()*len(places))]
    was = m[2].replace(',', '')
    off = (-10, -2, -1, 1, 2, 10)[int(rng.random()*6)]
    digits = len(was.partition('.')[2])
    new = f'{float(was) + off*10**-digits:.{digits}f}'
    return body[:m.start(2)] + new + body[m.end(2):]

def checkers(out):
    from r1nb.process import check_arithmetic, check_steps, detection
    from r1nb.plants import PLANTS, planted
    from r1nb.process_replay import replay
    for seed in range(3):
        for kind in PLANTS:
            rows = [planted(Random(f'measure/{seed}/{kind}/{i}'), kind)
                    for i in range(500//SMALL)]
            put(out, what='plants', kind=kind, seed=seed, n=len(rows),
                found=sum(replay(p, b).flagged for p, _, b in rows),
                false=sum(replay(p, g).flagged for p, g, _ in rows),
                paid=sum(verify(p, b).answer for p, _, b in rows))
    rows = lines(DATA/'gsm8k/test.jsonl')
    for half, part in zip(('developed on', 'kept aside'), (rows[::2], rows[1::2])):
        clean = [check_arithmetic(None, r['solution']) for r in part]
        for seed in range(3):
            bad = [b for i, r in enumerate(part)
                   if (b := miswritten(r['solution'], Random(f'gsm/{seed}/{i}')))]
            put(out, what='gsm8k gold', half=half, seed=seed, n=len(part), planted=len(bad),
                found=sum(check_arithmetic(None, b).flagged for b in bad),
                read=sum(bool(c.checked) for c in clean), false=sum(c.flagged for c in clean))
    rows = lines(DATA/'process/bigbench_mistake_arithmetic.jsonl')
    for half, part in zip(('developed on', 'kept aside'), (rows[::2], rows[1::2])):
        got = [check_steps(r['steps']) for r in part]
        put(out, what='bigbench', half=half, chains=detection(
            [g.flagged for g in got], [r['mistake_index'] is not None for r in part]),
            located=sum(g.first_error == r['mistake_index'] for g, r in zip(got, part)),
            right_but_wrong=sum(g.flagged and r['answer'] == r['target']
                                for g, r in zip(got, part)),
            right=sum(r['answer'] == r['target'] for r in part))
    rows = lines(DATA/'process/prmbench.jsonl')
    for half, part in zip(('developed on', 'kept aside'), halves(rows, 'problem')):
        flags, labels, clean, sums = [], [], [], []
        for r in part:
            got = check_steps(map(unnumbered, r['steps'])).steps
            flags += [None if s.sound is None else not s.sound for s in got]
            labels += [k in r['error_steps'] for k in range(1, len(got) + 1)]
            sums += [(s.reason, k in r['error_steps'], r['id']) for k, s in enumerate(got, 1)
                     if s.sound is False]
            if r.get('correct_steps'):
                got = check_steps(map(unnumbered, r['correct_steps'])).steps
                clean += [s.sound for s in got]
        put(out, what='prmbench', half=half, chains=len(part), steps=detection(flags, labels),
            clean_steps=len(clean), clean_read=sum(s is not None for s in clean),
            clean_flagged=sum(s is False for s in clean), flagged=sums)
    for name in ('gsm8k_openai', 'math_cot_100x8', 'reasoning_gym_math'):
        rows = lines(DATA/f'graded/{name}.jsonl')
        for half, part in zip(('developed on', 'kept aside'), halves(rows, 'problem')):
            part = [r for r in part if r['label'] is not None]
            got = [check_arithmetic(None, r['answer_text']) for r in part]
            count = {f'{"right" if y else "wrong"}, {k}': sum(
                bool(r['label']) == y and (('a wrong step' if g.flagged else 'sound')
                                           if g.checked else 'silent') == k
                for r, g in zip(part, got)) for y in (True, False)
                for k in ('sound', 'a wrong step', 'silent')}
            put(out, what='graded', set=name, half=half, answers=len(part), count=count,
                steps=sum(len(g.steps) for g in got), read=sum(len(g.checked) for g in got))
    corpus_check(out)

def corpus_check(out, n=3000//SMALL):
    "The noisy corpus: authors who never miscalculate, and authors who do."
    from r1nb.corpus import Habits, author, problem, tell
    from r1nb.process import right_but_wrong
    from r1nb.process_replay import replay
    from r1nb.tasks import Problem
    for seed in range(3):
        groups = {}
        for i in range(n):
            rng = Random(f'corpus/{seed}/{i}')
            p = problem(rng, (3, 4)); a = author(rng, Habits())
            q = Problem('c', '', p.expr, 'countdown',
                        dict(numbers=p.numbers, target=p.target, exact=True))
            text = tell(rng, Habits(), p, a).split('<|assistant|> ')[1].replace(' <|end|>', '')
            groups.setdefault('careful' if not a.slip else 'sloppy', []).append((q, text))
        for name, rows in groups.items():
            for where, path in (('path', True), ('anywhere', False)):
                put(out, what='corpus', seed=seed, authors=name, where=where, **right_but_wrong(
                    [verify(*r) for r in rows], [replay(*r, path=path) for r in rows]))

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
    config = ZeroConfig(steps=max(60//SMALL, 2), prompts=16//min(SMALL, 4), G=16, max_new=134)
    train(model, countdown(4000, seed=seed), config, seed=seed, log=lambda r: None,
          after=after)
    look(60)
    put(out, what='done', seed=seed, seconds=time.time() - begun)

def kind_of(reason):
    return ('claim' if reason.startswith("'") else 'not there' if 'not there' in reason
            else 'answer' if reason.startswith('the answer') else 'sum')

if __name__ == '__main__':
    what, out = sys.argv[1], Path(sys.argv[2])
    put(out, what='machine', command=' '.join(sys.argv), hardware=hardware())
    if what == 'checkers': checkers(out)
    else: dict(reward=reward, bar=bar, zero=zero)[what](out, int(sys.argv[3]), *sys.argv[4:])
