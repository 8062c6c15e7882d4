"The corpus: bytes that never change, shares as configured, nothing held out."
import hashlib, re
from collections import Counter
from random import Random
import numpy as np
import pytest
from r1nb.core import R1Error
from r1nb.corpus import (STYLES, Habits, author, corpus, miscalculate, pick_weighted, problem, step,
                         tell, think, walk, write)
from r1nb.tasks import evaluate, held_out, numbers_used
from r1nb.tokens import END, VOCAB, decode

PARTS = re.compile(r'Make (\d+) from ([\d ]+) \. .*?<answer> (.*?) </answer>')
WHOLE = re.compile(r'<\|user\|> Make \d+ from [\d ]+ \. <\|assistant\|> '
                   r'<think> [^<]+ </think> <answer> [^<]+ </answer> <\|end\|>')
STEP = re.compile(r'(\d+) ([-+*/]) (\d+) = (\d+)')


def digest(ids): return hashlib.sha256(ids.tobytes()).hexdigest()

def near(k, n, p):
    "Within 4.5 standard errors of a share p."
    assert abs(k/n - p) < 4.5*(p*(1 - p)/n)**.5 + 1e-9, (k/n, p)

@pytest.fixture(scope='module')
def crowd():
    "12 000 (puzzle, author, document)."
    rng, h = Random('crowd'), Habits()
    rows = [((p := problem(rng, h.sizes)), (a := author(rng, h)), tell(rng, h, p, a))
            for _ in range(12_000)]
    return rows


@pytest.mark.parametrize('docs,seed,habits,sha', [
    (20_000, '0/0', Habits(), '1f124f212c8b353c0cf70763cd4f8b69b721c4ed6e10c03b23cc8f9d67060546'),
    (2000, 7, Habits(), 'b659c86de79edfc998543779537f1b94223f5d9c599dfeedb9a919b4051f552a'),
    (3000, 'c', Habits(guess=.45, one_try=.55, quitter=0., sizes=(3, 4, 5)),
     '69b34afbc9af571faadf9a4f31a13a7ea1012e2229b970d3f6b0617a5b04d98f')])
def test_the_text_is_frozen(docs, seed, habits, sha):
    "The shipped models were trained on it: whoever changes a byte changes their past."
    assert digest(write(docs, seed, habits)) == sha

def test_workers_and_shards():
    whole = [write(n, f'5/{i}') for i, n in enumerate((400, 400, 150))]
    for workers in (1, 3):
        assert digest(corpus(950, 5, workers=workers, shard=400)) == digest(np.concatenate(whole))
    assert (corpus(400, 5, shard=400) == whole[0]).all()

def test_no_document_is_lost_and_every_id_is_a_word():
    ids = write(3000, 1)
    assert ids.dtype == np.uint8 and ids.max() < len(VOCAB)
    assert (ids == END).sum() == 3000 and ids[-1] == END
    assert decode(ids[:2000]).count('<|user|>') >= 10

def test_nothing_held_out(crowd):
    for size in ((3,), (4,), (3, 4), (5, 6)):
        rng = Random(f'held/{size}')
        for _ in range(1500):
            p = problem(rng, size)
            assert not held_out(p.numbers, p.target)
            assert 10 <= p.target < 100 and p.target not in p.numbers and len(p.numbers) in size
            assert evaluate(p.expr) == p.target == p.steps[-1][3]
            assert sorted(numbers_used(p.expr)) == sorted(p.numbers)
    for _, _, doc in crowd:
        m = re.search(r'Make (\d+) from ([\d ]+) \.', doc)
        assert not held_out([int(n) for n in m[2].split()], int(m[1]))

def test_every_answer_uses_each_number_once(crowd):
    found = [m for *_, doc in crowd if (m := PARTS.search(doc))]
    assert len(found) > 10_000
    for m in found: assert sorted(numbers_used(m[3])) == sorted(map(int, m[2].split()))

def test_shares_are_as_configured(crowd):
    n, h = len(crowd), Habits()
    style = Counter(a.style for _, a, _ in crowd)
    for s, p in zip(STYLES, (h.guess, h.one_try, h.quitter, .2)): near(style[s], n, p)
    for rate, p in h.slips: near(sum(a.slip == rate for _, a, _ in crowd), n, p)
    for trait in ('insight', 'greedy'):
        for v in getattr(h, trait): near(sum(getattr(a, trait) == v for _, a, _ in crowd), n, 1/3)
    near(sum(not WHOLE.fullmatch(doc) for *_, doc in crowd), n, h.broken)
    near(sum(len(p.numbers) == 3 for p, *_ in crowd), n, .5)
    assert max(doc.count('Try') for *_, doc in crowd) == h.tries

def test_slips_happen_at_their_rate():
    for rate in (0., .05, .2):
        rng, wrong, n = Random(f'slip/{rate}'), 0, 0
        for _ in range(3000):
            for a, b, s, v in walk(rng, [1 + int(rng.random()*20) for _ in range(4)], slip=rate)[0]:
                wrong, n = wrong + (evaluate(f'{a} {s} {b}') != v), n + 1
        near(wrong, n, rate)

def test_a_careful_author_never_slips_and_a_check_is_honest(crowd):
    for _, a, doc in crowd:
        for part in re.split(r'(?=Try|Check:)', doc):
            if a.slip and part.startswith('Try'): continue
            for x, s, y, v in STEP.findall(part): assert evaluate(x + s + y) == int(v), doc

def test_how_often_it_is_right(crowd):
    "Changing this changes what the base can do."
    right = sum(bool(WHOLE.fullmatch(doc)) and evaluate(PARTS.search(doc)[3]) == p.target
                for p, _, doc in crowd)
    near(right, len(crowd), .292)

def test_miscalculated_is_wrong_and_in_range():
    rng = Random(0)
    for v in list(range(1, 200))*20: assert 0 < (w := miscalculate(rng, v)) < 200 and w != v

def test_steps_are_legal_and_aimed():
    rng = Random(1)
    for _ in range(4000):
        x, y, aim = (1 + int(rng.random()*199) for _ in range(3))
        if x + y >= 200 and x == y: continue
        a, b, sign, v = step(rng, x, y)
        assert {a, b} == {x, y} and 0 < v < 200 and evaluate(f'{a} {sign} {b}') == v
        best = step(rng, x, y, aim)
        assert abs(best[3] - aim) <= abs(v - aim)

def test_a_crowd_without_search_never_looks_back():
    rng, h = Random(2), Habits(guess=.45, one_try=.55, quitter=0.)
    for _ in range(2000):
        doc = think(rng, h)
        assert doc.count('Try') < 2 and 'No,' not in doc and 'Check:' not in doc

def test_share_ends():
    rng = Random(3)
    for share, style in ((1., 'guess'), (0., 'diligent')):
        h = Habits(guess=share, one_try=0., quitter=0.)
        assert {author(rng, h).style for _ in range(200)} == {style}
    assert {pick_weighted(rng, (('a', .2), ('b', .2))) for _ in range(200)} == {'a', 'b'}

@pytest.mark.parametrize('kw,says', [
    (dict(guess=.9), 'guess + one_try + quitter is 1.45: at most 1'), (dict(tries=0), 'tries=0')])
def test_bad_habits(kw, says):
    with pytest.raises(R1Error, match=re.escape(says)): Habits(**kw)
