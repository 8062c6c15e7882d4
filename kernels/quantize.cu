// Numbers to FP8 and back, in one pass over memory.
//
//   quantize_rows    x [M,K] -> codes [M,K] e4m3, scale [M,K/128]      a scale for 128 neighbours
//   quantize_tiles   x [M,K] -> codes [M,K] e4m3, scale [M/128,K/128]  a scale for 128 x 128
//   dequantize       codes, scale -> y [M,K] bf16 or fp32
//
// Compiled in:  FLOAT    1: x (or y) is fp32, 0: bf16
//               VECTOR   1: rows start at multiples of 16 bytes and K % 8 == 0; 0: anything
//               POW2     1: scales are rounded up to powers of two
//               COLUMNS  quantize_rows, 0: scale is [M,K/128];
//                        1: it lies in memory as [K/128,stride], neighbouring rows side by side
//               ROWS     dequantize: rows that share a scale, 1 or 128
//
// The arithmetic, the same to the bit in the notebook, in Triton and here:
//   scale = max(amax / 448, 2^-126)       one fp32 division, rounded to nearest
//   code  = e4m3(x * (1 / scale))         fp32 reciprocal, fp32 product, nearest even
// A block that holds an infinity or a NaN becomes NaN: its codes 0x7f, its scale 0x7fc00000.
//
// How quantize_rows keeps memory busy. Eight threads share a block of 128: each loads two vectors
// of 16 bytes (columns 8t and 64+8t, so that neighbours load neighbours), finds its largest
// magnitude, and three shuffles find the block's. x stays in registers between its two uses.
//
//        row   | block 0: t0 t1 .. t7 t0 t1 .. t7 | block 1: t8 .. t15 t8 .. t15 | ...
//        warp    4 blocks of a row: 1 kB of bf16 in two loads, 32 KB to 64 KB in flight on each SM
//        thread block, 8 warps     COLUMNS 0: 4 rows x 8 blocks     COLUMNS 1: 8 rows x 4 blocks
//
// Its 32 scales go through shared memory, so that they leave as four whole sectors of 32 bytes in
// either layout: a scale written alone costs as much traffic as eight.
//
// Measured on one H200: see nbs/results/fp8.json and the notebook of r1nb.fp8.
#include "hopper.cuh"

#ifndef FLOAT
#define FLOAT 0
#endif
#ifndef VECTOR
#define VECTOR 1
#endif
#ifndef POW2
#define POW2 0
#endif
#ifndef COLUMNS
#define COLUMNS 0
#endif
#ifndef ROWS
#define ROWS 1
#endif

constexpr int WORDS = FLOAT ? 8 : 4;                // 32-bit words that hold eight numbers
constexpr int HIGH = COLUMNS ? 8 : 4, WIDE = 32 / HIGH;  // rows and blocks of a thread block
#if FLOAT
typedef float Number;
#else
typedef u16 Number;
#endif

// --- eight numbers ----------------------------------------------------------------------------
struct Eight { u32 word[WORDS]; };

