#include "support/fixture.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan/plan.h"
#include "support/device.h"
#include "support/guarded.h"

enum { MAX_TENSORS = 512 };

typedef struct tensor {
  unsigned char *block;
  size_t size;
  unsigned char *before; /* a copy of the block, taken when it was poisoned or run */
  nr_dtype dtype;
} tensor;

struct fixture {
  nr_direction direction;
  uint64_t random;
  int32_t count;
  nr_segment segments[NR_MAX_SEGMENTS];
  tensor tensors[MAX_TENSORS];
  int num_tensors;
};

static double worst;

double fixture_worst(void) { return worst; }

/* splitmix64 */
static uint64_t next(fixture *f) {
  uint64_t z = f->random += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static double uniform(fixture *f) { return (double)(next(f) >> 11) * 0x1p-53; }

/* Close enough to a normal distribution of spread 1. */
static double normal(fixture *f) {
  double sum = 0;
  for (int i = 0; i < 4; i++) /* in this order on every machine */
    sum += uniform(f);
  return (sum - 2) * sqrt(3);
}

static double element(fixture *f, content filled) {
  switch (filled) {
  case CONTENT_WEIGHT: return next(f) % 13 == 0 ? 0 : 1 + 0.3 * normal(f);
  case CONTENT_TABLE: return 1.5 * (2 * uniform(f) - 1);
  default: return normal(f) + 0.1;
  }
}

fixture *fixture_new(nr_direction direction, uint64_t seed) {
  fixture *f = calloc(1, sizeof *f);
  f->direction = direction;
  f->random = seed * 0x9e3779b97f4a7c15u + 1;
  return f;
}

void fixture_free(fixture *f) {
  for (int i = 0; i < f->num_tensors; i++) {
    guarded_free(f->tensors[i].block, f->tensors[i].size);
    free(f->tensors[i].before);
  }
  free(f);
}

nr_segment *fixture_segments(fixture *f, int32_t *count) {
  if (count)
    *count = f->count;
  return f->segments;
}

nr_view fixture_view(fixture *f, nr_dtype dtype, const int64_t shape[4], style lies, content filled) {
  static const int order[NUM_STYLES][4] = {{0, 1, 2, 3}, {0, 2, 1, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 2, 1, 3}};
  nr_view v = {.dtype = dtype};
  int64_t extent = lies == STYLE_CHANNELS ? 3 : 1, first = 0;
  for (int i = 3; i >= 0; i--) {
    int axis = order[lies][i];
    v.stride[axis] = extent;
    extent *= shape[axis] ? shape[axis] : 1;
    extent += lies == STYLE_PADDED && i > 0 ? 2 * i + 1 : 0;
  }
  if (lies == STYLE_PADDED)
    first = 3, extent += 3;
  for (int axis = 1; axis < 3 && lies == STYLE_REVERSED; axis++) {
    first += v.stride[axis] * (shape[axis] ? shape[axis] - 1 : 0);
    v.stride[axis] = -v.stride[axis];
  }
  size_t size = nr_dtype_size(dtype);
  assert_true(f->num_tensors < MAX_TENSORS);
  tensor *t = &f->tensors[f->num_tensors++];
  *t = (tensor){.size = (size_t)extent * size, .dtype = dtype};
  t->block = guarded_alloc(t->size);
  t->before = malloc(t->size);
  for (int64_t i = 0; i < extent && filled != CONTENT_POISON; i++)
    nr_store(t->block, dtype, i, element(f, filled));
  memcpy(t->before, t->block, t->size);
  v.data = t->block + (size_t)first * size;
  return v;
}

static tensor *tensor_of(fixture *f, const nr_view *v) {
  for (int i = 0; i < f->num_tensors; i++)
    if ((unsigned char *)v->data >= f->tensors[i].block &&
        (unsigned char *)v->data < f->tensors[i].block + f->tensors[i].size)
      return &f->tensors[i];
  return NULL;
}

void fixture_shape(const nr_segment *s, const nr_field *field, int64_t shape[4]) {
  const nr_view *v = nr_view_at(s, field->offset);
  int64_t heads = s->norm && s->scope == NR_SCOPE_ALL_HEADS ? s->heads > 0 : s->heads;
  int64_t rope_dim = s->rope_dim ? s->rope_dim : s->dim;
  int64_t shapes[][4] = {
      [NR_SHAPE_ROWS] = {s->batch, s->length, s->heads, s->dim},
      [NR_SHAPE_STATISTICS] = {s->batch, s->length, heads, 1},
      [NR_SHAPE_PARAMETER] = {1, 1, v->stride[2] ? s->heads : 1, s->dim},
      [NR_SHAPE_TABLE] = {v->stride[0] ? s->batch : 1, s->rope_length, v->stride[2] ? s->heads : 1, rope_dim}};
  memcpy(shape, shapes[field->shape], sizeof shapes[0]);
}

static nr_view *view_in(nr_segment *s, const nr_field *field) { return (nr_view *)((char *)s + field->offset); }

static bool is_output(const fixture *f, const nr_segment *s, const nr_field *field) {
  return field->role[f->direction] == NR_OUTPUT && nr_view_at(s, field->offset)->data &&
         nr_field_used(s, f->direction, field);
}

void fixture_measure(fixture *f, nr_segment *segment) {
  (void)f;
  nr_segment copy = *segment;
  int64_t shape[4] = {copy.batch, copy.length, copy.heads, copy.dim};
  size_t elements = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]);
  double *y = malloc((elements + 1) * sizeof *y);
  copy.y = nr_view_bsnd(y, NR_F64, copy.length, copy.heads, copy.dim);
  copy.rope_width = 0;
  copy.weight = copy.bias = nr_view_channels(&(double[NR_MAX_DIM]){0}, NR_F64);
  nr_problem problem = nr_problem_default();
  problem.direction = NR_FORWARD, problem.backend = NR_BACKEND_REFERENCE;
  problem.segments = &copy, problem.num_segments = 1;
  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK || nr_plan_run(plan, NULL, NULL, 0, NULL) != NR_OK)
    fail_msg("reference forward: %s", nr_last_error());
  nr_plan_destroy(plan);
  free(y);
}

