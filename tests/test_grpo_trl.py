"""grpo_loss, its gradient and group_advantage against TRL's own code, run, not transcribed."""
import os
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import pytest, torch
from torch.testing import assert_close
from r1nb.grpo import group_advantage, grpo_loss, token_logprobs

CLOSE = dict(rtol=0, atol=1e-6)  # the bound, on losses of order one
TYPES = ['grpo', 'dr_grpo', 'dapo', 'bnpo']
MAX_TOKENS = 24


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    "TRL's GRPOTrainer around a Llama of one layer and a vocabulary of 32 words, all in memory."
    pytest.importorskip('trl')
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    words = {w: i for i, w in enumerate(['<pad>', '<end>'] + [f'w{i}' for i in range(30)])}
    tok = Tokenizer(models.WordLevel(words, unk_token='<pad>'))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token='<pad>', eos_token='<end>',
                                  padding_side='left')
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
                         pad_token_id=0, eos_token_id=1, bos_token_id=1)
    args = GRPOConfig(output_dir=str(tmp_path_factory.mktemp('trl')), use_cpu=True, bf16=False,
                      report_to=[], save_strategy='no', num_generations=4, max_steps=1,
                      per_device_train_batch_size=8, max_completion_length=MAX_TOKENS,
                      gradient_checkpointing=False)
    t = GRPOTrainer(model=LlamaForCausalLM(config), args=args, processing_class=tok,
                    reward_funcs=lambda completions, **kw: [0.] * len(completions),
                    train_dataset=Dataset.from_dict({'prompt': ['w1 w2', 'w3 w4'] * 8}))
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    return t


def batch(seed, N, T):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    lp = (r(N, T) - 3).clamp(max=-.01)
    length = torch.randint(1, T + 1, (N,), generator=g)
    mask = (torch.arange(T) < length[:, None]).int()
    if seed % 3 == 1 and N > 2: mask[1] = 0               # an answer dropped from the loss
    if seed % 3 == 2: mask = mask * (r(N, T) > -1).int()  # holes, as tool calls make them
    return dict(lp=lp, old=lp + .6 * r(N, T), ref=lp + .4 * r(N, T), adv=r(N), mask=mask)


def settings(t, loss_type, lo, hi, delta, beta, kl_ratio=True, accum=1):
    t.loss_type, t.epsilon_low, t.epsilon_high, t.beta = loss_type, lo, hi, beta
    t.args.delta, t.args.use_bias_correction_kl = delta, kl_ratio
    t.max_completion_length = MAX_TOKENS
    t.args.steps_per_generation = t.current_gradient_accumulation_steps = accum


def trl_loss(t, b, *how, on_policy=False, items=None, **more):
    settings(t, *how, **more)
    lp, ids = b['lp'].clone().requires_grad_(), torch.ones_like(b['mask'], dtype=torch.long)
    inputs = dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1], completion_ids=ids,
                  completion_mask=b['mask'], advantages=b['adv'], ref_per_token_logps=b['ref'],
                  num_items_in_batch=b['mask'].sum() if items is None else torch.tensor(items))
    if not on_policy: inputs['old_per_token_logps'] = b['old']
    # the one stand-in: log-probs are given instead of computed
    t._get_per_token_logps_and_entropies = lambda *a, **k: (lp, torch.zeros_like(lp), None)
    try: loss = t.compute_loss(t.model, inputs)
    finally: del t._get_per_token_logps_and_entropies
    loss.backward()
    return loss.detach(), lp.grad, {k: v[-1] for k, v in t._metrics['train'].items() if v}


def ours(b, loss_type, lo, hi, delta, beta, on_policy=False, **more):
    lp = b['lp'].clone().requires_grad_()
    loss, stats = grpo_loss(lp, None if on_policy else b['old'], b['adv'], b['mask'], loss_type,
                            lo, hi, delta, beta, b['ref'] if beta else None,
                            max_tokens=MAX_TOKENS, **{'kl_ratio': True, **more})
    loss.backward()
    return loss.detach(), lp.grad, stats


def same(got, want):
    for x, y in zip(got[:2], want[:2]): assert_close(x, y, **CLOSE)


HOW = [(.2, .2, None, 0.), (.2, .28, None, .001), (.1, .5, None, .5), (10, 10, None, .001),
       (.2, .28, 1.5, 0.), (.3, .2, 4., .04), (10, 10, 3., .001)]
SHAPES = [(4, 7), (8, 24), (3, 1), (16, 13), (1, 5), (5, 24)]


