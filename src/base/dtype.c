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

double nr_load(const void *array, nr_dtype dtype, int64_t index) {
  switch (dtype) {
  case NR_F32: return ((const float *)array)[index];
  case NR_F16: return nr_f32_from_f16(((const uint16_t *)array)[index]);
  case NR_BF16: return nr_f32_from_bf16(((const uint16_t *)array)[index]);
  case NR_F64: return ((const double *)array)[index];
  }
  return NAN;
}

/* `value` rounded to nearest even among the binary floating-point numbers with `digits` digits behind the point and the
   least exponent `least`. Such a number is a float, so converting the result rounds nothing more, short of overflow. */
static float rounded(double value, int digits, int least) {
  if (!isfinite(value) || value == 0)
    return (float)value;
  int exponent = ilogb(value);
  int unit = (exponent < least ? least : exponent) - digits;
  return (float)scalbn(nearbyint(scalbn(value, -unit)), unit);
}

void nr_store(void *array, nr_dtype dtype, int64_t index, double value) {
  switch (dtype) {
  case NR_F32: ((float *)array)[index] = nr_f32_quiet((float)value); return;
  case NR_F16: ((uint16_t *)array)[index] = nr_f16_from_f32(rounded(value, 10, -14)); return;
  case NR_BF16: ((uint16_t *)array)[index] = nr_bf16_from_f32(rounded(value, 7, -126)); return;
  case NR_F64: ((double *)array)[index] = value; return;
  }
}
