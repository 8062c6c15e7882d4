"""Every filter on planted defects and on real clean rows.   nbs/results/filters.json

    python tests/measure_filters.py OUT.json [SEEDS] [ROWS]

Needs the folder of test data (R1NB_DATA). Rows whose problem hashes to an odd number were never
looked at while thresholds were chosen; only they are used here. One planted row for each clean one.
"""

import json, os, random, re, sys, time
from collections import defaultdict
from difflib import SequenceMatcher
from pathlib import Path
import numpy as np
from plant import BREAKS, broken, disguised, looping, mixed, other_numbers, reworded
from r1nb.core import hardware
from r1nb.dedup import FIGURE, Exam, code, fingerprint, leaked, repeats, row_signature, twins
from r1nb.filters import form, language, length, repetition

DATA = Path(os.environ.get('R1NB_DATA', '../shared/data'))
CLEAN = {
    'GSM8K, people': 'gsm8k/train.jsonl',
    'MATH, people': 'math/train.jsonl',
    'GSM8K, four GPT-3': 'graded/gsm8k_openai.jsonl',
    'MATH, one model': 'graded/math_cot_100x8.jsonl',
    'reasoning-gym, many models': 'graded/reasoning_gym_math.jsonl',
    'R1-distill-Qwen-14B': 'r1_traces/r1-distill-qwen-14b.jsonl',
    'R1 and others': 'r1_traces/rasbt_samples.jsonl',
}


def rows(file, half=1):
    for line in open(DATA / file):
        r = json.loads(line)
        said = r.get('answer_text') or r.get('solution') or ''
        if (
            code(r['problem']) % 2 == half
            and r.get('label') is not False
            and len(said.split()) >= 20
        ):
            yield r['problem'], said


def share(xs):
    return dict(n=len(xs), found=int(sum(xs)))


