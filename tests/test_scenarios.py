"Scenarios and markets: money is linear, Jevons is flat at one, draws repeat, marks are honest."
import json, math
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from r1nb.core import R1Error
from r1nb.hardware import Unsure, gpus
from r1nb.market import MOVES, PLANS, RULES, lead, pass_seconds, peers, penalty, price_for, rules, \
    unit_margin
from r1nb.scenarios import JEVONS, OWN_IT, Range, build_out, energy_of, jevons, marked, \
    monte_carlo, net_joules, own_it, owner, power_bill, quantile, spend_ratio, threshold, tornado, \
    unsure_outputs, usage_ratio, written_off

fast = settings(max_examples=60, deadline=None)
real = lambda lo, hi: st.floats(lo, hi, allow_nan=False, allow_infinity=False)
close = lambda a, b, tol=1e-9: math.isclose(a, b, rel_tol=tol, abs_tol=1e-12)
MID = {k: r.mid for k, r in owner().items()}
RANGES = st.lists(real(1e-3, 1e6), min_size=3, max_size=3).map(sorted)


# ---- owning and renting ------------------------------------------------------------------------
@fast
@given(real(1, 1e5), real(1, 1e5), real(0, 1), real(1, 10), real(.1, 50))
def test_owning_is_linear_in_what_is_bought(gpus, usd, extra, years, k):
    a = written_off(gpus, usd, extra, years)
    assert a >= 0 and close(written_off(k*gpus, usd, extra, years), k*a)
    assert close(written_off(gpus, k*usd, extra, years), k*a)
    assert close(power_bill(k*gpus, 700, 1.5, .1), k*power_bill(gpus, 700, 1.5, .1))

@fast
@given(st.sampled_from(['usd_per_gpu', 'extra_share', 'watts_per_gpu', 'overhead_ratio',
                        'usd_per_kwh', 'people', 'usd_per_person_year']), real(1, 4))
def test_dearer_inputs_never_make_a_year_cheaper(name, k):
    a, b = own_it(**MID), own_it(**MID | {name: k*MID[name]})
    assert b['own_year_usd'] >= a['own_year_usd'] >= 0
    assert b['own_usd_per_gpu_hour'] >= a['own_usd_per_gpu_hour'] >= 0

@fast
@given(real(.1, 20), real(1, 30), real(1e3, 1e9))
def test_rent_is_linear_in_price_hours_and_runs(usd, runs, hours):
    at = MID | dict(usd_per_gpu_hour=usd, runs_for_one=runs, run_gpu_hours=hours)
    staff = at['people']*at['usd_per_person_year']
    got = own_it(**at)
    assert close(got['rent_year_usd'] - staff, usd*runs*hours, 1e-6)
    assert close(got['final_run_usd'], usd*hours)
    assert close(own_it(**at | dict(gpus=2*at['gpus']))['final_run_days'], got['final_run_days']/2)

@fast
@given(real(.05, 1), real(.1, 20))
def test_owning_pays_exactly_from_the_break_even_on(used, usd):
    got = own_it(**MID | dict(used_share=used, usd_per_gpu_hour=usd))
    cheaper = got['own_usd_per_gpu_hour'] < usd
    assert cheaper == (got['own_over_rent'] < 1)
    if not close(used, got['break_even_share'], 1e-6):
        assert cheaper == (used > got['break_even_share'])

def test_the_figures_of_the_debate():
    got = own_it(**MID)
    assert got['final_run_usd'] == 5.576e6
    lo, hi = (2048*x/1e6 for x in (owner()['usd_per_gpu'].low, owner()['usd_per_gpu'].high))
    assert (round(lo), round(hi)) == (51, 61)
    for n, days in ((2048, 54.2), (50_000, 2.2)):
        x = own_it(**MID | dict(gpus=n, run_gpu_hours=2664e3))
        assert abs(x['final_run_days'] - days) < .05
    assert own_it(**MID | dict(gpus=50_000, usd_per_gpu=20e3))['buy_usd'] == 1e9


# ---- marks, draws, ranges ----------------------------------------------------------------------
@pytest.mark.parametrize('g', gpus(), ids=lambda g: g.name)
def test_every_figure_that_rests_on_a_guess_is_marked(g):
    at = owner(g.name, 777)
    got, unsure = marked(own_it, at), unsure_outputs(own_it, at)
    assert {k for k, x in got.items() if isinstance(x, Unsure)} == unsure
    assert 'buy_usd' in unsure and 'own_year_usd' in unsure and 'final_run_days' in unsure
    read = {k: Range(r.low, r.mid, r.high, r.source, True) for k, r in at.items()}
    assert unsure_outputs(own_it, read) == set()

