"What would bore a reader of rooms 38, 57 and 63: the shape of every row, hostile input, and prose."
import copy, importlib, json, math, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from r1nb import claims as room
from r1nb.claims import (VERDICTS, Number, check, claim, claims, contradictions, ledger, show,
                         working)
from r1nb.core import R1Error
from r1nb.published import (HOW, Explorer, _menus, benchmarks, compare, inputs, obtained, quoted,
                            scores, significance)
from r1nb.shapes import dense_parameters

sys.path.insert(0, str(Path(__file__).parent))
import prose

ROWS = claims()
share = st.floats(0, 1)
number = st.integers(1, 10**6)


# ---- rows ------------------------------------------------------------------------------------
@pytest.mark.parametrize('c', ROWS, ids=lambda c: c.id)
def test_row(c):
    about = quoted()['about']
    assert c.quotes and all(0 < len(text.split()) <= 12 and seeds for text, seeds in c.quotes)
    assert set(c.seeds) <= set(about['seeds']) and set(c.keys) <= set(about['keys'])
    assert c.source and c.how and c.basis in HOW
    assert bool(c.working) != bool(c.reason), 'a working, or the reason why there is none'
    assert bool(c.working) == bool(c.expected)
    assert len({n.name for n in c.expected}) == len(c.expected)
    assert ('from memory' in c.source + c.note) == c.remembered
    assert not (c.verified and c.basis in ('from memory', 'none'))
    assert not any(s in json.dumps(show(c)) for s in ('NaN', 'Infinity', '[V', '[mem', '.txt'))

def test_every_source_key_is_as_good_as_it_says():
    keys = quoted()['about']['keys']
    for c in ROWS:
        for k in c.keys: assert keys[k]['how'] in c.how, (c.id, k)

def test_misses_are_known():
    missed = [c.id for c in [*ROWS, *contradictions()] if check(c).ok is False]
    # C07: our student's answers are cut off by the length limit; E04: a direct answer's first token
    # comes with reading the prompt, so its tokens look cheaper
    assert missed == ['C07', 'E04']

def test_a_changed_digit_is_noticed():
    "Move each expected value by four tolerances: its check must fail."
    held = 0
    for c in [*ROWS, *contradictions()]:
        found = check(c).obtained
        for n in c.expected:
            if n.relation != '=': continue
            off = replace(n, value=n.value + 4*(n.tol or .5))
            held += off.holds(found[n.name])
    assert held == 0

def test_measured_rows_without_the_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(room.r1nb, '__file__', str(tmp_path/'r1nb/__init__.py'))
    k = check(claim('C37'))
    assert k.ok is None and not k.obtained and 'clone' in k.note and '\n' not in k.note

def test_filters():
    assert claims() == ROWS
    assert sum(len(claims(verdict=v)) for v in VERDICTS) == len(ROWS)
    assert {c.id for c in claims(seed='s1', section='D')} <= {c.id for c in claims(section='D')}
    assert claim('a03') == claim('A03') and claim('A03') in claims(text='93% COMPRESSION')
    assert claims(text='no such words at all') == []

@pytest.mark.parametrize('wrong', [
    lambda: claims(verdict='refuted'), lambda: claims(seed='s5'), lambda: claims(section='F'),
    lambda: claims(verdict='A', section='A'), lambda: claim(''), lambda: claim('A1'),
    lambda: claim(None), lambda: claim('../..'), lambda: obtained('price'), lambda: scores(''),
    lambda: compare('AIME 2024', 'R1', 'nobody'), lambda: compare('SimpleQA'),
    lambda: significance(-.1, 30, .5), lambda: significance(math.nan, 30, .5),
    lambda: significance(.5, 0, .5), lambda: significance(.5, 30, .5, 0)])
def test_one_line_errors(wrong):
    with pytest.raises(R1Error) as e: wrong()
    assert '\n' not in str(e.value) and len(str(e.value)) < 700

def test_bad_rows_are_refused():
    good = quoted()['claims'][:2]
    for key, value in (('verdict', 'TRUE'), ('basis', 'hearsay'), ('how', ['rumour'])):
        bad = copy.deepcopy(good); bad[1][key] = value
        with pytest.raises(R1Error, match=bad[1]['id']): ledger(bad)
    assert ledger([]) == []

