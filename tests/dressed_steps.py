"""Arithmetic steps with random numbers in many notations, each with a twin whose result is wrong.

    python tests/dressed_steps.py N SEED     how many are found, how many sound ones are flagged
"""
import sys
from fractions import Fraction
from random import Random

SIGNS = {'ascii': '+-*/', 'unicode': '+−×÷', 'dots': '+–·÷', 'letters': '+-x/',
         'times': ['+', '-', r'\times', r'\div'], 'cdot': ['+', '-', r'\cdot', r'\div']}
DO = {'+': Fraction.__add__, '-': Fraction.__sub__, '*': Fraction.__mul__,
      '/': Fraction.__truediv__}
FRAMES = ['{}', 'So {}.', 'Then {} in total.', r'\[ {} \]', '${}$', '- {}', 'Step 2: {}',
          'Therefore, {}, as required.', '({})', 'We get {}.', 'Total: {}']
UNITS = [' apples', ' dollars', ' km', ' cm', ' hours', ' red marbles', '']
FORMS = ('plain', 'chain', 'three', 'bracket', 'power', 'percent', 'units', 'reverse')
NUMBERS = ('whole', 'negative', 'decimal', 'fraction', 'grouped')

def draw(rng, kind):
    if kind == 'negative': return Fraction(rng.randrange(-60, 60) or 3)
    if kind == 'decimal': return Fraction(rng.randrange(1, 9999), 100)
    if kind == 'fraction': return Fraction(rng.randrange(1, 12), rng.randrange(2, 12))
    return Fraction(rng.randrange(1000, 999_999) if kind == 'grouped' else rng.randrange(2, 500))

def ends(x):
    "Six decimals write it exactly."
    return (x*10**6).denominator == 1

def show(x, kind, tex, first=False):
    a, minus = abs(x), '-' if x < 0 else ''
    if a.denominator == 1: t = f'{int(a):,}' if kind == 'grouped' else str(int(a))
    elif kind != 'fraction': t = f'{float(a):.6f}'.rstrip('0')
    else: t = rf'\frac{{{a.numerator}}}{{{a.denominator}}}' if tex else f'{a}'
    bare = first or not (minus or '/' in t)
    return minus + t if bare else f'({minus}{t})'

def step(rng):
    "(what it is, right, wrong)"
    kind, dress, form = rng.choice(NUMBERS), rng.choice(list(SIGNS)), rng.choice(FORMS)
    tex, sign = dress in ('times', 'cdot'), dict(zip('+-*/', SIGNS[dress]))
    while True:
        a, b, c = (draw(rng, kind) for _ in range(3))
        o, p = rng.choice('+-' if form == 'units' else '+-*/'), rng.choice('+-')
        n = rng.choice([2, 3, 4] if form == 'power' else [5, 10, 20, 25, 40, 75, 80, 120])
        if form == 'power': a = Fraction(rng.randrange(2, 15))
        if form == 'percent': a = Fraction(rng.randrange(2, 400))
        v = w = DO[o](a, b)
        if form in ('chain', 'three', 'bracket'): w = DO[p](v, c)
        if form == 'power': w = a**n
        if form == 'percent': w = a*n/100
        as_is = kind == 'fraction' and form not in ('power', 'percent')
        if (as_is or ends(v) and ends(w)) and abs(w) < 10**12 and not (
                kind == 'grouped' and min(v, w) < 0): break
    say, u = lambda x, first=False: show(x, kind, tex, first), rng.choice(UNITS)*(not tex)
    left = f'{say(a, True)} {sign[o]} {say(b)}'
    percent = rng.choice([rf'{n}\% {sign["*"]} {a}' if tex else f'{n}% of {a}',
                          rf'{a} {sign["*"]} {n}\%' if tex else f'{a} * {n}%'])
    power = f'{a}^{{{n}}}' if tex else rng.choice([f'{a}^{n}', f'{a}**{n}', f'{a}{"⁰¹²³⁴"[n % 5]}'])
    body = dict(plain='{l} = {r}', reverse='{r} = {l}', chain='{l} {p} {c} = {v} {p} {c} = {r}',
        three='{l} {p} {c} = {r}', bracket='({l}) {p} {c} = {r}', power=power + ' = {r}',
        percent=percent + ' = {r}',
        units=f'{say(a, True)}{u} {sign[o]} {say(b)}{u} = {{r}}{u}')[form]
    frame = rng.choice(FRAMES)
    def text(x):
        as_kind = kind if as_is or kind != 'fraction' else 'decimal'
        parts = dict(l=left, p=sign[p], c=say(c), v=say(v, True), r=show(x, as_kind, tex, True))
        out = body
        for k, t in parts.items(): out = out.replace('{' + k + '}', t)
        return frame.replace('{}', out, 1)
    few = [1, -1, 2, 10, -10] if w.denominator == 1 else [1, -1, 5]
    off = Fraction(rng.choice(few))
    wrong = w + (Fraction(off, w.denominator) if as_is else off)
    return (kind, form, dress), text(w), text(wrong)

if __name__ == '__main__':
    from r1nb.process import check_arithmetic
    rng, n = Random(f'dress/{sys.argv[2]}'), int(sys.argv[1])
    rows = [step(rng) for _ in range(n)]
    false = [r for r in rows if check_arithmetic(None, r[1]).flagged]
    missed = [r for r in rows if not check_arithmetic(None, r[2]).flagged]
    print(f'{n} steps: {len(false)} sound ones flagged, {n - len(missed)} wrong ones found')
    for r in false[:20]: print('flagged', r[0], r[1])
    for r in missed[:20]: print('missed', r[0], r[2])
