"""Inputs for quantisation that are the same on every machine: made by integer arithmetic."""
import hashlib, itertools
import torch
from r1nb.fp8 import quantize, quantize_weight

SHAPES = [(1, 1), (1, 128), (3, 130), (8, 512), (129, 7), (64, 1536), (130, 2112), (257, 1000),
          (5, 576), (33, 7168)]
OPTIONS = list(itertools.product(SHAPES, (torch.bfloat16, torch.float32), (False, True)))
WAYS = (quantize, {}), (quantize, dict(mn_major=True)), (quantize_weight, {})

def patterns(n, salt):
    "n numbers of 32 bits."
    i = torch.arange(n, dtype=torch.int64) + salt*7919
    h = (i*2654435761 + 40503) % 2**32
    h = ((h ^ (h >> 15))*2246822519) % 2**32
    return h ^ (h >> 13)

def contents(M, K):
    "(name, fp32 [M,K]); the last ones are nasty."
    h = patterns(M*K, M + K)
    plain = ((h % 65536).double()/32768 - 1).float().view(M, K)
    bits = torch.where(h >= 2**31, h - 2**32, h).to(torch.int32).view(torch.float32).view(M, K)
    yield 'plain', plain
    yield 'wide', plain*torch.exp2((h >> 16).view(M, K) % 40 - 20.)
    yield 'zeros', plain*((h >> 20).view(M, K) % 3 == 0)*0
    yield 'tiny', plain*2.**-133
    yield 'huge', plain*3e38
    yield 'any bits', bits

def u8(t):
    "The bytes, whatever the strides."
    return torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t).view(torch.uint8)

def digest(ts):
    d = hashlib.sha256()
    for t in ts: d.update(u8(t).cpu().numpy().tobytes())
    return d.hexdigest()

def fingerprint():
    "Of all codes and scales of the reference on this CPU."
    hashes = [digest(fn(x.to(dt), pow2=pow2, **more)) for (M, K), dt, pow2 in OPTIONS
              for _, x in contents(M, K) for fn, more in WAYS]
    return hashlib.sha256(''.join(hashes).encode()).hexdigest()

def factors(K, kind):
    "Two [16,K] matrices of codes for a sum of K products."
    h = patterns(2*16*K, K).view(2, 16, K)
    q = (h >> 8) % 256
    q = torch.where(q & 127 == 127, 0x38, q)        # any number but NaN
    if kind == 'alike': q = 0x30 + (h >> 8) % 16      # 0.5 to 1.875, all positive
    if kind == 'one large':                         # a product of 2^16 and a tail of 2^-j
        q = torch.full_like(q, 0x38)
        q[1] = torch.arange(0x58, 0x18, -4)[:, None] # 16 and down, in steps of half a power
        q[:, :, 0] = 0x78                           # 256
    return q[0].to(torch.uint8), q[1].to(torch.uint8)

KINDS, LENGTHS = ('any', 'alike', 'one large'), (32, 64, 128, 256, 512, 1024, 4096)
