// MLA decode over a paged latent cache: 64 heads a block, bf16 (or FP8 widened to bf16), sm_90a.
//
// For each segment of the plan (one request, some of its tokens) and each group of 64 heads:
//   S = Q K^T (576 wide),  P = exp2(c S - m),  O = sum P V / sum P,
// where V is the first 512 columns of K. O is 64 x 512 floats, half of all registers: two
// warpgroups hold 256 columns each, and both need every P. A step takes two pages of 64 tokens;
// warpgroup 0 makes P0 of the first, warpgroup 1 makes P1 of the second.
//
//                 time ->
//   tensor cores  | Q K1      | P0 V0left | P0 V0right | P1 V1 | Q K0 (next) | Q K1 ...
//   warpgroup 0   | softmax 0 |...........|............|.......|.............| softmax 0
//   warpgroup 1   |...........|      softmax 1         |.......|.............|
//   copy engine   |     V0left is free ^  V0right free ^  V1 free ^  the next pages fly in
//
// m is one running maximum for both: page 0 moves it, then page 1, and each warpgroup learns of
// the other's move together with the other's P. It moves only when a score passes it by 2^8, so
// O is almost never rescaled. P0 and P1 lie where the rope columns of their pages were: no other
// product needs those. The producer fills nine 64x64 boxes a page, each with its own barrier, so
// that Q K starts on the first. Blocks of a cluster hold different heads of the same tokens: each
// loads half of every box for both.
//
// Shapes: q [B,heads,576] bf16, heads a multiple of 64 (of 128 with CLUSTER 2); pages and tables
// as in r1nb.mla_decode.decode, whose impl='ref' is the specification.
#include "wgmma.cuh"

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)        // NVRTC has no math.h
#endif
#ifndef FP8
#define FP8 0              // the cache holds 8-bit latents with a scale per 128 columns
#endif
#ifndef CLUSTER
#define CLUSTER 2          // blocks that share loads (they hold different heads of one request)
#endif

constexpr int ROWS = 64, BOXES = 576/64;
constexpr u32 BOX = 64*64*2, PAGE = BOXES*BOX;
constexpr u32 SHARED_M = 3*PAGE, SHARED_L = SHARED_M + 2*ROWS*4, BARRIERS = SHARED_L + 2*ROWS*4;
constexpr float PATIENCE = 8;                      // log2 of what P may reach
static_assert(!FP8 || CLUSTER == 1, "the FP8 producer fills its own block's pages");

// Named barriers: P_READY and ALONE have one for each warpgroup.
enum { P_READY = 1, BOTH = 3, ALONE = 4 };

struct Places {            // addresses in shared memory
  u32 base;
  DEVICE u32 q() const { return base; }
  DEVICE u32 k(int which) const { return base + PAGE + which*PAGE; }
  DEVICE u32 p(int which) const { return k(which) + 8*BOX; }
  DEVICE u32 bar(int i) const { return base + BARRIERS + 8*i; }
  DEVICE u32 q_empty() const { return bar(0); }
  DEVICE u32 empty(int which, int half) const { return bar(1 + 2*which + half); }
  DEVICE u32 q_full(int box) const { return bar(5 + box); }
  DEVICE u32 full(int which, int box) const { return bar(5 + BOXES + which*BOXES + box); }
};

struct Job {               // what a block is asked for
  int begin, end; const int4* segments;            // its segments: request, first, end token, slot
  const int* pages; int max_pages;
  float* lse; float* part_lse;
  int heads, head; float c;                        // c: softmax scale times log2 e
  const uint4* latent; const float* scale;         // FP8: (pages,64,512) bytes, (pages,64,4)
};