def test_a_damaged_file(tmp_path):
    (tmp_path/'claims.json').write_text('{"claims": [')
    with pytest.raises(R1Error, match='not JSON'): quoted(tmp_path/'claims.json')
    with pytest.raises(R1Error): quoted(tmp_path/'none.json')

def test_workings_have_source():
    for name in {c.working for c in [*ROWS, *contradictions()]} - {''}:
        c = next(c for c in [*ROWS, *contradictions()] if c.working == name)
        assert f'def {name}(' in working(c)

def test_import_is_light():
    code = 'import sys, r1nb.claims; print(*sys.modules)'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    heavy = {'torch', 'matplotlib', 'pint', 'ipywidgets'}
    assert 'r1nb.claims' in r.stdout and not heavy & set(r.stdout.split()), r.stderr

@pytest.mark.parametrize('relation,x,ok', [
    ('=', 1.05, True), ('=', 1.06, False), ('>=', .94, False), ('>=', 2, True), ('<=', 1.2, False),
    ('<=', -5, True)])
def test_relations(relation, x, ok): assert Number('x', 1., 'm', .05, relation).holds(x) == ok


# ---- tables ----------------------------------------------------------------------------------
@given(share, number, share, number)
@settings(max_examples=200, deadline=None)
def test_significance_has_no_favourite(p, n, q, m):
    a, b = significance(p, n, q, m), significance(q, m, p, n)
    assert math.isclose(a['z'], -b['z'], abs_tol=1e-9)
    assert math.isclose(a['p'], b['p'], rel_tol=1e-9)
    assert 0 <= a['p'] <= 1 and a['interval_1'] == b['interval_2']

@given(st.floats(.01, .99), st.floats(.01, .99), st.integers(5, 10**5))
@settings(max_examples=200, deadline=None)
def test_more_questions_say_more(p, q, n):
    a, b = significance(p, n, q), significance(p, 4*n, q)
    assert math.isclose(b['z'], 2*a['z'], rel_tol=1e-9, abs_tol=1e-12)

def test_significance_against_counting():
    "Exact tail of all 31 x 31 outcomes with equal skill; the test is approximate, to 2 points."
    p, n, d = .8, 30, 5
    pmf = [math.comb(n, k)*p**k*(1 - p)**(n - k) for k in range(n + 1)]
    exact = sum(pmf[i]*pmf[j] for i in range(n + 1) for j in range(n + 1) if abs(i - j) >= d)
    z = significance(p + d/2/n, n, p - d/2/n)['z']
    continuity = math.erfc(abs(z)*(d - .5)/d/math.sqrt(2))
    assert abs(exact - continuity) < .02

def test_tables_are_whole():
    t = quoted()['tables']
    assert len(t['distilled']['rows']) == 13 and len(t['o1']['rows']) == 21
    for b in benchmarks(): assert all(v > 0 for v in scores(b).values())
    twice = {b: scores(b) for b in benchmarks()}  # the two tables agree where they meet
    for r in t['distilled']['rows']:
        for b, v in r.items():
            if v is None or b not in twice or b == 'LiveCodeBench': continue  # X14
            assert twice[b][r['model']] == v
    for b in t['questions']: assert 'R1' in scores(b) and 'o1-1217' in scores(b)

def test_menus_offer_only_what_can_be_compared():
    w = pytest.importorskip('ipywidgets')
    box = _menus(Explorer())
    pick, a, b = box.children[0].children
    for name in pick.options:
        pick.value = name
        assert a.value in scores(name) and b.value in scores(name)
        for m in a.options: a.value = m; assert m in box.children[1].value

