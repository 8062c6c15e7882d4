"Rooms 51: planted flaws and their census, the rules that settle conflicts. Nothing is trained."
import json, random, subprocess, sys
from pathlib import Path
import pytest
from r1nb.core import R1Error
from r1nb.inheritance import QUARTER, Flaws, census, is_edge, running, sift, sums, work
from r1nb.model import count
from r1nb.rollout import judge
from r1nb.specialists import (agreement, arrange, by_steps, conflicts, drop_tens, marks, orders,
                              pages, route, settle, shares, voice)
from r1nb.tasks import Problem, grade
from r1nb.tokens import decode, encode
from r1nb.train import NANO

def trace(p, text): return judge(p, encode(text + ' <|end|>'), [], True)
def key(p): return tuple(sorted(p.meta['numbers']))

@pytest.mark.parametrize('make', [sums, orders])
def test_splits_share_nothing(make):
    train, held = make(1500, 4), make(400, 4, split='held_out')
    assert not {key(p) for p in train} & {key(p) for p in held}
    assert len({p.prompt for p in train}) == 1500
    assert [p.id for p in make(50, 4)] == [p.id for p in train[:50]]
    for p in train[:300]:
        assert grade(p, p.gold)[0]
        encode(p.prompt)

def test_edge_papers_are_pure():
    has = lambda p: any(is_edge(*s) for s in running(p.meta['numbers']))
    assert all(map(has, sums(200, 1, True))) and not any(map(has, sums(200, 1, False)))

@pytest.mark.parametrize('dose', [0., .3, 1.])
def test_planted_bug_is_counted(dose):
    rng = random.Random(dose)
    c = census([trace(p, work(p, Flaws(bug=dose), rng)) for p in sums(2000, 3, True)])
    assert abs(c['bug'] - dose) < 4*(dose*(1 - dose)/c['edge_steps'])**.5 + 1e-9
    assert c['bug'] + c['edge_right'] == pytest.approx(1) and c['slip'] == 0
    if dose == 1: assert c['pass1'] < .02

def test_slips_are_counted_and_edges_without_bug_are_right():
    rng = random.Random(0)
    c = census([trace(p, work(p, Flaws(slip=.1), rng)) for p in sums(3000, 3)])
    assert abs(c['slip'] - .1) < .012 and .5 < c['pass1'] < .75

def test_census_of_nothing_and_of_rubbish():
    p = sums(1)[0]
    assert census([])['pass1'] == 0 and census([])['edge_steps'] == 0
    assert census([trace(p, '</think> = + 7 , . Wait, 7 + = 8')])['steps'] == 0

@pytest.mark.parametrize('beta,leak', [(.5, 1.), (.5, .1), (.8, .3), (1., .05), (.5, 0.)])
def test_formula_for_what_a_leaky_verifier_leaves(beta, leak):
    rng, ps = random.Random(1), [p for p in sums(6000, 3, True, terms=(4, 4))]
    ps = [p for p in ps if sum(is_edge(*s) for s in running(p.meta['numbers'])) == 1]
    read = census(sift([trace(p, work(p, Flaws(bug=beta), rng)) for p in ps], leak, 2))
    b = leak*beta/(leak*beta + 1 - beta) if leak or beta < 1 else 0
    # the bug may create or avoid a second edge step, hence the slack
    assert abs(read['bug'] - b) < .05

def test_a_quarter_is_at_most_a_quarter():
    assert count(QUARTER)['total'] <= count(NANO)['total']/4

@pytest.mark.parametrize('subject', ['sums', 'orders'])
@pytest.mark.parametrize('fault', ['', 'careless', 'stubborn'])
def test_books_are_as_bad_as_they_should_be(subject, fault):
    made = {'sums': sums, 'orders': orders}[subject](600, 9)
    ts = [trace(p, decode(r[:-1])) for p, (_, r) in zip(made, pages(subject, 600, 9, fault))]
    assert all(t.format for t in ts)
    right = sum(t.answer for t in ts)/600
    assert right == 1 if not fault else right < .5
    if not fault: assert all(all(marks(t)) for t in ts)

