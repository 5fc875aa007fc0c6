/* The reference's backward is the gradient of the reference's forward: against central differences, in float64. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "normrope.h"

enum { B = 2, S = 3, N = 2, D = 12, R = 3, ROWS = B * S * N * D, TABLE = B * R * N * D };

/* What the loss, the sum of grad_y * y, is differentiated by. */
typedef struct inputs {
  double x[2][ROWS], weight[N * D], bias[N * D], cos[TABLE], sin[TABLE];
} inputs;

/* Two segments, which share weight, bias and tables. */
typedef struct model {
  inputs in, grad;
  double y[2][ROWS], grad_y[2][ROWS], mean[2][B * S * N], rstd[2][B * S * N];
  nr_segment segment[2];
} model;

static model m;
static uint64_t dice = 3;

static double uniform(void) {
  dice = dice * 6364136223846793005u + 1442695040888963407u;
  return (double)(dice >> 11) * 0x1p-53 * 2 - 1;
}

static void run(nr_direction direction) {
  nr_problem problem = nr_problem_default();
  problem.direction = direction, problem.backend = NR_BACKEND_REFERENCE;
  problem.segments = m.segment, problem.num_segments = 2;
  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK || nr_plan_run(plan, NULL, NULL, 0, NULL) != NR_OK)
    fail_msg("%s", nr_last_error());
  nr_plan_destroy(plan);
}

static double loss(void) {
  double sum = 0;
  run(NR_FORWARD);
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < ROWS; k++)
      sum += m.y[i][k] * m.grad_y[i][k];
  return sum;
}

/* Binds the model's arrays; which axes parameters and tables have follows from `per_head` and `per_batch`. */
static void bind(nr_norm norm, nr_scope scope, int64_t width, int64_t rope_dim, bool per_head, bool per_batch) {
  int64_t heads = per_head ? N : 1;
  for (int i = 0; i < 2; i++) {
    nr_segment *s = &m.segment[i];
    *s = nr_segment_default();
    s->batch = B, s->length = S, s->heads = N, s->dim = D;
    s->norm = i && norm == NR_NORM_RMS_AFFINE ? NR_NORM_LAYER_AFFINE : norm;
    s->scope = scope, s->eps = 0.01;
    s->rope_width = width, s->rope_dim = rope_dim, s->rope_length = R, s->rope_position = i ? -1 : 1;
    s->x = nr_view_bsnd(m.in.x[i], NR_F64, S, N, D);
    s->y = nr_view_bnsd(m.y[i], NR_F64, S, N, D);
    s->grad_x = nr_view_bsnd(m.grad.x[i], NR_F64, S, N, D);
    s->grad_y = nr_view_bnsd(m.grad_y[i], NR_F64, S, N, D);
    s->mean = nr_view_statistics(m.mean[i], NR_F64, S, scope ? 1 : N);
    s->rstd = nr_view_statistics(m.rstd[i], NR_F64, S, scope ? 1 : N);
    double *parameter[] = {m.in.weight, m.grad.weight, m.in.bias, m.grad.bias};
    nr_view *parameter_view[] = {&s->weight, &s->grad_weight, &s->bias, &s->grad_bias};
    double *table[] = {m.in.cos, m.grad.cos, m.in.sin, m.grad.sin};
    nr_view *table_view[] = {&s->cos, &s->grad_cos, &s->sin, &s->grad_sin};
    for (int k = 0; k < 4; k++) {
      *parameter_view[k] = nr_view_strided(parameter[k], NR_F64, 0, 0, per_head ? D : 0, 1);
      *table_view[k] = nr_view_strided(table[k], NR_F64, per_batch ? R * heads * D : 0, heads * D, per_head ? D : 0, 1);
    }
  }
}

/* Every component. Central differences with this step are good to 9 digits or so. */
static void check(const char *what) {
  const double h = 1e-5;
  memset(&m.grad, 0, sizeof m.grad);
  loss();
  run(NR_BACKWARD);
  inputs analytic = m.grad;
  double *value = (double *)&m.in, *gradient = (double *)&analytic;
  for (size_t i = 0; i < sizeof(inputs) / sizeof(double); i++) {
    double before = value[i];
    value[i] = before + h;
    double above = loss();
    value[i] = before - h;
    double slope = (above - loss()) / (2 * h);
    value[i] = before;
    if (!(fabs(slope - gradient[i]) <= 1e-7 * (1 + fabs(slope))))
      fail_msg("%s: component %zu of x, weight, bias, cos, sin: difference %.12g, gradient %.12g", what, i, slope,
               gradient[i]);
  }
}

static void backward_is_the_gradient_of_forward(void **state) {
  (void)state;
  static const int64_t ropes[][2] = {{0, 0}, {2, D}, {D, D}, {6, D}, {4, 8}};
  double *value = (double *)&m.in;
  for (size_t i = 0; i < sizeof(inputs) / sizeof(double); i++)
    value[i] = uniform();
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < ROWS; k++)
      m.grad_y[i][k] = uniform();
  for (int norm = 0; norm < 5; norm++)
    for (int rope = 0; rope < 5; rope++)
      for (int scope = 0; scope < 2; scope++) {
        bool per_head = (norm + rope + scope) % 2, per_batch = rope % 2;
        char what[120];
        snprintf(what, sizeof what, "norm %d scope %d rope %d/%d per head %d per batch %d", norm, scope,
                 (int)ropes[rope][0], (int)ropes[rope][1], per_head, per_batch);
        bind((nr_norm)norm, (nr_scope)scope, ropes[rope][0], ropes[rope][1], per_head, per_batch);
        check(what);
      }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(backward_is_the_gradient_of_forward)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
