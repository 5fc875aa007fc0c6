/*
 * Made-up data that is the same on every machine: element i of a tensor depends on the seed, the tensor's name and i
 * alone, so any part can be made at any time.
 */
#ifndef NR_CLI_GENERATE_H
#define NR_CLI_GENERATE_H

#include <stdbool.h>
#include <stdint.h>

#include "normrope.h"

/* The stream of numbers of a tensor. */
uint64_t nr_stream_of(int64_t seed, const char *name);

/* Its i-th number: bell-shaped (four uniform ones added), mean 0, variance 1, within +-3.5. */
double nr_normal(uint64_t stream, int64_t i);

/* array[first, first + count) = centre + scale * number. */
void nr_fill_normal(void *array, nr_dtype dtype, uint64_t stream, int64_t first, int64_t count, double centre,
                    double scale);

/* Rows [first, first + count) of a rope table [rows, dim]: the cosine, or sine, of position * 10000^(-2i/width) for the
   i-th pair of each block of `width` channels. */
void nr_fill_angles(void *array, nr_dtype dtype, int64_t dim, int64_t width, int64_t first, int64_t count, bool sine);

#endif
