// MLA decode for up to 16 heads, absorbed form: a cached token is read once, memory is the limit.
// mla_decode16_bf16: cache (pages,64,576) bf16.   mla_decode16_fp8: latent (pages,64,512) e4m3 with
// a scale for each 128 of it (pages,64,4) fp32, and the rope key (pages,64,64) bf16.
// q [B,H,576] bf16; out [B,H,512] bf16 or fp32 pieces that mla_combine.cu merges.  sm_90a.
//
// wgmma multiplies 64 rows at a time. Sixteen heads as rows would waste three quarters of it, so
// the operands swap places:
//
//   S^T [64 tokens x 16]  =  K  [64 tokens x 576]  Q^T [576 x 16]        a page is one tile of A
//   O^T [512 x 16]       +=  V^T [512 x 64 tokens] P^T [64 tokens x 16]  the same page, read across
//
//   copy engine         ring of chunks: 64 rows of 128 bytes     two warpgroups, pages in turn
//   page -> 9 (bf16)    [full][full][    ][    ] ...             wait -> S^T -> softmax -> P^T
//        -> 5 (fp8)                                                   -> O^T -> give back
//
// The fp8 tile never goes back to shared memory: ldmatrix brings it to registers, one instruction
// makes f16 of two e4m3 (exactly), and the registers are wgmma's A. Reading across works on pairs:
// ldmatrix.trans transposes 16-bit units (d, d+1), one byte permutation then pairs two tokens of
// one d. Scales: along S they multiply rows of a 128-long partial sum; along O they go into P, one
// copy for each 128 of d, each copy in units of its own g, so that f16 neither overflows nor loses
// small weights whatever the scales are.
// Softmax: a head's reference m is renewed only when a weight would pass 2^8, which hardly ever
// happens after the first page. The barrier that publishes P also counts the votes on that, so the
// common case needs no shuffle and no exchange between warps.
#include "wgmma.cuh"
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)     // NVRTC has no math.h
#endif
#ifndef RING
#define RING 0                                  // chunks; 0: as many as fit
#endif
#ifndef GROUPS
#define GROUPS 2                                // warpgroups that take pages in turn: 1 or 2
#endif

constexpr int HEADS = 16, WIDTH = 576, LATENT = 512, TOKENS = 64, CHUNK = 8192, SHARED = 232448;
constexpr int Q_BYTES = HEADS * WIDTH * 2, P_BYTES = HEADS * TOKENS * 2;
constexpr int MERGE_BYTES = LATENT * HEADS * 4;
constexpr float LIMIT = 256.f;
constexpr int ALL = 3, MERGE = 4;               // named barriers; 1 and 2 belong to the warpgroups

template <bool FP8> struct Room {               // what lies where in shared memory, the ring first
  static constexpr int CHUNKS = FP8 ? 5 : 9, VALUES = FP8 ? 4 : 8;     // of a page; of them with V
  static constexpr int COPIES = FP8 ? 4 : 1, SCALES = FP8 ? 8 : 0;     // of P; pages of scales
  static constexpr int REST = Q_BYTES + GROUPS * COPIES * P_BYTES + SCALES * 1024
                            + (GROUPS - 1) * MERGE_BYTES + GROUPS * 1024 + 192;
  static constexpr int FIT = (SHARED - REST) / (CHUNK + 16);
  static constexpr int SLOTS = RING && RING < FIT ? RING : FIT;
  static constexpr int Q = SLOTS * CHUNK, P = Q + Q_BYTES, SCALE = P + GROUPS * COPIES * P_BYTES;
  static constexpr int SUM = SCALE + SCALES * 1024, EXCHANGE = SUM + (GROUPS - 1) * MERGE_BYTES;
  static constexpr int STATE = EXCHANGE + GROUPS * 1024, FACTOR = STATE + 128, BARS = FACTOR + 64;
  static constexpr bool TRADE = FP8 && GROUPS > 1;                     // registers change hands
  static constexpr int THREADS = 128 * GROUPS + (TRADE ? 128 : 32);
  static_assert(SLOTS < CHUNKS * (SCALES - 2) || !FP8, "a page's scales must outlive the page");
};

struct Work {                                   // what a launch is about
  const u16* q; const int* table; int pages; const int* first; const int4* segments;
  u16* out; float* lse; float* out_part; float* lse_part; float scale; int heads;
};

