"""Text against the teacher's probabilities.

    python tests/measure_soft_labels.py OUT [PROCESSES] [STEPS]    STEPS 600, then 2400
    python tests/measure_soft_labels.py --merge OUT...

Every finished run is one line of OUT/soft_labels.jsonl, and is not run again. `--merge` turns the
lines of those folders into nbs/results/soft_labels.json.
"""
import json, os, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import torch
import r1nb
from r1nb.core import hardware, write_atomic
from r1nb.model import R1Model
from r1nb.soft_labels import learn, sums

WAYS = [('text', 1.), ('first choice', 1.), ('soft', 4.), ('shuffled', 4.), ('soft', 1.),
        ('reverse', 4.), ('soft', 2.)]
SIZES, SEEDS = (1000, 500, 12000, 4000), range(5)
DATA = {}

def data():
    if not DATA:
        torch.set_num_threads(1)
        teacher = R1Model.from_pretrained(Path(r1nb.__file__).parent/'assets'/'nano').eval()
        DATA.update(read=sums(teacher, 1500, 'read'), held=sums(teacher, 300, 'held'))
    return DATA['read'], DATA['held']

def jobs(steps):
    return [(n, w, s, steps) for s in SEEDS for n in SIZES for w in WAYS]

def one(job):
    n, (arm, T), seed, steps = job
    return dict(n=n, arm=arm, T=T, seed=seed, steps=steps, hardware=hardware(),
                **learn(*data(), n, arm, T, seed, steps))

def lines(out): return Path(out)/'soft_labels.jsonl'

def known(out):
    if not lines(out).exists(): return []
    return [json.loads(s) for s in lines(out).read_text().splitlines()]

def merge(*outs):
    rows, (read, held) = [r for out in outs for r in known(out)], data()
    was = {json.dumps(r.pop('hardware'), sort_keys=True) for r in rows}
    rows.sort(key=lambda r: (r['steps'], r['n'], r['arm'], r['T'], r['seed']))
    facts = dict(read=len(read.asked), held=len(held.asked), batch=128, lr=.003,
        text_right=(read.text == read.right).float().mean().item(),
        teacher_right=(held.teacher.argmax(-1) == held.right).float().mean().item(),
        command='python tests/measure_soft_labels.py OUT 3 600; the same with 2400',
        hardware=[*map(json.loads, sorted(was))])
    text = json.dumps(facts)[:-1] + ', "rows": [\n' + ',\n'.join(map(json.dumps, rows)) + ']}\n'
    write_atomic(HERE.parent/'nbs/results/soft_labels.json', text)

def main(out, processes='1', steps='600'):
    done = {(r['n'], (r['arm'], r['T']), r['seed'], r['steps']) for r in known(out)}
    left = [job for job in jobs(int(steps)) if job not in done]
    with ProcessPoolExecutor(int(processes), get_context('spawn')) as pool:
        for done in as_completed([pool.submit(one, job) for job in left]):
            with open(lines(out), 'a') as f: f.write(json.dumps(done.result()) + '\n')

if __name__ == '__main__':
    if sys.argv[1] == '--merge': merge(*sys.argv[2:])
    else: main(*sys.argv[1:])
