/* The kernels' vocabulary: element types, vectors of 16 bytes, sums over teams. All that is not plain C++ about them is
   here: tests/cuda_shim runs the kernels on the host. */
#ifndef NR_CUDA_DEVICE_CUH
#define NR_CUDA_DEVICE_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/params.h"
#include "normrope.h"

#define NR_UNROLL _Pragma("unroll")

#ifndef NR_CUDA_SHIM
#define NR_SHARED(name) extern __shared__ __align__(16) float name[]
#define NR_ENTRY(kernel, params) ((const void *)(kernel))

/* Two numbers rounded to nearest even, the first one low. NaNs become 0x7fff. */
__device__ __forceinline__ uint32_t nr_pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ uint32_t nr_pack_f16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ float nr_unpack_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
/* Until the launch before this one has written what it writes. */
__device__ __forceinline__ void nr_wait_for_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

namespace nr {

struct alignas(NR_CUDA_VECTOR) vector {
  uint32_t word[4];
};

/* An element type: `lanes` of a vector, and conversions between a 32-bit word of it and float32. A NaN is packed as the
   positive quiet one with a zero payload: of 16 bits, as the smaller integer, since no number is above it. */
struct f32 {
  enum { lanes = 4 };
  using bits = uint32_t;
  static __device__ __forceinline__ void unpack(uint32_t word, float *to) { to[0] = __uint_as_float(word); }
  static __device__ __forceinline__ uint32_t pack(const float *from) {
    return from[0] != from[0] ? 0x7fc00000u : __float_as_uint(from[0]);
  }
};

struct f16 {
  enum { lanes = 8 };
  using bits = uint16_t;
  static __device__ __forceinline__ void unpack(uint32_t word, float *to) {
    to[0] = nr_unpack_f16((uint16_t)(word & 0xffff));
    to[1] = nr_unpack_f16((uint16_t)(word >> 16));
  }
  static __device__ __forceinline__ uint32_t pack(const float *from) {
    return __vmins2(nr_pack_f16(from[0], from[1]), 0x7e007e00u);
  }
};

struct bf16 {
  enum { lanes = 8 };
  using bits = uint16_t;
  static __device__ __forceinline__ void unpack(uint32_t word, float *to) {
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t pack(const float *from) {
    return __vmins2(nr_pack_bf16(from[0], from[1]), 0x7fc07fc0u);
  }
};

/* Elements of T in a word; where element e of a vector is. */
template <typename T> __device__ constexpr int per_word() { return (int)T::lanes / 4; }

template <typename T> __device__ __forceinline__ void unpack(const vector &from, float *to) {
  NR_UNROLL
  for (int w = 0; w < 4; w++)
    T::unpack(from.word[w], to + w * per_word<T>());
}

template <typename T> __device__ __forceinline__ vector pack(const float *from) {
  vector to;
  NR_UNROLL
  for (int w = 0; w < 4; w++)
    to.word[w] = T::pack(from + w * per_word<T>());
  return to;
}

/* V vectors of a row, `stride` channels apart; channels from `dim` on are 0. Whole: of a vector all are there or none.
 */
template <typename T, bool WHOLE, int V>
__device__ __forceinline__ void load(vector *to, const char *row, const nr_cuda_view &view, int first, int stride,
                                     int dim) {
  NR_UNROLL
  for (int j = 0; j < V; j++)
    to[j] = {{0, 0, 0, 0}};
  if (view.wide) {
    NR_UNROLL
    for (int j = 0; j < V; j++)
      if (first + j * stride < dim)
        to[j] = *(const vector *)(row + (first + j * stride) * (int64_t)sizeof(typename T::bits));
    return;
  }
  NR_UNROLL
  for (int j = 0; j < V; j++) {
    int c = first + j * stride;
    if (c >= dim)
      continue;
    const char *at = row + c * view.channel;
    NR_UNROLL
    for (int e = 0; e < T::lanes; e++)
      if (WHOLE || c + e < dim)
        to[j].word[e / per_word<T>()] |= (uint32_t) * (const typename T::bits *)(at + e * view.channel)
                                         << e % per_word<T>() * 16;
  }
}

template <typename T, bool WHOLE, int V>
__device__ __forceinline__ void store(char *row, const nr_cuda_view &view, int first, int stride, int dim,
                                      const vector *from, bool streams) {
  if (view.wide) {
    NR_UNROLL
    for (int j = 0; j < V; j++) {
      uint4 *to = (uint4 *)(row + (first + j * stride) * (int64_t)sizeof(typename T::bits));
      uint4 value = make_uint4(from[j].word[0], from[j].word[1], from[j].word[2], from[j].word[3]);
      if (first + j * stride < dim) {
        if (streams)
          __stcs(to, value);
        else
          *to = value;
      }
    }
    return;
  }
  NR_UNROLL
  for (int j = 0; j < V; j++) {
    int c = first + j * stride;
    if (c >= dim)
      continue;
    char *to = row + c * view.channel;
    NR_UNROLL
    for (int e = 0; e < T::lanes; e++)
      if (WHOLE || c + e < dim)
        *(typename T::bits *)(to + e * view.channel) =
            (typename T::bits)(from[j].word[e / per_word<T>()] >> e % per_word<T>() * 16);
  }
}

/* Any element. Without branches, so that several may be on their way. */
static __device__ __forceinline__ float load_one(const char *at, int32_t dtype) {
  uint32_t bits = dtype == NR_F32 ? *(const uint32_t *)at : *(const uint16_t *)at;
  float half = nr_unpack_f16((uint16_t)bits);
  return dtype == NR_F16 ? half : __uint_as_float(dtype == NR_F32 ? bits : bits << 16);
}

static __device__ __forceinline__ void store_one(char *at, int32_t dtype, double exact) {
  float value = (float)exact;
  if (dtype == NR_F32) {
    *(uint32_t *)at = f32::pack(&value);
    return;
  }
  /* Rounding twice, unless the first time is to odd: towards zero, and the last bit says whether anything was lost. */
  uint32_t odd = __float_as_uint(value);
  if ((double)value != exact && exact == exact && fabsf(value) < __int_as_float(0x7f800000)) {
    odd -= fabs((double)value) > fabs(exact);
    odd |= 1;
  }
  float once[2] = {__uint_as_float(odd), 0};
  *(uint16_t *)at = (uint16_t)(dtype == NR_F16 ? f16::pack(once) : bf16::pack(once));
}

static __device__ __forceinline__ char *row_of(const nr_cuda_view &v, int64_t b, int64_t s, int64_t n) {
  return v.data + (b * v.batch + s * v.sequence + n * v.head);
}

/* The sum over a team of neighbouring lanes, a power of two of them: the same in each. Every lane of the warp comes. */
static __device__ __forceinline__ float team_sum(float value, int lanes) {
  NR_UNROLL
  for (int step = NR_CUDA_LANES / 2; step > 0; step /= 2)
    if (step < lanes) /* of all lanes of the warp, or of none */
      value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

/* A sum and what rounding has lost of it. */
struct exact_sum {
  float high, low;
};

static __device__ __forceinline__ exact_sum plus(exact_sum a, exact_sum b) {
  float sum = a.high + b.high, of_b = sum - a.high;
  float lost = (a.high - (sum - of_b)) + (b.high - of_b);
  return {sum, lost + (a.low + b.low)};
}

static __device__ __forceinline__ exact_sum team_sum(exact_sum value, int lanes) {
  NR_UNROLL
  for (int step = NR_CUDA_LANES / 2; step > 0; step /= 2)
    if (step < lanes)
      value =
          plus(value, {__shfl_xor_sync(0xffffffffu, value.high, step), __shfl_xor_sync(0xffffffffu, value.low, step)});
  return value;
}

/* 1 / sqrt(a), to about half a unit in the last place: the processor's estimate and one step of Newton's method with
   exact residuals. */
static __device__ __forceinline__ float inverse_root(exact_sum a) {
  float y = rsqrtf(a.high), product = a.high * y, lost = fmaf(a.high, y, -product);
  float rest = fmaf(-fmaf(a.low, y, lost), y, fmaf(-product, y, 1.0f));
  float better = fmaf(0.5f * y, rest, y);
  return y > 0 && y < 0x1p126f ? better : y; /* else a is 0 or infinite */
}

} // namespace nr

#endif