struct Share {                                  // what this block does: segments begin to end-1
  int begin, end; int4 one;
  DEVICE Share(const Work& work) : begin(work.first[blockIdx.x]), end(work.first[blockIdx.x + 1]),
                                   one(work.segments[begin]) {}
  DEVICE int4 segment(const Work& work, int s) const { return s == begin ? one : work.segments[s]; }
};

DEVICE int pages_of(const int4& seg) { return (seg.z - seg.y + TOKENS - 1) / TOKENS; }
DEVICE int look_up(const Work& work, const int4& seg, int i) {   // lane n: page i + n of a segment
  if (i + (int)lane() >= pages_of(seg)) return 0;
  return work.table[(u64)seg.x * work.pages + seg.y / TOKENS + i + lane()];
}

template <int SLOTS> struct Place {             // where in the ring a page begins
  int slot = 0; u32 parity = 0;
  DEVICE Place at(int i) const {
    Place p = *this; p.slot += i;
    if (p.slot >= SLOTS) { p.slot -= SLOTS; p.parity ^= 1; }
    return p;
  }
};

// --- the copy engine's warp --------------------------------------------------------------------
template <bool FP8> DEVICE void feed(const Work& work, const Share& share, int ahead, u32 room,
    const TensorMap& tokens, const TensorMap& rope, const TensorMap& scales) {
  using R = Room<FP8>;
  Place<R::SLOTS> place; int turn = 0;
  for (int s = share.begin; s < share.end; s++) {
    const int4 seg = share.segment(work, s);
    const int count = pages_of(seg);
    for (int i = 0; i < count; i++) {
      if (i % 32 == 0 && (i || s > share.begin)) ahead = look_up(work, seg, i);
      const int page = __shfl_sync(~0u, ahead, i % 32);
      if (lane() == 0) {
        #pragma unroll
        for (int j = 0; j < R::CHUNKS; j++) {
          const auto at = place.at(j);
          const u32 full = room + R::BARS + at.slot * 8, empty = full + R::SLOTS * 8;
          const u32 to = room + at.slot * CHUNK;
          barrier_wait(empty, at.parity ^ 1);
          barrier_expect(full, CHUNK + (FP8 && j == 0 ? 1024 : 0));
          if (FP8 && j == 4) tma_load(to, rope, full, 0, 0, page, EVICT_FIRST);
          else tma_load(to, tokens, full, j * (FP8 ? 128 : 64), 0, page, EVICT_FIRST);
          if (FP8 && j == 0)
            tma_load(room + R::SCALE + turn * 1024, scales, full, 0, page, EVICT_FIRST);
        }
      }
      place = place.at(R::CHUNKS);
      if (FP8) turn = turn + 1 == R::SCALES ? 0 : turn + 1;
      __syncwarp();
    }
  }
}

// The first pages on their way to L2 while the kernel before this one ends. (FP8 gains nothing.)
DEVICE void look_ahead(const TensorMap& tokens, int pages, int count) {
  for (int i = 0; i < count; i++) {
    const int page = __shfl_sync(~0u, pages, i);
    if (lane() < WIDTH / 64) tma_prefetch(tokens, lane() * 64, 0, page);
  }
}

// --- queries -----------------------------------------------------------------------------------
// Eight threads a head. f16 for the fp8 latent: a head is scaled by the power of two that brings
// its largest entry to 2^14, so the conversion is exact down to 2^-28 of it; `factor` undoes that.
// K's fragments come with the d of each sixteen in the order 0 1 4 5 8 9 12 13 2 3 6 7 10 11 14 15,
// and so must Q.
DEVICE void put(u32 at, u32 a, u32 b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(at), "r"(a), "r"(b) : "memory");
}

