"""Curation under attack: hostile rows, files of every kind, the command, what is deterministic."""

import json, os, random, string, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from plant import BREAKS, FOREIGN, broken, disguised, looping, mixed, reworded
from safety_cases import cases
from r1nb.core import R1Error
from r1nb.curate import curate, draw
from r1nb.dedup import (
    BANDS,
    ROWS,
    Exam,
    banded,
    buckets,
    codes,
    fingerprint,
    grams,
    leaked,
    repeats,
    row_signature,
    signature,
    twins,
    words,
)
from r1nb.filters import expected, form, language, length, prose, repetition
from r1nb.rows import COLUMNS, FILTERS, Rules, Sink, as_row, examine, rows_in, storable
from r1nb.safety import fold, hits, review, safety

DATA = Path(os.environ.get('R1NB_DATA', Path(__file__).parents[2] / 'shared/data'))
STORIES = [
    'A farmer has {a} cows and buys {b} more at the market. Each cow gives {c} litres of '
    'milk in a day, so we '
    'multiply the number of cows by {c} and find how much milk there is. Then we add what '
    'was left from yesterday.',
    'The train leaves at {a} and travels for {b} hours with a speed of {c} km per hour. To '
    'get the distance we '
    'multiply time and speed. After that the driver takes a break, which we do not count, '
    'and then goes home.',
    'We want the area of a garden that is {a} metres long and {b} metres wide. The area is '
    'the product. A path of '
    '{c} metres goes around it, so the outer sides grow by twice the width of the path on '
    'both sides of it.',
    'Mia reads {a} pages on Monday and {b} pages on Tuesday. The book has {c} chapters of '
    'the same size. We first '
    'add the pages she has read, and then see which share of the whole book that is, and '
    'what remains to be read.',
]


def story(i):
    rng = random.Random(i)
    extra = ' '.join(
        rng.choices(
            'slowly red green old new quiet loud broad narrow early late bright dark warm '
            'cold river hill cloud stone '
            'bread milk chair window garden paper train station sister uncle music winter '
            'summer letter market bridge it the is was of in and to '
            'for with that they but all not she he one we when then so you are'.split(),
            k=90,
        )
    )
    return STORIES[i % 4].format(a=i + 2, b=3 * i + 1, c=i % 7 + 2) + f' The day was {extra}.'


def rows(n, start=0, **more):
    return [
        dict(
            problem=f'p{i}',
            prompt=f'Question {i}: what comes out in story {i}?',
            teacher='t',
            licence='MIT',
            response=f'<think>{story(i)}</think> The answer is {i}.',
            token_ids=None,
            finished=True,
            verdict=dict(answer=1.0, format=1.0, reason='right'),
            filters={'right': True},
            kept=True,
        )
        | more
        for i in range(start, start + n)
    ]


def put(path, rs):
    Path(path).write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in rs))
    return Path(path)


def kept(out):
    return list(rows_in(next(Path(out).glob('train.*'))))


def gone(out):
    return list(rows_in(next(Path(out).glob('rejected.*'))))


# ---- filters
@pytest.mark.parametrize('lang', FOREIGN)
def test_a_foreign_sentence_is_found(lang):
    for s in FOREIGN[lang]:
        assert language(story(1) + ' ' + s + ' ' + story(2), 'en')
        assert not language(story(1), '', 'What is it?')


def test_quoting_the_prompt_is_no_mixing():
    p = 'Translate "Wir haben heute nicht sehr viel Zeit" into English, and the word 苹果.'
    assert not language(
        'The German sentence "Wir haben heute nicht sehr viel Zeit" says that we have '
        'little time; 苹果 is an apple.',
        '',
        p,
    )


def test_names_symbols_and_code_are_no_language():
    for s in (
        'By Erdős and Szekeres, and by de la Vallée Poussin, αβ ≤ γ, so ∠ABC = 30°.',
        '```python\nфу = 1  # Комментарий\n``` is the code.',
        'We have $\\text{area} = x$ and \\[ \\sum_i α_i \\].',
        'Juan de la Cruz and Maria del Carmen went to Los Angeles.',
    ):
        assert not language(s + ' ' + story(3), 'en'), s


