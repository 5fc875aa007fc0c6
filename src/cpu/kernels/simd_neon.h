/* The vocabulary of simd_scalar.h, which says what each function means, for AArch64's Advanced SIMD (NEON). */
#ifndef NR_CPU_KERNELS_SIMD_NEON_H
#define NR_CPU_KERNELS_SIMD_NEON_H

#include <arm_neon.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 1

typedef struct v16 {
  float32x4_t part[4]; /* lanes 4i to 4i + 3 */
} v16;

typedef struct v32 {
  v16 even, odd;
} v32;

/* A v16 whose part i is this, for i from 0 to 3. */
#define EACH_PART(expression)                                                                                          \
  v16 out;                                                                                                             \
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) out.part[i] = (expression);                                      \
  return out

static inline v16 v16_set(float value) { EACH_PART(vdupq_n_f32(value)); }
static inline v16 v16_add(v16 a, v16 b) { EACH_PART(vaddq_f32(a.part[i], b.part[i])); }
static inline v16 v16_sub(v16 a, v16 b) { EACH_PART(vsubq_f32(a.part[i], b.part[i])); }
static inline v16 v16_mul(v16 a, v16 b) { EACH_PART(vmulq_f32(a.part[i], b.part[i])); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { EACH_PART(vfmaq_f32(c.part[i], a.part[i], b.part[i])); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { EACH_PART(vfmsq_f32(c.part[i], a.part[i], b.part[i])); }

/* All bits of the lanes first + i that are below n. */
static inline uint32x4_t v16_mask(int64_t n, int first) {
  static const int32_t lane[4] = {0, 1, 2, 3};
  return vcltq_s32(vld1q_s32(lane), vdupq_n_s32((int32_t)n - first));
}

static inline v16 v16_first(v16 a, int64_t n) {
  EACH_PART(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.part[i]), v16_mask(n, 4 * i))));
}

static inline v16 v16_get(const float *from) { EACH_PART(vld1q_f32(from + 4 * i)); }
static inline void v16_put(float *to, v16 a) {
  for (int i = 0; i < 4; i++)
    vst1q_f32(to + 4 * i, a.part[i]);
}

/* Lanes 0 and 1 of both, and 2 and 3 of both, added. */
static inline float32x4_t v16_halves(float32x4_t a, float32x4_t b) {
  float64x2_t low = vreinterpretq_f64_f32(a), high = vreinterpretq_f64_f32(b);
  return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(low, high)), vreinterpretq_f32_f64(vzip2q_f64(low, high)));
}

/* Four trees in one: the last steps add halves of two vectors that share a register. */
static inline void v16_sum4(const v16 *of, float *sums) {
  float32x4_t four[4];
  for (int k = 0; k < 4; k++)
    four[k] = vaddq_f32(vaddq_f32(of[k].part[0], of[k].part[2]), vaddq_f32(of[k].part[1], of[k].part[3]));
  vst1q_f32(sums, vpaddq_f32(v16_halves(four[0], four[1]), v16_halves(four[2], four[3])));
}

static inline float32x4_t v16_widen_f16(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  v32 a;
  if (dtype == NR_F32) {
    for (int i = 0; i < 4; i++) {
      float32x4x2_t apart = vld2q_f32((const float *)from + 8 * i);
      a.even.part[i] = apart.val[0], a.odd.part[i] = apart.val[1];
    }
  } else if (dtype == NR_F16) {
    for (int i = 0; i < 4; i++) {
      uint16x4x2_t apart = vld2_u16((const uint16_t *)from + 8 * i);
      a.even.part[i] = v16_widen_f16(apart.val[0]), a.odd.part[i] = v16_widen_f16(apart.val[1]);
    }
  } else {
    for (int i = 0; i < 4; i++) {
      uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16((const uint16_t *)from + 8 * i));
      a.even.part[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
      a.odd.part[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
  }
  return a;
}

static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  float elements[32] = {0};
  memcpy(elements, from, (size_t)n * (dtype == NR_F32 ? 4 : 2));
  return v32_load(elements, dtype);
}

static inline float32x4_t v16_quiet(float32x4_t a) {
  return vbslq_f32(vceqq_f32(a, a), a, vdupq_n_f32(nr_f32_bits(0x7fc00000u)));
}

/* The bits whose upper half is the bfloat16. */
static inline uint32x4_t v16_round_bf16(float32x4_t a) {
  uint32x4_t bits = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  bits = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  return vbslq_u32(vceqq_f32(a, a), bits, vdupq_n_u32(0x7fc00000u));
}

static inline uint16x4_t v16_narrow_f16(float32x4_t a) { return vreinterpret_u16_f16(vcvt_f16_f32(v16_quiet(a))); }

static inline void v32_store(void *to, nr_dtype dtype, v32 a) {
  if (dtype == NR_F32)
    for (int i = 0; i < 4; i++)
      vst2q_f32((float *)to + 8 * i, (float32x4x2_t){{v16_quiet(a.even.part[i]), v16_quiet(a.odd.part[i])}});
  else if (dtype == NR_F16)
    for (int i = 0; i < 4; i++)
      vst2_u16((uint16_t *)to + 8 * i, (uint16x4x2_t){{v16_narrow_f16(a.even.part[i]), v16_narrow_f16(a.odd.part[i])}});
  else
    for (int i = 0; i < 4; i++) {
      uint32x4_t pairs = vsriq_n_u32(v16_round_bf16(a.odd.part[i]), v16_round_bf16(a.even.part[i]), 16);
      vst1q_u16((uint16_t *)to + 8 * i, vreinterpretq_u16_u32(pairs));
    }
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 a, int64_t n) {
  float elements[32];
  v32_store(elements, dtype, a);
  memcpy(to, elements, (size_t)n * (dtype == NR_F32 ? 4 : 2));
}

/* The intrinsics have no way past the caches. */
static inline void v32_stream(void *to, nr_dtype dtype, v32 a) { v32_store(to, dtype, a); }
static inline void v32_stream_bytes(void *to, const void *from) { memmove(to, from, 64); }

static inline void v32_fence(void) {}

typedef struct d16 {
  float64x2_t part[8]; /* lanes 2i and 2i + 1 */
} d16;

static inline d16 d16_zero(void) {
  d16 zero;
  for (int i = 0; i < 8; i++)
    zero.part[i] = vdupq_n_f64(0);
  return zero;
}

static inline d16 d16_add(d16 a, v16 b) {
  for (int i = 0; i < 4; i++) {
    a.part[2 * i] = vaddq_f64(a.part[2 * i], vcvt_f64_f32(vget_low_f32(b.part[i])));
    a.part[2 * i + 1] = vaddq_f64(a.part[2 * i + 1], vcvt_high_f64_f32(b.part[i]));
  }
  return a;
}

static inline double d16_sum(d16 a) {
  for (int half = 4; half; half /= 2)
    for (int i = 0; i < half; i++)
      a.part[i] = vaddq_f64(a.part[i], a.part[i + half]);
  return vpaddd_f64(a.part[0]);
}

static inline void d16_add_to(double *to, v16 a) {
  d16 sum;
  for (int i = 0; i < 8; i++)
    sum.part[i] = vld1q_f64(to + 2 * i);
  sum = d16_add(sum, a);
  for (int i = 0; i < 8; i++)
    vst1q_f64(to + 2 * i, sum.part[i]);
}

#undef EACH_PART

#endif
