/* The vocabulary of simd_scalar.h, which says what each function means, for AVX-512 (F, BW, DQ, VL) with FMA and F16C.
 */
#ifndef NR_CPU_KERNELS_SIMD_AVX512_H
#define NR_CPU_KERNELS_SIMD_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 1

typedef __m512 v16;

typedef struct v32 {
  v16 even, odd;
} v32;

static inline v16 v16_set(float value) { return _mm512_set1_ps(value); }
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline v16 v16_first(v16 a, int64_t n) { return _mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), a); }
static inline v16 v16_get(const float *from) { return _mm512_load_ps(from); }
static inline void v16_put(float *to, v16 a) { _mm512_store_ps(to, a); }

/* Four trees in one: each step adds halves of two vectors that share a register. */
static inline void v16_sum4(const v16 *of, float *sums) {
  v16 ab = _mm512_add_ps(_mm512_shuffle_f32x4(of[0], of[1], 0x44), _mm512_shuffle_f32x4(of[0], of[1], 0xee));
  v16 cd = _mm512_add_ps(_mm512_shuffle_f32x4(of[2], of[3], 0x44), _mm512_shuffle_f32x4(of[2], of[3], 0xee));
  v16 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  v16 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
  v16 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
  _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one)));
}

/* Two vectors of consecutive elements to even and odd ones, and back. */
static inline v32 v32_apart(v16 low, v16 high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return (v32){_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)};
}

static inline v16 v32_low(v32 a) {
  const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a.even, order, a.odd);
}

static inline v16 v32_high(v32 a) {
  const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return _mm512_permutex2var_ps(a.even, order, a.odd);
}

/* 32 halves as they lie in memory. */
static inline v32 v32_widen(__m512i halves, nr_dtype dtype) {
  if (dtype == NR_F16)
    return v32_apart(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                     _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  return (v32){_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16)),
               _mm512_castsi512_ps(_mm512_and_si512(halves, _mm512_set1_epi32((int)0xffff0000u)))};
}

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  if (dtype == NR_F32)
    return v32_apart(_mm512_loadu_ps(from), _mm512_loadu_ps((const float *)from + 16));
  return v32_widen(_mm512_loadu_si512(from), dtype);
}

static inline __mmask32 v32_mask(int64_t n) { return (__mmask32)((1ull << n) - 1); }

static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  __mmask32 mask = v32_mask(n);
  if (dtype == NR_F32)
    return v32_apart(_mm512_maskz_loadu_ps((__mmask16)mask, from),
                     _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), (const float *)from + 16));
  return v32_widen(_mm512_maskz_loadu_epi16(mask, from), dtype);
}

/* NaNs, which are rare, made quiet and without payload. */
static inline v32 v32_quiet(v32 a) {
  if (__builtin_expect(_mm512_cmp_ps_mask(a.even, a.odd, _CMP_UNORD_Q), 0)) {
    const v16 nan = _mm512_set1_ps(nr_f32_bits(0x7fc00000u));
    a.even = _mm512_mask_mov_ps(a.even, _mm512_cmp_ps_mask(a.even, a.even, _CMP_UNORD_Q), nan);
    a.odd = _mm512_mask_mov_ps(a.odd, _mm512_cmp_ps_mask(a.odd, a.odd, _CMP_UNORD_Q), nan);
  }
  return a;
}

/* The bits whose upper half is the bfloat16. In integers: the processor's own conversion flushes subnormals. */
static inline __m512i v16_round_bf16(v16 a) {
  __m512i bits = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

static inline __m512i v32_narrow(v32 a, nr_dtype dtype) {
  a = v32_quiet(a);
  if (dtype == NR_F16) {
    enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(v32_low(a), MODE)),
                              _mm512_cvtps_ph(v32_high(a), MODE), 1);
  }
  __m512i even = _mm512_srli_epi32(v16_round_bf16(a.even), 16);
  return _mm512_mask_mov_epi16(even, 0xaaaaaaaau, v16_round_bf16(a.odd));
}

static inline void v32_store(void *to, nr_dtype dtype, v32 a) {
  if (dtype == NR_F32) {
    a = v32_quiet(a);
    _mm512_storeu_ps(to, v32_low(a));
    _mm512_storeu_ps((float *)to + 16, v32_high(a));
  } else {
    _mm512_storeu_si512(to, v32_narrow(a, dtype));
  }
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 a, int64_t n) {
  __mmask32 mask = v32_mask(n);
  if (dtype == NR_F32) {
    a = v32_quiet(a);
    _mm512_mask_storeu_ps(to, (__mmask16)mask, v32_low(a));
    _mm512_mask_storeu_ps((float *)to + 16, (__mmask16)(mask >> 16), v32_high(a));
  } else {
    _mm512_mask_storeu_epi16(to, mask, v32_narrow(a, dtype));
  }
}

static inline void v32_stream(void *to, nr_dtype dtype, v32 a) {
  if (dtype == NR_F32) {
    a = v32_quiet(a);
    _mm512_stream_ps(to, v32_low(a));
    _mm512_stream_ps((float *)to + 16, v32_high(a));
  } else {
    _mm512_stream_si512(to, v32_narrow(a, dtype));
  }
}

static inline void v32_stream_bytes(void *to, const void *from) { _mm512_stream_si512(to, _mm512_loadu_si512(from)); }

static inline void v32_fence(void) { _mm_sfence(); }

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

static inline void d16_add_to(double *to, v16 a) {
  d16 sum = d16_add((d16){_mm512_loadu_pd(to), _mm512_loadu_pd(to + 8)}, a);
  _mm512_storeu_pd(to, sum.low);
  _mm512_storeu_pd(to + 8, sum.high);
}

#endif
