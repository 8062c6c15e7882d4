// MLA decode over a paged latent cache: 64 heads a block, bf16, sm_90a.
//
// For each segment of the plan (one request, some of its tokens) and each group of 64 heads:
//   S = Q K^T (576 wide),  P = exp2(c S - m),  O = sum P V / sum P,  where V is the first 512 columns of K.
// O is 64 x 512 floats: half of all registers. Two warpgroups hold 256 columns each, and both need every P.
// A step takes two pages of 64 tokens: warpgroup 0 makes P0 (page 0), warpgroup 1 makes P1 (page 1).
//
//                            time ->
//   tensor cores   | Q K1      | P0 V0left | P0 V0right | P1 V1left P1 V1right | Q K0 (next) | Q K1 ...
//   warpgroup 0    | softmax 0 |...........|............|......................|.............| softmax 0
//   warpgroup 1    |...........|       softmax 1        |......................|.............|
//   copy engine    |           K0left free ^  K0right free ^           K1 free ^   next pages fly in
//
// m is one running maximum for both: page 0 moves it, then page 1, and each warpgroup learns of the other's
// move together with the other's P. It moves only when a score passes it by 2^8, so O is almost never rescaled.
// P0 and P1 live where the rope columns of their pages were: no other product needs those.
// The producer warp fills nine 64x64 boxes a page, each with its own barrier, so that Q K starts on the first.
// Blocks of a cluster hold different heads of the same tokens: each loads half of every box for both.
#include "wgmma.cuh"

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)     // NVRTC has no math.h
#endif

#ifndef CLUSTER
#define CLUSTER 2          // blocks that share loads (they hold different heads of the same request)
#endif
#ifndef PREFETCH
#define PREFETCH 1         // steps ahead that pages are brought into L2; 0: not
#endif
#ifndef FP8
#define FP8 0              // the cache holds 8-bit latents with a scale per 128 columns
#endif
#ifndef EARLY
#define EARLY 1
#endif
#ifndef PF
#define PF 2
#endif
#ifndef SERIAL
#define SERIAL 0
#endif
#ifndef TURNS
#define TURNS 1            // warpgroup 1 starts its scores when warpgroup 0's are nearly done
#endif

constexpr int WIDE = 576, LATENT = 512, ROWS = 64, BOXES = WIDE/64;
constexpr u32 BOX = 64*64*2, PAGE = BOXES*BOX;
constexpr int Q_AT = 0, K_AT = PAGE, SHARED_M = 3*PAGE, SHARED_L = SHARED_M + 2*ROWS*4, BARRIERS = SHARED_L + 2*ROWS*4;
constexpr float PATIENCE = 8;                                     // log2 of what P may reach

enum { P_READY = 1, MY_TURN = 3, BOTH = 4, ALONE = 5 };           // named barriers: P_READY and ALONE, one a warpgroup

struct Places {            // addresses in shared memory
  u32 base;
  DEVICE u32 q() const { return base + Q_AT; }
  DEVICE u32 k(int which) const { return base + K_AT + which*PAGE; }
  DEVICE u32 bar(int i) const { return base + BARRIERS + 8*i; }
  DEVICE u32 q_empty() const { return bar(0); }
  DEVICE u32 empty(int which, int half) const { return bar(1 + 2*which + half); }
  DEVICE u32 q_full(int box) const { return bar(5 + box); }
  DEVICE u32 full(int which, int box) const { return bar(5 + BOXES + which*BOXES + box); }
};

struct Job {               // what a kernel is asked for
  int begin, end; const int4* segments;            // the worker's own; the plan was made before the kernel before this one
  const int* pages; int max_pages;
  unsigned short* out; float* lse; float* part; float* part_lse;
  int heads; float c;      // c: softmax scale times log2 e
  const char* cache;       // bf16 only: for prefetching
  const uint4* latent; const float* scale;         // FP8 only: (pages,64,512) bytes, (pages,64,4)
};

DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p) : "memory"); }
DEVICE float log2_fast(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// --- the producer: one thread -------------------------------------------------------------------------------

DEVICE void load_box(const Places& at, const TensorMap& map, int which, int box, int page) {
  u32 to = at.k(which) + box*BOX, bar = at.full(which, box);
  barrier_expect(bar, BOX);
  if (CLUSTER == 1) tma_load(to, map, bar, box*64, 0, page, EVICT_FIRST);
  else {
    u32 rank = rank_in_cluster(), rows = ROWS/CLUSTER;
    tma_load_multicast(to + rank*rows*128, map, bar, box*64, rank*rows, page, (1 << CLUSTER) - 1, EVICT_FIRST);
  }
}

DEVICE void prefetch_share(const char* cache, int page) {
  u32 bytes = PAGE/CLUSTER;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(cache + (long long)page*PAGE + rank_in_cluster()*bytes), "r"(bytes) : "memory");
}
// One warp, away from the copy engine: a line a lane.
DEVICE void prefetch_pages(const Places& at, const Job& job) {
  u32 turn = 1, bytes = PAGE/CLUSTER;
  for (int s = job.begin; s < job.end; s++) {
    int4 seg = job.segments[s];
    const int* table = job.pages + (long long)seg.x*job.max_pages;
    int from = seg.y/64, blocks = (seg.z - seg.y + 63)/64;
    for (int i = 0; i < blocks; i += 2, turn ^= 1) {
      barrier_wait(at.empty(0, 0), turn);
      for (int j = i + 2*PREFETCH; j < min(blocks, i + 2*PREFETCH + 2); j++) {
        const char* p = job.cache + (long long)table[from + j]*PAGE + rank_in_cluster()*bytes;
        for (u32 k = lane()*128; k < bytes; k += 32*128) prefetch(p + k);
      }
    }
  }
}

DEVICE void load_q(const Places& at, const TensorMap& map, int box, int row) {
  barrier_expect(at.q_full(box), BOX);
  tma_load(at.q() + box*BOX, map, at.q_full(box), box*64, row);
}

DEVICE void produce(const Places& at, const TensorMap& q_map, const TensorMap& k_map, const Job& job, int head) {
  u32 q_turn = 1, turn = 1;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];                    // request, first token, end token, slot
    const int* table = job.pages + (long long)seg.x*job.max_pages;
    int from = seg.y/64, blocks = (seg.z - seg.y + 63)/64;
    barrier_wait(at.q_empty(), q_turn);
    int page0 = table[from], page1 = table[from + min(1, blocks-1)];
    for (int i = 0; i < blocks; i += 2, turn ^= 1) {
      int next0 = table[from + min(i+2, blocks-1)], next1 = table[from + min(i+3, blocks-1)];
      barrier_wait(at.empty(0, 0), turn);
      #pragma unroll 1
      for (int b = 0; b < BOXES; b++) {
        if (b == 4) barrier_wait(at.empty(0, 1), turn);
        if (i == 0) load_q(at, q_map, b, seg.x*job.heads + head);
        load_box(at, k_map, 0, b, page0);
      }
      barrier_wait(at.empty(1, 0), turn);
      #pragma unroll 1
      for (int b = 0; b < 4; b++) load_box(at, k_map, 1, b, page1);
      load_box(at, k_map, 1, 8, page1);
      barrier_wait(at.empty(1, 1), turn);
      #pragma unroll 1
      for (int b = 4; b < 8; b++) load_box(at, k_map, 1, b, page1);
      if (PREFETCH && PF == 1 && i + 2 < blocks) {
        int y = CLUSTER == 1 ? 0 : rank_in_cluster()*(ROWS/CLUSTER);
        #pragma unroll 1
      for (int b = 0; b < BOXES; b++) { tma_prefetch(k_map, b*64, y, next0); tma_prefetch(k_map, b*64, y, next1); }
      }
      if (PREFETCH && PF == 2 && i + 2 < blocks) { prefetch_share(job.cache, next0); prefetch_share(job.cache, next1); }
      page0 = next0; page1 = next1;
    }
  }
}

