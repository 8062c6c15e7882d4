"What would bore a reader of room 61: laws of money over random models and machines, bad inputs."
import math, re
from dataclasses import asdict, fields, replace
import pytest
from hypothesis import assume, given, settings, strategies as st
from r1nb.anatomy import MODELS, Anatomy, served
from r1nb.core import R1Error
from r1nb.hardware import gpu, gpus
from r1nb.serving_cost import (SERVE_IT, Fleet, How, Serving, decode, experts_read, mtp_speedup,
                               nodes_needed, per_solved, serve_cost, service_day, step_time,
                               usd_per_million)

SOME = settings(max_examples=80, deadline=None)
positive = st.floats(1e-3, 1e6)
share = st.floats(.01, 1)
names = st.sampled_from(sorted(MODELS))
cards = st.sampled_from([g.name for g in gpus() if g.name != 'laptop'])


@st.composite
def layouts(draw):
    "A model, a GPU, how many, a context and settings under which at least one answer fits."
    m, g = served(draw(names)), gpu(draw(cards))
    n, context = draw(st.sampled_from([1, 2, 3, 8, 16, 40, 144, 300])), draw(st.integers(1, 60_000))
    how = How(weight_bits=draw(st.sampled_from([4, 8, 16])), accept=draw(st.sampled_from([0, .9])),
              cache_bits=draw(st.sampled_from([6, 8, 16])), share=draw(share), sold=draw(share))
    f = Fleet(m, g, n, how)
    assume(f.room >= f.kv_bytes*context)
    return m, g, n, context, how


def test_the_published_day():
    "Every figure of the ledger's rows E03 and E07."
    day = service_day(226.75, 2, 342e9, 266e9, 168e9)
    assert day['cost_usd'] == pytest.approx(87_072)
    assert day['revenue_usd'] == pytest.approx(562_100, abs=1)
    assert abs(day['revenue_usd']/562_027 - 1) < 2e-4
    assert round(562_027/day['cost_usd'] - 1, 2) == 5.45
    assert round(day['paid_share_to_break_even'], 3) == .155
    assert round(day['cost_usd_per_year']/1e6, 1) == 31.8
    assert round(5.576e6/day['cost_usd']) == 64
    nodes = nodes_needed(608e9, 73.7e3), nodes_needed(168e9, 14.8e3)
    assert [round(n, 1) for n in (*nodes, sum(nodes))] == [95.5, 131.4, 226.9]
    assert round(usd_per_million(2, 8, 14.8e3), 2) == .30
    assert round(usd_per_million(2, 8, 73.7e3), 2) == .06


@SOME
@given(positive, positive, positive, positive, positive, st.floats(.1, 10))
def test_a_day_is_linear(nodes, usd, hit, miss, out, k):
    a = service_day(nodes, usd, hit, miss, out)
    assert min(a['cost_usd'], a['revenue_usd'], a['paid_share_to_break_even']) >= 0
    assert math.isclose(service_day(k*nodes, usd, hit, miss, out)['cost_usd'], k*a['cost_usd'])
    assert math.isclose(service_day(nodes, k*usd, hit, miss, out)['cost_usd'], k*a['cost_usd'])
    more = service_day(nodes, usd, k*hit, k*miss, k*out)
    assert math.isclose(more['revenue_usd'], k*a['revenue_usd'])
    # whoever sells exactly the break-even share makes neither profit nor loss
    sold = a['paid_share_to_break_even']
    even = service_day(nodes, usd, sold*hit, sold*miss, sold*out)
    assert math.isclose(even['profit_share'], 0, abs_tol=1e-9)


@SOME
@given(positive, st.floats(1, 1e4), positive, st.floats(.1, 10))
def test_a_million_tokens(usd, n, rate, k):
    a = usd_per_million(usd, n, rate)
    assert a > 0 and math.isclose(usd_per_million(k*usd, n, rate), k*a)
    assert math.isclose(usd_per_million(usd, n, k*rate), a/k)


@SOME
@given(layouts(), st.data())
def test_more_answers_never_cost_more(at, data):
    m, g, n, context, how = at
    full = serve_cost(m, g, n, context, how=how)
    B = sorted({data.draw(st.integers(1, full.batch_limit)) for _ in range(6)})
    rows = [serve_cost(m, g, n, context, b, how) for b in B]
    usd = [s.usd_per_million_output for s in rows] + [full.usd_per_million_output]
    assert all(a >= b*(1 - 1e-9) for a, b in zip(usd, usd[1:]))
    slow = [s.tokens_per_second_per_user for s in rows]
    assert all(a >= b*(1 - 1e-9) for a, b in zip(slow, slow[1:]))
    with pytest.raises(R1Error, match='lower the batch'):
        serve_cost(m, g, n, context, full.batch_limit + 1, how)


