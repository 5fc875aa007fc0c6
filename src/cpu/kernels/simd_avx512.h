/* The vocabulary of simd_scalar.h, which says what each function means, for AVX-512 (F, BW, DQ, VL) with FMA and F16C.
 */
#ifndef NR_CPU_KERNELS_SIMD_AVX512_H
#define NR_CPU_KERNELS_SIMD_AVX512_H

#include <float.h>
#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 1

typedef __m512 v16;

typedef struct v32 {
  v16 a, b;
} v32;

static inline v16 v16_set(float value) { return _mm512_set1_ps(value); }
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline __mmask16 v16_mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline v16 v16_first(v16 a, int64_t n) { return _mm512_maskz_mov_ps(v16_mask(n), a); }
static inline v16 v16_swap(v16 a) { return _mm512_permute_ps(a, 0xb1); }
static inline v16 v16_get(const float *from) { return _mm512_loadu_ps(from); }
static inline void v16_put(float *to, v16 a) { _mm512_storeu_ps(to, a); }

/* Four trees in one: each step adds halves of two vectors that share a register. */
static inline void v16_sum4(const v16 *of, float *sums) {
  v16 ab = _mm512_add_ps(_mm512_shuffle_f32x4(of[0], of[1], 0x44), _mm512_shuffle_f32x4(of[0], of[1], 0xee));
  v16 cd = _mm512_add_ps(_mm512_shuffle_f32x4(of[2], of[3], 0x44), _mm512_shuffle_f32x4(of[2], of[3], 0xee));
  v16 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  v16 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
  v16 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
  _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one)));
}

static inline void v16_add_to(double *to, v16 a) {
  __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), low));
  _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), high));
}

static inline v32 v32_apart(v32 line) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return (v32){_mm512_permutex2var_ps(line.a, even, line.b), _mm512_permutex2var_ps(line.a, odd, line.b)};
}

static inline v32 v32_together(v32 pairs) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return (v32){_mm512_permutex2var_ps(pairs.a, low, pairs.b), _mm512_permutex2var_ps(pairs.a, high, pairs.b)};
}

/* 32 halves as they lie in memory. */
static inline v32 v32_widen(__m512i halves, nr_dtype dtype) {
  if (dtype == NR_F16)
    return (v32){_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
                 _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))};
  return (v32){_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16)),
               _mm512_castsi512_ps(_mm512_and_si512(halves, _mm512_set1_epi32((int)0xffff0000u)))};
}

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  if (dtype == NR_F32)
    return (v32){_mm512_loadu_ps(from), _mm512_loadu_ps((const float *)from + 16)};
  return v32_widen(_mm512_loadu_si512(from), dtype);
}

static inline __mmask32 v32_mask(int64_t n) { return (__mmask32)((1ull << n) - 1); }

static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  __mmask32 mask = v32_mask(n);
  if (dtype == NR_F32)
    return (v32){_mm512_maskz_loadu_ps((__mmask16)mask, from),
                 _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), (const float *)from + 16)};
  return v32_widen(_mm512_maskz_loadu_epi16(mask, from), dtype);
}

/* NaNs made quiet and without payload. */
static inline v16 v16_quiet(v16 a) {
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_ps(nr_f32_bits(0x7fc00000u)));
}

/* The same where there may be some, which is rare. */
static inline v32 v32_quiet(v32 value) {
  if (__builtin_expect(_mm512_cmp_ps_mask(value.a, value.b, _CMP_UNORD_Q), 0))
    return (v32){v16_quiet(value.a), v16_quiet(value.b)};
  return value;
}

/* The bits whose upper half is the bfloat16. In integers: the processor's own conversion flushes subnormals. */
static inline __m512i v16_round_bf16(v16 a) {
  __m512i bits = _mm512_castps_si512(a), up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000)), up, _mm512_set1_epi32(1));
}

static inline __m512i v32_narrow(v32 value, nr_dtype dtype) {
  enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  value = v32_quiet(value);
  if (dtype == NR_BF16)
    return _mm512_mask_mov_epi16(_mm512_srli_epi32(v16_round_bf16(value.a), 16), 0xaaaaaaaau, v16_round_bf16(value.b));
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(value.a, MODE)), _mm512_cvtps_ph(value.b, MODE), 1);
}

static inline void v32_store(void *to, nr_dtype dtype, v32 value) {
  if (dtype == NR_F32) {
    value = v32_quiet(value);
    _mm512_storeu_ps(to, value.a);
    _mm512_storeu_ps((float *)to + 16, value.b);
  } else {
    _mm512_storeu_si512(to, v32_narrow(value, dtype));
  }
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 value, int64_t n) {
  __mmask32 mask = v32_mask(n);
  if (dtype == NR_F32) {
    value = v32_quiet(value);
    _mm512_mask_storeu_ps(to, (__mmask16)mask, value.a);
    _mm512_mask_storeu_ps((float *)to + 16, (__mmask16)(mask >> 16), value.b);
  } else {
    _mm512_mask_storeu_epi16(to, mask, v32_narrow(value, dtype));
  }
}

static inline void v32_stream(void *to, nr_dtype dtype, v32 value) {
  if (dtype == NR_F32) {
    value = v32_quiet(value);
    _mm512_stream_ps(to, value.a);
    _mm512_stream_ps((float *)to + 16, value.b);
  } else {
    _mm512_stream_si512(to, v32_narrow(value, dtype));
  }
}

static inline void v32_stream_bytes(void *to, const void *from) { _mm512_stream_si512(to, _mm512_loadu_si512(from)); }

static inline void v32_fence(void) { _mm_sfence(); }

static inline __attribute__((always_inline)) void v32_prefetch(const void *at) { _mm_prefetch(at, _MM_HINT_T1); }

#endif