DEVICE uint4 read(const void* p) {  // plain: a hint to bypass L1 or to fetch 256 bytes costs 5 %
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

DEVICE Eight load(const Number* x, int row, int column, int M, int K) {
  Eight e;
  #pragma unroll
  for (int i = 0; i < WORDS; i++) e.word[i] = 0;    // what lies outside counts as zero
  if (row >= M || column >= K) return e;
  const Number* p = x + (long long)row * K + column;
#if VECTOR
  #pragma unroll
  for (int i = 0; i < WORDS / 4; i++) {
    uint4 v = read((const uint4*)p + i);
    e.word[4*i] = v.x; e.word[4*i + 1] = v.y; e.word[4*i + 2] = v.z; e.word[4*i + 3] = v.w;
  }
#else
  #pragma unroll
  for (int i = 0; i < 8; i++) if (column + i < K) {
#if FLOAT
    e.word[i] = __float_as_uint(p[i]);
#else
    e.word[i/2] |= (u32)p[i] << (16 * (i % 2));
#endif
  }
#endif
  return e;
}

// Magnitudes compare like the integers their bits spell, NaN above infinity: one maximum serves.
DEVICE u32 max_pair(u32 a, u32 b) {
#if FLOAT
  return a > b ? a : b;
#else
  u32 m; asm("max.u16x2 %0, %1, %2;" : "=r"(m) : "r"(a), "r"(b)); return m;
#endif
}
DEVICE u32 magnitude(const Eight& e, u32 so_far) {
  constexpr u32 unsign = FLOAT ? 0x7fffffffu : 0x7fff7fffu;
  #pragma unroll
  for (int i = 0; i < WORDS; i++) so_far = max_pair(so_far, e.word[i] & unsign);
  return so_far;
}
DEVICE u32 as_fp32(u32 m) {                         // the larger of a bf16 pair, as fp32 bits
#if FLOAT
  return m;
#else
  u32 low = m << 16, high = m & 0xffff0000u;
  return low > high ? low : high;
#endif
}

// --- scale and codes --------------------------------------------------------------------------
struct Scale { float value, reciprocal; };

DEVICE Scale scale_of(u32 amax) {
  float s = fmaxf(__fdiv_rn(__uint_as_float(amax), 448.f), 1.17549435e-38f);
#if POW2
  s = __uint_as_float((__float_as_uint(s) + 0x7fffffu) & 0xff800000u);
#endif
  if (amax >= 0x7f800000u) s = __uint_as_float(0x7fc00000u);
  return {s, __frcp_rn(s)};
}

DEVICE float number(const Eight& e, int i) {
#if FLOAT
  return __uint_as_float(e.word[i]);
#else
  return __uint_as_float(i % 2 ? e.word[i/2] & 0xffff0000u : e.word[i/2] << 16);
#endif
}
DEVICE u32 code_pair(float low, float high) {
  u16 c; asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(c) : "f"(high), "f"(low)); return c;
}
DEVICE void store_codes(u8* q, int row, int column, int M, int K, const Eight& e, float r) {
  if (row >= M || column >= K) return;
  u32 c[4];
  #pragma unroll
  for (int i = 0; i < 4; i++)
    c[i] = code_pair(__fmul_rn(number(e, 2*i), r), __fmul_rn(number(e, 2*i + 1), r));
  u8* p = q + (long long)row * K + column;
#if VECTOR
  *(uint2*)p = make_uint2(c[0] | c[1] << 16, c[2] | c[3] << 16);
#else
  #pragma unroll
  for (int i = 0; i < 8; i++) if (column + i < K) p[i] = c[i/2] >> (8 * (i % 2));
#endif
}

// --- a scale for 128 neighbours ---------------------------------------------------------------
// grid (K / (128 WIDE), M / HIGH), both rounded up; 256 threads
extern "C" __global__ void __launch_bounds__(256)
quantize_rows(const Number* x, u8* q, float* scale, int M, int K, int stride) {
  const int group = threadIdx.x / 8, t = threadIdx.x % 8;
  const int row = HIGH * blockIdx.y + group / WIDE, block = WIDE * blockIdx.x + group % WIDE;
  const int column = 128 * block + 8 * t;
  wait_for_previous_kernel();
  let_next_kernel_start();
  Eight a = load(x, row, column, M, K), b = load(x, row, column + 64, M, K);
  u32 m = magnitude(b, magnitude(a, 0));
  #pragma unroll
  for (int d = 1; d < 8; d *= 2) m = max_pair(m, __shfl_xor_sync(~0u, m, d));
  Scale s = scale_of(as_fp32(m));
  store_codes(q, row, column, M, K, a, s.reciprocal);
  store_codes(q, row, column + 64, M, K, b, s.reciprocal);

  __shared__ float scales[32];
  if (t == 0) scales[group] = s.value;
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= 32) return;
#if COLUMNS
  const int r = HIGH * blockIdx.y + i % HIGH, c = WIDE * blockIdx.x + i / HIGH;
  if (r < M && 128 * c < K) scale[(long long)c * stride + r] = scales[i % HIGH * WIDE + i / HIGH];
