/* The vocabulary of simd_scalar.h, which says what each function means, for AVX2 with FMA and F16C. */
#ifndef NR_CPU_KERNELS_SIMD_AVX2_H
#define NR_CPU_KERNELS_SIMD_AVX2_H

#include <float.h>
#include <immintrin.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 1

typedef struct v16 {
  __m256 low, high; /* lanes 0 to 7, 8 to 15 */
} v16;

typedef struct v32 {
  v16 a, b;
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

static inline v16 v16_swap(v16 a) { return (v16){_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1)}; }

static inline v16 v16_get(const float *from) { return (v16){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
static inline void v16_put(float *to, v16 a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
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

static inline void v16_add_to(double *to, v16 a) {
  const __m128 part[4] = {_mm256_castps256_ps128(a.low), _mm256_extractf128_ps(a.low, 1),
                          _mm256_castps256_ps128(a.high), _mm256_extractf128_ps(a.high, 1)};
  for (int i = 0; i < 4; i++)
    _mm256_storeu_pd(to + 4 * i, _mm256_add_pd(_mm256_loadu_pd(to + 4 * i), _mm256_cvtps_pd(part[i])));
}

/* 16 channels in line as even and odd ones, and back. */
static inline void v16_apart(v16 line, __m256 *even, __m256 *odd) {
  __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(line.low, line.high, 0x88)),
          o = _mm256_castps_pd(_mm256_shuffle_ps(line.low, line.high, 0xdd));
  *even = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8));
  *odd = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}

static inline v16 v16_together(__m256 even, __m256 odd) {
  __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
  return (v16){_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}

static inline v32 v32_apart(v32 line) {
  v32 pairs;
  v16_apart(line.a, &pairs.a.low, &pairs.b.low);
  v16_apart(line.b, &pairs.a.high, &pairs.b.high);
  return pairs;
}

static inline v32 v32_together(v32 pairs) {
  return (v32){v16_together(pairs.a.low, pairs.b.low), v16_together(pairs.a.high, pairs.b.high)};
}

/* 32 halves as they lie in memory. */
static inline v32 v32_widen(__m256i first, __m256i second, nr_dtype dtype) {
  if (dtype == NR_F16)
    return (v32){
        {_mm256_cvtph_ps(_mm256_castsi256_si128(first)), _mm256_cvtph_ps(_mm256_extracti128_si256(first, 1))},
        {_mm256_cvtph_ps(_mm256_castsi256_si128(second)), _mm256_cvtph_ps(_mm256_extracti128_si256(second, 1))}};
  const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
  return (v32){
      {_mm256_castsi256_ps(_mm256_slli_epi32(first, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(second, 16))},
      {_mm256_castsi256_ps(_mm256_and_si256(first, upper)), _mm256_castsi256_ps(_mm256_and_si256(second, upper))}};
}

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  const float *f = from;
  const __m256i *halves = from;
  if (dtype == NR_F32)
    return (v32){{_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)}, {_mm256_loadu_ps(f + 16), _mm256_loadu_ps(f + 24)}};
  return v32_widen(_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1), dtype);
}

/* Halves come in pairs, words of 32 bits, which is what masks are for. */
static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  const float *f = from;
  const int *words = from;
  if (dtype == NR_F32)
    return (v32){{_mm256_maskload_ps(f, v16_mask(n, 0)), _mm256_maskload_ps(f + 8, v16_mask(n, 8))},
                 {_mm256_maskload_ps(f + 16, v16_mask(n, 16)), _mm256_maskload_ps(f + 24, v16_mask(n, 24))}};
  return v32_widen(_mm256_maskload_epi32(words, v16_mask(n / 2, 0)),
                   _mm256_maskload_epi32(words + 8, v16_mask(n / 2, 8)), dtype);
}

