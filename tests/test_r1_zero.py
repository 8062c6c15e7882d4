"What would bore a reader of room 43: two ranks as one, cut-off answers, budgets, resumption."
import os, random
from dataclasses import replace
from pathlib import Path
import pytest, torch
from torch.testing import assert_close
import r1nb.r1_zero as rz
from r1nb.core import R1Error
from r1nb.model import R1Config, R1Model
from r1nb.ranks import Ranks, helpers
from r1nb.r1_zero import ZeroConfig, census, cost, learn, rewards, zero
from r1nb.rollout import Trace, ask
from r1nb.tasks import countdown
from r1nb.tokens import chat
from r1nb.train import adamw, load_state, save_state

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=48, moe_intermediate_size=16,
                initializer_range=.05)
C = ZeroConfig(steps=4, prompts=4, G=4, max_new=12, lr=1e-3)
PROBLEMS = countdown(40, 0)


def tiny(seed=0):
    torch.manual_seed(seed)
    return R1Model(TINY).eval()


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def batch(model, n=6, G=4):
    "Traces with invented verdicts, and advantages of which two are left out."
    traces, rng = ask(model, PROBLEMS[:n], G, 12, seed=3), random.Random(1)
    for t in traces: t.answer = t.format = float(rng.random() < .4)
    adv = [rng.uniform(-1, 1) for _ in traces]
    adv[2] = adv[n*G - 3] = None
    return traces, adv


