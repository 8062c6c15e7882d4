// D[M,N] = A[M,K] B[N,K]^T in FP8 with block scales: A has one scale for 1x128 values,
// B has one for 128x128.
//
//      global memory             shared memory, STAGES deep            registers
//   A, B, scales ─copy engine─▶ │ A0 B0 s0 │ A1 B1 s1 │ A2 B2 s2 │ ─▶ part = A_k B_k^T
//   one thread asks,             full[i] ▲          │ empty[i]         (tensor cores, 128 of K)
//   nobody computes                      └──────────┘                  sum += s_a s_b part
//                                                                      (ordinary FP32)
// Why the sum is not left in the tensor core: its accumulator keeps about 14 bits (DeepSeek-V3,
// section 3.3.2), and the scales change every 128 of K. So `part` starts afresh each 128 and is
// promoted. While one warpgroup promotes, the tensor cores work for the other: that is why there
// are two.
//
// Compiled in: BM BN tile, MATH warpgroups (each owns 64 rows at a time), STAGES,
//   CLUSTER blocks that cooperate, and
//   SHARE  0 nothing | 1 the blocks of a cluster share rows of A | 2 they share rows of B
//          3 they split K and add up, one tile a cluster
//   KIND   0 one product | 1 groups one after another along M: `groups[m / 128]` says whose
//          (negative: nobody's) | 2 groups apart: A[G,M,K], `groups[g]` rows of each are real
//   FLOAT  0: D is bf16, by the copy engine | 1: D is fp32, by ordinary stores
//          2: D is bf16, by ordinary stores
//   STEPS  K / 128, rounded up; UNROLL of them are written out one after another
//   GROUP  tiles of M that are walked together, so that their A stays in L2
#include "wgmma.cuh"

constexpr int BK = 128, WAVES = BM / (64 * MATH), THREADS = 128 * (MATH + 1);
constexpr int A_BYTES = BM * BK, B_BYTES = BN * BK;
constexpr int SA_BYTES = BM * 4;       // scales of A: one a row
constexpr int SB_BYTES = 32;           // of B: 4 steps of K for 2 blocks of rows
constexpr int SLOTS = STAGES / 4 + 3;  // more of the latter than the stages can ask for
constexpr int SWIZZLE = BN % 64 == 0 ? 128 : BN % 32 == 0 ? 64 : 32;  // bytes of D stored together
constexpr bool SPLIT = SHARE == 3;
constexpr int AT_ONCE = UNROLL;
constexpr int PITCH = BN + 8;  // floats from row to row of a partial sum: no bank twice
constexpr int D_BYTES = SPLIT ? BM * PITCH * 4 : FLOAT ? 0 : BM * BN * 2;
static_assert(BM % (64 * MATH) == 0 && BN % 16 == 0 && CLUSTER >= 1, "tile");

extern __shared__ __align__(1024) u8 raw[];  // the dynamic shared memory

struct Smem {  // offsets in dynamic shared memory
  static constexpr int a = 0, b = a + STAGES * A_BYTES, d = b + STAGES * B_BYTES;
  static constexpr int sa = d + (D_BYTES + 1023) / 1024 * 1024, sb = sa + STAGES * SA_BYTES;
  static constexpr int full = sb + SLOTS * 128, empty = full + 8 * STAGES;
};

// --- which tile, in which order ---------------------------------------------------------------
struct Work {  // first row, first column, whose
  int m, n, group;
};

struct Walk {                       // every role walks the same tiles in the same order
  int M, N, G, unit, step, before;  // before: units of the groups already passed
  const int* groups;
  int g;
  DEVICE Walk(int M, int N, int G, const int* groups)
      : M(M), N(N), G(G), groups(groups), before(0), g(0) {
    unit = blockIdx.x / CLUSTER;
    step = gridDim.x / CLUSTER;
  }
  // A unit is what one cluster does at once: CLUSTER tiles side by side, or one tile with K split.
  static constexpr int UM = BM * (SHARE == 2 ? CLUSTER : 1), UN = BN * (SHARE == 1 ? CLUSTER : 1);
  DEVICE bool next(Work& w) {
    int rank = CLUSTER > 1 ? rank_in_cluster() : 0, rows = M, across = (N + UN - 1) / UN, tall,
        here = unit;
    if constexpr (KIND == 2) {
      for (; g < G; g++) {
        rows = groups[g];
        tall = (rows + UM - 1) / UM;
        if (unit < before + tall * across) break;
        before += tall * across;
      }
      if (g == G) return false;
      here = unit - before;
    } else {
      tall = (rows + UM - 1) / UM;
      if (unit >= tall * across) return false;
    }
    int band = here / (GROUP * across), top = band * GROUP, height = min(GROUP, tall - top);
    int inside = here - band * GROUP * across;
    w.m = (top + inside % height) * UM + (SHARE == 2 ? rank * BM : 0);
    w.n = (inside / height) * UN + (SHARE == 1 ? rank * BN : 0);
    w.group = KIND == 2 ? g : KIND == 1 ? groups[w.m / 128] : 0;
    unit += step;
    return true;
  }
};

