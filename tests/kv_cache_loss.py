"""What a coarser cache costs the shipped models, in loss and in answers. Writes JSON.

python tests/kv_cache_loss.py --out nbs/results/kv_cache.json [--seeds 10] [--problems 500]
"""
import argparse, json
from pathlib import Path
import torch
import torch.nn.functional as F
import r1nb
from r1nb.attention import LatentCache
from r1nb.core import hardware, mean_ci, proportion_ci
from r1nb.corpus import write
from r1nb.kv_bits import BITS, dequantise, quantise
from r1nb.kv_cache import PagedCache, PagedRows, generate
from r1nb.model import R1Model
from r1nb.tasks import countdown
from r1nb.tokens import END, chat, decode
from r1nb.verify import verify

ASSETS = Path(r1nb.__file__).parent/'assets'


class Damaged(LatentCache):
    "A dense cache whose latents or rotary keys are rounded on the way in."
    def __init__(self, c, B, T, latent=None, rope=None):
        super().__init__(c, c.num_hidden_layers, B, T)
        self.c, self.how = c, (latent, rope)

    def write(self, layer, x, pos=None):
        parts = x.split([self.c.kv_lora_rank, self.c.qk_rope_head_dim], -1)
        back = [dequantise(*quantise(t, how)) if how else t for t, how in zip(parts, self.how)]
        return super().write(layer, torch.cat(back, -1), pos)


@torch.no_grad()
def loss(model, windows, cache):
    "Nats a token, every token read back through the cache."
    logits = model(windows[:, :-1], cache=cache)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()


def paged(model, B, T, precision):
    c = model.config
    cache = PagedCache(B*(-(-T//64)), c.num_hidden_layers, c.kv_lora_rank, c.qk_rope_head_dim,
                       precision)
    return PagedRows(cache, [cache.allocate() for _ in range(B)])


def losses(model, seeds, docs, T=256):
    "Loss of each seed's fresh text under every precision, and with only one part rounded."
    out, c = {}, model.config
    for seed in range(seeds):
        text = torch.from_numpy(write(docs, f'held-out/{seed}')).long()
        w = text[:len(text)//T*T].view(-1, T)
        for p in BITS: out.setdefault(p, []).append(loss(model, w, paged(model, len(w), T, p)))
        for bits in ('int6', 'int4', 'int3'):
            for part in ('latent', 'rope'):
                y = loss(model, w, Damaged(c, len(w), T, **{part: bits}))
                out.setdefault(f'{part} {bits}', []).append(y)
        print(seed, len(w), {k: f'{v[-1]:.5f}' for k, v in out.items()}, flush=True)
    return out


def answers(model, n, precision, seed=0):
    "Held-out countdown: right answers and the very words, at temperature 1 with the same chances."
    c, problems = model.config, countdown(n, 1, split='held_out')
    cache = PagedCache(5*n, c.num_hidden_layers, c.kv_lora_rank, c.qk_rope_head_dim, precision)
    ids = generate(model, cache, [chat(p.prompt) for p in problems], 246, seed=seed)
    text = [decode(i[:-1] if i[-1] == END else i) for i in ids]
    return sum(verify(p, t).answer for p, t in zip(problems, text)), ids


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--out', type=Path); p.add_argument('--seeds', type=int, default=10)
    p.add_argument('--docs', type=int, default=300)
    p.add_argument('--problems', type=int, default=500)
    a = p.parse_args()
    torch.set_num_threads(1)
    out = {}
    for name in ('nano', 'nano-student'):
        model = R1Model.from_pretrained(ASSETS/name).eval()
        rows = losses(model, a.seeds, a.docs)
        percent = lambda v: mean_ci([100*(y/x - 1) for x, y in zip(rows['fp32'], v)])
        change = {k: percent(v) for k, v in rows.items()}
        print(name, {k: f'{m:+.4f} ± {h:.4f} %' for k, (m, h) in change.items()}, flush=True)
        right, base = {}, None
        for precision in BITS:
            k, ids = answers(model, a.problems, precision)
            base = base or ids
            right[precision] = dict(right=k, of=a.problems, ci=proportion_ci(k, a.problems),
                                    same=sum(x == y for x, y in zip(ids, base)))
            print(name, precision, right[precision], flush=True)
        out[name] = dict(loss=rows, percent=change, answers=right)
    out |= dict(seeds=a.seeds, docs=a.docs, window=256, hardware=hardware())
    if a.out: a.out.write_text(json.dumps(out, indent=1))


if __name__ == '__main__': main()
