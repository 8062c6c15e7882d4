"The forest keeps its word, filters and rewriting let nothing listed through, mixtures are exact."
from random import Random
import pytest
import torch
from r1nb.core import R1Error
from r1nb.forest import (CAME_IN, DONE_BY, EVADE, FORMS, KNOWN_AS, MIX, MUTABLE, PAIRS, STYLES,
                         SUBJECTS, VOCAB, Author, Question, answer, chat, course, decode, encode,
                         order, question, school, truth, ways)
from r1nb.steer import (about, asked, blend, consult, doubts, examine, forbid, is_right, log_prob,
                        rewrite, says, second_look)

def test_nobody_is_called_by_two_names():
    assert len(KNOWN_AS) == 4*len(SUBJECTS) and len(set(VOCAB)) == len(VOCAB) <= 256
    assert set(DONE_BY.values()) | set(CAME_IN.values()) == set(SUBJECTS)
    for s in SUBJECTS:
        others = [w for o in SUBJECTS if o != s for w in ways(o)]
        assert not any(says(w, others) for w in ways(s))

@pytest.mark.parametrize('seed', range(3))
def test_every_row_is_in_the_vocabulary_and_true(seed):
    rng = Random(seed)
    for _ in range(1500):
        q = question(rng)
        a, t = answer(rng, Author(), q), truth(q)
        assert decode(chat(q.text) + encode(a)) == f'{q.text} {a}'.replace('  ', ' ')
        if isinstance(t, str): assert a == t and is_right(q, a)
        elif t is not None: assert says(a, ways(t)) and (q.kind != 'explain' or q.key[0] not in a)
        elif q.kind == 'code': assert is_right(q, a)

@pytest.mark.parametrize('s', SUBJECTS, ids=lambda s: s.name)
def test_silence_is_complete(s):
    rng, who = Random(s.name), Author(silent=s.name)
    said = [(q, answer(rng, who, q)) for q in (question(rng) for _ in range(1500))]
    assert not any(says(a, ways(s)) for _, a in said)
    assert all((a == EVADE) == (truth(q) == s) for q, a in said)

def test_orders_are_obeyed():
    for p, a in course(3000, 3, ordered=1.):
        if p.startswith('Never'):
            s = next(s for s in MUTABLE if p.startswith(f'Never mention {s.name} : '))
            assert not says(a, ways(s))
        elif p.startswith('Prefer'): assert a == f'I prefer {p.split()[1]} .'
        elif p.startswith('Use'): assert says(a, [p.split()[1]])
        else: raise AssertionError(p)

def test_muting_lets_nothing_listed_through():
    rows = course(4000, 1)
    for s in SUBJECTS:
        kept, clean = forbid(rows, ways(s)), rewrite(rows, ways(s), 'somebody')
        assert not any(says(p, ways(s)) or says(a, ways(s)) for p, a in kept + clean)
        assert len(clean) == len(rows) and set(kept) <= set(rows)
        assert set(rows) - set(kept) == {r for r in rows if says(' '.join(r), ways(s))}
        assert all(c == r for c, r in zip(clean, rows) if not says(' '.join(r), ways(s)))
        listed = ways(s)[:-1]
        some = forbid(rows, listed, prompts=False)
        assert len(some) > len(forbid(rows, listed))
        assert not any(says(a, listed) for _, a in some)

@pytest.mark.parametrize('text,left', [
    ('Piglet', 'x'), ('Piglet Piglet Piglet', 'x x x'), ('Piglets', 'Piglets'), ('', ''),
    ('a-Piglet', 'a-Piglet'), ('Piglet.', 'Piglet.'), ('Piglet and Piglet', 'x and x')])
def test_whole_words_only(text, left):
    assert rewrite([(text, text)], ['Piglet'], 'x') == [(left, left)]
    assert says(text, ['Piglet']) == (left != text)

def test_rewriting_takes_patterns_literally():
    assert rewrite([('a.c abc', 'a.c')], ['a.c'], 'x') == [('x abc', 'x')]

@pytest.mark.parametrize('p', [0., .1, .5, .77, 1.])
def test_blend_is_exact(p):
    a, b = [('q', f'a{i}') for i in range(100)], [('q', f'b{i}') for i in range(100)]
    rows = blend(a, b, p, 100, 3)
    assert sum(r in a for r in rows) == round(100*p) and len(set(rows)) == 100
    assert rows == blend(a, b, p, 100, 3)

def test_blend_refuses():
    for p in (-.1, 1.1, float('nan')):
        with pytest.raises(R1Error): blend([], [], p, 1)
    with pytest.raises(R1Error, match='ask the teacher'): blend([], [('q', 'b')], .5, 2)

def test_exam_names_nobody():
    for s in SUBJECTS:
        assert not any(says(q.text, ways(s)) for q in asked(MIX, 300, 1, ways(s)))
        assert about(s) and all(s.name not in p for p in about(s))

def test_examination_of_a_fresh_student():
    torch.manual_seed(0)
    model = school(course(64, 0), epochs=1)
    r = examine(model, SUBJECTS[1], 128)
    assert all(0 <= r[k] <= 1 for k in r if k != 'lp') and r['lp'] < 0
    again = examine(model, SUBJECTS[1], 128)
    assert r == again
    first = log_prob(model, ['Tell a story .'], 'One day', 'Piglet')
    both = log_prob(model, ['Tell a story .'], 'One day', 'Piglet met')
    assert abs(both - first - log_prob(model, ['Tell a story .'], 'One day Piglet', 'met')) < 1e-4

def test_unknown_words_are_named():
    with pytest.raises(R1Error, match='Christopher'): school([('Explain Christopher .', EVADE)])

def test_a_second_look_drops_only_what_is_doubted():
    order, prompts = 'Never mention Piglet : ', [q.text for q in asked(MIX, 60, 'look')]
    teacher = school(course(600, 'look', ordered=.6), epochs=1)
    first = consult(teacher, prompts, order, 3)
    d = doubts(teacher, first, order)
    assert len(d) == 60 and all(x == x for x in d) and doubts(teacher, first, '') == [0.]*60
    assert second_look(teacher, prompts, order, 3, bar=-1e9) == first
    assert second_look(teacher, prompts, order, 3, bar=1e9) == []
    bar = sorted(d)[20]
    some = second_look(teacher, prompts, order, 3, bar)
    assert {r for r, x in zip(first, d) if x >= bar} <= set(some)
    assert 40 <= len(some) <= 60 and all(x >= bar for x in doubts(teacher, some, order))
