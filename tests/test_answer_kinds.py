"""Fresh pairs of every kind of answer, from seeds: the right ones right, the wrong ones wrong."""
from fractions import Fraction
from random import Random
import pytest
pytest.importorskip('math_verify', reason="needs Math-Verify: pip install 'r1nb[verify]'")
from r1nb.math_answers import verify

N = 40   # right pairs of a kind, and as many wrong ones

def group(n): return f'{n:,}'
def frac(p, q): return f'\\frac{{{p}}}{{{q}}}'

def numbers(r):
    n = r.randrange(2, 10**r.randrange(1, 8))
    k = r.randrange(1, 6)
    x = Fraction(n, 10**k)
    dec = f'{n // 10**k}.{n % 10**k:0{k}d}'
    right = [(str(n), group(n)), (str(n), f'{n}.0'), (group(n).replace(',', '{,}'), str(n)),
             (str(-n), f'−{n}'), (f'{n}000', f'{n} \\times 10^3'), (f'{n}000', f'{n}e3'),
             (dec, dec + '0'), (dec, frac(x.numerator, x.denominator)),
             (str(n), f'\\text{{{n}}}'),
             (f'{dec}', f'{dec.lstrip("0")}')]
    wrong = [(str(n), str(n+1)), (str(n), str(-n)), (str(n), f'{n}.1'),
             (dec, f'{float(x*Fraction(101, 100)):.8f}'),
             (f'{n}000', str(n)), (str(n), f'{n}x'), (str(n), f'{n}, {n+1}'), (str(n), f'{n}!!'),
             (str(n), f'{n+1}^2'), (dec, dec.replace('.', '')), (str(n), f'{n}1')]
    return right, wrong