def test_other_targets():
    zh = '首先我们计算总数。设 x 为苹果的个数,则 $x + 3 = 7$,所以 x = 4。函数 sin 和 cos 在这里没有用。'
    assert not language(zh, 'zh') and language(
        zh + ' So we get the number of apples and then we are done.', 'zh'
    )
    assert language(zh, 'en') and expected('请计算 3 + 4 等于多少') == 'zh'
    es = ' '.join(FOREIGN['es'])
    assert (
        not language(es, 'es')
        and expected(es) == 'es'
        and language(es + ' Now we add the two numbers and then we find the answer.', 'es')
    )
    ru = ' '.join(FOREIGN['ru'])
    assert not language(ru, 'ru') and language(
        ru + ' And now we have to find the sum of these numbers.', 'ru'
    )


@pytest.mark.parametrize('how', ['word', 'phrase', 'sentence', 'lines', 'whole', 'sign'])
def test_circles(how):
    rng = random.Random(how)
    found = [bool(repetition(looping(rng, story(i) + ' ' + story(i + 1), how))) for i in range(40)]
    assert sum(found) >= 38 and not any(repetition(story(i)) for i in range(40))


@pytest.mark.parametrize('how', BREAKS)
def test_form(how):
    rng = random.Random(how)
    assert all(form(broken(rng, story(i), 'It is 7.', how), 'think') for i in range(20))
    assert not form('<think>a b c</think>\n\nIt is 7.', 'think') and not form(
        '<think> a </think> <answer> 7 </answer>', 'answer'
    )


def test_form_styles():
    assert (
        form('plain words', 'think')
        and not form('plain words')
        and not form('plain words', 'plain')
    )
    assert form('<think>a</think> b', 'plain') and form('<think>a</think> b', 'answer')
    with pytest.raises(R1Error, match='style'):
        form('x', 'xml')


# ---- duplicates
def test_signature_measures_overlap():
    rng, gaps = np.random.default_rng(0), []
    for k in range(40):
        pool = rng.integers(0, 2**63, 3000, np.uint64)
        n = int(rng.integers(50, 900))
        a, b = pool[:1000], pool[1000 - n : 2000 - n]
        J = n / (2000 - n)
        gaps.append(((signature(a) == signature(b)).mean() - J) / np.sqrt(J * (1 - J) / 256))
    assert (
        abs(np.mean(gaps)) < 0.5 and 0.7 < np.std(gaps) < 1.4
    )  # 256 independent orders would give 0 and 1


def test_bands_follow_the_curve():
    rng, n = np.random.default_rng(1), 400
    for J in (0.3, 0.45, 0.6):
        a = rng.integers(0, 2**16, (n, 256), np.uint16)
        b = np.where(rng.random((n, 256)) < J, a, rng.integers(0, 2**16, (n, 256), np.uint16))
        met = set()
        for band in range(BANDS):
            for g in buckets(np.concatenate([a, b]), band):
                met |= {int(i) for i in g if i < n and i + n in g}
        assert abs(len(met) / n - banded(J)) < 4 * np.sqrt(0.25 / n)


def test_a_chain_does_not_swallow_its_family():
    base, out = story(0).split() + story(1).split(), []
    for i in range(12):
        out.append(' '.join(base))
        for k in range(9):
            base[(i * 9 + k) % len(base)] = f'other{i}{k}'
    of = twins(np.stack([row_signature('', s)[0] for s in out]), np.zeros(len(out), bool))
    stay = np.flatnonzero(of < 0)
    assert (
        stay[0] == 0
        and 2 <= len(stay) < 12
        and all(of[of[i]] < 0 for i in np.flatnonzero(of >= 0))
    )


@pytest.mark.parametrize('how', ['same', 'case', 'spaces', 'unseen', 'wide'])
def test_disguised_copies_are_exact(how):
    rng = random.Random(how)
    for i in range(20):
        assert fingerprint('q', story(i)) == fingerprint('q', disguised(rng, story(i), how))
    assert fingerprint('q', '19 + 5') != fingerprint('q', '19 - 5') and fingerprint(
        'a', 'b'
    ) != fingerprint('ab', '')


