"""Joules a token, an answer, a right answer on one GPU, idle subtracted, for room 62. Prints JSON.

python tests/gpu_energy.py [--zero FOLDER] [--rows 8192] [--seconds 5] [--repeats 3]
One small model answers Countdown three ways: at once behind an empty thought (direct),
with the base model's short thoughts (base), with those that reinforcement taught (zero: the
checkpoint of `r1nb run --seed 0`). Every row is busy always: as an answer ends, its row takes the
next problem, whose prompt was read before. All ways have the same room for an answer, except
`tight`: direct with no more than it needs. Without a GPU it is a rehearsal, not a measurement.
"""
import argparse, json, time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
import torch
import r1nb
from r1nb.attention import LatentCache
from r1nb.core import Meter, hardware
from r1nb.model import R1Model
from r1nb.sample import Fold, as_bias, choose, prefill, record, sees
from r1nb.tasks import countdown
from r1nb.tokens import ANSWER, END, END_THINK, THINK, chat, decode
from r1nb.verify import verify

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
EMPTY = [THINK, END_THINK, ANSWER]
START = time.perf_counter()


def wait(): torch.cuda.synchronize() if DEVICE.type == 'cuda' else None


class Service:
    "Rows that never rest: one recorded step writes a token in each and refills those that ended."
    def __init__(self, model, behind, new, problems, B):
        prompts = [chat(q.prompt) + behind for q in problems]
        ids, self.firsts, read, h = prefill(model, prompts, 0)
        self.T, self.new, self.model, self.fold = ids.shape[1], new, model, Fold(model, 2**31)
        self.problems, self.behind, self.read = problems, behind, read.data      # [L,P,T,C]
        logits = model.lm_head(h[:, -1])
        self.leads = torch.stack([self.pick(logits) for _ in range(16)])         # first tokens
        c, self.row = model.config, torch.arange(B, device=DEVICE)
        self.at = self.row % len(problems)
        self.cache = LatentCache(c, c.num_hidden_layers, B, self.T + new, DEVICE, read.data.dtype)
        self.cache.data[:, :, :self.T] = self.read[:, self.at]
        self.first, self.token = self.firsts[self.at], self.leads[0, self.at]
        self.pos = torch.full((B, 1), self.T, device=DEVICE)
        self.out = torch.zeros(len(problems) + 1, new, dtype=torch.int64, device=DEVICE)
        self.out[self.row.clamp(max=len(problems)), 0] = self.token
        self.count = torch.tensor([B, B], device=DEVICE)         # answers begun, tokens written
        self.step = record(self.run, DEVICE)
        for _ in range(2*new): self.step()                       # rows fall out of step

    def pick(self, logits):
        u = torch.rand(len(logits), 1, dtype=torch.float64, device=DEVICE)
        return choose(logits, 1., 1., u)[0]

    def run(self):
        data, P = self.cache.data, len(self.problems)
        bias = as_bias(sees(self.first, self.pos, data.shape[2]), data.dtype)
        h = self.fold.hidden(self.token[:, None], self.cache, self.pos, bias)
        token = self.pick(self.model.lm_head(h[:, -1]))
        n = self.pos[:, 0] - self.T + 1
        self.out[self.row.clamp(max=P), n] = token
        end = (token == END) | (n == self.new - 1)
        more = end.cumsum(0)
        self.row.copy_(torch.where(end, self.count[0] + more - 1, self.row))
        self.at.copy_(self.row % P)
        self.count[0] += more[-1]; self.count[1] += more[-1] + len(token)
        self.first.copy_(torch.where(end, self.firsts[self.at], self.first))
        old = data[:, :, :self.T]
        old.copy_(torch.where(end[:, None, None], self.read[:, self.at], old))
        self.token.copy_(torch.where(end, self.leads[self.row//P % 16, self.at], token))
        self.pos.copy_(torch.where(end, self.T, self.T + n)[:, None])
        self.out[self.row.clamp(max=P), self.pos[:, 0] - self.T] = self.token

    def window(self, seconds):
        "Serve for a while: joules, seconds, answers ended, tokens written."
        wait(); begun, steps = self.count.tolist(), 0
        with Meter() as m:
            while m.seconds < seconds:
                for _ in range(16): self.step()
                wait(); steps += 16
        answers, tokens = (b - a for a, b in zip(begun, self.count.tolist()))
        return dict(seconds=m.seconds, joules=m.joules, answers=answers, tokens=tokens, steps=steps)

    def graded(self):
        "The first answer to each problem: how many are right, complete, and how long they are."
        rows = [r[:r.index(END) + 1] if END in r else r for r in self.out[:-1].tolist()]
        right = sum(verify(q, decode(self.behind + [i for i in r if i != END])).answer
                    for q, r in zip(self.problems, rows))
        return dict(right=int(right), of=len(rows), complete=sum(r[-1] == END for r in rows),
                    mean_tokens=sum(map(len, rows))/len(rows))


def idle(seconds):
    wait()
    with Meter() as m: time.sleep(seconds)
    return dict(seconds=m.seconds, joules=m.joules)


def reading(model, problems, seconds):
    "Reading prompts alone, again and again."
    prompts, n = [chat(q.prompt) for q in problems], 0
    prefill(model, prompts, 0); wait()
    with Meter() as m:
        while m.seconds < seconds: prefill(model, prompts, 0); wait(); n += len(prompts)
    tokens = n//len(prompts)*sum(map(len, prompts))
    return dict(seconds=m.seconds, joules=m.joules, prompts=n, tokens=tokens)


def versions():
    out = dict(torch=torch.__version__, r1nb=r1nb.__version__)
    try: out['nvidia-ml-py'] = version('nvidia-ml-py')
    except PackageNotFoundError: return out
    if DEVICE.type != 'cuda': return out
    import pynvml
    pynvml.nvmlInit()
    return out | dict(driver=str(pynvml.nvmlSystemGetDriverVersion()), cuda=torch.version.cuda)


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('--zero', help='checkpoint folder of the stage zero of a run')
    p.add_argument('--rows', type=int, default=8192)
    p.add_argument('--new', type=int, default=246, help='most tokens of an answer')
    p.add_argument('--seconds', type=float, default=5.)
    p.add_argument('--repeats', type=int, default=3)
    p.add_argument('--limit', type=float, default=52., help='seconds by which the last window ends')
    a = p.parse_args()
    torch.manual_seed(0)
    problems = countdown(min(a.rows, 2048), seed=5, split='held_out')
    base = R1Model.from_pretrained(Path(r1nb.__file__).parent/'assets'/'nano', DEVICE).eval()
    quiet = [idle(.4*a.seconds)]
    thinks = R1Model.from_pretrained(a.zero, DEVICE).eval() if a.zero else base
    ways = dict(direct=(base, EMPTY, a.new), zero=(thinks, [], a.new),
                base=(base, [], a.new), tight=(base, EMPTY, 24))
    services = {k: Service(*ways[k], problems, a.rows) for k in ways}
    rows = [dict(way=k, **services[k].window(a.seconds)) for _ in range(a.repeats)
            for k in ('direct', 'zero')]
    read = reading(base, problems, .4*a.seconds)
    quiet.append(idle(.4*a.seconds))
    rows += [dict(way=k, **services[k].window(.6*a.seconds)) for k in ('base', 'tight')*2
             if time.perf_counter() - START < a.limit - .6*a.seconds]
    c = base.config
    print(json.dumps(dict(
        what='one small model (r1nb nano) answers Countdown problems at temperature 1: directly, '
             'as the base model thinks, as R1-Zero (60 steps, seed 0) thinks; all rows are busy',
        date=str(date.today()), hardware=hardware(), versions=versions(), rows=a.rows,
        command=f'python tests/gpu_energy.py --zero CHECKPOINT --rows {a.rows} --new {a.new}',
        dtype=str(base.lm_head.weight.dtype)[6:], layers=c.num_hidden_layers, width=c.hidden_size,
        idle=quiet, prompts=read, graded={k: s.graded() for k, s in services.items()},
        windows=rows), indent=1))


if __name__ == '__main__': main()