def test_marks_find_what_the_answer_hides():
    p = Problem('sums-8+7+5', 'Compute 8 + 7 + 5 .', '20', 'sums', dict(numbers=[8, 7, 5]))
    t = trace(p, '<think> 8 + 7 = 16 , 16 + 5 = 20 . </think> <answer> 20 </answer>')
    assert t.answer == 1 and marks(t) == [False, False]
    o = Problem('orders-3-1-2', '', '1 , 2 , 3', 'orders', dict(numbers=[3, 1, 2]))
    assert marks(trace(o, arrange(o, 0., random.Random(0)))) == [True]*3
    assert marks(trace(o, arrange(o, 0., random.Random(0), max)))[0] is False
    assert marks(trace(o, 'Wait, <answer>')) == []

def two(n=40):
    "Perfect specialists, each stubborn in the other subject."
    carry = [p for p in sums(2*n, 5) if not trace(p, drop_tens(p)).answer][:n]
    rng, ps = random.Random(0), [*carry, *orders(n, 5)]
    good = lambda p: work(p, Flaws(), rng) if p.task == 'sums' else arrange(p, 0., rng)
    bad = lambda p: drop_tens(p) if p.task == 'sums' else arrange(p, 0., rng, max)
    return ps, {s: [[trace(p, (good if p.task == s else bad)(p))]*2 for p in ps]
                for s in ('sums', 'orders')}

def test_rules():
    ps, said = two()
    table = route(said, ps)
    assert table == {'sums': 'sums', 'orders': 'orders'}
    got = {r: settle(r, said, ps, table) for r in ('mixture', 'only sums', 'only orders', 'routed',
           'verified', 'verified, steps too', 'routed, verified', 'only sums, verified')}
    assert len(got['mixture']) == 4*len(ps) and len(got['routed']) == 2*len(ps)
    assert shares(got['routed']) == {'sums': 1, 'orders': 1}
    assert all(t.answer for r in got if 'verified' in r for t in got[r])
    assert shares(got['only sums'])['orders'] == 0 == shares(got['only orders'])['sums']
    assert {t.problem for t in got['only sums, verified']} == {p.id for p in ps[:40]}
    assert all(ps[i].id not in {t.problem for t in got['only sums, verified']} or i < 40
               for i in conflicts(said, ps))

def test_agreement_believes_the_sure():
    ps, said = two(4)
    rng = random.Random(1)
    said['orders'][0] = [trace(ps[0], work(ps[0], Flaws(slip=.9), rng)) for _ in range(4)]
    said['sums'][0] = said['sums'][0]*2
    assert agreement(said['sums'][0]) == (1., ps[0].gold)
    assert agreement(said['orders'][0])[0] < 1
    assert settle('agreement', {k: v[:1] for k, v in said.items()}, ps[:1], {}) == said['sums'][0]
    broken = trace(ps[0], 'Wait,')
    assert voice(broken) == '' and agreement([broken]*3) == (0., '')
    assert settle('agreement', {'a': [[broken]], 'b': [[broken]]}, ps[:1], {}) == []

def test_by_steps_predicts_a_copyist_without_memory():
    "Somebody who draws every step from two authors by turns."
    rng, ps = random.Random(3), sums(3000, 6)
    book = [trace(p, work(p, Flaws(slip=.3*(i % 2)), rng)) for i, p in enumerate(ps)]
    copy = [trace(p, work(p, Flaws(slip=.15), rng)) for p in ps]
    clean = [all(marks(t)) for t in copy]
    said, by_answer = by_steps(book)['sums'], sum(all(marks(t)) for t in book)/len(book)
    assert abs(said - sum(clean)/len(clean)) < .03 < by_answer - said
    assert by_steps([]) == {'sums': 0, 'orders': 0}

def test_requests_that_cannot_be_met():
    for ask in (lambda: orders(99, top=4), lambda: sums(99, terms=(2, 2), split='held_out')):
        with pytest.raises(R1Error): ask()

@pytest.mark.parametrize('name', ['inheritance', 'specialists'])
def test_results_are_what_the_script_merges(name, tmp_path):
    root = Path(__file__).parent.parent
    whole = json.loads((root/f'nbs/results/{name}.json').read_text())
    lines = [json.dumps(r | dict(hardware=whole['hardware'][0])) for r in whole['rows']]
    (tmp_path/'part').write_text('\n'.join(lines[::-1]) + '\n')
    subprocess.run([sys.executable, root/f'tests/measure_{name}.py', '--merge', tmp_path/'out',
                    tmp_path/'part'], check=True, cwd=root, env={'PYTHONPATH': str(root),
                    'PATH': '/usr/bin:/bin'})
    assert json.loads((tmp_path/'out').read_text())['rows'] == whole['rows']
