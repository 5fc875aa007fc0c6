/*
 * Conversions between the element types and binary32, exact one way and rounded to nearest even the other. The same
 * bits whatever the processor's modes, but nr_f16_from_f32, which the kernels call in the default ones. A NaN becomes
 * the positive quiet NaN with a zero payload.
 */
#ifndef NR_BASE_DTYPE_H
#define NR_BASE_DTYPE_H

#include <stdint.h>
#include <string.h>

#include "normrope.h"

static inline uint32_t nr_bits_f32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float nr_f32_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float nr_f32_from_bf16(uint16_t half) { return nr_f32_bits((uint32_t)half << 16); }

static inline uint16_t nr_bf16_from_f32(float value) {
  uint32_t bits = nr_bits_f32(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float nr_f32_from_f16(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) /* infinity and NaN */
    return nr_f32_bits(sign | (magnitude << 13) | 0x7f800000u);
  if (magnitude < 0x0400) /* subnormal: a multiple of 2^-24 */
    return nr_f32_bits(sign | nr_bits_f32((float)magnitude * 0x1p-24f));
  return nr_f32_bits(sign | ((magnitude << 13) + 0x38000000u));
}

static inline uint16_t nr_f16_from_f32(float value) {
  uint32_t bits = nr_bits_f32(value), magnitude = bits & 0x7fffffffu;
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000u)
    return 0x7e00;
  if (magnitude >= 0x477ff000u) /* 65520 and up round to infinity */
    return sign | 0x7c00;
  if (magnitude < 0x38800000u) { /* below 2^-14: 0.5 has the spacing of the subnormals, so adding it rounds to them */
    float shifted = nr_f32_bits(magnitude) + 0.5f;
    return (uint16_t)(sign | (nr_bits_f32(shifted) - nr_bits_f32(0.5f)));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return (uint16_t)(sign | (magnitude - 0x38000000u) >> 13);
}

static inline float nr_f32_quiet(float value) { return value == value ? value : nr_f32_bits(0x7fc00000u); }

#endif
