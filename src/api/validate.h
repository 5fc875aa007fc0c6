#ifndef NR_API_VALIDATE_H
#define NR_API_VALIDATE_H

#include <stdbool.h>

#include "normrope.h"

/* Checks segments of the current nr_segment layout: shapes, attributes, required and usable views, strides, overlaps.
   rope_dim is resolved already. `mixed` allows any mixture of dtypes, float64 too. */
nr_status nr_validate(const nr_segment *segments, int32_t count, nr_direction direction, bool mixed);

/* Only the part that depends on addresses: presence as in `planned`, alignment, overlaps. */
nr_status nr_validate_addresses(const nr_segment *segments, int32_t count, nr_direction direction);

#endif
