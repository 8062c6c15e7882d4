"""Every number in the prose of a room must be one that the room shows: in a cell's output, in its
code, or among the quoted figures that come with the package.

    python tests/prose.py 60 61 62 63      one line per number that no cell bears out; exit 1 if any
"""
import ast, csv, html, json, math, re, sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = ROOT/'r1nb/assets'
SUPER = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁻', '0123456789-')
GAP = '[ \u00a0\u2009\u202f,]'                     # between groups of three digits
NUMBER = re.compile(rf'''(?<![\w.])(?<![A-Za-z]-)
    (?P<digits>\d{{1,3}}(?:{GAP}\d{{3}})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)
    (?P<power>(?:e|\s*[×x·]\s*10\s*\^?\s*)[{{]?[-+]?\d+[}}]?)?''', re.X)
SCALES = {'%': 100, 'per cent': 100, 'points': 100, 'point': 100,
          'k': 1e-3, 'thousand': 1e-3, 'm': 1e-6, 'million': 1e-6, 'mb': 1e-6, 'b': 1e-9,
          'billion': 1e-9, 'gb': 1e-9, 't': 1e-12, 'trillion': 1e-12, 'tb': 1e-12, 'kb': 1e-3,
          'gflop': 1e-9, 'tflop': 1e-12, 'pflop': 1e-15, 'ms': 1e3, 'µs': 1e6, 'ns': 1e9, 'mj': 1e3,
          'kw': 1e-3, 'mw': 1e-6, 'gw': 1e-9, 'cents': 100, 'cent': 100, 'w': 1, 'x': 1}
UNIT = re.compile(r'(?:\s*(?:to|and|or|–|-)\s*[\d.]+)?'      # 85 to 90 %: the unit is of both
                  rf'\s*-?({"|".join(sorted(SCALES, key=len, reverse=True))})(?![a-z])', re.I)
MONTH = 'January February March April May June July August September October November December'
ABOUT = re.compile(r'(?:about|around|roughly|some|almost|nearly|under|over|above|below|near|'
                   r'than|≈|~|≤|≥|<|>)\s*$', re.I)

# ---- what is not a figure --------------------------------------------------------------------
PLACES = ('rooms?|sections?|§+|tables?|figures?|pages?|appendix|chapters?|exercises?|rows?|'
          r'equations?|day|issues?|algorithms?|version|eq\.|p\.')
DROP = [r'\[\d\d\b(?=[^\]]*\]\()',                              # [48, the run](…)
        r'```.*?```', r'`[^`]*`', r'<[^>]*>', r'https?://\S+', r'\]\([^)]*\)',
        r'arXiv:\S+', r'\b\d{2}_\w+', r'(?m)^\s*\d+\.\s',       # ids, files, list numbers
        r'\b[A-Za-z]\w*(?:-\w+)*-\d[\w.]*',                     # o1-1217
        rf'(?i)(?<!\w)(?:{PLACES})\s*\d+(?:\.\d+)*(?:\s*(?:,|and|or|to|–|-)\s*\d+(?:\.\d+)*)*',
        rf'\b\d\d?\s+(?:{MONTH.replace(" ", "|")})(?:\s+\d{{4}})?',
        r'\\(?:begin|end|frac|text)\b', r'_\{?\d\}?', r'\^\{?[A-Za-z]\w*\}?']
YEAR = range(1900, 2028)

def plain(text):
    "Prose without code, links, names of places and dates."
    for pattern in DROP: text = re.sub(pattern, ' ', text, flags=re.S)
    text = re.sub(r'10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)', lambda m: '10^' + m[1].translate(SUPER), text)
    text = re.sub(r'\\(?:times|cdot)', '×', text).replace('\\,', ' ').replace('\\%', '%')
    return text.replace('$', ' ').replace('−', '-').replace('*', ' ')

@dataclass(frozen=True)
class Figure:
    "A number as it is written."
    text:str
    value:float
    half:float    # half a unit of its last digit
    unit:str      # what follows, if it is a scale