template <bool FP8> DEVICE void load_queries(const Work& work, int request, u32 to, float* factor) {
  const int head = threadIdx.x / 8, part = threadIdx.x % 8;
  const u16* from = work.q + ((u64)request * work.heads + head) * WIDTH + part * 8;
  uint4 x[9]; u32 top = 0;
  #pragma unroll
  for (int j = 0; j < 9; j++) {
    x[j] = make_uint4(0, 0, 0, 0);
    if (head < work.heads) x[j] = *(const uint4*)(from + j * 64);
    const u32 w[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
    #pragma unroll
    for (int i = 0; i < 4; i++) top = max(top, max(w[i] << 16 & 0x7FFF0000, w[i] & 0x7FFF0000));
  }
  #pragma unroll
  for (int d = 1; d < 8; d *= 2) top = max(top, __shfl_xor_sync(~0u, top, d));
  const int shift = FP8 ? min(141 - (int)(top >> 23), 100) : 0;
  const float up = __uint_as_float((u32)(127 + shift) << 23);
  if (part == 0) factor[head] = work.scale * __uint_as_float((u32)(127 - shift) << 23);
  #pragma unroll
  for (int j = 0; j < 9; j++) {
    const u32 row = to + (head >> 3) * 128 + (head & 7) * 16;
    u32 w[4] = {x[j].x, x[j].y, x[j].z, x[j].w};
    if (FP8) {
      #pragma unroll
      for (int i = 0; i < 4; i++) {
        const float low = __uint_as_float(w[i] << 16) * up;
        const float high = __uint_as_float(w[i] & 0xFFFF0000) * up;
        w[i] = j < 8 ? pack_f16(low, high) : pack_bf16(low, high);
      }
    }
    if (FP8 && j < 8) {
      const u32 at = row + (j * 8 + part) / 2 * 512 + part % 2 * 8;
      put(at, w[0], w[2]); put(at + 256, w[1], w[3]);
    } else {
      const u32 at = row + (j * 8 + part) * 256;
      put(at, w[0], w[1]); put(at + 8, w[2], w[3]);
    }
  }
}

// --- scores ------------------------------------------------------------------------------------
// A thread holds 8 of a page's 64 x 16: tokens 16 warp + lane/4 and 8 more, and of each
// heads 2 (lane%4), +1, +8, +9.
DEVICE constexpr int row_of(int e) { return e >> 1 & 1; }
DEVICE constexpr int head_of(int e) { return (e & 1) + (e >> 2) * 2; }
DEVICE constexpr int entry_of(int h) { return (h & 1) + (h >> 1) * 4; }   // the first one of a head
DEVICE int head_at(int h) { return lane() % 4 * 2 + (h & 1) + (h >> 1) * 8; }

template <typename P> DEVICE u32 arrived(u32 room, u32 bars, P at) {
  barrier_wait(bars + at.slot * 8, at.parity);
  return room + at.slot * CHUNK;
}

template <typename P> DEVICE void scores(float (&s)[8], u32 room, u32 bars, P place) {
  const u64 q = plain_matrix(room + Room<false>::Q, 256, 128);
  #pragma unroll
  for (int j = 0; j < 9; j++) {
    const u64 k = matrix(arrived(room, bars, place.at(j)));
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < 4; i++) wgmma_bf16<0, 0>(s, k + i * 2, q + (j * 4 + i) * 32, j + i > 0);
  }
  wgmma_commit(); wgmma_wait<0>(); keep_in_registers(s);
}

template <typename P> DEVICE void scores(float (&s)[8], float (&w)[2][4], u32 room, u32 bars,
                                         P place, int turn, int warp) {
  const u64 q = plain_matrix(room + Room<true>::Q, 256, 128);
  const u32 r = lane() & 7, row = warp * 16 + (lane() & 15);
  const u32 from = row * 128 + ((lane() >> 4 ^ r) << 4);
  float part[4][8]; u32 a[2][4][4];
  #pragma unroll
  for (int j = 0; j < 8; j++) {                 // halves of the four chunks: 64 of d at a time
    const auto at = place.at(j / 2);
    const u32 k = j % 2 ? room + at.slot * CHUNK : arrived(room, bars, at);
    u32 x[2][4];
    load_matrices(x[0], k + (from ^ (j % 2 * 64)));
    load_matrices(x[1], k + (from ^ (j % 2 * 64 + 32)));
    if (j > 1) wgmma_wait<1>();                 // two steps ago no longer needs its registers
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      unpack_e4m3(a[j % 2][i][0], a[j % 2][i][2], x[i / 2][i % 2 * 2]);
      unpack_e4m3(a[j % 2][i][1], a[j % 2][i][3], x[i / 2][i % 2 * 2 + 1]);
    }
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < 4; i++)
      wgmma_f16_rs<0>(part[j / 2], a[j % 2][i], q + (j * 4 + i) * 32, j % 2 + i > 0);
    wgmma_commit();
  }
  const u64 k = matrix(arrived(room, bars, place.at(4)));
  wgmma_fence();
  #pragma unroll
  for (int i = 0; i < 4; i++) wgmma_bf16<0, 0>(s, k + i * 2, q + (32 + i) * 32, i > 0);
  wgmma_commit();
  const u32 scale = room + Room<true>::SCALE + turn * 1024 + (warp * 16 + lane() / 4) * 16;
  #pragma unroll
  for (int t = 0; t < 2; t++)
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(w[t][0]), "=f"(w[t][1]), "=f"(w[t][2]), "=f"(w[t][3])
                 : "r"(scale + t * 128) : "memory");
  wgmma_wait<0>(); keep_in_registers(s);
  #pragma unroll
  for (int b = 0; b < 4; b++) {
    keep_in_registers(part[b]);
    #pragma unroll
    for (int e = 0; e < 8; e++) s[e] += w[row_of(e)][b] * part[b][e];
  }
}