DEVICE float exp2_fast(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
DEVICE float log2_fast(float x) {
  float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
DEVICE void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" :: "l"(p) : "memory");
}
DEVICE void prefetch(const void* p, u32 bytes) {   // any multiple of 16
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(p), "r"(bytes) : "memory");
}
DEVICE void store16(u32 to, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
DEVICE void store_float(u32 to, float x) {
  asm volatile("st.shared.f32 [%0], %1;" :: "r"(to), "f"(x) : "memory");
}
DEVICE float load_float(u32 from) {
  float x; asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory"); return x;
}

// --- the producers of bf16 pages and of Q: a thread each -----------------------------------------

// Plan and page table are older than the kernel before us, and read before it ends.

DEVICE void load_q(const Places& at, const TensorMap& map, int box, int row) {
  barrier_expect(at.q_full(box), BOX);
  tma_load(at.q() + box*BOX, map, at.q_full(box), box*64, row);
}

DEVICE void produce_q(const Places& at, const TensorMap& map, const Job& job) {
  u32 turn = 1;
  for (int s = job.begin; s < job.end; s++, turn ^= 1) {
    int row = job.segments[s].x*job.heads + job.head;
    if (s == job.begin) wait_for_previous_kernel();
    barrier_wait(at.q_empty(), turn);
    for (int b = 0; b < BOXES; b++) load_q(at, map, b, row);
  }
}

DEVICE void load_box(const Places& at, const TensorMap& map, int which, int box, int page) {
  u32 to = at.k(which) + box*BOX, bar = at.full(which, box), rows = ROWS/CLUSTER;
  barrier_expect(bar, BOX);
  if (CLUSTER == 1) tma_load(to, map, bar, box*64, 0, page, EVICT_FIRST);
  else {
    u32 y = rank_in_cluster()*rows;
    tma_load_multicast(to + y*128, map, bar, box*64, y, page, (1 << CLUSTER) - 1, EVICT_FIRST);
  }
}

DEVICE void produce(const Places& at, const TensorMap& k_map, const Job& job) {
  u32 turn = 1;
  for (int s = job.begin; s < job.end; s++) {
    int4 seg = job.segments[s];
    const int* table = job.pages + (long long)seg.x*job.max_pages + seg.y/64;
    int last = (seg.z - seg.y + 63)/64 - 1;        // an odd last page is loaded twice, and masked
    int page0 = table[0], page1 = table[min(1, last)];
    if (s == job.begin) wait_for_previous_kernel();
    for (int i = 0; i <= last; i += 2, turn ^= 1) {
      int next0 = table[min(i+2, last)], next1 = table[min(i+3, last)];
      barrier_wait(at.empty(0, 0), turn);
      #pragma unroll 1
      for (int b = 0; b < BOXES; b++) {
        if (b == 4) barrier_wait(at.empty(0, 1), turn);
        load_box(at, k_map, 0, b, page0);
      }
      barrier_wait(at.empty(1, 0), turn);
      #pragma unroll 1
      for (int b = 0; b < 4; b++) load_box(at, k_map, 1, b, page1);
      load_box(at, k_map, 1, 8, page1);
      barrier_wait(at.empty(1, 1), turn);
      #pragma unroll 1
      for (int b = 4; b < 8; b++) load_box(at, k_map, 1, b, page1);
      page0 = next0; page1 = next1;
    }
  }
}

// --- the producer of FP8 pages: 128 threads make the boxes that the copy engine would have brought

DEVICE u32 widen(u32 bytes, float scale) {         // two e4m3 to two bf16
  u32 halves; float x, y;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)bytes));
  asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
      : "=f"(x), "=f"(y) : "r"(halves));
  return pack_bf16(x*scale, y*scale);
}
DEVICE uint4 widen(u32 a, u32 b, float scale) {
  return make_uint4(widen(a, scale), widen(a >> 16, scale), widen(b, scale), widen(b >> 16, scale));
}

// Half a page: 64 tokens, 256 columns. A thread has 16 columns of two tokens in each of 4 boxes.
struct Half { uint4 raw[4][2]; float2 scale[2]; };

DEVICE void fetch(Half& x, const Job& job, int page, int half) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    long long row = (long long)page*64 + threadIdx.x%128/4 + 32*r;
    x.scale[r] = *(const float2*)(job.scale + row*4 + 2*half);
    #pragma unroll
    for (int b = 0; b < 4; b++) x.raw[b][r] = job.latent[row*32 + half*16 + b*4 + threadIdx.x%4];
  }
}