def fractions(r):
    q = r.choice([3, 4, 5, 7, 8, 9, 11, 16, 25, 40])
    p = r.choice([p for p in range(1, 5*q) if Fraction(p, q).denominator == q])
    a, b = frac(p, q), f'{p}/{q}'
    right = [(a, b), (b, a), (a, f'\\dfrac{{{p}}}{{{q}}}'), (a, f'${b}$'), (f'-{a}', frac(-p, q)),
             (f'-{b}', f'-{a}'), (a, f'\\tfrac{{{p}}}{{{q}}}'), (a, f'\\left({b}\\right)'),
             (a, f'{p} / {q}')]
    right += [(a, f'{p/q:.10g}')]*(q in (4, 5, 8, 16, 25, 40))
    right += [(a, f'\\frac{p}{q}')]*(p < 10 > q)
    wrong = [(a, frac(q, p)), (a, frac(p+q, q)), (a, f'-{b}'), (a, f'{p/q:.2f}1'), (a, str(p*q)),
             (a, frac(p, q+1)), (a, f'{p}:{q}1'), (a, f'{b}/{q}'), (a, f'\\frac{{{p}}}{{}}'),
             (a, str(p//q)), (a, frac(2*p, 2*q))]
    return right, wrong

def percents(r):
    n, k = r.randrange(1, 100), r.randrange(101, 400)
    right = [(f'{n}\\%', f'{n}%'), (f'{n}%', f'{n} \\%'), (f'{n}%', f'0.{n:02d}'),
             (f'0.{n:02d}', f'{n}\\%'), (f'{n}%', f'{n}.0\\%'), (f'{k}%', f'{k/100}'),
             (f'{n}%', f'{n}/100')]
    wrong = [(f'{n}%', f'{n+1}%'), (f'{n}%', f'{n}0%'), (f'{n}%', f'0.{n:02d}1'),
             (f'{k}%', f'{k}1'),
             (f'{n}%', f'-{n}%'), (f'{n}%', f'{n}.5%'), (f'0.{n:02d}', f'0.{n:02d}%'),
             (f'{n}%', f'{n} dollars'), (f'{n}%', f'{n}x%')]
    return right, wrong

def amounts(r):
    n = r.randrange(1, 60)
    right = [(f'{n} km', f'{n}000 m'), (f'{n}000 \\text{{ m}}', f'{n}\\,\\text{{km}}'),
             (f'{n} h', f'{60*n} min'), (f'{60*n} minutes', f'{n} hours'),
             (f'{n} kg', f'{n*1000} g'),
             (f'\\${n}', f'{n}00 \\text{{ cents}}'), (f'{n} dollars', f'\\${n}.00'),
             (f'{n} ft', f'{12*n} in'),
             (f'{n} feet', f'{n*12} \\text{{ inches}}'), (f'{n} cm^2', f'{n*100} mm^2'),
             (f'{n}\\text{{ cm}}', f'{n}'),
             (f'{18*n} km/h', f'{5*n} m/s'), (f'{n} days', f'{24*n} hours'),
             (f'{n}.5 h', f'{n} h 30 min'),
             (f'{n} square meters', f'{n} m^2'), (f'{n} L', f'{n*1000} cm^3'),
             (f'{n} miles per hour', f'{n} mph'),
             (f'{n} cubic inches', f'{n} \\text{{ in}}^3'), (f'{n}^\\circ', f'{n} degrees'),
             (f'{n} apples', f'{n}')]
    wrong = [(f'{n} km', f'{n} m'), (f'{n}000', f'{n} km'), (f'{n} h', f'{n*100} min'),
             (f'{n} kg', f'{n} g'),
             (f'\\${n}', f'{n} cents'), (f'{n} cm', f'{n} cm^2'), (f'{n} m/s', f'{n} km/h'),
             (f'{n} m', f'{n} min'),
             (f'{n} h', f'{n}.5 h'), (f'{n} km', f'{n}001 m'), (f'{n} apples', f'{n} pears'),
             (f'{n}', f'{n} million'),
             (f'{n} ft', f'{n*10} in'), (f'{n} cm^2', f'{n*10} mm^2'), (f'{n} s', f'{n} 1/s'),
             (f'{n} g', f'{n}000 kg')]
    return right, wrong

def mixed(r):
    w, q = r.randrange(1, 30), r.choice([2, 3, 4, 5, 7, 8, 9])
    p = r.choice([p for p in range(1, q) if Fraction(p, q).denominator == q])
    m, top = f'{w}\\frac{{{p}}}{{{q}}}', w*q + p
    right = [(m, frac(top, q)), (frac(top, q), m), (m, f'{w} {p}/{q}'),
             (f'{w} {p}/{q}', f'{top}/{q}'),
             (f'-{m}', f'-{top}/{q}'), (m, f'{w}\\dfrac{{{p}}}{{{q}}}'),
             (m, f'{w}\\ \\frac{{{p}}}{{{q}}}'),
             (m, f'{w}+\\frac{{{p}}}{{{q}}}')]
    right += [(m, f'{top/q:.10g}')]*(q in (2, 4, 5, 8))
    wrong = [(m, frac(w*p, q)), (m, frac(p, q)), (m, f'{w}'), (m, f'{w+1}\\frac{{{p}}}{{{q}}}'),
             (m, f'-{m}'),
             (m, frac(top, q+1)), (m, f'{w}{p}/{q}'), (m, f'{w}.{p}{q}'), (m, frac(top+q, q))]
    return right, wrong

def sets(r):
    a, b, c = r.sample(range(-30, 30), 3)
    s = f'\\{{{a}, {b}, {c}\\}}'
    right = [(s, f'\\{{{c}, {a}, {b}\\}}'), (s, f'\\left\\{{ {b},{a},{c} \\right\\}}'),
             (s, f'{a}, {b}, {c}'),
             (f'{a},{b}', f'{b} \\text{{ and }} {a}'), (s, f'\\{{{a}.0,{b},{c}\\}}'),
             (f'{a}, {b}, {c}', f'{c},{b},{a}'),
             (f'\\{{{a}\\}}', f'{{{a}}}')]
    wrong = [(s, f'\\{{{a}, {b}\\}}'), (s, f'\\{{{a}, {b}, {c}, 31\\}}'),
             (s, f'\\{{{a}, {b}, {c+1}\\}}'), (s, str(a)),
             (str(a), s), (s, f'\\{{{a}, {b}, {b}\\}}'), (f'{a},{b}', f'{a}'),
             (f'{a},{b}', f'{a},{b},{c}'),
             (s, f'\\{{{-a-1}, {b}, {c}\\}}')]
    return right, wrong

def intervals(r):
    a = r.randrange(-20, 20); b = a + r.randrange(2, 20)
    right = [(f'[{a},{b})', f'\\left[{a}, {b}\\right)'), (f'({a},{b}]', f'({a}.0,{b}]'),
             (f'(-\\infty,{a}]', f'(-∞, {a}]'),
             (f'[{a},\\infty)', f'[{a},+\\infty)'),
             (f'({a},{b})', f'\\left( {a},\\ {b} \\right)'),
             (f'(-\\infty,{a})\\cup({b},\\infty)', f'({b},\\infty)\\cup(-\\infty,{a})'),
             (f'[{a},{b}]', f'[{a},{2*b}/2]')]
    wrong = [(f'[{a},{b})', f'({a},{b})'), (f'[{a},{b}]', f'[{a},{b})'),
             (f'({a},{b})', f'({b},{a})'), (f'({a},{b})', f'({a},{b+1})'),
             (f'(-\\infty,{a})\\cup({b},\\infty)', f'(-\\infty,{a})'),
             (f'[{a},\\infty)', f'(-\\infty,{a}]'), (f'[{a},{b}]', f'{a}'),
             (f'({a},{b})', f'({a},\\infty)'),
             (f'(-\\infty,{a})\\cup({b},\\infty)', f'(-\\infty,{a}]\\cup[{b},\\infty)')]
    return right, wrong

def tuples(r):
    a, b, c = r.sample(range(-30, 30), 3)
    right = [(f'({a},{b})', f'\\left({a}, {b}\\right)'), (f'({a},{b},{c})', f'({a}, {b}, {c})'),
             (f'({a},{b})', f'({a}.0, {2*b}/2)'),
             (f'({a},{b})', f'\\boxed{{({a},{b})}}'), (f'({a},\\frac{{1}}{{2}})', f'({a}, 0.5)'),
             (f'({a},{b}),({b},{a})', f'({b},{a}),({a},{b})')]
    wrong = [(f'({a},{b})', f'({b},{a})'), (f'({a},{b})', f'({a},{b},{c})'),
             (f'({a},{b})', f'({a},{c})'), (f'({a},{b},{c})', f'({a},{b})'),
             (f'({a},{b})', f'{a}'), (f'({a},{b})', f'\\{{{a},{b}\\}}'),
             (f'({a},{b}),({b},{a})', f'({a},{b})'),
             (f'({a},{b})', f'[{a},{b}]'), (f'({a},{b},{c})', f'({c},{b},{a})')]
    return right, wrong

def matrices(r):
    a, b, c, d = (r.randrange(-9, 10) for _ in range(4))
    def m(rows):
        return '\\begin{pmatrix}' + ' \\\\ '.join(' & '.join(map(str, x)) for x in rows) \
            + '\\end{pmatrix}'
    g = m([[a, b], [c, d]])
    right = [(g, g.replace(' ', '')), (g, m([[f'{a}.0', b], [c, d]])), (m([[a], [b]]), m([[a],
             [f'{2*b}/2']])),
             (g, g + ' '), (m([[a, b, c]]), m([[a, b, f' {c} ']])),
             (g, m([[a, b], [c, f'\\frac{{{3*d}}}{{3}}']]))]
    wrong = [(g, m([[a, b], [c, d+1]])), (g, m([[a, b, c, d]])), (m([[a], [b]]), m([[a, b]])),
             (g, m([[a, b]])), (g, str(a*d-b*c)),
             (g, m([[a+1, b], [c, d]])), (m([[a], [b]]), m([[a], [b], [c]])), (m([[a],
             [b]]), m([[a], [b+2]]))]
    if (a, b) != (b, a): wrong.append((m([[a, b]]), m([[b, a]])))
    return right, wrong

def expressions(r):
    a, b, c = r.randrange(2, 9), r.randrange(1, 9), r.choice([2, 3, 5, 7])
    x = r.choice('xytmghs')
    right = [(f'{a}{x}+{b}', f'{b}+{a}{x}'), (f'({x}+{b})^2', f'{x}^2+{2*b}{x}+{b*b}'),
             (f'\\sqrt{{{a*a*c}}}', f'{a}\\sqrt{{{c}}}'),
             (f'{x}^2-{b*b}', f'({x}-{b})({x}+{b})'), (f'{a}*{x}**2 + {b}', f'{b} + {a}{x}^2'),
             (f'\\frac{{{a}{x}}}{{{a*c}}}', f'\\frac{{{x}}}{{{c}}}'),
             (f'{a}\\pi', f'\\pi \\cdot {a}'), (f'\\frac{{\\pi}}{{{a}}}', f'\\pi/{a}'),
             (f'{a}\\sin({x})', f'{a} \\sin {x}'),
             (f'y={a}x+{b}', f'y = {b} + {a}x'), (f'{a}+{b}i', f'{b}i + {a}'),
             (f'{x}^{{{a}}}', f'{x}^{a}'), (f'{a}e^{{{x}}}', f'{a}*exp({x})')]
    wrong = [(f'{a}{x}+{b}', f'{a}{x}-{b}'), (f'({x}+{b})^2', f'{x}^2+{b*b}'),
             (f'\\sqrt{{{c}}}', f'\\sqrt{{{c+1}}}'), (f'{a}\\pi', f'{a}'),
             (f'{a}{x}', f'{a}'), (f'{x}^{{{a}}}', f'{x}^{{{a+1}}}'),
             (f'{a}\\pi', f'{a*3.14159:.5f}'), (f'\\sqrt{{{c}}}', f'{c**.5:.3f}'),
             (f'{a}+{b}i', f'{a}-{b}i'), (f'y={a}x+{b}', f'y={a}x+{b+1}'),
             (f'{a}\\sin({x})', f'{a}\\cos({x})'), (f'{x}^2-{b*b}', f'({x}-{b})^2'),
             (f'{a}{x}+{b}', f'{a}{x}+{b}=0'), (f'\\ln({x})', f'\\ln({x}+{b})')]
    return right, wrong

def choices(r):
    k, j = r.sample('ABCDE', 2)
    w, v = r.sample('east north ellipse Monday increasing Evelyn yes parabola'.split(), 2)
    n = r.randrange(2, 99)
    right = [(k, f'({k})'), (k, f'\\text{{({k})}}'), (k, f'\\textbf{{{k}}}'), (k, f'{k}. {n}'),
             (f'({k})', k), (k, k.lower()), (f'\\text{{{k}}}', f'\\mathrm{{{k}}}'),
             (w, w.upper()), (f'\\text{{{w}}}', w), (w, f'\\text{{ {w} }}.'), (k, f'{k}) {n}')]
    wrong = [(k, j), (k, f'({j})'), (k, f'{k}{j}'), (w, v), (w, f'{w} {v}'), (w, f'not {w}'),
             (k, f'{k}, {j}'), (k, str(n)), (k, f'{k} or {j}'), (k, f'{j}. {k}'),
             (w, w[:-1]), (k, f'{k} and {j}'), (k, 'ABCDE')]
    return right, wrong

KINDS = [numbers, fractions, percents, amounts, mixed, sets, intervals, tuples, matrices,
         expressions, choices]

def pairs(kind, n=N, seed=0):
    "n right pairs and n wrong ones, no two alike."
    r, right, wrong = Random(f'{kind.__name__} {seed}'), {}, {}
    while len(right) < n or len(wrong) < n:
        a, b = kind(r)
        right |= dict.fromkeys(a); wrong |= dict.fromkeys(b)
    pick = lambda d: r.sample(sorted(d), n)
    return pick(right), pick(wrong)

def judged(kind, strict, seed=0, n=N):
    right, wrong = pairs(kind, n, seed)
    box = lambda a: a if '\\boxed' in a else f'So it is $\\boxed{{{a}}}$.'
    missed = [p for p in right if not verify(p[0], box(p[1]), strict=strict).answer]
    passed = [p for p in wrong if verify(p[0], box(p[1]), strict=strict).answer]
    return missed, passed

@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_fresh_pairs(kind, strict):
    missed, passed = judged(kind, strict)
    assert not missed and not passed, (missed, passed)
