"""MLA decode on a GPU, 128 heads and the Triton version: is it right?

Outputs are poisoned with NaN, and so is every place that must not be read: tokens behind a
request's end, pages of nobody. Then `--time`: the two implementations beside each other, as
`python -m r1nb.kernels.bench mla` times the kernels alone.   python tests/gpu_mla.py [--time]
"""
import argparse, json, sys
import torch
from r1nb.kernels.bench import race
from r1nb.kernels.mla_decode import buffers, decode64, multiprocessors, workers
from r1nb.kernels.mla_decode_triton import decode as decode_triton
from r1nb.mla_decode import decode, plan
from r1nb.roofline import poison

SCALE = 192**-.5


def inputs(lengths, H, fp8=False, seed=0, loud=1., growing=False):
    "Random q and pages in random order; table entries beyond a request name a page of NaN."
    g = torch.Generator('cuda').manual_seed(seed)
    pages = [-(-n//64) for n in lengths]
    cache = torch.randn(sum(pages)+1, 64, 576, device='cuda', generator=g).bfloat16()
    order = torch.randperm(sum(pages), device='cuda', generator=g).int() + 1
    table = torch.zeros(len(lengths), max(1, *pages)+1, dtype=torch.int32, device='cuda')
    at, cache[0] = 0, torch.nan
    for b, (n, p) in enumerate(zip(lengths, pages)):
        mine = order[at:at+p].long()
        table[b, :p], at = order[at:at+p], at+p
        ramp = torch.linspace(.1, 3, max(p, 1), device='cuda')[:p, None, None]
        if growing: cache[mine] *= ramp
        if n % 64: cache[mine[-1], n % 64:] = torch.nan
    q = (torch.randn(len(lengths), H, 576, device='cuda', generator=g)*loud).bfloat16()
    if fp8: cache = in_fp8(cache)
    return q, cache, table, torch.tensor(lengths, dtype=torch.int32, device='cuda')


def in_fp8(cache):
    "(latent, scale, rope): a scale for 128 columns."
    latent, scale = [], []
    for part in cache[..., :512].split(1024):            # pieces: the float copies are large
        part = part.float().view(-1, 64, 4, 128)
        scale.append((part.abs().amax(-1)/448).contiguous())
        latent.append((part/scale[-1][..., None]).to(torch.float8_e4m3fn).view(-1, 64, 512))
    return torch.cat(latent), torch.cat(scale), cache[..., 512:].contiguous()


def reference(q, cache, table, lengths):
    "Float64 of the stored numbers; FP8 ones are widened to bf16 first, as the kernels do."
    B, H = q.shape[:2]
    out = q.new_zeros(B, H, 512, dtype=torch.float64)
    lse = q.new_full((B, H), -torch.inf, dtype=torch.float64)
    for b, n in enumerate(lengths.tolist()):
        if not n: continue
        pages = table[b, :-(-n//64)].long()
        if isinstance(cache, tuple):
            latent, scale, rope = (t[pages].float() for t in cache)
            latent = (latent*scale.repeat_interleave(128, -1)).bfloat16()
            k = torch.cat([latent.double(), rope.double()], -1)
        else: k = cache[pages].double()
        k = k.reshape(-1, 576)[:n]
        s = q[b].double() @ k.T*SCALE
        out[b], lse[b] = s.softmax(-1) @ k[:, :512], s.logsumexp(-1)
    return out, lse


def check(name, run, lengths, H, fp8, **kw):
    x = inputs(lengths, H, fp8, seed=len(lengths)*7+H+lengths[0], **kw)
    out, lse = run(*x)
    torch.cuda.synchronize()
    want, want_lse = reference(*x)
    live = want_lse > -torch.inf
    error = ((out.double()-want).norm()/want.norm().clamp_min(1e-30)).item()
    error_lse = (lse.double()-want_lse)[live].abs().max().item() if live.any() else 0.
    dead = bool((lse[~live] == -torch.inf).all()) and bool((out[~live] == 0).all())
    ok = error < 4e-3 and error_lse < 1e-3 and dead      # P and out are rounded to 8 bits
    kind = 'fp8 ' if fp8 else 'bf16'
    print('ok ' if ok else 'BAD', kind, name, f'out {error:.1e}, lse {error_lse:.0e}', flush=True)
    return ok


def cuda(q, cache, table, lengths):
    room = buffers(q, 2*workers(q))
    for t in room: poison(t)
    return decode64(q, cache, table, lengths, SCALE, out=room)


def checks(fp8, portable=True):
    triton = lambda q, *x: decode_triton(q, *x, SCALE)
    door = lambda q, *x: decode(q, *x, SCALE, impl='cuda')
    g = torch.Generator().manual_seed(1)
    ragged = torch.randint(1, 3000, (32,), generator=g).tolist()
    many = torch.randint(1, 700, (128,), generator=g).tolist()
    rows = [(f'{n} tokens', cuda, [n], 128, {}) for n in (1, 63, 64, 65, 128, 129, 257, 4097)]
    rows += [('64 heads', cuda, [700, 64, 3000], 64, {}),
             ('256 heads', cuda, [700, 64, 3000], 256, {}),
             ('ragged', cuda, ragged, 128, {}), ('none cut', cuda, list(range(64, 124)), 128, {}),
             ('128 requests', cuda, many, 128, {}),
             ('very unequal', cuda, [20000, 1, 0, 64, 5, 300, 0], 128, {}),
             ('loud', cuda, [1000, 2000, 3000], 128, dict(loud=5.)),
             ('growing', cuda, [1000, 2000, 3000], 128, dict(growing=True)),
             ('the door, 100 heads', door, [65, 1000], 100, {}),
             ('Triton, 128 heads', triton, [1000, 0, 65, 1], 128, {}),
             ('Triton, 5 heads', triton, [1000, 0, 65, 1], 5, {})]
    return all([check(name, run, lengths, H, fp8, **kw) for name, run, lengths, H, kw in rows
                if portable or run is not triton])


def times(B, L, H, fp8):
    "Microseconds of a call: the merge counts, the plan does not."
    size = B*L*(656 if fp8 else 1152)
    sets = [inputs([L]*B, H, fp8, seed=i) for i in range(max(2, -(-220_000_000//size)))]
    q = sets[0][0]
    n, groups = multiprocessors(q.device), -(-H//64)
    portable = plan([L]*B, n*(2 if H <= 16 else 1)//groups, unit=64).to('cuda')
    fns = {'triton': lambda *x: decode_triton(*x, SCALE, portable)}
    if H > 16:
        p = plan([L]*B, workers(q)).to('cuda')
        fns['cuda'] = lambda *x: decode64(*x, SCALE, plan=p)
    for impl, s in race(fns, sets).items():
        flops, bytes = 2*H*B*L*1088, size + B*H*2176
        yield dict(impl=impl, heads=H, cache='fp8' if fp8 else 'bf16', batch=B, length=L, us=s*1e6,
                   tflops=flops/s/1e12, gbps=bytes/s/1e9)


def main():
    a = argparse.ArgumentParser()
    a.add_argument('--time', action='store_true'); a.add_argument('--out')
    a = a.parse_args()
    ok, rows = checks(False) & checks(True), []
    for H in (128, 16) if a.time else ():
        for fp8 in (False, True):
            for r in times(32, 4096, H, fp8):
                rows.append(r)
                print('h{heads} {cache} b{batch} L{length} {impl}: {us:.1f} us, {tflops:.0f} '
                      'TFLOP/s, {gbps:.0f} GB/s'.format(**r), flush=True)
    if a.out:
        about = dict(gpu=torch.cuda.get_device_name(), torch=torch.__version__)
        json.dump(about | dict(rows=rows), open(a.out, 'w'), indent=1)
    sys.exit(not ok)


if __name__ == '__main__': main()
