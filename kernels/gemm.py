"""Launch gemm.cu: choose the tile for a shape, describe the tensors to the copy engine, go."""
import functools
from dataclasses import dataclass, replace
from r1nb.core import require
from r1nb.kernels.jit import kernel, tensor_map

SMEM = 232_448          # bytes of shared memory a block of an H100 or H200 may have


@dataclass(frozen=True)
class Tile:
    "What gemm.cu is compiled with; its header says what the names mean."
    BM:int; BN:int; CLUSTER:int=1; SHARE:int=0; GROUP:int=16; FLOAT:int=0; KIND:int=0; UNROLL:int=4

    @property
    def MATH(self): return min(2, self.BM//64)
    @property
    def per_stage(self):                 # bytes of A, B, scales of A, two barriers
        return (self.BM + self.BN)*128 + self.BM*4 + 16
    @property
    def d_bytes(self):
        size = self.BM*((self.BN + 8)*4 if self.SHARE == 3 else 0 if self.FLOAT else self.BN*2)
        return -(-size//1024)*1024
    @property
    def STAGES(self): return min(16, (SMEM - self.d_bytes - 7*128)//self.per_stage)
    @property
    def smem(self): return self.d_bytes + self.STAGES*self.per_stage + (self.STAGES//4 + 3)*128

    def defines(self):
        names = 'BM BN MATH CLUSTER SHARE GROUP FLOAT KIND UNROLL STAGES'
        return {k: getattr(self, k) for k in names.split()}


# --- which tile ----------------------------------------------------------------------------------

CANDIDATES = ([Tile(256, 128, 2, 1), Tile(128, 192, 2, 1), Tile(128, 128, 2, 1)]
              + [Tile(bm, bn) for bm in (64, 128) for bn in (64, 96, 112, 128, 192)]
              + [Tile(bm, bn, s, 3) for bm in (64, 128)
                 for bn, s in ((64, 2), (112, 2), (128, 2), (80, 4), (96, 4), (128, 4))])


def seconds(
    tile,      # a candidate
    M:int,     # rows of A
    N:int,     # rows of B
    K:int,     # what is summed over
)->float:      # predicted seconds on an H200
    "A launch, then waves of blocks; a step of a wave takes what its slowest resource takes."
    rows, cols, steps = -(-M//tile.BM), -(-N//tile.BN), -(-K//128)
    at_once = {1: 132, 2: 66, 4: 30}[tile.CLUSTER]    # clusters of four leave corners of the chip
    split = tile.CLUSTER if tile.SHARE == 3 else 1
    tiles = rows*cols if tile.SHARE in (0, 3) else rows*(-(-cols//tile.CLUSTER))
    live = min(tiles*tile.CLUSTER, 132)
    unique = live*tile.BN/min(rows, live)             # rows of B that come from memory in a step
    loaded = tile.BM/(tile.CLUSTER if tile.SHARE == 1 else 1) + tile.BN
    step = max(0.1e-6,                                # latency: barrier, wgmma, promotion
               loaded*128/75e9,                       # L2 to one multiprocessor
               unique*128/4.3e12,                     # memory to the chip
               2*tile.BM*tile.BN*128/9.9e12           # tensor cores: small tiles overlap less
               * (tile.BM*tile.BN/32768)**-0.4)
    return 2.5e-6 + -(-tiles//at_once)*-(-steps//split)*step + 2e-6*(split > 1)


@functools.cache
def choose(
    M:int,           # rows of A
    N:int,           # rows of B
    K:int,           # what is summed over
    FLOAT:int=0,     # as in gemm.cu
)->Tile:             # the candidate predicted to be fastest
    "The candidate predicted to be fastest: in the geometric mean 1 % behind the best one timed."
    few = M <= 128                                    # then nobody shares A, and no row is made up
    best = min((t for t in CANDIDATES if t.STAGES >= 3
                and not (few and (t.SHARE == 1 or t.BM > -(-M//64)*64))),
               key=lambda t: seconds(t, M, N, K))
    return replace(best, FLOAT=FLOAT, GROUP=8 if K >= 4096 and best.BM == 256 else 16,
                   UNROLL=8 if best.BM == 256 and K >= 2048 else 4)


# --- launch --------------------------------------------------------------------------------------

@functools.cache
def sms(device):
    import torch
    return torch.cuda.get_device_properties(device).multi_processor_count


def blocks(tile, M, N, G, device):
    "One a multiprocessor, walking over the tiles; or one tile for each cluster that splits K."
    if tile.SHARE != 3: return sms(device)//tile.CLUSTER*tile.CLUSTER
    return -(-M//tile.BM) * -(-N//tile.BN) * G * tile.CLUSTER


def aligned(
    x,      # [...,n] fp32
):          # the same values, last dimension contiguous, rows at multiples of 16 bytes
    "Scales as the copy engine reads them; a copy only where they are not so already."
    import torch
    rows = all(s % 4 == 0 for s in x.stride()[:-1]) and x.data_ptr() % 16 == 0
    if rows and x.stride(-1) == 1: return x
    n = x.shape[-1]
    room = torch.empty(*x.shape[:-1], -(-n//4)*4, device=x.device, dtype=torch.float32)
    room[..., :n] = x
    return room[..., :n]


def launch(
    tile,            # a Tile
    a,               # [G,M,K] e4m3
    sa,              # [G,K/128,M] fp32
    b,               # [E,N,K] e4m3
    sb,              # [E,N/128,K/128] fp32
    d,               # [G,M,N] bf16, or fp32 with FLOAT 1
    groups=None,     # int32, as gemm.cu says
):                   # d, written
    "Run gemm.cu with one choice of tile."
    (G, M, K), (E, N, _) = a.shape, b.shape
    a, b = (t if t.data_ptr() % 16 == 0 else t.clone() for t in (a, b))   # for the copy engine
    part = {1: (tile.CLUSTER, 1), 2: (1, tile.CLUSTER)}.get(tile.SHARE, (1, 1))
    maps = [tensor_map(a, (1, tile.BM//part[0], 128)), tensor_map(b, (1, tile.BN//part[1], 128)),
            tensor_map(sa, (1, 1, tile.BM), swizzle=0), tensor_map(sb, (1, 2, 4), swizzle=0)]
    swizzle = 128 if tile.BN % 64 == 0 else 64 if tile.BN % 32 == 0 else 32
    plain = tile.FLOAT or tile.SHARE == 3
    maps.append(maps[0] if plain else tensor_map(d, (1, 64, swizzle//2), swizzle=swizzle))
    run = kernel('gemm.cu', 'gemm', STEPS=-(-K//128), **tile.defines())
    run(blocks(tile, M, N, G, a.device), 128*(tile.MATH + 1), *maps, d, groups, M, N, K, G,
        smem=tile.smem, cluster=tile.CLUSTER)
    return d


def output(a, b, dtype):
    "An empty D, and FLOAT for it; refuses what the kernel cannot do."
    import torch
    (G, M, K), (E, N, Kb) = a.shape, b.shape
    require(K == Kb, f'a has K={K} and b has K={Kb}: they are summed over the same K')
    require(K % 16 == 0, f'K={K}: the copy engine needs rows of multiples of 16 bytes; '
                         'pad K with zeros')
    require(dtype in (torch.bfloat16, torch.float32),
            f'out_dtype={dtype}: gemm.cu writes bfloat16 or float32')
    require(a.dtype == b.dtype == torch.float8_e4m3fn,
            f'a is {a.dtype}, b is {b.dtype}: gemm.cu multiplies float8_e4m3fn')
    float_ = 1 if dtype == torch.float32 else 2 if N % 8 else 0
    return torch.empty(G, M, N, device=a.device, dtype=dtype), float_


def gemm(
    a,               # [M,K] e4m3
    sa,              # [M,ceil(K/128)] fp32, one scale for 128 values of a row
    b,               # [N,K] e4m3
    sb,              # [ceil(N/128),ceil(K/128)] fp32, one scale for a block of 128 x 128
    dtype,           # torch.bfloat16 or torch.float32
):                   # [M,N]
    "a b^T with block scales."
    d, float_ = output(a[None], b[None], dtype)
    (M, K), N = a.shape, len(b)
    if d.numel():
        tile = choose(M, N, K, float_)
        launch(tile, a[None], aligned(sa.t())[None], b[None], aligned(sb)[None], d)
    return d[0]


def contiguous(
    a,               # [M,K] e4m3: the groups' rows one after another, each group padded to 128 rows
    sa,              # [M,ceil(K/128)] fp32
    b,               # [E,N,K] e4m3
    sb,              # [E,ceil(N/128),ceil(K/128)] fp32
    groups,          # [M/128] int32: whose the 128 rows are; negative: nobody's, left unwritten
    dtype,           # torch.bfloat16 or torch.float32
):                   # [M,N]
    "Each block of 128 rows of a times its own group's b^T."
    d, float_ = output(a[None], b, dtype)
    require(len(a) == 128*len(groups),
            f'{len(a)} rows of a are not 128 for each of {len(groups)} entries of groups')
    tile = Tile(128, 192, 2, 1, 8 if a.shape[1] >= 4096 else 16, float_, 1)
    if d.numel(): launch(tile, a[None], aligned(sa.t())[None], b, aligned(sb), d, groups)
    return d[0]


def masked(
    a,               # [E,M,K] e4m3: room for M rows in each group
    sa,              # [E,M,ceil(K/128)] fp32
    b,               # [E,N,K] e4m3
    sb,              # [E,ceil(N/128),ceil(K/128)] fp32
    rows,            # [E] int32, on the GPU: how many rows of each group are real
    dtype,           # torch.bfloat16 or torch.float32
    expected:int=None, # rows a group has on average, if known: chooses the tile
):                   # [E,M,N]; rows past a group's count hold nothing of use
    "The first rows[e] rows of a[e] times b[e]^T: no copy to the CPU, so a CUDA graph can hold it."
    d, float_ = output(a, b, dtype)
    few = (expected or a.shape[1]) <= 64
    tile = Tile(64, 128, 1, 0, 64, float_, 2) if few else Tile(128, 128, 2, 1, 16, float_, 2)
    if d.numel(): launch(tile, a, aligned(sa.transpose(1, 2)), b, aligned(sb), d, rows)
    return d
