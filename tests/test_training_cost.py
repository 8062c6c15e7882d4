"""Bills: money linear, hours never negative, nonsense refused in one line."""
import json, math
from dataclasses import asdict, replace
from pathlib import Path
import pytest
from hypothesis import assume, given, settings, strategies as st
from r1nb.core import R1Error
from r1nb.hardware import TABLES, gpu, gpus
from r1nb.training_cost import (R1_RUN, TRAIN_IT, V3_GPUS, V3_RUN, V3_TOKENS,
    attention_flop, bill, days_on,
    flop_per_token, gpu_hours_for, mfu_of, r1_zero_flop, rl_flop, run_cost, train_bill,
    train_calculator, train_cost, training_flop, usd_for)

params, tokens = st.floats(1e6, 1e13), st.floats(1e6, 1e15)
share, rent, many = st.floats(.01, 1), st.floats(.01, 100), st.integers(1, 10**6)
calm = settings(deadline=None, max_examples=60)

@pytest.fixture(autouse=True)
def nobody(monkeypatch): monkeypatch.delenv('R1NB_HARDWARE', raising=False)

def test_the_constants_are_those_of_the_ledger_of_claims():
    path = TABLES/'claims.json'
    if not path.exists(): pytest.skip('no ledger of claims')
    seen = json.loads(path.read_text(encoding='utf-8'))['inputs']
    v3, r1 = seen['V3_cost'], seen['R1_cost']
    assert list(V3_RUN.values()) == [1e3*v3[k] for k in ('pretrain_Kh', 'ctx_Kh', 'post_Kh')]
    assert (V3_GPUS, V3_TOKENS) == (v3['gpus'], 1e12*v3['tokens_T'])
    assert list(R1_RUN.values()) == [r1['gpus']*r1['R1Zero_h'], 1e3*r1['SFT_Kh'],
                                     r1['gpus']*r1['R1_h']]
    assert sum(R1_RUN.values()) == pytest.approx(1e3*r1['total_Kh'], rel=.003)
    assert 2*sum(R1_RUN.values()) == pytest.approx(r1['usd'], rel=.003)
    rl = seen['GRPO_R1Zero']
    answers = rl['steps']*rl['batch']
    assert r1_zero_flop(1.) == pytest.approx(rl_flop(answers, 1., 36.63e9), rel=1e-4)

@calm
@given(params, tokens, share, rent, st.floats(1.01, 50), many)
def test_bills_are_linear_and_monotone(n, d, m, usd, k, g):
    make = lambda **kw: train_cost(**dict(params=n, tokens=d, mfu=m, usd_per_gpu_hour=usd, gpus=g)
                                   | kw)
    assume(k*usd < 1e4 and k*d < 1e18)
    one = make()
    assert one.cost_usd > 0 and one.gpu_hours > 0 and one.days > 0
    assert make(usd_per_gpu_hour=k*usd).cost_usd == pytest.approx(k*one.cost_usd, rel=1e-9)
    assert make(tokens=k*d).cost_usd == pytest.approx(k*one.cost_usd, rel=1e-9)
    assert make(params=k*n).gpu_hours == pytest.approx(k*one.gpu_hours, rel=1e-9)
    assert make(mfu=m/k if m/k > 1e-4 else m).cost_usd >= one.cost_usd*(1 - 1e-9)
    assert make(gpus=2*g).cost_usd == one.cost_usd and 2*make(gpus=2*g).days == one.days
    assert make(active=n/k).cost_usd < one.cost_usd

@calm
@given(params, tokens, share)
def test_hours_and_share_are_each_others_inverse(n, d, m):
    for g in gpus():
        there = train_cost(active=n, tokens=d, mfu=m, gpu_name=g.name)
        assume(1e-6 < there.gpu_hours < 1e12)
        back = train_cost(gpu_hours=there.gpu_hours, active=n, tokens=d, gpu_name=g.name)
        assert back.mfu == pytest.approx(m, rel=1e-9) and there.mfu == pytest.approx(m, rel=1e-9)
        assert back.cost_usd == pytest.approx(there.cost_usd, rel=1e-9)
        assert there.cost_usd_low <= there.cost_usd <= there.cost_usd_high
        assert ('rent' in there.unverified) == ('usd_per_gpu_hour' in g.unverified)