def test_exam():
    items = [story(i) + ' How many are there in all?' for i in range(40)] + ['2 + 2 = ?', '']
    exam, rng = Exam(items), random.Random(0)
    assert all(leaked(exam, reworded(rng, items[i], 0.05)) for i in range(40))
    assert leaked(exam, '2 + 2 = ?')[1] == 40 and leaked(exam, items[3].upper())[1] in range(40)
    assert (
        leaked(
            exam,
            'Something else that nobody in this list has ever asked, with many words of its own.',
        )
        is None
    )
    assert leaked(Exam([]), story(1)) is None and leaked(exam, '') is None


ITEMS = [
    'In the diagram, square $ABCD$ has sides of length 4, and triangle $ABE$ is equilateral. Line '
    'segments $BE$ and $AC$ intersect at $P$. Find the area of triangle $APE$.',
    'How many ways are there to put 6 marbles into 3 jars if neither marbles nor jars differ?',
    'What is $\\sqrt{53}$ in simplest radical form?',
]


@pytest.mark.parametrize('i, text', [
    (0, 'In the diagram, square $ABCD$ has sides of length 9, and triangle $ABE$ is equilateral. '
        'Line segments $BE$ and $AC$ intersect at $P$. Find the area of triangle $APE$.'),
    (0, 'IN THE DIAGRAM, square $PQRS$... no: square $ABCD$ has a side of 4, and triangle $ABE$ is '
        'an equilateral one. Line segments $BE$, $AC$ meet at $P$. Compute the area of $APE$.'),
    (0, 'In the diagram, square $ABCD$ has sides of length 4, and triangle $ABE$ is equilateral.'),
    (0, 'Find the area of triangle $APE$. Line segments $BE$ and $AC$ intersect at $P$. In the '
        'diagram, square $ABCD$ has sides of length 4, and triangle $ABE$ is equilateral.'),
    (1, 'In how many ways can one put 6 marbles into 3 jars if neither marbles nor jars differ?'),
    (2, 'What is\u00a0$ \\sqrt {53} $ in simplest radical form ?'),
])
def test_leaks_of_other_kinds(i, text):
    assert (leaked(Exam(ITEMS), text) or (0, -1))[1] == i


@pytest.mark.parametrize('text', [
    'A hexagon has sides of length 4. How long is its longest diagonal in simplest radical form?',
    'What is $\\sqrt{99}$ in simplest radical form?',
    'Line segments may intersect. Find the area of a triangle whose sides are 3, 4 and 5.',
    'There are 6 jars on a shelf and 3 of them are full of jam. How many jars are empty?',
])
def test_no_leaks(text): assert leaked(Exam(ITEMS), text) is None


# ---- hostile rows
HOSTILE = [
    None,
    1,
    True,
    'text',
    [],
    {},
    {'prompt': 1, 'response': []},
    {'response': 'x'},
    {'prompt': 'x'},
    {'prompt': 'x', 'response': '\ud800 lone'},
    {'prompt': 'x\0', 'response': 'nul'},
    {'prompt': '', 'response': ''},
    {'prompt': 'x', 'response': 'a' * 3_000_000},
    {'prompt': 'x', 'response': '\\begin{a}' * 30_000},
    {'prompt': 'x', 'response': '$' + 'b' * 150_000},
    {'prompt': 'x', 'response': '\\[' * 80_000},
    {'prompt': 'x', 'response': '<' + ' ' * 150_000},
    {'prompt': 'x', 'response': '\u202e\u0301' * 5000},
    {'prompt': 'x', 'response': 'ﷺ' * 20_000},
    {'prompt': 'x', 'response': '. ' * 90_000},
    {
        'prompt': 'x',
        'response': 'y',
        'verdict': 'right',
        'filters': 3,
        'tokens': 'many',
        'token_ids': [-1],
        'finished': None,
    },
    {
        'prompt': 'x',
        'response': 'y z w',
        'tokens': 10**30,
        'usd': float('nan'),
        'token_ids': [2**70],
        'seconds': True,
        'teacher': ['a'],
    },
    {
        'prompt': 'x',
        'response': 'y z w',
        'verdict': {'answer': 'yes', 'format': None, 'reason': 4},
        'filters': {'a': False, 'right': None},
    },
    {'prompt': 'x', 'response': 'a.' * 100_000},
    {'prompt': 'x', 'response': '[asy]' * 40_000},
    {'prompt': 'x', 'response': '@.a' * 60_000},
    {'prompt': 'x', 'response': '`' * 100_001},
    {'prompt': 'x', 'response': ' '.join(map(str, range(30_000)))},
]