// --- softmax -----------------------------------------------------------------------------------
template <bool FP8> struct State {              // of a thread's four heads
  float m[4], l[4], o[8][8];                    // reference (log2), sum of weights, O^T by 64 d
  float g[FP8 ? 4 : 1][4], f[FP8 ? 4 : 1][4];   // O is in units of g; f = 1/g
};

// One number per head (and copy) from all 64 rows: the largest, or the sum.
template <bool SUM, int N> DEVICE void over_tokens(float (&v)[N][4], float* exchange, int group) {
  const int warp = threadIdx.x / 32 % 4;
  #pragma unroll
  for (int i = 0; i < 4 * N; i++)
    #pragma unroll
    for (int d = 4; d < 32; d *= 2) {
      float& mine = v[i / 4][i % 4];
      const float other = __shfl_xor_sync(~0u, mine, d);
      mine = SUM ? mine + other : fmaxf(mine, other);
    }
  named_barrier(1 + group, 128);
  if (lane() < 4)
    #pragma unroll
    for (int i = 0; i < 4 * N; i++)
      exchange[(i / 4 * 4 + warp) * HEADS + head_at(i % 4)] = v[i / 4][i % 4];
  named_barrier(1 + group, 128);
  #pragma unroll
  for (int i = 0; i < 4 * N; i++) {
    const float* x = exchange + i / 4 * 4 * HEADS + head_at(i % 4);
    v[i / 4][i % 4] = SUM ? x[0] + x[HEADS] + x[2 * HEADS] + x[3 * HEADS]
                          : fmaxf(fmaxf(x[0], x[HEADS]), fmaxf(x[2 * HEADS], x[3 * HEADS]));
  }
}

DEVICE float largest(const float (&v)[8]) {
  return fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])),
               fmaxf(fmaxf(v[4], v[5]), fmaxf(v[6], v[7])));
}

// Weights of this page relative to the references as they stand, into shared memory; the largest.
template <bool FP8> DEVICE float weigh(float (&p)[8], const State<FP8>& st, const float (&x)[8],
                                       const float (&w)[2][4], u32 to) {
  #pragma unroll
  for (int e = 0; e < 8; e++) p[e] = power_of_2(x[e] - st.m[head_of(e)]);
  float top = largest(p);
  if constexpr (FP8) {
    #pragma unroll
    for (int b = 0; b < 4; b++) {
      float v[8];
      #pragma unroll
      for (int e = 0; e < 8; e++) v[e] = p[e] * (w[row_of(e)][b] * st.f[b][head_of(e)]);
      top = fmaxf(top, largest(v));
      store_matrices_t(to + b * P_BYTES, pack_f16(v[0], v[1]), pack_f16(v[2], v[3]),
                       pack_f16(v[4], v[5]), pack_f16(v[6], v[7]));
    }
  } else
    store_matrices_t(to, pack_bf16(p[0], p[1]), pack_bf16(p[2], p[3]),
                     pack_bf16(p[4], p[5]), pack_bf16(p[6], p[7]));
  fence_async();
  return top;
}