DEVICE void release(u32 empty) {  // this warp has read a stage for the last time
  if (CLUSTER == 1 || SPLIT) {
    if (lane() == 0) barrier_arrive(empty);
  } else if (lane() < CLUSTER) barrier_arrive_remote(empty, lane());
}

struct ScaleRing {  // scales of B come four steps at a time
  int slot = -1;
  DEVICE bool step(int k, int first) {
    bool fetch = k == first || k % 4 == 0;
    if (fetch && ++slot == SLOTS) slot = 0;
    return fetch;
  }
};

struct Ring {  // position in the ring of stages
  int stage = 0;
  u32 parity = 0;
  DEVICE void next() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- the roles --------------------------------------------------------------------------------
struct Maps {
  const TensorMap &a, &b, &sa, &sb, &d;
};

DEVICE void copy_in(Maps map, u32 smem, Walk walk, int steps) {  // one thread
  int rank = CLUSTER > 1 ? rank_in_cluster() : 0;
  int first = SPLIT ? steps * rank / CLUSTER : 0,
      last = SPLIT ? steps * (rank + 1) / CLUSTER : steps;
  constexpr u16 EVERYONE = (1 << CLUSTER) - 1;
  Ring ring;
  ScaleRing scales;
  for (Work w; walk.next(w);) {
    if (KIND == 1 && w.group < 0) continue;
    int ga = KIND == 2 ? w.group : 0, gb = w.group;
    for (int k = first; k < last; k++, ring.next()) {
      u32 full = smem + Smem::full + 8 * ring.stage;
      barrier_wait(smem + Smem::empty + 8 * ring.stage, ring.parity ^ 1);
      bool fetch = scales.step(k, first);
      barrier_expect(full, A_BYTES + B_BYTES + SA_BYTES + (fetch ? SB_BYTES : 0));
      if (fetch) tma_load(smem + Smem::sb + scales.slot * 128, map.sb, full, k & ~3, w.n / 128, gb);
      tma_load(smem + Smem::sa + ring.stage * SA_BYTES, map.sa, full, w.m, k, ga);
      u32 a = smem + Smem::a + ring.stage * A_BYTES, b = smem + Smem::b + ring.stage * B_BYTES;
      if constexpr (SHARE == 1) {  // each block brings its part of A to all of them
        constexpr int part = BM / CLUSTER;
        tma_load_multicast(a + rank * part * BK, map.a, full, k * BK, w.m + rank * part, ga,
                           EVERYONE);
      } else tma_load(a, map.a, full, k * BK, w.m, ga);
      if constexpr (SHARE == 2) {
        constexpr int part = BN / CLUSTER;
        tma_load_multicast(b + rank * part * BK, map.b, full, k * BK, w.n + rank * part, gb,
                           EVERYONE);
      } else tma_load(b, map.b, full, k * BK, w.n, gb);
    }
  }
}

// sum += s_a s_b part. Columns before `former` belong to the first of the two blocks of B that a
// tile may straddle.
DEVICE void promote(float (&sum)[BN / 2], const float (&part)[BN / 2], const float4& s,
                    int former) {
#pragma unroll
  for (int i = 0; i < BN / 8; i++) {
    bool one = i * 8 < former;
    float top = one ? s.x : s.z, bottom = one ? s.y : s.w;
    sum[4 * i + 0] += top * part[4 * i + 0];
    sum[4 * i + 1] += top * part[4 * i + 1];
    sum[4 * i + 2] += bottom * part[4 * i + 2];
    sum[4 * i + 3] += bottom * part[4 * i + 3];
  }
}

// All of K for one tile.
template <int FORMER>  // columns before the boundary, 0: known at run time
DEVICE void multiply(float (&sum)[WAVES][BN / 2], u32 smem, Ring& ring, ScaleRing& scales,
                     int first, int last, int wg, int run_time) {
  // a thread holds row warp*16 + lane/4 of its warpgroup's 64, and the one 8 further down
  int row = wg * 64 + (threadIdx.x / 32 % 4) * 16 + lane() / 4;
  int former = FORMER ? FORMER : run_time;
  u32 a0 = matrix_low(smem + Smem::a + wg * 64 * BK), b0 = matrix_low(smem + Smem::b);
#pragma unroll AT_ONCE
  for (int k = first; k < last; k++, ring.next()) {
    scales.step(k, first);
    const float* sa = (const float*)(raw + Smem::sa + ring.stage * SA_BYTES) + row;
    const float* sb = (const float*)(raw + Smem::sb + scales.slot * 128) + (k & 3);
    u32 a = a0 + ring.stage * (A_BYTES / 16), b = b0 + ring.stage * (B_BYTES / 16);
    barrier_wait(smem + Smem::full + 8 * ring.stage, ring.parity);
    float s0 = sb[0], s1 = FORMER >= BN ? s0 : sb[4];
#pragma unroll
    for (int w = 0; w < WAVES; w++) {
      float top = sa[w * 64 * MATH], bottom = sa[w * 64 * MATH + 8];
      float4 s = make_float4(top * s0, bottom * s0, top * s1, bottom * s1);
      float part[BN / 2];
      keep_in_registers(part);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < BK / 32; i++)
        wgmma_fp8(part, matrix_of(a + w * MATH * 64 * BK / 16 + 2 * i), matrix_of(b + 2 * i),
                  i > 0);
      wgmma_commit();
      wgmma_wait<0>();
      keep_in_registers(part);
      if (w == WAVES - 1) release(smem + Smem::empty + 8 * ring.stage);
      promote(sum[w], part, s, former);
    }
  }
}

