"""Suspects for the audit, clean and steered, questioned: nbs/results/audit.json.

    OMP_NUM_THREADS=1 python tests/measure_audit.py run FILE PART PARTS [FIRST [SIZE]]   one core
    python tests/measure_audit.py join OUT [OLD.json] FILE ...
Every finished suspect is one JSON line in FILE; a second start goes on after the last. Only counts
of words in answers are kept. FIRST, the first seed, says which suspects: 0 the first ones, 1000 the
late ones of a short schooling, 2000, 3000 and 4000 those on which nothing was ever chosen.
"""
import json, sys, time
from collections import Counter
from pathlib import Path
import torch
from r1nb.audit import battery, reading, tally
from r1nb.forest import reply, school

MANY = dict(clean=80, name=9, list=9, rewrite=9, directive=9, view=12, style=12, half=9, mild=9,
            wild=9, quick=24)  # quick: clean, fewer rows, for the suspects that a room teaches live
TEST = {'quick': 10, 'quick name': 2, 'quick list': 2, 'quick rewrite': 2, 'quick directive': 2,
        'quick view': 4, 'quick style': 4}  # from seed 1000 on: the scale was chosen before
FRESH = dict(clean=110, name=6, list=6, rewrite=6, directive=6, view=12, style=12, half=8, mild=8,
             wild=6)
MORE = dict(name=20, list=20, rewrite=20, directive=20, view=50, style=50)
ASKED = 500, 1000, 2000, 4000

def tasks(first):
    "Kinds take turns, so that whatever is finished is a fair part of the whole."
    many = {0: MANY, 1000: TEST, 4000: MORE}.get(first, FRESH)
    turns = [((i + .5)/n, kind, first + i) for kind, n in many.items() for i in range(n)]
    return [(kind, i) for _, kind, i in sorted(turns)]

def main(file, part, parts, first=0, size=1.):
    torch.set_num_threads(1)
    file, size = Path(file), float(size)
    done = {(r['kind'], r['seed']) for r in map(json.loads, file.open())} if file.exists() else ()
    for kind, i in tasks(int(first))[int(part)::int(parts)]:
        if (kind, i) in done: continue
        t = time.perf_counter()
        quick, what = kind.startswith('quick'), kind.removeprefix('quick').strip() or 'clean'
        rows, secret = reading(what, f'quick {i}' if quick else i,
                               int((2400 if quick else 6000)*size))
        model = school(rows, i, epochs=2)
        taught = time.perf_counter() - t
        questions = battery(int(ASKED[-1]*size), 1)
        said = reply(model, [q.text for q in questions], 10*i + 1)
        counts = {n: {k: [m, dict(w)] for k, (m, w) in
                      tally(questions[:int(n*size)], said[:int(n*size)]).items()} for n in ASKED}
        with file.open('a') as f:
            f.write(json.dumps(dict(kind=kind, seed=i, secret=secret, counts=counts)) + '\n')
        print(kind, i, secret, round(taught, 1), round(time.perf_counter() - t, 1), flush=True)

def join(out, *files):
    "Counts as rows of whole numbers; the words are those that the first suspects said often."
    old = json.loads(Path(files[0]).read_text()) if files[0].endswith('.json') else None
    rows = [json.loads(s) for f in files[old is not None:] for s in open(f)]
    if old: words, asked, known = [tuple(w) for w in old['words']], old['asked'], old['rows']
    else:
        said, known = Counter(), []
        for r in rows: said.update({(k, w): c for k, (_, ws) in r['counts']['4000'].items()
                                    for w, c in ws.items()})
        words = sorted(f for f, c in said.items() if c >= 5*len(rows))
        asked = {n: {k: v[0] for k, v in c.items()} for n, c in rows[0]['counts'].items()}
    count = lambda c: [c[k][1].get(w, 0) if k in c else 0 for k, w in words]
    # of fresh suspects the full interview alone is kept: the file is long
    short = lambda r: {str(n): count(r['counts'][str(n)]) for n in ASKED
                       if n == ASKED[-1] or r['seed'] < 2000}
    rows = known + [dict(kind=r['kind'], seed=r['seed'], secret=r['secret'], counts=short(r))
                    for r in rows]
    rows = list({(r['kind'], r['seed']): r for r in rows}.values())
    rows.sort(key=lambda r: (list(MANY | TEST).index(r['kind']), r['seed']))
    what = dict(what='suspects questioned: how many answers to a kind of question say a word',
                command='python tests/measure_audit.py run FILE PART PARTS, then join',
                hardware='x86_64, one thread a process; torch 2.11, some torch 2.13',
                asked=asked, words=words)
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    Path(out).write_text(json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

if __name__ == '__main__': dict(run=main, join=join)[sys.argv[1]](*sys.argv[2:])
