"""Memory of a training step: what was predicted, what a GPU's allocator saw. Writes memory.json.

python tests/gpu_memory.py [FOLDER]      (a quarter of a minute on an H200)
"""
import gc, sys, time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
import torch
from torch.utils.checkpoint import checkpoint
from r1nb.memory import saved_bytes, step_saved, timeline
from r1nb.model import R1Config, R1Model, count
from r1nb.moe import gates
from r1nb.roofline import record
from r1nb.train import NANO, adamw, pretrain_loss

DENSE = R1Config(vocab_size=32000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8,
    num_attention_heads=16, kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=32,
    v_head_dim=64, n_routed_experts=None, max_position_embeddings=4096)
SPARSE = replace(DENSE, n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=512,
    q_lora_rank=384, intermediate_size=2048)
CASES = [('nano', NANO, 256, 256, 4, False), ('dense', DENSE, 8, 1024, 4, False),
    ('sparse', SPARSE, 16, 1024, 2, False), ('sparse, one long text', SPARSE, 4, 4096, 2, False),
    ('sparse', SPARSE, 8, 1024, 4, False), ('sparse, layers run again', SPARSE, 16, 1024, 2, True),
    ('sparse, little text', replace(SPARSE, n_routed_experts=128), 2, 256, 2, False)]

def measure(c, B, T, s, recompute):
    "Two steps; the peak is of the second, when there are moments."
    gc.collect(); torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    dtype = {2: torch.bfloat16, 4: torch.float32}[s]
    with torch.device('cuda'): model = R1Model(c).to(dtype).train()
    for g in gates(model): g.e_score_correction_bias = g.e_score_correction_bias.float()
    ids = torch.randint(0, c.vocab_size, (B, T), device='cuda')
    model.angles(1)
    own = [*model.parameters(), *model.buffers(), *model.rope]
    kept = None if recompute else saved_bytes(own, lambda: pretrain_loss(model, ids))
    for g in gates(model): g.routing = None  # else it holds the graph of that pass
    if recompute:
        for layer in model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    opt, forward = adamw(model, 1e-4), 0
    for step in range(2):
        if step == 1: torch.cuda.reset_peak_memory_stats()
        loss = pretrain_loss(model, ids)[0]
        forward = torch.cuda.memory_allocated() - before
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step(); opt.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() - before
    return dict(peak=peak, saved=kept, after_forward=forward,
                state=torch.cuda.memory_allocated() - before)

def main(folder):
    "One row a case."
    for _ in range(2): torch.ones(512, 512, device='cuda', requires_grad=True).mm(
        torch.ones(512, 512, device='cuda')).sum().backward()
    rows = []
    for name, c, B, T, s, recompute in CASES:
        begun = time.time()
        line = timeline(c, B, T, s, recompute)
        n = count(c)
        rows.append(dict(name=name, B=B, T=T, bytes=s, recompute=recompute,
            parameters=n['total'] + n['mtp'], predicted=max(a for _, _, a in line),
            predicted_saved=sum(b for _, b in step_saved(asdict(c), B, T, s)), config=asdict(c),
            **measure(c, B, T, s, recompute)))
        r = rows[-1]
        print(f'{name:26} {B:3}x{T:<5} {s} B  predicted {r["predicted"]/1e9:7.3f}  '
              f'peak {r["peak"]/1e9:7.3f} GB  {r["predicted"]/r["peak"] - 1:+.1%}   '
              f'saved {(r["saved"] or 0)/1e9:.4f} predicted {r["predicted_saved"]/1e9:.4f}   '
              f'{time.time() - begun:.1f} s', flush=True)
        record(Path(folder)/'memory.json', command='python tests/gpu_memory.py', rows=rows)

if __name__ == '__main__': main(*sys.argv[1:] or ['.'])
