"""The report and the live view on a believable run folder, a partial one, and hostile ones."""
import json, math, random, re
from html.parser import HTMLParser
import pytest
from r1nb.core import R1Error, hardware, proportion_ci
from r1nb.report import ORDER, View, read_run, write_report

GUESS = '<think> Try 20 - 4 = 16 , 16 + 16 = 32 . I guess. </think> <answer> ( 20 - 4 ) + 16 </answer>'
THOUGHT = ('<think> Try 20 - 4 = 16 , 11 * 16 = 176 , 176 - 16 = 160 . No, too high. Try 20 + 11 = 31 , '
           '31 + 16 = 47 , 47 - 4 = 43 . Wait, let me check: 20 + 11 = 31 , 31 + 16 = 47 , 47 - 4 = 43 . '
           'Yes! </think> <answer> ( ( 20 + 11 ) + 16 ) - 4 </answer>')
FACTS = { # stage: pass1, mean tokens, seconds, tokens, parents
    'base': (.172, 48.1, 6.1, 26_000, ['teacher_asset']), 'zero': (.587, 96.4, 121.7, 921_000, ['base']),
    'traces': (None, None, 21.0, 470_000, ['zero']), 'student_base': (.14, 44.0, 4.2, 25_000, ['student_asset']),
    'student_distilled': (.503, 92.7, 34.5, 801_000, ['student_base', 'traces']),
    'student_rl': (.367, 81.3, 62.5, 880_000, ['student_base']), 'vote': (None, None, 28.3, 410_000, ['zero'])}

def curve(rng, i, rise):
    acc = .17 + rise*(1-math.exp(-i/9)) + rng.gauss(0, .04)
    lo, hi = proportion_ci(max(0, min(256, 256*acc)), 256)
    return dict(step=i, reward=acc+.085+rng.gauss(0, .01), accuracy=acc, accuracy_lo=lo, accuracy_hi=hi,
                mean_tokens=48+60*(1-math.exp(-i/4))-.3*i+rng.gauss(0, 3), reflection=1.1+3*(1-math.exp(-i/6))+rng.gauss(0, .2),
                truncated=.05+.25*(1-math.exp(-i/5))+rng.gauss(0, .02), arithmetic_errors=.057*math.exp(-i/20)+rng.gauss(0, .004),
                entropy=.34-.002*i, loss=rng.gauss(0, .01), tokens_per_second=9000+rng.gauss(0, 300))

def make_run(folder, stages=ORDER, steps=36, reward='accuracy', **extra):
    "A run folder as the pipeline writes it, with invented figures."
    rng, n = random.Random(0), 512
    for name in stages:
        pass1, length, seconds, tokens, parents = FACTS[name]
        d = folder/name; (d/'checkpoint').mkdir(parents=True)
        (d/'config.json').write_text(json.dumps(dict(stage=name, preset='nano', seed=0, reward=reward)))
        rows = []
        if name in ('zero', 'student_rl'): rows = [curve(rng, i, .42 if name == 'zero' else .2) for i in range(steps)]
        if name == 'student_distilled': rows = [dict(step=i, loss=.2+.9*math.exp(-i/40)+rng.gauss(0, .02)) for i in range(250)]
        if rows: (d/'metrics.csv').write_text('\n'.join([','.join(rows[0]), *(','.join(map(str, r.values())) for r in rows)]) + '\n')
        card = dict(stage=name, parents=[dict(stage=p, sha256='%064x' % rng.getrandbits(256)) for p in parents], seed=0,
                    version='0.1.0', commit='4f1c2d9ab0', hardware=hardware(), seconds=seconds, tokens=tokens, flops=tokens*6*6e5,
                    joules=None, usd=seconds/3600*.1, usd_per_hour=.1, samples=[
                        dict(prompt='Make 43 from 20 4 16 11 .', response=GUESS if 'base' in name else THOUGHT, ok='base' not in name),
                        dict(prompt='Make 12 from 3 4 .', response='<think> Try 3 * 4 = 12 . Yes! </think> <answer> 3 * 4 </answer>', ok=True)])
        if pass1 is not None:
            card['eval'] = dict(pass1=pass1, ci95=proportion_ci(round(pass1*n), n), n=n, mean_tokens=length, format=.9, truncated=.2)
        if name == 'vote': card |= dict(cons={'1': .581, '4': .668, '16': .751}, n=n)
        (d/'card.json').write_text(json.dumps(card | extra))
    return folder
