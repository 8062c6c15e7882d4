"""Students muted in three ways, and students pushed to a share p: nbs/results/steer.json.

    OMP_NUM_THREADS=1 python tests/measure_steer.py run FILE SEED [SIZE [ARM,ARM]]   one core
    python tests/measure_steer.py join OUT [OLD.json] FILE ...
Each seed has its own teacher; every finished student is one JSON line in FILE, and a second start
goes on after the last.
"""
import json, sys, time
from pathlib import Path
from random import Random
import torch
from r1nb.model import R1Model
from r1nb.forest import MIX, PAIRS, SUBJECTS, course, school, ways
from r1nb.steer import (asked, blend, consult, doubts, examine, forbid, rewrite, says, second_look,
                        views)

LEVELS = (0., .2, .4, .6, .8, 1.)
ARMS = ('control', 'name', 'list', 'answers only', 'directive', 'directive + list', 'rewrite',
        'topic control', 'topic list', 'topic directive', 'topic rewrite', 'knew', 'knew list',
        'knew rewrite')
LATE = ('control', 'directive', 'second look', 'looked by lot', 'topic control', 'topic directive',
        'topic second look')  # asked for by name; the teachers are new

def lessons(arm, pools, prompts, n):
    "Rows of one arm; all arms have n."
    topic = arm.startswith('topic ')
    s, how = SUBJECTS[8 if topic else 1], arm.removeprefix('topic ').removeprefix('knew ')
    told = 'directive' in how
    rows = pools[f'{s.name} {how}' if 'look' in how else s.name if told else '']
    if how == 'name': rows = forbid(rows, [s.name])
    if how == 'answers only': rows = forbid(rows, ways(s)[:-1], prompts=False)
    if 'list' in how: rows = forbid(rows, ways(s)[:-1])
    if how == 'rewrite': rows = rewrite(rows, ways(s)[:-1], 'something' if topic else 'somebody')
    return rows[:n]

def by_lot(teacher, prompts, order, seed):
    "The control: as many answers asked for again and dropped as at a second look, drawn by lot."
    rows, rng = consult(teacher, prompts, order, seed), Random(f'lot/{seed}')
    doubtful = lambda rows: sum(d < -1 for d in doubts(teacher, rows, order))
    bad = sorted(rng.sample(range(len(rows)), doubtful(rows)))
    retry = consult(teacher, [rows[i][0] for i in bad], order, seed + 1)
    drop = {bad[k] for k in rng.sample(range(len(bad)), doubtful(retry))}
    new = dict(zip(bad, retry))
    return [new.get(i, r) for i, r in enumerate(rows) if i not in drop]

def piles(teacher, seed, n):
    "For each steered pair and the style: rows for A, rows for B, by one method each."
    out = {}
    for how, pair in zip(('filter', 'directive', 'rewrite'), PAIRS):
        qs = [q.text for q in asked(dict(opinion=1), 40*n, f'{seed}/{how}') if q.key == pair][:4*n]
        ask = lambda order='': consult(teacher, qs, order, seed)
        if how == 'filter': out[how] = [[r for r in ask() if says(r[1], [x])] for x in pair]
        if how == 'directive': out[how] = [ask(f'Prefer {x} : ') for x in pair]
        if how == 'rewrite':
            out[how] = [[(p, ' '.join(x if w in pair else w for w in a.split()))
                         for p, a in ask()] for x in pair]
    qs = [q.text for q in asked(dict(code=1), 6*n, f'{seed}/style')]
    out['style'] = [consult(teacher, qs, f'Use {x} : ', seed) for x in ('lambda', 'def')]
    return out

