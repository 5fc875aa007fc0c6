/* Layouts: every style for every view, packed and joined buffers, broadcast inputs, in place, outputs left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/fields.h"
#include "plan/plan.h"
#include "support/fixture.h"

enum { B = 2, S = 5, N = 3, D = 22 };

static stream everything(void) {
  return (stream){.B = B,
                  .S = S,
                  .N = N,
                  .D = D,
                  .norm = NR_NORM_LAYER_AFFINE,
                  .width = D,
                  .table_rows = S,
                  .position = -1,
                  .wants_tables = true};
}

/* The rows [B, S, N, D] of a view side by side. The caller frees them. */
static unsigned char *gather(const nr_view *v) {
  size_t size = nr_dtype_size(v->dtype), at = 0;
  unsigned char *rows = malloc(B * S * N * D * size);
  for (int64_t b = 0; b < B; b++)
    for (int64_t s = 0; s < S; s++)
      for (int64_t n = 0; n < N; n++)
        for (int64_t d = 0; d < D; d++, at += size)
          memcpy(rows + at, nr_row(v, b, s, n) + d * v->stride[3] * (int64_t)size, size);
  return rows;
}

static void assert_same_rows(const nr_view *v, unsigned char *expected, const char *what) {
  unsigned char *rows = gather(v);
  if (memcmp(rows, expected, B * S * N * D * nr_dtype_size(v->dtype)) != 0)
    fail_msg("%s: other bits", what);
  free(rows);
  free(expected);
}

static void every_style(void **state) {
  (void)state;
  for (int i = 0; i < 2 * NUM_STYLES * NUM_STYLES * 2; i++) {
    stream s = everything();
    s.x = (style)(i % NUM_STYLES), s.y = (style)(i / NUM_STYLES % NUM_STYLES);
    s.parameter = i / NUM_STYLES / NUM_STYLES % 2 ? STYLE_CHANNELS : STYLE_BSND;
    s.rows = (nr_dtype)(i % 3), s.parameters = (nr_dtype)(i / 3 % 3), s.tables = (nr_dtype)(i / 9 % 3);
    s.weights_per_head = i % 7 == 0, s.tables_per_head = i % 5 == 0, s.tables_per_batch = i % 4 == 0;
    nr_direction direction = i < 2 * NUM_STYLES * NUM_STYLES ? NR_FORWARD : NR_BACKWARD;
    char what[80];
    snprintf(what, sizeof what, "%s x %d y %d parameters %d", direction ? "backward" : "forward", s.x, s.y,
             s.parameter);
    fixture *f = fixture_new(direction, (uint64_t)i);
    fixture_add(f, &s);
    fixture_add(f, &(stream){.B = 1, .S = 3, .N = 2, .D = D, .rows = s.rows, .x = s.x, .y = s.y}); /* copied rows */
    fixture_try(f, NULL, 0, what);
    fixture_free(f);
  }
}

/* Query, key and value are slices of one [B, S, 3, N, D] buffer, and so are their gradients of another. */
static void packed_in_and_out(void **state) {
  (void)state;
  for (int direction = 0; direction < 2; direction++)
    for (int dtype = 0; dtype < 3; dtype++)
      for (int order = 0; order < 2; order++) { /* [3, N, D], and [N, 3, D] */
        fixture *f = fixture_new((nr_direction)direction, (uint64_t)dtype);
        int64_t shape[] = {B, S, 3 * N, D}, size = (int64_t)nr_dtype_size((nr_dtype)dtype);
        nr_view packed = fixture_view(f, (nr_dtype)dtype, shape, STYLE_PADDED, CONTENT_NORMAL);
        nr_view gradients = fixture_view(f, (nr_dtype)dtype, shape, STYLE_PADDED, CONTENT_POISON);
        int64_t apart = (order ? 1 : N) * packed.stride[2] * size;
        packed.stride[2] *= order ? 3 : 1, gradients.stride[2] *= order ? 3 : 1;
        for (int k = 0; k < 3; k++) {
          stream s = everything();
          s.rows = (nr_dtype)dtype;
          if (k == 2)
            s.norm = NR_NORM_NONE, s.width = 0, s.wants_tables = false;
          nr_segment *g = fixture_add(f, &s);
          g->x = packed, g->grad_x = gradients;
          g->x.data = (char *)packed.data + k * apart;
          g->grad_x.data = direction ? (char *)gradients.data + k * apart : NULL;
          if (direction && g->norm)
            fixture_measure(f, g);
        }
        fixture_try(f, NULL, 0, direction ? "packed backward" : "packed forward");
        fixture_free(f);
      }
}