def test_dense_parameters_against_pytorch():
    torch = pytest.importorskip('torch')
    from torch import nn
    d, L, i, h, kv, v = 24, 2, 40, 6, 2, 50
    plain = lambda a, b: nn.Linear(a, b, bias=False)
    layer = lambda: [nn.Linear(d, d), nn.Linear(d, d//h*kv), nn.Linear(d, d//h*kv), plain(d, d),
                     plain(d, i), plain(d, i), plain(i, d), nn.RMSNorm(d), nn.RMSNorm(d)]
    parts = [nn.Embedding(v, d), plain(d, v), nn.RMSNorm(d), *layer(), *layer()]
    counted = sum(p.numel() for m in parts for p in m.parameters())
    assert dense_parameters(d, L, i, h, kv, v, True) == counted

def test_inputs_know_where_they_come_from():
    how = quoted()['inputs_how']
    assert set(how.values()) <= set(HOW)
    for name in inputs(): assert obtained(name) in HOW
    for name in how:
        group, _, field = name.partition('.')
        assert group in inputs() and (not field or field in inputs()[group]), name


# ---- prose -----------------------------------------------------------------------------------
ROOMS = 55, 56, 60, 61, 62, 63

def notebook(*cells):
    "Strings are markdown; pairs are code and what it prints."
    said = lambda c: {'cell_type': 'markdown', 'source': c}
    ran = lambda c: {'cell_type': 'code', 'source': c[0], 'outputs': [{'text': c[1]}]}
    return {'cells': [said(c) if isinstance(c, str) else ran(c) for c in cells]}

@pytest.mark.parametrize('path', [p for n in ROOMS for p in prose.room(n)],
                         ids=lambda p: p.stem)
def test_prose(path):
    bad = [f'cell {i}: {f.text}: …{where}…' for i, f, where in
           prose.unsupported(json.loads(path.read_text()))]
    assert not bad, '\n'.join(bad)

WRONG = [('It costs $5.577 M in all.', '5576000'), ('5 577 000 dollars', '5576000'),
         ('7.7 % of it', '0.0528'), ('about 80 000 dollars', '87072'), ('55.2 days', '54.2'),
         ('3.30×10^{24} operations', '3.2856e+24'), ('3.4e24 FLOP', '3.2856e24'),
         ('226.9 nodes', '226.7499'), ('−4.3 points', '-4.2'), ('2 789 K hours', '2788000'),
         ('148 thousand hours', '147336'), ('7.4 points', '0.0733'), ('in 2049 GPUs', '2048'),
         ('it takes 41 more', '[40, 42]')]
RIGHT = [('It costs $5.576 M in all.', '5576000'), ('5 576 000 dollars', '5576000'),
         ('5.3 % of it', '0.0528'), ('about 87 000 dollars', '87072'), ('54.2 days', '54.2'),
         ('3.29×10^{24} operations', '3.2856e+24'), ('3.29·10²⁴', '3.2856e24'),
         ('226.75 nodes', '226.7499'), ('−4.2 points', '-4.2'), ('1. First exercise', ''),
         ('in January 2025, on 27 January', ''), ('section 3.2.3, table 5, rooms 60–63, §4.1', ''),
         ('arXiv:2501.12948, H800, o1-1217, GPT-4, FP8, E4M3, A03', ''), ('`2 usd` an hour', ''),
         ('[48 the run](48_pipeline.ipynb)', ''), ('`x` is 1.5', '{"a": 1.5}')]

@pytest.mark.parametrize('text,shown', WRONG)
def test_a_planted_number_is_caught(text, shown):
    assert [*prose.unsupported(notebook('The run.', ('x', shown), text))]

@pytest.mark.parametrize('text,shown', RIGHT)
def test_a_true_number_is_left_alone(text, shown):
    assert not [*prose.unsupported(notebook('The run.', ('x', shown), text))]

@pytest.mark.parametrize('path', [p for n in ROOMS for p in prose.room(n)], ids=lambda p: p.stem)
def test_a_wrong_digit_in_a_real_room_is_caught(path):
    "Change the last digit of every figure of three digits or more: most must be noticed."
    nb, caught, tried = json.loads(path.read_text()), 0, 0
    numbers = prose.pool(nb)
    for text in (''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown'):
        for f in prose.figures(prose.plain(text)):
            if len(f.text.replace('.', '').lstrip('0')) < 3 or f.value in prose.YEAR: continue
            for off in (-2, 2, 6):
                tried += 1
                caught += not prose.borne_out(replace(f, value=f.value + off*f.half), numbers)
    if tried < 10: pytest.skip('hardly a figure in its prose')
    assert caught/tried > .7, f'{caught} of {tried}'

def test_planted_in_a_real_room():
    path, = prose.room(63)
    nb = json.loads(path.read_text())
    nb['cells'].append({'cell_type': 'markdown', 'source': 'The run of V3 cost $5.577 M.'})
    assert [f.text for _, f, _ in prose.unsupported(nb)] == ['5.577']