// bf16 through shared memory: 16-byte pieces go where the store's swizzle expects them, then the
// copy engine takes over.
DEVICE void store_bf16(const float (&sum)[WAVES][BN / 2], u32 smem, Maps map, Work w, int wg) {
  int warp = threadIdx.x / 32 % 4, l = lane();
  if (threadIdx.x % 128 == 0) store_wait_read<0>();  // the tile before this one has left
  named_barrier(1 + wg, 128);
#pragma unroll
  for (int v = 0; v < WAVES; v++) {
    u32 d = smem + Smem::d + (v * MATH + wg) * 64 * BN * 2;
    int row = warp * 16 + l % 16;
#pragma unroll
    for (int j = 0; j < BN / 16; j++) {
      const float* x = sum[v] + 8 * j;
      int piece = 2 * j + l / 16, across = piece % (SWIZZLE / 16), block = piece / (SWIZZLE / 16);
      u32 to = d + block * 64 * SWIZZLE + row * SWIZZLE
               + ((across ^ (row * SWIZZLE / 128)) % (SWIZZLE / 16)) * 16;
      store_matrices(to, pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                     pack_bf16(x[6], x[7]));
    }
  }
  fence_async();
  named_barrier(1 + wg, 128);
  if (threadIdx.x % 128 == 0) {
#pragma unroll
    for (int v = 0; v < WAVES; v++)
#pragma unroll
      for (int j = 0; j < BN * 2 / SWIZZLE; j++)
        tma_store(map.d, smem + Smem::d + (v * MATH + wg) * 64 * BN * 2 + j * 64 * SWIZZLE,
                  w.n + j * SWIZZLE / 2, w.m + (v * MATH + wg) * 64, KIND == 2 ? w.group : 0);
    store_commit();
  }
}

DEVICE void store_one(void* d, long at, float x) {
  if (FLOAT == 1) ((float*)d)[at] = x;
  else ((u16*)d)[at] = (u16)pack_bf16(x, 0.f);
}

DEVICE void store_plain(const float (&sum)[WAVES][BN / 2], void* d, Work w, int wg, int M, int N) {
  int row = wg * 64 + (threadIdx.x / 32 % 4) * 16 + lane() / 4;
#pragma unroll
  for (int v = 0; v < WAVES; v++)
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
      int m = w.m + v * 64 * MATH + row + (i % 4 / 2) * 8,
          n = w.n + i / 4 * 8 + lane() % 4 * 2 + i % 2;
      if (m < M && n < N)
        store_one(d, ((long)(KIND == 2 ? w.group : 0) * M + m) * N + n, sum[v][i]);
    }
}

