"What would bore a reader of room 18: random shapes against built models, hostile configurations."
import json, re
from dataclasses import asdict, replace
import pytest
from r1nb.anatomy import MODELS, anatomy, served
from r1nb.core import R1Error
from r1nb.model import R1Config, V3, count

EXACT = {'R1-Distill-Qwen-7B': 7_615_616_512, 'R1-Distill-Qwen-14B': 14_770_033_664,
         'R1-Distill-Qwen-32B': 32_763_876_352, 'R1-Distill-Llama-8B': 8_030_261_248,
         'R1-Distill-Llama-70B': 70_553_706_496, 'Qwen2.5-72B': 72_706_203_648,
         'Llama-3.1-405B': 405_853_388_800}

@pytest.mark.parametrize('name', EXACT)
def test_published_totals(name): assert served(name).total == EXACT[name]


@pytest.mark.parametrize('seed', range(12))
def test_random_shapes_count_as_built(seed):
    import random
    r = random.Random(seed)
    sparse = seed % 3 != 0
    c = R1Config(hidden_size=8*r.randint(1, 9), num_attention_heads=r.randint(1, 5),
        q_lora_rank=r.choice([None, 12]), kv_lora_rank=r.randint(3, 20),
        qk_nope_head_dim=r.randint(2, 9), qk_rope_head_dim=2*r.randint(1, 4),
        v_head_dim=r.randint(2, 9), vocab_size=r.randint(9, 99),
        intermediate_size=r.randint(4, 40), moe_intermediate_size=r.randint(4, 40),
        n_routed_experts=8 if sparse else None, num_experts_per_tok=r.randint(1, 4),
        n_shared_experts=r.randint(0, 2), first_k_dense_replace=r.randint(1, 4), n_group=1,
        topk_group=1, num_hidden_layers=r.randint(1, 5), num_nextn_predict_layers=0)
    a, n = anatomy(c), count(c)
    assert (a.total, a.active) == (n['total'], n['active_no_embedding'])
    assert a.kv_numbers == c.num_hidden_layers*(c.kv_lora_rank + c.qk_rope_head_dim)


def test_named_models_are_the_ones_of_room_13():
    assert replace(served('R1'), name='') == replace(anatomy(V3), name='')
    assert served('r1') == served('R1') and served(served('R1')) is not None


def test_files(tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(MODELS['R1']))
    for path in (tmp_path, tmp_path/'config.json', str(tmp_path)):
        assert replace(served(path), name='') == replace(served('R1'), name='')
    for text in ('', '[]', '{', '[' * 100_000, '\x00', 'null', '"R1"'):
        (tmp_path/'config.json').write_text(text)
        with pytest.raises(R1Error, match='not a JSON object') as e: served(tmp_path)
        assert '\n' not in str(e.value)


BAD = [{}, {'hidden_size': 1}, dict(MODELS['R1'], vocab_size='many'),
       dict(MODELS['R1'], num_hidden_layers=0), dict(MODELS['R1'], num_hidden_layers=True),
       dict(MODELS['R1'], hidden_size=1e3), dict(MODELS['R1'], v_head_dim=None),
       dict(MODELS['R1'], num_experts_per_tok=257), dict(MODELS['R1'], hidden_size=2**40),
       dict(MODELS['R1'], num_experts=8), dict(MODELS['R1'], n_routed_experts=-4),
       dict(MODELS['R1'], n_shared_experts=-1), dict(MODELS['R1'], topk_group='x'),
       dict(MODELS['Qwen2.5-72B'], num_key_value_heads=0.5),
       dict(MODELS['Qwen2.5-72B'], num_key_value_heads=65),
       dict(MODELS['R1'], q_lora_rank='x'), dict(MODELS['R1'], first_k_dense_replace=-1)]

@pytest.mark.parametrize('c', BAD)
def test_bad_configurations_get_one_line(c):
    with pytest.raises(R1Error) as e: anatomy(c)
    assert re.search(r'is missing|give a|more than|read under', str(e.value))
    assert '\n' not in str(e.value)


def test_more_of_anything_is_not_less():
    base = anatomy(V3)
    for k in ('hidden_size', 'num_hidden_layers', 'kv_lora_rank', 'moe_intermediate_size'):
        more = anatomy(asdict(V3) | {k: 2*getattr(V3, k)})
        assert more.total > base.total and more.active > base.active
        assert more.kv_numbers >= base.kv_numbers and more.wire >= base.wire
