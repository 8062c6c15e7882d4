"""The paged cache under random operations, every precision, hostile calls (lesson: room 23)."""
import subprocess, sys
from collections import Counter
from dataclasses import replace
import pytest, torch
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from r1nb.attention import LatentCache
from r1nb.core import R1Error
from r1nb.kv_bits import (BITS, PER, cached_numbers, decode, dequantise, encode, layout, pack,
                          quantise, unpack)
from r1nb.kv_cache import PagedCache, PagedRows, PageTable, append, generate, slots
from r1nb.model import R1Config, R1Model
from r1nb.sample import generate as generate_dense

torch.set_num_threads(1)
TINY = R1Config(vocab_size=40, hidden_size=24, intermediate_size=40, moe_intermediate_size=12,
    num_hidden_layers=2, num_attention_heads=3, kv_lora_rank=8, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=5, max_position_embeddings=256, n_routed_experts=6,
    num_experts_per_tok=2, initializer_range=.3)


class Machine(RuleBasedStateMachine):
    "A paged cache beside plain dense tensors."
    @initialize(precision=st.sampled_from(sorted(BITS)), pages=st.integers(1, 9))
    def start(self, precision, pages):
        self.cache = PagedCache(pages, 2, 24, 6, precision)
        self.dense, self.dead, self.g = {}, [], torch.Generator().manual_seed(0)

    def state(self):
        c = self.cache
        return (sorted(c.spare), list(c.holders), {s: list(p) for s, p in c.held.items()},
                dict(c.length), c.born)

    def refused(self, need, f):
        "Too little room: one clear error, and nothing has changed."
        before, have = self.state(), len(self.cache.spare)
        with pytest.raises(R1Error, match=f'{need} more pages needed, {have} of'): f()
        assert self.state() == before

    def fill(self, seqs, counts):
        "Write the newest tokens of some sequences, all at once, padded like a ragged batch."
        T = max(counts, default=0)
        if not T: return
        first = torch.tensor([self.cache.length[s] - n for s, n in zip(seqs, counts)])
        pos = first[:, None] + torch.arange(T)
        x = torch.randn(2, len(seqs), T, 30, generator=self.g)
        at = slots(*self.cache.tables(seqs), pos)
        for layer in range(2): self.cache.write(layer, at, x[layer])
        stored = decode(encode(x, 24, self.cache.precision), self.cache.precision)
        for i, (s, n) in enumerate(zip(seqs, counts)):
            self.dense[s] = torch.cat([self.dense[s], stored[:, i, :n]], 1)

    @rule(n=st.integers(0, 200))
    def allocate(self, n):
        need = -(-n//64)
        if need > len(self.cache.spare): return self.refused(need, lambda: self.cache.allocate(n))
        s = self.cache.allocate(n)
        self.dense[s] = torch.empty(2, 0, 30)
        self.fill([s], [n])

    @rule(data=st.data())
    def extend(self, data):
        if not self.dense: return
        c, some = self.cache, st.lists(st.sampled_from(sorted(self.dense)), unique=True)
        seqs = data.draw(some)
        n = [data.draw(st.integers(0, 130)) for _ in seqs]
        need = sum(-(-(c.length[s] + k)//64) - len(c.held[s]) for s, k in zip(seqs, n))
        if need > len(c.spare): return self.refused(need, lambda: c.extend(seqs, n))
        c.extend(seqs, n)
        self.fill(seqs, n)

    @rule(data=st.data(), n=st.integers(0, 3))
    def fork(self, data, n):
        if not self.dense: return
        s = data.draw(st.sampled_from(sorted(self.dense)))
        need = n*bool(self.cache.length[s] % 64)
        if need > len(self.cache.spare): return self.refused(need, lambda: self.cache.fork(s, n))
        for new in self.cache.fork(s, n): self.dense[new] = self.dense[s]

    @rule(data=st.data())
    def free(self, data):
        if not self.dense: return
        s = data.draw(st.sampled_from(sorted(self.dense)))
        self.cache.free(s)
        del self.dense[s]
        self.dead.append(s)
        for t in self.cache.store.values():     # what is free may hold anything
            for p in self.cache.spare: t[:, p].view(torch.uint8).fill_(0xff)

    @rule(data=st.data(), n=st.integers(0, 5))
    def unknown(self, data, n):
        before = self.state()
        s = data.draw(st.sampled_from(self.dead)) if self.dead else self.cache.born + n
        words = 'was freed before' if self.dead else 'never allocated'
        for f in (self.cache.free, self.cache.fork, lambda s: self.cache.extend([s], 1),
                  lambda s: self.cache.tables([s]), lambda s: self.cache.read(0, [s])):
            with pytest.raises(R1Error, match=words): f(s)
        assert self.state() == before

    @invariant()
    def no_page_leaks(self):
        if not hasattr(self, 'cache'): return
        c = self.cache
        used = Counter(p for pages in c.held.values() for p in pages)
        assert [used[p] for p in range(len(c.holders))] == c.holders
        assert sorted(c.spare) == [p for p, n in enumerate(c.holders) if not n]
        assert all(len(set(p)) == len(p) == -(-c.length[s]//64) for s, p in c.held.items())

    @invariant()
    def shared_pages_are_whole_prefixes(self):
        if not hasattr(self, 'cache'): return
        c = self.cache
        for s, pages in c.held.items():
            for i, p in enumerate(pages):
                if c.holders[p] == 1: continue
                assert (i + 1)*64 <= c.length[s]
                assert all(other[i] == p for other in c.held.values() if p in other)

    @invariant()
    def reads_what_was_written(self):
        if not getattr(self, 'dense', None): return
        seqs = sorted(self.dense)
        for layer in range(2):
            x = self.cache.read(layer, seqs)
            for row, s in zip(x, seqs):
                n = self.cache.length[s]
                assert torch.equal(row[:n], self.dense[s][layer]) and not row[n:].any()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize('bits', sorted(PER))
def test_pack_every_code(bits):
    codes = torch.arange(-2**(bits - 1), 2**(bits - 1)).to(torch.int8)
    codes = torch.cat([codes, codes.flip(0), codes[torch.randperm(len(codes))]]).repeat(8)
    data = pack(codes, bits)
    assert data.dtype == torch.uint8 and len(data) == len(codes)*bits//8
    assert torch.equal(unpack(data, bits), codes)
    assert torch.equal(unpack(data.view(2, 3, -1), bits), codes.view(2, 3, -1))


def test_packed_bits_lie_where_the_kernel_puts_them():
    codes = torch.tensor([1, -2, 3, -4], dtype=torch.int8)
    word = sum((c + 32) << 6*i for i, c in enumerate(codes.tolist()))
    assert pack(codes, 6).tolist() == list(word.to_bytes(3, 'little'))
    assert pack(codes, 4).tolist() == [(1 + 8) | (-2 + 8) << 4, (3 + 8) | (-4 + 8) << 4]


@pytest.mark.parametrize('d', [8, 24, 128, 136, 192, 512])
@pytest.mark.parametrize('precision', ['fp8', 'int8', 'int6', 'int4', 'int3'])
def test_quantise_is_within_half_a_step(precision, d):
    torch.manual_seed(0)
    x = torch.randn(7, d)*torch.logspace(-30, 30, 7)[:, None]
    codes, scale = quantise(x, precision)
    assert scale.shape == (7, -(-d//128)) and scale.dtype == torch.float32
    step = scale.repeat_interleave(min(128, d), -1)[:, :d]
    off = (dequantise(codes, scale) - x).abs()
    # half a step, and the reciprocal's own rounding; e4m3 keeps 4 significant bits instead
    limit = torch.maximum(x.abs()/16, step*2**-10) if precision == 'fp8' else step*.5001
    assert (off <= limit*1.0001).all()


@pytest.mark.parametrize('precision', sorted(set(BITS) - {'fp32', 'bf16'}))
def test_zeros_stay_zero_and_broken_numbers_stay_visible(precision):
    x = torch.zeros(4, 264)
    x[1, :128], x[2, 200], x[3, 3] = torch.randn(128), float('nan'), float('inf')
    y = decode(encode(x, 256, precision), precision)
    assert torch.equal(y[0], x[0]) and y[:2].isfinite().all() and not y[1, 128:].any()
    assert y[2, 128:256].isnan().all() and y[2, :128].isfinite().all()
    assert y[3, :128].isnan().all() and y[3, 128:].isfinite().all()


def test_bytes_of_every_precision():
    want = dict(fp32=2304, bf16=1152, fp8=656, int8=656, int6=528, int4=400, int3=336)
    for precision, n in want.items():
        cache = PagedCache(3, 2, precision=precision)
        assert cache.token_bytes == n and cache.nbytes == 3*2*64*n
    pool = PagedCache(5, 1, precision='fp8').pool(0)
    shapes = {k: (tuple(t.shape), t.dtype) for k, t in pool.items()}
    assert shapes == dict(latent=((5, 64, 512), torch.float8_e4m3fn),
                          scale=((5, 64, 4), torch.float32), rope=((5, 64, 64), torch.bfloat16))
    assert PagedCache(5, 1).pool(0)['all'].shape == (5, 64, 576)


@pytest.mark.parametrize('impl', ['ref', 'cuda', 'triton'])
@pytest.mark.filterwarnings('ignore:impl=')
def test_append_drops_negative_slots(impl):
    pool = PagedCache(2, 1, 24, 6, 'int6').pool(0)
    x = torch.randn(3, 30)
    append(pool, torch.tensor([-1, -1, -1]), x, 'int6', impl)
    assert not any(t.any() for t in pool.values())
    append(pool, torch.tensor([70, -1, 0]), x, 'int6', impl)
    y = decode({k: t.flatten(0, 1) for k, t in pool.items()}, 'int6')
    assert torch.equal(y[[70, 0]], decode(encode(x[[0, 2]], 24, 'int6'), 'int6'))
    assert pool['scale'].count_nonzero() == 2


@pytest.mark.parametrize('f, words', [
    (lambda: PagedCache(0, 1), 'both must be above 0'),
    (lambda: PagedCache(1, 1, precision='int5'), "'int5'.*int6"),
    (lambda: PagedCache(1, 1, latent=30, precision='int6'), 'packs 4'),
    (lambda: PageTable(4).allocate(-1), '-1'),
    (lambda: PageTable(4).allocate(257), '5 more pages needed, 4 of 4 are free'),
    (lambda: PageTable(4).free('x'), "'x' was never allocated"),
    (lambda: PageTable(4).free(None), 'never allocated'),
    (lambda: cached_numbers('XYZ'), 'XYZ'),
])
def test_refusals(f, words):
    with pytest.raises(R1Error, match=words) as e: f()
    assert '\n' not in str(e.value)


GIVEN = dict(slots=torch.tensor([0, 1, 2]), x=torch.randn(3, 30), precision='int8')
@pytest.mark.parametrize('change, words', [
    (dict(slots=torch.tensor([0, 1, 128])), 'slots .* of a pool of 2 pages of 64'),
    (dict(slots=torch.tensor([0, 1])), 'an int64 slot a token'),
    (dict(slots=torch.tensor([0, 1, 2]).int()), 'torch.int32'),
    (dict(x=torch.randn(3, 30, device='meta')), 'on meta .* all on cpu'),
    (dict(x=torch.randn(3, 31)), 'a pool made for that'),
    (dict(precision='fp8'), 'as fp8 .* a pool made for that'),       # as wide as int8
    (dict(precision='int4'), 'made for that'), (dict(precision='bf16'), 'made for that'),
    (dict(precision='int5'), "'int5': one of"), (dict(impl='fast'), "'fast' is none of")])
def test_append_refuses_and_leaves_the_pool_alone(change, words):
    pool = PagedCache(2, 1, 24, 6, 'int8').pool(0)
    with pytest.raises(R1Error, match=words) as e: append(pool, **GIVEN | change)
    assert '\n' not in str(e.value) and not any(t.any() for t in pool.values())
    append(pool, **GIVEN)
    assert all(t.any() for t in pool.values())


@pytest.mark.parametrize('kw, words', [
    (dict(layers=0), '0 layers'), (dict(latent=0), 'latent=0'), (dict(latent=-8), 'latent=-8'),
    (dict(rope=-1), 'rope=-1'), (dict(precision=8), 'precision=8'),
    (dict(latent=30, precision='int3'), 'packs 8')])
def test_caches_refused(kw, words):
    with pytest.raises(R1Error, match=words): PagedCache(**dict(pages=4, layers=1) | kw)


@pytest.mark.parametrize('precision, shape', [('bf16', (1, 8)), ('fp32', (1, 8)), ('int5', (1, 8)),
                                              ('int8', (3, 0)), ('fp8', (3, 0))])
def test_quantise_refuses(precision, shape):
    with pytest.raises(R1Error, match='codes are fp8'): quantise(torch.ones(shape), precision)


@pytest.mark.parametrize('precision', ['fp8', 'int8', 'int6', 'int4', 'int3'])
def test_no_tokens_and_no_rotary_key(precision):
    codes, scale = quantise(torch.empty(0, 136), precision)
    assert codes.shape == (0, 136) and scale.shape == (0, 2)
    cache = PagedCache(2, 1, 136, 0, precision)
    cache.write(0, torch.tensor([3, -1]), torch.ones(2, 136))
    s = cache.allocate(5)
    y = cache.read(0, [s])
    assert torch.allclose(y[0, 3], torch.ones(136), atol=.01) and not y[0, :3].any()
    assert cache.read(0, []).shape == (0, 0, 136)


def test_numbers_of_other_libraries_and_fractions():
    import numpy as np
    t = PageTable(4)
    a = t.allocate(np.int64(5))
    t.extend([a], np.int64(3)); t.extend([a], torch.tensor(2)); t.extend([a], (1,))
    assert t.length[a] == 11
    for f in (lambda: PageTable(2.5), lambda: t.allocate(1.5), lambda: t.extend([a], .5),
              lambda: t.extend([a], [-1])):
        with pytest.raises(R1Error): f()
    assert t.length[a] == 11 and len(t.spare) == 3


def test_forks_are_counted_from_zero():
    cache = PagedCache(4, 1, 8, 4)
    s = cache.allocate(70)
    assert cache.fork(s, 0) == []
    with pytest.raises(R1Error, match='-1 forks'): cache.fork(s, -1)
    with pytest.raises(R1Error, match='3 more pages needed, 2 of 4'): cache.fork(s, 3)
    a, b = cache.fork(s, 2)
    cache.free(s); cache.free(a)
    for f in (cache.free, cache.fork):
        with pytest.raises(R1Error, match=f'sequence {a} was freed before'): f(a)
    assert cache.length[b] == 70 and len(cache.spare) == 2
    cache.free(b)
    assert sorted(cache.spare) == [0, 1, 2, 3]


@pytest.mark.parametrize('prompts, kw, words', [
    ([], {}, 'at least one'), ([[]], {}, 'none of them empty'),
    ([[5], []], {}, 'none of them empty'),
    ([[5]], dict(max_new=0), 'max_new=0'), ([[5]], dict(temperature=-1.), 'temperature=-1.0'),
    ([[40]], {}, 'token id 40'), ([[5]*200], dict(max_new=100), 'exceed the context')])
def test_requests_refused(prompts, kw, words):
    torch.manual_seed(0)
    m = R1Model(TINY).eval()
    view = rows(m, 'bf16', 0)
    with pytest.raises(R1Error, match=words): generate(m, view.cache, prompts, **kw)
    assert len(view.cache.spare) == 40 and not view.cache.held


def test_extend_refuses_doubles_and_negatives():
    t = PageTable(4)
    a, b = t.allocate(1), t.allocate(1)
    for seqs, n in (([a, a], 1), ([a, b], [1]), ([a], -1), ([a, b], [1, -2])):
        with pytest.raises(R1Error, match='each sequence once'): t.extend(seqs, n)
    assert t.length == {a: 1, b: 1} and len(t.spare) == 2


@pytest.fixture(params=[{}, dict(n_routed_experts=None), dict(q_lora_rank=7)])
def model(request):
    torch.manual_seed(0)
    return R1Model(replace(TINY, **request.param)).eval()


def rows(model, precision, B, pages=40):
    c = model.config
    cache = PagedCache(pages, c.num_hidden_layers, c.kv_lora_rank, c.qk_rope_head_dim, precision)
    return PagedRows(cache, [cache.allocate() for _ in range(B)])


@torch.no_grad()
def test_the_model_reads_pages_like_a_dense_cache(model):
    ids = torch.randint(40, (3, 150), generator=torch.Generator().manual_seed(1))
    dense, paged = LatentCache(model.config, 2, 3, 150), rows(model, 'fp32', 3)
    for part in ids.split([70, 1, 1, 64, 14], 1):
        assert torch.equal(model(part, cache=dense), model(part, cache=paged))


@pytest.mark.parametrize('precision', sorted(BITS))
@torch.no_grad()
def test_one_pass_is_word_by_word(model, precision):
    "A token's latent depends on rounded latents only, however the tokens come."
    ids = torch.randint(40, (2, 67), generator=torch.Generator().manual_seed(1))
    at_once = model(ids, cache=rows(model, precision, 2))
    view = rows(model, precision, 2)
    steps = torch.cat([model(ids[:, i:i + 1], cache=view) for i in range(67)], 1)
    # a last bit may round to another code, so only the typical difference is bounded
    assert (steps - at_once).abs().median() < 1e-4*at_once.abs().max()


@pytest.mark.parametrize('temperature', [0., 1.])
def test_generate_is_the_dense_engine(model, temperature):
    prompts = [[5, 6, 7], [9], list(range(2, 39))*2, [5, 6, 7], [30, 31], [9]]
    view = rows(model, 'fp32', 0)
    want = generate_dense(model, prompts, 40, temperature, seed=3).ids
    assert generate(model, view.cache, prompts, 40, temperature, seed=3) == want
    assert sorted(view.cache.spare) == list(range(40)) and not view.cache.held


def test_generate_without_room_gives_everything_back(model):
    view = rows(model, 'bf16', 0, pages=3)
    with pytest.raises(R1Error, match='more pages needed'):
        generate(model, view.cache, [[5]*60, [6]*60], 100)
    assert len(view.cache.spare) == 3 and not view.cache.held


def test_forks_do_not_feel_each_other():
    cache = PagedCache(9, 1, 8, 4, 'fp32')
    view = PagedRows(cache, [cache.allocate()])
    view.write(0, torch.randn(1, 100, 12))
    past = cache.read(0, view.seqs)
    view.length = 100
    view.keep(torch.tensor([0, 0, 0]))
    assert sum(map(bool, cache.holders)) == 1 + 3
    y = view.write(0, torch.randn(3, 1, 12))
    assert torch.equal(y[:, :100], past.expand(3, -1, -1)) and not torch.equal(y[0, 100], y[1, 100])
    with pytest.raises(R1Error, match='position 3 of sequence 0 lies in a page that a fork reads'):
        view.write(0, torch.randn(3, 1, 12), pos=torch.full((3, 1), 3))
    for s in view.seqs[:2]: cache.free(s)
    last = PagedRows(cache, view.seqs[2:])
    last.write(0, torch.zeros(1, 1, 12), pos=torch.full((1, 1), 3))
    assert not cache.read(0, last.seqs)[0, 3].any()


def test_keep_without_room_changes_nothing():
    cache = PagedCache(2, 1, 8, 4, 'fp32')
    view = PagedRows(cache, [cache.allocate(10), cache.allocate(10)])
    with pytest.raises(R1Error, match='1 more pages needed, 0 of 2'):
        view.keep(torch.tensor([0, 0]))
    assert view.seqs == [0, 1] and set(cache.held) == {0, 1}


def test_import_stays_light():
    code = "import sys, r1nb.kv_cache; print([m for m in ('triton',) if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'