/* An input may have a stride of 0 on any axis. */
static void broadcast_inputs(void **state) {
  (void)state;
  for (int direction = 0; direction < 2; direction++)
    for (int axis = 0; axis < 4; axis++)
      for (int which = 0; which < 2; which++) {
        stream s = everything();
        s.rows = (nr_dtype)((axis + which) % 3), s.norm = NR_NORM_RMS_AFFINE, s.weights_per_head = axis == 2;
        fixture *f = fixture_new((nr_direction)direction, 5);
        nr_segment *g = fixture_add(f, &s);
        (which && direction ? &g->grad_y : &g->x)->stride[axis] = 0;
        if (axis == 3) { /* channels of parameters, too */
          g->weight.stride[3] = 0;
          g->cos.stride[3] = 0;
        } else if (axis == 1) {
          g->sin.stride[1] = 0;
        }
        if (direction)
          fixture_measure(f, g);
        char what[80];
        snprintf(what, sizeof what, "%s, stride 0 on axis %d", direction ? "backward" : "forward", axis);
        fixture_try(f, NULL, 0, what);
        fixture_free(f);
      }
}

/* y over x; grad_x over x, and over grad_y: the bits of the run that was not in place, for any norm and rope. */
static void in_place(void **state) {
  (void)state;
  for (int i = 0; i < 5 * 3 * 2 * 3 * 3; i++) {
    stream s = everything();
    s.norm = (nr_norm)(i % 5), s.rows = (nr_dtype)(i / 5 % 3);
    s.scope = i / 15 % 2 ? NR_SCOPE_ALL_HEADS : NR_SCOPE_HEAD;
    s.width = (const int64_t[]){0, 2, D}[i / 30 % 3];
    s.wants_tables = s.width && i % 2;
    s.x = s.y = (style)(i % NUM_STYLES);
    int over = i / 90; /* 0: y over x, 1: grad_x over x, 2: grad_x over grad_y */
    fixture *f = fixture_new(over ? NR_BACKWARD : NR_FORWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    nr_view *output = over ? &g->grad_x : &g->y;
    char what[80];
    snprintf(what, sizeof what, "in place %d, norm %d, scope %d, rope %d, %s", over, s.norm, s.scope, (int)s.width,
             nr_dtype_name(s.rows));
    fixture_run(f, NULL, 0);
    unsigned char *expected = gather(output);
    fixture_poison(f);
    *output = over == 2 ? g->grad_y : g->x;
    fixture_run(f, NULL, 0);
    fixture_check(f, what);
    assert_same_rows(output, expected, what);
    fixture_free(f);
  }
}

/* Any set of optional outputs may be absent; the others keep their bits. */
static void outputs_left_out(void **state) {
  (void)state;
  for (int direction = 0; direction < 2; direction++) {
    size_t optional[8];
    int count = 0;
    for (int k = 0; k < NR_NUM_FIELDS; k++)
      if (nr_fields[k].role[direction] == NR_OUTPUT && nr_fields[k].offset != offsetof(nr_segment, y))
        optional[count++] = nr_fields[k].offset;
    for (int set = 0; set < 1 << count; set++) {
      stream s = everything();
      s.rows = (nr_dtype)(set % 3);
      fixture *f = fixture_new((nr_direction)direction, 9);
      nr_segment *g = fixture_add(f, &s);
      fixture_run(f, NULL, 0);
      uint64_t all = fixture_digest(f);
      nr_segment whole = *g;
      fixture_poison(f);
      for (int i = 0; i < count; i++)
        if (set >> i & 1)
          ((nr_view *)((char *)g + optional[i]))->data = NULL;
      fixture_run(f, NULL, 0);
      fixture_check(f, "outputs left out"); /* those absent are untouched */
      for (int i = 0; i < count; i++)       /* now only those */
        ((nr_view *)((char *)g + optional[i]))->data = set >> i & 1 ? nr_view_at(&whole, optional[i])->data : NULL;
      fixture_run(f, NULL, 0);
      *g = whole;
      if (fixture_digest(f) != all)
        fail_msg("%s, outputs %x on their own: other bits", direction ? "backward" : "forward", set);
      fixture_free(f);
    }
  }
}

/* Gradients that nothing contributes to, and those of empty streams, are zero; nothing else is touched. */
static void nothing_to_add_is_zero(void **state) {
  (void)state;
  for (int i = 0; i < 4 * 3 * 2; i++) {
    stream s = everything();
    s.norm = i % 2 ? NR_NORM_LAYER : NR_NORM_LAYER_AFFINE;
    s.rows = s.parameters = s.tables = (nr_dtype)(i % 3);
    *(int64_t *[]){&s.B, &s.S, &s.N, &(int64_t){0}}[i % 4] = 0;
    fixture *f = fixture_new(i < 12 ? NR_FORWARD : NR_BACKWARD, 3);
    nr_segment *g = fixture_add(f, &s);
    if (i % 4 == 3 && i >= 12) /* tables without rope */
      g->rope_width = 0;
    fixture_try(f, NULL, 0, "nothing to add");
    if (i >= 12)
      for (int64_t d = 0; d < D && s.norm == NR_NORM_LAYER; d++)
        assert_true(nr_load(g->grad_weight.data, s.parameters, d) == 0);
    fixture_free(f);
  }
}

/* An empty stream does not keep the one that it shares a gradient with from being written, whatever its strides say. */
static void shared_with_an_empty_stream(void **state) {
  (void)state;
  for (int which = 0; which < 3; which++) {
    stream s = everything();
    s.N = which == 1 ? 0 : N, s.B = which == 1 ? B : which == 2 ? 1 : 0;
    s.weights_per_head = which == 1, s.tables_per_batch = which != 1;
    fixture *f = fixture_new(NR_BACKWARD, 4);
    nr_segment *empty = fixture_add(f, &s);
    s = everything();
    s.weights_per_head = which == 1, s.tables_per_batch = which == 0;
    nr_segment *full = fixture_add(f, &s);
    if (which == 2) { /* one batch, whose tables seem to have a batch axis, and two that share them */
      full->cos = empty->cos, full->sin = empty->sin;
      full->cos.stride[0] = full->sin.stride[0] = 0;
    }
    nr_view *from[] = {&full->grad_weight, &full->grad_bias, &full->grad_cos, &full->grad_sin};
    nr_view *to[] = {&empty->grad_weight, &empty->grad_bias, &empty->grad_cos, &empty->grad_sin};
    for (int k = 0; k < 4; k++)
      to[k]->data = from[k]->data;
    fixture_run(f, NULL, 0);
    uint64_t both = fixture_digest(f);
    fixture_check(f, "shared with an empty stream");
    nr_view *tables[] = {&empty->cos, &empty->sin, &empty->grad_cos, &empty->grad_sin};
    for (int k = 0; k < 4 && which == 2; k++) /* one batch has the stride 0 as well as any */
      tables[k]->stride[0] = 0;
    fixture_poison(f);
    fixture_run(f, NULL, 0);
    assert_true(fixture_digest(f) == both);
    double sum = 0;
    for (int64_t d = 0; d < D; d++)
      sum += nr_load(full->grad_cos.data, NR_F32, d) * nr_load(full->grad_cos.data, NR_F32, d);
    assert_true(sum > 0.01);
    fixture_free(f);
  }
}

/* Data of a prime period, copied: a block, head or position in another's place shows. */
static void no_row_changes_places(void **state) {
  (void)state;
  const int64_t heads = 6, length = 150, dim = 64;
  for (int direction = 0; direction < 2; direction++) {
    fixture *f = fixture_new((nr_direction)direction, 1);
    nr_segment *g = fixture_add(f, &(stream){.B = 3, .S = length, .N = heads, .D = dim, .y = STYLE_BNSD});
    nr_view *from = direction ? &g->grad_y : &g->x, *to = direction ? &g->grad_x : &g->y;
    for (int64_t b = 0, i = 0; b < 3; b++)
      for (int64_t s = 0; s < length; s++)
        for (int64_t n = 0; n < heads; n++)
          for (int64_t d = 0; d < dim; d++, i++)
            nr_store(nr_row(from, b, s, n), NR_F32, d, (double)(i % 251));
    fixture_poison(f);
    fixture_run(f, NULL, 3);
    for (int64_t b = 0, i = 0; b < 3; b++)
      for (int64_t s = 0; s < length; s++)
        for (int64_t n = 0; n < heads; n++)
          for (int64_t d = 0; d < dim; d++, i++)
            assert_true(nr_load(nr_row(to, b, s, n), NR_F32, d) == (double)(i % 251));
    fixture_free(f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_style),
      cmocka_unit_test(packed_in_and_out),
      cmocka_unit_test(broadcast_inputs),
      cmocka_unit_test(in_place),
      cmocka_unit_test(outputs_left_out),
      cmocka_unit_test(nothing_to_add_is_zero),
      cmocka_unit_test(shared_with_an_empty_stream),
      cmocka_unit_test(no_row_changes_places),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
