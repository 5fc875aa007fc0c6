/* Every refusal of the native interface: its status, its text (parameter, found, expected), and not one byte changed.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/runtime.h"
#include "normrope.h"

enum { B = 2, S = 4, N = 3, D = 8, ROWS = B * S * N * D };

/* Memory of a correct problem, two streams that share weight and tables. `m` spoils one thing of it at a time. */
typedef struct memory {
  float x[2][ROWS], y[2][ROWS], grad_x[2][ROWS], grad_y[2][ROWS], mean[2][B * S * N], rstd[2][B * S * N];
  float weight[D], bias[D], cos[S * D], sin[S * D], grad_weight[D], grad_bias[D], grad_cos[S * D], grad_sin[S * D];
  float spare[2 * ROWS];
} memory;

static memory m;
static nr_segment segments[2], *q = &segments[0], *k = &segments[1];
static nr_problem problem;

static void start(nr_direction direction) {
  memset(&m, 0x3c, sizeof m);
  problem = nr_problem_default();
  problem.direction = direction, problem.segments = segments, problem.num_segments = 2;
  for (int i = 0; i < 2; i++) {
    nr_segment *s = &segments[i];
    *s = nr_segment_default();
    s->name = i ? NULL : "q";
    s->batch = B, s->length = S, s->heads = N, s->dim = D;
    s->norm = NR_NORM_LAYER_AFFINE, s->rope_width = 2, s->rope_length = S;
    s->x = nr_view_bsnd(m.x[i], NR_F32, S, N, D), s->y = nr_view_bnsd(m.y[i], NR_F32, S, N, D);
    s->grad_x = nr_view_bsnd(m.grad_x[i], NR_F32, S, N, D), s->grad_y = nr_view_bnsd(m.grad_y[i], NR_F32, S, N, D);
    s->mean = nr_view_statistics(m.mean[i], NR_F32, S, N), s->rstd = nr_view_statistics(m.rstd[i], NR_F32, S, N);
    s->weight = nr_view_channels(m.weight, NR_F32), s->grad_weight = nr_view_channels(m.grad_weight, NR_F32);
    s->bias = nr_view_channels(m.bias, NR_F32), s->grad_bias = nr_view_channels(m.grad_bias, NR_F32);
    s->cos = nr_view_table(m.cos, NR_F32, D), s->grad_cos = nr_view_table(m.grad_cos, NR_F32, D);
    s->sin = nr_view_table(m.sin, NR_F32, D), s->grad_sin = nr_view_table(m.grad_sin, NR_F32, D);
  }
}

/* The text of the last error has all the parts, in this order; they are set apart by '|'. */
static void expect_text(const char *parts) {
  char part[200];
  for (const char *at = nr_last_error(); *parts;) {
    size_t length = strcspn(parts, "|");
    snprintf(part, sizeof part, "%.*s", (int)length, parts);
    const char *found = strstr(at, part);
    if (!found)
      fail_msg("\"%s\": expected \"%s\"", nr_last_error(), part);
    at = found + length;
    parts += length + (parts[length] == '|');
  }
}

static void expect_refusal(nr_status expected, const char *parts) {
  static memory before;
  memcpy(&before, &m, sizeof m);
  nr_plan *plan = (nr_plan *)&m;
  nr_status status = nr_plan_create(&plan, &problem);
  if (status != expected)
    fail_msg("%s, expected %s with \"%s\"", nr_status_name(status), nr_status_name(expected), parts);
  assert_null(plan);
  expect_text(parts);
  assert_memory_equal(&m, &before, sizeof m);
}

