"Every calculator of the book: JavaScript equals Python, and the stored page runs without a server."
import importlib, inspect, json, math, pkgutil, random, re, shutil, subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType
import pytest
import r1nb
from r1nb.calculator import Calculator, Input, Output, script, shown
from r1nb.core import R1Error

NODE = shutil.which('node')
# GitHub's runners have node: there `.ci/run` runs all of this; elsewhere it is optional.
needs_node = pytest.mark.skipif(not NODE, reason='node is not installed: the JavaScript is not run')
NOTEBOOKS = sorted((Path(__file__).parent.parent/'nbs').glob('*.ipynb'))

def tariff(gpus, hours, usd_per_gpu_hour, share=.5):
    "Every kind of output at once."
    gpu_hours = gpus*hours
    usd = gpu_hours*usd_per_gpu_hour
    return {'usd': usd, 'share': share, 'tiny': usd**-3, 'days': math.ceil(hours/24),
            'limit': 0 if gpus > hours else 1, 'left': usd % 1000 - 500}

def sample():
    return Calculator('A <tariff> & "more"', tariff,
        [Input('gpus', 'GPUs', 1, 1e6, 2048, 'gpu', log=True),
         Input('hours', 'Hours', 0, 1e4, 168, 'hour'),
         Input('usd_per_gpu_hour', 'Price', .1, 10, 2, 'usd/gpu_h',
               choices={'spot': .5, 'list': 2}),
         Input('share', 'Share', 0, 1, .25)],
        [Output('usd', 'Bill', 'usd'), Output('share', 'Share', '', '.1%'),
         Output('tiny', 'Tiny', '', '.3g'),
         Output('days', 'Days', 'd', ',.2f'), Output('limit', 'Limit', words=('many', 'long')),
         Output('left', 'Left', '', '.0f')],
        presets={'dear': dict(usd_per_gpu_hour='list', gpus=10_000), 'short': dict(hours='1 hour')})

def calculators():
    "Those the modules export: a new one is tested as soon as it exists."
    found = {'sample': sample()}
    for m in pkgutil.iter_modules(r1nb.__path__):
        text = (Path(r1nb.__path__[0])/f'{m.name}.py').read_text(encoding='utf-8')
        if m.name == 'calculator' or not re.search(r'\bCalculator\(', text): continue
        for k, c in vars(importlib.import_module(f'r1nb.{m.name}')).items():
            if isinstance(c, FunctionType) and c.__module__ == f'r1nb.{m.name}':
                sig = inspect.signature(c)   # `def serve_calculator()->Calculator` makes one
                if sig.return_annotation is Calculator and not sig.parameters: c = c()
            if isinstance(c, Calculator): found[f'{m.name}.{k}'] = c
    return found
ALL = calculators()
each = pytest.mark.parametrize('name', list(ALL))

def draws(c, n, seed=0):
    "Random inputs between the ends, the ends themselves among them."
    rng = random.Random(seed)
    def one(i):
        if i.choices: return rng.choice(list(i.choices.values()))
        if rng.random() < .1: return rng.choice([i.lo, i.hi, i.default])
        x = i.lo*(i.hi/i.lo)**rng.random() if i.log else rng.uniform(i.lo, i.hi)
        return min(max(x, i.lo), i.hi)
    return [{i.name: one(i) for i in c.inputs} for _ in range(n)]

def node(code, data):
    done = subprocess.run([NODE, '-e', code], input=json.dumps(data), capture_output=True,
                          text=True)
    assert not done.returncode, done.stderr[-1500:]
    return json.loads(done.stdout)

READ = "const data = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
WRITE = 'process.stdout.write(JSON.stringify(out));'

