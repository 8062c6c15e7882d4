"""Soft labels: the loss against torch's own, the shuffled control, the places in a text."""
import pytest, torch
import torch.nn.functional as F
from torch.testing import assert_close
from r1nb.core import R1Error
from r1nb.soft_labels import ARMS, Sums, learn, shuffle_wrong, soft_loss, sums
from r1nb.tokens import IDS, VOCAB

def logits(*shape, seed=0):
    return 3*torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('T', [.5, 1., 2., 10.])
@pytest.mark.parametrize('shape', [(5,), (3, 7), (2, 4, 11)])
def test_loss_is_torchs_kl(T, shape):
    s, t = logits(*shape), logits(*shape, seed=1)
    for reverse, a, b in ((False, s, t), (True, t, s)):
        want = F.kl_div((a/T).log_softmax(-1), (b/T).log_softmax(-1), reduction='none',
                        log_target=True).sum(-1).mean()*T*T
        assert_close(soft_loss(s, t, T, reverse), want, rtol=1e-5, atol=1e-6)  # sums of float32
    assert soft_loss(s, s, T).abs() < 1e-6

def test_a_high_temperature_is_regression_on_logits():
    s, t = logits(6).requires_grad_(), logits(6, seed=1)
    soft_loss(s, t, 1e3).backward()
    gap = (s - t).detach()
    assert_close(s.grad, (gap - gap.mean())/6, rtol=.02, atol=.01)   # first order in 1/T

def test_vocabularies_must_agree():
    with pytest.raises(R1Error, match='one shared vocabulary'):
        soft_loss(logits(4, 5), logits(4, 6))

def test_shuffling_keeps_the_first_choice_and_all_probabilities():
    z = logits(50, 256)
    q = shuffle_wrong(z)
    assert (z.argmax(-1) == q.argmax(-1)).all() and not torch.equal(z, q)
    assert_close(z.max(-1).values, q.max(-1).values, rtol=0, atol=0)
    assert_close(z.sort(-1).values, q.sort(-1).values, rtol=0, atol=0)
    assert (z == q).float().mean() < .02 and torch.equal(q, shuffle_wrong(z))
    assert not torch.equal(q, shuffle_wrong(z, 1))

def test_places_are_sums():
    s = sums(lambda ids: F.one_hot(ids, 256).float(), 60, 'test')
    assert len(s.asked) > 300
    for (a, sign, b), right in zip(s.asked.tolist(), s.right.tolist()):
        a, sign, b, right = (VOCAB[i] for i in (a, sign, b, right))
        assert {'+': int(a) + int(b), '-': int(a) - int(b), '*': int(a)*int(b)}[sign] == int(right)
    assert (s.teacher.argmax(-1) == IDS['=']).all(), 'the logits stand at the equals sign'
    assert .9 < (s.text == s.right).float().mean() < 1, 'the text slips now and then'

@pytest.mark.parametrize('arm', ARMS)
def test_every_arm_learns_and_repeats(arm):
    ask = torch.randint(0, 200, (64, 3), generator=torch.Generator().manual_seed(0))
    right = ask[:, 0]
    data = Sums(ask, right, F.one_hot(right, 256)*9., right)
    found = [learn(data, data, 64, arm, T=2., steps=60) for _ in range(2)]
    assert found[0]['all'] == found[1]['all'] > .9 and found[0]['share_new'] == 0

def test_mistakes_are_named():
    data = sums(lambda ids: F.one_hot(ids, 256).float(), 5, 'few')
    with pytest.raises(R1Error, match="arm 'x' is unknown"): learn(data, data, 4, 'x')
    with pytest.raises(R1Error, match='sums to read'): learn(data, data, 10**6)
