"""Decoding and reading on one GPU, for room 61: seconds a step, joules a word, prefix reuse.

Prints JSON.

python tests/serve_gpu.py [--batches 1,16,256] [--context 2048] [--layers 16] [--seconds 1.0]
The model has random weights: their values do not matter to a clock. One row's words are one step's.
Without a GPU it runs a tiny model: a rehearsal, not a measurement.
"""
import argparse, json, statistics, subprocess, threading, time
import torch
from r1nb.attention import LatentCache
from r1nb.core import hardware
from r1nb.model import R1Config, R1Model, count
from r1nb.sample import record

GPU = torch.cuda.is_available()
DEVICE = torch.device('cuda' if GPU else 'cpu')
SIZES = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
             kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
TINY = dict(vocab_size=256, hidden_size=64, intermediate_size=160)


def build(layers, context):
    c = R1Config(**(SIZES if GPU else TINY), num_hidden_layers=layers, n_routed_experts=None,
                 num_nextn_predict_layers=0, max_position_embeddings=context)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if GPU else torch.float32)
    try:
        with torch.device(DEVICE): return R1Model(c).eval()
    finally: torch.set_default_dtype(kept)


def wait(): torch.cuda.synchronize() if GPU else None


class Watts:
    "Board power by nvidia-smi while the block runs; .mean in watts, None without a GPU."
    def __enter__(self):
        self.seen, self.process = [], None
        if GPU:
            ask = ['nvidia-smi', '--query-gpu=power.draw.instant', '--format=csv,noheader,nounits',
                   '-lms', '50']
            self.process = subprocess.Popen(ask, stdout=subprocess.PIPE, text=True)
            self.thread = threading.Thread(target=self.read, daemon=True)
            self.thread.start()
        return self
    def read(self):
        for line in self.process.stdout:
            try: self.seen.append((time.perf_counter(), float(line)))
            except ValueError: pass
    def __exit__(self, *_):
        if self.process: self.process.terminate(); self.process.wait()
    def mean(self, start, end):
        "Of the samples from 0.3 s after `start`: the meter averages over tens of milliseconds."
        w = [p for t, p in self.seen if start + .3 <= t <= end]
        return statistics.mean(w) if w else None


def step(model, B, S, seconds, watts):
    "Seconds of one recorded step that writes the S-th word of B rows, and the power meanwhile."
    c, w = model.config, model.lm_head.weight
    cache = LatentCache(c, c.num_hidden_layers, B, S, DEVICE, w.dtype)
    cache.data.normal_()
    ids = torch.full((B, 1), 9, device=DEVICE)
    pos = torch.full((B, 1), S - 1, device=DEVICE)
    go = record(lambda: model(ids, cache=cache, pos=pos), DEVICE)
    for _ in range(3): go()
    wait(); start, n, rounds = time.perf_counter(), 0, []
    while time.perf_counter() - start < seconds:
        t = time.perf_counter()
        for _ in range(10): go()
        wait(); rounds.append((time.perf_counter() - t)/10); n += 10
    end = time.perf_counter()
    return dict(B=B, step_seconds=statistics.median(rounds), steps=n, watts=watts.mean(start, end))


def first_token(model, B, T, hit, n=7):
    "Seconds to read T tokens of which `hit` lie in the cache."
    c, w = model.config, model.lm_head.weight
    ids = torch.full((B, T), 9, device=DEVICE)
    cache, times = LatentCache(c, c.num_hidden_layers, B, T, DEVICE, w.dtype), []
    cache.data.normal_()
    for _ in range(n):
        cache.length = hit
        wait(); t = time.perf_counter()
        model.lm_head(model.hidden(ids[:, hit:], cache=cache, absorb=False)[:, -1])
        wait(); times.append(time.perf_counter() - t)
    return dict(B=B, T=T, hit=hit, seconds=statistics.median(times[1:]))


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--batches', default='1,4,16,64,256,1024')
    p.add_argument('--context', type=int, default=2048)
    p.add_argument('--layers', type=int, default=16)
    p.add_argument('--seconds', type=float, default=1.2)
    a = p.parse_args()
    torch.manual_seed(0)
    model = build(a.layers, max(2*a.context, 1024))
    name = torch.cuda.get_device_name() if GPU else hardware()['cpu']
    with Watts() as watts:
        t = time.perf_counter(); time.sleep(2.5 if GPU else 0)
        idle = watts.mean(t, time.perf_counter())
        steps = [step(model, int(b), a.context, a.seconds, watts) for b in a.batches.split(',')]
    reads = [first_token(model, B, T, hit) for B in (1, 8) for T in (512, 1024, 2*a.context)
             for hit in (0, round(T*9/16))]
    config = {k: getattr(model.config, k) for k in (*SIZES, 'num_hidden_layers')}
    print(json.dumps(dict(
        what='a dense latent-attention model with random weights: decode steps recorded as CUDA '
             'graphs, medians; prompts read with and without a cached prefix, medians of six',
        hardware=f'{name}, torch {torch.__version__}, {str(model.lm_head.weight.dtype)[6:]}',
        config=config, parameters=count(model.config)['total'], context=a.context,
        idle_watts=idle, decode=steps, prefill=reads), indent=1))


if __name__ == '__main__': main()