@pytest.mark.parametrize('i', range(len(HOSTILE)))
def test_hostile_rows_get_a_reason_and_no_crash(i):
    exam, start = Exam([story(3)]), time.process_time()
    row, why = examine(HOSTILE[i], 'reasoning', Rules(safety=safety), exam)
    assert set(why) <= set(FILTERS) and all(isinstance(v, str) for v in why.values())
    json.dumps(storable(row))
    assert time.process_time() - start < 8
    if i < 12:
        assert any(why.values())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(), max_size=40),
        lambda x: (
            st.lists(x, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    'prompt response verdict filters tokens token_ids problem teacher finished '
                    'answer usd right'.split()
                ),
                x,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_json_is_judged(raw):
    row, why = examine(raw, 'general')
    assert set(row) | {'at', 'filters', 'reasons', 'kept'} == set(COLUMNS) and all(
        isinstance(v, str) for v in why.values()
    )
    json.dumps(storable(row)).encode()


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_filtered(s):
    for f in (language, repetition, length, form, prose, fold, words, safety):
        f(s, s) if f is safety else f(s)
    row_signature(s, s)
    fingerprint(s)


# ---- the whole of it
def test_everything_is_accounted_for(tmp_path):
    good, rng = rows(60), random.Random(0)
    junk = [
        r | dict(verdict=dict(answer=0.0, format=1.0, reason='7 is not 8')) for r in rows(5, 100)
    ]
    junk += [r | dict(response=mixed(rng, r['response'], 'several')) for r in rows(5, 110)]
    junk += [r | dict(response=r['response'].replace('</think>', '')) for r in rows(5, 120)]
    junk += (
        [r | dict(finished=False) for r in rows(5, 130)]
        + good[:4]
        + [r | dict(filters={'style': False}) for r in rows(3, 140)]
    )
    bad = ['{"torn', '[1, 2]', '', json.dumps({'response': '\ud800'}), '\x00\x01']
    path = put(tmp_path / 'a.jsonl', good + junk + bad)
    exam = put(tmp_path / 'e.jsonl', [dict(problem=story(7))])
    card = curate([path], tmp_path / 'out', against=[exam])
    train, rest = kept(tmp_path / 'out'), gone(tmp_path / 'out')
    assert len(train) + len(rest) == card['rows'] == len(good) + len(junk) + len(bad) - 1
    assert all(r['kept'] and not r['reasons'] for r in train) and all(
        r['reasons'] and not r['kept'] for r in rest
    )
    assert {r['at'] for r in train + rest} == {f'a.jsonl:{i + 1}' for i in range(card['rows'])}
    assert (
        len(train) == 59
        and card['filters']['exact']['rejected'] == 4
        and card['filters']['exam']['rejected'] == 1
    )
    assert card['filters']['before']['rejected'] == 3 and any(
        'same as a.jsonl:1' in w for r in rest for w in r['reasons']
    )
    assert all(list(r) == COLUMNS for r in train + rest)
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert '| right |' in text and 'a.jsonl' in text and '| MIT | 59 |' in text


def test_twice_is_once_and_another_setting_is_refused(tmp_path):
    path = put(tmp_path / 'a.jsonl', rows(20))
    a = curate([path], tmp_path / 'out')
    stamp = (tmp_path / 'out/card.json').stat().st_mtime_ns
    assert (
        curate([path], tmp_path / 'out') == a
        and (tmp_path / 'out/card.json').stat().st_mtime_ns == stamp
    )
    with pytest.raises(R1Error, match='least'):
        curate([path], tmp_path / 'out', rules=Rules(least=9))
    put(path, rows(21))
    with pytest.raises(R1Error, match='sha256'):
        curate([path], tmp_path / 'out')
    b = curate([path], tmp_path / 'b')
    c = curate([path], tmp_path / 'c')
    assert b['files'] == c['files']


def test_a_broken_off_run_begins_again(tmp_path):
    path, ticks = put(tmp_path / 'a.jsonl', rows(20)), []

    def stop():
        ticks.append(1)
        if len(ticks) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate([path], tmp_path / 'out', tick=stop)
    assert not (tmp_path / 'out/card.json').exists() and not list(
        (tmp_path / 'out').glob('train.parquet')
    )
    assert curate([path], tmp_path / 'out')['kept'] == 20


def test_the_mix(tmp_path):
    a, b = put(tmp_path / 'a.jsonl', rows(60)), put(tmp_path / 'b.jsonl', rows(10, 200))
    card = curate([a], tmp_path / 'o', general=[b], ratio=(3, 1))
    assert (card['reasoning'], card['general'], card['written']) == (30, 10, 40)
    assert len({r['prompt'] for r in kept(tmp_path / 'o')}) == 40
    back = put(tmp_path / 'c.jsonl', rows(60)[::-1])
    curate([back], tmp_path / 'p', general=[b], ratio=(3, 1))
    assert {r['prompt'] for r in kept(tmp_path / 'o')} == {
        r['prompt'] for r in kept(tmp_path / 'p')
    }
    curate([a], tmp_path / 'q', general=[b], ratio=(3, 1), seed=1)
    assert {r['prompt'] for r in kept(tmp_path / 'o')} != {
        r['prompt'] for r in kept(tmp_path / 'q')
    }
    card = curate([a], tmp_path / 'r', general=[b], ratio=(3, 1), repeat=True)
    assert card['written'] == 80 and len({r['prompt'] for r in kept(tmp_path / 'r')}) == 70


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_draw(n, m, ratio, repeat):
    general = np.arange(n + m) >= n
    c = draw(general, np.arange(n + m, dtype=np.uint64) * np.uint64(7919), ratio, repeat)
    a, b = int(c[:n].sum()), int(c[n:].sum())
    if not n or not m:
        assert (c == 1).all()
        return
    assert abs(a * ratio[1] - b * ratio[0]) <= max(ratio) * 2
    assert (
        (c.max() <= 1 and (a == n or b == m or min(n // ratio[0], m // ratio[1]) < 400))
        if not repeat
        else c.min() >= 1
    )


@pytest.mark.parametrize('parquet', [True, False])
def test_datasets_reads_it(tmp_path, parquet, monkeypatch):
    datasets = pytest.importorskip('datasets')
    if not parquet:
        monkeypatch.setattr('r1nb.rows.find_spec', lambda name: None)
    a = put(
        tmp_path / 'a.jsonl',
        rows(8) + rows(3, 50, verdict=dict(answer=0.0, format=1.0, reason='no')) + ['x'],
    )
    curate([a], tmp_path / 'out')
    assert (tmp_path / 'out' / ('train.parquet' if parquet else 'train.jsonl')).exists()
    d = datasets.load_dataset(str(tmp_path / 'out'), cache_dir=str(tmp_path / 'cache'))
    assert (
        d['train'].num_rows == 8
        and d['rejected'].num_rows == 4
        and set(d['train'].column_names) == set(COLUMNS)
    )
    assert d['train'].features == d['rejected'].features or not parquet


def test_parquet_in_and_out_again(tmp_path):
    pytest.importorskip('pyarrow')
    curate([put(tmp_path / 'a.jsonl', rows(12))], tmp_path / 'out')
    card = curate([tmp_path / 'out/train.parquet'], tmp_path / 'again')
    assert card['kept'] == 12 and card['filters']['before']['rejected'] == 0
    (tmp_path / 'x.parquet').write_bytes(b'PAR1 nonsense')
    with pytest.raises(R1Error, match='damaged'):
        curate([tmp_path / 'x.parquet'], tmp_path / 'no')


def command(*args):
    return subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys\nfrom r1nb import cli, curate\n'
            'names = [c.name for c in cli.app.registered_commands]\n'
            'if "curate" not in names: curate.join(cli.app)\nsys.exit(cli.main())',
            *map(str, args),
        ],
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path):
    a = put(tmp_path / 'a.jsonl', rows(20))
    b = put(tmp_path / 'b.jsonl', rows(5, 90))
    r = command(
        'curate', a, '--general', b, '--mix', '600k:200k', '--out', tmp_path / 'o', '--safety'
    )
    assert r.returncode == 0 and '25 rows' in r.stdout and (tmp_path / 'o/README.md').exists(), (
        r.stderr
    )
    for args, words in (
        (('nosuch.jsonl',), 'nosuch.jsonl'),
        ((a, '--mix', '3'), "mix '3'"),
        ((a, '--language', 'xx'), "'xx'"),
        ((a, '--form', 'xml'), "'xml'"),
        ((a, '--against', tmp_path / 'none'), 'none'),
    ):
        r = command('curate', *args, '--out', tmp_path / 'new')
        assert (
            r.returncode == 2 and words in r.stderr and len(r.stderr.strip().splitlines()) == 1
        ), (args, r.stderr)
    assert 'Examples' in command('curate', '--help').stdout


def test_constant_memory(tmp_path):
    path = tmp_path / 'big.jsonl'
    with open(path, 'w') as f:
        for i in range(1500):
            f.write(
                json.dumps(
                    dict(
                        prompt=f'{i}',
                        response=f'{story(i)} {i * 7919} '
                        + ' '.join(random.Random(i).choices(string.ascii_lowercase, k=9)),
                        pad='x' * 20_000,
                    )
                )
                + '\n'
            )
    code = (
        'import resource, sys\nfrom r1nb.curate import curate\nimport pyarrow.parquet\n'
        'a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'c = curate([sys.argv[1]], sys.argv[2])\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a, c["index"])'
    )
    r = subprocess.run(
        [sys.executable, '-c', code, str(path), str(tmp_path / 'out')],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0 and int(r.stdout.split()[0]) < 180_000, (
        r.stdout + r.stderr
    )  # KiB, of a file of 30 MB
    assert "'disk_bytes_per_row': 512.0" in r.stdout and "'memory_bytes_per_row': 18.0" in r.stdout


# ---- safety
def test_disguises_fold_back():
    for s in (
        'p1ck a l0ck',
        'p i c k a lock',
        'p.i.c.k a l-o-c-k',
        'рiсk a loсk',
        'pi\u200bck a LOCK',
        'ｐｉｃｋ a lock',
        'piiick a lock',
        'píck a lóck',
    ):
        assert hits(fold(s)), (s, fold(s))
    assert '101' in fold('In 101 ways') and fold('3 apples') == '3 apples'


def test_held_out_requests():
    bad, good = cases(7, 200)
    assert sum(bool(review(s)[0]) for s in bad) >= 190 and sum(
        bool(review(s)[0]) for s in good
    ) <= 0.05 * len(good)


def test_any_reviewer():
    calls = []

    class Model:
        def ask(self, prompts, n, seed, max_new, temperature, top_p, system):
            calls.append(prompts)
            from types import SimpleNamespace as N

            return [
                [N(text='<think>no, yes?</think> Yes.' if 'neighbour' in p else 'No')]
                for p in prompts
            ]

    assert (
        review("pick the lock of my neighbour's house", Model())[0]
        and not review('pick a lock screen', Model())[0]
    )
    assert review('a nice day', Model()) == ('', False) and len(calls) == 2
    with pytest.raises(R1Error, match='probability'):
        review('kill it', lambda s: 7)


# ---- real rows, where they are
@pytest.mark.skipif(not DATA.exists(), reason='the folder of test data is absent')
def test_real_rows_are_not_rejected():
    for file, most in (('gsm8k/train.jsonl', 4), ('math/train.jsonl', 10)):
        said = [json.loads(l) for l in open(DATA / file)][::5]
        for f in (language, repetition):
            assert sum(bool(f(r['solution'])) for r in said) <= most

# ---- the command's edges ---------------------------------------------------------------------
def test_a_mistake_leaves_the_folder_free(tmp_path):
    "A wrong form, an empty exam or a mix of one kind is refused before the folder has a config."
    f, empty = tmp_path/'a.jsonl', tmp_path/'empty.jsonl'
    f.write_text(''.join(json.dumps(dict(prompt=f'What is {i}?', response=f'It is {i}, I think.'))
                         + '\n' for i in range(9)))
    empty.write_text('')
    with pytest.raises(R1Error, match="form 'blah'"): Rules(form='blah')
    with pytest.raises(R1Error, match='both kinds'): curate([f], tmp_path/'o', ratio=(3, 1))
    with pytest.raises(R1Error, match='no problems'): curate([f], tmp_path/'o', against=[empty])
    os.mkfifo(tmp_path/'pipe')
    with pytest.raises(R1Error, match='is no file'): curate([tmp_path/'pipe'], tmp_path/'o')
    with pytest.raises(R1Error, match='none that r1nb generate'): curate([tmp_path], tmp_path/'o')
    assert not (tmp_path/'o'/'card.json').exists()
    assert curate([f], tmp_path/'p')['kept'] == 9

def test_a_killed_run_leaves_nothing_behind(tmp_path):
    "kill -9 in the middle; the second run ends with the same bytes and no work folder."
    f = tmp_path/'a.jsonl'
    f.write_text(''.join(json.dumps(dict(prompt=f'What is {i} and {i*i}?',
        response=f'We know that it is {i} because {i*7} is {i*i*3} here.')) + '\n'
                         for i in range(3000)))
    text = f'from r1nb.curate import curate; print("on", flush=True); curate([{str(f)!r}], ' \
           f'{str(tmp_path/"o")!r})'
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent))
    p = subprocess.Popen([sys.executable, '-c', text], stdout=subprocess.PIPE, env=env)
    p.stdout.readline()
    for _ in range(400):
        if list((tmp_path/'o').glob('.work-*')): break
        time.sleep(.01)
    with pytest.raises(R1Error, match='in use'): curate([f], tmp_path/'o')
    p.kill(), p.wait()
    a, b = curate([f], tmp_path/'o'), curate([f], tmp_path/'fresh')
    assert a['files'] == b['files'] and not list((tmp_path/'o').glob('.work-*'))

