// Merge the pieces of a split attention row: out = sum_s exp(lse_s - lse) part_s,
// lse = log sum_s exp(lse_s). A row (one head of one request) is the work of WARPS warps, each of
// which takes every WARPS-th piece, a lane 16 of the 512 columns: 1 when there are many rows,
// 8 when there are few, for all there is to wait for is memory. Requests that were not split are
// done already; those of length 0 get zeros and lse = -inf.
#include "hopper.cuh"

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)        // NVRTC has no math.h
#endif
#ifndef WARPS
#define WARPS 1
#endif
#ifndef TOGETHER
#define TOGETHER 2                                 // pieces that a warp reads at once
#endif
constexpr int LATENT = 512, ROWS = WARPS == 1 ? 4 : 1, THREADS = 32*WARPS*ROWS;  // rows a block
constexpr int AT_ONCE = TOGETHER > 2 ? 1 : 1024/THREADS;           // blocks a multiprocessor

struct Some { float lse[TOGETHER]; float4 x[TOGETHER][4]; };       // pieces on their way

// Pieces first, first + WARPS, ...; beyond the last: nothing, of weight 0.
DEVICE void read(Some& z, const float* pieces, const float* lse, int first, int n, int heads) {
  #pragma unroll
  for (int j = 0; j < TOGETHER; j++) {
    int piece = first + j*WARPS;
    z.lse[j] = piece < n ? lse[(long long)piece*heads] : -INFINITY;
    #pragma unroll
    for (int e = 0; e < 4; e++)
      z.x[j][e] = piece < n ? *(const float4*)(pieces + (long long)piece*heads*LATENT + e*128)
                            : make_float4(0, 0, 0, 0);
  }
}

extern "C" __global__ __launch_bounds__(THREADS, AT_ONCE) void mla_combine(
    const float* part,             // [slots, heads, 512], each piece normalised
    const float* part_lse,         // [slots, heads]
    const int* splits,             // [B+1] request b has slots splits[b] to splits[b+1]-1
    const int* lengths,            // [B]
    unsigned short* out,           // [B, heads, 512] bf16
    float* lse,                    // [B, heads]
    int heads) {
  __shared__ float4 others[WARPS][128];
  __shared__ float sums[WARPS];
  int b = blockIdx.y, warp = threadIdx.x/32, t = threadIdx.x%32;
  int head = ROWS > 1 ? blockIdx.x*ROWS + warp : blockIdx.x, w = ROWS > 1 ? 0 : warp;
  int from = splits[b], n = splits[b+1] - from;
  let_next_kernel_start();
  wait_for_previous_kernel();      // also with nothing to do: who waits for us waits for it
  if (head >= heads || (n == 0 && lengths[b])) return;
  const float* mine = part_lse + (long long)from*heads + head;
  const float* pieces = part + ((long long)from*heads + head)*LATENT + t*4;
  float4 y[4] = {}; Some z;
  read(z, pieces, mine, w, n, heads);              // they fly in while the maximum is found
  float top = -INFINITY, sum = 0;
  for (int s = lane(); s < n; s += 32) top = fmaxf(top, mine[(long long)s*heads]);
  for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
  for (int s = w; s < n; s += TOGETHER*WARPS) {
    #pragma unroll
    for (int j = 0; j < TOGETHER; j++) {
      float v = __expf(z.lse[j] - top);
      sum += v;
      #pragma unroll
      for (int e = 0; e < 4; e++) {
        y[e].x += v*z.x[j][e].x; y[e].y += v*z.x[j][e].y;
        y[e].z += v*z.x[j][e].z; y[e].w += v*z.x[j][e].w;
      }
    }
    read(z, pieces, mine, s + TOGETHER*WARPS, n, heads);
  }
  if (WARPS > 1) {                 // everyone's share to shared memory, the first warp adds them up
    #pragma unroll
    for (int e = 0; e < 4; e++) others[w][e*32 + t] = y[e];
    if (t == 0) sums[w] = sum;
    __syncthreads();
    if (w) return;
    for (int o = 1; o < min(WARPS, n); o++) {
      sum += sums[o];
      #pragma unroll
      for (int e = 0; e < 4; e++) {
        float4 z = others[o][e*32 + t];
        y[e].x += z.x; y[e].y += z.y; y[e].z += z.z; y[e].w += z.w;
      }
    }
  }
  long long row = (long long)b*heads + head;
  float over = n ? 1/sum : 0;
  #pragma unroll
  for (int e = 0; e < 4; e++)
    *(uint2*)(out + row*LATENT + e*128 + t*4) =
      make_uint2(pack_bf16(y[e].x*over, y[e].y*over), pack_bf16(y[e].z*over, y[e].w*over));
  if (t == 0) lse[row] = n ? top + __logf(sum) : -INFINITY;
}
