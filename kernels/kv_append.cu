// New tokens into the paged latent cache: read once, quantised in registers,
// written once where they belong.
//
//   x [N, LATENT+ROPE] bf16       one warp a token, 8 numbers (16 bytes) a lane and round
//   ┌───────────── LATENT ─────────────┬─ ROPE ─┐
//   │ group 0 │ group 1 │ group 2 │ …  │        │   a group is 128 = 16 lanes
//   └────┬─────────┬─────────┬─────────┴───┬────┘
//     |max| over 16 lanes: 4 shuffles      │
//     scale = |max|/TOP, codes = x·(1/scale)│ copied
//        ▼         ▼         ▼             ▼
//   latent[slot]   scale[slot]          rope[slot]
//
// slot = page*64 + place in the page; a negative one drops its token.
//
// BITS is 16 (bf16: no codes, one row of LATENT+ROPE), 8, 6 or 4; FLOAT8 makes the 8 an e4m3.
// Codes of BITS bits lie side by side, the first lowest: the 8 of a lane are BITS bytes.
// Two or four tokens a warp were tried: slower at every size. Measured on an H200 (CUDA 13.0):
// 3.5 TB/s for 65 536 tokens into fp8 pages, 2.3 us for 128; see nbs/results/kv_append.json.
#include "hopper.cuh"

#ifndef LATENT
#define LATENT 512
#define ROPE 64
#define BITS 8
#define FLOAT8 1
#endif

constexpr int GROUP = 128, LANES = GROUP/8, WIDTH = LATENT + ROPE;
constexpr int CHUNKS = LATENT/8, ROUNDS = (CHUNKS + 31)/32;   // bf16: LATENT is the whole row
constexpr float SMALLEST = 1.17549435e-38f, LARGEST = 3.40282347e38f;
constexpr float TOP = FLOAT8 ? 448.f : float((1 << (BITS - 1)) - 1);

struct Eight { u32 w[4]; };   // 8 bf16

DEVICE Eight load8(const u16* p) {
  Eight v;   // read once: leave the L1 alone
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "l"(p));
  return v;
}
DEVICE void store8(u16* p, const Eight& v) {
  *(uint4*)p = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]);
}
DEVICE float number(const Eight& v, int i) {      // bf16 is the upper half of an fp32
  u32 w = v.w[i/2];
  return __uint_as_float(i % 2 ? w & 0xffff0000u : w << 16);
}
DEVICE float max_nan(float a, float b) {          // unlike fmaxf, lets a NaN be seen
  float m; asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b)); return m;
}

// The largest magnitude of a group: 8 numbers a lane, then a butterfly over its 16 lanes.
DEVICE float group_max(const Eight& v) {
  float m = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) m = max_nan(m, fabsf(number(v, i)));
#pragma unroll
  for (int step = LANES/2; step; step /= 2) m = max_nan(m, __shfl_xor_sync(0xffffffffu, m, step));
  return m;
}

DEVICE u64 codes(const Eight& v, float inverse) {
  u64 word = 0;
#if FLOAT8
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    u16 two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two)
        : "f"(number(v, i + 1)*inverse), "f"(number(v, i)*inverse));
    word |= (u64)two << 8*i;
  }
#else
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int q = __float2int_rn(number(v, i)*inverse);   // a NaN becomes 0; its scale stays NaN
    word |= (u64)(u32)(min(max(q, -int(TOP)), int(TOP)) + (1 << (BITS - 1))) << BITS*i;
  }
#endif
  return word;
}

DEVICE void store_codes(u8* p, u64 word) {   // BITS bytes, in the widest aligned pieces
  if constexpr (BITS == 8) *(u64*)p = word;
  else if constexpr (BITS == 4) *(u32*)p = (u32)word;
  else
#pragma unroll
    for (int i = 0; i < BITS/2; i++) ((u16*)p)[i] = (u16)(word >> 16*i);
}

// One token's row in registers: a lane holds 8 numbers of each round, and 8 of the rotary key.
struct Token { Eight v[ROUNDS], key; };

DEVICE void load(Token& t, const u16* row, int me) {
#pragma unroll
  for (int r = 0; r < ROUNDS; r++)
    t.v[r] = 32*r + me < CHUNKS ? load8(row + 8*(32*r + me)) : Eight{};
  if (me < ROPE/8) t.key = load8(row + LATENT + 8*me);
}

DEVICE void store(const Token& t, long long slot, u8* latent, float* scales, u16* rope, int me) {
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    int c = 32*r + me;
    bool mine = c < CHUNKS;                       // not all lanes, where the last round is not full
#if BITS == 16
    if (mine) store8((u16*)latent + slot*WIDTH + 8*c, t.v[r]);
#else
    float peak = group_max(t.v[r]), scale = fmaxf(__fdiv_rn(peak, TOP), SMALLEST);
    if (!(peak <= LARGEST)) scale = __uint_as_float(0x7fffffffu);   // not finite: must stay visible
    if (mine) store_codes(latent + slot*(LATENT*BITS/8) + c*BITS, codes(t.v[r], __frcp_rn(scale)));
    if (mine && me % LANES == 0) scales[slot*(LATENT/GROUP) + c/LANES] = scale;
#endif
  }
  if (me < ROPE/8) store8(rope + slot*ROPE + 8*me, t.key);
}

extern "C" __global__ void __launch_bounds__(256) kv_append(
    const u16* __restrict__ x, const long long* __restrict__ slots,   // [N,LATENT+ROPE], [N]
    u8* __restrict__ latent, float* __restrict__ scales, u16* __restrict__ rope,
    int tokens, int room) {
  int token = blockIdx.x*(blockDim.x/32) + threadIdx.x/32, me = threadIdx.x % 32;
  long long slot = -1;
  Token t = {};
  if (token < tokens) {     // with an early exit the compiler loads the row after the slot
    slot = slots[token];
    load(t, x + (long long)token*WIDTH, me);
  }
  if (slot >= 0 && slot < room) store(t, slot, latent, scales, rope, me);
}
