/* Reads what the program on the reference's page prints ("gradQuery result[0] is: 1.000000") and holds it against the
   reference backend's results for the same problem. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "normrope.h"

enum { N = 10, D = 6, S = 5, S_TEXT = 3, JOINED = S + S_TEXT, R = 5, ROWS = JOINED * N };

static float ones[ROWS * D], zeros[ROWS * D];

typedef struct result {
  const char *name;
  int64_t count;
  float *values;
  int64_t seen;
} result;

static float gradients[6][S * N * D], weights[4][D], biases[4][D];

/* In the order of nr_segment: image query, key, value, text query, key, value. */
static result results[] = {
    {"gradQuery", S *N *D, gradients[0], 0},           {"gradKey", S *N *D, gradients[1], 0},
    {"gradValue", S *N *D, gradients[2], 0},           {"gradEncoderQuery", S_TEXT *N *D, gradients[3], 0},
    {"gradEncoderKey", S_TEXT *N *D, gradients[4], 0}, {"gradEncoderValue", S_TEXT *N *D, gradients[5], 0},
    {"gradNormQueryWeight", D, weights[0], 0},         {"gradNormQueryBias", D, biases[0], 0},
    {"gradNormKeyWeight", D, weights[1], 0},           {"gradNormKeyBias", D, biases[1], 0},
    {"gradNormAddedQueryWeight", D, weights[2], 0},    {"gradNormAddedQueryBias", D, biases[2], 0},
    {"gradNormAddedKeyWeight", D, weights[3], 0},      {"gradNormAddedKeyBias", D, biases[3], 0}};

enum { NUM_RESULTS = sizeof results / sizeof *results };

/* The page's problem: everything is 1 but the means, of which only the text query's are. */
static nr_status compute(void) {
  nr_segment segments[6];
  for (int i = 0; i < 6; i++) {
    nr_segment *s = &segments[i];
    int text = i / 3, value = i % 3 == 2, norm = 2 * text + i % 3;
    int64_t start = text ? S : 0;
    *s = nr_segment_default();
    s->batch = 1, s->length = text ? S_TEXT : S, s->heads = N, s->dim = D;
    s->grad_y = nr_view_bnsd(ones, NR_F32, JOINED, N, D);
    s->grad_x = nr_view_bsnd(gradients[i], NR_F32, s->length, N, D);
    if (value)
      continue;
    s->norm = NR_NORM_LAYER_AFFINE;
    s->x = nr_view_bsnd(ones, NR_F32, s->length, N, D);
    s->mean = nr_view_statistics(text && i % 3 == 0 ? ones : zeros, NR_F32, s->length, N);
    s->rstd = nr_view_statistics(ones, NR_F32, s->length, N);
    s->weight = nr_view_channels(ones, NR_F32);
    s->cos = s->sin = nr_view_table(ones, NR_F32, D);
    s->rope_width = 2, s->rope_length = R, s->rope_position = start;
    s->grad_weight = nr_view_channels(weights[norm], NR_F32);
    s->grad_bias = nr_view_channels(biases[norm], NR_F32);
  }
  nr_problem problem = nr_problem_default();
  problem.backend = NR_BACKEND_REFERENCE, problem.segments = segments, problem.num_segments = 6;
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &problem);
  static double workspace[1 << 16];
  if (status == NR_OK)
    status = nr_plan_run(plan, NULL, workspace, sizeof workspace, NULL);
  nr_plan_destroy(plan);
  return status;
}

int main(void) {
  for (int i = 0; i < ROWS * D; i++)
    ones[i] = 1;
  if (compute() != NR_OK) {
    puts(nr_last_error());
    return 1;
  }
  char line[256], name[64];
  long index;
  double value;
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "%63s result[%ld] is: %lf", name, &index, &value) != 3) {
      printf("not understood: %s", line);
      return 1;
    }
    int r = 0;
    while (r < NUM_RESULTS && strcmp(results[r].name, name) != 0)
      r++;
    if (r == NUM_RESULTS || index != results[r].seen || index >= results[r].count) {
      printf("not expected: %s", line);
      return 1;
    }
    double expected = results[r].values[results[r].seen++];
    if (!(fabs(value - expected) <= 1e-5 * (1 + fabs(expected)))) {
      printf("expected %f: %s", expected, line);
      return 1;
    }
  }
  for (int r = 0; r < NUM_RESULTS; r++)
    if (results[r].seen != results[r].count) {
      printf("%s: %ld numbers, expected %ld\n", results[r].name, (long)results[r].seen, (long)results[r].count);
      return 1;
    }
  puts("the page's program agrees with the reference");
  return 0;
}