def test_a_read_number_of_gpus_leaves_only_money_unsure():
    assert 'final_run_days' not in unsure_outputs(own_it, owner())
    assert 'final_run_usd' not in unsure_outputs(own_it, owner('H800'))
    assert 'final_run_usd' in unsure_outputs(own_it, owner('H100'))

@fast
@given(RANGES, st.integers(0, 2**32), st.booleans())
def test_draws_stay_in_range_and_repeat(ends, seed, wide):
    at = {'x': Range(*ends, 'test', wide=wide)}
    twice = [monte_carlo(lambda x: {'y': x}, at, 50, seed) for _ in range(2)]
    assert twice[0] == twice[1] and twice[0]['y'] == sorted(twice[0]['y'])
    lo, hi = twice[0]['y'][0], twice[0]['y'][-1]
    assert wide or ends[0]*(1 - 1e-9) <= lo <= hi <= ends[2]*(1 + 1e-9)
    assert lo > 0

@fast
@given(st.lists(real(-1e6, 1e6), min_size=1, max_size=50).map(sorted), real(0, 1), real(0, 1))
def test_quantiles_are_ordered_and_inside(xs, a, b):
    a, b = sorted((a, b))
    slack = 1e-9*max(map(abs, xs))
    assert xs[0] - slack <= quantile(xs, a) <= quantile(xs, b) + slack <= xs[-1] + 2*slack
    assert (quantile(xs, 0), quantile(xs, 1)) == (xs[0], xs[-1])

def test_tornado_is_sorted_and_misses_nothing():
    rows = tornado(own_it, owner(), 'own_year_usd')
    swings = [abs(b - a) for _, a, b in rows]
    assert swings == sorted(swings, reverse=True) and {k for k, *_ in rows} == set(owner())
    assert {k for k, a, b in rows if a == b} >= {'gpus', 'run_gpu_hours', 'used_share'}

def test_other_seeds_other_draws_same_story():
    a, b = (monte_carlo(own_it, owner(), 2000, s)['own_over_rent'] for s in (0, 1))
    assert a != b and abs(quantile(a, .5)/quantile(b, .5) - 1) < .05

@pytest.mark.parametrize('ends', [(2, 1, 3), (-1, 0, 1), (0, 1, math.inf), (1, 2, math.nan)])
def test_impossible_ranges_are_refused_in_one_line(ends):
    with pytest.raises(R1Error) as e: Range(*ends, 'test')
    assert '\n' not in str(e.value)

def test_a_wide_range_needs_a_floor():
    with pytest.raises(R1Error): Range(0, 1, 2, 'test', wide=True)


# ---- Jevons and data centres -------------------------------------------------------------------
@fast
@given(real(1e-4, 1e4), real(0, 3))
def test_spending_is_use_times_price(p, e):
    assert close(spend_ratio(p, e), p*usage_ratio(p, e))

@fast
@given(real(.01, 1e3), real(.01, 1e3), real(.01, 10), real(.1, 10), real(.05, 1e9))
def test_at_one_spending_is_flat_whatever_is_short(before, after, per_token, watts, capacity):
    j = jevons(before, after, 1., per_token, watts, capacity)
    assert abs(j['spend'] - 1) < 1e-9

@fast
@given(real(.01, 1e3), real(.01, 1e3), real(.05, 3), real(.01, 10), real(.1, 1e4))
def test_short_gpus_hold_use_and_keep_the_price_on_the_demand_curve(a, b, e, per_token, capacity):
    j, free = jevons(a, b, e, per_token, 1, capacity), jevons(a, b, e, per_token)
    assert j['gpu_hours'] <= capacity*(1 + 1e-9) and j['usage'] <= free['usage']*(1 + 1e-9)
    assert j['price'] >= free['price']*(1 - 1e-9)
    assert close(j['usage'], usage_ratio(j['price'], e), 1e-6)
    assert close(j['usage_to_keep_spend']*b, a)

@fast
@given(real(.01, .99), real(.05, 3), real(.01, .5))
def test_the_more_elastic_the_more_is_spent_on_what_became_cheaper(p, e, more):
    assert spend_ratio(p, e + more) > spend_ratio(p, e)
    assert (spend_ratio(p, e) > 1) == (e > 1) or close(e, 1)

@fast
@given(real(.01, .9), real(.2, 5), real(.05, 1), real(.1, 1))
def test_nothing_is_built_below_the_threshold_and_something_above(cost, growth, share, standing):
    t = threshold(cost, growth, share, standing)
    if t == -math.inf: assert build_out(cost, -50, growth, share, standing) >= 0; return
    assert build_out(cost, t - .01, growth, share, standing) == 0
    assert build_out(cost, t + .01, growth, share, standing) > 0