DEVICE void deliver(const Places& at, const Half& x, int which, int half) {
  #pragma unroll
  for (int b = 0; b < 4; b++) {
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int row = threadIdx.x%128/4 + 32*r, c = threadIdx.x%4*2;
      float scale = b < 2 ? x.scale[r].x : x.scale[r].y;
      uint4 raw = x.raw[b][r];
      u32 to = at.k(which) + (4*half + b)*BOX + row*128;
      store16(to + ((c ^ row%8) << 4), widen(raw.x, raw.y, scale));
      store16(to + (((c+1) ^ row%8) << 4), widen(raw.z, raw.w, scale));
    }
    fence_async();
    __syncwarp();
    if (lane() == 0) barrier_arrive(at.full(which, 4*half + b));
  }
}

DEVICE void load_rope(const Places& at, const TensorMap& map, int which, int page) {
  barrier_expect(at.full(which, 8), BOX);
  tma_load(at.p(which), map, at.full(which, 8), 0, 0, page, EVICT_FIRST);
}

DEVICE void produce_fp8(const Places& at, const TensorMap& q_map, const TensorMap& rope_map,
                        const Job& job) {
  u32 q_turn = 1, turn = 1;
  bool one = threadIdx.x%128 == 0;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];
    const int* table = job.pages + (long long)seg.x*job.max_pages + seg.y/64;
    int last = (seg.z - seg.y + 63)/64 - 1, page0 = table[0];
    if (s == job.begin) wait_for_previous_kernel();
    if (one) {
      barrier_wait(at.q_empty(), q_turn);
      for (int b = 0; b < BOXES; b++) load_q(at, q_map, b, seg.x*job.heads + job.head);
    }
    __syncwarp();
    Half x;
    fetch(x, job, page0, 0);
    for (int i = 0; i <= last; i += 2, turn ^= 1) {
      #pragma unroll
      for (int h = 0; h < 4; h++) {                // left and right half of two pages
        int which = h/2, half = h%2;
        barrier_wait(at.empty(which, half), turn);
        if (one && which != half) load_rope(at, rope_map, which, table[min(i + which, last)]);
        __syncwarp();                              // rope is free with V0 right, and with V1 left
        deliver(at, x, which, half);
        fetch(x, job, table[min(i + (h + 1)/2, last)], (h + 1)%2);
        if (one && half) {
          long long far = table[min(i + 2 + which, last)];
          prefetch(job.latent + far*2048, 32768); prefetch(job.scale + far*256, 1024);
        }
      }
    }
  }
}

// --- what both warpgroups do ---------------------------------------------------------------------

// Scores of one box, when it has landed: S += Q[:, box] K[:, box]^T.
template <int B> DEVICE void score_box(float (&S)[32], const Places& at, int which, u32 turn) {
  barrier_wait(at.full(which, B), turn);
  u64 a = matrix(at.q() + B*BOX), b = matrix(at.k(which) + B*BOX);
  wgmma_fence();
  #pragma unroll
  for (int k = 0; k < 4; k++) wgmma_bf16<0, 0>(S, a + 2*k, b + 2*k, B > 0 || k > 0);
  wgmma_commit();
}
template <int B = 0> DEVICE void scores(float (&S)[32], const Places& at, int which, u32 turn) {
  score_box<B>(S, at, which, turn);
  if constexpr (B + 1 < BOXES) scores<B+1>(S, at, which, turn);
}
template <int B = 0>
DEVICE void first_scores(float (&S)[32], const Places& at, u32 turn, u32 q_turn) {
  barrier_wait(at.q_full(B), q_turn);              // Q is landing, too
  score_box<B>(S, at, 0, turn);
  if constexpr (B + 1 < BOXES) first_scores<B+1>(S, at, turn, q_turn);
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
  for (int k = 0; k < 4; k++)
    wgmma_bf16<0, 1>(O, matrix(p) + 2*k, matrix(v + k*2048, 1024, BOX), 1);
  wgmma_commit();
}