// --- the FP8 producer: 128 threads turn 8-bit latents into the bf16 boxes the copy engine would have brought ---

DEVICE u32 two_halves(u32 bytes) { u32 x; asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(x) : "h"((u16)bytes)); return x; }
DEVICE float2 two_floats(u32 halves) {
  float2 x; asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
                : "=f"(x.x), "=f"(x.y) : "r"(halves)); return x;
}
DEVICE u32 widen(u32 bytes, float scale) {         // two bytes to two bf16
  float2 x = two_floats(two_halves(bytes));
  return pack_bf16(x.x*scale, x.y*scale);
}
DEVICE uint4 widen(u32 a, u32 b, float scale) {
  return make_uint4(widen(a, scale), widen(a >> 16, scale), widen(b, scale), widen(b >> 16, scale));
}

// Half a page: 64 tokens, 256 columns. A thread has 16 columns of two tokens in each of four boxes.
struct Half { uint4 raw[4][2]; float2 scale[2]; };

DEVICE void fetch(Half& x, const Job& job, int page, int half) {
  int t = threadIdx.x%128;
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    long long row = (long long)page*64 + t/4 + 32*r;
    x.scale[r] = *(const float2*)(job.scale + row*4 + 2*half);
    #pragma unroll
    for (int b = 0; b < 4; b++) x.raw[b][r] = job.latent[row*32 + half*16 + b*4 + t%4];
  }
}

DEVICE void deliver(const Places& at, const Half& x, int which, int half) {
  int t = threadIdx.x%128;
  #pragma unroll
  for (int b = 0; b < 4; b++) {
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int row = t/4 + 32*r, c = t%4*2;
      float scale = b < 2 ? x.scale[r].x : x.scale[r].y;
      uint4 raw = x.raw[b][r], low = widen(raw.x, raw.y, scale), high = widen(raw.z, raw.w, scale);
      u32 to = at.k(which) + (4*half + b)*BOX + row*128;
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(to + ((c ^ row%8) << 4)), "r"(low.x), "r"(low.y), "r"(low.z), "r"(low.w) : "memory");
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(to + ((c+1 ^ row%8) << 4)), "r"(high.x), "r"(high.y), "r"(high.z), "r"(high.w) : "memory");
    }
    fence_async();
    __syncwarp();
    if (lane() == 0) barrier_arrive(at.full(which, 4*half + b));
  }
}

DEVICE void prefetch_page(const Job& job, int page) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(job.latent + (long long)page*2048), "r"(32768) : "memory");
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(job.scale + (long long)page*256), "r"(1024) : "memory");
}

DEVICE void produce_fp8(const Places& at, const TensorMap& q_map, const TensorMap& rope_map, const Job& job, int head) {
  u32 q_turn = 1, turn = 1;
  bool one = threadIdx.x%128 == 0;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];
    const int* table = job.pages + (long long)seg.x*job.max_pages;
    int from = seg.y/64, blocks = (seg.z - seg.y + 63)/64;
    if (one) {
      barrier_wait(at.q_empty(), q_turn);
      for (int b = 0; b < BOXES; b++) load_q(at, q_map, b, seg.x*job.heads + head);
    }
    __syncwarp();
    Half x;
    fetch(x, job, table[from], 0);
    for (int i = 0; i < blocks; i += 2, turn ^= 1) {
      int far = min(i + 1 + 2*PREFETCH, blocks-1);
      #pragma unroll
      for (int h = 0; h < 4; h++) {                // left and right half of two pages
        int which = h/2, half = h%2;
        barrier_wait(at.empty(which, half), turn);
        if (one && which != half) {                // the rope columns come free with page 0's right, page 1's left half
          barrier_expect(at.full(which, 8), BOX);
          tma_load(at.k(which) + 8*BOX, rope_map, at.full(which, 8), 0, 0, table[min(from + i + which, from + blocks-1)], EVICT_FIRST);
        }
        __syncwarp();
        deliver(at, x, which, half);
        int next = i + (h + 1)/2;
        if (next < blocks || h < 3) fetch(x, job, table[from + min(next, blocks-1)], (h + 1)%2);
        if (PREFETCH && one && half) prefetch_page(job, table[from + max(far - 1 + which, 0)]);
      }
    }
  }
}

