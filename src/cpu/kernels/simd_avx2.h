/* The vocabulary of simd_scalar.h, which says what each function means, for AVX2 with FMA and F16C. */
#ifndef NR_CPU_KERNELS_SIMD_AVX2_H
#define NR_CPU_KERNELS_SIMD_AVX2_H

#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

typedef struct v16 {
  __m256 low, high; /* lanes 0 to 7, 8 to 15 */
} v16;

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
static inline v16 v16_swap(v16 a) { return (v16){_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1)}; }

/* All bits of lanes first + i below n. */
static inline __m256i v16_mask(int64_t n, int first) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - first), lane);
}

static inline v16 v16_first(v16 a, int64_t n) {
  return (v16){_mm256_and_ps(a.low, _mm256_castsi256_ps(v16_mask(n, 0))),
               _mm256_and_ps(a.high, _mm256_castsi256_ps(v16_mask(n, 8)))};
}

static inline float v16_sum(v16 a) {
  __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline __m256 v16_widen(__m128i halves, nr_dtype dtype) {
  return dtype == NR_F16 ? _mm256_cvtph_ps(halves)
                         : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline v16 v16_load(const void *from, nr_dtype dtype) {
  if (dtype == NR_F32)
    return (v16){_mm256_loadu_ps(from), _mm256_loadu_ps((const float *)from + 8)};
  const __m128i *halves = from;
  return (v16){v16_widen(_mm_loadu_si128(halves), dtype), v16_widen(_mm_loadu_si128(halves + 1), dtype)};
}

static inline v16 v16_load_first(const void *from, nr_dtype dtype, int64_t n) {
  if (dtype == NR_F32)
    return (v16){_mm256_maskload_ps(from, v16_mask(n, 0)), _mm256_maskload_ps((const float *)from + 8, v16_mask(n, 8))};
  uint16_t halves[16] = {0};
  memcpy(halves, from, (size_t)n * sizeof *halves);
  return v16_load(halves, dtype);
}

static inline __m256 v16_quiet(__m256 a) {
  return _mm256_blendv_ps(a, _mm256_set1_ps(nr_f32_bits(0x7fc00000u)), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

/* The upper 16 bits of each lane, rounded to nearest even. */
static inline __m256i v16_upper(__m256 a) {
  __m256i bits = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(nr_f32_bits(0x7fc00000u)),
                                    _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
}

static inline __m256i v16_narrow(v16 a, nr_dtype dtype) {
  if (dtype == NR_F16) {
    enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return _mm256_set_m128i(_mm256_cvtps_ph(v16_quiet(a.high), MODE), _mm256_cvtps_ph(v16_quiet(a.low), MODE));
  }
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(v16_upper(a.low), v16_upper(a.high)), 0xd8);
}

static inline void v16_store(void *to, nr_dtype dtype, v16 a) {
  if (dtype == NR_F32) {
    _mm256_storeu_ps(to, v16_quiet(a.low));
    _mm256_storeu_ps((float *)to + 8, v16_quiet(a.high));
  } else {
    _mm256_storeu_si256(to, v16_narrow(a, dtype));
  }
}

static inline void v16_put(float *to, v16 a, int64_t n) {
  if (n == 16) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  } else {
    _mm256_maskstore_ps(to, v16_mask(n, 0), a.low);
    _mm256_maskstore_ps(to + 8, v16_mask(n, 8), a.high);
  }
}

static inline void v16_store_first(void *to, nr_dtype dtype, v16 a, int64_t n) {
  if (dtype == NR_F32) {
    v16_put(to, (v16){v16_quiet(a.low), v16_quiet(a.high)}, n);
    return;
  }
  __m256i halves = v16_narrow(a, dtype);
  memcpy(to, &halves, (size_t)n * sizeof(uint16_t));
}

typedef struct d16 {
  __m256d lane[4]; /* lanes 4i to 4i + 3 */
} d16;

static inline d16 d16_zero(void) {
  __m256d zero = _mm256_setzero_pd();
  return (d16){{zero, zero, zero, zero}};
}

static inline d16 d16_add(d16 a, v16 b) {
  a.lane[0] = _mm256_add_pd(a.lane[0], _mm256_cvtps_pd(_mm256_castps256_ps128(b.low)));
  a.lane[1] = _mm256_add_pd(a.lane[1], _mm256_cvtps_pd(_mm256_extractf128_ps(b.low, 1)));
  a.lane[2] = _mm256_add_pd(a.lane[2], _mm256_cvtps_pd(_mm256_castps256_ps128(b.high)));
  a.lane[3] = _mm256_add_pd(a.lane[3], _mm256_cvtps_pd(_mm256_extractf128_ps(b.high, 1)));
  return a;
}

static inline double d16_sum(d16 a) {
  __m256d four = _mm256_add_pd(_mm256_add_pd(a.lane[0], a.lane[2]), _mm256_add_pd(a.lane[1], a.lane[3]));
  __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static inline void v16_add_to(double *to, v16 a, int64_t n) {
  double part[16];
  memcpy(part, to, (size_t)n * sizeof *part);
  if (n < 16)
    memset(part + n, 0, (size_t)(16 - n) * sizeof *part);
  double *sums = n == 16 ? to : part;
  d16 sum;
  for (int i = 0; i < 4; i++)
    sum.lane[i] = _mm256_loadu_pd(sums + 4 * i);
  sum = d16_add(sum, a);
  for (int i = 0; i < 4; i++)
    _mm256_storeu_pd(sums + 4 * i, sum.lane[i]);
  if (n < 16)
    memcpy(to, part, (size_t)n * sizeof *part);
}

#endif