@calm
@given(params, tokens, share, rent, many)
def test_the_calculator_and_the_function_agree(n, d, m, usd, g):
    a = train_bill(n, n, d, gpu('H800').bf16_flops, m, usd, g)
    b = train_cost(params=n, tokens=d, mfu=m, usd_per_gpu_hour=usd, gpus=g)
    assert a['usd'] == pytest.approx(b.cost_usd, rel=1e-12)
    assert a['days'] == pytest.approx(b.days, rel=1e-12)

@calm
@given(st.floats(1, 1e5), st.floats(1, 100))
def test_context_never_makes_a_token_cheaper(s, k):
    assert attention_flop(61, 128, 192, 128, k*s) == pytest.approx(
        k*attention_flop(61, 128, 192, 128, s), rel=1e-12)
    assert r1_zero_flop(k*s) >= r1_zero_flop(s)

GOOD = dict(active=37e9, tokens=14.8e12, mfu=.35)

@pytest.mark.parametrize('name', ['active', 'params', 'tokens', 'mfu', 'gpus', 'usd_per_gpu_hour'])
@pytest.mark.parametrize('value', [0, -1, math.nan, math.inf, 1e300, '', 'many', '3 apples', True,
                                   [], '1; import os', '9**9**9'])
def test_nonsense_is_one_line(name, value):
    with pytest.raises(R1Error, match=name) as e: train_cost(**GOOD | {name: value})
    assert '\n' not in str(e.value) and len(str(e.value)) < 300

@pytest.mark.parametrize('value', [0, -5, math.nan, 1e300, '54 days', '2 usd', '', None])
def test_hours_must_be_hours(value):
    with pytest.raises(R1Error) as e: train_cost(gpu_hours=value)
    assert '\n' not in str(e.value)

def test_what_is_missing_is_named():
    for name in GOOD:
        with pytest.raises(R1Error, match=name):
            train_cost(**{k: v for k, v in GOOD.items() if k != name})
    with pytest.raises(R1Error, match='nearest'): train_cost(**GOOD, gpu_name='H9')
    with pytest.raises(R1Error, match='whole'): train_cost(**GOOD, gpus=1.5)
    with pytest.raises(R1Error, match='at work'): train_cost(**GOOD, params=1e9)
    with pytest.raises(R1Error, match='not both'): train_cost(**GOOD, gpu_hours=1e6)
    with pytest.raises(R1Error, match='can do'):
        train_cost(gpu_hours=4e5, active=37e9, tokens=14.8e12)

def test_units_as_text():
    a = train_cost(active='37e9 param', tokens='14.8e12 token', mfu='35 %', gpus='2048 gpu',
                   usd_per_gpu_hour='200e-2 usd/gpu_h')
    b = train_cost(**GOOD, gpus=2048, usd_per_gpu_hour=2)
    assert a.cost_usd == pytest.approx(b.cost_usd) and a.days == pytest.approx(b.days)
    assert train_cost(gpu_hours='2788e3 gpu_h', usd_per_gpu_hour=2).cost_usd == 5576000
    json.dumps(asdict(a), allow_nan=False)

def test_every_preset_of_the_calculator_computes():
    calc = train_calculator(gpus())
    assert calc.compute() == TRAIN_IT.compute()
    for at in calc.presets.values():
        assert all(math.isfinite(v) and v > 0 for v in calc.compute(**at).values())
    assert calc.compute(**calc.presets['V3 on fifty thousand GPUs'])['days'] == pytest.approx(2.22,
                                                                                            abs=.01)

def test_bill_adds_up():
    t = bill({'a': 1., 'b': 3.}, 5.)
    assert [r[2] for r in t.rows] == ['5', '15', '20'] and t.rows[0][3] == '25.0%'
    assert usd_for(3, 4) == 12 and days_on(48, 2) == 1
    assert mfu_of(gpu_hours_for(1e20, 1e15, .5)*0 + 1e20, gpu_hours_for(1e20, 1e15, .5), 1e15) == .5

@pytest.mark.parametrize('T', [16, 64])
@pytest.mark.parametrize('change', [dict(), dict(n_routed_experts=None), dict(q_lora_rank=None),
    dict(num_nextn_predict_layers=0), dict(num_nextn_predict_layers=2, num_hidden_layers=3),
    dict(first_k_dense_replace=0, n_shared_experts=2, num_experts_per_tok=3)])
