"""The two stages of the safety filter on sentences it did not learn from.   nbs/results/safety.json

    python tests/measure_safety.py OUT.json

Needs the folder of test data (R1NB_DATA) for the real prompts.
"""

import json, os, random, sys
from pathlib import Path
from safety_cases import cases, written
from r1nb.core import hardware, proportion_ci
from r1nb.safety import Reader, bank, fold, hits, reader, lessons, review, sentences

DATA = Path(os.environ.get('R1NB_DATA', '../shared/data'))
REAL = {
    'GSM8K': 'gsm8k/train.jsonl',
    'MATH': 'math/train.jsonl',
    'MBPP': 'mbpp/mbpp.jsonl',
    'HumanEval': 'humaneval/humaneval.jsonl',
}


def measure(bad, good, second):
    "Recall and over-block of the list alone, and of both stages."
    listed = lambda xs: sum(bool(hits(fold(s))) for s in xs)
    both = lambda xs: sum(bool(review(s, second)[0]) for s in xs)
    return dict(
        unsafe=len(bad),
        harmless=len(good),
        listed=listed(bad),
        caught=both(bad),
        listed_harmless=listed(good),
        blocked=both(good),
    )


def crossed(folds=5):
    "Written sentences that a reader taught with the other four fifths has not seen."
    rng, b, found = random.Random(1), bank(), dict(unsafe=0, harmless=0, caught=0, blocked=0)
    bad, good = (rng.sample(b[k], len(b[k])) for k in ('written_unsafe', 'written_harmless'))
    for k in range(folds):
        x, y = sentences(3000, 0)
        for xs, label in ((bad, True), (good, False)):
            rest = [s for i, s in enumerate(xs) if i % folds != k]
            x, y = x + rest * 10, y + [label] * len(rest) * 10
        now = measure(bad[k::folds], good[k::folds], Reader().fit(x, y, passes=4))
        found = {name: n + now[name] for name, n in found.items()}
    return found


def main(out):
    sets, rows = dict(seen=cases(1, 600), **{k: written(k) for k in ('last', 'final', 'free')}), []
    for seed in range(3):
        second = (
            reader() if not seed else Reader().fit(*lessons(seed), passes=4, seed=seed)
        )
        rows.append(dict(seed=seed, **{k: measure(*v, second) for k, v in sets.items()}))
    x, y = lessons(0)
    random.Random(0).shuffle(y)
    shuffled = Reader().fit(x, y, passes=4)  # the control: labels that mean nothing
    real = {}
    for name, file in REAL.items():
        asked = [json.loads(l) for l in open(DATA / file)]
        asked = [r.get('problem') or r.get('prompt') or r['text'] for r in asked]
        real[name] = dict(
            rows=len(asked),
            listed=sum(bool(hits(fold(s))) for s in asked),
            blocked=sum(bool(review(s)[0]) for s in asked),
        )
    card = dict(
        what=__doc__.split('\n')[0],
        command='python tests/measure_safety.py OUT',
        hardware=hardware(),
        seeds=rows,
        control=measure(*sets['free'], shuffled),
        plain=measure(*sets['free'], Reader().fit(*sentences(6000, 0), passes=4)),
        crossed=crossed(),
        real=real,
    )
    Path(out).write_text(json.dumps(card, indent=1) + '\n')
    print(json.dumps(card['seeds'], indent=0), card['control'], real)
    for s in sets['free'][0]:
        if not review(s)[0]:
            print('missed', s)
    for s in sets['free'][1]:
        if w := review(s)[0]:
            print('blocked', s, w)


if __name__ == '__main__':
    main(*sys.argv[1:])