DEVICE void rescale(float (&O)[128], const float (&f)[2]) {
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

// Online softmax of 64 tokens: S -> P, already the A operand of the next product. A thread has
// 16 scores of each of two rows, four threads share a row. f: what older sums are worth now.
DEVICE void soften(float (&S)[32], float (&m)[2], float (&l)[2], float (&f)[2], u32 (&P)[16],
                   float c) {
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    float top = -INFINITY, sum = 0, old = m[r];
    #pragma unroll
    for (int i = 2*r; i < 32; i += 4) top = fmaxf(top, fmaxf(S[i], S[i+1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2))*c;
    m[r] = top > old + PATIENCE ? top : old;
    f[r] = exp2_fast(old - m[r]);
    #pragma unroll
    for (int i = 2*r; i < 32; i += 4) {
      float x = exp2_fast(fmaf(S[i], c, -m[r])), y = exp2_fast(fmaf(S[i+1], c, -m[r]));
      sum += x + y;
      P[i/2] = pack_bf16(x, y);
    }
    l[r] = l[r]*f[r] + sum;
  }
}

// P and m for the other warpgroup. m goes first: racecheck counts the barriers that a warp has
// passed, whatever their name, and in this order both warpgroups' counts say what is before what.
DEVICE void publish(const Places& at, int W, const u32 (&P)[16], const float (&m)[2]) {
  int t = threadIdx.x%128, row = t/32*16 + t%16;
  if (t%4 == 0)
    for (int r = 0; r < 2; r++)
      store_float(at.base + SHARED_M + (W*ROWS + t/32*16 + t%32/4 + 8*r)*4, m[r]);
  named_barrier(ALONE + W, 128);                   // nobody reads the rope columns any more
  #pragma unroll
  for (int k = 0; k < 4; k++)
    store_matrices(at.p(W) + row*128 + (((2*k + t%32/16) ^ row%8) << 4),
                   P[4*k], P[4*k+1], P[4*k+2], P[4*k+3]);
  fence_async();
  named_arrive(P_READY + W, 256);
}

// The other warpgroup's m: our sums follow.
DEVICE void follow(const Places& at, int other, float (&m)[2], float (&l)[2], float (&f)[2]) {
  int t = threadIdx.x%128;
  for (int r = 0; r < 2; r++) {
    float next = load_float(at.base + SHARED_M + (other*ROWS + t/32*16 + t%32/4 + 8*r)*4);
    f[r] = exp2_fast(m[r] - next); m[r] = next; l[r] *= f[r];
  }
}

// Rows of V beyond the request may hold anything, and 0 * NaN is NaN: zero this half of them.
DEVICE void blank(u32 v, int left, int W) {
  int t = threadIdx.x%128;
  for (int row = max(left, 0) + t/32; row < ROWS; row += 4)
    store16(v + t%32/8*BOX + row*128 + t%8*16, make_uint4(0, 0, 0, 0));
  fence_async();
  named_barrier(ALONE + W, 128);
}

// Half a page may be overwritten: one arrival a warp, in every block of the cluster.
DEVICE void release(const Places& at, int which, int half) {
  if (lane() == 0) {
    if (CLUSTER == 1) barrier_arrive(at.empty(which, half));
    else for (int r = 0; r < CLUSTER; r++) barrier_arrive_remote(at.empty(which, half), r);
  }
}

// O / l to its place: bf16 to `out`, or floats to the slot of a split request. It goes through the
// 32 kB of page 1 that only this warpgroup read last, and from there by the copy engine.
struct Maps { const TensorMap& out; const TensorMap& part; };

DEVICE void send(const TensorMap& map, u32 stage, int W, int x, int width, int y) {
  fence_async();
  named_barrier(ALONE + W, 128);
  if (threadIdx.x%128 == 0) {
    for (int b = 0; b < 4; b++) tma_store(map, stage + b*BOX, x + b*width, y);
    store_commit();
    store_wait_read<0>();
  }
  named_barrier(ALONE + W, 128);
}

DEVICE void write(const Places& at, int W, const Job& job, const Maps& maps, int4 seg,
                  float (&O)[128], const float (&m)[2], float (&l)[2]) {
  int t = threadIdx.x%128, row = t/32*16 + t%32/4, quad = t%4;
  u32 mine = at.base + SHARED_L + (W*ROWS + row)*4, theirs = mine + (1 - 2*W)*ROWS*4;
  for (int r = 0; r < 2; r++) {
    l[r] += __shfl_xor_sync(~0u, l[r], 1); l[r] += __shfl_xor_sync(~0u, l[r], 2);
    if (quad == 0) store_float(mine + 32*r, l[r]);
  }
  named_barrier(BOTH, 256);
  bool whole = seg.w < 0;
  int y = (whole ? seg.x : seg.w)*job.heads + job.head;
  float over[2];
  for (int r = 0; r < 2; r++) {
    float sum = l[r] + load_float(theirs + 32*r);
    over[r] = 1/sum;
    if (W == 0 && quad == 0)
      (whole ? job.lse : job.part_lse)[y + row + 8*r] =
        (m[r] + log2_fast(sum))*0.6931471805599453f;
  }
  u32 stage = at.k(1) + W*4*BOX, to = stage + (t/32*16 + t%16)*128;
  if (whole) {
    #pragma unroll
    for (int k = 0; k < 16; k++) {                 // 16 columns
      float* x = O + 8*k;
      store_matrices(to + k/4*BOX + (((k%4*2 + t%32/16) ^ t%8) << 4),
                     pack_bf16(x[0]*over[0], x[1]*over[0]), pack_bf16(x[2]*over[1], x[3]*over[1]),
                     pack_bf16(x[4]*over[0], x[5]*over[0]), pack_bf16(x[6]*over[1], x[7]*over[1]));
    }
    send(maps.out, stage, W, W*256, 64, y);
  } else {
    #pragma unroll
    for (int half = 0; half < 2; half++) {
      #pragma unroll
      for (int k = 0; k < 16; k++)                 // 8 columns
        #pragma unroll
        for (int r = 0; r < 2; r++) {
          float* x = O + 64*half + 4*k + 2*r;
          u32 there = stage + k/4*BOX + (row + 8*r)*128 + (((k%4*2 + quad/2) ^ row%8) << 4);
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                       :: "r"(there + quad%2*8), "f"(x[0]*over[r]), "f"(x[1]*over[r]) : "memory");
        }
      send(maps.part, stage, W, W*256 + half*128, 32, y);
    }
  }
  release(at, 1, W);
}

