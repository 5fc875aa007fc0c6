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
  v16 a, b;
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

static inline v16 v16_swap(v16 a) { EACH_PART(vrev64q_f32(a.part[i])); }

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

static inline void v16_add_to(double *to, v16 a) {
  for (int i = 0; i < 4; i++) {
    vst1q_f64(to + 4 * i, vaddq_f64(vld1q_f64(to + 4 * i), vcvt_f64_f32(vget_low_f32(a.part[i]))));
    vst1q_f64(to + 4 * i + 2, vaddq_f64(vld1q_f64(to + 4 * i + 2), vcvt_high_f64_f32(a.part[i])));
  }
}

static inline v32 v32_apart(v32 line) {
  v32 pairs;
  for (int i = 0; i < 4; i++) {
    float32x4_t low = (i < 2 ? line.a : line.b).part[2 * i % 4], high = (i < 2 ? line.a : line.b).part[2 * i % 4 + 1];
    pairs.a.part[i] = vuzp1q_f32(low, high), pairs.b.part[i] = vuzp2q_f32(low, high);
  }
  return pairs;
}

static inline v32 v32_together(v32 pairs) {
  v32 line;
  for (int i = 0; i < 4; i++) {
    v16 *to = i < 2 ? &line.a : &line.b;
    to->part[2 * i % 4] = vzip1q_f32(pairs.a.part[i], pairs.b.part[i]);
    to->part[2 * i % 4 + 1] = vzip2q_f32(pairs.a.part[i], pairs.b.part[i]);
  }
  return line;
}

static inline v16 v16_load_f16(const uint16_t *from) {
  EACH_PART(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))));
}

static inline v32 v32_load(const void *from, nr_dtype dtype) {
  if (dtype == NR_F32)
    return (v32){v16_get(from), v16_get((const float *)from + 16)};
  if (dtype == NR_F16)
    return (v32){v16_load_f16(from), v16_load_f16((const uint16_t *)from + 16)};
  v32 value;
  for (int i = 0; i < 4; i++) {
    uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16((const uint16_t *)from + 8 * i));
    value.a.part[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    value.b.part[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
  }
  return value;
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

/* The 64 or 128 bytes of a chunk, as vectors. */
typedef struct v32_bytes {
  uint16x8_t part[8];
} v32_bytes;

static inline int v32_parts(nr_dtype dtype) { return dtype == NR_F32 ? 8 : 4; }

static inline v32_bytes v32_encode(nr_dtype dtype, v32 value) {
  v32_bytes bytes;
  for (int i = 0; i < v32_parts(dtype); i++)
    if (dtype == NR_F32) {
      bytes.part[i] = vreinterpretq_u16_f32(v16_quiet((i < 4 ? value.a : value.b).part[i % 4]));
    } else if (dtype == NR_F16) {
      const float32x4_t *from = &(i < 2 ? &value.a : &value.b)->part[2 * i % 4];
      bytes.part[i] = vcombine_u16(v16_narrow_f16(from[0]), v16_narrow_f16(from[1]));
    } else {
      uint32x4_t pairs = vsriq_n_u32(v16_round_bf16(value.b.part[i]), v16_round_bf16(value.a.part[i]), 16);
      bytes.part[i] = vreinterpretq_u16_u32(pairs);
    }
  return bytes;
}

static inline void v32_store(void *to, nr_dtype dtype, v32 value) {
  v32_bytes bytes = v32_encode(dtype, value);
  for (int i = 0; i < v32_parts(dtype); i++)
    vst1q_u16((uint16_t *)to + 8 * i, bytes.part[i]);
}

static inline void v32_store_first(void *to, nr_dtype dtype, v32 value, int64_t n) {
  float elements[32];
  v32_store(elements, dtype, value);
  memcpy(to, elements, (size_t)n * (dtype == NR_F32 ? 4 : 2));
}

/* 32 bytes with a hint that they are not wanted soon, for which there is no intrinsic. */
static inline void v16_stream_pair(void *to, uint16x8_t low, uint16x8_t high) {
  __asm__("stnp %q1, %q2, %0" : "=Ump"(*(uint16x8_t(*)[2])to) : "w"(low), "w"(high));
}

static inline void v32_stream(void *to, nr_dtype dtype, v32 value) {
  v32_bytes bytes = v32_encode(dtype, value);
  for (int i = 0; i < v32_parts(dtype); i += 2)
    v16_stream_pair((char *)to + 16 * i, bytes.part[i], bytes.part[i + 1]);
}

static inline void v32_stream_bytes(void *to, const void *from) {
  const uint16_t *halves = from;
  uint16x8_t a = vld1q_u16(halves), b = vld1q_u16(halves + 8), c = vld1q_u16(halves + 16), d = vld1q_u16(halves + 24);
  v16_stream_pair(to, a, b);
  v16_stream_pair((char *)to + 32, c, d);
}

static inline void v32_fence(void) {}

static inline __attribute__((always_inline)) void v32_prefetch(const void *at) { __builtin_prefetch(at, 0, 2); }

#undef EACH_PART

#endif
