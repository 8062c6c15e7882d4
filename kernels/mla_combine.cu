// Merge the pieces of a split attention row: out = sum_s exp(lse_s - lse) part_s, lse = log sum_s exp(lse_s).
// HEADS = 4: a warp takes one head of one request (each lane 16 of the 512 columns), for many requests.
// HEADS = 1: four warps share one head, for few requests cut into many pieces.
// Requests that were not split are done already; requests of length 0 get zeros and lse = -inf.
#include "hopper.cuh"

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)     // NVRTC has no math.h
#endif

#ifndef HEADS
#define HEADS 4            // heads of a block of 128 threads
#endif
constexpr int LATENT = 512, EACH = HEADS;          // EACH: float4 a lane, 128 columns apart

extern "C" __global__ __launch_bounds__(128) void mla_combine(
    const float* part,             // [slots, heads, 512], each piece normalised
    const float* part_lse,         // [slots, heads]
    const int* splits,             // [B+1] the pieces of request b are slots splits[b] to splits[b+1]-1
    const int* lengths,            // [B]
    unsigned short* out,           // [B, heads, 512] bf16
    float* lse,                    // [B, heads]
    int heads) {
  int b = blockIdx.y, head = blockIdx.x*HEADS + (HEADS == 4 ? threadIdx.x/32 : 0);
  int column = threadIdx.x%(128/HEADS)*4, from = splits[b], n = splits[b+1] - from;
  let_next_kernel_start();
  wait_for_previous_kernel();                      // also when there is nothing to do: who waits for us waits for it
  if (head >= heads || (n == 0 && lengths[b])) return;
  long long row = (long long)b*heads + head;
  const float* mine = part_lse + (long long)from*heads + head;
  float top = -INFINITY, sum = 0;
  for (int s = lane(); s < n; s += 32) top = fmaxf(top, mine[(long long)s*heads]);
  for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
  float4 y[EACH] = {};
  for (int s0 = 0; s0 < n; s0 += 32) {
    float w = s0 + lane() < n ? __expf(mine[(long long)(s0 + lane())*heads] - top) : 0;
    #pragma unroll 4
    for (int s = s0; s < min(n, s0+32); s++) {
      const float* x = part + ((long long)(from + s)*heads + head)*LATENT + column;
      float v = __shfl_sync(~0u, w, s - s0);
      sum += v;
      #pragma unroll
      for (int e = 0; e < EACH; e++) {
        float4 z = *(const float4*)(x + e*128);
        y[e].x += v*z.x; y[e].y += v*z.y; y[e].z += v*z.z; y[e].w += v*z.w;
      }
    }
  }
  float over = n ? 1/sum : 0;
  #pragma unroll
  for (int e = 0; e < EACH; e++)
    *(uint2*)(out + row*LATENT + column + e*128) =
      make_uint2(pack_bf16(y[e].x*over, y[e].y*over), pack_bf16(y[e].z*over, y[e].w*over));
  if (threadIdx.x%(128/HEADS) == 0) lse[row] = n ? top + __logf(sum) : -INFINITY;
}