/* A correct problem of that direction, spoilt by the last argument, is refused. */
#define REFUSED(direction, status, text, ...)                                                                          \
  do {                                                                                                                 \
    start(NR_##direction);                                                                                             \
    __VA_ARGS__;                                                                                                       \
    expect_refusal(NR_ERROR_##status, text);                                                                           \
  } while (0)

/* The same, and it is not. */
#define TAKEN(direction, ...)                                                                                          \
  do {                                                                                                                 \
    start(NR_##direction);                                                                                             \
    __VA_ARGS__;                                                                                                       \
    run_all();                                                                                                         \
  } while (0)

static void run_all(void) {
  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK)
    fail_msg("%s", nr_last_error());
  size_t size = nr_plan_workspace_size(plan);
  void *workspace = malloc(size + 1);
  assert_int_equal(nr_plan_run(plan, NULL, workspace, size, NULL), NR_OK);
  free(workspace);
  nr_plan_destroy(plan);
}

static void nulls(void **state) {
  (void)state;
  nr_plan *plan;
  start(NR_BACKWARD);
  assert_int_equal(nr_plan_create(NULL, &problem), NR_ERROR_NULL);
  expect_text("plan: null");
  assert_int_equal(nr_plan_create(&plan, NULL), NR_ERROR_NULL);
  expect_text("problem: null");
  assert_null(plan);
  assert_int_equal(nr_plan_run(NULL, NULL, NULL, 0, NULL), NR_ERROR_NULL);
  expect_text("plan: null");
  assert_int_equal(nr_plan_workspace_size(NULL), 0);
  nr_plan_destroy(NULL);
  REFUSED(BACKWARD, NULL, "problem: segments is null", problem.segments = NULL);
  REFUSED(FORWARD, NULL, "q.x: null, required by the forward (NR_FORWARD)", q->x.data = NULL);
  REFUSED(FORWARD, NULL, "segment 1.y: null, required by the forward (NR_FORWARD)", k->y.data = NULL);
  REFUSED(FORWARD, NULL, "q.weight: null, required by NR_NORM_LAYER_AFFINE in the forward (NR_FORWARD)",
          q->weight.data = NULL);
  REFUSED(FORWARD, NULL, "q.bias: null", q->bias.data = NULL);
  REFUSED(FORWARD, NULL, "q.cos: null, required by rope_width in the forward", q->cos.data = NULL);
  REFUSED(FORWARD, NULL, "the sines: null", q->sin = (nr_view){.name = "the sines"});
  REFUSED(BACKWARD, NULL, "segment 1.grad_y: null, required by the backward (NR_BACKWARD)", k->grad_y.data = NULL);
  REFUSED(BACKWARD, NULL, "q.x: null", q->x.data = NULL);
  REFUSED(BACKWARD, NULL, "q.mean: null", q->mean.data = NULL);
  REFUSED(BACKWARD, NULL, "q.rstd: null, required by NR_NORM_RMS_AFFINE in the backward (NR_BACKWARD)",
          q->norm = NR_NORM_RMS_AFFINE, q->rstd.data = NULL);
  REFUSED(BACKWARD, NULL, "q.sin: null, required by rope_width in the backward", q->sin.data = NULL);
  REFUSED(BACKWARD, NULL, "q.weight: null|NR_NORM_LAYER_AFFINE", q->weight.data = NULL);
  REFUSED(BACKWARD, NULL, "q.bias: null", q->bias.data = NULL); /* for the tables' gradients */
  TAKEN(BACKWARD, q->bias.data = q->grad_cos.data = q->grad_sin.data = NULL);
  TAKEN(FORWARD, q->mean.data = q->rstd.data = NULL);
  TAKEN(BACKWARD, q->norm = NR_NORM_RMS, q->mean.data = q->weight.data = q->bias.data = NULL);
  TAKEN(BACKWARD, q->norm = NR_NORM_NONE, q->x.data = q->rstd.data = NULL, q->grad_cos.data = q->grad_sin.data = NULL);
  TAKEN(FORWARD, q->rope_length = 0, q->cos.data = q->sin.data = NULL);
  TAKEN(FORWARD, q->length = 0, q->x.data = q->y.data = q->weight.data = q->cos.data = NULL);
  TAKEN(BACKWARD, problem.num_segments = 0, problem.segments = NULL);
}

static void attributes(void **state) {
  (void)state;
  REFUSED(FORWARD, INVALID, "problem: direction 2, expected NR_FORWARD or NR_BACKWARD",
          problem.direction = (nr_direction)2);
  REFUSED(FORWARD, INVALID, "problem: direction -1", problem.direction = (nr_direction)-1);
  REFUSED(FORWARD, INVALID,
          "problem: backend 4, expected NR_BACKEND_CPU, NR_BACKEND_REFERENCE, NR_BACKEND_MAGNITUDE or NR_BACKEND_CUDA",
          problem.backend = (nr_backend)4);
  if (nr_cuda_count() == 0)
    REFUSED(BACKWARD, UNSUPPORTED, "cuda: ", problem.backend = NR_BACKEND_CUDA);
  REFUSED(FORWARD, INVALID, "num_segments -1, expected 0 to 64", problem.num_segments = -1);
  REFUSED(FORWARD, INVALID, "num_segments 65, expected 0 to 64", problem.num_segments = 65);
  REFUSED(FORWARD, INVALID, "num_threads -1", problem.num_threads = -1);
  REFUSED(FORWARD, INVALID, "isa: \"sse\"|nr_isa()", problem.isa = "sse");
  REFUSED(FORWARD, INVALID, "isa: \"\"", problem.isa = "");
  REFUSED(FORWARD, INVALID, "q: batch -1, length 4, heads 3", q->batch = -1);
  REFUSED(FORWARD, INVALID, "segment 1: batch 2, length -4", k->length = -4);
  REFUSED(FORWARD, INVALID, "q: batch 2, length 4, heads -9", q->heads = -9);
  REFUSED(FORWARD, INVALID, "q: dim 7, expected an even number from 2 to 1024", q->dim = 7);
  REFUSED(FORWARD, INVALID, "q: dim 0,", q->dim = 0);
  REFUSED(FORWARD, INVALID, "q: dim 1026,", q->dim = 1026);
  REFUSED(FORWARD, INVALID, "q: dim -2,", q->dim = -2);
  REFUSED(FORWARD, INVALID, "too large", q->batch = q->length = INT64_MAX / 2);
  REFUSED(FORWARD, INVALID, "too large", q->batch = INT64_C(1) << 50, q->length = 1);
  REFUSED(FORWARD, INVALID,
          "q: norm 5, expected NR_NORM_NONE, NR_NORM_LAYER, NR_NORM_LAYER_AFFINE, NR_NORM_RMS or NR_NORM_RMS_AFFINE",
          q->norm = (nr_norm)5);
  REFUSED(FORWARD, INVALID, "q: norm -1", q->norm = (nr_norm)-1);
  REFUSED(FORWARD, INVALID, "q: scope 2, expected NR_SCOPE_HEAD or NR_SCOPE_ALL_HEADS", q->scope = (nr_scope)2);
  REFUSED(FORWARD, INVALID, "q: eps -1e-06", q->eps = -1e-6);
  REFUSED(FORWARD, INVALID, "q: eps inf", q->eps = INFINITY);
  REFUSED(FORWARD, INVALID, "eps", q->eps = NAN);
  REFUSED(FORWARD, INVALID, "q: rope_dim 10, expected an even number from 2 to dim 8", q->rope_dim = 10);
  REFUSED(FORWARD, INVALID, "q: rope_dim 3", q->rope_dim = 3);
  REFUSED(FORWARD, INVALID, "q: rope_dim -2", q->rope_dim = -2);
  REFUSED(FORWARD, INVALID, "q: rope_width 3, expected an even divisor of rope_dim 8", q->rope_width = 3);
  REFUSED(FORWARD, INVALID, "q: rope_width 6", q->rope_width = 6);
  REFUSED(FORWARD, INVALID, "q: rope_width -2", q->rope_width = -2);
  REFUSED(FORWARD, INVALID, "q: rope_width 16", q->rope_width = 16);
  REFUSED(FORWARD, INVALID, "q: rope_length -1", q->rope_length = -1);
  REFUSED(FORWARD, INVALID, "q: rope_position", q->rope_position = INT64_MIN);
  REFUSED(FORWARD, INVALID, "q: rope_position", q->rope_position = INT64_MAX);
  /* Without rope they say nothing, unless a table's gradient is to be filled with zeros. */
  TAKEN(FORWARD, q->rope_width = 0, q->rope_dim = 5000, q->rope_length = -7);
  REFUSED(BACKWARD, INVALID, "q: rope_dim 5000", q->rope_width = 0, q->rope_dim = 5000);
  REFUSED(BACKWARD, INVALID, "q: rope_length -7", q->rope_width = 0, q->rope_length = -7);
}

static void dtypes(void **state) {
  (void)state;
  REFUSED(FORWARD, INVALID, "q.x: dtype 4, expected NR_F32, NR_F16, NR_BF16 or NR_F64", q->x.dtype = (nr_dtype)4);
  REFUSED(FORWARD, INVALID, "q.weight: dtype -1", q->weight.dtype = (nr_dtype)-1);
  REFUSED(FORWARD, UNSUPPORTED, "q.x: float64|reference", q->x.dtype = NR_F64);
  REFUSED(BACKWARD, UNSUPPORTED, "q.grad_weight: float64", q->grad_weight.dtype = NR_F64);
  REFUSED(FORWARD, UNSUPPORTED, "q.y: bfloat16, expected float32", q->y.dtype = NR_BF16);
  REFUSED(BACKWARD, UNSUPPORTED, "q.grad_x: float16, expected float32", q->grad_x.dtype = NR_F16);
  REFUSED(BACKWARD, UNSUPPORTED, "q.mean: float16, expected float32 statistics", q->mean.dtype = NR_F16);
  REFUSED(FORWARD, UNSUPPORTED, "q.rstd: bfloat16", q->rstd.dtype = NR_BF16);
  REFUSED(FORWARD, INVALID, "q.bias: address|, expected a multiple of 4, the size of a float32",
          q->bias.data = (char *)m.bias + 2);
  REFUSED(BACKWARD, INVALID, "q.grad_x: address|multiple of 4", q->grad_x.data = (char *)m.grad_x + 1);
  TAKEN(FORWARD, q->cos.dtype = NR_BF16, k->weight.dtype = NR_F16, k->bias.dtype = NR_BF16);
  TAKEN(FORWARD, q->y.dtype = NR_F16, problem.backend = NR_BACKEND_REFERENCE);
  TAKEN(FORWARD, q->grad_x.dtype = (nr_dtype)77, q->grad_x.data = (void *)1); /* nobody looks at it */
}

static void strides_and_overlaps(void **state) {
  (void)state;
  REFUSED(FORWARD, INVALID, "q.y: an output that overlaps itself: shape [2,4,3,8]", q->y.stride[2] = 0);
  REFUSED(BACKWARD, INVALID, "q.grad_x: an output that overlaps itself", q->grad_x.stride[1] = D);
  REFUSED(BACKWARD, INVALID, "q.grad_cos: an output that overlaps itself", q->grad_cos.stride[1] = 0);
  REFUSED(FORWARD, INVALID, "q.x: stride|too large", q->x.stride[0] = INT64_MAX / 2);
  REFUSED(FORWARD, INVALID, "q.x: its strides leave the address space", q->x.stride[0] = INT64_MAX / 8);
  REFUSED(FORWARD, INVALID, "q.x: its strides leave the address space", q->x.stride[0] = -(INT64_C(1) << 48));
  REFUSED(FORWARD, INVALID, "q.y: overlaps segment 1.y", k->y.data = m.y[0]);
  REFUSED(FORWARD, INVALID, "q.y: overlaps segment 1.x", k->x.data = m.y[0] + ROWS - 1);
  REFUSED(FORWARD, INVALID, "q.y: overlaps q.x", q->y.data = m.x[0]); /* another layout */
  REFUSED(FORWARD, INVALID, "q.y: overlaps q.x", q->y = q->x, q->y.data = m.x[0] + 1);
  REFUSED(FORWARD, INVALID, "q.y: overlaps q.weight", q->weight.data = &m.y[0][5]);
  REFUSED(FORWARD, INVALID, "segment 1.rstd: overlaps q.bias|expected outputs that share no memory",
          q->bias.data = m.rstd[1]);
  REFUSED(FORWARD, INVALID, "q.mean: overlaps q.rstd", q->rstd.data = m.mean[0]);
  REFUSED(BACKWARD, INVALID, "q.grad_x: overlaps segment 1.grad_y", q->grad_x = k->grad_y);
  REFUSED(BACKWARD, INVALID, "q.grad_weight: overlaps q.grad_bias", q->grad_bias.data = m.grad_weight);
  REFUSED(BACKWARD, INVALID, "q.grad_weight: overlaps segment 1.grad_weight", q->grad_weight.data = m.spare,
          k->grad_weight.data = m.spare + 1);
  REFUSED(BACKWARD, INVALID, "q.grad_weight: overlaps segment 1.grad_weight", q->grad_weight.data = m.spare,
          k->grad_weight.data = m.spare, k->grad_weight.dtype = NR_BF16);
  REFUSED(BACKWARD, INVALID, "q.grad_weight: overlaps q.weight", q->weight.data = m.grad_weight);
  REFUSED(BACKWARD, INVALID, "q.grad_weight: expected a stride of 0 on the axes where weight has one",
          q->weight.stride[2] = D);
  REFUSED(BACKWARD, INVALID, "q.grad_sin: expected a stride of 0 on the axes where sin has one",
          q->grad_sin.stride[0] = S * D);
  TAKEN(FORWARD, q->y = q->x);
  TAKEN(BACKWARD, q->grad_x = q->grad_y);
  TAKEN(BACKWARD, q->grad_x = q->x, k->grad_x = k->grad_y);
  TAKEN(FORWARD, q->length = 0, q->y.data = m.x[0]); /* no element, no overlap */
  TAKEN(FORWARD, q->heads = 0, q->scope = NR_SCOPE_ALL_HEADS, q->rstd.stride[0] = 0);
  TAKEN(FORWARD, for (int axis = 0; axis < 2; axis++) q->weight.stride[axis] = INT64_MAX); /* not axes of a weight */
  TAKEN(FORWARD, q->batch = 1, q->x.stride[0] = INT64_MIN);
}

/* A larger descriptor whose new fields are zero is one of today's; a set one asks for what nobody here can do. */
static void descriptor_sizes(void **state) {
  (void)state;
  static struct {
    nr_problem known;
    int64_t future[4];
  } larger_problem;
  static struct {
    nr_segment known;
    int64_t future[2];
  } larger[2];
  nr_plan *plan;
  REFUSED(FORWARD, INVALID, "problem: struct_size 0, expected", problem.struct_size = 0);
  REFUSED(FORWARD, INVALID, "problem: struct_size", problem.struct_size--);
  REFUSED(FORWARD, INVALID, "problem: struct_size", problem.struct_size = SIZE_MAX);
  REFUSED(FORWARD, INVALID, "segment 0: struct_size 0, expected", q->struct_size = 0);
  REFUSED(FORWARD, INVALID, "segment 0: struct_size", q->struct_size -= 8);
  REFUSED(FORWARD, INVALID, "segment 0: struct_size", q->struct_size = SIZE_MAX);
  REFUSED(FORWARD, INVALID, "segment 0: struct_size", q->struct_size += 4); /* where would the next one lie? */
  REFUSED(FORWARD, INVALID, "segment 1: struct_size", k->struct_size += 8);
  start(NR_FORWARD);
  for (int i = 0; i < 2; i++) {
    larger[i].known = segments[i];
    larger[i].known.struct_size = sizeof larger[0];
  }
  larger_problem.known = problem;
  larger_problem.known.struct_size = sizeof larger_problem;
  larger_problem.known.segments = &larger[0].known;
  assert_int_equal(nr_plan_create(&plan, &larger_problem.known), NR_OK);
  assert_int_equal(nr_plan_run(plan, &larger[0].known, NULL, 0, NULL), NR_OK);
  assert_int_equal(nr_plan_run(plan, segments, NULL, 0, NULL), NR_OK); /* and the sizes need not agree */
  larger[1].future[1] = 1;
  assert_int_equal(nr_plan_run(plan, &larger[0].known, NULL, 0, NULL), NR_ERROR_UNSUPPORTED);
  nr_plan_destroy(plan);
  assert_int_equal(nr_plan_create(&plan, &larger_problem.known), NR_ERROR_UNSUPPORTED);
  expect_text("segment 1: uses a field that version 0.1.0 does not know");
  larger[1].future[1] = 0;
  larger_problem.future[3] = INT64_MIN;
  assert_int_equal(nr_plan_create(&plan, &larger_problem.known), NR_ERROR_UNSUPPORTED);
  expect_text("problem: uses a field that version");
}

static nr_plan *the_plan;
static void *workspace;
static size_t workspace_size;

static void expect_run(nr_status expected, const char *parts) {
  static memory before;
  memcpy(&before, &m, sizeof m);
  nr_status status = nr_plan_run(the_plan, segments, workspace, workspace_size, NULL);
  if (status != expected)
    fail_msg("%s, expected %s with \"%s\"", nr_status_name(status), nr_status_name(expected), parts);
  if (status != NR_OK) {
    expect_text(parts);
    assert_memory_equal(&m, &before, sizeof m);
  }
}

/* A plan of the correct problem, run with other addresses and whatever the last argument spoils. */
#define RUN(direction, status, text, ...)                                                                              \
  do {                                                                                                                 \
    start(NR_##direction);                                                                                             \
    assert_int_equal(nr_plan_create(&the_plan, &problem), NR_OK);                                                      \
    workspace_size = nr_plan_workspace_size(the_plan);                                                                 \
    workspace = malloc(workspace_size + 1);                                                                            \
    __VA_ARGS__;                                                                                                       \
    expect_run(status, text);                                                                                          \
    free(workspace);                                                                                                   \
    nr_plan_destroy(the_plan);                                                                                         \
  } while (0)

static void rebinding(void **state) {
  (void)state;
  RUN(FORWARD, NR_OK, "", q->y.data = m.spare);
  RUN(BACKWARD, NR_OK, "", q->grad_weight.data = k->grad_weight.data = m.spare, q->name = "another");
  RUN(FORWARD, NR_OK, "", q->grad_x.data = NULL, q->grad_weight.stride[3] = 5); /* backward's business */
  RUN(FORWARD, NR_OK, "", q->rope_dim = D);                                     /* which is what 0 means */
  RUN(FORWARD, NR_ERROR_INVALID, "segment 1: differs from the planned one in more than addresses", k->length--);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0: differs", q->eps = 1);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0: differs", q->norm = NR_NORM_RMS_AFFINE);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0: differs", q->rope_position = 1);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0.x: other strides or dtype", q->x.stride[1]++);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0.cos: other strides or dtype", q->cos.dtype = NR_F16);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0.rstd: absent, unlike", q->rstd.data = NULL);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 1.x: absent, unlike", k->x.data = NULL);
  RUN(FORWARD, NR_ERROR_INVALID, "q.y: overlaps segment 1.y", q->y.data = m.y[1]);
  RUN(FORWARD, NR_ERROR_INVALID, "q.y: overlaps q.x", q->y.data = m.x[0]);
  RUN(FORWARD, NR_ERROR_INVALID, "q.sin: address|multiple of 4", q->sin.data = (char *)m.sin + 1);
  RUN(BACKWARD, NR_ERROR_INVALID, "segments 0 and 1: share grad_weight now or when planned, but not both",
      q->grad_weight.data = m.spare);
  RUN(BACKWARD, NR_ERROR_INVALID, "segments 0 and 1: share grad_sin", k->grad_sin.data = m.spare);
  RUN(FORWARD, NR_ERROR_INVALID, "segment 0: struct_size", q->struct_size = 3);
}

