/* Outputs too large for the caches pass by them, where their rows, or four of them together, are whole cache lines.
   Nothing else may change: the same problem with an output that is one element off, which is stored as usual, gives the
   same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "normrope.h"

enum { LINE = 64, BYTES = 33 << 20, HEADS = 3 }; /* BYTES: read and written, just more than it takes */

typedef struct problem {
  nr_direction direction;
  nr_dtype dtype;
  int64_t dim;
  nr_norm norm;
  int64_t rope_width;
  bool in_place;
} problem;

static char *allocate(size_t size) {
  char *memory = aligned_alloc(LINE, (size + 2 * LINE - 1) / LINE * LINE);
  assert_non_null(memory);
  return memory;
}

/* Small numbers of a prime period, so that no two rows are alike. */
static void fill(void *rows, nr_dtype dtype, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    nr_store(rows, dtype, i, (double)(i % 251 - 120) / 16);
}

static void run(const problem *p, const char *isa, nr_segment *s) {
  nr_problem wanted = nr_problem_default();
  wanted.direction = p->direction, wanted.segments = s, wanted.num_segments = 1, wanted.isa = isa;
  nr_plan *plan;
  assert_int_equal(nr_plan_create(&plan, &wanted), NR_OK);
  assert_int_equal(nr_plan_workspace_size(plan), 0);
  assert_int_equal(nr_plan_run(plan, NULL, NULL, 0, NULL), NR_OK);
  nr_plan_destroy(plan);
}

static void try(const problem *p) {
  bool forward = p->direction == NR_FORWARD;
  int64_t size = (int64_t)nr_dtype_size(p->dtype), arrays = !forward && p->norm ? 3 : 2;
  int64_t length = BYTES / (arrays * size * HEADS * p->dim) + 3, count = length * HEADS * p->dim;
  size_t bytes = (size_t)(count * size);
  char *in = allocate(bytes), *x = allocate(bytes), *usual = allocate(bytes), *streamed = allocate(bytes);
  float *statistics = (float *)allocate((size_t)(length * HEADS) * sizeof(float));
  float parameter[256], table[2][256];
  fill(statistics, NR_F32, length * HEADS);
  fill(parameter, NR_F32, 256);
  fill(table, NR_F32, 512);
  fill(x, p->dtype, count);
  nr_segment s = nr_segment_default();
  s.batch = 1, s.length = length, s.heads = HEADS, s.dim = p->dim, s.norm = p->norm, s.rope_width = p->rope_width;
  s.rope_length = length - 5; /* the last rows pass */
  s.x = nr_view_bsnd(x, p->dtype, length, HEADS, p->dim);
  s.weight = s.bias = nr_view_channels(parameter, NR_F32);
  s.cos = nr_view_strided(table[0], NR_F32, 0, 0, 0, 1), s.sin = nr_view_strided(table[1], NR_F32, 0, 0, 0, 1);
  s.mean = s.rstd = forward ? (nr_view){0} : nr_view_statistics(statistics, NR_F32, length, HEADS);
  nr_view *from = forward ? &s.x : &s.grad_y, *to = forward ? &s.y : &s.grad_x;
  *from = nr_view_bnsd(in, p->dtype, length, HEADS, p->dim);
  for (int i = 0; nr_isa(i); i++) {
    if (!nr_isa_usable(nr_isa(i)))
      continue;
    fill(in, p->dtype, count);
    memset(usual, 0xff, bytes + LINE), memset(streamed, 0xff, bytes);
    *to = nr_view_bsnd(usual + size, p->dtype, length, HEADS, p->dim);
    run(p, nr_isa(i), &s);
    *to = p->in_place ? *from : nr_view_bsnd(streamed, p->dtype, length, HEADS, p->dim);
    run(p, nr_isa(i), &s);
    for (int64_t row = 0; row < length * HEADS; row++) {
      int64_t at = p->in_place ? row % HEADS * length + row / HEADS : row;
      const char *got = (p->in_place ? in : streamed) + at * p->dim * size;
      if (memcmp(got, usual + size + row * p->dim * size, (size_t)(p->dim * size)))
        fail_msg("%s, direction %d, %s, dim %d, norm %d, rope %d: row %d of %d", nr_isa(i), p->direction,
                 nr_dtype_name(p->dtype), (int)p->dim, p->norm, (int)p->rope_width, (int)row, (int)length * HEADS);
    }
  }
  free(in), free(x), free(usual), free(streamed), free(statistics);
}

static void same_bits(void **state) {
  (void)state;
  static const problem problems[] = {
      {NR_FORWARD, NR_F32, 48, NR_NORM_NONE, 0, false},         /* copies */
      {NR_BACKWARD, NR_BF16, 32, NR_NORM_NONE, 0, true},        /* copies onto themselves */
      {NR_FORWARD, NR_F32, 48, NR_NORM_LAYER_AFFINE, 2, false}, /* lines, and half a chunk at the end */
      {NR_FORWARD, NR_F16, 96, NR_NORM_RMS, 2, true},
      {NR_BACKWARD, NR_BF16, 128, NR_NORM_RMS_AFFINE, 128, false},
      {NR_BACKWARD, NR_F32, 16, NR_NORM_LAYER, 16, true},
      {NR_FORWARD, NR_F32, 88, NR_NORM_NONE, 0, false}, /* four rows together are lines */
      {NR_FORWARD, NR_BF16, 88, NR_NORM_LAYER_AFFINE, 2, false},
      {NR_BACKWARD, NR_BF16, 88, NR_NORM_LAYER_AFFINE, 2, false},
      {NR_BACKWARD, NR_F16, 40, NR_NORM_RMS, 20, false},
  };
  for (size_t i = 0; i < sizeof problems / sizeof *problems; i++)
    try(&problems[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