// New references from this page's scores; what was summed so far moves to them.
template <bool FP8> DEVICE void renew(State<FP8>& st, const float (&x)[8], const float (&w)[2][4],
                                      float* exchange, int group) {
  float top[1][4], old[4];
  #pragma unroll
  for (int h = 0; h < 4; h++) top[0][h] = fmaxf(x[entry_of(h)], x[entry_of(h) + 2]);
  over_tokens<false>(top, exchange, group);
  #pragma unroll
  for (int h = 0; h < 4; h++) {
    const float m = fmaxf(st.m[h], top[0][h]);
    old[h] = power_of_2(st.m[h] - m); st.m[h] = m; st.l[h] *= old[h];
  }
  float move[FP8 ? 4 : 1][4];
  if constexpr (FP8) {
    #pragma unroll
    for (int i = 0; i < 16; i++) {
      const int b = i / 4, h = i % 4, e = entry_of(h);
      move[b][h] = fmaxf(power_of_2(x[e] - st.m[h]) * w[0][b],
                         power_of_2(x[e + 2] - st.m[h]) * w[1][b]);
    }
    over_tokens<false>(move, exchange, group);
    #pragma unroll
    for (int i = 0; i < 16; i++) {
      const int b = i / 4, h = i % 4;
      const float now = old[h] * st.g[b][h];
      st.g[b][h] = fmaxf(fmaxf(move[b][h], now), 1e-30f);
      st.f[b][h] = __fdividef(1.f, st.g[b][h]);
      move[b][h] = now * st.f[b][h];
    }
  } else
    #pragma unroll
    for (int h = 0; h < 4; h++) move[0][h] = old[h];
  #pragma unroll
  for (int i = 0; i < 8; i++)
    #pragma unroll
    for (int e = 0; e < 8; e++) st.o[i][e] *= move[FP8 ? i / 2 : 0][head_of(e)];
}

// --- output ------------------------------------------------------------------------------------
template <typename P> DEVICE void add_values(State<false>& st, u32 room, u32 p, P place, int) {
  const u64 weights = plain_matrix(p, 256, 128);
  wgmma_fence();
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    const u64 v = matrix(room + place.at(i).slot * CHUNK);   // read across: 64 d rows, tokens are K
    #pragma unroll
    for (int t = 0; t < 4; t++) wgmma_bf16<1, 0>(st.o[i], v + t * 128, weights + t * 32, 1);
  }
  wgmma_commit(); wgmma_wait<0>();
  #pragma unroll
  for (int i = 0; i < 8; i++) keep_in_registers(st.o[i]);
}

template <typename P> DEVICE void add_values(State<true>& st, u32 room, u32 p, P place, int warp) {
  const u32 from = lane() * 128 + ((warp ^ (lane() & 7)) << 4);
  u32 a[2][4][4];
  #pragma unroll
  for (int i = 0; i < 8; i++) {                 // warp w of the group: d = 64 i + 16 w + 0..15
    const u32 v = room + place.at(i / 2).slot * CHUNK + (from ^ (i % 2 * 64));
    u32 x[2][4];
    load_matrices_t(x[0], v); load_matrices_t(x[1], v + 4096);
    if (i > 1) wgmma_wait<1>();
    #pragma unroll
    for (int t = 0; t < 4; t++)
      #pragma unroll
      for (int k = 0; k < 2; k++)               // (d, d+1) of two tokens -> two tokens of d, of d+1
        unpack_e4m3(a[i % 2][t][2 * k], a[i % 2][t][2 * k + 1],
                    __byte_perm(x[t / 2][t % 2 * 2 + k], 0, 0x3120));
    wgmma_fence();
    const u64 weights = plain_matrix(p + i / 2 * P_BYTES, 256, 128);
    #pragma unroll
    for (int t = 0; t < 4; t++) wgmma_f16_rs<0>(st.o[i], a[i % 2][t], weights + t * 32, 1);
    wgmma_commit();
  }
  wgmma_wait<0>();
  #pragma unroll
  for (int i = 0; i < 8; i++) keep_in_registers(st.o[i]);
}

// The second warpgroup hands what it has to the first one.
template <bool FP8> DEVICE void hand_over(State<FP8>& st, float* sum, float* state) {
  const int thread = threadIdx.x % 128;
  #pragma unroll
  for (int i = 0; i < 64; i++) sum[i * 128 + thread] = st.o[i / 8][i % 8];
  if (thread < 4)
    #pragma unroll
    for (int h = 0; h < 4; h++) {
      state[head_at(h)] = st.m[h]; state[HEADS + head_at(h)] = st.l[h];
    }
  named_arrive(MERGE, 256);
}

