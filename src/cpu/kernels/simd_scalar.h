/*
 * The vocabulary of the kernels, in plain C. A v16 is 16 floats whatever the machine's vectors are, which fixes the
 * order of every sum: channel d of a row is added in lane d % 16, and the lanes are added in halves (i with i + 8, then
 * i + 4, i + 2, i + 1). Every function rounds once per lane; v16_fma is a true fused multiply-add. Other instruction
 * sets give the same functions the same meaning, bit for bit but for the payload of NaNs.
 */
#ifndef NR_CPU_KERNELS_SIMD_SCALAR_H
#define NR_CPU_KERNELS_SIMD_SCALAR_H

#include <math.h>

#include "base/dtype.h"

typedef struct v16 {
  float lane[16];
} v16;

#define EACH_LANE(expression)                                                                                          \
  v16 out;                                                                                                             \
  for (int i = 0; i < 16; i++)                                                                                         \
    out.lane[i] = (expression);                                                                                        \
  return out

static inline v16 v16_set(float value) { EACH_LANE(value); }
static inline v16 v16_add(v16 a, v16 b) { EACH_LANE(a.lane[i] + b.lane[i]); }
static inline v16 v16_sub(v16 a, v16 b) { EACH_LANE(a.lane[i] - b.lane[i]); }
static inline v16 v16_mul(v16 a, v16 b) { EACH_LANE(a.lane[i] * b.lane[i]); }

/* a * b + c, and c - a * b. */
static inline v16 v16_fma(v16 a, v16 b, v16 c) { EACH_LANE(fmaf(a.lane[i], b.lane[i], c.lane[i])); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { EACH_LANE(fmaf(-a.lane[i], b.lane[i], c.lane[i])); }

/* Lanes 2i and 2i + 1 change places. */
static inline v16 v16_swap(v16 a) { EACH_LANE(a.lane[i ^ 1]); }

/* The first n lanes; the others are 0, whatever they were. */
static inline v16 v16_first(v16 a, int64_t n) { EACH_LANE(i < n ? a.lane[i] : 0.0f); }

#undef EACH_LANE

static inline float v16_sum(v16 a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++)
      a.lane[i] += a.lane[i + half];
  return a.lane[0];
}

/* Exact conversion of the first n elements at `from`; the other lanes are 0, and nothing behind is read. */
static inline v16 v16_load_first(const void *from, nr_dtype dtype, int64_t n) {
  v16 out = {{0}};
  for (int64_t i = 0; i < n; i++)
    out.lane[i] = dtype == NR_F32   ? ((const float *)from)[i]
                  : dtype == NR_F16 ? nr_f32_from_f16(((const uint16_t *)from)[i])
                                    : nr_f32_from_bf16(((const uint16_t *)from)[i]);
  return out;
}

static inline v16 v16_load(const void *from, nr_dtype dtype) { return v16_load_first(from, dtype, 16); }

/* The first n lanes, rounded to nearest even; a NaN is stored as the positive quiet NaN with a zero payload. */
static inline void v16_store_first(void *to, nr_dtype dtype, v16 a, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (dtype == NR_F32)
      ((float *)to)[i] = nr_f32_quiet(a.lane[i]);
    else
      ((uint16_t *)to)[i] = dtype == NR_F16 ? nr_f16_from_f32(a.lane[i]) : nr_bf16_from_f32(a.lane[i]);
}

static inline void v16_store(void *to, nr_dtype dtype, v16 a) { v16_store_first(to, dtype, a, 16); }

/* The first n lanes as they are. */
static inline void v16_put(float *to, v16 a, int64_t n) { memcpy(to, a.lane, (size_t)n * sizeof(float)); }

/* to[i] += lane i, in double precision, for the first n lanes. */
static inline void v16_add_to(double *to, v16 a, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    to[i] += (double)a.lane[i];
}

/* 16 doubles, for sums that must not lose digits. Same lanes, same tree. */
typedef struct d16 {
  double lane[16];
} d16;

static inline d16 d16_zero(void) { return (d16){{0}}; }

static inline d16 d16_add(d16 a, v16 b) {
  for (int i = 0; i < 16; i++)
    a.lane[i] += (double)b.lane[i];
  return a;
}

static inline double d16_sum(d16 a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++)
      a.lane[i] += a.lane[i + half];
  return a.lane[0];
}

#endif
