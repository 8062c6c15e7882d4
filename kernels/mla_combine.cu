// Merge the pieces of a split attention row: out = sum_s exp(lse_s - lse) part_s,
// lse = log sum_s exp(lse_s). A row (one head of one request) is the work of WARPS warps, each of
// which takes every WARPS-th piece, a lane 16 of the 512 columns: 1 when there are many rows,
// 8 when there are few rows in many pieces. Requests that were not split are done already;
// requests of length 0 get zeros and lse = -inf.
#include "hopper.cuh"

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)        // NVRTC has no math.h
#endif
#ifndef WARPS
#define WARPS 1
#endif
constexpr int LATENT = 512, ROWS = WARPS == 1 ? 4 : 1;             // heads of a block
constexpr int TOGETHER = WARPS == 1 ? 2 : 4;                       // pieces read at once

extern "C" __global__ __launch_bounds__(32*ROWS*WARPS) void mla_combine(
    const float* part,             // [slots, heads, 512], each piece normalised
    const float* part_lse,         // [slots, heads]
    const int* splits,             // [B+1] request b has slots splits[b] to splits[b+1]-1
    const int* lengths,            // [B]
    unsigned short* out,           // [B, heads, 512] bf16
    float* lse,                    // [B, heads]
    int heads) {
  __shared__ float4 others[WARPS][128];
  __shared__ float sums[WARPS];
  int b = blockIdx.y, warp = threadIdx.x/32, head = blockIdx.x*ROWS + warp/WARPS, w = warp%WARPS;
  int from = splits[b], n = splits[b+1] - from;
  let_next_kernel_start();
  wait_for_previous_kernel();      // also with nothing to do: who waits for us waits for it
  if (head >= heads || (n == 0 && lengths[b])) return;
  const float* mine = part_lse + (long long)from*heads + head;
  float top = -INFINITY, sum = 0;
  for (int s = lane(); s < n; s += 32) top = fmaxf(top, mine[(long long)s*heads]);
  for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
  float4 y[4] = {};
  for (int s0 = w; s0 < n; s0 += 32*WARPS) {
    int s = s0 + lane()*WARPS;
    float weight = s < n ? __expf(mine[(long long)s*heads] - top) : 0;
    for (int i = 0; i < 32 && s0 + i*WARPS < n; i += TOGETHER) {
      float4 z[TOGETHER][4]; float v[TOGETHER];
      #pragma unroll
      for (int j = 0; j < TOGETHER; j++) {         // beyond the last: the last again
        int piece = min(s0 + (i+j)*WARPS, n-1);
        const float* x = part + ((long long)(from + piece)*heads + head)*LATENT + lane()*4;
        #pragma unroll
        for (int e = 0; e < 4; e++) z[j][e] = *(const float4*)(x + e*128);
        v[j] = __shfl_sync(~0u, weight, i+j);
      }
      #pragma unroll
      for (int j = 0; j < TOGETHER; j++) {
        sum += v[j];
        #pragma unroll
        for (int e = 0; e < 4; e++) {
          y[e].x += v[j]*z[j][e].x; y[e].y += v[j]*z[j][e].y;
          y[e].z += v[j]*z[j][e].z; y[e].w += v[j]*z[j][e].w;
        }
      }
    }
  }
  if (WARPS > 1) {                 // everyone's share to shared memory, the first warp adds them up
    #pragma unroll
    for (int e = 0; e < 4; e++) others[w][e*32 + lane()] = y[e];
    if (lane() == 0) sums[w] = sum;
    __syncthreads();
    if (w) return;
    for (int o = 1; o < WARPS; o++) {
      sum += sums[o];
      #pragma unroll
      for (int e = 0; e < 4; e++) {
        float4 z = others[o][e*32 + lane()];
        y[e].x += z.x; y[e].y += z.y; y[e].z += z.z; y[e].w += z.w;
      }
    }
  }
  long long row = (long long)b*heads + head;
  float over = n ? 1/sum : 0;
  #pragma unroll
  for (int e = 0; e < 4; e++)
    *(uint2*)(out + row*LATENT + lane()*4 + e*128) =
      make_uint2(pack_bf16(y[e].x*over, y[e].y*over), pack_bf16(y[e].z*over, y[e].w*over));
  if (lane() == 0) lse[row] = n ? top + __logf(sum) : -INFINITY;
}