static void workspaces_and_streams(void **state) {
  (void)state;
  memory *before = malloc(sizeof m);
  start(NR_BACKWARD);
  assert_int_equal(nr_plan_create(&the_plan, &problem), NR_OK);
  size_t size = nr_plan_workspace_size(the_plan);
  char *space = malloc(size + 8);
  assert_true(size > 0);
  memcpy(before, &m, sizeof m);
  assert_int_equal(nr_plan_run(the_plan, NULL, NULL, size, NULL), NR_ERROR_NULL);
  expect_text("workspace: null, expected |bytes");
  assert_int_equal(nr_plan_run(the_plan, NULL, space, size - 1, NULL), NR_ERROR_INVALID);
  expect_text("workspace: | bytes, expected at least");
  assert_int_equal(nr_plan_run(the_plan, NULL, space + 4, size, NULL), NR_ERROR_INVALID);
  expect_text("workspace: address |, expected a multiple of 8");
  assert_int_equal(nr_plan_run(the_plan, NULL, space, size, space), NR_ERROR_INVALID);
  expect_text("stream: |, expected null on the cpu backend");
  assert_memory_equal(before, &m, sizeof m);
  assert_int_equal(nr_plan_run(the_plan, NULL, space + 8, size, NULL), NR_OK);
  nr_plan_destroy(the_plan);
  free(space);
  free(before);
}

