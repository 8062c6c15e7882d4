"""Counting and timing: identities over random sizes, and a stopwatch that must not flatter."""
import json, math, time
import pytest
import torch
from hypothesis import given, strategies as st
from r1nb.core import R1Error
from r1nb.roofline import (Cost, Point, WIDTH, bench, ceilings, error, fresh, grouped_matmul,
                           matmul, mla_decode, plot, poison, poisoned, predict, quantise, record,
                           stream, table)

TOP = dict(copy=4e12, read=4.2e12, fp32=6e13, bf16=8e14, fp8=1.4e15, launch=1e-6)
sizes = st.integers(1, 10_000)

@given(sizes, sizes, sizes, st.sampled_from(list(WIDTH)))
def test_a_product_costs_at_least_its_operands(M, N, K, kind):
    c, b = matmul(M, N, K, kind), WIDTH[kind]
    assert c.flops == 2*M*N*K
    assert c.bytes >= b*(M*K + N*K) + b*M*N
    assert c.bytes - b*(M*K + N*K) - max(b, 2)*M*N == (
        4*math.ceil(K/128)*(M + math.ceil(N/128)) if kind == 'fp8' else 0)
    assert matmul(M, N, K, kind, out=4).bytes - c.bytes == (4 - max(b, 2))*M*N

@given(st.lists(st.integers(0, 300), max_size=20), sizes, sizes)
def test_groups_add_up_and_empty_ones_are_free(rows, N, K):
    c = grouped_matmul(rows, N, K)
    assert c.flops == 2*sum(rows)*N*K
    assert c == grouped_matmul([m for m in rows if m], N, K)
    assert c.bytes == sum(matmul(m, N, K, 'fp8').bytes for m in rows if m)

@given(st.floats(0, 1e18), st.floats(1, 1e15), st.sampled_from(list(WIDTH)))
def test_a_prediction_is_a_floor_of_every_resource(flops, bytes, kind):
    t = predict(Cost(flops, bytes, kind), TOP)
    assert t >= bytes/TOP['copy'] and t >= flops/TOP[kind]*(1 - 1e-12) and t >= TOP['launch']
    assert t in (bytes/TOP['copy'], flops/TOP[kind], TOP['launch'])

def test_decode_is_counted_once_for_all_heads():
    few, many = mla_decode([8192]*4, 16), mla_decode([8192]*4, 128)
    assert many.flops == 8*few.flops
    assert many.bytes - few.bytes == 2*4*(128 - 16)*(2*512 + 64)
    assert mla_decode([7], 1, token=656).bytes == 7*656 + 2*(2*512 + 64)
    assert quantise(8, 130).bytes == 8*130*3 + 8*2*4 and stream(10, 1, 2).bytes == 30

def test_mistakes_are_named():
    with pytest.raises(R1Error, match='no ceiling for bf16'):
        predict(matmul(2, 2, 2), dict(copy=1.))
    with pytest.raises(R1Error, match='one kind'): matmul(1, 1, 1) + matmul(1, 1, 1, 'fp32')

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float8_e4m3fn,
                                   torch.float8_e5m2, torch.int32, torch.uint8, torch.int64])
def test_poison_is_never_an_answer(dtype):
    t = poison(torch.zeros(5, 3).to(dtype))
    if dtype.is_floating_point: assert t.float().isnan().all()
    else: assert (t == torch.iinfo(dtype).max).all()

def test_error_sees_scale_and_nan():
    x = torch.randn(50, 50)
    assert error(x, x) == 0 and abs(error(1.01*x, x) - .01) < 1e-6
    assert error(x*math.nan, x) == math.inf and error(torch.zeros(3), torch.zeros(3)) == 0

def test_inputs_rotate_and_every_one_is_used():
    sets, seen = fresh(lambda: (torch.zeros(1000),), least=30_000, most=5), []
    assert len(sets) == 5
    bench(lambda x: seen.append(id(x)), sets, burst=1e-4, rounds=3)
    n = [seen.count(id(x)) for x, in sets]
    assert min(n[2:]) > 0 and max(n[2:]) == min(n[2:])

def test_bench_measures_a_known_time():
    pause = lambda x: time.sleep(.002)
    assert .0019 < bench(pause, [(torch.zeros(1),)], burst=.01, rounds=3) < .02

def test_reports(tmp_path):
    import matplotlib; matplotlib.use('agg')
    points = [Point('a', matmul(64, 64, 64), 3e-6), Point('b', quantise(4096, 7168), 3e-5)]
    assert len(table(points, TOP).splitlines()) == 3 and plot(points, TOP) is not None
    kept = json.loads(record(tmp_path/'x.json', rows=[1, 2]).read_text())
    assert kept['rows'] == [1, 2] and {'date', 'hardware', 'torch'} <= kept.keys()


@pytest.mark.parametrize('f, words', [
    (lambda: matmul(1, 2, 3, 'fp16'), "of 'fp16'"), (lambda: matmul(-1, 2, 3), '-1 x 2 x 3'),
    (lambda: grouped_matmul([4, -4], 2, 3), '-4 x 2 x 3'),
    (lambda: error(torch.zeros(3, 1), torch.zeros(3, 4)), r'\(3, 1\) is compared with \(3, 4\)'),
    (lambda: error(torch.zeros(()), torch.zeros(3)), 'repeated to fit')])
def test_refusals(f, words):
    with pytest.raises(R1Error, match=words) as e: f()
    assert '\n' not in str(e.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_ceilings_of_a_gpu_that_is_not_there():
    with pytest.raises(R1Error, match="device='cuda': no NVIDIA GPU here"): ceilings('cuda')


def test_nothing_moved_and_nothing_done():
    assert Cost(0, 0).intensity == 0 and Cost(2, 0).intensity == math.inf
    assert grouped_matmul([], 4, 4).intensity == grouped_matmul([0, 0], 4, 4).intensity == 0
    assert len(fresh(lambda: (torch.empty(0),), most=3)) == 3


def test_poisoned_ends_with_an_error_too():
    empty = torch.empty
    with pytest.raises(KeyError), poisoned():
        assert torch.empty(3).isnan().all() and torch.empty(2, dtype=torch.bfloat16).isnan().all()
        raise KeyError
    assert torch.empty is empty