@each
@needs_node
def test_javascript_equals_python(name):
    c = ALL[name]
    at = draws(c, 300)
    code = f'''{READ} {script(c)}
        const out = data.map(at => {{ try {{ return answer(at); }} catch (e) {{
            if (!(e instanceof RangeError)) throw e; return null; }} }}); {WRITE}'''
    answered = 0
    for x, js in zip(at, node(code, at)):
        try: want = c.compute(**x)
        except R1Error: want = None
        got = js if isinstance(js, dict) else {c.outputs[0].name: js}
        got = {o.name: got.get(o.name) for o in c.outputs}
        if want is None: assert None in got.values(), (x, js)   # JSON writes NaN as null
        else:
            answered += 1
            for k, y in want.items(): assert math.isclose(got[k], y, rel_tol=1e-9), (k, x, js)
    assert answered >= 200, f'only {answered} of 300 random inputs have an answer: narrow the ends'


# ---- the page, with as little of a browser as it needs -----------------------------------------
class Page(HTMLParser):
    "Elements with their attributes; the script's text; what must be closed."
    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.open, self.text = [], [], [], text
        self.feed(text); self.close()
    def handle_starttag(self, tag, attrs):
        self.elements.append(dict(attrs, tag=tag, options=[]))
        if tag == 'option':
            select = [e for e in self.elements if e['tag'] == 'select'][-1]
            select['options'].append('')
            if 'selected' in dict(attrs): select['selected'] = len(select['options']) - 1
        if tag not in ('input', 'meta', 'br', 'img'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag, f'</{tag}> out of place'
    def handle_data(self, text):
        if self.open[-1:] == ['script']: self.scripts.append(text)
        if self.open[-1:] == ['option']:
            [e for e in self.elements if e['tag'] == 'select'][-1]['options'][-1] += text

DOM = '''
class Element {
  constructor(a) { this.a = a; this.on = {}; this.textContent = ''; this.value = a.value ?? '';
    if (a.tag === 'select') this.index = a.selected ?? 0; }
  get selectedIndex() { return this.index; }
  set selectedIndex(i) { this.index = i; }
  getAttribute(k) { return this.a[k]; }
  setAttribute(k, v) { this.a[k] = String(v); }
  addEventListener(type, f) { (this.on[type] ??= []).push(f); }
  fire(type) { for (const f of this.on[type] ?? []) f(); }
  querySelector(s) {
    const [, k, v, fresh] = s.match(/^\\[(data-[\\w-]+)="([^"]*)"\\](:not\\(\\[data-live\\]\\))?$/);
    return all.find(e => e.a[k] === v && !(fresh && 'data-live' in e.a)) ?? null;
  }
}
const all = data.elements.map(a => new Element(a)), document = new Element({});
const text = () => Object.fromEntries(all.filter(e => 'data-output' in e.a).map(
  e => [e.a['data-output'], e.textContent]));
const boxes = () => Object.fromEntries(all.filter(e => 'data-input' in e.a).map(
  e => [e.a['data-input'], e.a.tag === 'select' ? e.index : e.value]));
const why = () => document.querySelector('[data-why=""]').textContent;
const state = () => ({text: text(), boxes: boxes(), why: why()});
const find = (kind, name) => document.querySelector(`[data-${kind}="${name}"]`);
'''

def drive(c, moves):
    page = Page(c.html())
    return node(f"{READ} {DOM} {page.scripts[0]} const out = [state()]; {moves} {WRITE}",
                dict(elements=page.elements, presets=list(c.presets),
                     inputs=[i.name for i in c.inputs]))

def values(c, state):
    pick = lambda i, x: list(i.choices.values())[x] if i.choices else float(x)
    return {i.name: pick(i, state['boxes'][i.name]) for i in c.inputs}

def same_as_python(c, state):
    try: want = c.compute(**values(c, state))
    except R1Error: assert state['why'] and '–' in state['text'].values(); return
    assert state['why'] == ''
    for o in c.outputs: assert state['text'][o.name] == shown(o, want[o.name])

@each
@needs_node
def test_moving_a_slider_moves_the_results(name):
    c = ALL[name]
    states = drive(c, '''for (const name of data.inputs) {
        const slider = find('slider', name), box = find('input', name);
        for (const t of ['0', '1000', '137', '850']) {
            if (slider) { slider.value = t; slider.fire('input'); }
            else { box.selectedIndex = t === '1000' ? 1 : 0; box.fire('input'); }
            out.push(state()); } }''')
    assert values(c, states[0]) == {i.name: float(f'{i.default:.17g}') for i in c.inputs}
    for s in states: same_as_python(c, s)
    assert len({json.dumps(s['text']) for s in states}) > 4, 'the results do not move'

@each
@needs_node
def test_boxes_presets_and_nonsense(name):
    c = ALL[name]
    states = drive(c, '''for (const p of data.presets) {
        const menu = find('preset', ''); menu.value = p; menu.fire('input'); out.push(state()); }
      const typed = data.inputs.find(n => find('slider', n)), box = find('input', typed);
      for (const x of ['', 'x', '-1e99', '1e99', 'NaN']) {
        box.value = x; box.fire('input'); out.push(state()); }''')
    for (preset, at), s in zip(c.presets.items(), states[1:]):
        same_as_python(c, s)
        full = {i.name: values(c, s)[i.name] for i in c.inputs}
        assert c.compute(**full) == pytest.approx(c.compute(**{**full, **at}), rel=1e-12)
    for s in states[1 + len(c.presets):]:
        assert 'choose' in s['why'] and set(s['text'].values()) == {'–'}

@needs_node
def test_two_copies_on_one_page_are_both_live():
    c = sample()
    page = Page(c.html()*2)
    code = f'''{READ} {DOM} {page.scripts[0]} {page.scripts[1]}
        const out = all.filter(e => 'data-live' in e.a).length; {WRITE}'''
    assert node(code, dict(elements=page.elements)) == 2

@needs_node
def test_numbers_read_alike():
    xs = [0., .5, 1.5, 2.5, -2.5, .125, .375, 1.005, 999.5, 999.4999, 1e-5, 123456.5, 1e15,
          3.29e24, 1e21, -1234567.891, 1e-300, .045, 8.345, 5.576e6, 99999.5, .00012345, 1/3, 2/3]
    rng = random.Random(0)
    xs += [rng.uniform(-1, 1)*10**rng.randint(-8, 18) for _ in range(500)]
    specs = [f'{comma}.{n}{kind}' for comma in ('', ',') for n in (0, 1, 2, 3, 6) for kind in 'fg%']
    code = f'{READ} {script(sample())} const out = data.map(([x, s]) => show(x, s)); {WRITE}'
    pairs = [(x, s) for x in xs for s in specs]
    for (x, s), got in zip(pairs, node(code, pairs)): assert got == format(x, s), (x, s)

@each
def test_the_page_is_whole_safe_and_readable(name):
    c = ALL[name]
    text = c.html()
    page = Page(text)
    assert not page.open and len(page.scripts) == 1 and len(text.encode()) < 60_000
    outside = r'https?:|//cdn|\bfetch\b|XMLHttp|\bimport\b|src=|\bon\w+='
    assert not re.search(outside, text), 'no network'
    assert '```' not in text and '<table' not in text       # Quarto would meddle with these
    ids = [e['id'] for e in page.elements if 'id' in e]
    assert len(ids) == len(set(ids))
    for e in page.elements:
        if e['tag'] in ('input', 'meter', 'section'): assert e['aria-label'].strip()
    for o in c.outputs:                                     # results stand there without the script
        assert f'data-output="{o.name}"' in text
    assert c.html() == text, 'the same calculator writes the same page'

def test_hostile_words_stay_words():
    evil = '</script><script>alert(1)</script>'
    c = Calculator(evil, tariff, [
        Input('gpus', evil, 1, 10, 2), Input('hours', '"onload="x', 1, 9, 2),
        Input('usd_per_gpu_hour', "'<b>", 1, 9, 2, choices={evil: 2, '<!--': 3})],
        [Output('usd', evil, evil), Output('limit', '<', words=(evil, '<!--'))],
        presets={evil: {}})
    text = c.html()
    assert text.count('<script') == 1 and text.count('</script') == 1 and '<!--' not in text
    assert not Page(text).open

@pytest.mark.parametrize('change, said', [
    (dict(default=11), 'lo <= default <= hi'), (dict(lo=10., default=10), 'lo <'),
    (dict(lo=0., log=True), 'lo > 0'), (dict(choices={'a': 7}), 'choices'),
    (dict(unit='usd', default=5), None), (dict(name='x'), 'unexpected|argument')])
def test_a_wrong_calculator_is_refused_when_made(change, said):
    base = dict(name='gpus', label='GPUs', lo=1., hi=10., default=2.)
    def one(gpus): return gpus*2
    make = lambda: Calculator('T', one, [Input(**{**base, **change})], [Output('y', 'Y')])
    if said is None: assert make().compute() == {'y': 10.}; return
    with pytest.raises((R1Error, TypeError), match=said): make()

def test_wrong_outputs_are_refused_when_made():
    def one(gpus): return {'y': gpus}
    gpus = Input('gpus', 'GPUs', 1, 10, 2)
    for o in (Output('z', 'Z'), Output('y', 'Y', '', '{}'), Output('y', 'Y', '', '.2e')):
        with pytest.raises(R1Error): Calculator('T', one, [gpus], [o])
    with pytest.raises(R1Error, match="'days' is no input"):
        Calculator('T', one, [gpus], [Output('y', 'Y')], presets={'p': dict(days=3)})
    for bad in (dict(gpus=0), dict(gpus='3 usd'), dict(gpus=None), dict(gpus='nan'), dict(cpus=3)):
        with pytest.raises(R1Error): Calculator('T', one, [gpus], [Output('y', 'Y')]).compute(**bad)

@each
def test_widgets_follow(name):
    pytest.importorskip('ipywidgets')
    c = ALL[name]
    box = c.widgets()
    *controls, out = box.children
    assert len(controls) == len(c.inputs) + bool(c.presets)
    first = out.value
    for o in c.outputs: assert f'data-output="{o.name}"' in first
    for w in controls[bool(c.presets):]:
        if hasattr(w, 'options'): w.value = list(w.options.values())[0]
        else: w.value = w.base**w.min if hasattr(w, 'base') else w.min
    assert out.value != first
    if c.presets:
        for p in c.presets: controls[0].value = p
        full = {i.name: w.value for i, w in zip(c.inputs, controls[1:])}
        want = c.compute(**{**full, **c.presets[p]})
        for o in c.outputs: assert shown(o, want[o.name]).split()[0] in out.value

def test_the_bundle_has_widgets_only_where_a_lab_started_the_kernel(monkeypatch):
    pytest.importorskip('ipywidgets')
    c, view = sample(), 'application/vnd.jupyter.widget-view+json'
    monkeypatch.delenv('JPY_SESSION_NAME', raising=False)
    assert set(c._repr_mimebundle_()) == {'text/plain', 'text/html'}
    monkeypatch.setenv('JPY_SESSION_NAME', '09_calculator.ipynb')
    assert view in c._repr_mimebundle_() and 'text/html' in c._repr_mimebundle_()

@pytest.mark.parametrize('path', NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_stored_pages_are_live_and_no_widget_is_stored(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    assert 'widgets' not in nb['metadata'], 'refresh by executing the notebook, not from JupyterLab'
    for cell in nb['cells']:
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            assert not any('widget' in k for k in data), 'execute the notebook with nbconvert'
            text = ''.join(data.get('text/html', ''))
            if 'r1nb-calc' in text: assert text.count('<script>') == 1 and not Page(text).open