@pytest.mark.parametrize('loss_type', TYPES)
@pytest.mark.parametrize('lo,hi,delta,beta', HOW)
def test_loss_and_gradient_equal_trl(trainer, loss_type, lo, hi, delta, beta):
    for seed, (N, T) in enumerate(SHAPES):
        b, how = batch(seed, N, T), (loss_type, lo, hi, delta, beta)
        want, got = trl_loss(trainer, b, *how), ours(b, *how)
        same(got, want)
        if T == 1: continue  # TRL takes one column for a sequence-level ratio, counts padding too
        stats, theirs = got[2], want[2]
        assert abs(stats['clip_low'] - theirs['clip_ratio/low_mean']) < 1e-6
        if (delta or 99) > 1 + hi:  # TRL counts after the cap
            assert abs(stats['clip_high'] - theirs['clip_ratio/high_mean']) < 1e-6
        if beta: assert abs(stats['kl'] - theirs['kl']) < 1e-5 * max(1, theirs['kl'])


@pytest.mark.parametrize('loss_type', TYPES)
def test_on_policy_and_plain_kl_equal_trl(trainer, loss_type):
    how = loss_type, .2, .28, None, .1
    for seed in range(6):
        b = batch(seed, 6, 11)
        for on_policy, kl_ratio in ((True, True), (False, False), (True, False)):
            kw = dict(on_policy=on_policy, kl_ratio=kl_ratio)
            same(ours(b, *how, **kw), trl_loss(trainer, b, *how, **kw))


@pytest.mark.parametrize('loss_type', TYPES)
def test_accumulated_micro_batches_equal_trl(trainer, loss_type):
    "Four equal micro-batches, each normalised as TRL normalises it inside one accumulation window."
    b, how = batch(3, 16, 9), (loss_type, .2, .28, None, .01)
    items = int(b['mask'].sum())
    totals = dict(num_rows=16, num_items=items if loss_type == 'dapo' else None)
    for i in range(0, 16, 4):
        part = {k: v[i:i+4] for k, v in b.items()}
        same(ours(part, *how, **totals), trl_loss(trainer, part, *how, items=items, accum=4))


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_advantages_equal_trl(trainer, scale):
    "TRL samples its model, our reward function notes what it paid, TRL makes the advantages."
    settings(trainer, 'grpo', .2, .2, None, 0.)
    g, paid = torch.Generator().manual_seed(5), []
    def reward(completions, **kw):
        paid[:] = (torch.randint(0, 3, (len(completions),), generator=g) / 2 + .1).tolist()
        return paid
    keep, trainer.reward_funcs, trainer.scale_rewards = trainer.reward_funcs, [reward], scale
    try:
        for _ in range(4):
            rows = [{'prompt': f'w{1+i//4} w2'} for i in range(8)]
            out = trainer._generate_and_score_completions(rows)['advantages']
            got = group_advantage(torch.tensor(paid).view(-1, 4), scale).flatten()
            assert_close(got, out, rtol=0, atol=2e-6)  # TRL takes the mean in float32
    finally: trainer.reward_funcs, trainer.scale_rewards = keep, 'group'


@pytest.mark.parametrize('loss_type', TYPES)
def test_through_a_model_equal_trl(trainer, loss_type):
    "From ids to parameter gradients: TRL's fused head and ours, on the same weights."
    g, b, T = torch.Generator().manual_seed(9), batch(4, 6, 10), trainer
    ids = torch.randint(2, 32, (6, 10), generator=g)
    prompt = torch.randint(2, 32, (6, 3), generator=g)
    settings(T, loss_type, .2, .28, None, 0.)
    other = type(T.model)(T.model.config)  # TRL patches its own instance's forward
    other.load_state_dict(T.model.state_dict())
    lp = token_logprobs(other(input_ids=torch.cat([prompt, ids], 1)).logits[:, 2:-1], ids)
    old = lp.detach() + .3 * torch.randn(lp.shape, generator=g)
    loss, _ = grpo_loss(lp, old, b['adv'], b['mask'], loss_type, .2, .28, max_tokens=MAX_TOKENS)
    loss.backward()
    T.model.zero_grad()
    want = T.compute_loss(T.model, dict(
        prompt_ids=prompt, prompt_mask=torch.ones_like(prompt), completion_ids=ids,
        completion_mask=b['mask'].long(), advantages=b['adv'], old_per_token_logps=old,
        num_items_in_batch=b['mask'].sum()))
    want.backward()
    assert_close(loss.detach(), want.detach(), **CLOSE)
    for p, q in zip(T.model.parameters(), other.parameters()): assert_close(q.grad, p.grad, **CLOSE)