// --- warpgroup 0: page 0's scores, the left 256 columns ------------------------------------------

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
  add_values(O, at.p(1), at.k(1));
  wgmma_wait<0>();
  keep_in_registers(O);
  if (!LAST) release(at, 1, 0);                    // the last time, `write` does
  turn ^= 1;
  if (!LAST) scores(S, at, 0, turn);
  wgmma_wait<0>();
  keep_in_registers(S);
}

DEVICE void left_half(const Places& at, const Job& job, const Maps& maps) {
  u32 q_turn = 0, turn = 0;
  for (int s = job.begin; s < job.end; s++, q_turn ^= 1) {
    int4 seg = job.segments[s];
    int left = seg.z - seg.y;                      // tokens still to come
    float O[128], S[32], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
    #pragma unroll
    for (int i = 0; i < 128; i++) O[i] = 0;
    first_scores(S, at, turn, q_turn);
    wgmma_wait<0>();
    keep_in_registers(S);
    #pragma unroll 1
    for (; left > 128; left -= 128) left_step<false>(at, job.c, left, turn, O, S, m, l);
    left_step<true>(at, job.c, left, turn, O, S, m, l);
    write(at, 0, job, maps, seg, O, m, l);
  }
  store_wait<0>();
}

// --- warpgroup 1: page 1's scores, the right 256 columns -----------------------------------------