nr_segment *fixture_add(fixture *f, const stream *s) {
  assert_true(f->count < NR_MAX_SEGMENTS);
  nr_segment *g = &f->segments[f->count++];
  *g = nr_segment_default();
  g->batch = s->B, g->length = s->S, g->heads = s->N, g->dim = s->D;
  g->norm = s->norm, g->scope = s->scope;
  g->eps = s->eps != 0 ? s->eps : 1e-6;
  g->rope_width = s->width, g->rope_dim = s->rope_dim, g->rope_length = s->table_rows, g->rope_position = s->position;
  int64_t rows[] = {s->B, s->S, s->N, s->D};
  int64_t statistics[] = {s->B, s->S, s->norm && s->scope == NR_SCOPE_ALL_HEADS ? 1 : s->N, 1};
  int64_t parameter[] = {1, 1, s->weights_per_head ? s->N : 1, s->D};
  int64_t table[] = {s->tables_per_batch ? s->B : 1, s->table_rows, s->tables_per_head ? s->N : 1,
                     s->rope_dim ? s->rope_dim : s->D};
  for (int i = 0; i < NR_NUM_FIELDS; i++) {
    const nr_field *field = &nr_fields[i];
    nr_view *v = view_in(g, field);
    bool output = field->role[f->direction] == NR_OUTPUT, weight = field->offset == offsetof(nr_segment, weight);
    bool tables = field->shape == NR_SHAPE_TABLE, late = field->shape == NR_SHAPE_STATISTICS;
    if (field->role[f->direction] == NR_UNUSED || (output && tables && !s->wants_tables) ||
        (output && field->shape == NR_SHAPE_PARAMETER && s->no_gradients) || (tables && !s->width))
      continue;
    content filled = output || late ? CONTENT_POISON
                     : tables       ? CONTENT_TABLE
                     : weight       ? CONTENT_WEIGHT
                                    : CONTENT_NORMAL;
    bool joined = field->offset == offsetof(nr_segment, y) || field->offset == offsetof(nr_segment, grad_y);
    switch (field->shape) {
    case NR_SHAPE_ROWS: *v = fixture_view(f, s->rows, rows, joined ? s->y : s->x, filled); break;
    case NR_SHAPE_STATISTICS: *v = fixture_view(f, NR_F32, statistics, s->parameter, filled); break;
    case NR_SHAPE_PARAMETER: *v = fixture_view(f, s->parameters, parameter, s->parameter, filled); break;
    case NR_SHAPE_TABLE: *v = fixture_view(f, s->tables, table, s->parameter, filled); break;
    }
    if (field->shape == NR_SHAPE_PARAMETER && !s->weights_per_head)
      v->stride[2] = 0;
    if (tables && !s->tables_per_batch)
      v->stride[0] = 0;
    if (tables && !s->tables_per_head)
      v->stride[2] = 0;
  }
  if (s->mean != 0)
    for (int64_t b = 0; b < s->B; b++)
      for (int64_t p = 0; p < s->S; p++)
        for (int64_t n = 0; n < s->N; n++)
          for (int64_t d = 0; d < s->D; d++) {
            char *row = nr_row(&g->x, b, p, n);
            nr_store(row, s->rows, d * g->x.stride[3], s->mean + nr_load(row, s->rows, d * g->x.stride[3]));
          }
  if (f->direction == NR_BACKWARD && g->norm)
    fixture_measure(f, g);
  for (int i = 0; i < f->num_tensors; i++)
    memcpy(f->tensors[i].before, f->tensors[i].block, f->tensors[i].size);
  return g;
}

