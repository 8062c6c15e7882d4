"What would bore a reader of room 46: refusals, seeds, and that no loop touches its base."
from types import SimpleNamespace
import pytest, torch
from r1nb.core import R1Error
from r1nb.model import R1Config, R1Model
from r1nb.self_improve import KEEP, Loop, believed, examine, forecast, harvest, improve, tally
from r1nb.tasks import countdown

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=48, moe_intermediate_size=16,
                initializer_range=.05)
C = Loop(rounds=2, lessons=16, max_new=8, epochs=1, keep='anything')


def tiny(seed=0):
    torch.manual_seed(seed)
    return R1Model(TINY).eval()


def weights(m): return torch.cat([p.detach().flatten() for p in m.parameters()])


@pytest.mark.parametrize('kw, say', [
    (dict(keep='best'), "keep='best': choose from"),
    (dict(lessons=4), '4 lessons in batches of 16'),
    (dict(batch=0), 'fill one batch')])
def test_bad_recipes(kw, say):
    with pytest.raises(R1Error, match=say): Loop(**kw)


@pytest.mark.parametrize('said, form, yes', [
    ('<think> Try 1 . Yes! </think> <answer> 1 </answer>', 1., True),
    ('<think> Try 1 . Yes! </think> <answer> 1', 0., False),
    ('<think> Yes! Try 1 . No, too low. </think> <answer> 1 </answer>', 1., False)])
def test_belief(said, form, yes):
    assert believed(SimpleNamespace(response=said, format=form)) is yes


def test_nothing_to_learn_from():
    with pytest.raises(R1Error, match='0 of 32 answers are fit'):
        harvest(tiny(), Loop(lessons=16, max_new=4, patience=2), 1)


def test_harvest_stops_when_it_has_enough():
    kept, asked = harvest(tiny(), C, 1)
    assert (len(kept), asked) == (16, 16)
    again, _ = harvest(tiny(), C, 1)
    other, _ = harvest(tiny(), C, 2)
    assert [t.ids for t in kept] == [t.ids for t in again] != [t.ids for t in other]


@pytest.mark.parametrize('restart', [True, False])
def test_a_loop_repeats_and_leaves_its_base(restart):
    c = Loop(rounds=2, lessons=16, max_new=8, epochs=1, keep='anything', restart=restart)
    base, rows, problems = tiny(), [], countdown(4, 1, split='held_out')
    was = weights(base)
    a = improve(base, c, problems, log=rows.append, k=2)
    b = improve(base, c, problems, log=lambda r: None, k=2)
    assert torch.equal(weights(base), was) and torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), was)
    assert [r['round'] for r in rows] == [0, 1, 2] and rows[0]['asked'] == 0


def test_the_examination_has_no_side_effects():
    m, problems = tiny(), countdown(4, 1, split='held_out')
    assert examine(m, problems, 2, 8) == examine(m, problems, 2, 8)


def test_two_habits_as_on_paper():
    crowd = {'bad': [100, 10, 0], 'good': [100, 50, 100]}
    assert forecast(crowd, 2, 'right', 0.) == pytest.approx([.3, .26/.6, .126/.26])
    assert forecast(crowd, 1, 'believed', 0.) == pytest.approx([.3, .5])
    assert forecast(crowd, 3, 'anything', .1) == pytest.approx([.27]*4)


def test_the_tally_is_of_its_seed():
    a, b = tally(300, seed=1), tally(300, seed=1)
    assert a == b != tally(300, seed=2)
    assert sum(n for n, _, _ in a.values()) == 300
    assert set(KEEP) == {'right', 'believed', 'anything'}