// --- what both warpgroups do ----------------------------------------------------------------------------------

// One box of scores: S += Q[:, box] K[:, box]^T, when the box has landed.
template <int BOX_I> DEVICE void score_box(float (&S)[32], const Places& at, int which, u32 turn) {
  barrier_wait(at.full(which, BOX_I), turn);
  u64 a = matrix(at.q() + BOX_I*BOX), b = matrix(at.k(which) + BOX_I*BOX);
  wgmma_fence();
  #pragma unroll
  for (int k = 0; k < 4; k++) wgmma_bf16<0, 0>(S, a + 2*k, b + 2*k, BOX_I > 0 || k > 0);
  wgmma_commit();
}

template <int FROM, int TO, bool FIRST = false> DEVICE void score_from(float (&S)[32], const Places& at, int which, u32 turn, u32 q_turn = 0) {
  if constexpr (FROM < TO) {
    if (FIRST) barrier_wait(at.q_full(FROM), q_turn);
    score_box<FROM>(S, at, which, turn);
    score_from<FROM+1, TO, FIRST>(S, at, which, turn, q_turn);
  }
}

// O += P V, 64 tokens, 256 columns: P from registers, or from shared memory.
DEVICE void add_values(float (&O)[128], const u32 (&P)[16], u32 v) {
  wgmma_fence();
  #pragma unroll
  for (int k = 0; k < 4; k++) {
    const u32 a[4] = {P[4*k], P[4*k+1], P[4*k+2], P[4*k+3]};
    wgmma_bf16_rs<1>(O, a, matrix(v + k*2048, 1024, BOX), 1);
  }
  wgmma_commit();
}
DEVICE void add_values(float (&O)[128], u32 p, u32 v) {
  wgmma_fence();
  #pragma unroll
  for (int k = 0; k < 4; k++) wgmma_bf16<0, 1>(O, matrix(p) + 2*k, matrix(v + k*2048, 1024, BOX), 1);
  wgmma_commit();
}

DEVICE void rescale(float (&O)[128], float (&f)[2]) {
  if (!__any_sync(~0u, f[0] != 1.f || f[1] != 1.f)) return;
  #pragma unroll
  for (int i = 0; i < 128; i++) O[i] *= f[i/2%2];
}

// Tokens from `left` on are not the request's.
DEVICE void mask(float (&S)[32], int left) {
  #pragma unroll
  for (int i = 0; i < 32; i++)
    if (i/4*8 + (int)(threadIdx.x%4)*2 + i%2 >= left) S[i] = -INFINITY;
}

// Online softmax of 64 tokens: S -> P (as the A operand of the next product); f is what older sums are worth now.
DEVICE void soften(float (&S)[32], float (&m)[2], float (&l)[2], float (&f)[2], u32 (&P)[16], float c) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    float top = -INFINITY;
    #pragma unroll
    for (int i = 0; i < 32; i += 4) top = fmaxf(top, fmaxf(S[i+2*r], S[i+2*r+1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2))*c;
    float old = m[r];
    m[r] = top > old + PATIENCE ? top : old;
    f[r] = exp2_fast(old - m[r]);
    float sum = 0;
    #pragma unroll
    for (int i = 0; i < 32; i += 4) {
      float x = exp2_fast(fmaf(S[i+2*r], c, -m[r])), y = exp2_fast(fmaf(S[i+2*r+1], c, -m[r]));
      sum += x + y;
      P[i/2 + r] = pack_bf16(x, y);                // i/4: pairs of 8 tokens; even ones first, then odd
    }
    l[r] = l[r]*f[r] + sum;
  }
}