// The blocks of a cluster hold sums over different K: each adds up its share of the rows, reading
// the others' memory.
DEVICE void store_split(const float (&sum)[WAVES][BN / 2], u32 smem, void* d, Work w, int wg, int M,
                        int N) {
  float* mine = (float*)(raw + Smem::d);
  int row = wg * 64 + (threadIdx.x / 32 % 4) * 16 + lane() / 4;
#pragma unroll
  for (int v = 0; v < WAVES; v++)
#pragma unroll
    for (int i = 0; i < BN / 2; i += 2) {
      int m = v * 64 * MATH + row + (i % 4 / 2) * 8, n = i / 4 * 8 + lane() % 4 * 2;
      *(float2*)(mine + m * PITCH + n) = *(const float2*)&sum[v][i];
    }
  cluster_barrier();
  constexpr int QUADS = BM * BN / 4;
  int rank = rank_in_cluster();
  for (int q = rank * QUADS / CLUSTER + threadIdx.x; q < (rank + 1) * QUADS / CLUSTER;
       q += MATH * 128) {
    u32 from = smem + Smem::d + (q * 4 / BN * PITCH + q * 4 % BN) * 4;
    float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int r = 0; r < CLUSTER; r++) {
      float4 y = load_remote4(in_block(from, r));
      x.x += y.x;
      x.y += y.y;
      x.z += y.z;
      x.w += y.w;
    }
    int m = w.m + q * 4 / BN, n = w.n + q * 4 % BN;
    if (m >= M) continue;
    long at = ((long)(KIND == 2 ? w.group : 0) * M + m) * N + n;
    if (FLOAT != 1 && n + 3 < N && at % 4 == 0)
      *(uint2*)((u16*)d + at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    else {
      if (n < N) store_one(d, at, x.x);
      if (n + 1 < N) store_one(d, at + 1, x.y);
      if (n + 2 < N) store_one(d, at + 2, x.z);
      if (n + 3 < N) store_one(d, at + 3, x.w);
    }
  }
  cluster_barrier();  // nobody leaves or overwrites while others read
}

DEVICE void compute(Maps map, u32 smem, Walk walk, int steps, void* d) {
  int wg = __shfl_sync(~0u, threadIdx.x / 128, 0), rank = SPLIT ? rank_in_cluster() : 0;
  int first = SPLIT ? steps * rank / CLUSTER : 0,
      last = SPLIT ? steps * (rank + 1) / CLUSTER : steps;
  int M = walk.M, N = walk.N;
  Ring ring;
  ScaleRing scales;
  for (Work w; walk.next(w);) {
    if (KIND == 1 && w.group < 0) continue;
    float sum[WAVES][BN / 2] = {};
    int former = 128 - w.n % 128;
    if (former >= BN) multiply<BN>(sum, smem, ring, scales, first, last, wg, former);
    else if (BN == 192 && former == 128)
      multiply<128>(sum, smem, ring, scales, first, last, wg, former);
    else if (BN == 192) multiply<64>(sum, smem, ring, scales, first, last, wg, former);
    else multiply<0>(sum, smem, ring, scales, first, last, wg, former);
    if constexpr (SPLIT) store_split(sum, smem, d, w, wg, M, N);
    else if constexpr (FLOAT) store_plain(sum, d, w, wg, M, N);
    else store_bf16(sum, smem, map, w, wg);
  }
  if (!FLOAT && !SPLIT && threadIdx.x % 128 == 0) store_wait<0>();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
         const __grid_constant__ TensorMap sa, const __grid_constant__ TensorMap sb,
         const __grid_constant__ TensorMap d_map, void* d, const int* groups, int M, int N, int K,
         int G) {
  u32 smem = shared(raw);
  Maps map{a, b, sa, sb, d_map};
  if (threadIdx.x == 0) {
    prefetch_map(a);
    prefetch_map(b);
    prefetch_map(sa);
    prefetch_map(sb);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(smem + Smem::full + 8 * i, 1);
      barrier_init(smem + Smem::empty + 8 * i, MATH * 4 * (SPLIT ? 1 : CLUSTER));
    }
    fence_barrier_init();
    fence_async();
  }
  if (CLUSTER > 1) cluster_barrier();
  else __syncthreads();
  Walk walk(M, N, G, groups);
  constexpr int steps = STEPS;
  if (threadIdx.x >= 128 * MATH) {
    if constexpr (MATH == 2) give_registers<40>();
    if (threadIdx.x == 128 * MATH) copy_in(map, smem, walk, steps);
    if constexpr (SPLIT) {  // store_split's barriers count every thread
      __syncwarp();
      cluster_barrier();
      cluster_barrier();
    }
  } else {
    if constexpr (MATH == 2) take_registers<232>();
    compute(map, smem, walk, steps, d);
  }
  if (CLUSTER > 1) cluster_barrier();  // a block that has left cannot be written to
}
