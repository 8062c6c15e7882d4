"What would bore a reader of room 29: every size, every time, every list complete and in order."
import pytest
from hypothesis import given, settings, strategies as st
from r1nb.bubbles import bubble, dualpipe, held, idle, needs, one_f_one_b, simulate, zb1p
from r1nb.core import R1Error

ORDERS = {'1F1B': one_f_one_b, 'ZB1P': zb1p, 'DualPipe': dualpipe}
whole = st.integers(1, 9)

def play(name, stages, chunks, F, b, W, FB=None):
    return simulate(ORDERS[name](stages, chunks), F, b + W, W, FB)

@given(st.integers(1, 12), st.integers(1, 30), whole, whole, whole)
def test_1f1b(stages, chunks, F, b, W):
    work = play('1F1B', stages, chunks, F, b, W)
    assert set(idle(work)) == {bubble('1F1B', stages, F, b + W, W)}
    assert held(work) == [min(stages - s, chunks) for s in range(stages)]

@given(st.integers(1, 12), st.integers(0, 20), whole, whole, whole)
def test_zb1p(stages, more, F, b, W):
    W = min(F, b, W)
    work = play('ZB1P', stages, stages + more, F, b, W)
    assert max(idle(work)) == bubble('ZB1P', stages, F, b + W, W)
    assert max(held(work)) <= stages

@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 10), whole, whole, st.data())
def test_dualpipe(half, more, F, W, data):
    W = min(F, W)
    FB = data.draw(st.integers(F + W, 2*F + W))
    work = play('DualPipe', 2*half, 4*half + 2*more, F, F, W, FB)
    assert max(idle(work)) == bubble('DualPipe', 2*half, F, F + W, W, FB)
    assert max(held(work)) <= 2*half + 1

@settings(deadline=None)
@given(st.sampled_from(sorted(ORDERS)), st.integers(1, 4), st.integers(0, 6), whole, whole, whole)
def test_complete_and_in_order(name, half, more, F, b, W):
    stages, chunks = 2*half, 4*half + 2*more
    work = play(name, stages, chunks, F, b, W)
    done = {}
    for w in work:
        for kind, d, i in w.parts:
            assert (kind.upper(), d, i, w.gpu) not in done
            done[kind.upper(), d, i, w.gpu] = w.end
    for w in work:
        assert all(done[n] <= w.start for p in w.parts if (n := needs(w.gpu, p, stages)))
    for g in range(stages):
        mine = sorted((w.start, w.end) for w in work if w.gpu == g)
        assert all(a[1] <= b[0] for a, b in zip(mine, mine[1:]))
        assert sum(e - s for s, e in mine) == chunks*(F + b + W)
        for kind in 'FB': assert sum(k[0] == kind and k[3] == g for k in done) == chunks

def test_published_units():
    assert [bubble(s, 16) for s in ORDERS] == [45, 15, 14]

@pytest.mark.parametrize('call', [lambda: bubble('GPipe', 4), lambda: dualpipe(3, 8),
    lambda: dualpipe(4, 9), lambda: dualpipe(4, 6), lambda: dualpipe(0, 0),
    lambda: simulate(one_f_one_b(2, 2), F=0), lambda: simulate(zb1p(2, 2), B=1, W=2),
    lambda: simulate([[('F', 0, 0)], []]) and simulate([[('W', 0, 0)]])])
def test_refused(call):
    with pytest.raises(R1Error) as e: call()
    assert '\n' not in str(e.value)
