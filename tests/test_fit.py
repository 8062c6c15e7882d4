"Splits and plans: ledgers add up, more never hurts, links decide, nonsense is refused in one line."
import itertools, math
from dataclasses import asdict, replace
import pytest
from hypothesis import given, settings as calm, strategies as st
from r1nb.anatomy import MODELS, anatomy
from r1nb.core import R1Error
from r1nb.fit import (KEPT, RECIPE, Links, Split, holds, nodes_reached, per_gpu, plan, plan_table,
                      settings, splits, step_seconds, visits)
from r1nb.hardware import gpu, gpus
from r1nb.memory import STATE
from r1nb.model import V3

C = settings('V3')

@pytest.fixture(autouse=True)
def nobody(monkeypatch): monkeypatch.delenv('R1NB_HARDWARE', raising=False)

@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_nodes_by_counting(nodes, each, data):
    E = nodes*each
    k = data.draw(st.integers(1, min(E, 5)))
    seen = [len({e//each for e in chosen}) for chosen in itertools.combinations(range(E), k)]
    assert nodes_reached(E, k, nodes) == pytest.approx(sum(seen)/len(seen))
    assert nodes_reached(E, k, nodes, nodes + 3) == nodes_reached(E, k, nodes)

def test_nodes_grow_with_the_limit():
    got = [nodes_reached(256, 8, 8, M) for M in range(1, 9)]
    assert got[0] == 1 and got == sorted(got) and all(g <= M for M, g in enumerate(got, 1))
    assert got[-1] == pytest.approx(5.295, abs=5e-4)

@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.booleans())
def test_parameters_of_all_gpus_are_those_of_the_model(pp, fp8):
    c = C | dict(num_hidden_layers=64, first_k_dense_replace=0)  # divides into stages
    a = anatomy(c)
    V = c['vocab_size']*c['hidden_size']
    own = per_gpu(c, Split(pp=pp), fp8)
    for part, b in STATE[RECIPE[fp8]].items():
        assert pp*own[part] == pytest.approx(
            b*(a.total - (pp > 1)*V + (pp - 1)*V), rel=1e-9)   # every stage as one with an end
    assert own == per_gpu(c, Split(pp=pp), fp8, 4096)

@calm(deadline=None)
@given(st.data())
def test_sharing_never_takes_more(data):
    s = data.draw(st.sampled_from(ALL))
    size = lambda s: sum(per_gpu(C, s).values())
    if s.zero < 3: assert size(replace(s, zero=s.zero + 1)) <= size(s)*(1 + 1e-9)
    if 2*s.ep <= s.dp*s.tp: assert size(replace(s, ep=2*s.ep)) <= size(s)*(1 + 1e-9)
    if s.recompute == 'none': assert size(replace(s, recompute='cheap parts')) < size(s)
    assert size(s) < sum(per_gpu(C, s, window=8192).values()) <= 2*size(s)

ALL = list(splits(C, 512, 15360, 8))

def test_splits_use_every_gpu_once():
    assert len(set(ALL)) == len(ALL) > 500
    assert all(s.dp*s.pp*s.tp == 512 and s.dp*s.tp % s.ep == 0 and s.ep <= 64 for s in ALL)

speeds = st.floats(1e9, 1e12)
@given(speeds, speeds, st.floats(1e12, 5e15), st.booleans(), st.sampled_from([1, 2, 4, 8]))
def test_visits(node, network, flop, fp8, nodes):
    link = Links(flop, node, network, fp8)
    M, way = visits(C, 4e9/flop, link, nodes)
    assert 1 <= M <= nodes and way > 0
    assert M == nodes or M >= min(math.ceil(8*network/node), nodes) or nodes == 1
    slower = visits(C, 8e9/flop, link, nodes)[0]
    assert slower >= M                       # more time to hide in, never a tighter limit

@calm(deadline=None, max_examples=40)
@given(st.sampled_from(ALL), speeds, speeds)
def test_faster_links_never_cost_time(s, node, network):
    seconds = lambda **kw: sum(step_seconds(C, s, Links(1e15, **({'node': node,
        'network': network, 'fp8': True} | kw)), 15360)[0].values())
    assert seconds(node=2*node) <= seconds()*(1 + 1e-9)
    own = step_seconds(C, s, Links(1e15, node, network, True), 15360)[0]
    assert all(x >= 0 for x in own.values()) and own['compute'] > 0

@pytest.mark.parametrize('name', [g.name for g in gpus() if g.name != 'laptop'])
def test_plans_fit_and_speak(name):
    p = plan(V3, name, 1024)
    assert p.bytes <= p.usable <= .9*gpu(name).memory_bytes and p.reasons
    assert p.bytes == pytest.approx(sum(per_gpu(settings(V3), p.split, p.link.fp8).values()))
    assert p.split.dp*p.split.pp*p.split.tp == 1024 and 1 <= p.nodes <= 8
    assert p.link.fp8 == (gpu(name).fp8_flops > gpu(name).bf16_flops)
    assert name in str(p.gpu) and str(plan_table({'it': p}))

def test_the_plan_changes_with_the_links():
    of = lambda g='H800', **kw: plan('V3', g, 2048, **kw)
    assert of().nodes == 4 and round(of().nodes*of().link.ratio) == 13
    assert of(network=25e9).nodes < 4 < of(network=100e9).nodes
    assert of(nvlink='450 GB/s').link.ratio == 9
    assert of('H200').split.tp > of('H200', nvlink='160 GB/s').split.tp
    slow, fast = (of('H800', nvlink=x).tokens_per_second for x in (32e9, 160e9))
    assert slow < fast/2

@pytest.mark.parametrize('model', sorted(MODELS))
def test_every_known_model_has_a_plan(model):
    assert plan(model, 'H200', 1024, batch=4096).bytes > 0

@given(st.integers(1, 64), st.sampled_from([4, 8, 16]), st.integers(0, 10**7))
def test_holds_is_monotone(n, bits, tokens):
    h, more = (holds('R1', 'H200', k, bits, tokens) for k in (n, n + 1))
    assert more['fits'] >= h['fits'] >= holds('R1', 'H200', n, bits, tokens + 10**6)['fits']
    assert h['weights'] == pytest.approx(holds('R1', 'H200', n, 1)['weights']*bits)

@pytest.mark.parametrize('args, kw', [
    (('V3', 'H800', 64), {}), (('V3', 'H800', 0), {}), (('V3', 'H800', 2.5), {}),
    (('V3', 'H800', True), {}), (('V3', 'H800', '8'), {}), (('V3', 'B2000', 8), {}),
    (('V4', 'H800', 8), {}), (({}, 'H800', 8), {}), ((dict(C, hidden_size=-1), 'H800', 8), {}),
    (('V3', 'H800', 2048), dict(network=0)), (('V3', 'H800', 2048), dict(nvlink='fast')),
    (('V3', 'H800', 2048), dict(network='50 GB')), (('V3', 'H800', 2048), dict(network=math.nan)),
    (('V3', 'H800', 2048), dict(reach=1.5)), (('V3', 'H800', 2048), dict(batch=0)),
    (('V3', 'H800', 2048), dict(window=-1)), (('V3', 'H800', 2048), dict(batch=1)),
    (('V3', 'laptop', 8), {}), ((None, 'H800', 8), {})])
def test_refused_in_one_line(args, kw):
    with pytest.raises(R1Error) as e: plan(*args, **kw)
    assert '\n' not in str(e.value) and len(str(e.value)) < 300

def test_what_would_do_does():
    with pytest.raises(R1Error, match='256 of them would do'): plan('V3', 'H800', 64)
    assert plan('V3', 'H800', 256).gpus == 256
    with pytest.raises(R1Error): plan('V3', 'H800', 128)
