"""Room 24: the reference of MLA decode against naive attention, plans of every kind, refusals."""
import random
import pytest, torch
from r1nb.core import R1Error
from r1nb.mla_decode import attend, decode, merge, plan
from r1nb.kv_bits import quantise

SCALE = 192**-.5


def paged(lengths, H=4, seed=0):
    "Random requests in pages of random order; every place that must not be read holds NaN."
    g = torch.Generator().manual_seed(seed)
    pages = [-(-n//64) for n in lengths]
    cache = torch.randn(sum(pages)+1, 64, 576, generator=g).bfloat16()
    order = (torch.randperm(sum(pages), generator=g) + 1).int()
    table, at, flat = torch.zeros(len(lengths), max(1, *pages)+1, dtype=torch.int32), 0, []
    cache[0] = torch.nan
    for b, (n, p) in enumerate(zip(lengths, pages)):
        table[b, :p] = order[at:at+p]; at += p
        flat.append(cache[table[b, :p].long()].flatten(0, 1)[:n].double())
        if n % 64: cache[table[b, p-1].long(), n % 64:] = torch.nan
    q = torch.randn(len(lengths), H, 576, generator=g).bfloat16()
    return q, cache, table, torch.tensor(lengths, dtype=torch.int32), flat


def naive(q, k):
    "Float64 attention of one request, values being the latent columns."
    s = q.double() @ k.T*SCALE
    return s.softmax(-1) @ k[:, :512], s.logsumexp(-1)


@pytest.mark.parametrize('lengths', [[1], [63], [64], [65], [129], [1000], [5, 0, 64, 300, 1]])
@pytest.mark.parametrize('H', [1, 5, 16])
def test_reference_over_odd_lengths(lengths, H):
    q, cache, table, n, flat = paged(lengths, H)
    out, lse = decode(q, cache, table, n, SCALE)
    for b, k in enumerate(flat):
        if not lengths[b]:
            assert (out[b] == 0).all() and (lse[b] == -torch.inf).all(); continue
        want, want_lse = naive(q[b], k)
        assert (out[b].double() - want).norm() < 3e-3*want.norm()    # bf16: 8 significant bits
        torch.testing.assert_close(lse[b].double(), want_lse, rtol=0, atol=1e-4)


def test_reference_over_an_fp8_cache():
    q, cache, table, n, flat = paged([70, 129, 1], 3)
    latent, scale = quantise(cache[..., :512].float().nan_to_num(0), 'fp8')
    stored = latent, scale, cache[..., 512:].contiguous()
    out, _ = decode(q, stored, table, n, SCALE)
    for b, k in enumerate(flat):
        codes, s = quantise(k[:, :512].float(), 'fp8')
        k = torch.cat([codes.double()*s.double().repeat_interleave(128, -1), k[:, 512:]], -1)
        want, _ = naive(q[b], k)
        assert (out[b].double() - want).norm() < 3e-3*want.norm()


def test_pieces_merge_to_the_whole():
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(4, 576, generator=g), torch.randn(333, 576, generator=g)
    whole, lse = attend(q, k, SCALE)
    for cuts in ([333], [1, 332], [100, 33, 200], [1]*7 + [326]):
        parts = [attend(q, x, SCALE) for x in k.split(cuts)]
        out, total = merge(torch.stack([y for y, _ in parts]), torch.stack([l for _, l in parts]))
        torch.testing.assert_close(out, whole, rtol=0, atol=2e-6)       # fp32, a few hundred terms
        torch.testing.assert_close(total, lse, rtol=0, atol=2e-6)


@pytest.mark.parametrize('seed', range(20))
def test_a_plan_covers_every_token_once(seed):
    r = random.Random(seed)
    for _ in range(15):
        B, workers = r.choice([1, 2, 3, 32, 128]), r.choice([1, 3, 66, 132])
        unit = r.choice([64, 128])
        lengths = [r.choice([0, 1, 64, 65, 129, r.randint(1, 9000)]) for _ in range(B)]
        p, have = plan(lengths, workers, unit), {}
        assert len(p.first) - 1 == (B if p.whole else workers)
        assert len(p.segments) == len(p.first) - 1 + B
        for b, first, end, slot in p.segments[:p.first[-1]].tolist():
            assert first % unit == 0 and first < end
            have.setdefault(b, []).append((first, end, slot))
        for b, n in enumerate(lengths):
            mine, k = have.get(b, []), int(p.splits[b+1] - p.splits[b])
            assert [f for f, *_ in mine] + [n] == [0] + [e for _, e, _ in mine]
            slots = list(range(p.splits[b], p.splits[b+1])) if k else [-1]*len(mine)
            assert [s for *_, s in mine] == slots
            assert k != 1 and (k or len(mine) <= 1)
        assert p.splits[-1] <= 2*workers


def test_nothing_is_cut_where_that_balances():
    assert plan([4096]*128, 132, 64, 3).whole and not plan([4096]*128, 132, 64, 3).splits.any()
    assert not plan([4096]*32, 132, 64, 3).whole
    assert not plan([4096]*127 + [0], 132, 64, 3).whole       # somebody must write the zeros
    assert not plan([100_000] + [200]*31, 132, 64, 3).whole
    assert not plan([4096]*133, 132, 64, 3).whole
    assert not plan([], 132, 64, 3).whole


def test_a_plan_is_balanced():
    lengths = [100_000] + [200]*40
    p = plan(lengths, 66)
    rows = [p.segments[p.first[w]:p.first[w+1]].tolist() for w in range(66)]
    busy = [sum(end - first for _, first, end, _ in row) for row in rows]
    assert max(busy) < 1.35*sum(lengths)/66


@pytest.mark.parametrize('change', [
    dict(cache=torch.zeros(3, 64, 576)), dict(cache=torch.zeros(3, 32, 576).bfloat16()),
    dict(cache=(torch.zeros(3, 64, 512),)*3), dict(q=torch.zeros(1, 4, 512).bfloat16()),
    dict(q=torch.zeros(1, 4, 576)), dict(page_table=torch.zeros(1, 4)),
    dict(lengths=torch.zeros(2, dtype=torch.int32)),
    dict(cache=torch.zeros(6, 64, 576).bfloat16()[::2]),
    dict(scale=0.), dict(scale=float('nan')),
    dict(lengths=torch.tensor([400], dtype=torch.int32)),
    dict(impl='metal')])
def test_refusals_are_one_line(change):
    q, cache, table, n, _ = paged([65])
    x = dict(q=q, cache=cache, page_table=table, lengths=n, scale=SCALE) | change
    with pytest.raises(R1Error) as e: decode(**x)
    assert '\n' not in str(e.value)


def test_pieces_without_tokens_have_no_say():
    outs, lses = torch.randn(3, 2, 4), torch.randn(3, 2)
    want = merge(outs[:2], lses[:2])
    outs[2], lses[2] = torch.nan, -torch.inf
    assert all(torch.equal(a, b) for a, b in zip(merge(outs, lses), want))
    y, lse = merge(torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -torch.inf))
    assert not y.any() and (lse == -torch.inf).all()
    assert merge(outs[:2].fill_(torch.nan), lses[:2])[0].isnan().all()     # a real NaN stays


@pytest.mark.parametrize('table, words', [([[9, 1]], 'pages 1 to 9 of a cache of 4'),
                                          ([[0, -1]], 'pages -1 to 0')])
def test_pages_that_are_not_there(table, words):
    q, cache = torch.randn(1, 4, 576).bfloat16(), torch.randn(4, 64, 576).bfloat16()
    table, n = torch.tensor(table, dtype=torch.int32), torch.tensor([65], dtype=torch.int32)
    with pytest.raises(R1Error, match=words): decode(q, cache, table, n, SCALE)
    table[0] = torch.tensor([1, -7])               # the second page is not needed any more
    assert decode(q, cache, table, n - 1, SCALE)[0].isfinite().all()
    with pytest.raises(R1Error, match='tensors on cpu and meta'):
        decode(q, cache, table, n.to('meta'), SCALE)


@pytest.mark.parametrize('lengths', [[0], [64], [63, 65, 128, 127, 129, 1], [0, 0, 1]])
def test_page_borders(lengths):
    q, cache, table, n, flat = paged(lengths)
    out, lse = decode(q, cache, table, n, SCALE)
    for b, k in enumerate(flat):
        if not len(k):
            assert not out[b].any() and (lse[b] == -torch.inf).all()
            continue
        s = q[b].double() @ k.t()*SCALE
        assert (lse[b] - s.logsumexp(1)).abs().max() < 1e-4
        want = s.softmax(1) @ k[:, :512]
        assert ((out[b] - want).norm()/want.norm()) < 3e-3          # bf16 output
