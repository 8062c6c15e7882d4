"What would bore a reader of room 42: odd shapes, half precision, hostile padding, splits."
import pytest, torch
from torch.testing import assert_close
from r1nb.core import R1Error
from r1nb.grpo import (TokenLogprobs, batch_totals, clipped_gain, group_advantage, grpo_loss, k3,
                       token_logprobs)

TYPES = ['grpo', 'dr_grpo', 'dapo', 'bnpo']


def batch(seed, N, T, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=dtype)
    mask = torch.arange(T) < torch.randint(0, T + 1, (N, 1), generator=g)
    lp = r(N, T) - 3
    return dict(lp=lp, old_lp=lp + .5 * r(N, T), ref_lp=lp + .3 * r(N, T), adv=r(N), mask=mask)


def run(b, rows=slice(None), **kw):
    lp = b['lp'].clone().requires_grad_()
    part = {k: v[rows] for k, v in b.items() if k != 'lp'}
    loss, stats = grpo_loss(lp[rows], **part, max_tokens=20, **kw)
    loss.backward()
    return loss.detach(), lp.grad, stats


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize('seed', range(8))
def test_a_split_batch_sums_to_the_whole(kind, seed):
    N = 2 + seed * 3
    b = batch(seed, N, 1 + 2 * seed)
    kw = dict(loss_type=kind, eps_high=.28, beta=.1, delta=3., **batch_totals(b['mask']))
    whole, grad, _ = run(b, **kw)
    cuts = [0, *sorted(torch.randperm(N - 1)[:3].add(1).tolist()), N]
    parts = [run(b, slice(i, j), **kw) for i, j in zip(cuts, cuts[1:])]
    assert_close(sum(p[0] for p in parts), whole, rtol=0, atol=1e-12)  # float64 sums
    assert_close(sum(p[1] for p in parts), grad, rtol=0, atol=1e-12)
    del kw['num_items'], kw['num_rows']
    alone, agrad, _ = run(b, **kw)  # no totals: this batch is the whole
    assert_close(alone, whole), assert_close(agrad, grad)


def test_gradients_by_finite_differences():
    b = batch(1, 3, 4)
    f = lambda x, kind: grpo_loss(x, b['old_lp'], b['adv'], b['mask'], kind, beta=.2,
                                  ref_lp=b['ref_lp'], max_tokens=9, kl_ratio=True)[0]
    for kind in TYPES:
        assert torch.autograd.gradcheck(lambda x: f(x, kind), b['lp'].clone().requires_grad_())
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (7,))
    for rows in (1, 3, 100):
        assert torch.autograd.gradcheck(lambda x: TokenLogprobs.apply(x, ids, rows), logits)


@pytest.mark.parametrize('shape', [(1, 1, 2), (2, 3, 7), (4, 1, 1000), (0, 5, 8), (3, 2, 200_000)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_token_logprobs_equal_log_softmax(shape, dtype):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(*shape, generator=g) * 5).to(dtype).requires_grad_()
    ids = torch.randint(shape[-1], shape[:2], generator=g)
    wide = x if dtype == torch.float64 else x.float()
    want = wide.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    got = token_logprobs(x, ids)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got, want.to(got.dtype), rtol=1e-5, atol=1e-5)  # float32 sums of 2e5 terms
    v = torch.randn(shape[:2], generator=g).to(got.dtype)
    a, b = (torch.autograd.grad((f * v).sum(), x)[0].float() for f in (got, want))
    tol = 2**-8 if dtype == torch.bfloat16 else 1e-5  # bf16 gradients: 8 significant bits
    assert_close(a, b, rtol=2 * tol, atol=tol * .1)


def test_extreme_logits():
    x = torch.tensor([[[1e4, -1e4, 0.], [float('-inf'), 0., 0.]]], requires_grad=True)
    lp = token_logprobs(x, torch.tensor([[0, 1]]))
    assert_close(lp, torch.tensor([[0., -2. ** -.5 * 0 - .6931472]]))
    lp.sum().backward()
    assert x.grad.isfinite().all()


def test_padding_may_hold_anything():
    b = batch(3, 6, 9)
    want = run(b, beta=.1)
    for junk in (float('nan'), float('-inf'), 1e30):
        dirty = dict(b)
        for k in ('old_lp', 'ref_lp'): dirty[k] = b[k].masked_fill(~b['mask'], junk)
        loss, grad, stats = run(dirty, beta=.1)
        assert_close(loss, want[0]), assert_close(grad, want[1])
        assert stats == want[2]


@pytest.mark.parametrize('kind', TYPES)
def test_no_tokens_no_loss(kind):
    b = batch(0, 4, 5)
    b['mask'] = torch.zeros(4, 5, dtype=torch.bool)
    loss, grad, stats = run(b, loss_type=kind, beta=.1)
    assert loss == 0 and not grad.any() and stats['tokens'] == 0


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
@pytest.mark.parametrize('G', [2, 3, 7, 16, 64])
@pytest.mark.parametrize('r', [0., .1, 1.1, 1 / 3, 1e6])
def test_equal_rewards_give_exactly_nothing(scale, G, r):
    adv = group_advantage(torch.full((5, G), r), scale)
    assert adv.dtype == torch.float32 and not adv.any()


def test_one_answer_a_group_and_whole_rewards():
    assert not group_advantage(torch.tensor([[1.], [0.]])).any()
    assert not group_advantage(torch.tensor([[1.], [0.]]), 'batch').any()
    assert not group_advantage(torch.tensor([[1.]]), 'batch').any()
    assert_close(group_advantage(torch.tensor([[1, 0]]), 'none'), torch.tensor([[.5, -.5]]))


def test_delta_only_acts_above_the_clip():
    rho, a = torch.tensor([1., 3., 5., 50.]), torch.tensor(-1.)
    assert_close(clipped_gain(rho, a, .2, .2, 4.), torch.tensor([-1., -3., -4., -4.]))
    assert_close(clipped_gain(rho, a, 10, 10, 4.), torch.tensor([-1., -3., -5., -11.]))


def test_k3_is_never_negative():
    g = torch.Generator().manual_seed(0)
    lp, ref = torch.randn(2, 1000, generator=g, dtype=torch.float64)
    assert (k3(lp, ref) >= 0).all() and (k3(lp, lp) == 0).all()


@pytest.mark.parametrize('kw,word', [
    (dict(loss_type='dr_grpo'), 'max_tokens'), (dict(beta=.1), 'ref_lp'),
    (dict(loss_type='ppo'), "'ppo'")])
def test_one_line_errors(kw, word):
    x = torch.zeros(2, 3)
    with pytest.raises(R1Error, match=word) as e: grpo_loss(x, x, x[:, 0], torch.ones(2, 3), **kw)
    assert '\n' not in str(e.value)
    with pytest.raises(R1Error, match="'std'"): group_advantage(x, 'std')
