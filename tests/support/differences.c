#include "support/differences.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan/plan.h"
#include "support/fixture.h"

typedef struct trial {
  nr_segment segments[NR_MAX_SEGMENTS];
  nr_plan *forward[NR_MAX_SEGMENTS];
  int32_t count;
  double *buffers[NR_MAX_SEGMENTS * NR_NUM_FIELDS];
  int num_buffers;
} trial;

static nr_view *view_in(nr_segment *s, size_t offset) { return (nr_view *)((char *)s + offset); }

/* Packs the view's strides; an axis that it broadcasts stays so. Returns the elements. */
static int64_t dense(nr_view *v, const int64_t shape[4]) {
  int64_t count = 1;
  for (int axis = 3; axis >= 0; axis--) {
    bool broadcasts = shape[axis] == 1 && v->stride[axis] == 0;
    v->stride[axis] = broadcasts ? 0 : count;
    count *= shape[axis];
  }
  return count;
}

/* A float64 copy of a view, or for an absent one and for outputs just room. */
static nr_view copy(trial *t, const nr_segment *s, const nr_field *field) {
  const nr_view *from = nr_view_at(s, field->offset);
  nr_view to = *from;
  int64_t shape[4], i[4];
  fixture_shape(s, field, shape);
  int64_t count = dense(&to, shape);
  to.dtype = NR_F64;
  to.data = t->buffers[t->num_buffers++] = calloc((size_t)count + 1, sizeof(double));
  bool input = field->role[NR_BACKWARD] == NR_INPUT && field->shape != NR_SHAPE_STATISTICS && from->data;
  for (i[0] = 0; input && i[0] < shape[0]; i[0]++)
    for (i[1] = 0; i[1] < shape[1]; i[1]++)
      for (i[2] = 0; i[2] < shape[2]; i[2]++)
        for (i[3] = 0; i[3] < shape[3]; i[3]++)
          nr_store(nr_row(&to, i[0], i[1], i[2]), NR_F64, i[3] * to.stride[3],
                   nr_load(nr_row(from, i[0], i[1], i[2]), from->dtype, i[3] * from->stride[3]));
  return to;
}

static nr_plan *plan(const nr_segment *segments, int32_t count, nr_direction direction) {
  nr_problem problem = nr_problem_default();
  problem.direction = direction, problem.backend = NR_BACKEND_REFERENCE;
  problem.segments = segments, problem.num_segments = count;
  nr_plan *made;
  if (nr_plan_create(&made, &problem) != NR_OK)
    fail_msg("nr_plan_create: %s", nr_last_error());
  return made;
}

static void run(const nr_plan *of) {
  if (nr_plan_run(of, NULL, NULL, 0, NULL) != NR_OK)
    fail_msg("nr_plan_run: %s", nr_last_error());
}

static void start(trial *t, const nr_segment *segments, int32_t count) {
  t->count = count;
  for (int32_t i = 0; i < count; i++) {
    nr_segment *s = &t->segments[i];
    *s = segments[i];
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_field *field = &nr_fields[k];
      const nr_view *given = nr_view_at(&segments[i], field->offset);
      bool whole = field->shape == NR_SHAPE_ROWS || (field->shape == NR_SHAPE_STATISTICS && s->norm);
      if (!given->data && !whole)
        continue;
      *view_in(s, field->offset) = copy(t, &segments[i], field);
      for (int32_t j = 0; j < i && field->primal; j++)
        if (nr_shared(nr_view_at(&segments[j], field->offset), given))
          *view_in(s, field->offset) = *nr_view_at(&t->segments[j], field->offset);
    }
    for (int k = 0; k < NR_NUM_FIELDS; k++) /* parameters are shared as their gradients are */
      for (int32_t j = 0; j < i && nr_fields[k].primal; j++)
        if (nr_shared(nr_view_at(&segments[j], nr_fields[k].offset), nr_view_at(&segments[i], nr_fields[k].offset)))
          *view_in(s, nr_fields[k].primal) = *nr_view_at(&t->segments[j], nr_fields[k].primal);
  }
  for (int32_t i = 0; i < count; i++) {
    t->forward[i] = plan(&t->segments[i], 1, NR_FORWARD);
    run(t->forward[i]);
  }
  nr_plan *backward = plan(t->segments, count, NR_BACKWARD);
  run(backward);
  nr_plan_destroy(backward);
}

static void finish(trial *t) {
  for (int32_t i = 0; i < t->count; i++)
    nr_plan_destroy(t->forward[i]);
  for (int i = 0; i < t->num_buffers; i++)
    free(t->buffers[i]);
  free(t);
}

/* What the segments that read this memory at `primal` add to the loss. */
static double loss(const trial *t, size_t primal, const void *data) {
  double sum = 0;
  for (int32_t i = 0; i < t->count; i++) {
    const nr_segment *s = &t->segments[i];
    if (nr_view_at(s, primal)->data != data)
      continue;
    run(t->forward[i]);
    for (int64_t e = 0; e < s->batch * s->length * s->heads * s->dim; e++)
      sum += ((const double *)s->y.data)[e] * ((const double *)s->grad_y.data)[e];
  }
  return sum;
}

/* The five-point formula: off by step^4 of the fifth derivative. */
static double slope(const trial *t, size_t primal, const void *data, double *element) {
  static const double points[] = {-2, -1, 1, 2}, weights[] = {1, -8, 8, -1}, step = 1e-3;
  double value = *element, sum = 0;
  for (int i = 0; i < 4; i++) {
    *element = value + points[i] * step;
    sum += weights[i] * loss(t, primal, data);
  }
  *element = value;
  return sum / (12 * step);
}

static void check(trial *t, int32_t segment, const nr_field *field, size_t primal, const char *what) {
  const nr_segment *s = &t->segments[segment];
  const nr_view *gradient = nr_view_at(s, field->offset), *of = nr_view_at(s, primal);
  int64_t shape[4], i[4];
  fixture_shape(s, field, shape);
  for (i[0] = 0; i[0] < shape[0]; i[0]++)
    for (i[1] = 0; i[1] < shape[1]; i[1]++)
      for (i[2] = 0; i[2] < shape[2]; i[2]++)
        for (i[3] = 0; i[3] < shape[3]; i[3]++) {
          double *element = (double *)nr_row(of, i[0], i[1], i[2]) + i[3] * of->stride[3];
          double found = nr_load(nr_row(gradient, i[0], i[1], i[2]), NR_F64, i[3] * gradient->stride[3]);
          double expected = slope(t, primal, of->data, element);
          if (!(fabs(found - expected) <= 1e-7 * (1 + fabs(expected))))
            fail_msg("%s: segment %" PRId32 " %s[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
                     "] is %.12g, finite differences say %.12g",
                     what, segment, field->name, i[0], i[1], i[2], i[3], found, expected);
        }
}

void differences_check(const nr_segment *segments, int32_t count, const char *what) {
  trial *t = calloc(1, sizeof *t);
  start(t, segments, count);
  for (int32_t i = 0; i < count; i++)
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_field *field = &nr_fields[k];
      bool rows = field->offset == offsetof(nr_segment, grad_x), parameter = field->primal != 0;
      size_t primal = rows ? offsetof(nr_segment, x) : field->primal;
      if (rows || (parameter && nr_first_of_shared(t->segments, i, field->offset) &&
                   nr_field_used(&t->segments[i], NR_BACKWARD, field)))
        check(t, i, field, primal, what);
    }
  finish(t);
}
