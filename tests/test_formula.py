"Quantities from hostile hands; thousands of random formulas, Python against JavaScript."
import json, linecache, math, shutil, subprocess, types
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from r1nb.core import R1Error
from r1nb.formula import asset, javascript, js_number, quantity

NODE = shutil.which('node')
# GitHub's runners have node: there `.ci/run` compares the languages; elsewhere it is optional.
needs_node = pytest.mark.skipif(not NODE, reason='node is not installed: the JavaScript is not run')


# ---- quantities ------------------------------------------------------------------------------
@pytest.mark.parametrize('value, unit, expected', [
    (2, 'usd/gpu_h', 2.), ('2', 'usd/gpu_h', 2.), ('2 usd/gpu_h', 'usd/gpu_h', 2.),
    ('2 usd/(gpu*h)', 'usd/gpu_h', 2.), ('2 usd/gpu_hour', 'usd/gpu_h', 2.),
    ('2788e3 gpu_h', 'gpu_h', 2788e3), ('54 days', 'hour', 1296.), ('671e9 param', 'param', 671e9),
    ('671 Gparam', 'param', 671e9), ('141 GB', 'byte', 141e9), ('80 GiB', 'byte', 80*2**30),
    ('8 bit', 'byte', 1.), ('14.8 Ttokens', 'token', 14.8e12), ('989.5 Tflop/s', 'flop/s',
    989.5e12),
    ('700 W', 'kW', .7), ('1 kWh', 'J', 3.6e6), ('3 usd/Mtoken', 'usd/token', 3e-6), ('35 %', '',
    .35),
    ('.5', '', .5), ('5.', '', 5.), ('1e-3', '', 1e-3), (' 5  usd ', 'usd', 5.), ('5\nusd', 'usd',
    5.), ('5usd', 'usd', 5.),
    (np.float32(3), 'usd', 3.), (np.int64(3), 'usd', 3.), ('-0', 'usd', 0.), ('8 gpu * 24 h',
    'gpu_h', 192.),
    ('3 m**2', 'cm**2', 3e4)])
def test_quantity_reads(value, unit, expected):
    got = quantity(value, unit)
    assert type(got) is float and got == pytest.approx(expected, rel=1e-12)

@pytest.mark.parametrize('value', [
    None, True, '', ' ', '\n', [], {}, (2,), b'5', 1+2j, object(), np.array([3.]), 10**400, -1,
    '-1',
    '-1 usd', math.nan, math.inf, -math.inf, 'nan', 'inf', '-inf', 'NaN usd', '1e999', '1e999 usd',
    '5 gpu', '5 usd/h', '5 usd usd', '5 %', '5 GB', '5 degC', '5 dB', 'usd', 'price', '5 foo',
    '--5', '++5',
    '1,000', '1_000', '0x10', '$5', '5 $', '9**9**9', '(9**9)**9', '2**9 usd', '5 usd**99',
    '5 usd**usd',
    '((((5 usd', '5 usd)', '()', '5 ()', '/5', '5/', '1/0', '1/0 usd', '5**-1', '5; 3', '5 #',
    "5 'usd'",
    '__import__("os").system("ls")', '5 __class__', '5 lambda', '5 if 3', '5 await', '[5]', '{5}',
    '5\0',
    '5 usd'*50, '9'*400 + ' usd', '∞', '5 usd = 3', '5 @usd', '5 usd//2', '5 - 3', '\x1b[2J5'])
def test_quantity_refuses_in_one_line(value):
    with pytest.raises(R1Error) as e: quantity(value, 'usd', 'price')
    said = str(e.value)
    assert said.startswith('price ') and 'usd' in said and '\n' not in said and len(said) < 160
    assert '\x1b' not in said and '\0' not in said

def test_quantity_bounds_are_inclusive():
    assert quantity(0, 'usd') == 0 and quantity(1, '', lo=1, hi=1) == 1
    assert quantity(-5, '', lo=-9) == -5
    for bad in (.999, 1.001, '101 %'):
        with pytest.raises(R1Error, match='choose 1 to 1'): quantity(bad, '', lo=1, hi=1)

@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='0123456789.eE+-*/() usdgpu_htokn%', max_size=70) | st.text(max_size=20))
def test_quantity_never_raises_anything_else(text):
    try: x = quantity(text, 'usd', hi=1e12)
    except R1Error: return
    assert 0 <= x <= 1e12


# ---- formulas --------------------------------------------------------------------------------
def build(source, **names):
    "Functions of a source text, as if from a file: inspect finds their lines."
    module = types.ModuleType('made_up'); vars(module).update(math=math, **names)
    path = f'<made up {hash(source)}>'
    linecache.cache[path] = (len(source), None, source.splitlines(True), path)
    exec(compile(source, path, 'exec'), vars(module))   # a test's own text
    return vars(module)