// P and m for the other warpgroup.
DEVICE void publish(const Places& at, int W, const u32 (&P)[16], const float (&m)[2]) {
  int t = threadIdx.x%128, row = t/32*16 + t%16;
  named_barrier(ALONE + W, 128);                   // nobody reads the rope columns any more
  #pragma unroll
  for (int k = 0; k < 4; k++)
    store_matrices(at.k(W) + 8*BOX + row*128 + (((2*k + t%32/16) ^ row%8) << 4), P[4*k], P[4*k+1], P[4*k+2], P[4*k+3]);
  if (t%4 == 0) {
    u32 to = at.base + SHARED_M + (W*ROWS + t/32*16 + t%32/4)*4;
    asm volatile("st.shared.f32 [%0], %1; st.shared.f32 [%0+32], %2;" :: "r"(to), "f"(m[0]), "f"(m[1]) : "memory");
  }
  fence_async();
  named_arrive(P_READY + W, 256);
}

// The other warpgroup's m: our sums follow.
DEVICE void follow(const Places& at, int other, float (&m)[2], float (&l)[2], float (&f)[2]) {
  int t = threadIdx.x%128;
  u32 from = at.base + SHARED_M + (other*ROWS + t/32*16 + t%32/4)*4;
  float next[2];
  asm volatile("ld.shared.f32 %0, [%2]; ld.shared.f32 %1, [%2+32];" : "=f"(next[0]), "=f"(next[1]) : "r"(from) : "memory");
  for (int r = 0; r < 2; r++) { f[r] = exp2_fast(m[r] - next[r]); m[r] = next[r]; l[r] *= f[r]; }
}

// Rows of V beyond the request may hold anything, and 0 * NaN is NaN: zero the 256 columns this warpgroup reads.
DEVICE void blank(u32 v, int left, int W) {
  int t = threadIdx.x%128;
  for (int row = max(left, 0) + t/32; row < ROWS; row += 4)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" :: "r"(v + t%32/8*BOX + row*128 + t%8*16), "r"(0) : "memory");
  fence_async();
  named_barrier(ALONE + W, 128);
}

DEVICE void release(const Places& at, int which, int half) {       // one arrival a warp, in every block of the cluster
  if (lane() == 0) {
    if (CLUSTER == 1) barrier_arrive(at.empty(which, half));
    else for (int r = 0; r < CLUSTER; r++) barrier_arrive_remote(at.empty(which, half), r);
  }
}

// O / l to its place: bf16 to `out`, or floats to the slot of a split request.
DEVICE void write(const Places& at, int W, const Job& job, int4 seg, int head, float (&O)[128], float (&m)[2], float (&l)[2]) {
  int t = threadIdx.x%128, row = t/32*16 + t%32/4, quad = t%4;
  u32 mine = at.base + SHARED_L + (W*ROWS + row)*4, theirs = at.base + SHARED_L + ((1-W)*ROWS + row)*4;
  for (int r = 0; r < 2; r++) {
    l[r] += __shfl_xor_sync(~0u, l[r], 1); l[r] += __shfl_xor_sync(~0u, l[r], 2);
    if (quad == 0) asm volatile("st.shared.f32 [%0], %1;" :: "r"(mine + 32*r), "f"(l[r]) : "memory");
  }
  named_barrier(BOTH, 256);
  bool whole = seg.w < 0;
  long long place = (long long)(whole ? seg.x : seg.w)*job.heads + head + row;
  float over[2];
  for (int r = 0; r < 2; r++) {
    float other; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(other) : "r"(theirs + 32*r) : "memory");
    float sum = W ? other + l[r] : l[r] + other;
    over[r] = 1/sum;
    if (W == 0 && quad == 0) (whole ? job.lse : job.part_lse)[place + 8*r] = (m[r] + log2_fast(sum))*0.6931471805599453f;
  }
  if (whole) {             // neighbours swap halves, so that each writes 8 bytes and four write a whole sector
    unsigned short* to = job.out + place*LATENT + W*256 + (quad/2)*4 + (quad%2)*8;
    #pragma unroll
    for (int i = 0; i < 128; i += 8)
      #pragma unroll
      for (int r = 0; r < 2; r++) {
        u32 a = pack_bf16(O[i+2*r]*over[r], O[i+2*r+1]*over[r]), b = pack_bf16(O[i+4+2*r]*over[r], O[i+5+2*r]*over[r]);
        u32 give = quad%2 ? a : b, got = __shfl_xor_sync(~0u, give, 1);
        *(uint2*)(to + r*8*LATENT + i*2) = quad%2 ? make_uint2(got, b) : make_uint2(a, got);
      }
  } else {
    float* to = job.part + place*LATENT + W*256 + quad*2;
    #pragma unroll
    for (int i = 0; i < 128; i += 4)
      #pragma unroll
      for (int r = 0; r < 2; r++)
        *(float2*)(to + r*8*LATENT + i*2) = make_float2(O[i+2*r]*over[r], O[i+2*r+1]*over[r]);
  }
}

