"""grpo_loss, its gradient and group_advantage against TRL's own code, run, not transcribed."""
import os
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import pytest, torch
from torch.testing import assert_close
from r1nb.grpo import batch_totals, group_advantage, grpo_loss, k3, reinforce_loss, token_logprobs

CLOSE = dict(rtol=0, atol=1e-6)  # the bound, on losses of order one
TYPES = ['grpo', 'dr_grpo', 'dapo', 'bnpo']
MAX_TOKENS = 24


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    pytest.importorskip('trl')
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    words = ['<pad>', '<end>'] + [f'w{i}' for i in range(30)]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='<pad>'))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='<end>', padding_side='left')
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1))
    args = GRPOConfig(output_dir=str(tmp_path_factory.mktemp('trl')), use_cpu=True, bf16=False, report_to=[], save_strategy='no',
        num_generations=4, per_device_train_batch_size=8, max_completion_length=MAX_TOKENS, gradient_checkpointing=False, max_steps=1)
    data = Dataset.from_dict({'prompt': ['w1 w2', 'w3 w4'] * 8})
    reward = lambda completions, **kw: [float(len(c) % 5) for c in completions]
    t = GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tok)
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    return t


def batch(seed, N, T, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=dtype)
    lp = (r(N, T) - 3).clamp(max=-.01)
    length = torch.randint(1, T + 1, (N,), generator=g)
    mask = (torch.arange(T) < length[:, None]).int()
    if seed % 3 == 1 and N > 2: mask[1] = 0      # an answer dropped from the loss
    if seed % 3 == 2: mask = mask * (r(N, T) > -1).int()  # holes, as tool calls make
    return dict(lp=lp, old=lp + .6 * r(N, T), ref=lp + .4 * r(N, T), adv=r(N), mask=mask)


def trl_loss(t, b, loss_type, lo, hi, delta, beta, on_policy=False, kl_ratio=True, items=None, accum=1):
    t.loss_type, t.epsilon_low, t.epsilon_high, t.beta = loss_type, lo, hi, beta
    t.args.delta, t.args.use_bias_correction_kl, t.args.steps_per_generation = delta, kl_ratio, accum
    t.max_completion_length, t.current_gradient_accumulation_steps = MAX_TOKENS, accum
    lp = b['lp'].clone().requires_grad_()
    t._get_per_token_logps_and_entropies = lambda *a, **k: (lp, torch.zeros_like(lp), None)  # the one stand-in: log-probs given
    ids = torch.ones_like(b['mask'], dtype=torch.long)
    inputs = dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1], completion_ids=ids, completion_mask=b['mask'], advantages=b['adv'],
                  ref_per_token_logps=b['ref'], num_items_in_batch=b['mask'].sum() if items is None else torch.tensor(items))
    if not on_policy: inputs['old_per_token_logps'] = b['old']
    try: loss = t.compute_loss(t.model, inputs)
    finally: del t._get_per_token_logps_and_entropies
    loss.backward()
    return loss.detach(), lp.grad, {k: v[-1] for k, v in t._metrics['train'].items() if v}


def ours(b, loss_type, lo, hi, delta, beta, on_policy=False, kl_ratio=True, **totals):
    lp = b['lp'].clone().requires_grad_()
    loss, stats = grpo_loss(lp, None if on_policy else b['old'], b['adv'], b['mask'], loss_type, lo, hi, delta, beta,
                            b['ref'] if beta else None, max_tokens=MAX_TOKENS, kl_ratio=kl_ratio, **totals)
    loss.backward()
    return loss.detach(), lp.grad, stats


@pytest.mark.parametrize('loss_type', TYPES)
@pytest.mark.parametrize('lo,hi,delta,beta', [(.2, .2, None, 0.), (.2, .28, None, .001), (.1, .5, None, .5), (10, 10, None, .001),
                                              (.2, .28, 1.5, 0.), (.3, .2, 4., .04), (10, 10, 3., .001)])
def test_loss_and_gradient_equal_trl(trainer, loss_type, lo, hi, delta, beta):
    for seed, (N, T) in enumerate([(4, 7), (8, 24), (3, 1), (16, 13), (1, 5), (5, 24)]):
        b = batch(seed, N, T)
        want, wgrad, metrics = trl_loss(trainer, b, loss_type, lo, hi, delta, beta)
        got, grad, stats = ours(b, loss_type, lo, hi, delta, beta)
        assert_close(got, want, **CLOSE), assert_close(grad, wgrad, **CLOSE)
        if T == 1: continue  # TRL takes one column for a sequence-level ratio and counts padding too
        assert abs(stats['clip_low'] - metrics['clip_ratio/low_mean']) < 1e-6
        assert abs(stats['clip_high'] - metrics['clip_ratio/high_mean']) < 1e-6 or (delta or 99) < 1 + hi
        if beta: assert abs(stats['kl'] - metrics['kl']) < 1e-5 * max(1, metrics['kl'])


