// The PTX manual's producer and consumer at a named barrier: what racecheck makes of it.
#include "hopper.cuh"
extern "C" __global__ void arrive(float* out, int late) {
  __shared__ float x[128];
  int t = threadIdx.x % 128;
  bool producer = threadIdx.x < 128;
  if (producer == (bool)late) __nanosleep(100000);  // who comes last
  if (producer) { x[t] = t; named_arrive(1, 256); }
  else { named_barrier(1, 256); out[t] = x[t]; }
}
