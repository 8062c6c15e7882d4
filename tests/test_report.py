"""The report and the live view on a believable run folder, a partial one, and hostile ones."""
import json, math, random, re
from html.parser import HTMLParser
import pytest
from r1nb.core import R1Error, hardware, proportion_ci
from r1nb.report import ORDER, View, read_run, write_report

GUESS = ('<think> Try 20 - 4 = 16 , 16 + 16 = 32 . I guess. </think> '
         '<answer> ( 20 - 4 ) + 16 </answer>')
THOUGHT = ('<think> Try 20 - 4 = 16 , 11 * 16 = 176 , 176 - 16 = 160 . No, too high. '
           'Try 20 + 11 = 31 , 31 + 16 = 47 , 47 - 4 = 43 . '
           'Wait, let me check: 20 + 11 = 31 , 31 + 16 = 47 , 47 - 4 = 43 . '
           'Yes! </think> <answer> ( ( 20 + 11 ) + 16 ) - 4 </answer>')
FACTS = { # stage: pass1, mean tokens, seconds, tokens, parents
    'base': (.172, 48.1, 6.1, 26_000, ['teacher_asset']),
    'zero': (.587, 96.4, 121.7, 921_000, ['base']),
    'traces': (None, None, 21.0, 470_000, ['zero']),
    'student_base': (.14, 44.0, 4.2, 25_000, ['student_asset']),
    'student_distilled': (.503, 92.7, 34.5, 801_000, ['student_base', 'traces']),
    'student_rl': (.367, 81.3, 62.5, 880_000, ['student_base']),
    'vote': (None, None, 28.3, 410_000, ['zero'])}

def curve(rng, i, rise):
    late = lambda steps: 1 - math.exp(-i/steps)
    acc = .17 + rise*late(9) + rng.gauss(0, .04)
    lo, hi = proportion_ci(max(0, min(256, 256*acc)), 256)
    return dict(step=i, reward=acc+.085+rng.gauss(0, .01),
                accuracy=acc, accuracy_lo=lo, accuracy_hi=hi,
                mean_tokens=48+60*late(4)-.3*i+rng.gauss(0, 3),
                reflection=1.1+3*late(6)+rng.gauss(0, .2),
                truncated=.05+.25*late(5)+rng.gauss(0, .02),
                arithmetic_errors=.057*math.exp(-i/20)+rng.gauss(0, .004),
                entropy=.34-.002*i, loss=rng.gauss(0, .01),
                tokens_per_second=9000+rng.gauss(0, 300))

def curves(rng, name, steps):
    if name in ('zero', 'student_rl'):
        return [curve(rng, i, .42 if name == 'zero' else .2) for i in range(steps)]
    if name != 'student_distilled': return []
    return [dict(step=i, loss=.2+.9*math.exp(-i/40)+rng.gauss(0, .02)) for i in range(250)]

def make_run(folder, stages=ORDER, steps=36, reward='accuracy', **extra):
    "A run folder as the pipeline writes it, with invented figures."
    rng, n = random.Random(0), 512
    for name in stages:
        pass1, length, seconds, tokens, parents = FACTS[name]
        d = folder/name; (d/'checkpoint').mkdir(parents=True)
        config = dict(stage=name, preset='nano', seed=0, reward=reward)
        (d/'config.json').write_text(json.dumps(config))
        if rows := curves(rng, name, steps):
            lines = [','.join(rows[0]), *(','.join(map(str, r.values())) for r in rows)]
            (d/'metrics.csv').write_text('\n'.join(lines) + '\n')
        weak, easy = 'base' in name, 'Try 3 * 4 = 12 . Yes! </think> <answer> 3 * 4 </answer>'
        samples = [dict(prompt='Make 43 from 20 4 16 11 .', response=GUESS if weak else THOUGHT,
                        ok=not weak), dict(prompt='Make 12 from 3 4 .',
                                      response=f'<think> {easy}', ok=True)]
        made = [dict(stage=p, sha256='%064x' % rng.getrandbits(256)) for p in parents]
        card = dict(stage=name, parents=made, seed=0, version='0.1.0', commit='4f1c2d9ab0',
                    hardware=hardware(), seconds=seconds, tokens=tokens, flops=tokens*6*6e5,
                    joules=None, usd=seconds/3600*.1, usd_per_hour=.1, samples=samples)
        if pass1 is not None:
            card['eval'] = dict(pass1=pass1, ci95=proportion_ci(round(pass1*n), n), n=n,
                                mean_tokens=length, format=.9, truncated=.2)
        if name == 'vote': card |= dict(cons={'1': .581, '4': .668, '16': .751}, n=n)
        (d/'card.json').write_text(json.dumps(card | extra))
    return folder

class Page(HTMLParser):
    "Collects tags and attributes; complains about tags that do not nest."
    def __init__(self, text):
        super().__init__(); self.tags, self.attrs, self.open, self.words = set(), [], [], []
        self.feed(text); self.close(); assert not self.open, self.open
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag); self.attrs += [(tag, k, v) for k, v in attrs]
        if tag not in ('meta',): self.open.append(tag)
    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag); self.attrs += [(tag, k, v) for k, v in attrs]
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag
    def handle_data(self, data): self.words.append(data)

TAGS = set('''html head meta title style body main small h1 h2 p div span b i mark pre table
              tr th td svg desc text line circle polygon polyline rect path defs marker'''.split())

