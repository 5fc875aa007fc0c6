/* The vocabulary of simd_scalar.h, which says what each function means, for AVX-512 (F, BW, DQ, VL) with FMA and F16C.
 */
#ifndef NR_CPU_KERNELS_SIMD_AVX512_H
#define NR_CPU_KERNELS_SIMD_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

typedef __m512 v16;

static inline v16 v16_set(float value) { return _mm512_set1_ps(value); }
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline v16 v16_swap(v16 a) { return _mm512_permute_ps(a, 0xb1); }

static inline __mmask16 v16_mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline v16 v16_first(v16 a, int64_t n) { return _mm512_maskz_mov_ps(v16_mask(n), a); }

static inline float v16_sum(v16 a) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline v16 v16_widen(__m256i halves, nr_dtype dtype) {
  return dtype == NR_F16 ? _mm512_cvtph_ps(halves)
                         : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline v16 v16_load(const void *from, nr_dtype dtype) {
  return dtype == NR_F32 ? _mm512_loadu_ps(from) : v16_widen(_mm256_loadu_si256(from), dtype);
}

static inline v16 v16_load_first(const void *from, nr_dtype dtype, int64_t n) {
  return dtype == NR_F32 ? _mm512_maskz_loadu_ps(v16_mask(n), from)
                         : v16_widen(_mm256_maskz_loadu_epi16(v16_mask(n), from), dtype);
}

static inline v16 v16_quiet(v16 a) {
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_ps(nr_f32_bits(0x7fc00000u)));
}

/* In integers: the processor's own conversion to bfloat16 flushes subnormals. */
static inline __m256i v16_narrow(v16 a, nr_dtype dtype) {
  if (dtype == NR_F16)
    return _mm512_cvtps_ph(v16_quiet(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512i bits = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

static inline void v16_store(void *to, nr_dtype dtype, v16 a) {
  if (dtype == NR_F32)
    _mm512_storeu_ps(to, v16_quiet(a));
  else
    _mm256_storeu_si256(to, v16_narrow(a, dtype));
}

static inline void v16_store_first(void *to, nr_dtype dtype, v16 a, int64_t n) {
  if (dtype == NR_F32)
    _mm512_mask_storeu_ps(to, v16_mask(n), v16_quiet(a));
  else
    _mm256_mask_storeu_epi16(to, v16_mask(n), v16_narrow(a, dtype));
}

static inline void v16_put(float *to, v16 a, int64_t n) {
  if (n == 16)
    _mm512_storeu_ps(to, a);
  else
    _mm512_mask_storeu_ps(to, v16_mask(n), a);
}

typedef struct d16 {
  __m512d low, high; /* lanes 0 to 7, 8 to 15 */
} d16;

static inline d16 d16_zero(void) { return (d16){_mm512_setzero_pd(), _mm512_setzero_pd()}; }

static inline d16 d16_add(d16 a, v16 b) {
  a.low = _mm512_add_pd(a.low, _mm512_cvtps_pd(_mm512_castps512_ps256(b)));
  a.high = _mm512_add_pd(a.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(b, 1)));
  return a;
}

static inline double d16_sum(d16 a) {
  __m512d eight = _mm512_add_pd(a.low, a.high);
  __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
  __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static inline void v16_add_to(double *to, v16 a, int64_t n) {
  __mmask8 low = (__mmask8)v16_mask(n), high = (__mmask8)(v16_mask(n) >> 8);
  d16 sum = {_mm512_maskz_loadu_pd(low, to), _mm512_maskz_loadu_pd(high, to + 8)};
  sum = d16_add(sum, a);
  _mm512_mask_storeu_pd(to, low, sum.low);
  _mm512_mask_storeu_pd(to + 8, high, sum.high);
}

#endif
