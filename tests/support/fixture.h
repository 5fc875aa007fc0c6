/*
 * Problems for tests. A fixture owns guarded tensors and a list of segments made of them; it runs them on a backend and
 * holds every output against the double-precision reference and the promised bounds, down to the bytes between strided
 * elements. Failures print what was being tested and end the test.
 */
#ifndef NR_TESTS_FIXTURE_H
#define NR_TESTS_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "api/fields.h"
#include "normrope.h"

/* How a view lies in memory. */
typedef enum style {
  STYLE_BSND,
  STYLE_BNSD,
  STYLE_PADDED,   /* BSND with a gap behind each axis, at an odd offset */
  STYLE_CHANNELS, /* channels three elements apart */
  STYLE_REVERSED, /* BNSD with negative sequence and head strides */
  NUM_STYLES
} style;

/* What fills a new view. */
typedef enum content {
  CONTENT_POISON, /* outputs */
  CONTENT_NORMAL, /* spread 1 around a small mean */
  CONTENT_WEIGHT, /* around 1, a few of them 0 */
  CONTENT_TABLE   /* entries of a pair differ and are no angle */
} content;

typedef struct fixture fixture;

/* One stream to be added; zero is a sensible value of everything but the sizes. */
typedef struct stream {
  int64_t B, S, N, D;
  nr_dtype rows, parameters, tables;
  nr_norm norm;
  nr_scope scope;
  double eps; /* 0: 1e-6 */
  int64_t width, rope_dim, table_rows, position;
  bool weights_per_head, tables_per_batch, tables_per_head, wants_tables;
  style x, y;        /* how x and grad_x, y and grad_y lie */
  style parameter;   /* how weights, tables and statistics lie; STYLE_BSND or STYLE_CHANNELS */
  double mean;       /* that x is spread around */
  bool no_gradients; /* backward: only grad_x */
} stream;

fixture *fixture_new(nr_direction direction, uint64_t seed);
void fixture_free(fixture *f);

/* Adds a segment with all views that its direction can use, all outputs present, statistics from the reference. */
nr_segment *fixture_add(fixture *f, const stream *s);

nr_segment *fixture_segments(fixture *f, int32_t *count);

/* A view of the given shape, owned by the fixture. */
nr_view fixture_view(fixture *f, nr_dtype dtype, const int64_t shape[4], style lies, content filled);

/* Fills mean and rstd of a backward segment by the reference forward over its x. */
void fixture_measure(fixture *f, nr_segment *segment);

/* Poisons all outputs that the segments name. */
void fixture_poison(fixture *f);

/* The extents of a view of the segment: 1 on the axes that it broadcasts. */
void fixture_shape(const nr_segment *segment, const nr_field *field, int64_t shape[4]);

/* Plans and runs; fails the test where that fails. isa NULL: the default. With `--device cuda` (support/device.h) on
   the device, where isa and threads mean nothing. */
void fixture_run(fixture *f, const char *isa, int32_t threads);

/* The outputs hold what the bounds allow, bytes that belong to no output are untouched, inputs unchanged unless in
   place. `what` is printed on failure. */
void fixture_check(fixture *f, const char *what);

/* fixture_poison, fixture_run and fixture_check. */
void fixture_try(fixture *f, const char *isa, int32_t threads, const char *what);

/* FNV-1a over the bytes of all outputs: equal bits, equal digest. */
uint64_t fixture_digest(fixture *f);

/* The worst error so far, over what the bound allows; below 1 while everything passes. */
double fixture_worst(void);

#endif
