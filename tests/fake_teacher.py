"""A teacher for tests: prompt, seed and sample decide its answers, chance its faults."""
import hashlib, os, random, threading, time
from collections import Counter
from r1nb.ask import call_seed
from r1nb.core import R1Error
from r1nb.endpoint import Busy, Completion
from r1nb.tasks import Problem

def chance(*what):
    "A number in [0, 1) that depends on `what` alone."
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], 'big')/2**48

def sums(n, stream=False):
    made = (Problem(f'p{i}', f'Compute {i} + {i % 7}', str(i + i % 7), 'arithmetic')
            for i in range(n))
    return made if stream else list(made)

class Fake:
    engine, model = 'fake', 'fake'
    def __init__(self, name='fake', batch=1, workers=8, faults=0., pause=0., fixed=0., usd_in=0.,
                 usd_out=0., licence='MIT', broken=None, bad='zebra', wait=None,
                 words=1, paid=None):
        self.__dict__.update(locals())
        self.asked, self.lock, self.now, self.most = Counter(), threading.Lock(), 0, 0
        self.slip = os.open(paid, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if paid else None
    def ask(self, prompts, n, seed, max_new, temperature, top_p, system):
        with self.lock:
            self.asked[seed] += 1; self.now += 1; self.most = max(self.most, self.now)
        try:
            if self.fixed or self.pause: time.sleep(self.fixed + self.pause*random.random())
            if self.broken: raise self.broken
            if self.faults and random.random() < self.faults:
                raise Busy(random.choice(['429', '503', 'no answer within 5 s']), self.wait)
            if any(self.bad in p for p in prompts): raise R1Error(f'{self.bad}: unknown word')
            if self.slip: os.write(self.slip, b'.')
            return [[self.one(p, seed, k) for k in range(n)] for p in prompts]
        finally:
            with self.lock: self.now -= 1
    def one(self, prompt, seed, k):
        x = chance(prompt, seed, k)
        a, b = map(int, prompt.split()[1::2])
        thought = f'{x:.4f} '*self.words
        text = f'<think> {thought}</think> <answer> {a + b + (x > .7)} </answer>'
        return Completion(text, 10 + int(20*x), len(prompt)*(k == 0), x < .95, [1, 2, 3])
    def answer(self, problem, seed, k):
        "What a call with this problem alone gives in a run of that seed."
        return self.one(problem.prompt, call_seed(seed, self.name, [problem]), k)
