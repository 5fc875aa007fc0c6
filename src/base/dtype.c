#include "base/dtype.h"

#include <math.h>

static const struct {
  const char *name;
  size_t size;
} dtypes[] = {
    [NR_F32] = {"float32", 4}, [NR_F16] = {"float16", 2}, [NR_BF16] = {"bfloat16", 2}, [NR_F64] = {"float64", 8}};

static int known(nr_dtype dtype) { return (unsigned)dtype < sizeof dtypes / sizeof *dtypes; }

size_t nr_dtype_size(nr_dtype dtype) { return known(dtype) ? dtypes[dtype].size : 0; }

const char *nr_dtype_name(nr_dtype dtype) { return known(dtype) ? dtypes[dtype].name : NULL; }

/* A float as a double; a subnormal by its integer, since the processor may be told to take it for zero. */
static double widened(float value) {
  uint32_t bits = nr_bits_f32(value), magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x00800000u)
    return value;
  return copysign((double)magnitude * 0x1p-149, bits >> 31 ? -1.0 : 1.0);
}

double nr_load(const void *array, nr_dtype dtype, int64_t index) {
  switch (dtype) {
  case NR_F32: return widened(((const float *)array)[index]);
  case NR_F16: return nr_f32_from_f16(((const uint16_t *)array)[index]);
  case NR_BF16: return widened(nr_f32_from_bf16(((const uint16_t *)array)[index]));
  case NR_F64: return ((const double *)array)[index];
  }
  return NAN;
}

/* The bits of `value` rounded to nearest even, once, in the binary format with so many bits of exponent and fraction.
 */
static uint32_t narrowed(double value, int exponent_bits, int fraction_bits) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint64_t magnitude = bits & INT64_MAX, sign = bits >> 63 << (exponent_bits + fraction_bits);
  uint64_t infinity = ((UINT64_C(1) << exponent_bits) - 1) << fraction_bits;
  if (magnitude > UINT64_C(0x7ff) << 52)
    return (uint32_t)(infinity | UINT64_C(1) << (fraction_bits - 1));
  int field = (int)(magnitude >> 52) - 1023 + (1 << (exponent_bits - 1)) - 1; /* the exponent's, of a normal result */
  int shift = 52 - fraction_bits + (field < 1 ? 1 - field : 0);
  if (shift > 54) /* under half of the least number */
    return (uint32_t)sign;
  uint64_t significand = (magnitude & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
  uint64_t rounded = (significand + (UINT64_C(1) << (shift - 1)) - 1 + (significand >> shift & 1)) >> shift;
  if (field > 1) /* the leading one of `rounded` counts for one */
    rounded += (uint64_t)(field - 1) << fraction_bits;
  return (uint32_t)(sign | (rounded < infinity ? rounded : infinity));
}

void nr_store(void *array, nr_dtype dtype, int64_t index, double value) {
  switch (dtype) {
  case NR_F32: ((float *)array)[index] = nr_f32_bits(narrowed(value, 8, 23)); return;
  case NR_F16: ((uint16_t *)array)[index] = (uint16_t)narrowed(value, 5, 10); return;
  case NR_BF16: ((uint16_t *)array)[index] = (uint16_t)narrowed(value, 8, 7); return;
  case NR_F64: ((double *)array)[index] = value; return;
  }
}