template <bool FP8> DEVICE void take_over(State<FP8>& st, const float* sum, const float* state) {
  float mine[4], theirs[4];
  named_barrier(MERGE, 256);
  #pragma unroll
  for (int h = 0; h < 4; h++) {
    const float other = state[head_at(h)], m = fmaxf(st.m[h], other);
    mine[h] = power_of_2(st.m[h] - m); theirs[h] = power_of_2(other - m);
    st.l[h] = st.l[h] * mine[h] + state[HEADS + head_at(h)] * theirs[h]; st.m[h] = m;
  }
  #pragma unroll
  for (int i = 0; i < 64; i++) {
    const int h = head_of(i % 8);
    const float other = sum[i * 128 + threadIdx.x % 128];
    st.o[i / 8][i % 8] = st.o[i / 8][i % 8] * mine[h] + other * theirs[h];
  }
}

template <bool FP8> DEVICE void write_out(const State<FP8>& st, const Work& work, const int4& seg,
                                          int warp) {
  const bool whole = seg.w < 0;                 // the only segment of its request
  #pragma unroll
  for (int h = 0; h < 4; h++) {
    const int head = head_at(h), e = entry_of(h);
    if (head >= work.heads) continue;
    const float over = __fdividef(1.f, st.l[h]);
    const u64 row = (u64)(whole ? seg.x : seg.w) * work.heads + head;
    if (warp == 0 && lane() < 4)
      (whole ? work.lse : work.lse_part)[row] = (st.m[h] + log2f(st.l[h])) * 0.69314718f;
    #pragma unroll
    for (int i = 0; i < 8; i++) {
      const u64 at = row * LATENT + i * 64 + warp * 16 + lane() / 4 * (FP8 ? 2 : 1);
      const float x = st.o[i][e] * over, y = st.o[i][e + 2] * over;
      if (FP8) {                                // neighbours, see add_values
        if (whole) *(u32*)(work.out + at) = pack_bf16(x, y);
        else *(float2*)(work.out_part + at) = make_float2(x, y);
      } else if (whole) {
        work.out[at] = (u16)pack_bf16(x, 0.f); work.out[at + 8] = (u16)pack_bf16(y, 0.f);
      } else {
        work.out_part[at] = x; work.out_part[at + 8] = y;
      }
    }
  }
}

// --- the warpgroups ----------------------------------------------------------------------------
template <bool FP8, typename P> DEVICE void end_of_request(float (&x)[8], float (&w)[2][4],
    u8* base, P place, int valid, int warp) {
  using R = Room<FP8>;                          // what lies behind it may be anything, NaN too
  #pragma unroll
  for (int e = 0; e < 8; e++) if (warp * 16 + (int)lane() / 4 + row_of(e) * 8 >= valid) {
    x[e] = -INFINITY;
    #pragma unroll
    for (int b = 0; b < 4; b++) w[row_of(e)][b] = 0;
  }
  for (int i = threadIdx.x % 128; i < (TOKENS - valid) * 8 * R::VALUES; i += 128) {
    u8* chunk = base + place.at(i % R::VALUES).slot * CHUNK;
    *(uint4*)(chunk + valid * 128 + i / R::VALUES * 16) = make_uint4(0, 0, 0, 0);
  }
}

