"What would bore a reader of room 40: enumeration, hostile text, coverage, odd shapes."
import itertools, json, math, os, random, time
from collections import Counter
from pathlib import Path
import pytest
from r1nb.core import R1Error, proportion_ci
from r1nb.eval import (R1_WORDS, arithmetic_errors, ballot, behaviour, canonical, cons_at_k,
                       cons_predicted, majority, paired_difference, pass_at_k, rate_ci,
                       reflection_words, score, steps_in, tries_in, try_hits)
from r1nb.tasks import Problem, countdown, evaluate, numbers_used

DATA = Path(os.environ.get('R1NB_DATA', Path(__file__).parents[2]/'shared/data'))
HOSTILE = ['', ' ', '(', ')', '()' * 50, '(' * 900 + '1', '-' * 900 + '1', '1' * 999, '9**9**9',
           '1//2', '1/0', '1/(2-2)', 'a+b', '__import__("os")', '1_0', '0x10', '1e9', '１+２', '1 2',
           '+'.join('1' * 490), '1+' * 400, '\x00', '🦊', '1;2', 'lambda: 1', '[1]', '1,2', '1=1']


def test_pass_at_k_by_enumeration():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                hands = list(itertools.combinations([1] * c + [0] * (n - c), k))
                assert math.isclose(pass_at_k(n, c, k), sum(map(any, hands)) / len(hands))
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)
    for bad in ((4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5), (0, 0, 1)):
        with pytest.raises(R1Error): pass_at_k(*bad)


def tree(rng, depth):
    if depth == 0 or rng.random() < .2: return str(rng.randint(1, 20))
    return f'( {tree(rng, depth - 1)} {rng.choice("+-*/")} {tree(rng, depth - 1)} )'


def shuffled(text, rng):
    "The same expression with the operands of + and * swapped at random; brackets stay."
    if not text.startswith('('): return text
    inner, depth = text[2:-2].split(), 0
    for i, t in enumerate(inner):
        depth += (t == '(') - (t == ')')
        if depth == 0 and t in '+-*/': break
    a, b = (shuffled(' '.join(x), rng) for x in (inner[:i], inner[i+1:]))
    if inner[i] in '+*' and rng.random() < .5: a, b = b, a
    return f'( {a} {inner[i]} {b} )'


def test_canonical_keeps_value_and_numbers_and_forgets_order():
    rng, names = random.Random(0), set()
    for _ in range(2000):
        e = tree(rng, 3)
        try: value = evaluate(e)
        except R1Error:
            assert canonical(e) == ''
            continue
        c = canonical(e)
        assert evaluate(c) == value and sorted(numbers_used(c)) == sorted(numbers_used(e))
        assert canonical(c) == c == canonical(shuffled(e, rng))
        names.add(c)
    assert len(names) > 500  # not everything is one answer


@pytest.mark.parametrize('same', [('1+2-3', '2-3+1', '2-(3-1)'), ('8/4/2', '8/(4*2)', '8/(2*4)'),
    ('6/(3/2)', '2*6/3', '(6*2)/3'), ('-3+5', '5-3'), ('3-(-2)', '3+2'), ('007', '7'),
    ('2×3', '3*2')])
def test_canonical_same(same): assert len({canonical(e) for e in same} - {''}) == 1


@pytest.mark.parametrize('a,b', [('1-2', '2-1'), ('4/2', '2/4'), ('2*(3+4)', '2*3+2*4'),
    ('1', '01+0'),
    ('2*3', '6'), ('1+1', '1'), ('(1+2)*3', '1+2*3'), ('1-2-3', '1-(2-3)')])
def test_canonical_differs(a, b): assert canonical(a) != canonical(b)


@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_hostile_raises(text):
    p, start = countdown(1)[0], time.perf_counter()
    assert isinstance(canonical(text), str)
    for r in (text, f'<think> {text} </think> <answer> {text} </answer>', f'Try {text} = {text}'):
        ballot(p, r), behaviour([p], [[r]]), score([p], [[r]]), reflection_words(r)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize('text', ['1 + ' * 50_000, '1' * 200_000, '1+1=' * 50_000, '- ' * 100_000,
                                  ' ' * 200_000 + '=', '1.' * 100_000, 'try ' * 50_000])