template <bool LAST> DEVICE void right_step(const Places& at, float c, int left, u32& turn,
    float (&O)[128], float (&m)[2], float (&l)[2]) {
  float S[32], f[2]; u32 P[16];
  scores(S, at, 1, turn);
  wgmma_wait<0>();
  keep_in_registers(S);
  named_barrier(P_READY + 0, 256);
  follow(at, 0, m, l, f);
  rescale(O, f);
  if (LAST && left < 64) blank(at.k(0) + 4*BOX, left, 1);
  add_values(O, at.p(0), at.k(0) + 4*BOX);
  if (LAST && lane() == 0) barrier_arrive(at.q_empty());
  if (LAST && left < 128) mask(S, left - 64);
  soften(S, m, l, f, P, c);
  publish(at, 1, P, m);
  wgmma_wait<0>();
  keep_in_registers(O);
  release(at, 0, 1);
  rescale(O, f);
  if (LAST && left < 128) blank(at.k(1) + 4*BOX, left - 64, 1);
  add_values(O, P, at.k(1) + 4*BOX);
  wgmma_wait<0>();
  keep_in_registers(O);
  if (!LAST) release(at, 1, 1);
  turn ^= 1;
}

DEVICE void right_half(const Places& at, const Job& job, const Maps& maps) {
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
    write(at, 1, job, maps, seg, O, m, l);
  }
  store_wait<0>();
}

// --- the kernel ----------------------------------------------------------------------------------

extern "C" __global__ __launch_bounds__(384, 1) void mla_decode(
    const __grid_constant__ TensorMap q_map,       // [B*heads, 576], boxes of 64 x 64
    const __grid_constant__ TensorMap k_map,       // pages, boxes of 1 x 64/CLUSTER x 64; FP8: rope
    const __grid_constant__ TensorMap out_map,     // [B*heads, 512] bf16, boxes of 64 x 64
    const __grid_constant__ TensorMap part_map,    // [slots*heads, 512] floats, boxes of 64 x 32
    const int* first, const int4* segments,        // the plan; [workers+1], [workers+B]
    const int* pages, int max_pages,               // [B, max_pages]
    float* lse, float* part_lse,                   // [B, heads], [slots, heads]
    int heads, float c,
    const uint4* latent, const float* scale) {     // FP8: (pages,64,512) bytes, (pages,64,4)
  extern __shared__ char raw[];
  Places at{(shared(raw) + 1023) & ~1023u};
  int groups = heads/ROWS, worker = blockIdx.x/groups, head = blockIdx.x%groups*ROWS;
  Job job{first[worker], first[worker+1], segments, pages, max_pages, lse, part_lse, heads, head,
          c, latent, scale};
  prefetch(segments + job.begin);
  if (threadIdx.x == 0) {
    prefetch_map(q_map); prefetch_map(k_map); prefetch_map(out_map); prefetch_map(part_map);
    barrier_init(at.q_empty(), 8);
    for (int b = 0; b < BOXES; b++) {
      barrier_init(at.q_full(b), 1);
      for (int w = 0; w < 2; w++) barrier_init(at.full(w, b), FP8 && b < 8 ? 4 : 1);
    }
    for (int i = 0; i < 4; i++) barrier_init(at.empty(i/2, i%2), 4*CLUSTER);
    fence_barrier_init();
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_barrier();
  let_next_kernel_start();                         // it waits for our end by itself
  int group = threadIdx.x/128;
  if (group == 2) {
    give_registers<FP8 ? 72 : 40>();
    if (FP8) produce_fp8(at, q_map, k_map, job);
    else if (threadIdx.x == 256) produce(at, k_map, job);
    else if (threadIdx.x == 288) produce_q(at, q_map, job);
    __syncwarp();
  } else {
    take_registers<FP8 ? 216 : 232>();
    wait_for_previous_kernel();                    // it may still read what we are to write
    Maps maps{out_map, part_map};
    if (group == 0) left_half(at, job, maps); else right_half(at, job, maps);
  }
  if (CLUSTER > 1) cluster_barrier();              // nobody leaves while a neighbour writes here
}