def test_the_count_is_what_torch_executes(change, T):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode
    from r1nb.model import R1Config, R1Model
    size = dict(hidden_size=64, num_hidden_layers=2, q_lora_rank=32, vocab_size=300)
    c = R1Config(**size | change)
    ids, model = torch.randint(8, 200, (1, T)), R1Model(c)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as seen:
        h = model.hidden(ids)
        ahead = model.ahead(h, torch.cat([ids[:, 1:], ids[:, :1]], 1)) if len(model.mtp) else []
        (model.lm_head(h).sum() + sum(a.sum() for a in ahead)).backward()
    said = sum(flop_per_token(c, T).values())*T
    # the last MTP modules see a token or two less; the router's bias is no product
    edge = .002 + .5*max(len(model.mtp) - 1, 0)/T
    assert seen.get_total_flops() == pytest.approx(said, rel=edge)

def card(folder, name, **kw):
    (folder/name).mkdir(parents=True)
    good = dict(seconds=3600., usd_per_hour=.5, flops=1e12, tokens=10, joules=None)
    (folder/name/'card.json').write_text(json.dumps(good | kw))

def test_run_cost_adds_up(tmp_path):
    card(tmp_path, 'base')
    card(tmp_path, 'zero', seconds=7200., usd_per_hour=1., joules=7.2e6)
    (tmp_path/'vote').mkdir(); (tmp_path/'vote'/'config.json').write_text('{}')
    c = run_cost(tmp_path)
    assert (c.cost_usd, c.seconds, c.flop, c.tokens) == (2.5, 10800, 2e12, 20)
    assert c.kwh is None and run_cost(tmp_path/'zero').kwh == 2
    assert c.flop_per_second == pytest.approx(2e12/10800)
    assert c.r1_zero_usd == pytest.approx(2.5*c.r1_zero_times, rel=1e-12)
    assert c.r1_zero_usd_reported == 202752 and 'tokens_per_answer' in c.unverified[0]
    again = run_cost(tmp_path, '2 usd/h')
    assert again.cost_usd == 6 and 'usd_per_hour' not in again.unverified
    assert run_cost(tmp_path, 4).r1_zero_usd == pytest.approx(2*again.r1_zero_usd)
    json.dumps(asdict(c), allow_nan=False)

def test_run_cost_rents_the_gpus_of_the_card(tmp_path):
    card(tmp_path, 'zero', hardware=dict(gpus=['NVIDIA H100 80GB HBM3']*8, cpu='x'))
    assert run_cost(tmp_path).cost_usd == pytest.approx(8*gpu('H100').usd_per_gpu_hour)
    card(tmp_path, 'base', hardware=dict(gpus=['Tesla T4']))
    with pytest.raises(R1Error, match='T4.*usd_per_hour') as e: run_cost(tmp_path)
    assert '\n' not in str(e.value) and run_cost(tmp_path, 1).cost_usd == 2

@pytest.mark.parametrize('bad', [dict(seconds=0), dict(seconds=-1), dict(seconds='long'),
                                 dict(seconds=None)])
def test_run_cost_of_nothing(tmp_path, bad):
    with pytest.raises(R1Error, match='no such run'): run_cost(tmp_path/'none')
    with pytest.raises(R1Error, match='no stage'): run_cost(tmp_path)
    card(tmp_path, 'zero', **bad)
    with pytest.raises(R1Error, match='nothing to bill'): run_cost(tmp_path)

def test_run_cost_survives_odd_cards(tmp_path):
    card(tmp_path, 'zero', flops='many', tokens=None, hardware=[1], joules=True)
    c = run_cost(tmp_path)
    assert c.cost_usd == .5 and c.flop is c.r1_zero_usd is c.usd_per_exaflop is None
    card(tmp_path, 'base', usd_per_hour=None)
    with pytest.raises(R1Error, match='base: its card has no price'): run_cost(tmp_path)
    for price in (0, -1, 'free', '1 usd', math.nan):
        with pytest.raises(R1Error, match='usd_per_hour'): run_cost(tmp_path, price)
    (tmp_path/'zero'/'card.json').write_text('{broken')
    with pytest.raises(R1Error): run_cost(tmp_path)

def test_no_torch_for_a_bill():
    import subprocess, sys
    code = ('import sys, r1nb.training_cost as t; t.train_cost(gpu_hours=1); '
            'assert "torch" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], check=True)
    assert replace(train_cost(gpu_hours=1), gpu='x').gpu == 'x' and Path(TABLES).is_dir()
    assert training_flop(1, 1) == 6
