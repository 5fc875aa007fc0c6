/*
 * How far a result may be from the double-precision reference. The bounds are those of docs/numerics.md: half a unit in
 * the last place (ulp) of the output's dtype, for the one rounding into it, and a few float32 roundings of the terms
 * that were added up. No state; thread safe.
 */
#ifndef NR_CLI_BOUNDS_H
#define NR_CLI_BOUNDS_H

#include <stdbool.h>
#include <stdint.h>

#include "normrope.h"

/* Float32 roundings of the largest term that results may be off by, beside their last rounding. */
enum { NR_SLACK_BACKWARD = 3, NR_SLACK_FORWARD = 4, NR_SLACK_TABLE = 4, NR_SLACK_PARAMETER = 4 };
/* Statistics are compared in ulp of float32. */
enum { NR_STATISTICS_ULP = 2 };

/* What was found in one output. Starts as all zeros. */
typedef struct nr_verdict {
  int64_t elements, failures;
  double worst_ulp;     /* largest error, in ulp of the dtype at the exact value */
  double worst_ratio;   /* largest error / bound; infinite for a wrong class (NaN, infinity) or wrong bits */
  int64_t worst_index;  /* the index given for the element of worst_ratio */
  double got, expected; /* of that element */
} nr_verdict;

/* Distance of neighbouring numbers of the dtype around the value (of its smallest, largest numbers beyond these). */
double nr_ulp(nr_dtype dtype, double value);

/* The slack that `roundings` float32 roundings of a term of this magnitude are. */
double nr_slack(int roundings, double magnitude);

/* What a mean of numbers of this mean magnitude may be off by: what counts where it cancels to nothing. */
double nr_mean_slack(double magnitude);

/*
 * Judges one element: |got - exact| <= ulp/2 + slack. What is not finite must not be finite: where the exact value is
 * NaN or infinite, so is the result, but not the opposite infinity (which of infinity and NaN comes out depends on the
 * order of the terms). A finite value may overflow where the dtype's largest number or, by `magnitude` (the size of its
 * terms), float32's is passed.
 */
void nr_judge(nr_verdict *verdict, nr_dtype dtype, int64_t index, double got, double exact, double slack,
              double magnitude);

/* Judges an element that must have the same bits as another, of the same dtype. */
void nr_judge_copy(nr_verdict *verdict, nr_dtype dtype, int64_t index, const void *got, const void *expected);

/* The verdict on both. */
void nr_verdict_add(nr_verdict *verdict, const nr_verdict *other);

#endif