void fixture_poison(fixture *f) {
  for (int32_t i = 0; i < f->count; i++)
    for (int k = 0; k < NR_NUM_FIELDS; k++)
      if (is_output(f, &f->segments[i], &nr_fields[k])) {
        tensor *t = tensor_of(f, nr_view_at(&f->segments[i], nr_fields[k].offset));
        if (t)
          memset(t->block, POISON, t->size);
      }
  for (int i = 0; i < f->num_tensors; i++)
    memcpy(f->tensors[i].before, f->tensors[i].block, f->tensors[i].size);
}

static void run(const nr_problem *problem) {
  nr_plan *plan;
  if (nr_plan_create(&plan, problem) != NR_OK)
    fail_msg("nr_plan_create: %s", nr_last_error());
  size_t size = nr_plan_workspace_size(plan);
  void *workspace = guarded_alloc(size);
  if (nr_plan_run(plan, NULL, workspace, size, NULL) != NR_OK)
    fail_msg("nr_plan_run: %s", nr_last_error());
  assert_true(guarded_intact(workspace, size));
  guarded_free(workspace, size);
  nr_plan_destroy(plan);
}

/* With copies of all tensors in the device's memory. */
static void run_on_device(fixture *f) {
  device_block blocks[MAX_TENSORS];
  nr_segment segments[NR_MAX_SEGMENTS];
  for (int i = 0; i < f->num_tensors; i++)
    blocks[i] = device_copy_of(f->tensors[i].block, f->tensors[i].size);
  for (int32_t i = 0; i < f->count; i++) {
    segments[i] = f->segments[i];
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      nr_view *v = view_in(&segments[i], &nr_fields[k]);
      tensor *t = v->data ? tensor_of(f, v) : NULL;
      if (t)
        v->data = (char *)blocks[t - f->tensors].data + ((unsigned char *)v->data - t->block);
    }
  }
  nr_problem problem = nr_problem_default();
  problem.direction = f->direction, problem.segments = segments, problem.num_segments = f->count;
  if (device_run(&problem) != NR_OK)
    fail_msg("on the device: %s", nr_last_error());
  for (int i = 0; i < f->num_tensors; i++) {
    device_read(f->tensors[i].block, &blocks[i]);
    device_free(&blocks[i]);
  }
}

void fixture_run(fixture *f, const char *isa, int32_t threads) {
  if (device_is_cuda()) {
    run_on_device(f);
    return;
  }
  nr_problem problem = nr_problem_default();
  problem.direction = f->direction, problem.segments = f->segments, problem.num_segments = f->count;
  problem.isa = isa, problem.num_threads = threads;
  run(&problem);
}

/* The spacing of the dtype's numbers at a value. */
static double spacing(nr_dtype dtype, double value) {
  static const struct {
    int digits, least;
  } of[] = {[NR_F32] = {23, -126}, [NR_F16] = {10, -14}, [NR_BF16] = {7, -126}};
  int exponent = value == 0 || !isfinite(value) ? of[dtype].least : ilogb(value);
  return ldexp(1, (exponent < of[dtype].least ? of[dtype].least : exponent) - of[dtype].digits);
}

