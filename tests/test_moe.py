"Routing, experts and balancing against transformers and against loops, over odd sizes."

import copy
import random

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from r1nb.core import R1Error
from r1nb.moe import (
    MLP,
    Block,
    Experts,
    Gate,
    MoE,
    MoEConfig,
    balance_loss,
    balance_losses,
    expert_load,
    expert_loads,
    gates,
    limit_groups,
    update_bias,
    update_biases,
)


def odd_config(seed, **kw):
    r = random.Random(seed)
    G = r.choice([1, 2, 3, 4])
    E, M = G * r.randint(2, 6), r.randint(1, G)
    return MoEConfig(
        **dict(
            hidden_size=r.randint(5, 40),
            moe_intermediate_size=r.randint(3, 30),
            n_routed_experts=E,
            n_shared_experts=r.randint(1, 3),
            num_experts_per_tok=r.randint(1, M * E // G),
            n_group=G,
            topk_group=M,
            routed_scaling_factor=r.choice([1.0, 2.5]),
            norm_topk_prob=r.random() < 0.7,
        )
        | kw
    )


def moe(c, seed=0, std=0.3):
    torch.manual_seed(seed)
    m = MoE(c)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=std)
    if c.scoring_func == 'sigmoid':
        m.gate.e_score_correction_bias.normal_(std=0.1)
    return m


def theirs(m, c):
    hf = pytest.importorskip('transformers.models.deepseek_v3.modeling_deepseek_v3')
    from transformers import DeepseekV3Config

    names = (
        'hidden_size',
        'moe_intermediate_size',
        'n_routed_experts',
        'n_shared_experts',
        'num_experts_per_tok',
        'n_group',
        'topk_group',
        'routed_scaling_factor',
        'norm_topk_prob',
    )
    config = DeepseekV3Config(**{n: getattr(c, n) for n in names})
    config._experts_implementation = 'eager'
    other = hf.DeepseekV3MoE(config).eval().requires_grad_(False)
    other.load_state_dict(m.state_dict())  # strict: same names, same stacked layout
    return other