def safe(path):
    page = Page(path.read_text())
    assert page.tags <= TAGS, page.tags - TAGS
    for tag, k, v in page.attrs:
        assert not k.startswith('on') and k not in ('src', 'href', 'action'), (tag, k, v)
        assert 'http' not in (v or '') or v == 'http://www.w3.org/2000/svg', (tag, k, v)
    return ' '.join(page.words)

def test_full_report(tmp_path):
    said = safe(write_report(make_run(tmp_path/'run')))
    for s in ('17.2 % → 58.7 %', '+41.5 points, intervals apart', '[54.5, 63.0]', '75.1 % (k = 16)',
              'no meter', 'teacher_asset', 'from elsewhere', 'Ledger', '4f1c2d9a', *ORDER):
        assert s in said, s
    assert 'Not finished' not in said and 'Control' not in said

def test_report_is_a_function_of_the_folder(tmp_path):
    run = make_run(tmp_path/'run')
    held = lambda: {p: p.read_bytes() for p in run.rglob('*')
                    if p.is_file() and p.name != 'report.html'}
    before = held()
    text = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == text
    assert held() == before

@pytest.mark.parametrize('k', range(1, 8))
def test_partial_runs_say_so(tmp_path, k):
    run = make_run(tmp_path/'run', ORDER[:k])
    (run/ORDER[k-1]/'card.json').unlink()
    said = safe(write_report(run))
    assert 'Not finished' in said and f'{ORDER[k-1]} (not finished)' in said

def test_control_is_named(tmp_path):
    said = safe(write_report(make_run(tmp_path/'run', reward='random')))
    assert 'Control: 17.2 % → 58.7 % by a random reward' in said

EVIL = ['</pre></div><script>alert(1)</script>', '<img src=x onerror=alert(1)>',
        '"><svg onload=alert(1)>', '&lt;b&gt; &amp;', '\x1b[2J\x00\x07', '\u202eright to left',
        '\ud800 half', '<think>' * 500, 'x' * 100_000, '<!--', '<style>*{display:none}</style>',
        ']]>', '{{7*7}}', '']

@pytest.mark.parametrize('evil', EVIL)
def test_hostile_output_stays_text(tmp_path, evil):
    run = make_run(tmp_path/'run')
    sample = [dict(prompt=evil, response=evil, ok=False)]
    for name in ORDER:
        card = json.loads((run/name/'card.json').read_text())
        card |= dict(samples=sample, commit=evil, version=evil, hardware={evil: evil},
                     parents=[dict(stage=evil or 'x', sha256=evil)])
        (run/name/'card.json').write_text(json.dumps(card))
        (run/name/'config.json').write_text(json.dumps(dict(preset=evil, seed=evil)))
    odd = run/'<img src=x onerror=1>'
    odd.mkdir()
    card = dict(eval=dict(pass1=.5, ci95=[.4, .6], n=1), parents=[dict(stage=odd.name)])
    (odd/'card.json').write_text(json.dumps(card))
    (odd/'metrics.csv').write_text('step,reward\n0,1\n1,nan\n2,<b>\n3,1e999\n')
    path = write_report(run); safe(path)
    assert path.stat().st_size < 400_000

JUNK = [None, 'x', -1, 0, 1e300, 10**400, True, [], {}, [None], [[]], {'a': {}}, [1, 2, 3], 'nan',
        [1e300, -1e300]]
KEYS = ['parents', 'seed', 'version', 'commit', 'hardware', 'seconds', 'tokens', 'flops', 'joules',
        'usd', 'usd_per_hour', 'eval', 'cons', 'n', 'samples']

@pytest.mark.parametrize('key', KEYS)
def test_nonsense_in_cards_is_survived(tmp_path, key):
    run = make_run(tmp_path/'run', steps=3)
    cards = {n: json.loads((run/n/'card.json').read_text()) for n in ORDER}
    figures = ('pass1', 'ci95', 'n')[:1 + len(key) % 3]
    for junk in JUNK:
        for n in ORDER: (run/n/'card.json').write_text(json.dumps(cards[n] | {key: junk}))
        safe(write_report(run))
        for n in ORDER:
            e = dict(cards[n].get('eval') or {}, **dict.fromkeys(figures, junk))
            (run/n/'card.json').write_text(json.dumps(cards[n] | dict(eval=e)))
        safe(write_report(run))

def test_damaged_files(tmp_path):
    run = make_run(tmp_path/'run')
    (run/'zero'/'metrics.csv').write_bytes(b'step,reward\n0,.1\n\xff\xfe\x00,2\n1,"a\nb"\n2,.3\n3,')
    (run/'base'/'card.json').write_bytes(b'\xff\xfe{')
    (run/'traces'/'card.json').write_text('['*100_000)
    (run/'vote'/'config.json').unlink()
    assert [r.get('step') for r in read_run(run)['zero']['rows']][0] == 0
    safe(write_report(run))
    for bad in (tmp_path/'no', tmp_path, run/'base'/'card.json'):
        with pytest.raises(R1Error): write_report(bad)

def test_lineage_survives_cycles(tmp_path):
    run = make_run(tmp_path/'run')
    for n, p in zip(ORDER, ORDER[1:] + ORDER[:1]):
        card = json.loads((run/n/'card.json').read_text())
        card['parents'] = [dict(stage=p), dict(stage=n)]
        (run/n/'card.json').write_text(json.dumps(card))
    safe(write_report(run))