class Node:
    "One node process; each line in is a program, each line out its result or null."
    LOOP = '''require('readline').createInterface({input: process.stdin}).on('line', line => {
      let out = null; try { out = (0, eval)(JSON.parse(line)); } catch (e) {
        if (!(e instanceof RangeError)) out = 'error ' + e; }
      console.log(JSON.stringify(typeof out === 'number' ? String(out) : out)); });'''
    def __init__(self):
        self.p = subprocess.Popen([NODE, '-e', self.LOOP], text=True, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        assert self('globalThis.$ = (() => {' + asset('calculator.js') + '; return $; })(); 7') == 7
    def __call__(self, code):
        self.p.stdin.write(json.dumps(code) + '\n'); self.p.stdin.flush()
        out = json.loads(self.p.stdout.readline())
        assert not (isinstance(out, str) and out.startswith('error')), (out, code)
        return out if out is None or isinstance(out, dict) else float(out)
    def close(self): self.p.stdin.close(); self.p.wait(10); self.p.stdout.close()

@pytest.fixture(scope='module')
def node():
    n = Node(); yield n; n.close()

def js(x): return f'({js_number(float(x))})'

names = st.sampled_from('xyz')
numbers = st.sampled_from(['0', '1', '2', '3', '7.5', '0.1', '1e9', '24', '1000', 'HOURS',
    'math.pi'])
def deeper(inner):
    three = lambda words, form: st.tuples(inner, st.sampled_from(words.split()), inner).map(
        form.format)
    pair = three('+ - * / // %', '({0[0]}{0[1]}{0[2]})')
    test = three('< <= > >= == !=', '{0[0]} {0[1]} {0[2]}')
    chain = st.tuples(inner, inner, inner).map('{0[0]} < {0[1]} <= {0[2]}'.format)
    either = st.tuples(test | chain, st.sampled_from(['and', 'or', 'and not']), test | chain).map(
        '({0[0]}) {0[1]} ({0[2]})'.format)
    return st.one_of(
        pair, pair, inner.map('(-{})'.format), inner.map('(+{})'.format),
        st.tuples(inner, st.sampled_from(['2', '.5', '-1', '3'])).map('({0[0]})**{0[1]}'.format),
        st.tuples(inner, st.sampled_from(['sqrt', 'log', 'exp', 'floor', 'ceil'])).map(
            'math.{0[1]}({0[0]})'.format),
        three('min max', '{0[1]}({0[0]}, {0[2]}, 1)'),
        st.tuples(inner, test | chain | either, inner).map(
            '({0[0]} if {0[1]} else {0[2]})'.format),
        st.tuples(inner, inner).map('other({0[0]}, scale={0[1]})'.format),
        inner.map('other({0})'.format), inner.map("both({0})['half']".format))
expressions = st.recursive(names | numbers, deeper, max_leaves=12)
floats = st.floats(-1e6, 1e6) | st.sampled_from([0., 1., -1., .5, 2., 1e300, -7., 1e-300])

OTHERS = '''
def other(a, scale=2.5, new=1):
    "Called by keyword, by default, and with a name JavaScript reserves."
    new = a*scale + new
    return new
def both(a): return dict(half=a/2, **{'twice': 2*a})
'''

def close(a, b):
    # powers and logarithms may differ by an ulp, and a few of them add up
    return a == b or math.isclose(a, b, rel_tol=1e-9,
        abs_tol=1e-300) or (math.isnan(a) and math.isnan(b))

@needs_node
@settings(max_examples=400, deadline=None)
@given(expressions, floats, floats, floats)
def test_random_expressions_agree(node, text, x, y, z):
    made = build(f'{OTHERS}\ndef f(x, y, z):\n    t = {text}\n    return t\n', HOURS=8760)
    try: code = javascript(made['f'])
    except R1Error as e:
        assert 'constant' in str(e); return   # such as 1/0, refused when translated
    try: want = made['f'](x, y, z)
    except (ArithmeticError, ValueError, TypeError): want = None
    if isinstance(want, int): want = float(want) if abs(want) < 2**53 else None
    if isinstance(want, complex): want = None
    got = node(f'(() => {{ {code}; return f({js(x)}, {js(y)}, {js(z)}); }})()')
    if want is None or big(made['f'], x, y, z): return
    assert got is not None and close(got, want), (text, x, y, z, want, got)

def big(f, *at):
    "True where rounding is amplified: the same formula a hair away gives another answer."
    try: a, b = f(*at), f(*(v*(1 + 4e-16) for v in at))
    except (ArithmeticError, ValueError, TypeError): return True
    return not close(float(a), float(b))

@needs_node
@pytest.mark.parametrize('op', ['a % b', 'a // b', 'a / b', 'a ** b', 'min(a, b)', 'max(a, b)',
                                'math.log(a) + b', 'math.sqrt(a) * b', 'math.exp(a) - b',
                                'math.floor(a) + b', 'math.ceil(a) + b', '1 if a < b < 2 else 0',
                                '1 if not a == b else 0', '1 if a != b or a > 2 and b <= 1 else 0'])
def test_operators_at_the_edges(node, op):
    f = build(f'def f(a, b): return {op}\n')['f']
    code = javascript(f)
    edges = [0., -0., 1., -1., .5, -.5, 2., 3., -7., 7.25, 1/3, 710., 1e16, -1e300, 1e308, 5e-324,
        math.inf,
             -math.inf, math.nan]
    for a in edges:
        for b in edges:
            try: want = f(a, b)
            except (ArithmeticError, ValueError): want = None
            if isinstance(want, complex): want = None
            got = node(f'(() => {{ {code}; return f({js(a)}, {js(b)}); }})()')
            assert (got is None) == (want is None), (op, a, b, want, got)
            assert want is None or close(got, float(want)), (op, a, b, want, got)

@needs_node
def test_reserved_words_and_constants(node):
    made = build('''
BIG, TINY = 10**23, 1/3
def delete(new, var=10**3): return new*var
def f(x, this=2):
    let = x + BIG*TINY
    let = let - BIG/3
    function = delete(var=this, new=let)
    return {'default': function, 'class': -2**2, 'e': 2*math.e}
''')
    got = node(f"(() => {{ {javascript(made['f'])}; return f(5); }})()")
    want = made['f'](5.)
    assert got == pytest.approx(want, rel=1e-12) and list(got) == list(want)

@pytest.mark.parametrize('body, said', [
    ('for i in range(3): x = x\n    return x', 'line 2: `for i in range(3):'),
    ('while x: x = x - 1\n    return x', 'line 2: `while x:'),
    ('if x > 0: return 1\n    return 2', 'line 2: `if x > 0:'),
    ('x += 1\n    return x', 'line 2: `x += 1`'),
    ('a, b = x, x\n    return a', 'line 2: `a, b = (x, x)`'),
    ('a = b = x\n    return a', '`a = b = x`'), ('a: float = x\n    return a', '`a: float = x`'),
    ('import os\n    return x', '`import os`'), ('global x1\n    return x', '`global x1`'),
    ('print(x)\n    return x', '`print(x)`'), ('return', '`return`'), ('x = 2', '`x = 2`'),
    ('pass', '`pass`'),
    ('return print(x)', 'can call this'), ('return open(x)', '`open(x)`'), ('return eval("x")',
    'eval'),
    ('return math.sin(x)', '`math.sin(x)`'), ('return math.log(x, 2)', '`math.log(x, 2)`'),
    ('return min(x)', '`min(x)`'), ('return min(*[x, x])', 'min'), ('return max(x, x, key=x)',
    'max'),
    ('return math.sqrt()', 'sqrt'), ('return abs(x)', '`abs(x)`'), ('return unknown', '`unknown`'),
    ('return later\n    later = 1', '`return later`'), ('return x.real', '`x.real`'),
    ('return x[0]', '`x[0]`'),
    ('return [x]', '`[x]`'), ('return (x, x)', '`(x, x)`'), ('return "x"', "'x'"), ('return True',
    '`True`'),
    ('return None', '`None`'), ('return x & 1', '`x & 1`'), ('return ~x', '`~x`'),
    ('return x << 1', '`x << 1`'),
    ('return x @ x', '`x @ x`'), ('return lambda: x', 'lambda'), ('return (y := x)', 'y := x'),
    ('return f"{x}"', '`f'), ('return [i for i in x]', 'for i in x'), ('return x if x else 1',
    'compares numbers'),
    ('return x > 1', '`x > 1`'), ('return not x', '`not x`'), ('return x and 1', '`x and 1`'),
    ('return 1 if x in (1, 2) else 0', 'in (1, 2)'), ('return 1 if x is x else 0', 'x is x'),
    ('return {x: 1}', 'keys'), ('return {1: x}', 'keys'), ('return 1/0', 'no value'),
    ('return (-8)**.5', 'no real number'), ('return 1e308*10**400', 'no value'), ('return 3j',
    '`3j`'),
    ('return helper(x, x, x)', 'too many positional'), ('return helper(x, b=x)', "'b'"),
    ('return helper(*x)', '*x'),
    ('return helper(**x)', '**x'), ('return helper()', "'a'")])
def test_what_is_no_formula_is_refused_by_line(body, said):
    source = f'def helper(a, c=1): return a*c\n\ndef f(x):\n    {body}\n'
    f = build(source)['f']
    with pytest.raises(R1Error) as e: javascript(f)
    text = str(e.value)
    assert text.startswith('f, line ') and said in text and '\n' not in text, text

def test_other_things_are_no_formulas():
    made = build('''
def star(*a): return 1
def keys(**a): return 1
def word(a='x'): return 1
def none(a=None): return a
def twin(a): return a
async def later(a): return a
class C:
    def f(self): return 1
def outer():
    y = 3
    def inner(x): return x*y
    return inner
def calls(a): return other(a)
''', other=math.sin)
    for bad in [made[n] for n in ('star', 'keys', 'word', 'none', 'later', 'C', 'calls')] + [
            made['outer'](), lambda x: x, 3, None, math.sin, 'x*2',
                build('f = eval("lambda x: x")')['f']]:
        with pytest.raises(R1Error): javascript(bad)
    again = build('def twin(a): return a*2')['twin']
    with pytest.raises(R1Error, match='two formulas have this name'): javascript(made['twin'],
        again)
    assert javascript(made['twin'], made['twin']).count('function') == 1
