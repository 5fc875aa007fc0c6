#include "cli/bounds.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Exponents of the smallest normal and the largest numbers, and bits of the fraction. */
static const struct {
  int lowest, highest, bits;
} formats[] = {
    [NR_F32] = {-126, 127, 23}, [NR_F16] = {-14, 15, 10}, [NR_BF16] = {-126, 127, 7}, [NR_F64] = {-1022, 1023, 52}};

double nr_ulp(nr_dtype dtype, double value) {
  int exponent = value == 0 || !isfinite(value) ? formats[dtype].lowest : ilogb(value);
  if (exponent < formats[dtype].lowest)
    exponent = formats[dtype].lowest;
  if (exponent > formats[dtype].highest)
    exponent = formats[dtype].highest;
  return ldexp(1, exponent - formats[dtype].bits);
}

double nr_slack(int roundings, double magnitude) { return ldexp(roundings * magnitude, -24); }

double nr_mean_slack(double magnitude) { return nr_slack(2, magnitude); }

/* The magnitude from which on numbers round to infinity: half an ulp beyond the largest number. */
static double overflow_limit(nr_dtype dtype) {
  return dtype == NR_F64 ? INFINITY : ldexp(2 - ldexp(1, -formats[dtype].bits - 1), formats[dtype].highest);
}

static void note(nr_verdict *verdict, double ulps, double ratio, int64_t index, double got, double expected) {
  verdict->elements++;
  verdict->failures += !(ratio <= 1);
  if (ulps > verdict->worst_ulp)
    verdict->worst_ulp = ulps;
  if (verdict->elements > 1 && !(ratio > verdict->worst_ratio))
    return;
  verdict->worst_ratio = ratio;
  verdict->worst_index = index;
  verdict->got = got;
  verdict->expected = expected;
}

void nr_judge(nr_verdict *verdict, nr_dtype dtype, int64_t index, double got, double exact, double slack,
              double magnitude) {
  bool same_class;
  if (isnan(exact)) {
    same_class = !isfinite(got);
  } else if (isinf(exact)) {
    same_class = got == exact || isnan(got);
  } else if (!isfinite(got)) {
    bool rounds = isinf(got) && !signbit(got) == !signbit(exact) && fabs(exact) + slack >= overflow_limit(dtype);
    same_class = rounds || magnitude > FLT_MAX;
  } else {
    double error = fabs(got - exact), ulp = nr_ulp(dtype, exact);
    note(verdict, error / ulp, error == 0 ? 0 : error / (ulp / 2 + slack), index, got, exact);
    return;
  }
  note(verdict, same_class ? 0 : INFINITY, same_class ? 0 : INFINITY, index, got, exact);
}

void nr_judge_copy(nr_verdict *verdict, nr_dtype dtype, int64_t index, const void *got, const void *expected) {
  double ulps = 0, ratio = 0;
  double a = nr_load(got, dtype, 0), b = nr_load(expected, dtype, 0);
  if (memcmp(got, expected, nr_dtype_size(dtype))) {
    ulps = isfinite(a) && isfinite(b) ? fabs(a - b) / nr_ulp(dtype, b) : INFINITY;
    ratio = INFINITY;
  }
  note(verdict, ulps, ratio, index, a, b);
}

void nr_verdict_add(nr_verdict *verdict, const nr_verdict *other) {
  if (!other->elements)
    return;
  int64_t elements = verdict->elements + other->elements, failures = verdict->failures + other->failures;
  double ulps = fmax(verdict->worst_ulp, other->worst_ulp);
  if (!verdict->elements || other->worst_ratio > verdict->worst_ratio ||
      (other->worst_ratio == verdict->worst_ratio && other->worst_index < verdict->worst_index))
    *verdict = *other;
  verdict->elements = elements;
  verdict->failures = failures;
  verdict->worst_ulp = ulps;
}
