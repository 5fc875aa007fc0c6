/* What kernels see of CUDA, on the host. A kernel takes one structure; threads of a block take turns as fibers, in an
   order of which nothing but barriers can be relied on, so that a missing one shows; and a barrier or shuffle that not
   all of its threads come to, at one place of the source, ends the program. */
#ifndef NR_SHIM_CUDA_RUNTIME_H
#define NR_SHIM_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define NR_CUDA_SHIM 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static /* blocks run one after another */

extern shim_dim3 threadIdx, blockIdx;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

/* `site`: the place in the source. */
void shim_block_barrier(int site);
void shim_warp_barrier(int site);
float shim_shuffle_xor(float value, int lanes, int site);
float *shim_shared();

#define __syncthreads() shim_block_barrier(__LINE__)
#define __syncwarp() shim_warp_barrier(__LINE__)
#define __shfl_xor_sync(mask, value, lanes) shim_shuffle_xor(value, lanes, __LINE__)

static inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
/* Of both halves, as signed integers, the smaller ones. */
static inline uint32_t __vmins2(uint32_t a, uint32_t b) {
  int16_t low = std::min((int16_t)a, (int16_t)b), high = std::min((int16_t)(a >> 16), (int16_t)(b >> 16));
  return (uint32_t)(uint16_t)low | (uint32_t)(uint16_t)high << 16;
}
static inline float __int_as_float(int bits) { return __uint_as_float((uint32_t)bits); }
static inline void __stcs(uint4 *to, uint4 value) { *to = value; }

/* Within two units in the last place, as the device's, and on either side. */
float rsqrtf(float x);

using std::fmaf;

/* A kernel, whatever structure it takes. */
struct shim_kernel {
  void (*run)(const void *parameters);
  size_t size; /* of the structure */
};

template <typename P, void (*kernel)(P)> struct shim_entry {
  static void run(const void *parameters) { kernel(*(const P *)parameters); }
  static constexpr shim_kernel of = {run, sizeof(P)};
};

#define NR_SHARED(name) float *name = shim_shared()
#define NR_ENTRY(kernel, params) ((const void *)&shim_entry<params, kernel>::of)

/* src/base/dtype.h's conversions, with the device's NaN. */
uint32_t nr_pack_bf16(float low, float high);
uint32_t nr_pack_f16(float low, float high);
float nr_unpack_f16(uint16_t bits);
static inline void nr_wait_for_launch() {}

#endif
