"""A student of a quarter of the size: nbs/results/small_student.json.

    python tests/measure_small_student.py OUT.jsonl KIND [--seeds 0 1 2 3 4] [--only steps answers]

KIND chains: a teacher of chains and its students. KIND sums: a teacher of long sums and its
students, begun well and badly. KIND pairs: answers alone, to chains of two steps alone. LESSONS
(environment): a folder that keeps what the teachers of chains wrote, so that students can be taught
elsewhere. A line after every student, with all that its kind and seed have so far; `--only` names
the students to be taught.
    python tests/measure_small_student.py --merge nbs/results/small_student.json OUT.jsonl...
"""
import argparse, json, os, time
from dataclasses import replace
from pathlib import Path
from random import Random

def chains(seed, only, tiny, log):
    from r1nb.small_student import PUPILS, graduate
    graduate(*classroom(seed, tiny), {k: PUPILS[k] for k in only or PUPILS}, log)

def classroom(seed, tiny):
    "From the folder LESSONS (environment) if somebody was there before, else from a new teacher."
    import r1nb
    from r1nb.rollout import Trace
    from r1nb.small_student import classroom
    from r1nb.tokens import encode
    file = Path(os.environ.get('LESSONS', '.'))/f'small_{seed}.json'
    if 'LESSONS' in os.environ and file.exists():
        kept = json.loads(file.read_text())
        return kept['row'], [Trace(*t, encode(f'{t[2]} <|end|>'), [], True, 1., 1., '')
                             for t in kept['read']]
    base = str(Path(r1nb.__file__).parent/'assets'/'nano')
    row, read = classroom(base, seed, **dict(n=1000, asked=4000) if tiny else {})
    if 'LESSONS' in os.environ:
        kept = dict(row=row, read=[(t.problem, t.prompt, t.response) for t in read])
        file.write_text(json.dumps(kept))
    return row, read

def sums(seed, only, tiny, log):
    import r1nb
    from r1nb.inheritance import Flaws, QUARTER, examine, schooled, sums
    from r1nb.rollout import ask
    from r1nb.small_student import newborn, read_as
    base = Path(r1nb.__file__).parent/'assets'/'nano'
    teacher = schooled(str(base), Flaws(), seed, **dict(n=1000, epochs=2) if tiny else {})
    said = ask(teacher, sums(1000 if tiny else 24000, 2000 + seed), max_new=80, seed=seed)
    read = [t for t in said if t.answer]
    row = dict(seed=seed, teacher=examine(teacher, seed=seed)['any'], lessons=len(read),
               students={})
    config = replace(QUARTER, initializer_range=QUARTER.hidden_size**-.5)
    known = {'steps': config, 'answers': config, 'steps, .05': QUARTER}
    for name in only or known:
        rows = read_as(name.split(',')[0], read)
        pupil = newborn(rows, seed, known[name], epochs=5, lr=6e-3)
        row['students'][name] = examine(pupil, seed=seed)['any'] | dict(places=places(pupil))
        log(row)

def pairs(seed, only, tiny, log):
    from r1nb.rollout import ask, judge
    from r1nb.small_student import chains, newborn, read_as, sit, work_through
    from r1nb.tokens import encode
    book = chains(1200, seed, lengths=(2, 2))
    page = [judge(p, encode(work_through(p) + ' <|end|>'), [], True) for p in book]
    pupil = newborn(read_as('answers', page), seed, epochs=2 if tiny else 40)
    again = [t.answer for t in ask(pupil, book[:500], max_new=20, seed=seed)]
    does = sit(pupil, 70, lengths=(2, 2), seed=seed) | dict(lessons=sum(again)/len(again))
    log(dict(seed=seed, students={'answers': does}))

def places(model):
    "Loss on the number that comes next, by its place: `3 of 4` is the third of four additions."
    import torch, torch.nn.functional as F
    from r1nb.inheritance import Flaws, sums, work
    from r1nb.tokens import IDS, chat, encode
    loss, rng = {}, Random(0)
    for p in sums(600, 77, None, 'held_out'):
        q, r = chat(p.prompt), encode(work(p, Flaws(), rng))
        with torch.no_grad(): z = model.lm_head(model.hidden(torch.tensor([q + r])))[0]
        at = [i for i, t in enumerate(r) if t == IDS['+']]
        for k, i in enumerate(at, 1):
            ce = F.cross_entropy(z[len(q) + i], torch.tensor(r[i + 1]))
            loss.setdefault(f'{k} of {len(at)}', []).append(ce.item())
    return {k: round(sum(xs)/len(xs), 4) for k, xs in sorted(loss.items())}

KINDS = dict(chains=chains, sums=sums, pairs=pairs)

def measure(out, kind, seed, only, tiny):
    import torch
    from r1nb.core import hardware
    torch.set_num_threads(1)
    begun, here = time.perf_counter(), hardware()
    def log(row):
        row = dict(kind=kind) | row | dict(hardware=here,
                                           seconds=round(time.perf_counter() - begun, 1))
        with open(out, 'a') as f: f.write(json.dumps(row) + '\n')
        name = [*row['students']][-1]
        print(kind, seed, name, row['students'][name]['pass1'], row['seconds'], 's', flush=True)
    KINDS[kind](seed, only, tiny, log)

def merge(out, parts):
    from r1nb.core import write_atomic
    lines = [json.loads(s) for p in parts for s in Path(p).read_text().splitlines()]
    rows, was = {}, {json.dumps(r.pop('hardware'), sort_keys=True) for r in lines}
    for r in lines:
        r.pop('seconds', 0)
        have = rows.setdefault((r['kind'], r['seed']), r)
        have['students'].update(r['students'])
    what = dict(what='a student of a quarter of the size: with and without the steps, badly begun',
                command='python tests/measure_small_student.py OUT chains; then sums, then pairs',
                hardware=[*map(json.loads, sorted(was))])
    text = ',\n'.join(json.dumps(rows[k], separators=(',', ':')) for k in sorted(rows))
    write_atomic(out, json.dumps(what)[:-1] + ', "rows": [\n' + text + ']}\n')

def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('out', type=Path); ap.add_argument('kinds', nargs='+')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    ap.add_argument('--only', nargs='+')
    ap.add_argument('--tiny', action='store_true'); ap.add_argument('--merge', action='store_true')
    a = ap.parse_args()
    if a.merge: return merge(a.out, a.kinds)
    os.environ['OMP_NUM_THREADS'] = '1'
    for seed in a.seeds:
        for kind in a.kinds: measure(a.out, kind, seed, a.only, a.tiny)

if __name__ == '__main__': main()