def figures(text, loose=False):
    "Numbers of a text; `loose` also takes those that are part of a name, as outputs do."
    pattern = NUMBER if not loose else re.compile(NUMBER.pattern.replace(
        r'(?<![\w.])(?<![A-Za-z]-)', r'(?<![\d.])'), re.X)
    for m in pattern.finditer(text):
        digits = re.sub(GAP, '', m['digits'])
        power = re.search(r'[-+]?\d+\}?$', m['power'] or '')
        scale = 10.**int(power[0].rstrip('}')) if power else 1.
        whole, _, rest = digits.partition('.')
        half = .5*10**-len(rest)
        if not rest and ABOUT.search(text[max(0, m.start() - 12):m.start()]):
            half = max(half, .5*10**(len(whole) - len(whole.rstrip('0'))))
        unit = UNIT.match(text, m.end())
        yield Figure(m[0].strip(), float(digits)*scale, half*scale, unit[1].lower() if unit else '')

# ---- what may bear it out --------------------------------------------------------------------
def output_text(cell):
    "What a reader sees below a cell, without tags, scripts and styles."
    for o in cell.get('outputs', []):
        yield ''.join(o.get('text', ''))
        for mime, data in o.get('data', {}).items():
            if mime not in ('text/plain', 'text/html', 'text/markdown'): continue
            data = re.sub(r'<(script|style|svg)\b.*?</\1>', ' ', ''.join(data), flags=re.S)
            yield html.unescape(re.sub(r'<[^>]*>', ' ', data))

def literals(code):
    "Numbers written in code, and in its strings."
    try: tree = ast.parse(re.sub(r'(?m)^\s*[%!].*', '', code))
    except SyntaxError: return
    for o in ast.walk(tree):
        if isinstance(o, ast.Constant): yield from leaves(o.value)

def leaves(o):
    "Numbers in nested data, and in its text."
    if isinstance(o, bool) or o is None: return
    if isinstance(o, (int, float)): yield abs(float(o))
    elif isinstance(o, str): yield from (f.value for f in figures(o, loose=True))
    elif isinstance(o, (dict, list)):
        for x in o.values() if isinstance(o, dict) else o: yield from leaves(x)

def data_numbers():
    "The figures that come with the package: quoted inputs and tables, hardware, prices."
    d = json.loads((ASSETS/'claims.json').read_text())
    yield from leaves([d['inputs'], d['tables']])
    for path in ASSETS.glob('*.csv'):
        yield from leaves([*csv.reader(path.read_text().splitlines())])

def pool(nb):
    "Every number that a notebook shows or starts from; of the data, those of three digits."
    out = {x for x in data_numbers() if len(f'{x:.12g}'.replace('.', '').strip('0')) > 2}
    for c in nb['cells']:
        if c['cell_type'] != 'code': continue
        out |= set(literals(''.join(c['source'])))
        for text in output_text(c): out |= {f.value for f in figures(text, loose=True)}
    return sorted(x for x in out if math.isfinite(x))

def borne_out(f, numbers):
    "Does some number, in the unit of the prose, round to this figure?"
    scales = {1., SCALES.get(f.unit, 1.)}
    return any(abs(x*s - f.value) <= f.half*(1 + 1e-9) + 1e-12*abs(f.value)
               for s in scales for x in numbers)

def unsupported(nb):
    "(cell, figure, context) of every number in the prose that nothing bears out."
    numbers = pool(nb)
    for i, c in enumerate(nb['cells']):
        if c['cell_type'] != 'markdown': continue
        text = plain(''.join(c['source']))
        for f in figures(text):
            year = not f.unit and f.value in YEAR and len(f.text) == 4
            if year or borne_out(f, numbers): continue
            at = text.find(f.text)
            yield i, f, re.sub(r'\s+', ' ', text[max(0, at - 40):at + 40])

def room(number): return sorted((ROOT/'nbs').glob(f'{number}_*.ipynb'))

if __name__ == '__main__':
    bad = 0
    for path in (p for n in sys.argv[1:] for p in room(n)):
        for i, f, context in unsupported(json.loads(path.read_text())):
            bad += 1
            print(f'nbs/{path.name}:{i}: {f.text}: no cell shows it: …{context}…')
    sys.exit(bool(bad))
