"Room 51, a small student: the chains, what is read of them, the sizes. Nothing is trained."
import random
import pytest
from r1nb.core import R1Error
from r1nb.eval import step_is_right, steps_in
from r1nb.inheritance import Flaws, sums, work
from r1nb.model import R1Model, count
from r1nb.rollout import judge
from r1nb.small_student import (PUPILS, READINGS, STUDENT, chains, last_digit, newborn, read_as,
                                work_through)
from r1nb.tasks import grade
from r1nb.tokens import ANSWER, END_THINK, THINK, chat, decode, encode
from r1nb.train import NANO

def traces(n, seed=0):
    return [judge(p, encode(work_through(p) + ' <|end|>'), [], True) for p in chains(n, seed)]

@pytest.mark.parametrize('seed', [0, 7])
def test_splits_share_nothing(seed):
    train, held = chains(3000, seed), chains(500, seed, 'held_out')
    numbers = lambda p: tuple(sorted([p.meta['start']] + [b for _, b in p.meta['steps']]))
    assert not set(map(numbers, train)) & set(map(numbers, held))
    assert len({p.prompt for p in train}) == len({p.id for p in train}) == 3000
    assert [p.id for p in chains(50, seed)] == [p.id for p in train[:50]]

def test_work_is_true_and_leads_to_the_answer():
    for p in chains(400, 3, lengths=(1, 8)):
        t = judge(p, encode(work_through(p) + ' <|end|>'), [], True)
        steps = steps_in(t.response)
        assert t.answer == 1 and len(steps) == len(p.meta['steps'])
        assert all(step_is_right(*s) for s in steps)
        for (_, _, _, c), (a, _, _, _) in zip(steps, steps[1:]): assert a == c % 10
        slow = p.meta['start']
        for sign, b in p.meta['steps']: slow = {'+': slow + b, '*': slow*b}[sign] % 10
        assert str(slow) == p.gold and not grade(p, str((slow + 1) % 10))[0]

def test_no_step_can_be_left_out():
    rng = random.Random(0)
    for p in chains(100, 5):
        steps = p.meta['steps']
        i = rng.randrange(len(steps))
        ends = {last_digit(last_digit(x, steps[:i]), steps[i:]) for x in range(10)}
        assert ends == set(range(10))

def test_readings_keep_the_answer_and_the_prompt():
    ts = traces(60)
    rows = {k: read_as(k, ts, 1) for k in READINGS}
    for t, full, short, odd in zip(ts, *(rows[k] for k in READINGS)):
        assert full[0] == short[0] == odd[0] == chat(t.prompt) and full[1] == t.ids
        assert all(r[r.index(ANSWER):] == t.ids[t.ids.index(ANSWER):] for _, r in (short, odd))
        assert short[1][:2] == [THINK, END_THINK] and short[1][2] == ANSWER
    own = sum(odd[1] == full[1] for full, odd in zip(rows['steps'], rows['strangers']))
    assert own == 0, 'strangers are others'
    assert rows['strangers'] == read_as('strangers', ts, 1) != read_as('strangers', ts, 2)

def test_wrong_answers_are_not_read():
    p = chains(1)[0]
    text = f'<think> </think> <answer> {(int(p.gold) + 1) % 10} </answer> <|end|>'
    wrong = judge(p, encode(text), [], True)
    assert wrong.answer == 0
    for reading in READINGS[:2]: assert read_as(reading, [wrong]) == []
    with pytest.raises(R1Error, match='at least two'): read_as('strangers', [wrong])

def test_sums_are_read_alike():
    p = sums(1)[0]
    t = judge(p, encode(work(p, Flaws(), random.Random(0)) + ' <|end|>'), [], True)
    assert decode(read_as('answers', [t])[0][1]).split()[:3] == ['<think>', '</think>', '<answer>']

def test_a_quarter_of_the_weights_that_answer():
    teacher = count(NANO)
    assert count(STUDENT)['total'] <= (teacher['total'] - teacher['mtp'])/4
    assert sum(w.numel() for w in R1Model(STUDENT).parameters()) == count(STUDENT)['total']

def test_mistakes_are_named():
    with pytest.raises(R1Error, match='longer ones are more'): chains(500, lengths=(1, 1))
    with pytest.raises(R1Error, match="reading 'aloud'"): read_as('aloud', [])
    with pytest.raises(R1Error, match='do not fill one batch'): newborn(read_as('steps', traces(8)))
    assert {h['reading'] for h in PUPILS.values()} <= set(READINGS)