@SOME
@given(layouts(), st.floats(.1, 10))
def test_linear_in_price_and_never_negative(at, k):
    m, g, n, context, how = at
    usd = [serve_cost(m, g, n, context, how=replace(how, usd_per_gpu_hour=x)) for x in (1, k, 0)]
    for name in ('usd_per_million_output', 'usd_per_million_input'):
        a, b, free = (getattr(s, name) for s in usd)
        assert math.isclose(b, k*a) and a > 0 and free == 0
    for name, v in asdict(usd[0]).items():
        assert isinstance(v, str) or math.isfinite(v) and v > 0, name


@SOME
@given(layouts())
def test_what_helps_never_hurts(at):
    m, g, n, context, how = at
    cost = lambda g=g, context=context, **kw: serve_cost(
        m, g, n, context, how=replace(how, **kw)).usd_per_million_output
    base = cost()
    assert cost(cache_bits=max(how.cache_bits/2, 1)) <= base*(1 + 1e-9)
    assert cost(replace(g, bandwidth_bytes_per_second=2*g.bandwidth_bytes_per_second)) <= base
    assert cost(replace(g, memory_bytes=2*g.memory_bytes)) <= base*(1 + 1e-9)
    assert cost(share=how.share/2) == pytest.approx(2*base)
    assert cost(sold=how.sold/2) == pytest.approx(2*base)
    if context > 1: assert cost(context=context//2) <= base*(1 + 1e-9)


@SOME
@given(layouts(), st.floats(0, .99))
def test_hits_cut_reading_in_proportion(at, hits):
    m, g, n, context, how = at
    cold, warm = (serve_cost(m, g, n, context, how=replace(how, hits=h)) for h in (0, hits))
    assert math.isclose(warm.usd_per_million_input, (1 - hits)*cold.usd_per_million_input)
    assert warm.usd_per_million_output == cold.usd_per_million_output


@SOME
@given(st.integers(1, 512), st.integers(1, 512), st.integers(0, 4000))
def test_experts_read(E, k, B):
    assume(k <= E)
    n = experts_read(E, k, B)
    assert 0 <= n <= E and experts_read(E, k, 1) == pytest.approx(k)
    assert n <= k*B + 1e-9 and experts_read(E, k, B + 1) >= n
    # by inclusion and exclusion over one expert: the chance that nobody picks it
    assert n == pytest.approx(E*(1 - math.prod([1 - k/E]*B)))


def test_experts_read_by_drawing():
    import random
    rng, runs = random.Random(0), 400
    seen = sum(len({e for _ in range(12) for e in rng.sample(range(32), 4)}) for _ in range(runs))
    assert seen/runs == pytest.approx(experts_read(32, 4, 12), abs=.3)   # 400 runs: sd 0.1
    assert experts_read(0, 0, 5) == 0


@SOME
@given(st.tuples(*[positive]*8))
def test_the_slowest_clock_rules(x):
    t = step_time(*x)
    assert t['seconds'] == max(t['memory'], t['compute'], t['network']) > 0
    double = step_time(*(2*v for v in x[:4]), *x[4:])
    assert double['seconds'] == pytest.approx(2*t['seconds'])


@given(st.floats(0, 1), st.floats(0, 2))
def test_drafts(accept, overhead):
    assert mtp_speedup(accept, 0) <= 2 and mtp_speedup(1, 0) == 2
    assert mtp_speedup(accept, overhead) <= mtp_speedup(accept, 0)


@SOME
@given(layouts())
def test_drafts_gain_what_the_clocks_say(at):
    m, g, n, context, how = at
    plain = serve_cost(m, g, n, context, how=replace(how, accept=0))
    quick = serve_cost(m, g, n, context, how=replace(how, accept=.9))
    assert plain.draft_speedup == 1 and .9 <= quick.draft_speedup <= 1.9 + 1e-9
    gain = quick.tokens_per_second/plain.tokens_per_second
    assert gain == pytest.approx(quick.draft_speedup)


@SOME
@given(positive, positive, share, st.floats(.1, 10))
def test_per_solved(usd, tokens, right, k):
    a = per_solved(usd, tokens, right)
    assert a > 0 and math.isclose(per_solved(k*usd, tokens, right), k*a)
    assert math.isclose(per_solved(usd, k*tokens, right), k*a)
    assert per_solved(usd, tokens, right/2) == pytest.approx(2*a)
    assert per_solved(usd, tokens, right, 1, 100) > a


def test_layout():
    "144 GPUs hold 288 experts, 32 of them twice; one GPU holds each part once."
    f = Fleet(served('R1'), gpu('H800'), 144, How())
    assert f.slots == 288 and f.copies == 144
    one = Fleet(served('R1'), gpu('H200'), 1, How())
    assert one.weight_bytes == served('R1').total and one.wire(5, False) == 0
    dense = Fleet(served('Llama-3.1-405B'), gpu('H200'), 8, How())
    assert dense.weight_bytes == served('Llama-3.1-405B').total and dense.copies == 1
    assert dense.wire(1, False) == 2*7*126*2*16384*2


def test_a_hand_made_model():
    "All three clocks on paper: 1 GB of weights, 1 KB a token, 100 tokens each."
    m = Anatomy('paper', 1e9, 0, 0, 0, 0, 500, 1000, 1000, 0, 4096, 0, 8)
    g = replace(gpu('H200'), bandwidth_bytes_per_second=1e12, bf16_flops=1e14, fp8_flops=1e14)
    s = serve_cost(m, g, 1, 100, 10, How(usd_per_gpu_hour=3.6))
    assert s.step_seconds == pytest.approx((1e9 + 10*100*1000)/1e12) and s.bound == 'memory'
    assert s.usd_per_million_output == pytest.approx(1e3*s.step_seconds/10)
    s = serve_cost(m, g, 1, 100, 10_000, How(usd_per_gpu_hour=3.6))
    assert s.bound == 'compute'
    assert s.step_seconds == pytest.approx(2*10_000*(1e9 + 100*1000)/1e14)
    assert s.tokens_per_second_per_user == pytest.approx(1/s.step_seconds)


BAD = [(dict(n_gpus=0), 'n_gpus 0'), (dict(n_gpus=-8), 'n_gpus -8'), (dict(n_gpus=2.5), '2.5'),
       (dict(n_gpus='many'), 'many'), (dict(n_gpus=1e9), '1000000000'), (dict(n_gpus=True), 'True'),
       (dict(context=-1), 'context -1'), (dict(context=float('nan')), 'nan'),
       (dict(context='3 days'), '3 days'), (dict(context=10**30), 'context'),
       (dict(context=None), 'context is missing'), (dict(batch=0), 'batch 0'),
       (dict(batch='x'), "batch 'x'"), (dict(gpu_name='Z80'), 'Z80'), (dict(gpu_name=''), 'GPU'),
       (dict(model='R2'), 'R2'), (dict(model={}), 'hidden_size is missing'),
       (dict(model=dict(MODELS['R1'], hidden_size=-1)), 'hidden_size'),
       (dict(model='/no/such/config.json'), 'config.json'),
       (dict(model='Llama-3.1-405B', gpu_name='laptop', n_gpus=1), 'does not fit 1 laptop'),
       (dict(gpu_name='H800', n_gpus=8), 'take n_gpus=')]

@pytest.mark.parametrize('wrong,says', BAD)
def test_bad_inputs_get_one_line(wrong, says):
    with pytest.raises(R1Error, match=re.escape(says)) as e:
        serve_cost(**dict(dict(model='R1', gpu_name='H200'), **wrong))
    assert '\n' not in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize('wrong', [
    dict(weight_bits=0), dict(weight_bits=64), dict(share=0), dict(share=-.1), dict(share=2),
    dict(hits=1), dict(accept=1.1), dict(spare=1), dict(sold=0), dict(share='x'), dict(accept=None),
    dict(usd_per_gpu_hour=-2), dict(usd_per_gpu_hour='2 gpu_h'), dict(usd_per_gpu_hour=math.inf),
    dict(usd_per_gpu_hour='2 usd'), dict(usd_per_gpu_hour=1e9)])
def test_bad_settings_get_one_line(wrong):
    with pytest.raises(R1Error, match=next(iter(wrong))) as e: How(**wrong)
    assert '\n' not in str(e.value)


def test_advice_is_right():
    "The number of GPUs that the message names fits, one fewer step does not."
    for model, card in (('R1', 'H800'), ('Llama-3.1-405B', 'H100'), ('R1', 'A100-PCIe')):
        with pytest.raises(R1Error) as e: serve_cost(model, card, 1, 4096)
        n = int(re.search(r'n_gpus=(\d+)', str(e.value))[1])
        assert serve_cost(model, card, n, 4096).batch_limit >= 1
        with pytest.raises(R1Error): serve_cost(model, card, n - 1, 4096)


def test_units_are_read():
    a = serve_cost('R1', 'H200', '8 gpu', '4096 token', how=How(usd_per_gpu_hour='2 usd/gpu_h'))
    assert a == serve_cost('R1', 'H200', 8, 4096, how=How(usd_per_gpu_hour=2))
    assert [f.name for f in fields(Serving)] == list(asdict(a))


@SOME
@given(st.sampled_from(list(SERVE_IT.presets)), st.integers(1, 500), st.integers(200, 50_000))
def test_the_calculator_is_serve_cost(preset, per_gpu, context):
    at = SERVE_IT.presets[preset]
    n, g = at['gpus'], gpu(preset.split()[1])
    got = SERVE_IT.compute(**at, answers_per_gpu=per_gpu, context_tokens=context,
                           share_of_roofline=.5)
    if got['bound'] == 3: return
    full = serve_cost('R1', g, n, context, how=How(share=.5))
    want = serve_cost('R1', g, n, context, min(per_gpu*n, full.batch_limit), How(share=.5))
    assert got['usd_per_million'] == pytest.approx(want.usd_per_million_output, rel=1e-9)
    assert got['tokens_per_second'] == pytest.approx(want.tokens_per_second, rel=1e-9)
    assert ('memory', 'compute', 'network')[int(got['bound'])] == want.bound


def test_decode_does_not_touch_its_fleet():
    f = Fleet(served('R1'), gpu('H800'), 144, How(accept=.9))
    assert decode(f, 100, 1000) == decode(f, 100, 1000)
