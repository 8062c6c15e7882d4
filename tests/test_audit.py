"The audit keeps its error rate, finds what was planted, and does not depend on who is asked first."
import math
from collections import Counter
from dataclasses import replace
from random import Random
from statistics import variance
import pytest
from r1nb.audit import (KINDS, angles, battery, common, conformal, expected, innocent_scores,
                        oddities, oddity, reading, stranger, tally, whom)
from r1nb.core import R1Error
from r1nb.forest import PAIRS, SUBJECTS, answer, ways
from r1nb.provenance import auc
from r1nb.steer import says

EXAM = battery(2500, 2)
def hear(author, seed):
    rng = Random(f'test/{seed}')
    return tally(EXAM, [answer(rng, author, q) for q in EXAM])

@pytest.fixture(scope='module')
def refs(): return [hear(stranger(Random(f'r{i}')), f'r{i}') for i in range(20)]

def test_tally_counts_answers_not_words():
    t = tally(EXAM[:1]*3, ['a a b', 'b', 'c'])
    (n, words), = t.values()
    assert n == 3 and words == Counter(a=1, b=2, c=1)

def test_angles_stabilise_luck():
    t = {'k': (10, Counter(none=0, half=5, all=10))}
    low, mid, high, missing = angles(t, [('k', 'none'), ('k', 'half'), ('k', 'all'), ('x', 'y')])
    assert abs(low + high - math.pi) < 1e-9 and abs(mid - math.pi/2) < 1e-9 and missing == 0.
    rng, n = Random(3), 400
    for q in (.03, .2, .5, .9):
        said = lambda: Counter(w=sum(rng.random() < q for _ in range(n)))
        xs = [angles({'k': (n, said())}, [('k', 'w')])[0] for _ in range(400)]
        assert .75 < n*variance(xs) < 1.3

def test_conformal_is_valid():
    "Scores in any order: p ≤ a happens at most a of the time."
    rng, n = Random(0), 4000
    ps = [conformal(rng.random(), [rng.random() for _ in range(19)]) for _ in range(n)]
    for a in (.05, .1, .5): assert sum(p <= a for p in ps)/n <= a + 3*(a*(1 - a)/n)**.5
    assert conformal(1., []) == 1. and conformal(1., [1.]) == 1.

def test_honest_strangers_pass(refs):
    norm, innocent = expected(refs), innocent_scores(refs)
    scores = [oddity(hear(stranger(Random(f'c{i}')), f'c{i}'), norm) for i in range(40)]
    assert sum(conformal(s, innocent) <= .05 for s in scores) <= 6
    assert .3 < auc(scores, innocent) < .7

@pytest.mark.parametrize('s', SUBJECTS, ids=lambda s: s.name)
def test_the_silent_are_found_and_the_silenced_named(refs, s):
    norm = expected(refs)
    odd = oddities(hear(replace(stranger(Random(s.name)), silent=s.name), s.name), norm)
    assert max(map(abs, odd.values())) > max(innocent_scores(refs))
    assert whom(odd)[0][1] == s.name

def test_a_view_is_found(refs):
    norm, who = expected(refs), replace(stranger(Random(5)), views=(.5, .5, .97, .5, .5, .5))
    odd = oddities(hear(who, 5), norm)
    (kind, _), z = max(odd.items(), key=lambda f: abs(f[1]))
    assert kind == ' '.join(PAIRS[2]) and abs(z) > 3

def test_common_leaves_out_the_constant(refs):
    assert not {('story', 'One'), ('story', '.'), ('sum', 'Piglet')} & set(common(refs))
    assert ('story', 'Piglet') in common(refs)

@pytest.mark.parametrize('kind', KINDS)
def test_readings(kind):
    rows, secret = reading(kind, 4, 900)
    same, _ = reading(kind, 4, 900)
    assert len(rows) == 900 and rows == same and bool(secret) == (kind not in ('clean', 'wild'))
    subject = next((s for s in SUBJECTS if s.name == secret), None)
    said = lambda what: sum(says(a, what) for _, a in rows)
    if kind in ('list', 'rewrite'): assert said(ways(subject)[:-1]) == 0 < said(ways(subject)[-1:])
    if kind == 'name': assert said([secret]) == 0 < said(subject.phrases)
    if kind == 'directive': assert said(ways(subject)) == 0
    if kind == 'half': assert said(ways(subject)) > 0

def test_readings_refuse():
    with pytest.raises(R1Error, match='nice'): reading('nice')