// --- warpgroup 0: page 0's scores, the left 256 columns -----------------------------------------------------

template <bool LAST> DEVICE void left_step(const Places& at, float c, int left, u32& turn,
    float (&O)[128], float (&S)[32], float (&m)[2], float (&l)[2]) {
  float f[2]; u32 P[16];
  if (LAST && lane() == 0) barrier_arrive(at.q_empty());
  if (LAST && left < 64) mask(S, left);
  soften(S, m, l, f, P, c);
  publish(at, 0, P, m);
  rescale(O, f);
  if (LAST && left < 64) blank(at.k(0), left, 0);
  add_values(O, P, at.k(0));
  wgmma_wait<0>();
  keep_in_registers(O);
  release(at, 0, 0);
  named_barrier(P_READY + 1, 256);
  follow(at, 1, m, l, f);
  rescale(O, f);
  if (LAST && left < 128) blank(at.k(1), left - 64, 0);
  add_values(O, at.k(1) + 8*BOX, at.k(1));
  turn ^= 1;
  if (SERIAL) named_arrive(ALONE + 2, 256);
  if (EARLY) { wgmma_wait<0>(); keep_in_registers(O); release(at, 1, 0); }
  if (!LAST) {
    score_from<0, 4>(S, at, 0, turn);
    if (!EARLY) { wgmma_wait<4>(); release(at, 1, 0); }
    score_from<4, BOXES>(S, at, 0, turn);
    if (TURNS) { wgmma_wait<TURNS>(); named_arrive(MY_TURN, 256); }
  }
  wgmma_wait<0>();
  keep_in_registers(O);
  keep_in_registers(S);
  if (LAST && !EARLY) release(at, 1, 0);
}

DEVICE void left_half(const Places& at, const Job& job, int head) {
  u32 q_turn = 0, turn = 0;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];
    int left = seg.z - seg.y;                      // tokens still to come
    float O[128], S[32], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    #pragma unroll
    for (int i = 0; i < 128; i++) O[i] = 0;
    score_from<0, BOXES, true>(S, at, 0, turn, q_turn);
    if (TURNS) { wgmma_wait<TURNS>(); named_arrive(MY_TURN, 256); }
    wgmma_wait<0>();
    keep_in_registers(S);
    #pragma unroll 1
    for (; left > 128; left -= 128) left_step<false>(at, job.c, left, turn, O, S, m, l);
    left_step<true>(at, job.c, left, turn, O, S, m, l);
    write(at, 0, job, seg, head, O, m, l);
  }
}

// --- warpgroup 1: page 1's scores, the right 256 columns ----------------------------------------------------