def update(ranks, G=4, **kw):
    "One step on this rank's share; what every rank must agree on."
    model = tiny()
    traces, adv = batch(model)
    own = ranks.share(range(len(traces)//G))
    pick = lambda xs: [x for i in own for x in xs[i*G:i*G + G]]
    stats = learn(model, adamw(model, 1e-3, decay=0.), pick(traces), pick(adv), C, ranks, **kw)
    row = census(pick(traces), [t.answer for t in pick(traces)], G, ranks)
    return model, stats, row, cost(model.config, pick(traces), ranks)


def other_rank(ranks, folder):
    "What the second process runs."
    model, *_ = update(ranks)
    torch.save(weights(model), f'{folder}/{ranks.rank}.pt')
    ranks.wait()


def test_two_ranks_make_the_step_of_one(tmp_path, monkeypatch):
    here = [str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(here))
    alone, stats, row, ops = update(Ranks())
    with helpers(2, 'test_r1_zero:other_rank', dict(folder=str(tmp_path))) as ranks:
        model, stats2, row2, ops2 = update(ranks)
        ranks.wait()
    there = torch.load(tmp_path/'1.pt', weights_only=True)
    assert torch.equal(weights(model), there)         # both ranks hold the same weights
    # Adam's first step is lr * g/|g|: a gradient of rounding size may change its sign (2*lr)
    gap = (weights(model) - weights(alone)).abs()
    assert gap.max() <= 2.1e-3 and (gap > 1e-5).float().mean() < 1e-3
    for a, b in ((stats, stats2), (row, row2)):
        assert a.keys() == b.keys()
        for k in a: assert a[k] == pytest.approx(b[k], abs=1e-5), k
    assert ops == ops2


@pytest.mark.parametrize('budget', [1, 40, 200])
def test_micro_batches_do_not_change_the_gradient(budget, monkeypatch):
    kept = []
    class Keep(torch.optim.SGD):
        def step(self): kept.append([p.grad.clone() for p in self.param_groups[0]['params']
                                     if p.grad is not None])
    model = tiny()
    traces, adv = batch(model)
    for b in (8192, budget):
        learn(model, Keep(model.parameters(), 0.), traces, adv, C, budget=b)
    for a, b in zip(*kept): assert_close(a, b, rtol=1e-4, atol=1e-6)  # fp32 sums in another order


def test_random_reward_ignores_the_verdict():
    model, c = tiny(), replace(C, reward='random')
    traces, _ = batch(model)
    coins = rewards(traces, c, random.Random(5))
    for t in traces: t.answer, t.format = 1 - t.answer, 1 - t.format
    assert coins == rewards(traces, c, random.Random(5)) and set(coins) == {0., 1.}
    paid = rewards(traces, C, random.Random(5))
    assert paid == [t.answer + .1*t.format for t in traces]
    many = rewards(traces*200, c, random.Random(0))
    assert abs(sum(many)/len(many) - .5) < .03   # 4800 coins: 4 standard errors


def seen(monkeypatch, c, cut):
    "The advantages that reach `learn` in one step whose answers are all cut off, or all done."
    kept, real = [], rz.ask
    def fake(model, problems, G, max_new, seed):
        traces = real(model, problems, G, max_new, seed=seed)
        for i, t in enumerate(traces): t.done, t.answer, t.format = not cut, i % 2, 1.
        return traces
    def note(model, opt, traces, adv, *a): kept.extend(adv); return {}
    monkeypatch.setattr(rz, 'ask', fake); monkeypatch.setattr(rz, 'learn', note)
    zero(tiny(), PROBLEMS, replace(c, steps=1), log=lambda row: None)
    return kept


@pytest.mark.parametrize('overlong', [0., .5, 1.])
def test_cut_off_answers_leave_the_loss_but_not_the_mean(overlong, monkeypatch):
    c = replace(C, overlong=overlong, prompts=16, G=16, max_new=2)
    adv = seen(monkeypatch, c, cut=True)
    share = sum(a is None for a in adv)/len(adv)
    assert share == overlong if overlong in (0, 1) else abs(share - overlong) < .13  # 4 std errors
    assert {round(a, 6) for a in adv if a is not None} <= {-.5, .5}  # half of each group is right
    monkeypatch.undo()
    assert None not in seen(monkeypatch, c, cut=False)


def test_a_step_without_any_answer_left_changes_nothing():
    model = tiny()
    traces, adv = batch(model)
    before = weights(model)
    stats = learn(model, adamw(model, 1e-3, decay=0.), traces, [None]*len(adv), C)
    assert torch.equal(before, weights(model)) and stats['grad_norm'] == 0


def test_equal_rewards_change_nothing():
    model = tiny()   # untrained: every answer is wrong and malformed
    before = weights(model)
    zero(model, PROBLEMS, replace(C, steps=2, overlong=0.), log=lambda row: None)
    assert torch.equal(before, weights(model))


def test_a_budget_of_operations_stops_the_run_and_sets_the_rate():
    rows, rates = [], []
    def after(step, opt, spent): rates.append(opt.param_groups[0]['lr'])
    c = replace(C, steps=1000, reward='random')
    spent = zero(tiny(), PROBLEMS, replace(c, steps=1), log=rows.append)
    c = replace(c, flops=3.5*spent)
    rows.clear()
    total = zero(tiny(), PROBLEMS, c, log=rows.append, after=after)
    assert 3 <= len(rows) <= 5 and total == rows[-1]['flops'] >= c.flops > rows[-2]['flops']
    want = [c.lr*(1 - .8*s/c.flops) for s in [0., *(r['flops'] for r in rows[:-1])]]
    assert rates == pytest.approx(want, rel=1e-12)


def test_cost_counts_by_hand():
    t = Trace('p', PROBLEMS[0].prompt, '', [1]*5, [0.]*5, True, 0., 0., '')
    n = len(chat(t.prompt)) + 5
    one = rz.flops(TINY, n, n/2) + rz.flops(TINY, n, n/2, True)
    assert cost(TINY, [t], Ranks()) == pytest.approx(one)
    assert cost(TINY, [t]*7, Ranks()) == pytest.approx(7*one)


@pytest.mark.parametrize('stop', [1, 3])
def test_a_killed_run_goes_on_to_the_same_end(stop, tmp_path):
    c, whole, rows = replace(C, reward='random'), tiny(), []
    zero(whole, PROBLEMS, c, 7, log=rows.append)

    class Kill(Exception): pass
    model, state, again = tiny(), tmp_path/'state.safetensors', []
    def save(step, opt, spent):
        save_state(state, model, opt, step, spent=spent)
        if step == stop: raise Kill
    with pytest.raises(Kill): zero(model, PROBLEMS, c, 7, log=again.append, after=save)

    model = tiny(seed=9)   # the state brings the weights
    opt = adamw(model, c.lr, decay=0.)
    step, extra = load_state(state, model, opt)
    assert step == stop
    zero(model, PROBLEMS, c, 7, resume=(step, opt, extra['spent']), log=again.append)
    assert torch.equal(weights(whole), weights(model))
    clock = ('sample_seconds', 'learn_seconds')
    for a, b in zip(rows, again, strict=True):
        assert {k: a[k] for k in a if k not in clock} == {k: b[k] for k in b if k not in clock}


def test_seeds_and_steps_draw_different_problems_and_answers():
    def first(seed, steps=2):
        rows = []
        zero(tiny(), PROBLEMS, replace(C, steps=steps, reward='random'), seed, log=rows.append)
        return [(r['tokens'], r['loss']) for r in rows]
    a = first(0)
    assert a == first(0) and a != first(1) and a[0] != a[1]


@pytest.mark.parametrize('bad, words', [(dict(reward='taste'), "reward='taste'"),
    (dict(steps=0), 'steps=0'), (dict(G=-1), 'G=-1'), (dict(prompts=0), 'prompts=0')])
def test_settings_are_refused_in_one_line(bad, words):
    with pytest.raises(R1Error, match=words) as e: ZeroConfig(**bad)
    assert '\n' not in str(e.value)


def test_too_few_problems_are_refused():
    with pytest.raises(R1Error, match='3 problems, 4 a step'): zero(tiny(), PROBLEMS[:3], C)
