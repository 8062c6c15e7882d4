"""Does a curated half teach as much as the raw whole?   nbs/results/curate_students.json

    python tests/measure_curate.py OUT.json [PROCESSES] [SEEDS] [N] [HELD] [FIRST]

2N raw traces: N right ones of a diligent author, and N of seven kinds of junk. `curate` picks from
them without being told. Students of the same base read: the raw 2N; what curation kept; as many
raw rows drawn at random (the control); what curation kept for as many steps as the raw student
took; the N good ones (the ceiling). Each finished seed is written at once, beside those that OUT
holds already.
"""

import json, random, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LANGUAGE = {'No,': '不,', 'Try': '试', 'too high.': '太高.', 'too low.': '太低.', 'Yes!': '对!'}
KINDS = ['wrong', 'loop', 'mixed', 'form', 'cut', 'copy', 'near']


def good(rng, right=True):
    "A trace whose answer is right (or wrong), thought out by trying."
    from r1nb.corpus import Author, Habits, problem, tell
    from r1nb.tasks import Problem, held_out
    from r1nb.verify import verify

    while True:
        p = problem(rng, (3, 4))
        a = Author('diligent', 0.3, 0.3, 0.0 if right else 0.2, 0.0)
        text = tell(rng, Habits(broken=0.0), p, a)
        prompt, _, said = text.partition(' <|assistant|> ')
        said = said.removesuffix(' <|end|>')
        meta = dict(numbers=list(p.numbers), target=p.target, exact=True)
        v = verify(Problem('x', '', '', 'countdown', meta), said)
        if v.answer == right and len(said.split()) < 200:
            break
    return dict(
        problem=f'{p.target} {p.numbers}',
        prompt=prompt.removeprefix('<|user|> '),
        response=said,
        teacher='diligent',
        licence='MIT',
        finished=True,
        verdict=dict(answer=v.answer, format=v.format, reason=v.reason),
        junk='',
    )


def spoil(rng, kind, rows):
    "A row with a planted defect."
    r = good(rng, kind != 'wrong') | dict(junk=kind)
    if kind in ('copy', 'near'):
        r = dict(rng.choice(rows), junk=kind)
    s = r['response']
    if kind == 'loop':
        head, _, tail = s.rpartition('Try')
        step = 'Try' + tail.split(' </think>')[0] + ' '
        times = min(rng.randint(6, 10), (470 - len(s.split())) // len(step.split()))
        s = head + step * times + '</think>' + tail.split('</think>')[1]
    if kind == 'mixed':
        for a, b in LANGUAGE.items():
            s = s.replace(a, b)
    if kind == 'form':
        w = s.split()
        w.remove(rng.choice(['<think>', '</think>', '<answer>', '</answer>']))
        s = ' '.join(w)
    if kind == 'cut':
        w = s.split()
        s, r['finished'] = ' '.join(w[: rng.randint(4, max(5, len(w) // 2))]), False
    if kind == 'near':
        s = s.replace('<think>', '<think> Hmm,', 1)
    return r | dict(response=s)


def lessons(rows):
    from r1nb.tokens import END, chat, encode

    return [(chat(r['prompt']), encode(r['response']) + [END] * r['finished']) for r in rows]


def one(seed, n, held):
    import torch

    torch.set_num_threads(1)
    from r1nb.curate import curate
    from r1nb.distill import exam, teach

    rng, base, t = random.Random(f'curate/{seed}'), ROOT / 'r1nb/assets/nano-student', time.time()
    rows = [good(rng) for _ in range(n)]
    raw = rows + [spoil(rng, KINDS[i % len(KINDS)], rows) for i in range(n)]
    rng.shuffle(raw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'raw.jsonl'
        path.write_text(''.join(json.dumps(r | dict(n=i)) + '\n' for i, r in enumerate(raw)))
        card = curate([path], Path(folder) / 'out')
        train = next(Path(folder).glob('out/train.*'))
        from r1nb.rows import rows_in

        picked = [raw[int(r['at'].split(':')[1]) - 1] for r in rows_in(train)]
    bad = [r for r in picked if r['junk'] not in ('', 'copy', 'near')]
    lost = n - len(
        {
            (r['prompt'], r['response'].replace(' Hmm,', ''))
            for r in picked
            if r['junk'] in ('', 'copy', 'near')
        }
    )
    arms = {
        'raw, 2n': (raw, 3),
        'curated': (picked, 3),
        'raw, as many': (raw[: len(picked)], 3),
        'curated, as many steps': (picked, round(3 * len(raw) / len(picked))),
        'good ones only': (rows, 3),
    }
    out = dict(
        seed=seed,
        n=n,
        held=held,
        kept=len(picked),
        junk_kept=len(bad),
        good_lost=lost,
        filters={k: v['rejected'] for k, v in card['filters'].items()},
        tokens_saved=card['tokens']['saved'],
        arms={},
    )
    for name, (part, epochs) in arms.items():
        model = teach(str(base), lessons(part), seed, batch=16, epochs=epochs)
        e = exam(model, held, seed=seed)
        out['arms'][name] = dict(
            rows=len(part), epochs=epochs, pass1=e['pass1'], tokens=round(e['mean_tokens'], 1)
        )
        print(seed, name, out['arms'][name], f'{time.time() - t:.0f} s', flush=True)
    from r1nb.model import R1Model

    out['arms']['base'] = dict(
        rows=0, epochs=0, pass1=exam(R1Model.from_pretrained(str(base)), held, seed=seed)['pass1']
    )
    return out | dict(seconds=round(time.time() - t))


def main(out, processes=2, seeds=5, n=800, held=500, first=0):
    from r1nb.core import hardware

    rows = json.loads(Path(out).read_text())['seeds'] if Path(out).exists() else []
    head = dict(
        what=__doc__.split('\n')[0],
        command=f'python tests/measure_curate.py OUT {processes} {seeds} {n} {held} {first}',
        kinds=KINDS,
        hardware=hardware(),
    )
    with ProcessPoolExecutor(int(processes), get_context('spawn')) as pool:
        jobs = [
            pool.submit(one, s, int(n), int(held))
            for s in range(int(first), int(first) + int(seeds))
        ]
        for j in as_completed(jobs):
            rows.append(j.result())
            rows.sort(key=lambda r: r['seed'])
            Path(out).write_text(json.dumps(head | dict(seeds=rows), indent=1) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