def by_loop(m, x, gate, idx):
    "Token by token, expert by expert."
    e, out = m.experts, []
    for t in range(len(x)):
        parts = [(w, e.gate_up_proj[i] @ x[t], e.down_proj[i]) for w, i in zip(gate[t], idx[t])]
        out.append(
            sum(w * (down @ (F.silu(u[: len(u) // 2]) * u[len(u) // 2 :])) for w, u, down in parts)
        )
    return torch.stack(out)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('impl', ['ref', 'all'])
def test_equals_transformers_fp32(seed, impl):
    c = odd_config(seed)
    m, x = moe(c, seed).eval().requires_grad_(False), torch.randn(3, 17, c.hidden_size)
    m.impl = impl
    want = theirs(m, c)(x)
    assert (m(x) - want).abs().max() <= 1e-5 * max(
        1, want.abs().max()
    )  # fp32, sums of at most 40 terms


@pytest.mark.parametrize('seed', range(3))
def test_equals_transformers_bf16(seed):
    c = odd_config(seed)
    m, x = (
        moe(c, seed).bfloat16().eval().requires_grad_(False),
        torch.randn(3, 17, c.hidden_size).bfloat16(),
    )
    want, got = theirs(m, c).bfloat16()(x).float(), m(x).float()
    # bf16: 8 significant bits; the gate is applied before, not after, the last product.
    # Routing is fp32 in both: no token strays
    assert (got - want).abs().max() <= 2**-5 * want.abs().max()


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('func', ['sigmoid', 'softmax'])
def test_routing(seed, func):
    c = odd_config(seed, scoring_func=func)
    m = moe(c, seed)
    gate, idx = m.gate(x := torch.randn(200, c.hidden_size))
    k, per = c.num_experts_per_tok, c.n_routed_experts // c.n_group
    assert gate.shape == idx.shape == (200, k)
    assert all(
        len(set(row)) == k and len({e // per for e in row}) <= c.topk_group for row in idx.tolist()
    )
    assert idx.min() >= 0 and idx.max() < c.n_routed_experts
    if c.norm_topk_prob:
        assert (gate.sum(1) - c.routed_scaling_factor).abs().max() <= 1e-5  # fp32
    for impl in ('ref', 'all'):
        gap = m.experts(x, gate, idx, impl) - by_loop(m, x, gate, idx)
        assert gap.abs().max() <= 1e-5 * c.routed_scaling_factor * max(
            1, x.abs().max()
        )  # fp32, another order


@pytest.mark.parametrize('N', [1, 2, 5])
def test_few_tokens_and_idle_experts(N):
    m = moe(
        MoEConfig(
            hidden_size=7, moe_intermediate_size=3, n_routed_experts=11, num_experts_per_tok=1
        )
    )
    x = torch.randn(N, 7, requires_grad=True)
    gate, idx = m.gate(x)
    a, b = (
        torch.autograd.grad(
            m.experts(x, gate, idx, i).square().sum(),
            [x, *m.experts.parameters()],
            retain_graph=True,
        )
        for i in ('ref', 'all')
    )
    for u, v in zip(a, b):
        assert (u - v).abs().max() <= 1e-5 * max(1, u.abs().max())  # fp32


def test_no_tokens():
    m = moe(MoEConfig(hidden_size=7, moe_intermediate_size=3)).train()
    assert m(torch.zeros(0, 4, 7)).shape == (0, 4, 7) and (expert_loads(m) == 0).all()


def test_gate_is_fp32_under_autocast():
    m, x = moe(odd_config(3)).eval(), torch.randn(50, odd_config(3).hidden_size)
    want = m.gate(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = m.gate(x)
        y = [m.experts(x, *got, impl) for impl in ('ref', 'all')]
    assert torch.equal(want[1], got[1]) and torch.equal(want[0], got[0])
    assert (y[0].float() - y[1].float()).abs().max() <= 2**-5 * y[0].abs().max()  # bf16: 8 bits


def test_group_limit_keeps_the_best():
    c = MoEConfig(n_routed_experts=8, n_group=4, topk_group=2)
    score = torch.tensor(
        [[0.9, 0.0, 0.6, 0.5, 0.1, 0.2, 0.7, 0.35]]
    )  # pairs are worth .9, 1.1, .3, 1.05
    assert (limit_groups(score, c) > -1).flatten().tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_loads_are_counted_only_while_learning():
    c = MoEConfig(hidden_size=8)
    m, x = moe(c), torch.randn(2, 9, 8)
    with torch.no_grad():
        m.train()(x)
    with torch.inference_mode():
        m(x)
    m.eval()(x)
    assert (expert_loads(m) == 0).all() and balance_losses(m) == 0
    m.train()(x)
    m(x)
    assert (
        m.gate.load.sum() == 2 * 2 * 9 * 2 and (expert_loads(m).mean(1) - 1).abs().max() <= 1e-6
    )  # fp32
    before, bias = m.gate.load.clone(), m.gate.e_score_correction_bias.clone()
    assert torch.equal(
        copy.deepcopy(m).bfloat16().gate.load, before
    )  # a copy needs no graph, a cast no counts
    loads = update_biases(m, 0.25)
    assert (
        torch.equal(m.gate.e_score_correction_bias - bias, 0.25 * torch.sign(1 - loads[0]))
        or ((m.gate.e_score_correction_bias - bias) - 0.25 * torch.sign(1 - loads[0])).abs().max()
        <= 1e-6
    )  # fp32
    assert m.gate.load.sum() == 0 and torch.equal(update_biases(m, 0.25), torch.zeros_like(loads))
    assert 'load' not in ''.join(m.state_dict())


def test_update_matches_paper_step():
    bias, load = torch.zeros(4), expert_load(torch.tensor([[0, 1], [0, 2]]), 4)
    update_bias(bias, load, 0.5)
    assert load.tolist() == [2, 1, 1, 0] and bias.tolist() == [-0.5, 0, 0, 0.5]


def test_balance_losses_sum_layers_and_reach_the_gate():
    torch.manual_seed(0)
    c = MoEConfig(hidden_size=8, n_routed_experts=6)
    m = torch.nn.Sequential(moe(c, 1), MLP(8, 4), moe(c, 2)).train()
    m(torch.randn(3, 10, 8))
    parts = [balance_loss(*g.routing, 1.0) for g in gates(m)]
    total = balance_losses(m, 1.0)
    assert torch.equal(total, parts[0] + parts[1])
    total.backward()
    assert all(g.weight.grad.abs().sum() > 0 for g in gates(m))
    score, idx = gates(m)[0].routing
    want = 0.0  # equation 17-20, sequence by sequence, by loops
    for s, i in zip(score, idx):
        f = [(i == e).sum().item() * 6 / (2 * 10) for e in range(6)]
        p = [(s[:, e] / s.sum(1)).mean().item() for e in range(6)]
        want += sum(a * b for a, b in zip(f, p)) / 3
    assert abs(parts[0].item() - want) <= 1e-5  # fp32
    assert balance_losses(MLP(4, 4)) == 0 and update_biases(MLP(4, 4)).numel() == 0


def test_under_compile():
    c = MoEConfig(hidden_size=8)
    m = moe(c).train()
    m.impl = 'all'
    f, x = torch.compile(m, backend='aot_eager'), torch.randn(2, 9, 8)
    for _ in range(3):
        (f(x).sum() + balance_losses(m, 1.0)).backward()
    assert m.gate.load.sum() == 3 * 2 * 9 * 2
    other = copy.deepcopy(m)
    other.gate.load.zero_()
    for _ in range(3):
        other(x)
    assert torch.equal(expert_loads(m), expert_loads(other))


def rank(i, path, out):
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=i, world_size=2)
    m, x = (
        moe(MoEConfig(hidden_size=8)).train(),
        torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0)),
    )
    m(x[2 * i : 2 * i + 2])
    loads = update_biases(m, 0.1)
    torch.save((loads, m.gate.e_score_correction_bias), f'{out}/{i}.pt')
    dist.destroy_process_group()


def test_two_ranks_balance_as_one(tmp_path):
    torch.multiprocessing.spawn(rank, (tmp_path / 'meet', tmp_path), nprocs=2)
    m, x = (
        moe(MoEConfig(hidden_size=8)).train(),
        torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(0)),
    )
    m(x)
    want = update_biases(m, 0.1), m.gate.e_score_correction_bias
    for i in range(2):
        for a, b in zip(want, torch.load(tmp_path / f'{i}.pt', weights_only=True)):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    'bad',
    [
        dict(num_experts_per_tok=0),
        dict(num_experts_per_tok=9),
        dict(n_group=3),
        dict(n_group=0),
        dict(n_group=2, topk_group=3),
        dict(topk_group=0),
        dict(n_group=8, topk_group=4),
        dict(n_group=4, num_experts_per_tok=3),
        dict(n_routed_experts=0),
        dict(scoring_func='tanh'),
        dict(qk_rope_head_dim=3),
    ],
)
def test_refuses_numbers_that_cannot_route(bad):
    with pytest.raises(R1Error) as e:
        MoEConfig(**bad)
    assert '\n' not in str(e.value)


def test_dense_and_sparse_blocks():
    assert [type(Block(MoEConfig(), i).mlp) for i in (0, 1)] == [MLP, MoE]
    assert type(Block(MoEConfig(n_routed_experts=None), 5).mlp) is MLP
    MoEConfig(n_routed_experts=None, num_experts_per_tok=99)  # a dense model has nothing to route
    assert not hasattr(Gate(MoEConfig(scoring_func='softmax')), 'e_score_correction_bias')
    assert sum(p.numel() for p in Experts(3, 5, 7).parameters()) == 3 * 3 * 5 * 7
