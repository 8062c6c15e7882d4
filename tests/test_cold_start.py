"What would bore a reader of room 44: garbage to edit, every rewrite checked, refusals."
import random
from types import SimpleNamespace
import pytest, torch
from r1nb.cold_start import (cold_start, drafts, editors_report, faults, readable, rewrite, sound,
                             steps_to)
from r1nb.core import R1Error
from r1nb.corpus import Habits, author, tell, Puzzle
from r1nb.eval import tries_in, try_hits
from r1nb.model import R1Config, R1Model
from r1nb.rollout import Trace
from r1nb.tasks import Problem, countdown, evaluate
from r1nb.tokens import VOCAB, encode
from r1nb.verify import split_response, verify

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=48, moe_intermediate_size=16,
                initializer_range=.05)
P = countdown(300, 3)


def written(p, rng):
    "An author of the corpus answers the problem; sloppy ones and liars among them."
    h = Habits(insight=(0., .3), guess=.05, one_try=.05, quitter=.2)
    text = tell(rng, h, Puzzle(p.meta['numbers'], p.meta['target'], [], ''),
                author(rng, h)._replace(insight=0.))
    return text.split('<|assistant|> ')[1].removesuffix(' <|end|>')


def answers():
    rng, out = random.Random(5), []
    for p in P:
        text = written(p, rng)
        v = verify(p, text)
        marks = v.answer, v.format, v.reason
        out.append(Trace(p.id, p.prompt, text, encode(text), [], True, *marks))
    return out


def test_every_rewrite_is_right_readable_and_in_the_vocabulary():
    kept = [(p, rewrite(p, t.response)) for p, t in zip(P, answers())]
    kept = [(p, r) for p, r in kept if r and 'I give up.' not in r]
    assert len(kept) > 30
    for p, r in kept:
        v, f = verify(p, r), faults(p, r)
        assert v.answer == v.format == 1 and readable(p, r), (r, f)
        assert rewrite(p, r) == r


def test_who_gives_up_has_filled_a_page_and_answers_with_the_nearest_miss():
    seen, T = 0, answers()
    for a, b, c in zip(T, T[1:], T[2:]):
        p = next(p for p in P if p.id == a.problem)
        mine = ' '.join([a.response, *(written(p, random.Random(i)) for i in range(9))])
        r = rewrite(p, mine, 60)
        if 'I give up.' not in r: continue
        seen += 1
        v, f, tries = verify(p, r), faults(p, r), tries_in(r)
        assert v.format == 1 and v.answer == 0 and f['summary'] == 0
        assert f['repeated'] == f['unsound'] == f['misjudged'] == 0
        assert 40 <= len(r.partition('I give up.')[0].split()) - 1 <= 60
        best = min(abs(t[-1][3] - p.meta['target']) for t in tries)
        assert abs(evaluate(split_response(r)[1]) - p.meta['target']) == best > 0
    assert seen > 30


def test_a_page_too_short_for_one_try_holds_no_lesson():
    p = P[0]
    missed = ' '.join(written(p, random.Random(i)) for i in range(5))
    assert rewrite(p, missed, 0) == '' or try_hits(p, tries_in(missed)[0])
    assert rewrite(p, '', 0) == ''


def test_two_drafts_a_problem_are_pasted_together():
    twice = [t for t in answers() for _ in range(2)]
    one, two = drafts(P, answers(), 20), drafts(P, twice, 20)
    assert one == two


def test_garbage_is_left_out():
    rng = random.Random(0)
    for _ in range(2000):
        text = ' '.join(rng.choices(VOCAB[4:], k=rng.randint(0, 40)))
        assert rewrite(P[0], text) == '' or verify(P[0], text).format
        assert not readable(P[0], text)
        faults(P[0], text)


@pytest.mark.parametrize('text, ok', [
    ('Try 6 + 2 = 8 , 8 + 8 = 16 .', True), ('Try 6 + 2 = 8 .', False), ('Try', False),
    ('Try 6 + 6 = 12 , 12 + 8 = 20 .', False), ('Try 6 / 8 = 1 , 1 + 2 = 3 .', False),
    ('Try 6 + 2 = 9 , 9 + 8 = 17 .', False), ('Try 6 + 3 = 9 , 9 + 8 = 17 .', False)])
def test_sound(text, ok):
    p = Problem('x', '', '', 'countdown', {'numbers': [6, 2, 8], 'target': 24})
    assert sound(p, tries_in(text)[0]) is ok


def test_drafts_of_four_kinds():
    sets = {k: drafts(P, answers(), 20, k) for k in ('rewritten', 'raw', 'answer only', 'shuffled')}
    prompts = [[p for p, _ in s] for s in sets.values()]
    assert all(ps == prompts[0] for ps in prompts)
    responses = {k: sorted(map(tuple, (r for _, r in s))) for k, s in sets.items()}
    assert responses['shuffled'] == responses['rewritten'] != responses['raw']
    assert max(len(r) for _, r in sets['answer only']) < 25
    with pytest.raises(R1Error, match='can be rewritten, 9999 wanted'): drafts(P, answers(), 9999)
    with pytest.raises(R1Error, match="kind='poem'"): drafts(P, answers(), 5, 'poem')


def test_a_base_is_left_as_it_was():
    torch.manual_seed(0)
    base = R1Model(TINY).eval()
    was = {k: v.clone() for k, v in base.state_dict().items()}
    cold_start(base, drafts(P, answers(), 16), epochs=1)
    assert all(torch.equal(v, was[k]) for k, v in base.state_dict().items())


def test_a_report_of_nothing_tried():
    t = SimpleNamespace(response='', ids=[1], format=0., done=False, answer=0.)
    r = editors_report(P[:1], [t])
    assert r['readable'] == r['formed'] == r['repeated'] == 0 and r['cut'] == 1


@pytest.mark.parametrize('ys, target, window, steps', [
    ([], .5, 5, None), ([1.]*4, .5, 5, None), ([1.]*5, .5, 5, 5), ([0., 1., 1.], 1., 2, 3)])
def test_steps_to(ys, target, window, steps): assert steps_to(ys, target, window) == steps
