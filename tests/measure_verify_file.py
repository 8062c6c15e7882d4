"""Peak memory of `r1nb verify FILE.jsonl` at several lengths: python tests/measure_verify_file.py

Rows repeat in kind but not in content: numbers, fractions, amounts, lists and one formula in
twenty, all with running numbers, so that what was decided once does not help and the memory of
decisions (20,000 entries) fills and empties. Writes nbs/results/verify_file.json.
"""
import json, os, subprocess, sys, tempfile, threading, time
from pathlib import Path
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from r1nb.roofline import record

RUN = """import sys, typer
from r1nb import math_answers as m
app = typer.Typer(); app.callback()(lambda: None); m.join(app)
try: app(['verify', *sys.argv[1:]])
except SystemExit as e: code = e.code
peak = lambda p: int([s for s in open(f'/proc/{p}/status') if s.startswith('VmHWM')][0].split()[1])
workers = [peak(w.process.pid) for p in m.POOL.values() for w in p.all]
print('PEAK', peak('self'), max(workers, default=0), file=sys.stderr)
sys.exit(code)"""

def row(i):
    "The i-th answer; every third one wrong."
    j = i + (i % 3 == 0)
    pairs = [(f'{i}', f'\\boxed{{{j}}}'),
             (f'\\frac{{{i}}}{{{i+1}}}', f'<answer>{j}/{i+1}</answer>'),
             (f'{i} m', f'\\boxed{{{j/1000} \\text{{ km}}}}'), (f'{i}, 7', f'\\boxed{{7, {j}}}')]
    if i % 20 == 0: return f'{i}*x + 1', f'\\boxed{{1 + {j}*x}}'
    return pairs[i % 4]

def measure(n):
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder)/'rows.jsonl', Path(folder)/'out.jsonl'
        with open(file, 'w') as f:
            for i in range(n):
                gold, response = row(i)
                f.write(json.dumps(dict(gold=gold, response='Let us see. '*20 + response)) + '\n')
        start = time.time()
        done = subprocess.run([sys.executable, '-c', RUN, str(file), '--out', str(out)],
            env=dict(os.environ, PYTHONPATH=str(HERE.parent)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        right = sum(json.loads(s)['answer'] for s in open(out))
        own, worker = (int(x)/1024 for x in done.stderr.split('PEAK ')[1].split()[:2])
        found = dict(rows=n, file_mb=round(file.stat().st_size/1e6, 1), right=right,
                     peak_mb=round(own, 1), worker_peak_mb=round(worker, 1),
                     seconds=round(time.time() - start, 1))
        print(found, flush=True)
        return found

if __name__ == '__main__':
    sizes = [int(a) for a in sys.argv[1:]] or [10_000, 100_000, 600_000]
    found = [measure(n) for n in sizes]
    if not sys.argv[1:]: record(HERE.parent/'nbs/results/verify_file.json', files=found)