static void names_and_numbers(void **state) {
  (void)state;
  assert_string_equal(nr_status_name(NR_ERROR_INVALID), "NR_ERROR_INVALID");
  assert_string_equal(nr_status_name((nr_status)77), "unknown status");
  static const size_t sizes[] = {4, 2, 2, 8, 0};
  static const char *const names[] = {"float32", "float16", "bfloat16", "float64"};
  for (int i = 0; i < 5; i++) {
    assert_int_equal(nr_dtype_size((nr_dtype)i), sizes[i]);
    if (i < 4)
      assert_string_equal(nr_dtype_name((nr_dtype)i), names[i]);
  }
  assert_null(nr_dtype_name((nr_dtype)4));
  assert_int_equal(nr_dtype_size((nr_dtype)-1), 0);
  assert_null(nr_isa(-1));
  assert_null(nr_isa(1000));
  assert_false(nr_isa_usable("abacus") || nr_isa_usable(NULL));
  assert_string_equal(nr_version(), "0.1.0");
}

/* What this program, started anew with these variables, says of its defaults. */
static void expect_environment(const char *variables, const char *parts) {
  char command[512], answer[1000];
  snprintf(command, sizeof command, "env -u NORMROPE_ISA -u NORMROPE_NUM_THREADS -u NORMROPE_VERBOSE %s %s 2>&1",
           variables, "$NORMROPE_EMULATOR \"$NR_TEST_SELF\" environment");
  FILE *pipe = popen(command, "r");
  assert_non_null(pipe);
  answer[fread(answer, 1, sizeof answer - 1, pipe)] = 0;
  assert_int_equal(pclose(pipe), 0);
  for (const char *part = parts; part; part = strchr(part, '|') ? strchr(part, '|') + 1 : NULL) {
    char wanted[120];
    snprintf(wanted, sizeof wanted, "%.*s", (int)strcspn(part, "|"), part);
    if (!strstr(answer, wanted))
      fail_msg("%s: \"%s\", expected \"%s\"", variables, answer, wanted);
  }
}

