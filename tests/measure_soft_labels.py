"""Text against the teacher's probabilities: python tests/measure_soft_labels.py [OUT] [PROCESSES]

Ways of telling a student, amounts, seeds; every finished run is one line of OUT/soft_labels.jsonl,
and is not run again. At the end the lines become nbs/results/soft_labels.json.
"""
import json, os, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import torch
import r1nb
from r1nb.model import R1Model
from r1nb.roofline import record
from r1nb.soft_labels import learn, sums

WAYS = [('text', 1.), ('first choice', 1.), ('soft', 2.), ('soft', 4.), ('shuffled', 4.)]
SIZES, SEEDS = (1000, 12000, 500, 4000), range(3)
DATA = {}

def data():
    if not DATA:
        torch.set_num_threads(1)
        teacher = R1Model.from_pretrained(Path(r1nb.__file__).parent/'assets'/'nano').eval()
        DATA.update(read=sums(teacher, 1500, 'read'), held=sums(teacher, 300, 'held'))
    return DATA['read'], DATA['held']

def one(job):
    n, (arm, T), seed = job
    return dict(n=n, arm=arm, T=T, seed=seed, torch=torch.__version__,
                **learn(*data(), n, arm, T, seed))

def main(out='.', processes=1):
    lines = Path(out)/'soft_labels.jsonl'
    rows = [json.loads(s) for s in open(lines)] if lines.exists() else []
    done = {(r['n'], (r['arm'], r['T']), r['seed']) for r in rows}
    jobs = [(n, w, s) for n in SIZES for s in SEEDS for w in WAYS if (n, w, s) not in done]
    with ProcessPoolExecutor(int(processes)) as pool:
        for done in as_completed([pool.submit(one, job) for job in jobs]):
            rows.append(done.result())
            with open(lines, 'a') as f: f.write(json.dumps(rows[-1]) + '\n')
    read, held = data()
    facts = dict(rows=rows, read=len(read.asked), held=len(held.asked), steps=600, batch=128,
        text_right=(read.text == read.right).float().mean().item(),
        teacher_right=(held.teacher.argmax(-1) == held.right).float().mean().item())
    record(HERE.parent/'nbs/results/soft_labels.json', **facts)

if __name__ == '__main__': main(*sys.argv[1:])