def text_filters(clean, rng, n):
    "language, repetition, form, length: planted, by kind."
    take = lambda k: rng.sample(clean, min(k, len(clean)))
    found = defaultdict(dict)
    for how in ('script', 'clause', 'sentence', 'several'):
        found['language'][how] = share(
            [bool(language(mixed(rng, s, how), '', p)) for p, s in take(n)]
        )
    for how in ('word', 'phrase', 'sentence', 'lines', 'whole', 'sign'):
        found['repetition'][how] = share(
            [bool(repetition(looping(rng, s, how))) for _, s in take(n)]
        )
    for how in BREAKS:
        found['form'][how] = share(
            [bool(form(broken(rng, s, 'The answer is 7.', how), 'think')) for _, s in take(n // 3)]
        )
    for how, f in {
        'two words': lambda s: (' '.join(re.findall('[A-Za-z]+', s)[:2]), True),
        'empty': lambda s: ('', True),
        'cut off': lambda s: (s[: len(s) // 2], False),
        'too long': lambda s: (s * (140_000 // len(s) + 1), True),
    }.items():
        found['length'][how] = share(
            [bool(length(a, finished=b)) for a, b in (f(s) for _, s in take(n // 5))]
        )
    return found


def duplicates(clean, rng, n):
    "One kind after the other is planted into the same rows, each row once."
    base = list({p: (p, s) for p, s in clean}.values())
    base = rng.sample(base, min(3 * n, len(base)))
    plan = {
        h: (lambda s, h=h: disguised(rng, s, h))
        for h in ('same', 'case', 'spaces', 'unseen', 'wide')
    }
    near = {
        '2 % of words': lambda s: reworded(rng, s, 0.02),
        '5 % of words': lambda s: reworded(rng, s, 0.05),
        '10 % of words': lambda s: reworded(rng, s, 0.1),
        'a sentence more': lambda s: (
            s + ' ' + ' '.join(s.split()[-1:]) + ' So we are done with this one.'
        ),
        'numbered prompt': None,
    }
    found = dict(exact={}, near={})

    def run(kind, name, f):
        part = rng.sample(base, n)
        copies = [(p, f(s)) if f else (f'Problem 7. {p}', s) for p, s in part]
        all_ = base + copies
        if kind == 'exact':
            of = repeats(np.array([fingerprint(p, s) for p, s in all_], np.uint64))
        else:
            s = [row_signature(p, r) for p, r in all_]
            of = twins(np.stack([a for a, _ in s]), np.array([b for _, b in s]))
        found[kind][name] = share(of[len(base) :] >= 0) | dict(
            false=int((of[: len(base)] >= 0).sum()), clean=len(base)
        )

    for name, f in plan.items():
        run('exact', name, f)
    for name, f in near.items():
        run('near', name, f)
    return found


def cut(text, share):
    "The first or (negative) the last words of a text."
    ws = text.split()
    n = round(abs(share) * len(ws))
    return ' '.join(ws[:n] if share > 0 else ws[-n:])


def looks(a, b):
    "How alike two problems are letter by letter, numbers alike; knows nothing of words."
    a, b = (
        re.sub(r'\d+', '0', re.sub(r'\s|[$,.]', '', FIGURE.sub(' ', t).lower())) for t in (a, b)
    )
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def exams(rng, n):
    sets = {
        'GSM8K test': ('gsm8k/test.jsonl', 'gsm8k/train.jsonl'),
        'MATH-500': ('math/math500.jsonl', 'math/train.jsonl'),
    }
    out = {}
    for name, (test, train) in sets.items():
        items = [json.loads(l)['problem'] for l in open(DATA / test)]
        exam, fresh = Exam(items), [p for p, _ in rows(train)]
        fresh = rng.sample(fresh, min(6 * n, len(fresh)))
        long = [t for t in items if code(t) % 2 and len(t.split()) >= 8]
        kinds = {
            'as it is': lambda t: t,
            'case, spaces': lambda t: disguised(rng, disguised(rng, t, 'case'), 'spaces'),
            'in a longer prompt': lambda t: (
                f'Here is a question for you, think well. {t} Put the answer into a box.'
            ),
            '5 % of words': lambda t: reworded(rng, t, 0.05),
            '10 % of words': lambda t: reworded(rng, t, 0.1),
            '15 % of words': lambda t: reworded(rng, t, 0.15),
            '20 % of words': lambda t: reworded(rng, t, 0.2),
            'first two thirds': lambda t: cut(t, 0.67),
            'last two thirds': lambda t: cut(t, -0.67),
            'first half': lambda t: cut(t, 0.5),
            'other numbers': lambda t: other_numbers(rng, t),
            'other numbers, 10 %': lambda t: other_numbers(rng, reworded(rng, t, 0.1)),
            'formulas respaced': lambda t: re.sub(r'\s*([=+\-<>{}])\s*', r'\1', t.lower()),
            'sentences reversed': lambda t: '. '.join(t.split('. ')[::-1]),
            'in the response': lambda t: f'Okay, so the question says: {t} Let me think.',
        }
        flagged = [(p, items[w[1]]) for p in fresh if (w := leaked(exam, p))]
        out[name] = dict(
            false=len(flagged),
            copies=sum(looks(p, t) >= 0.8 for p, t in flagged),
            clean=len(fresh),
            kinds={
                k: share(
                    [leaked(exam, f(t)) is not None for t in rng.sample(long, min(n, len(long)))]
                )
                for k, f in kinds.items()
            },
        )
    return out


def main(out, seeds=3, n=150):
    start, clean = time.time(), {name: list(rows(f)) for name, f in CLEAN.items()}
    false = {
        name: dict(
            rows=len(xs),
            **{f.__name__: sum(bool(f(s)) for _, s in xs) for f in (repetition, length, form)},
            language=sum(bool(language(s, '', p)) for p, s in xs),
        )
        for name, xs in clean.items()
    }
    print(json.dumps(false, indent=1), flush=True)
    pool, runs = [x for xs in clean.values() for x in xs[:2000]], []
    for seed in range(int(seeds)):
        rng = random.Random(f'filters/{seed}')
        runs.append(
            dict(
                seed=seed,
                **text_filters(pool, rng, int(n)),
                **duplicates(pool, rng, int(n)),
                exam=exams(rng, int(n)),
            )
        )
        print(json.dumps(runs[-1]), flush=True)
    what = dict(
        what=__doc__.split('\n')[0],
        command='python tests/measure_filters.py OUT',
        hardware=hardware(),
        seconds=round(time.time() - start),
    )
    Path(out).write_text(json.dumps(what | dict(clean=false, seeds=runs), indent=1) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