template <bool FP8> DEVICE void attend(const Work& work, const Share& share, u8* base) {
  using R = Room<FP8>;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32 % 4, 0);
  const u32 room = shared(base), full = room + R::BARS, empty = full + R::SLOTS * 8;
  const u32 p_at = room + R::P + group * R::COPIES * P_BYTES;
  const u32 quarter = warp * 4 + (lane() >> 3 & 1) * 2 + (lane() >> 4);
  const u32 p_row = p_at + quarter * 128 + (lane() & 7) * 16;
  float *exchange = (float*)(base + R::EXCHANGE + group * 1024), *sum = (float*)(base + R::SUM);
  float *state = (float*)(base + R::STATE), *factor = (float*)(base + R::FACTOR);
  Place<R::SLOTS> place; int turn = 0;
  for (int s = share.begin; s < share.end; s++) {
    const int4 seg = share.segment(work, s);
    named_barrier(ALL, 128 * GROUPS);
    if (group == 0) load_queries<FP8>(work, seg.x, room + R::Q, factor);
    fence_async(); named_barrier(ALL, 128 * GROUPS);
    State<FP8> st; float c[4];
    #pragma unroll
    for (int h = 0; h < 4; h++) {
      st.m[h] = -INFINITY; st.l[h] = 0; c[h] = factor[head_at(h)];
      #pragma unroll
      for (int b = 0; b < R::COPIES; b++) st.g[b][h] = st.f[b][h] = 0;
    }
    #pragma unroll
    for (int i = 0; i < 64; i++) st.o[i / 8][i % 8] = 0;
    const int count = pages_of(seg);
    for (int n = 0; n < count; n++) {
      if (n % GROUPS == group) {
        float x[8], w[2][4], p[8];
        if constexpr (FP8) scores(x, w, room, full, place, turn, warp);
        else scores(x, room, full, place);
        #pragma unroll
        for (int e = 0; e < 8; e++) x[e] *= c[head_of(e)];
        const int valid = seg.z - seg.y - n * TOKENS;
        named_barrier(1 + group, 128);          // every warp has read this page's K and the last P
        if (valid < TOKENS) end_of_request<FP8>(x, w, base, place, valid, warp);
        if (named_any(1 + group, 128, weigh(p, st, x, w, p_row) > LIMIT)) {
          renew(st, x, w, exchange, group);
          weigh(p, st, x, w, p_row);
          named_barrier(1 + group, 128);
        }
        #pragma unroll
        for (int e = 0; e < 8; e++) st.l[head_of(e)] += p[e];
        add_values(st, room, p_at, place, warp);
        __syncwarp();
        if (lane() < R::CHUNKS) barrier_arrive(empty + place.at(lane()).slot * 8);
      }
      place = place.at(R::CHUNKS);
      if (FP8) turn = turn + 1 == R::SCALES ? 0 : turn + 1;
    }
    float l[1][4] = {{st.l[0], st.l[1], st.l[2], st.l[3]}};
    over_tokens<true>(l, exchange, group);
    #pragma unroll
    for (int h = 0; h < 4; h++) st.l[h] = l[0][h];
    if (FP8)
      #pragma unroll
      for (int i = 0; i < 64; i++) st.o[i / 8][i % 8] *= st.g[FP8 ? i / 16 : 0][head_of(i % 8)];
    if (GROUPS > 1) { if (group == 0) take_over(st, sum, state); else hand_over(st, sum, state); }
    if (group == 0) write_out(st, work, seg, warp);
  }
}

template <bool FP8> DEVICE void decode(const Work& work, const TensorMap& tokens,
                                       const TensorMap& rope, const TensorMap& scales) {
  extern __shared__ __align__(1024) u8 base[];
  using R = Room<FP8>;
  const u32 room = shared(base);
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::SLOTS; i++) {
      barrier_init(room + R::BARS + i * 8, 1);                     // full: the announcing lane
      barrier_init(room + R::BARS + (R::SLOTS + i) * 8, 4);        // empty: four warps
    }
    fence_barrier_init();
    prefetch_map(tokens);
    if (FP8) { prefetch_map(rope); prefetch_map(scales); }
  }
  const Share share(work);        // plan and page table are older than the kernel before this one
  const bool feeds = threadIdx.x >= 128 * GROUPS;
  const int ahead = feeds && share.begin < share.end ? look_up(work, share.one, 0) : 0;
  __syncthreads();
  if (!FP8 && feeds && share.begin < share.end)
    look_ahead(tokens, ahead, min(3, pages_of(share.one)));
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (feeds) {
    if (R::TRADE) give_registers<24>();
    if (threadIdx.x < 128 * GROUPS + 32)
      feed<FP8>(work, share, ahead, room, tokens, rope, scales);
  } else {
    if (R::TRADE) take_registers<240>();
    attend<FP8>(work, share, base);
  }
}

extern "C" __global__ void __launch_bounds__(Room<false>::THREADS, 1) mla_decode16_bf16(
    const __grid_constant__ TensorMap tokens, const __grid_constant__ Work work) {
  decode<false>(work, tokens, tokens, tokens);
}

extern "C" __global__ void __launch_bounds__(Room<true>::THREADS, 1) mla_decode16_fp8(
    const __grid_constant__ TensorMap latent, const __grid_constant__ TensorMap rope,
    const __grid_constant__ TensorMap scales, const __grid_constant__ Work work) {
  decode<true>(work, latent, rope, scales);
}
