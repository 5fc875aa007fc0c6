/*
 * The vocabulary of the kernels, in plain C. A v16 is 16 floats and a v32 a chunk of 32 channels as two of them,
 * whatever the machine's vectors are. How a chunk lies in a v32 follows its dtype, so that a load is one step: of
 * float32 and float16 `a` has the first 16 channels and `b` the others (in line); of bfloat16 `a` has the even channels
 * and `b` the odd ones (in pairs), since those are the halves of 32-bit words.
 *
 * That fixes the order of every sum over channels: each chunk adds `a`, then `b`, lane by lane, and the lanes are added
 * in halves (i with i + 8, then i + 4, i + 2, i + 1). Every function rounds once per lane; v16_fma is a true fused
 * multiply-add. Other instruction sets give the same functions the same meaning, bit for bit but for the payload of
 * NaNs.
 */
#ifndef NR_CPU_KERNELS_SIMD_SCALAR_H
#define NR_CPU_KERNELS_SIMD_SCALAR_H

#include <float.h>
#include <math.h>

#include "base/dtype.h"

#define V16_REGISTERS 0

typedef struct v16 {
  float lane[16];
} v16;

typedef struct v32 {
  v16 a, b;
} v32;

/* A loop that the compiler keeps, or it would write out every lane of every call. */
#define EACH_LANE(expression)                                                                                          \
  v16 out;                                                                                                             \
  _Pragma("GCC unroll 1") for (int i = 0; i < 16; i++) out.lane[i] = (expression);                                     \
  return out

static inline v16 v16_set(float value) { EACH_LANE(value); }
static inline v16 v16_add(v16 a, v16 b) { EACH_LANE(a.lane[i] + b.lane[i]); }
static inline v16 v16_sub(v16 a, v16 b) { EACH_LANE(a.lane[i] - b.lane[i]); }
static inline v16 v16_mul(v16 a, v16 b) { EACH_LANE(a.lane[i] * b.lane[i]); }

/* a * b + c, and c - a * b. */
static inline v16 v16_fma(v16 a, v16 b, v16 c) { EACH_LANE(fmaf(a.lane[i], b.lane[i], c.lane[i])); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { EACH_LANE(fmaf(-a.lane[i], b.lane[i], c.lane[i])); }

/* The first n lanes; the others are 0, whatever they were. */
static inline v16 v16_first(v16 a, int64_t n) { EACH_LANE(i < n ? a.lane[i] : 0.0f); }

/* Each lane with its neighbour: 1, 0, 3, 2, ... */
static inline v16 v16_swap(v16 a) { EACH_LANE(a.lane[i ^ 1]); }

/* From and to 16 floats. */
static inline v16 v16_get(const float *from) { EACH_LANE(from[i]); }
static inline void v16_put(float *to, v16 a) { memcpy(to, a.lane, sizeof a.lane); }

#undef EACH_LANE

/* The sums of the lanes of four vectors. */
static inline void v16_sum4(const v16 *of, float *sums) {
  for (int k = 0; k < 4; k++) {
    v16 a = of[k];
    for (int half = 8; half; half /= 2)
      for (int i = 0; i < half; i++)
        a.lane[i] += a.lane[i + half];
    sums[k] = a.lane[0];
  }
}

/* to[i] += lane i, in double precision. */
static inline void v16_add_to(double *to, v16 a) {
  for (int i = 0; i < 16; i++)
    to[i] += (double)a.lane[i];
}

/* A chunk in line as one in pairs, and back. */
static inline v32 v32_apart(v32 line) {
  v32 pairs;
  for (int i = 0; i < 32; i++)
    (i % 2 ? &pairs.b : &pairs.a)->lane[i / 2] = (i < 16 ? line.a : line.b).lane[i % 16];
  return pairs;
}

static inline v32 v32_together(v32 pairs) {
  v32 line;
  for (int i = 0; i < 32; i++)
    (i < 16 ? &line.a : &line.b)->lane[i % 16] = (i % 2 ? pairs.b : pairs.a).lane[i / 2];
  return line;
}

/* Exact conversion of the first n of 32 elements, n even; the other lanes are 0, and nothing behind is read. */
static inline v32 v32_load_first(const void *from, nr_dtype dtype, int64_t n) {
  v32 line = {{{0}}, {{0}}};
  for (int64_t i = 0; i < n; i++)
    (i < 16 ? &line.a : &line.b)->lane[i % 16] = dtype == NR_F32   ? ((const float *)from)[i]
                                                 : dtype == NR_F16 ? nr_f32_from_f16(((const uint16_t *)from)[i])
                                                                   : nr_f32_from_bf16(((const uint16_t *)from)[i]);
  return dtype == NR_BF16 ? v32_apart(line) : line;
}

static inline v32 v32_load(const void *from, nr_dtype dtype) { return v32_load_first(from, dtype, 32); }

/* The first n elements, n even, rounded to nearest even; a NaN is stored as the positive quiet NaN without payload. */
static inline void v32_store_first(void *to, nr_dtype dtype, v32 value, int64_t n) {
  v32 line = dtype == NR_BF16 ? v32_together(value) : value;
  for (int64_t i = 0; i < n; i++) {
    float element = (i < 16 ? line.a : line.b).lane[i % 16];
    if (dtype == NR_F32)
      ((float *)to)[i] = nr_f32_quiet(element);
    else
      ((uint16_t *)to)[i] = dtype == NR_F16 ? nr_f16_from_f32(element) : nr_bf16_from_f32(element);
  }
}

static inline void v32_store(void *to, nr_dtype dtype, v32 value) { v32_store_first(to, dtype, value, 32); }

/* The same past the caches, for 64-byte aligned addresses; v32_fence orders it before what other threads see next. */
static inline void v32_stream(void *to, nr_dtype dtype, v32 value) { v32_store(to, dtype, value); }

/* 64 bytes as they are, past the caches. */
static inline void v32_stream_bytes(void *to, const void *from) { memcpy(to, from, 64); }

static inline void v32_fence(void) {}

/* Brings the 64 bytes at an address to the second-level cache. Always inline: GCC takes a function that only prefetches
   for one without effects, and drops its calls. */
static inline __attribute__((always_inline)) void v32_prefetch(const void *at) { __builtin_prefetch(at, 0, 2); }

#endif
