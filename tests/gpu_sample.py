"""Sampling on a GPU: recorded = eager = CPU, word for word, and words a second. Prints JSON.

python tests/gpu_sample.py [--batches 1,8,64,512] [--layers 3,24] [--new 128] [--model FOLDER]
Without a GPU it runs the same code unrecorded: a rehearsal, not a measurement.
"""
import argparse, copy, json, time
from dataclasses import replace
from pathlib import Path
import torch
from torch import nn
import r1nb, r1nb.sample as engine
from r1nb.core import hardware
from r1nb.model import R1Model
from r1nb.sample import Fold, Step, generate
from r1nb.speculate import speculate
from r1nb.tasks import countdown
from r1nb.tokens import chat


def deepen(model, L):
    "The same function with silent layers, as in room 16."
    if L == model.config.num_hidden_layers: return model
    w = model.lm_head.weight
    big = R1Model(replace(model.config, num_hidden_layers=L)).to(w.device, w.dtype).eval()
    new, mtp = big.layers[len(model.layers):], copy.deepcopy(model.mtp[0])
    for n, p in new.named_parameters():
        if 'o_proj' in n or 'down_proj' in n: nn.init.zeros_(p)
    big.model.layers, mtp.layer = nn.ModuleList([*model.layers, *new, mtp]), L
    big.model.embed_tokens, big.model.norm = model.model.embed_tokens, model.model.norm
    big.lm_head = model.lm_head
    return big


def eager(*args, **kw):
    "`generate` on this device with nothing recorded."
    kept, engine.Replay = engine.Replay, Step
    try: return generate(*args, **kw)
    finally: engine.Replay = kept


def timed(f, rounds=3):
    "Shortest of some runs, and what the last one returned."
    def once():
        if torch.cuda.is_available(): torch.cuda.synchronize()
        t = time.perf_counter()
        y = f()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        return time.perf_counter() - t, y
    runs = [once() for _ in range(rounds + 1)][1:]  # the first one warms up
    return min(t for t, _ in runs), runs[-1][1]


def differ(a, b):
    "Words that are not the same, and rows in which they are."
    pairs = [(x, y) for x, y in zip(a.ids, b.ids) if x != y]
    return dict(rows=len(pairs), of=len(a.ids), words=sum(map(len, a.ids)))


def measure(model, prompts, new):
    "One batch size: seconds of each way, and whether they agree."
    ways = dict(recorded=lambda: generate(model, prompts, new, 1., stop=-1, seed=1),
                eager=lambda: eager(model, prompts, new, 1., stop=-1, seed=1),
                speculate=lambda: speculate(model, prompts, new, 1., stop=-1, seed=1))
    row = dict(B=len(prompts), layers=model.config.num_hidden_layers)
    for name, f in ways.items():
        seconds, s = timed(f, 3 if name != 'eager' else 1)
        row[name] = round(len(prompts)*new/seconds)  # words a second
        if name == 'speculate':
            row |= dict(alpha=s.accepted/s.drafted, gain=row['speculate']/row['recorded'],
                        words_a_turn=(len(prompts)*(new - 1))/s.drafted)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--batches', default='1,8,64,512')
    p.add_argument('--layers', default='3,24')
    p.add_argument('--new', type=int, default=128)
    p.add_argument('--model', default=Path(r1nb.__file__).parent/'assets'/'nano')
    a = p.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = R1Model.from_pretrained(a.model, device).eval()
    ask = lambda B: [chat(q.prompt) for q in countdown(B, seed=5, split='held_out')]
    some, on_cpu = ask(100), R1Model.from_pretrained(a.model).eval()
    greedy = generate(model, some, a.new, 0., stop=-1)
    ends = generate(model, some, a.new, 1., seed=3)
    out = dict(hardware=hardware(), model=str(Path(a.model).name), new=a.new,
        recorded_differs_from_eager=differ(greedy, eager(model, some, a.new, 0., stop=-1)),
        recorded_differs_from_cpu=differ(greedy, generate(on_cpu, some, a.new, 0., stop=-1)),
        speculated_differs=differ(greedy, speculate(model, some, a.new, 0., stop=-1)),
        ends_differ_from_eager=differ(ends, eager(model, some, a.new, 1., seed=3)), speed=[])
    for L in map(int, a.layers.split(',')):
        deep = deepen(model, L)
        for B in map(int, a.batches.split(',')):
            out['speed'].append(measure(deep, (ask(min(B, 512))*(-(-B//512)))[:B], a.new))
    print(json.dumps(out, indent=1))


if __name__ == '__main__': main()