typedef struct oracle {
  nr_segment exact[NR_MAX_SEGMENTS], magnitude[NR_MAX_SEGMENTS];
  double *buffers[2 * NR_MAX_SEGMENTS * NR_NUM_FIELDS];
  int num_buffers;
} oracle;

/* The segments with float64 outputs of the same sharing, run on a reference backend. The fixture's inputs as they were
   before the run: outputs may have been written over them. */
static void consult(fixture *f, oracle *o, nr_segment *segments, nr_backend backend) {
  for (int32_t i = 0; i < f->count; i++) {
    segments[i] = f->segments[i];
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_field *field = &nr_fields[k];
      nr_view *v = view_in(&segments[i], field);
      tensor *t = v->data ? tensor_of(f, v) : NULL;
      if (!is_output(f, &f->segments[i], field)) {
        if (t)
          v->data = t->before + ((unsigned char *)v->data - t->block);
        continue;
      }
      int64_t shape[4], stride = 1;
      fixture_shape(&f->segments[i], field, shape);
      for (int axis = 3; axis >= 0; axis--) {
        v->stride[axis] = v->stride[axis] || axis == 3 ? stride : 0;
        stride *= v->stride[axis] && shape[axis] ? shape[axis] : 1;
      }
      void *shared = NULL;
      for (int32_t j = 0; j < i && field->primal; j++) {
        int64_t other[4];
        fixture_shape(&f->segments[j], field, other);
        if (nr_shared(nr_view_at(&f->segments[j], field->offset), nr_view_at(&f->segments[i], field->offset)) &&
            memcmp(shape, other, sizeof shape) == 0)
          shared = view_in(&segments[j], field)->data;
      }
      v->dtype = NR_F64;
      v->data = shared ? shared : (o->buffers[o->num_buffers++] = calloc((size_t)stride + 1, sizeof(double)));
    }
  }
  nr_problem problem = nr_problem_default();
  problem.direction = f->direction, problem.backend = backend;
  problem.segments = segments, problem.num_segments = f->count;
  run(&problem);
}

static double at(const nr_view *v, const int64_t i[4]) {
  return nr_load(nr_row(v, i[0], i[1], i[2]), v->dtype, i[3] * v->stride[3]);
}

/* One output element: within its bound, or of the same class where it is not finite. */
static void check_element(const nr_view *got, const nr_view *exact, const int64_t i[4], double slack, double ulps,
                          const nr_field *field, int32_t segment, const char *what) {
  double found = at(got, i), expected = at(exact, i), limit = ldexp(1, got->dtype == NR_F16 ? 16 : 128);
  double bound = ulps * spacing(got->dtype, expected) + slack;
  bool ok;
  if (isfinite(expected) && isfinite(found)) {
    double error = fabs(found - expected) / bound;
    worst = error > worst ? error : worst;
    ok = error <= 1;
  } else {
    ok = (isnan(expected) && isnan(found)) || expected == found ||
         (isinf(found) && signbit(found) == signbit(expected) && fabs(expected) + bound >= limit * (1 - 0x1p-9));
  }
  if (!ok)
    fail_msg("%s: segment %" PRId32 " %s[%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
             "] is %.9g, expected %.9g +- %.3g",
             what, segment, field->name, i[0], i[1], i[2], i[3], found, expected, bound);
}

/* The mean of the magnitudes that the mean at [b, s, n] is of. */
static double mean_magnitude(const nr_segment *s, int64_t b, int64_t position, int64_t n) {
  int64_t heads = nr_group_heads(s), i[4] = {b, position, 0, 0};
  double sum = 0;
  for (i[2] = n * heads; i[2] < (n + 1) * heads; i[2]++)
    for (i[3] = 0; i[3] < s->dim; i[3]++)
      sum += fabs(at(&s->x, i));
  return isfinite(sum) ? sum / (double)(heads * s->dim) : 0;
}

