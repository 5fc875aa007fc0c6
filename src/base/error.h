/* The calling thread's last error. */
#ifndef NR_BASE_ERROR_H
#define NR_BASE_ERROR_H

#include "normrope.h"

/* Formats the text that nr_last_error returns (at most 511 bytes, cut at the end) and returns `status`, so that a
   refusal is one line: return nr_fail(NR_ERROR_INVALID, "dim: %lld, expected …", …). With NORMROPE_VERBOSE=error or
   more the text also goes to standard error. */
nr_status nr_fail(nr_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
