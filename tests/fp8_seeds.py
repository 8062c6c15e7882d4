"""What eight bits cost a training run, over seeds, with what must be worse beside it. Writes JSON.

python tests/fp8_seeds.py --out FILE [--seeds 3] [--first 0] [--steps 100] [--scratch]
                          [--arms fp32 bf16 ...]

Two starts: the shipped base `nano`, which learns from authors of other habits than those it knows;
or, with --scratch, random weights. Every arm of a seed starts from the same weights and reads the
same text in the same order. Planted: before each FP8 layer one token is multiplied by 2^17, and
divided again behind it, which changes nothing in exact arithmetic (a power of two) and is what a
rare huge activation does to scales.
"""
import argparse, json, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn
import r1nb
from r1nb.core import hardware, mean_ci, write_atomic
from r1nb.corpus import Habits, corpus
from r1nb.fp8 import dequantize, quantize_weight
from r1nb.fp8_training import SWITCHED, Fp8Linear, Recipe, TrainableExperts, enable, fp8_linear
from r1nb.model import R1Model
from r1nb.moe import Experts
from r1nb.train import BASES, adamw, descend, shuffled, text_loss

BASE = Path(r1nb.__file__).parent/'assets'/'nano'
SMALL = BASES['nano-student']
BATCH, T = 8, 128
HABITS = Habits(guess=0., one_try=.1, quitter=.1, insight=(.5,), slips=((0., 1.),), check=1.,
                broken=0.)   # diligent and without errors


class Bf16Linear(nn.Linear):
    def forward(self, x): return bf16(x, self.weight)

class Bf16Experts(Experts):
    linear = staticmethod(lambda x, w: bf16(x, w))

class PlantedLinear(Fp8Linear):
    def forward(self, x): return planted(x, self.weight, self.recipe)

class PlantedExperts(TrainableExperts):
    def linear(self, x, w): return planted(x, w, self.recipe)

def bf16(x, w): return F.linear(x.bfloat16(), w.bfloat16()).float()

def planted(x, w, recipe):
    c = torch.ones(x[..., :1].numel(), 1)
    c[:1] = 2.**17
    c = c.view(*x.shape[:-1], 1)
    return fp8_linear(x*c, w, recipe)/c

def become(model, kinds):
    for m in model.modules(): m.__class__ = kinds.get(type(m), type(m))
    return model

TO_BF16 = {Fp8Linear: Bf16Linear, TrainableExperts: Bf16Experts}
TO_PLAIN = {k: nn.Linear if issubclass(k, nn.Linear) else Experts
            for k in (*TO_BF16, *TO_BF16.values(), PlantedLinear, PlantedExperts)}
TO_PLANTED = {Fp8Linear: PlantedLinear, TrainableExperts: PlantedExperts}
ARMS = {'fp32': (None, {}), 'bf16': (Recipe(), TO_BF16), 'row': (Recipe(wgrad='row'), {}),
        'block': (Recipe(), {}), 'plain': (Recipe(wgrad='plain'), {}),
        'tensor': (Recipe(scaling='tensor'), {}),
        'planted, fine': (Recipe(), TO_PLANTED),
        'planted, tensor': (Recipe(scaling='tensor'), TO_PLANTED),
        'no master': (Recipe(), {})}

@torch.no_grad()
def forget_master(model):
    "Keep of each FP8 layer's weight what its eight bits hold."
    for m in model.modules():
        if type(m) not in SWITCHED.values(): continue
        for p in m.parameters():
            for w in p if p.dim() == 3 else [p]: w.copy_(dequantize(*quantize_weight(w)))

def run(job):
    arm, seed, steps, scratch = job
    torch.set_num_threads(1)
    habits = Habits() if scratch else HABITS
    text, fresh = (torch.from_numpy(corpus(n, s + seed, habits, shard=n, workers=1))
                   for n, s in ((8000, 500), (400, 1000)))
    recipe, kinds = ARMS[arm]
    torch.manual_seed(seed)
    model, lr = (R1Model(SMALL), 3e-3) if scratch else (R1Model.from_pretrained(BASE), 3e-4)
    if recipe: become(enable(model, recipe), kinds)
    losses = []
    for _, main, _ in descend(model, adamw(model, lr), shuffled(text, T, seed), steps, lr, BATCH):
        losses.append(main.item())
        if arm == 'no master': forget_master(model)
    loss = text_loss(model, fresh)
    return loss, text_loss(become(model, TO_PLAIN), fresh), losses

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', type=Path); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--first', type=int, default=0)
    p.add_argument('--steps', type=int, default=100); p.add_argument('--arms', nargs='*')
    p.add_argument('--scratch', action='store_true')
    p.add_argument('--workers', type=int, default=2)
    a = p.parse_args()
    final, read_plainly, curves, begun = {}, {}, {}, time.time()
    jobs = [(arm, seed, a.steps, a.scratch) for seed in range(a.first, a.first + a.seeds)
            for arm in a.arms or ARMS]
    with ProcessPoolExecutor(a.workers, get_context('spawn')) as pool:
        for (arm, seed, *_), (loss, plain, curve) in zip(jobs, pool.map(run, jobs)):
            final.setdefault(arm, []).append(loss)
            read_plainly.setdefault(arm, []).append(plain)
            if seed == a.first: curves[arm] = [round(x, 4) for x in curve]
            print(f'{time.time() - begun:6.0f} s  seed {seed}  {arm:16} {loss:.5f}  '
                  f"{loss/final['fp32'][seed - a.first] - 1:+.3%}  in fp32 {plain:.5f}", flush=True)
    gaps = {base: {arm: mean_ci([x/y - 1 for x, y in zip(xs, final[base])])
                   for arm, xs in final.items()} for base in ('fp32', 'bf16') if base in final}
    out = dict(command='python tests/fp8_seeds.py ' + ' '.join(sys.argv[1:]), hardware=hardware(),
               start='random weights' if a.scratch else 'nano', steps=a.steps, first=a.first,
               tokens_read=a.steps*BATCH*T, outlier=2.**17, final=final,
               read_plainly=read_plainly, gap=gaps,
               curves=curves, seconds=round(time.time() - begun))
    if a.out: write_atomic(a.out, json.dumps(out, indent=1))
    for base, rows in gaps.items():
        for arm, (m, h) in rows.items(): print(f'{arm:16} against {base}: {m:+.3%} ± {h:.3%}')

if __name__ == '__main__': main()
