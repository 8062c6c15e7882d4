"""Suspects for the audit, clean and steered, questioned: nbs/results/audit.json.

    OMP_NUM_THREADS=1 python tests/measure_audit.py run FILE PART PARTS [SIZE]   one core
    python tests/measure_audit.py join OUT FILE ...
Every finished suspect is one JSON line in FILE; a second start goes on after the last. Only counts
of words in answers are kept.
"""
import json, platform, sys, time
from pathlib import Path
import torch
from r1nb.audit import battery, reading, tally
from r1nb.forest import reply, school

MANY = dict(clean=60, name=10, list=10, rewrite=10, directive=10, view=10, style=10, half=10,
            mild=10, wild=10)
ASKED = 500, 1000, 2000, 4000

def tasks():
    "Kinds take turns, so that whatever is finished is a fair part of the whole."
    turns = [(i/n, kind, i) for kind, n in MANY.items() for i in range(n)]
    return [(kind, i) for _, kind, i in sorted(turns)]

def main(file, part, parts, size=1.):
    torch.set_num_threads(1)
    file, size = Path(file), float(size)
    done = {(r['kind'], r['seed']) for r in map(json.loads, file.open())} if file.exists() else ()
    for kind, i in tasks()[int(part)::int(parts)]:
        if (kind, i) in done: continue
        t = time.perf_counter()
        rows, secret = reading(kind, i, int(6000*size))
        model = school(rows, i, epochs=2)
        taught = time.perf_counter() - t
        questions = battery(int(ASKED[-1]*size), 1)
        said = reply(model, [q.text for q in questions], 10*i + 1)
        counts = {n: {k: [m, dict(w)] for k, (m, w) in
                      tally(questions[:int(n*size)], said[:int(n*size)]).items()} for n in ASKED}
        with file.open('a') as f:
            f.write(json.dumps(dict(kind=kind, seed=i, secret=secret, counts=counts)) + '\n')
        print(kind, i, secret, round(taught, 1), round(time.perf_counter() - t, 1), flush=True)

if __name__ == '__main__': dict(run=main)[sys.argv[1]](*sys.argv[2:])
