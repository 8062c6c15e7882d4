"What would bore a reader of room 17: random texts, tenants, eviction, odd blocks."
import random
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
import r1nb
from r1nb.core import R1Error
from r1nb.model import R1Model
from r1nb.prefix import PrefixCache, chat_hit_rate, hit_rate, read_prompt

SOME = settings(max_examples=100, deadline=None)
texts = st.lists(st.integers(0, 2), min_size=1, max_size=24)

@pytest.fixture(scope='module')
def model(): return R1Model.from_pretrained(Path(r1nb.__file__).parent/'assets'/'nano').eval()


def latents(ids): return torch.tensor([[[float(i)] for i in ids]])


@SOME
@given(st.lists(texts, max_size=6), texts, st.integers(1, 5))
def test_finds_the_longest_known_beginning_and_only_that(known, ask, block):
    store = PrefixCache(block)
    for t in known: store.keep('ann', t, latents(t))
    found = store.find('ann', ask)
    common = lambda t: next((i for i, (a, b) in enumerate(zip(t, ask)) if a != b),
                            min(len(t), len(ask)))
    best = max([min(common(t), len(ask) - 1)//block for t in known], default=0)
    assert len(found) == best
    got = torch.cat(found, 1)[0, :, 0].tolist() if found else []
    assert got == [float(i) for i in ask[:best*block]]
    assert store.find('bob', ask) == [] and PrefixCache(block).find('ann', ask) == []


@SOME
@given(st.text(min_size=1), st.text(min_size=1), texts, texts)
def test_no_two_tenants_share_a_key(a, b, s, t):
    store = PrefixCache(1)
    x, y = store.keys(a, s), store.keys(b, t)
    if a != b: assert not set(x) & set(y)
    assert len(set(x)) == len(x)
    assert not set(store.keys(a, s)) & set(PrefixCache(1).keys(a, s)), 'another secret, other keys'
    assert PrefixCache(1, secret=b'k').keys(a, s) == PrefixCache(1, secret=b'k').keys(a, s)


def test_token_boundaries_matter():
    store = PrefixCache(2)
    assert store.keys('a', [1, 23]) != store.keys('a', [12, 3])
    assert store.keys('a', [1, 2, 3]) == store.keys('a', [1, 2])


@SOME
@given(st.lists(texts, min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 12))
def test_room_is_kept_and_no_block_is_stranded(known, block, room):
    store = PrefixCache(block, room)
    for t in known:
        store.keep('ann', t, latents(t))
        assert len(store.data) <= room
        for u in known:   # a block in the store whose parents are gone would be dead weight
            held = [k in store.data for k in store.keys('ann', u)]
            assert held == sorted(held, reverse=True)


def test_what_is_kept_is_a_copy():
    store, x = PrefixCache(1), latents([1, 2])
    store.keep('ann', [1, 2], x)
    x.zero_()
    assert store.find('ann', [1, 2])[0].item() == 1


@pytest.mark.parametrize('block', [1, 7, 16, 64])
def test_logits_with_and_without(model, block):
    rng = random.Random(block)
    store, base = PrefixCache(block), [rng.randrange(8, 256) for _ in range(300)]
    for cut in (300, 150, 299, 64, 1):
        ids = base[:cut] + [rng.randrange(8, 256) for _ in range(rng.randrange(0, 40))]
        cold, cache, zero = read_prompt(model, ids)
        warm, again, n = read_prompt(model, ids, store, 'ann')
        assert zero == 0 and n < len(ids) and n % block == 0
        assert torch.allclose(cold, warm, atol=2e-5)     # fp32 sums in another order, logits of 10
        assert torch.allclose(cache.data, again.data, atol=2e-5)
    same = read_prompt(model, base, store, 'bob')
    assert same[2] == 0, "bob must not find ann's blocks"
    assert torch.equal(same[0], read_prompt(model, base)[0])
    assert read_prompt(model, base, store, 'bob')[2] == 299//block*block


def test_the_answer_goes_on_from_it(model):
    "The cache that is returned can be decoded from: one more token, as if read at once."
    ids = list(range(8, 108))
    store = PrefixCache(16)
    for _ in range(2): _, cache, n = read_prompt(model, ids, store, 'ann', room=4)
    with torch.inference_mode():
        one = model(torch.tensor([[9]]), cache=cache)[:, -1]
        whole = model(torch.tensor([ids + [9]]))[:, -1]
    assert n == 96 and torch.allclose(one, whole, atol=2e-5)


def test_bad_inputs():
    for kw in (dict(block=0), dict(block=1.5), dict(block=-1), dict(room=0), dict(block='x')):
        with pytest.raises(R1Error, match='whole number'): PrefixCache(**kw)
    for tenant in ('', None, 3):
        with pytest.raises(R1Error, match='tenant'): PrefixCache().find(tenant, [1])
    with pytest.raises(R1Error, match='empty'): read_prompt(None, [])


@SOME
@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_hit_rate(a, b):
    r = hit_rate(a, b)
    assert 0 <= r <= 1 and hit_rate(0, b) == 0
    if a + b > 0: assert r == pytest.approx(a/(a + b))


@SOME
@given(st.integers(1, 30), st.integers(0, 999), st.integers(1, 999), st.integers(0, 999))
def test_chats(n, s, u, a):
    sent = sum(s + i*u + (i - 1)*a for i in range(1, n + 1))
    assert chat_hit_rate(n, s, u, a) == pytest.approx(1 - (s + n*u + (n - 1)*a)/sent, abs=1e-9)
    assert chat_hit_rate(n + 1, s, u, a) >= chat_hit_rate(n, s, u, a) - 1e-12 or n == 1
