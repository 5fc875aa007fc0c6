/*
 * The backward against finite differences of the forward, both in double precision on the reference backend. The loss
 * is the sum of y * grad_y, so that the gradients are those that the backward promises.
 */
#ifndef NR_TESTS_DIFFERENCES_H
#define NR_TESTS_DIFFERENCES_H

#include <stdint.h>

#include "normrope.h"

/* Takes the backward's segments, of any dtypes and strides, with all that the forward reads, and works on float64
   copies of their x, parameters, tables and grad_y: statistics are measured anew, and no memory of the caller's is
   written. Every element of x is tried, and of each parameter and table whose gradient is present; segments that name
   the same gradient share the parameter. Fails the test where an element's gradient is off; `what` is printed then. */
void differences_check(const nr_segment *segments, int32_t count, const char *what);

#endif