static inline __m256 v8_quiet(__m256 a) {
  return _mm256_blendv_ps(a, _mm256_set1_ps(nr_f32_bits(0x7fc00000u)), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

/* The bits whose upper half is the bfloat16. */
static inline __m256i v8_round_bf16(__m256 a) {
  __m256i bits = _mm256_castps_si256(v8_quiet(a));
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}

/* Half of a unit is added, which is right but for NaNs and where the number was in the very middle, as the lower half
   then tells: those are rare. */
static inline __m256i v8_narrow_bf16(__m256 even, __m256 odd) {
  const __m256i half = _mm256_set1_epi32(0x8000), zero = _mm256_setzero_si256();
  __m256i a = _mm256_add_epi32(_mm256_castps_si256(even), half), b = _mm256_add_epi32(_mm256_castps_si256(odd), half);
  __m256i middle =
      _mm256_blend_epi16(_mm256_cmpeq_epi16(a, zero), _mm256_slli_epi32(_mm256_cmpeq_epi16(b, zero), 16), 0xaa);
  __m256i rare = _mm256_or_si256(middle, _mm256_castps_si256(_mm256_cmp_ps(even, odd, _CMP_UNORD_Q)));
  if (__builtin_expect(!_mm256_testz_si256(rare, rare), 0))
    a = v8_round_bf16(even), b = v8_round_bf16(odd);
  return _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
}

static inline __m256i v16_narrow_f16(v16 a) {
  enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  return _mm256_set_m128i(_mm256_cvtps_ph(v8_quiet(a.high), MODE), _mm256_cvtps_ph(v8_quiet(a.low), MODE));
}

/* The 64 or 128 bytes of a chunk, as vectors. */
typedef struct v32_bytes {
  __m256i part[4];
} v32_bytes;

static inline v32_bytes v32_encode(nr_dtype dtype, v32 value) {
  if (dtype == NR_F32)
    return (v32_bytes){{_mm256_castps_si256(v8_quiet(value.a.low)), _mm256_castps_si256(v8_quiet(value.a.high)),
                        _mm256_castps_si256(v8_quiet(value.b.low)), _mm256_castps_si256(v8_quiet(value.b.high))}};
  const __m256i none = _mm256_setzero_si256();
  if (dtype == NR_F16)
    return (v32_bytes){{v16_narrow_f16(value.a), v16_narrow_f16(value.b), none, none}};
  return (v32_bytes){
      {v8_narrow_bf16(value.a.low, value.b.low), v8_narrow_bf16(value.a.high, value.b.high), none, none}};
}

static inline int v32_parts(nr_dtype dtype) { return dtype == NR_F32 ? 4 : 2; }

static inline void v32_store(void *to, nr_dtype dtype, v32 value) {
  v32_bytes bytes = v32_encode(dtype, value);
  for (int i = 0; i < v32_parts(dtype); i++)
    _mm256_storeu_si256((__m256i *)to + i, bytes.part[i]);
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 value, int64_t n) {
  v32_bytes bytes = v32_encode(dtype, value);
  int64_t words = dtype == NR_F32 ? n : n / 2;
  for (int i = 0; i < v32_parts(dtype); i++)
    _mm256_maskstore_epi32((int *)to + 8 * i, v16_mask(words, 8 * i), bytes.part[i]);
}

static inline void v32_stream(void *to, nr_dtype dtype, v32 value) {
  v32_bytes bytes = v32_encode(dtype, value);
  for (int i = 0; i < v32_parts(dtype); i++)
    _mm256_stream_si256((__m256i *)to + i, bytes.part[i]);
}

static inline void v32_stream_bytes(void *to, const void *from) {
  __m256i low = _mm256_loadu_si256(from), high = _mm256_loadu_si256((const __m256i *)from + 1);
  _mm256_stream_si256(to, low);
  _mm256_stream_si256((__m256i *)to + 1, high);
}

static inline void v32_fence(void) { _mm_sfence(); }

static inline __attribute__((always_inline)) void v32_prefetch(const void *at) { _mm_prefetch(at, _MM_HINT_T1); }

#endif