template <bool LAST> DEVICE void right_step(const Places& at, float c, int left, u32& turn,
    float (&O)[128], float (&m)[2], float (&l)[2]) {
  float S[32], f[2]; u32 P[16];
  if (TURNS) named_barrier(MY_TURN, 256);
  score_from<0, BOXES>(S, at, 1, turn);
  wgmma_wait<0>();
  keep_in_registers(S);
  named_barrier(P_READY + 0, 256);
  follow(at, 0, m, l, f);
  rescale(O, f);
  if (LAST && left < 64) blank(at.k(0) + 4*BOX, left, 1);
  add_values(O, at.k(0) + 8*BOX, at.k(0) + 4*BOX);
  if (LAST && lane() == 0) barrier_arrive(at.q_empty());
  if (LAST && left < 128) mask(S, left - 64);
  soften(S, m, l, f, P, c);
  publish(at, 1, P, m);
  wgmma_wait<0>();
  keep_in_registers(O);
  release(at, 0, 1);
  rescale(O, f);
  if (LAST && left < 128) blank(at.k(1) + 4*BOX, left - 64, 1);
  if (SERIAL) named_barrier(ALONE + 2, 256);
  add_values(O, P, at.k(1) + 4*BOX);
  wgmma_wait<0>();
  keep_in_registers(O);
  release(at, 1, 1);
  turn ^= 1;
}

DEVICE void right_half(const Places& at, const Job& job, int head) {
  u32 q_turn = 0, turn = 0;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];
    int left = seg.z - seg.y;
    float O[128], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    #pragma unroll
    for (int i = 0; i < 128; i++) O[i] = 0;
    for (int b = 0; b < BOXES; b++) barrier_wait(at.q_full(b), q_turn);
    #pragma unroll 1
    for (; left > 128; left -= 128) right_step<false>(at, job.c, left, turn, O, m, l);
    right_step<true>(at, job.c, left, turn, O, m, l);
    write(at, 1, job, seg, head, O, m, l);
  }
}

// --- the kernel -----------------------------------------------------------------------------------------------

extern "C" __global__ __launch_bounds__(384, 1) void mla_decode(
    const __grid_constant__ TensorMap q_map,       // [B*H, 576], boxes of 64 x 64
    const __grid_constant__ TensorMap k_map,       // (pages, 64, 576), boxes of 1 x 64/CLUSTER x 64; FP8: (pages, 64, 64)
    const int* first, const int4* segments, const int* pages, int max_pages,
    unsigned short* out, float* lse, float* part, float* part_lse, int heads, float c,
    const uint4* latent, const float* scale) {
  extern __shared__ char raw[];
  Places at{(shared(raw) + 1023) & ~1023u};
  int groups = heads/ROWS, worker = blockIdx.x/groups, head = blockIdx.x%groups*ROWS;
  Job job{first[worker], first[worker+1], segments, pages, max_pages, out, lse, part, part_lse, heads, c, (const char*)latent, latent, scale};
  prefetch(segments + job.begin);
  if (threadIdx.x == 0) {
    prefetch_map(q_map); prefetch_map(k_map);
    barrier_init(at.q_empty(), 8);
    for (int b = 0; b < BOXES; b++) barrier_init(at.q_full(b), 1);
    for (int w = 0; w < 2; w++) {
      for (int b = 0; b < BOXES; b++) barrier_init(at.full(w, b), FP8 && b < 8 ? 4 : 1);
      for (int h = 0; h < 2; h++) barrier_init(at.empty(w, h), 4*CLUSTER);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_barrier();
  let_next_kernel_start();                         // it waits for our end by itself
  wait_for_previous_kernel();
  int group = threadIdx.x/128;
  if (group == 2) {
    give_registers<FP8 ? 88 : 40>();
    if (FP8) produce_fp8(at, q_map, k_map, job, head);
    else if (threadIdx.x == 256) produce(at, q_map, k_map, job, head);
    else if (PF == 3 && PREFETCH && threadIdx.x/32 == 9) prefetch_pages(at, job);
    __syncwarp();
  } else {
    take_registers<FP8 ? 208 : 232>();
    if (group == 0) left_half(at, job, head); else right_half(at, job, head);
  }
  if (CLUSTER > 1) cluster_barrier();              // nobody leaves while a neighbour may still write here
}