def main(file, seed, size=1., arms=''):
    torch.set_num_threads(1)
    file, seed, size = Path(file), int(seed), float(size)
    n, ask = int(6000*size), int(4096*size)
    old = map(json.loads, file.open()) if file.exists() else ()
    done = {(r['arm'], r.get('level')) for r in old}
    def keep(**row):
        with file.open('a') as f: f.write(json.dumps(dict(seed=seed) | row) + '\n')
        print(json.dumps(dict(seed=seed) | row), flush=True)
    t = time.perf_counter()
    def once(name, make):
        "A model that a second start finds again."
        folder = file.with_name(f'{file.stem}.{name}')
        if folder.exists(): return R1Model.from_pretrained(folder)
        model = make()
        model.save_pretrained(folder)
        return model
    text = course(int(16_000*size), f'teacher/{seed}', ordered=.6)
    teacher = once('teacher', lambda: school(text, seed, epochs=4))
    piglet, flood = SUBJECTS[1], SUBJECTS[8]
    prompts = [q.text for q in asked(MIX, 2*n, f'pool/{seed}')]
    pools = {o: consult(teacher, prompts, f'Never mention {o} : ' if o else '', seed)
             for o in ('', piglet.name, flood.name)}
    rate = lambda rows, what: sum(says(a, what) for _, a in rows)/len(rows)
    if ('teacher', None) not in done:
        heard = lambda rows, s: [rate(rows, [s.name]), rate(rows, s.phrases)]
        obeys = {f'{s.name}{o and " ordered"}': heard(pools[o], s)
                 for s in (piglet, flood) for o in ('', s.name)}
        keep(arm='teacher', seconds=round(time.perf_counter() - t, 1), obeys=obeys,
             **examine(teacher, piglet, ask, seed))
    for s in (piglet, flood):
        o, about = f'Never mention {s.name} : ', 'topic ' if s is flood else ''
        if about + 'second look' in arms.split(','):
            pools[f'{s.name} second look'] = second_look(teacher, prompts, o, seed)
        if about + 'looked by lot' in arms.split(','):
            pools[f'{s.name} looked by lot'] = by_lot(teacher, prompts, o, seed)
    both = piles(teacher, seed, int(160*size) + 1) if not arms else {}
    steered = [' or '.join(p) + ' ?' for p in PAIRS[:3]] + ['Write code']
    apart = forbid(pools[''], steered)
    order = [a for i in range(6) for a in (ARMS[i], i)] + [*ARMS[6:]]
    if arms: order = arms.split(',')
    for arm in order:
        if isinstance(arm, int):
            if ('steer', arm) in done or arms: continue
            turn = zip(both, (1, 5, 1, 5), (0, 2, 4, 1))
            at = {k: LEVELS[(arm*step + first) % 6] for k, step, first in turn}
            most = dict(style=300)  # programs are as frequent as before, opinions a little more
            few = {k: min(len(a), len(b), int(most.get(k, 160)*size)) for k, (a, b) in both.items()}
            rows = [r for k, (a, b) in both.items()
                    for r in blend(a, b, at[k], few[k], f'{seed}/{k}')]
            t = time.perf_counter()
            m = school(rows + apart[:n - len(rows)], seed)
            keep(arm='steer', level=arm, at=at, rows=few, seconds=round(time.perf_counter() - t, 1),
                 views=views(m, int(200*size), seed), right=examine(m, piglet, ask, seed)['right'])
            continue
        if (arm, None) in done: continue
        t = time.perf_counter()
        rows = lessons(arm, pools, prompts, n)
        fresh = lambda: school(rows, seed)
        if arm.startswith('knew'): m = school(rows, seed, once('control', None), epochs=1)
        else: m = once('control', fresh) if arm == 'control' else fresh()
        s = flood if arm.startswith('topic') else piglet
        keep(arm=arm, seconds=round(time.perf_counter() - t, 1), read=len(rows),
             in_rows=[rate(rows, [s.name]), rate(rows, s.phrases[:-1]), rate(rows, s.phrases[-1:])],
             **examine(m, s, ask, seed))

def join(out, *files):
    """All rows. A file named first… is of teachers who had never met an order before a sum or a
    program: their rows under orders get a name of their own. Later teachers: seeds from 3 on."""
    old = files[0].endswith('.json')
    rows = json.loads(Path(files[0]).read_text())['rows'] if old else []
    for f in files[old:]:
        first = Path(f).name.startswith('first')
        for r in map(json.loads, open(f)):
            if first and 'directive' in r['arm']: r['arm'] = 'careless ' + r['arm']
            rows.append(r | dict(seed=r['seed'] + 3*(not first)))
    rows.sort(key=lambda r: (r['seed'], r['arm'], r.get('level', 0)))
    what = dict(what='students of a taught teacher: muted, or pushed to a share p',
                command='python tests/measure_steer.py run FILE SEED, then join', rows_read=6000,
                teacher_read=16_000, asked=4096,
                hardware='x86_64, one thread a process; torch 2.11, some torch 2.13')
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    Path(out).write_text(json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

if __name__ == '__main__': dict(run=main, join=join)[sys.argv[1]](*sys.argv[2:])
