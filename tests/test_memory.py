"What would bore a reader of room 19: odd shapes, to the byte; and that more never takes less."
from dataclasses import asdict, replace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from r1nb.core import R1Error
from r1nb.memory import STATE, block_saved, saved_bytes, state_bytes, step_saved, timeline
from r1nb.model import R1Model, count
from r1nb.train import NANO, pretrain_loss

@st.composite
def configs(draw):
    pick = lambda *xs: draw(st.sampled_from(xs))
    E, nope = pick(None, 2, 4, 6), pick(8, 16)
    return replace(NANO, hidden_size=pick(16, 40), num_attention_heads=pick(1, 3),
        q_lora_rank=pick(None, 8), kv_lora_rank=pick(8, 20), qk_nope_head_dim=nope,
        qk_rope_head_dim=8, v_head_dim=nope + 8,  # equal: else the CPU has no fused attention
        intermediate_size=pick(24, 33),
        moe_intermediate_size=pick(8, 20), n_routed_experts=E, n_shared_experts=pick(0, 1, 2),
        num_experts_per_tok=pick(1, 2), num_hidden_layers=pick(1, 3), vocab_size=pick(31, 64),
        first_k_dense_replace=pick(0, 1), num_nextn_predict_layers=pick(0, 1, 2))

@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(2, 3), st.integers(5, 12))
def test_to_the_byte(c, B, T):
    m, ids = R1Model(c).train(), torch.randint(0, c.vocab_size, (B, T))
    m.angles(1)
    own = [*m.parameters(), *m.buffers(), *m.rope]
    got = saved_bytes(own, lambda: pretrain_loss(m, ids))
    assert got == sum(b for _, b in step_saved(asdict(c), B, T, 4, fused=False))

@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(1, 4), st.integers(8, 64), st.sampled_from([2, 4]), st.booleans())
def test_timeline(c, B, T, s, recompute):
    line, n = timeline(c, B, T, s, recompute), count(c)
    params = n['total'] + n['mtp']
    assert line[0][1] == 3*s*params and line[-1][1:] == (4*s*params,)*2
    assert all(b >= a >= 0 for _, a, b in line)
    peak = lambda *a: max(x for *_, x in timeline(c, *a))
    assert peak(B, T, s, recompute) < peak(B + 1, T, s, recompute)
    assert peak(B, T, s, recompute) < peak(B, 2*T, s, recompute)
    assert peak(B, T, s, True) <= peak(B, T, s, False)*1.001 + 8*B*T*c.vocab_size
    again = dict((w, b) for w, _, b in timeline(c, B, T, s, True))
    assert all(again[w] <= b for w, _, b in timeline(c, B, T, s, False) if 'back' not in w)

@given(st.floats(0, 1e13))
def test_state(params):
    for kind, each in dict(zip(STATE, (13, 18, 16, 8))).items():
        assert sum(state_bytes(params, kind).values()) == pytest.approx(each*params)

def test_fused_norms_keep_less():
    for dense in (True, False):
        a, b = (block_saved(asdict(NANO), dense, 4, f) for f in (True, False))
        assert a['norms'] < b['norms'] and {k: v for k, v in a.items() if k != 'norms'} == \
            {k: v for k, v in b.items() if k != 'norms'}

def test_refused():
    with pytest.raises(R1Error, match='choose from'): state_bytes(1, 'INT8')