@pytest.mark.parametrize('loss_type', TYPES)
def test_on_policy_and_plain_kl_equal_trl(trainer, loss_type):
    for seed in range(6):
        b = batch(seed, 6, 11)
        for kw in (dict(on_policy=True), dict(kl_ratio=False), dict(on_policy=True, kl_ratio=False)):
            want, wgrad, _ = trl_loss(trainer, b, loss_type, .2, .28, None, .1, **kw)
            got, grad, _ = ours(b, loss_type, .2, .28, None, .1, **kw)
            assert_close(got, want, **CLOSE), assert_close(grad, wgrad, **CLOSE)


@pytest.mark.parametrize('loss_type', TYPES)
def test_accumulated_micro_batches_equal_trl(trainer, loss_type):
    "Four equal micro-batches, each normalised as TRL normalises it inside one accumulation window."
    b = batch(3, 16, 9)
    items, rows = int(b['mask'].sum()), 16
    for i in range(0, 16, 4):
        part = {k: v[i:i+4] for k, v in b.items()}
        totals = dict(num_rows=rows, num_items=items if loss_type == 'dapo' else None)
        want, wgrad, _ = trl_loss(trainer, part, loss_type, .2, .28, None, .01, items=items, accum=4)
        got, grad, _ = ours(part, loss_type, .2, .28, None, .01, **totals)
        assert_close(got, want, **CLOSE), assert_close(grad, wgrad, **CLOSE)


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_advantages_equal_trl(trainer, scale):
    "TRL samples from its model, our reward function notes what it paid, TRL makes the advantages."
    trainer.scale_rewards, trainer.beta = scale, 0.
    g, paid = torch.Generator().manual_seed(5), []
    def reward(completions, **kw):
        r = torch.randint(0, 3, (len(completions),), generator=g) / 2 + .1
        paid[:] = r.tolist()
        return paid
    keep, trainer.reward_funcs = trainer.reward_funcs, [reward]
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    try:
        for _ in range(4):
            out = trainer._generate_and_score_completions([{'prompt': f'w{1+i//4} w2'} for i in range(8)])
            rew = torch.tensor(paid).view(-1, 4)
            assert_close(group_advantage(rew, scale).flatten(), out['advantages'], rtol=0, atol=2e-6)
    finally: trainer.reward_funcs, trainer.scale_rewards = keep, 'group'


@pytest.mark.parametrize('loss_type', TYPES)
def test_through_a_model_equal_trl(trainer, loss_type):
    "From ids to parameter gradients: TRL's fused head and ours, on the same weights."
    g, T = torch.Generator().manual_seed(9), 10
    b = batch(4, 6, T)
    ids = torch.randint(2, 32, (6, T), generator=g)
    prompt = torch.randint(2, 32, (6, 3), generator=g)
    t, ones = trainer, torch.ones(6, 3, dtype=torch.long)
    t.loss_type, t.epsilon_low, t.epsilon_high, t.beta, t.args.delta = loss_type, .2, .28, 0., None
    t.args.steps_per_generation = t.current_gradient_accumulation_steps = 1
    other = type(t.model)(t.model.config)  # TRL patches its own instance's forward
    other.load_state_dict(t.model.state_dict())
    logits = other(input_ids=torch.cat([prompt, ids], 1)).logits[:, 2:-1]
    lp = token_logprobs(logits, ids)
    old = lp.detach() + .3 * torch.randn(lp.shape, generator=g)
    loss, _ = grpo_loss(lp, old, b['adv'], b['mask'], loss_type, .2, .28, max_tokens=MAX_TOKENS)
    loss.backward()
    t.model.zero_grad()
    want = t.compute_loss(t.model, dict(prompt_ids=prompt, prompt_mask=ones, completion_ids=ids, completion_mask=torch.ones_like(ids) * b['mask'],
        advantages=b['adv'], old_per_token_logps=old, num_items_in_batch=b['mask'].sum()))
    want.backward()
    assert_close(loss.detach(), want.detach(), **CLOSE)
    for (n, p), q in zip(t.model.named_parameters(), other.parameters()): assert_close(q.grad, p.grad, **CLOSE, msg=lambda m: f'{n}: {m}')