#else
  const int r = HIGH * blockIdx.y + i / WIDE, c = WIDE * blockIdx.x + i % WIDE;
  if (r < M && 128 * c < K) scale[(long long)r * stride + c] = scales[i];
#endif
}

// --- a scale for a tile of 128 x 128 ----------------------------------------------------------
// grid (K / 128, M / 128), both rounded up; 512 threads: 16 across, 32 rows at a time, 4 times
extern "C" __global__ void __launch_bounds__(512)
quantize_tiles(const Number* x, u8* q, float* scale, int M, int K) {
  const int column = 128 * blockIdx.x + 8 * (threadIdx.x % 16);
  const int row = 128 * blockIdx.y + threadIdx.x / 16;
  wait_for_previous_kernel();
  let_next_kernel_start();
  Eight e[4];
  #pragma unroll
  for (int i = 0; i < 4; i++) e[i] = load(x, row + 32*i, column, M, K);
  u32 m = 0;
  #pragma unroll
  for (int i = 0; i < 4; i++) m = magnitude(e[i], m);
  #pragma unroll
  for (int d = 1; d < 32; d *= 2) m = max_pair(m, __shfl_xor_sync(~0u, m, d));
  __shared__ u32 of_warp[16];
  if (lane() == 0) of_warp[threadIdx.x / 32] = m;
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 16; i++) m = max_pair(m, of_warp[i]);
  Scale s = scale_of(as_fp32(m));
  #pragma unroll
  for (int i = 0; i < 4; i++) store_codes(q, row + 32*i, column, M, K, e[i], s.reciprocal);
  if (threadIdx.x == 0) scale[(long long)blockIdx.y * gridDim.x + blockIdx.x] = s.value;
}

// --- and back ---------------------------------------------------------------------------------
DEVICE float2 two_values(u32 codes) {               // e4m3 is exact in fp16, and fp16 in fp32
  u32 h; float2 f; u16 c = codes;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h) : "h"(c));
  asm("{ .reg .b16 l, u; mov.b32 {l, u}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, u; }"
      : "=f"(f.x), "=f"(f.y) : "r"(h));
  return f;
}

// grid (K / 512, M / 32), both rounded up; 256 threads: 64 across, 4 rows at a time, 8 times
extern "C" __global__ void __launch_bounds__(256)
dequantize(const u8* q, const float* scale, Number* y, int M, int K) {
  const int column = 8 * (64 * blockIdx.x + threadIdx.x % 64);
  const int top = 32 * blockIdx.y + threadIdx.x / 64, blocks = (K + 127) / 128;
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (column >= K) return;
  u32 c[8][2]; float s[8];
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    int row = top + 4*i;
    c[i][0] = c[i][1] = 0; s[i] = 0.f;
    if (row >= M) continue;
    const u8* p = q + (long long)row * K + column;
#if VECTOR
    uint2 v = __ldg((const uint2*)p);
    c[i][0] = v.x; c[i][1] = v.y;
#else
    #pragma unroll
    for (int j = 0; j < 8; j++) if (column + j < K) c[i][j/4] |= (u32)p[j] << (8 * (j % 4));
#endif
    s[i] = scale[(long long)(row / ROWS) * blocks + column / 128];
  }
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    int row = top + 4*i;
    if (row >= M) continue;
    float v[8];
    #pragma unroll
    for (int j = 0; j < 4; j++) {
      float2 f = two_values(c[i][j/2] >> (16 * (j % 2)));
      v[2*j] = __fmul_rn(f.x, s[i]); v[2*j + 1] = __fmul_rn(f.y, s[i]);
    }
    Number* p = y + (long long)row * K + column;
#if VECTOR && FLOAT
    ((float4*)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4*)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
#elif VECTOR
    *(uint4*)p = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                            pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
#elif FLOAT
    for (int j = 0; j < 8; j++) if (column + j < K) p[j] = v[j];
#else
    for (int j = 0; j < 8; j++) if (column + j < K) p[j] = (u16)pack_bf16(v[j], 0.f);
#endif
  }
}
