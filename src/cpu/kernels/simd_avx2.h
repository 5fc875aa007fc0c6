/* The vocabulary of simd_scalar.h, which says what each function means, for AVX2 with FMA and F16C. */
#ifndef NR_CPU_KERNELS_SIMD_AVX2_H
#define NR_CPU_KERNELS_SIMD_AVX2_H

#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 1

typedef struct v16 {
  __m256 low, high; /* lanes 0 to 7, 8 to 15 */
} v16;

typedef struct v32 {
  v16 even, odd;
} v32;

static inline v16 v16_set(float value) { return (v16){_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
static inline v16 v16_add(v16 a, v16 b) { return (v16){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline v16 v16_sub(v16 a, v16 b) { return (v16){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline v16 v16_mul(v16 a, v16 b) { return (v16){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
  return (v16){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
static inline v16 v16_fnma(v16 a, v16 b, v16 c) {
  return (v16){_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

/* All bits of the lanes first + i that are below n. */
static inline __m256i v16_mask(int64_t n, int first) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - first), lane);
}

static inline v16 v16_first(v16 a, int64_t n) {
  return (v16){_mm256_and_ps(a.low, _mm256_castsi256_ps(v16_mask(n, 0))),
               _mm256_and_ps(a.high, _mm256_castsi256_ps(v16_mask(n, 8)))};
}

static inline v16 v16_get(const float *from) { return (v16){_mm256_load_ps(from), _mm256_load_ps(from + 8)}; }
static inline void v16_put(float *to, v16 a) {
  _mm256_store_ps(to, a.low);
  _mm256_store_ps(to + 8, a.high);
}

/* Four trees in one: each step adds halves of two vectors that share a register. */
static inline void v16_sum4(const v16 *of, float *sums) {
  __m256 eight[4];
  for (int k = 0; k < 4; k++)
    eight[k] = _mm256_add_ps(of[k].low, of[k].high);
  __m256 ab =
      _mm256_add_ps(_mm256_permute2f128_ps(eight[0], eight[1], 0x20), _mm256_permute2f128_ps(eight[0], eight[1], 0x31));
  __m256 cd =
      _mm256_add_ps(_mm256_permute2f128_ps(eight[2], eight[3], 0x20), _mm256_permute2f128_ps(eight[2], eight[3], 0x31));
  __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee)); /* a a c c, b b d d */
  __m256 one = _mm256_add_ps(two, _mm256_permute_ps(two, 0xb1));
  __m128 ac = _mm256_castps256_ps128(one), bd = _mm256_extractf128_ps(one, 1);
  _mm_storeu_ps(sums, _mm_unpacklo_ps(_mm_shuffle_ps(ac, ac, 0x88), _mm_shuffle_ps(bd, bd, 0x88)));
}

/* Two vectors of consecutive elements to even and odd ones, and back; of one half of a v32. */
static inline void v16_apart(__m256 low, __m256 high, __m256 *even, __m256 *odd) {
  __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88)),
          o = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd));
  *even = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
  *odd = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}

static inline void v16_together(__m256 even, __m256 odd, __m256 *low, __m256 *high) {
  __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
  *low = _mm256_permute2f128_ps(a, b, 0x20);
  *high = _mm256_permute2f128_ps(a, b, 0x31);
}

/* 16 halves as they lie in memory. */
static inline void v16_widen(__m256i halves, nr_dtype dtype, __m256 *even, __m256 *odd) {
  if (dtype == NR_F16) {
    v16_apart(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)),
              even, odd);
  } else {
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(halves, _mm256_set1_epi32((int)0xffff0000u)));
  }
}

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  v32 a;
  if (dtype == NR_F32) {
    const float *f = from;
    v16_apart(_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8), &a.even.low, &a.odd.low);
    v16_apart(_mm256_loadu_ps(f + 16), _mm256_loadu_ps(f + 24), &a.even.high, &a.odd.high);
  } else {
    const __m256i *halves = from;
    v16_widen(_mm256_loadu_si256(halves), dtype, &a.even.low, &a.odd.low);
    v16_widen(_mm256_loadu_si256(halves + 1), dtype, &a.even.high, &a.odd.high);
  }
  return a;
}

static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  float elements[32] = {0};
  memcpy(elements, from, (size_t)n * (dtype == NR_F32 ? 4 : 2));
  return v32_load(elements, dtype);
}