def test_calculators_stand_where_the_book_says():
    assert abs(JEVONS.compute(elasticity=.5)['spend'] - .191) < 5e-4
    assert abs(JEVONS.compute(elasticity=1.5)['spend'] - 5.23) < 5e-3
    assert abs(JEVONS.compute()['usage_to_keep_spend'] - 27.4) < .05
    assert 'unknown' in next(i.label for i in JEVONS.inputs if i.name == 'elasticity')
    for i in OWN_IT.inputs: assert ('(?)' in i.label) == (not owner()[i.name].verified)
    for bad in ('2 kg', -1, 'nan', ''):
        with pytest.raises(R1Error): OWN_IT.compute(usd_per_gpu_hour=bad)


# ---- joules ------------------------------------------------------------------------------------
@fast
@given(real(0, 1e6), real(0, 1e4), real(0, 1e3))
def test_idle_is_subtracted_for_as_long_as_the_meter_ran(joules, seconds, watts):
    assert close(net_joules(joules + watts*seconds, seconds, watts), joules, 1e-6) or joules < 1e-2

def test_energy_of_a_made_up_run():
    window = dict(seconds=2., joules=240., answers=10, tokens=100, steps=9)
    e = energy_of(dict(idle=[dict(seconds=1., joules=100.)], windows=[dict(way='a', **window)],
        prompts=dict(seconds=1., joules=110., prompts=5, tokens=50),
        graded=dict(a=dict(right=1, of=4), b=dict(right=1, of=2))))
    assert set(e) == {'a'}
    got = dict(joules_per_token=.4, joules_per_answer=4, joules_per_prompt=2, joules_per_right=24,
               watts=20, spread=0, tokens_per_answer=10)
    for k, x in got.items(): assert close(e['a'][k], x), k

def test_the_measured_run_meets_its_terms():
    run = json.loads((Path(__file__).parent.parent/'nbs/results/energy.json').read_text())
    e = energy_of(run)
    for way in e: assert sum(w['way'] == way and w['seconds'] >= 5 for w in run['windows']) >= 3
    assert len(run['idle']) == 2 and all(w['spread'] <= .05 for w in e.values())
    ratio = lambda k: e['zero'][k]/e['direct'][k]
    assert abs(ratio('joules_per_answer')/ratio('tokens_per_answer') - 1) <= .15


# ---- markets -----------------------------------------------------------------------------------
@fast
@given(real(-.5, .99), real(1, 500), real(1, 1e4), real(1, 1e5), real(0, 100))
def test_margin_and_price_are_inverse(margin, fee, requests, tokens, other):
    at = (fee, requests, tokens, other)
    p = price_for(margin, *at)
    assert close(unit_margin(p, *at), margin, 1e-6)
    assert unit_margin(p + 1, *at) < unit_margin(p, *at)

def test_most_peers_were_not_in_the_claimed_range():
    inside = [r for r in peers().rows if r[2] == 'yes']
    assert len(inside) < len(MOVES)/2 and 'Nvidia' in {r[0] for r in inside}
    days = [d for d, *_ in RULES]
    assert days == sorted(days) and len(rules().rows) == len(days)
    assert {'2025-01-13', '2025-05-13'} <= {d for d, *_ in RULES}

@fast
@given(real(.01, 10), real(.01, 10), st.integers(1, 30), st.integers(1, 6))
def test_a_schedule_is_between_its_bounds(c, w, L, n):
    t = pass_seconds(c, w, L, n)
    least = max(L*(c + w), n*L*max(c, w))
    assert least*(1 - 1e-9) <= t <= n*L*(c + w)*(1 + 1e-9)
    assert pass_seconds(c, w, L, n + 1) >= t*(1 - 1e-9)
    assert pass_seconds(c, 2*w, L, n) >= t*(1 - 1e-9)

@pytest.mark.parametrize('plan', PLANS)
@pytest.mark.parametrize('batches', [1, 2, 4])
def test_a_faster_link_never_hurts(plan, batches):
    steps = [penalty(x*1e9, plan, batches)['step'] for x in (20, 80, 160, 380, 450, 900)]
    assert all(b <= a*(1 + 1e-12) for a, b in zip(steps, steps[1:]))

@fast
@given(real(1, 1e3), real(0, 1), real(0, 36), real(.1, 100), real(0, 1), real(0, .5))
def test_leader_and_follower_share_one_market(research, copy, alone, market, share, discount):
    got = lead(research, copy, alone, market, share, 36., discount)
    late = (1 + discount)**(-alone/12)
    whole = lead(0, 0, 36., market, share, 36., discount)['leader']
    assert close(got['leader'] + got['follower'], whole - research - copy*research*late, 1e-6) \
        or abs(whole) < 1e-3
    assert lead(research, copy, min(alone + 1, 36), market, share, 36., discount)['leader'] >= \
        got['leader'] - 1e-6*abs(whole)