static void check_output(fixture *f, const oracle *o, int32_t segment, const nr_field *field, const char *what) {
  const nr_view *got = nr_view_at(&f->segments[segment], field->offset);
  const nr_view *exact = nr_view_at(&o->exact[segment], field->offset);
  const nr_view *magnitude = nr_view_at(&o->magnitude[segment], field->offset);
  double roundings = f->direction == NR_BACKWARD && field->shape == NR_SHAPE_ROWS ? 3 : 4;
  int64_t shape[4], i[4];
  fixture_shape(&f->segments[segment], field, shape);
  for (i[0] = 0; i[0] < shape[0]; i[0]++)
    for (i[1] = 0; i[1] < shape[1]; i[1]++)
      for (i[2] = 0; i[2] < shape[2]; i[2]++) {
        double largest = 0;
        for (i[3] = 0; i[3] < shape[3]; i[3]++)
          largest = fmax(largest, at(magnitude, i));
        for (i[3] = 0; i[3] < shape[3]; i[3]++)
          if (field->shape == NR_SHAPE_STATISTICS)
            check_element(got, exact, i,
                          field->offset == offsetof(nr_segment, mean)
                              ? 2 * 0x1p-24 * mean_magnitude(&f->segments[segment], i[0], i[1], i[2])
                              : 0,
                          2, field, segment, what);
          else
            check_element(got, exact, i,
                          0x1p-149 + roundings * 0x1p-24 * (field->shape == NR_SHAPE_ROWS ? largest : at(magnitude, i)),
                          0.5, field, segment, what);
      }
}

/* Bytes of the blocks that no output element owns are as before. */
static void check_gaps(fixture *f, const char *what) {
  unsigned char *owned[MAX_TENSORS] = {0};
  for (int32_t s = 0; s < f->count; s++)
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_view *v = nr_view_at(&f->segments[s], nr_fields[k].offset);
      tensor *t = is_output(f, &f->segments[s], &nr_fields[k]) ? tensor_of(f, v) : NULL;
      if (!t)
        continue;
      unsigned char **mask = &owned[t - f->tensors];
      *mask = *mask ? *mask : calloc(t->size + 1, 1);
      int64_t shape[4];
      size_t size = nr_dtype_size(v->dtype);
      fixture_shape(&f->segments[s], &nr_fields[k], shape);
      for (int64_t b = 0; b < shape[0]; b++)
        for (int64_t p = 0; p < shape[1]; p++)
          for (int64_t n = 0; n < shape[2]; n++)
            for (int64_t d = 0; d < shape[3]; d++)
              memset(*mask + (nr_row(v, b, p, n) - (char *)t->block) + d * v->stride[3] * (int64_t)size, 1, size);
    }
  for (int i = 0; i < f->num_tensors; i++) {
    const tensor *t = &f->tensors[i];
    for (size_t byte = 0; byte < t->size; byte++)
      if (t->block[byte] != t->before[byte] && !(owned[i] && owned[i][byte]))
        fail_msg("%s: byte %zu of tensor %d (%s) was written", what, byte, i, nr_dtype_name(t->dtype));
    if (!guarded_intact(t->block, t->size))
      fail_msg("%s: written in front of tensor %d", what, i);
    free(owned[i]);
  }
}

void fixture_check(fixture *f, const char *what) {
  oracle *o = calloc(1, sizeof *o);
  consult(f, o, o->exact, NR_BACKEND_REFERENCE);
  consult(f, o, o->magnitude, NR_BACKEND_MAGNITUDE);
  for (int32_t i = 0; i < f->count; i++)
    for (int k = 0; k < NR_NUM_FIELDS; k++)
      if (is_output(f, &f->segments[i], &nr_fields[k]))
        check_output(f, o, i, &nr_fields[k], what);
  check_gaps(f, what);
  for (int i = 0; i < o->num_buffers; i++)
    free(o->buffers[i]);
  free(o);
}

void fixture_try(fixture *f, const char *isa, int32_t threads, const char *what) {
  fixture_poison(f);
  fixture_run(f, isa, threads);
  fixture_check(f, what);
}

uint64_t fixture_digest(fixture *f) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int32_t i = 0; i < f->count; i++)
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_view *v = nr_view_at(&f->segments[i], nr_fields[k].offset);
      const tensor *t = is_output(f, &f->segments[i], &nr_fields[k]) ? tensor_of(f, v) : NULL;
      for (size_t byte = 0; t && byte < t->size; byte++)
        hash = (hash ^ t->block[byte]) * 0x100000001b3u;
    }
  return hash;
}