def test_long_text_is_read_in_linear_time(text):
    start = time.perf_counter()
    arithmetic_errors(text), tries_in(text), reflection_words(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize('text,want', [
    ('20 - 4 = 16 , 11 * 16 = 176', (0, 2)), ('2+2=5', (1, 1)), ('8 / 2 = 4. 9/2=4.5', (0, 2)),
    ('10 / 4 = 2', (1, 1)), ('1 / 0 = 0', (1, 1)), ('3 - 5 = -2', (0, 1)), ('3 - 5 = 2', (1, 1)),
    ('2 + 3 + 4 = 9', (0, 0)), ('2 + 3 = 5 + 1', (0, 0)), ('( 1 + 2 ) * 3 = 9', (0, 0)),
    ('1,000 + 1 = 1,001', (0, 0)), ('x = 3', (0, 0)), ('0.5 + 0.25 = 0.75', (0, 1)),
    ('1 + 1 = 2 = 2', (0, 1)), ('7 - 2 = 5 - fine', (0, 0)), ('', (0, 0)),
    ('12 + 30 = 42', (0, 1))])
def test_arithmetic_errors(text, want): assert arithmetic_errors(text) == want


def test_tries_and_hits():
    p = Problem('', '', '', 'countdown', dict(numbers=[20, 4, 16, 11], target=43, exact=True))
    text = ('<think> Try 20 - 4 = 16 , 11 * 16 = 176 , 176 - 16 = 160 . No, too high. '
            'Try 16 - 4 = 12 , 12 + 20 = 32 , 11 + 32 = 43 . Yes! Check: 16 - 4 = 12 . </think>')
    a, b = tries_in(text)
    assert (len(a), len(b)) == (3, 3) and not try_hits(p, a) and try_hits(p, b)
    bad = ['Try 20 + 16 = 36 , 36 + 11 = 47 , 47 - 4 = 42', 'Try 20 + 20 = 40',
           'Try 43 + 0 = 43', 'Try',
           'Try 16 - 4 = 12 , 12 + 20 = 33 , 11 + 32 = 43', 'Try 11 + 32 = 43',
           'Try 16 - 4 = 12 , 12 + 20 = 32 , 11 + 32 = 43 , 43 - 43 = 0']
    assert not any(try_hits(p, t) for x in bad for t in tries_in(x))
    got = behaviour([p], [[text, 'no idea']])
    assert got['tries'] == 1 and got['first_try'] == 0 and got['per_try'] == .5
    assert steps_in('Try') == [] and tries_in('I guess.') == []


def test_reflection_words_are_whole_words():
    assert reflection_words('Not now, nobody waited; but WAIT - no. Hmm... check-mate') == 5
    assert reflection_words('Wait, hmm, no', R1_WORDS) == 1 and len(R1_WORDS) == 10


def test_majority_is_the_mean_over_fair_coins():
    rng = random.Random(0)
    for _ in range(300):
        votes = [rng.choice(['', 'a', 'b', 'c']) for _ in range(rng.randint(1, 7))]
        right = [v in 'ab' and v != '' for v in votes]
        count = Counter(v for v in votes if v)
        top = [v for v in count if count[v] == max(count.values())]
        want = sum(v in ('a', 'b') for v in top) / len(top) if top else 0
        assert majority(votes, right) == pytest.approx(want)
        order = list(range(len(votes))); rng.shuffle(order)
        again = majority([votes[i] for i in order], [right[i] for i in order])
        assert again == majority(votes, right)


def test_cons_predicted_by_simulation_and_limits():
    rng = random.Random(1)
    for p, q, k in ((.5, .3, 5), (.3, .4, 8), (.2, .1, 3), (.6, .4, 2)):
        draws = [[rng.random() for _ in range(k)] for _ in range(20_000)]
        votes = [['r' if u < p else 'w' if u < p + q else '' for u in d] for d in draws]
        mean = sum(majority(v, [x == 'r' for x in v]) for v in votes) / len(votes)
        assert cons_predicted(p, q, k) == pytest.approx(mean, abs=.015)  # 4 standard errors
    assert cons_predicted(1, 0, 9) == 1 and cons_predicted(0, 1, 9) == 0
    assert cons_predicted(.5, .5, 64) == pytest.approx(.5)
    with pytest.raises(R1Error): cons_at_k(['a'], [1], 2)
    with pytest.raises(R1Error): cons_at_k(['a', 'b'], [1], 1)


@pytest.mark.parametrize('n,k,a,b', [(30, 1, 1, 1), (30, 64, .4, .4), (200, 4, 2, 5),
                                     (500, 16, .3, 2)])
def test_rate_ci_covers(n, k, a, b):
    rng, hit, N = random.Random(2), 0, 200
    for _ in range(N):
        ps = [rng.betavariate(a, b) for _ in range(n)]
        lo, hi = rate_ci([[int(rng.random() < p) for _ in range(k)] for p in ps])
        hit += lo <= a / (a + b) <= hi
    assert hit / N > .90  # 95 % nominal, three standard errors of 200 trials below


def test_rate_ci_edges():
    assert rate_ci([[1]]) == pytest.approx(proportion_ci(1, 1))
    assert rate_ci([[0] * 8] * 5) == pytest.approx(proportion_ci(0, 5))
    for c in range(31):
        lo, hi = rate_ci([[1]] * c + [[0]] * (30 - c))
        want = proportion_ci(c, 30)
        assert (lo, hi) == pytest.approx(want, abs=.01) and lo <= c / 30 <= hi


def test_paired_difference():
    rng = random.Random(3)
    a = [rng.random() for _ in range(50)]
    assert paired_difference(a, a)['ci95'] == [0, 0]
    d = paired_difference(a, [x + .1 for x in a])
    assert d['diff'] == pytest.approx(.1) and d['ci95'] == pytest.approx([.1, .1])
    b = [[int(rng.random() < .5) for _ in range(4)] for _ in a]
    assert paired_difference(a, b, seed=1) == paired_difference(a, b, seed=1)
    x, y = paired_difference(a, b), paired_difference(b, a)
    assert x['diff'] == pytest.approx(-y['diff'])
    with pytest.raises(R1Error): paired_difference([], [])


def test_score_is_plain_data_and_adds_up():
    problems = countdown(40, seed=3, split='held_out')
    right = [f'<think> </think> <answer> {p.gold} </answer>' for p in problems]
    rng = random.Random(0)
    texts = [[r if rng.random() < .3 else 'I give up' for _ in range(6)] for r in right]
    s = score(problems, texts, [[3] * 6] * 40, max_tokens=3)
    json.dumps(s)
    assert s['truncated'] == 1 and s['mean_tokens'] == 3 and (s['n'], s['k']) == (40, 6)
    assert s['format_rate'] == pytest.approx(s['pass1']) == s['passes']['1']
    assert s['pass1'] == pytest.approx(sum(map(sum, s['hits'])) / 240)
    assert s['cons']['1'] <= s['cons']['2'] <= s['cons']['4']
    assert s['cons']['4'] == pytest.approx(sum(s['cons_hits']) / 40)
    assert s['cons']['4'] == pytest.approx(sum(any(h[:4]) for h in s['hits']) / 40)
    assert sum(b['n'] for b in s['by_size'].values()) == 40 and set(s['by_size']) <= {'3', '4'}
    alone = score(problems, [[t[0]] for t in texts])
    assert alone['mean_tokens'] is None and alone['truncated'] is None and alone['k'] == 1
    assert alone['ci95'] == pytest.approx(proportion_ci(sum(h[0] for h in s['hits']), 40), abs=.01)
    for bad in (([], []), (problems, texts[:3]), (problems[:1], [[]]), (problems[:2], [['a'], []])):
        with pytest.raises(R1Error): score(*bad)


def test_real_answers_vote():
    "Real models' countdown expressions: right ones have a name, and the name keeps their value."
    path = DATA/'countdown/graded_answers.jsonl'
    if not path.exists(): pytest.skip(f'no {path}: set R1NB_DATA')
    seen = 0
    for row in map(json.loads, path.read_text().splitlines()):
        c = canonical(row['extracted'] or '')
        if row['rechecked']:
            assert c and evaluate(c) == row['target'], row['extracted']
            seen += 1
    assert seen > 50