@pytest.mark.parametrize('keep', ['all', 'none'])
def test_a_side_without_rows_loads(tmp_path, keep):
    "Nothing rejected, or nothing kept: `datasets` opens what there is."
    load = pytest.importorskip('datasets').load_dataset
    f = tmp_path/'a.jsonl'
    f.write_text(''.join(json.dumps(dict(prompt=f'What is {i}?', response=f'It is {i}, I think.'
                                         if keep == 'all' else '')) + '\n' for i in range(9)))
    card = curate([f], tmp_path/'o')
    assert card['kept'] == (9 if keep == 'all' else 0)
    found = load(str(tmp_path/'o'), cache_dir=str(tmp_path/'cache'))
    split = 'train' if keep == 'all' else 'rejected'   # a split without rows is not named
    assert {k: v.num_rows for k, v in found.items()} == {split: 9}
    assert found[split].features["filters"] and len(list((tmp_path/"o").glob("*.parquet"))) == 2

@pytest.mark.parametrize('signs', ['. . . ', '? ! ', '…\n', ', ', '。 ', '\n', '( ) ; '])
def test_signs_without_end_are_a_loop(signs):
    "A model that has lost its words writes signs; a dashed line and a table are none of that."
    text = 'We add the two numbers and get seven, so the answer is seven.'
    assert repetition(f'{text} {signs*700} {text}')
    assert repetition(text + signs*(700 if signs.isspace() else 45))
    assert not repetition(f'{text}\n{"-"*90}\n{"| --- "*9}|\n1 . . . . 3\nNow you know.')
