"""Sentences for the safety filter, all of them mild (safety_cases.json).

open, acts, ends, benign were looked at while the word list was written. last_bad and last_good were
written after it and read once; then the training sentences were widened, so both count as seen.
final_bad and final_good were written after that and never trained on; their misses were read once,
before the reader learnt kinds of words. free_bad and free_good were written before that reader was
first run, and are for the report alone.
"""
import json, random
from pathlib import Path

ALL = json.loads(Path(__file__).with_suffix('.json').read_text())

def disguise(rng, s):
    "The same request for a reader, spelt to pass a list."
    how = rng.choice(['leet', 'gaps', 'dots', 'looks', 'unseen', 'long', 'case'])
    w = s.split()
    i = max(range(len(w)), key=lambda k: (len(w[k]), rng.random()))
    if how == 'leet': return s.translate(str.maketrans('aeio', rng.choice(['4310', '@3!0'])))
    if how == 'gaps':
        return ' '.join(' '.join(x) if len(x) > 3 and rng.random() < .5 or k == i else x
                        for k, x in enumerate(w))
    if how == 'dots': return ' '.join('.'.join(x) if len(x) > 3 else x for x in w)
    if how == 'looks': return s.translate(str.maketrans('aeopc', '\u0430\u0435\u043e\u0440\u0441'))
    if how == 'unseen': return '\u200b'.join(s)
    if how == 'long':
        return ' '.join(x.replace('a', 'aaa').replace('i', 'iiii') if k == i else x
                        for k, x in enumerate(w))
    return ''.join(c.upper() if rng.random() < .5 else c for c in s)

def cases(seed, n):
    "n unsafe ones, a third of them disguised; all harmless ones."
    rng = random.Random(f'cases/{seed}')
    bad = [f'{rng.choice(ALL["open"])} {rng.choice(ALL["acts"])}{rng.choice(ALL["ends"])}'
           f'{rng.choice("?.")}' for _ in range(n)]
    return [disguise(rng, s) if i % 3 == 0 else s for i, s in enumerate(bad)], ALL['benign']

def written(name):
    "'last', 'final' or 'free': written sentences, every third unsafe one disguised."
    rng = random.Random(name)
    bad = [disguise(rng, s) if i % 3 == 0 else s for i, s in enumerate(ALL[f'{name}_bad'])]
    return bad, ALL[f'{name}_good']