static inline __m256 v16_quiet(__m256 a) {
  return _mm256_blendv_ps(a, _mm256_set1_ps(nr_f32_bits(0x7fc00000u)), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

/* The bits whose upper half is the bfloat16. */
static inline __m256i v16_round_bf16(__m256 a) {
  __m256i bits = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(nr_f32_bits(0x7fc00000u)),
                                              _mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}

static inline __m256i v16_narrow(__m256 even, __m256 odd, nr_dtype dtype) {
  if (dtype == NR_F16) {
    enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    __m256 low, high;
    v16_together(v16_quiet(even), v16_quiet(odd), &low, &high);
    return _mm256_set_m128i(_mm256_cvtps_ph(high, MODE), _mm256_cvtps_ph(low, MODE));
  }
  return _mm256_blend_epi16(_mm256_srli_epi32(v16_round_bf16(even), 16), v16_round_bf16(odd), 0xaa);
}

/* The 64 or 128 bytes of a chunk, as vectors. */
typedef struct v32_bytes {
  __m256i part[4];
} v32_bytes;

static inline v32_bytes v32_encode(nr_dtype dtype, v32 a) {
  v32_bytes bytes;
  if (dtype == NR_F32) {
    __m256 part[4];
    v16_together(v16_quiet(a.even.low), v16_quiet(a.odd.low), &part[0], &part[1]);
    v16_together(v16_quiet(a.even.high), v16_quiet(a.odd.high), &part[2], &part[3]);
    for (int i = 0; i < 4; i++)
      bytes.part[i] = _mm256_castps_si256(part[i]);
  } else {
    bytes.part[0] = v16_narrow(a.even.low, a.odd.low, dtype);
    bytes.part[1] = v16_narrow(a.even.high, a.odd.high, dtype);
    bytes.part[2] = bytes.part[3] = _mm256_setzero_si256();
  }
  return bytes;
}

static inline void v32_store(void *to, nr_dtype dtype, v32 a) {
  v32_bytes bytes = v32_encode(dtype, a);
  for (int i = 0; i < (dtype == NR_F32 ? 4 : 2); i++)
    _mm256_storeu_si256((__m256i *)to + i, bytes.part[i]);
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 a, int64_t n) {
  v32_bytes bytes = v32_encode(dtype, a);
  memcpy(to, &bytes, (size_t)n * (dtype == NR_F32 ? 4 : 2));
}

static inline void v32_stream(void *to, nr_dtype dtype, v32 a) {
  v32_bytes bytes = v32_encode(dtype, a);
  for (int i = 0; i < (dtype == NR_F32 ? 4 : 2); i++)
    _mm256_stream_si256((__m256i *)to + i, bytes.part[i]);
}

static inline void v32_stream_bytes(void *to, const void *from) {
  __m256i low = _mm256_loadu_si256(from), high = _mm256_loadu_si256((const __m256i *)from + 1);
  _mm256_stream_si256(to, low);
  _mm256_stream_si256((__m256i *)to + 1, high);
}

static inline void v32_fence(void) { _mm_sfence(); }

typedef struct d16 {
  __m256d part[4]; /* lanes 4i to 4i + 3 */
} d16;

static inline d16 d16_zero(void) {
  __m256d zero = _mm256_setzero_pd();
  return (d16){{zero, zero, zero, zero}};
}

static inline d16 d16_add(d16 a, v16 b) {
  a.part[0] = _mm256_add_pd(a.part[0], _mm256_cvtps_pd(_mm256_castps256_ps128(b.low)));
  a.part[1] = _mm256_add_pd(a.part[1], _mm256_cvtps_pd(_mm256_extractf128_ps(b.low, 1)));
  a.part[2] = _mm256_add_pd(a.part[2], _mm256_cvtps_pd(_mm256_castps256_ps128(b.high)));
  a.part[3] = _mm256_add_pd(a.part[3], _mm256_cvtps_pd(_mm256_extractf128_ps(b.high, 1)));
  return a;
}

static inline double d16_sum(d16 a) {
  __m256d four = _mm256_add_pd(_mm256_add_pd(a.part[0], a.part[2]), _mm256_add_pd(a.part[1], a.part[3]));
  __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static inline void d16_add_to(double *to, v16 a) {
  d16 sum;
  for (int i = 0; i < 4; i++)
    sum.part[i] = _mm256_loadu_pd(to + 4 * i);
  sum = d16_add(sum, a);
  for (int i = 0; i < 4; i++)
    _mm256_storeu_pd(to + 4 * i, sum.part[i]);
}

#endif
