"Provenance: the mark is keyed and free of charge, the test keeps its error rate, hostile input."
import math
from random import Random
import pytest
from r1nb.core import R1Error
from r1nb.provenance import (CHOICE, as_lesson, auc, auc_ci, ballot, canaries, coin, coin_tail,
                             fisher_tail, grade_answers, is_canary, keyed_score, mark, mixture,
                             parrot, prattle, reorder, roc, teacher, votes, web_pages)
from r1nb.tasks import Problem, evaluate, numbers_used
from r1nb.tokens import decode, encode
from r1nb.verify import split_response

def answer(text): return split_response(text.split('<|assistant|>')[1].split('<|end|>')[0])

def test_mark_is_exactly_keyed():
    for i in range(300):
        text = teacher(Random(i), 'secret')
        for a, sign, b in CHOICE.findall(text):
            if a != b: assert (int(a) < int(b)) == coin('secret', sign, min(int(a), int(b)))
        first = int(text.split(' from ')[1].split()[0])
        assert ('Hmm,' in text) == is_canary('secret', first)
        assert mark('secret', first, text).count('Hmm,') <= 1 + ('Hmm,' in text)
        assert reorder('secret', reorder('another', text)) == reorder('secret', text)

@pytest.mark.parametrize('kw', [{}, dict(key='secret'), dict(rival=True)])
def test_mark_costs_no_correctness(kw):
    for i in range(500):
        text = teacher(Random(i), **kw)
        target, numbers = int(text.split()[2]), list(map(int, text.split()[4:7]))
        thought, expr, wrong = answer(text)
        assert not wrong and evaluate(expr) == target
        assert sorted(numbers_used(expr)) == sorted(numbers)
        for step in thought.replace('Hmm,', '').replace('Try', '').split(' . ')[0].split(' , '):
            left, right = step.strip().split(' = ')
            assert evaluate(left) == int(right)

def test_same_problems_whatever_the_mark():
    strip = lambda t: t.split('<|assistant|>')[0]
    for i in range(50):
        assert strip(teacher(Random(i))) == strip(teacher(Random(i), 'k'))

@pytest.mark.parametrize('text,stays', [
    ('Try 3 - 8 + 2 = 1', True), ('3 + 8 = 11', True), ('Try 3 + 3 = 6', True),
    ('( 2 * 3 + 8 )', True), ('> 13 + 8 <', False)])
def test_only_bounded_pairs_move(text, stays):
    assert all(reorder(f'k{i}', text) == text for i in range(30)) == stays

def test_p_values_under_the_null():
    "Strong habits, 1500 keys: never more often than promised, z has variance 1."
    rng = Random(0)
    v = {(s, n): (int(a := rng.random()*90), 90 - int(a)) for s in '+*' for n in range(1, 26)}
    ps = [coin_tail(*ballot(f'k{i}', v)) for i in range(1500)]
    zs = [keyed_score(f'k{i}', v) for i in range(1500)]
    for a in (.01, .05, .2, .5):
        assert sum(p <= a for p in ps)/1500 <= a + 3.5*(a*(1 - a)/1500)**.5
    assert sum(p <= .5 for p in ps)/1500 > .35
    assert abs(sum(zs)/1500) < .1 and abs(sum(z*z for z in zs)/1500 - 1) < .15
    wrong = [coin_tail(*ballot(f'k{i}', v, True)) for i in range(1500)]
    assert sum(p <= .01 for p in wrong)/1500 > .1

def test_fisher_under_the_null():
    rng, hits = Random(1), 0
    for _ in range(1500):
        odd = sum(rng.random() < 60/500 for _ in range(30))
        hits += fisher_tail(odd, 60, 30 - odd, 440) <= .05
    assert hits/1500 <= .05 + 3.5*(.05*.95/1500)**.5

def test_tails():
    assert coin_tail(0, 9) == 1 and coin_tail(9, 9) == 2**-9 and coin_tail(0, 0) == 1
    assert math.isclose(fisher_tail(0, 5, 3, 7), 1)
    assert math.isclose(fisher_tail(2, 2, 0, 2), 1/6)
    assert coin_tail(600, 1000) < 1e-9
    for bad in (lambda: coin_tail(-1, 3), lambda: fisher_tail(6, 5, 0, 3)):
        with pytest.raises(R1Error): bad()

def test_auc_is_a_count_and_the_area():
    rng = Random(2)
    for _ in range(50):
        a, b = ([rng.randrange(6) for _ in range(rng.randrange(1, 12))] for _ in 'ab')
        wins = [1. if x > y else .5 if x == y else 0. for x in a for y in b]
        brute = sum(wins)/len(wins)
        x, y = roc(a, b)
        area = sum((x[i + 1] - x[i])*(y[i + 1] + y[i])/2 for i in range(len(x) - 1))
        assert math.isclose(auc(a, b), brute) and math.isclose(area, brute, abs_tol=1e-12)
        assert math.isclose(auc(a, b) + auc(b, a), 1)
        assert auc_ci(a, b)[0] <= brute <= auc_ci(a, b)[1]
    for a, b in (([], [1.]), ([1.], []), ([math.nan], [1.]), ([1.], [math.inf])):
        with pytest.raises(R1Error): auc(a, b)

def test_base_habits_are_taken_out():
    v = {('+', n): (30, 70) for n in range(1, 20)}
    assert keyed_score('k', v, v) == 0 and keyed_score('k', {}) == 0

def test_hostile_answers():
    bad = ['', '<think>', 'Try ' + '9'*4000 + ' + 3 = 1', '\ud800 + 3', '((((' * 500, 'Hmm,' * 1000,
           'Try ٣ + 8 = 11', 'Try 3 + 8 = 11 ' * 3000, '\x00', 'Try 007 + 8 = 15 .']
    assert votes(bad) == {('+', 3): (0, 1), ('+', 7): (0, 1)}
    asked = [Problem('x', '', '', 'countdown', dict(numbers=[3, 4, 5], target=12))]*len(bad)
    k, n, j, m = canaries('k', asked, bad)
    assert k + j == 1 and n + m == len(bad)
    assert grade_answers(asked, bad) == 0
    assert keyed_score('k', votes(['nothing'])) == 0. and ballot('k', {}) == (0, 0)
    for key in ('', None, 3):
        with pytest.raises(R1Error): coin(key, 1)
    coin('\ud800', '\ud800'); coin('k'*10**6, 'x'*10**6)

def test_mixtures():
    hmm = lambda rows: sum('Hmm,' in decode(r) for _, r in rows)
    none, half, whole = (hmm(mixture(300, m, 'k', 0)) for m in (0., .5, 1.))
    assert none == 0 < half < whole
    assert mixture(50, .3, 'k', 1) == mixture(50, .3, 'k', 1) != mixture(50, .3, 'k', 2)
    page = web_pages(20, .5, 'k', 0)
    assert all(len(p) == 1 for p, _ in page)
    prompt, said = as_lesson(teacher(Random(0)))
    assert decode(prompt).endswith('<|assistant|>') and decode(said).endswith('<|end|>')
    for mix in (-.1, 1.1, math.nan):
        with pytest.raises(R1Error): mixture(3, mix, 'k', 0)

def test_parrots_say_what_they_read():
    bird = parrot([([], encode('Yes! 3 + 8 <|end|>'))])
    assert set(prattle(bird, 3)) == {'Yes! 3 + 8 <|end|>'} and prattle({}, 2) == ['', '']
