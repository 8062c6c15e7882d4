// What Hopper's own instructions are called here: a line of PTX behind a name that says what it
// does. Addresses in shared memory are 32-bit numbers (`shared`): so the instructions want them.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(64) TensorMap {
  u64 opaque[16];
};  // filled by the driver; passed as `const __grid_constant__`

#define DEVICE __device__ __forceinline__

// --- where am I -------------------------------------------------------------------------------
DEVICE u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE u32 lane() {
  u32 x;
  asm("mov.u32 %0, %%laneid;" : "=r"(x));
  return x;
}
DEVICE u32 rank_in_cluster() {
  u32 x;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
  return x;
}
DEVICE u32 in_block(u32 address, u32 rank) {  // the same place in another block of the cluster
  u32 x;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(x) : "r"(address), "r"(rank));
  return x;
}
DEVICE float4 load_remote4(u32 address) {  // address from in_block
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address));
  return x;
}

// --- waiting for each other -------------------------------------------------------------------
DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE bool named_any(int id, int threads,
                      bool mine) {  // a barrier that also tells whether anybody said yes
  u32 x;
  asm volatile(
      "{ .reg .pred p, q; setp.ne.u32 p, %3, 0; bar.red.or.pred q, %1, %2, p; "
      "selp.u32 %0, 1, 0, q; }"
      : "=r"(x)
      : "r"(id), "r"(threads), "r"((u32)mine)
      : "memory");
  return x;
}
DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}
// What ordinary stores wrote to shared memory becomes visible to copy engine and tensor cores.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// An mbarrier counts arrivals and bytes; it flips its parity when both are complete.
DEVICE void barrier_init(u32 bar, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_expect(u32 bar,
                           u32 bytes) {  // arrive once, and announce bytes that a copy will bring
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
               : "memory");
}
DEVICE void barrier_arrive(u32 bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEVICE void barrier_arrive_remote(u32 bar, u32 rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(in_block(bar, rank))
               : "memory");
}
DEVICE bool barrier_try(u32 bar, u32 parity) {
  u32 done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done;
}
DEVICE void barrier_wait(u32 bar, u32 parity) { while (!barrier_try(bar, parity)); }

// --- the copy engine --------------------------------------------------------------------------
constexpr u64 EVICT_NORMAL = 0x1000000000000000ull, EVICT_FIRST = 0x12F0000000000000ull;

DEVICE void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
DEVICE void tma_load(u32 to, const TensorMap& map, u32 bar, int x, int y, u64 keep = EVICT_NORMAL) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::
          "r"(to),
      "l"(&map), "r"(bar), "r"(x), "r"(y), "l"(keep)
      : "memory");
}
DEVICE void tma_load(u32 to, const TensorMap& map, u32 bar, int x, int y, int z,
                     u64 keep = EVICT_NORMAL) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::
          "r"(to),
      "l"(&map), "r"(bar), "r"(x), "r"(y), "r"(z), "l"(keep)
      : "memory");
}
DEVICE void tma_load_multicast(u32 to, const TensorMap& map, u32 bar, int x, int y, int z,
                               u16 blocks, u64 keep = EVICT_NORMAL) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::
          "r"(to),
      "l"(&map), "r"(bar), "r"(x), "r"(y), "r"(z), "h"(blocks), "l"(keep)
      : "memory");
}
DEVICE void tma_store(const TensorMap& map, u32 from, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
      "r"(from), "r"(x), "r"(y)
      : "memory");
}
DEVICE void tma_store(const TensorMap& map, u32 from, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
}
DEVICE void tma_prefetch(const TensorMap& map, int x, int y, int z) {  // into L2 only
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x),
               "r"(y), "r"(z)
               : "memory");
}
DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> DEVICE void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N> DEVICE void store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// --- the tensor cores -------------------------------------------------------------------------
// A matrix in shared memory: rows of 128 bytes, written by the copy engine with that swizzle.
// `stride` is the distance in bytes between groups of 8 rows (1024 when rows follow each other),
// `lead` the distance between 128-byte column blocks of a matrix whose fast dimension is not K.
DEVICE u64 matrix(u32 address, u32 stride = 1024, u32 lead = 16) {
  return (u64)((address & 0x3FFFF) >> 4) | (u64)(lead >> 4) << 16 | (u64)(stride >> 4) << 32
         | 1ull << 62;
}
// The same without a swizzle: 8 rows of 16 bytes lie together (128 bytes), `next_k` bytes to the
// following 8 along K, `next_row` to the following 8 rows.
DEVICE u64 plain_matrix(u32 address, u32 next_k, u32 next_row) {
  return (u64)((address & 0x3FFFF) >> 4) | (u64)(next_k >> 4) << 16 | (u64)(next_row >> 4) << 32;
}
// The same in two parts, for the loop: only the low word moves, in units of 16 bytes.
DEVICE u32 matrix_low(u32 address) { return (address & 0x3FFFF) >> 4 | 1 << 16; }
DEVICE u64 matrix_of(u32 low) { return (u64)(1u << 30 | 1024 >> 4) << 32 | low; }
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int N>
DEVICE void keep_in_registers(float (&x)[N]) {  // no use of x may move across this line
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// --- between registers and shared memory ------------------------------------------------------
DEVICE u32 pack_bf16(float low, float high) {
  u32 x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
DEVICE u32 pack_f16(float low, float high) {
  u32 x;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}
DEVICE void unpack_e4m3(u32& low, u32& high, u32 x) {  // four e4m3 to f16, exactly
  asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; "
      "cvt.rn.f16x2.e4m3x2 %1, b; }"
      : "=r"(low), "=r"(high)
      : "r"(x));
}
DEVICE float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE void store_matrices(u32 to, u32 a, u32 b, u32 c,
                           u32 d) {  // four 8x8 matrices of 16-bit values
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
DEVICE void store_matrices_t(u32 to, u32 a, u32 b, u32 c, u32 d) {  // the same, each one transposed
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
DEVICE void load_matrices(u32 (&x)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
}
DEVICE void load_matrices_t(u32 (&x)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
}

// --- one kernel after another -----------------------------------------------------------------
DEVICE void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
