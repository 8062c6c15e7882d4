"""Runs of many teachers: faults, kills, money, files."""
import hashlib, json, os, random, signal, subprocess, sys, threading, time
from collections import Counter
from pathlib import Path
import pytest
from r1nb.core import R1Error
from r1nb.endpoint import Busy, Completion
from r1nb.ask import Lane, Plan, Purse, most_usd, pause
from r1nb.generate import Survey, check_run, generate, survey
from r1nb.tasks import Problem
from r1nb.traces import (Journal, Spans, read_journal, read_traces, run_rows, seal, shards,
                         trace_row, write_traces)
from r1nb.verify import Verdict

def chance(*what):
    "A number in [0, 1) that depends on `what` alone."
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], 'big')/2**48

class Fake:
    "A teacher whose answers depend on prompt, seed and sample alone; its faults on chance."
    engine, model = 'fake', 'fake'
    def __init__(self, name='fake', batch=1, workers=8, faults=0., pause=0., usd_in=0., usd_out=0.,
                 licence='MIT', broken=None, bad='zebra', wait=None):
        self.__dict__.update(locals()); self.asked, self.lock = Counter(), threading.Lock()
        self.now = self.most = 0
    def ask(self, prompts, n, seed, max_new, temperature, top_p, system):
        with self.lock:
            self.asked[seed] += 1; self.now += 1; self.most = max(self.most, self.now)
        try:
            if self.pause: time.sleep(self.pause*random.random())
            if self.broken: raise self.broken
            if self.faults and random.random() < self.faults:
                raise Busy(random.choice(['429', '503', 'no answer within 5 s']), self.wait)
            if any(self.bad in p for p in prompts): raise R1Error(f'{self.bad}: unknown word')
            return [[self.one(p, seed, k) for k in range(n)] for p in prompts]
        finally:
            with self.lock: self.now -= 1
    def one(self, prompt, seed, k):
        x = chance(prompt, seed, k)
        a, b = map(int, prompt.split()[1::2])
        text = f'<think> {x:.4f} </think> <answer> {a + b + (x > .7)} </answer>'
        return Completion(text, 10 + int(20*x), len(prompt)*(k == 0), x < .95, [1, 2, 3])

def sums(n): return [Problem(f'p{i}', f'Compute {i} + {i % 7}', str(i + i % 7), 'arithmetic')
                     for i in range(n)]
def what(rows):
    return Counter((r['teacher'], r['problem'], r['source']['sample'], r['response'], r['kept'])
                   for r in rows)
FAST = dict(pause=.0005, tries=60, shard_rows=64)

# ---- a program that is killed -----------------------------------------------------------------
CHILD = '''
import random, sys
sys.path[:0] = [{tests!r}]
from test_generate import FAST, Fake, sums
from r1nb.ask import Lane, Plan, Purse, most_usd, pause
from r1nb.generate import Survey, check_run, generate, survey
teachers = [Fake('a', batch=1, workers=8, faults=.2, pause=.002),
            Fake('b', batch=7, workers=3, faults=.2, pause=.004)]
generate(sums({n}), teachers, {folder!r}, Plan(n=4, **FAST), resume=True)
print('END', sum(t.asked.total() for t in teachers))
'''

def killed(folder, n, seed, low=.6, high=1.6, most=200):
    "Run the program again and again, killed each time after a random while, until it ends."
    rng, kills = random.Random(seed), 0
    text = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), n=n)
    while kills < most:
        p = subprocess.Popen([sys.executable, '-c', text], stdout=subprocess.PIPE)
        try: out, _ = p.communicate(timeout=rng.uniform(low, high)*(1 + kills/40))
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL); p.communicate(); kills += 1; continue
        assert p.returncode == 0 and out.startswith(b'END'), out
        return kills
    raise AssertionError('never ended')

def test_killed_at_random_moments(tmp_path):
    plain = generate(sums(400), [Fake('a'), Fake('b', batch=7, workers=3)], tmp_path/'plain',
                     Plan(n=4, **FAST))
    kills = killed(tmp_path/'killed', 400, seed=1)
    found = check_run(tmp_path/'killed')
    assert plain['complete'] and found['complete'] and found['rows'] == 3200, found
    assert what(run_rows(tmp_path/'killed')) == what(run_rows(tmp_path/'plain'))
    assert kills >= 2, 'too fast to be killed'