static int answer_environment(void) {
  start(NR_FORWARD);
  nr_plan *plan;
  problem.num_segments = -5;
  nr_plan_create(&plan, &problem);
  start(NR_FORWARD);
  if (nr_plan_create(&plan, &problem) != NR_OK || nr_plan_run(plan, NULL, NULL, 0, NULL) != NR_OK)
    return 1;
  nr_plan_destroy(plan);
  printf("isa %s\nthreads %d\n", nr_isa_default(), (int)nr_default_threads());
  return 0;
}

static void environment(void **state) {
  (void)state;
  char best[40] = "isa ";
  for (int32_t i = 0; nr_isa(i); i++)
    if (nr_isa_usable(nr_isa(i)))
      snprintf(best, sizeof best, "isa %s\n", nr_isa(i));
  expect_environment("", best);
  expect_environment("NORMROPE_ISA=scalar", "isa scalar\n");
  expect_environment("NORMROPE_ISA=", best);
  expect_environment("NORMROPE_ISA=abacus", best);
  expect_environment("NORMROPE_ISA=abacus NORMROPE_VERBOSE=error", "normrope: NORMROPE_ISA=abacus: unknown; using");
  expect_environment("OMP_NUM_THREADS=5", "threads 5\n");
  expect_environment("OMP_NUM_THREADS=5 NORMROPE_NUM_THREADS=3", "threads 3\n");
  expect_environment("OMP_NUM_THREADS=5 NORMROPE_NUM_THREADS=no", "threads 5\n");
  expect_environment("OMP_NUM_THREADS=5 NORMROPE_NUM_THREADS=-2", "threads 5\n");
  expect_environment("OMP_NUM_THREADS=5 NORMROPE_NUM_THREADS=99999999", "threads 5\n");
  expect_environment("NORMROPE_VERBOSE=error", "normrope: NR_ERROR_INVALID: problem: num_segments -5");
  expect_environment("NORMROPE_VERBOSE=dispatch NORMROPE_ISA=scalar", "normrope: instruction set scalar: NORMROPE_ISA");
  expect_environment("NORMROPE_VERBOSE=profile", "normrope: forward, 2 segments|threads: | ms");
}

int main(int count, char **arguments) {
  if (count == 2 && strcmp(arguments[1], "environment") == 0)
    return answer_environment();
  setenv("NR_TEST_SELF", arguments[0], 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nulls),
      cmocka_unit_test(attributes),
      cmocka_unit_test(dtypes),
      cmocka_unit_test(strides_and_overlaps),
      cmocka_unit_test(descriptor_sizes),
      cmocka_unit_test(rebinding),
      cmocka_unit_test(workspaces_and_streams),
      cmocka_unit_test(names_and_numbers),
      cmocka_unit_test(environment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
