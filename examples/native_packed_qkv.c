/*
 * The native interface: image and text come as packed projections [B, S, 3, N, D] in bfloat16 and go joined into
 * attention, [B, N, S, D], text first. Queries and keys are normalised (RMSNorm with a weight) and rotated, tables are
 * float32; values are only moved. Backward writes the gradients into packed buffers of the same shape. Nothing is
 * copied on the way: slices and joins are views. The program checks itself against the reference backend.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "normrope.h"

enum { B = 2, N = 8, D = 64, IMAGE = 96, TEXT = 24, JOINED = TEXT + IMAGE };
enum { QUERY, KEY, VALUE, PARTS };

typedef uint16_t bfloat16;

/* All that a training step has around this one. */
typedef struct step {
  bfloat16 image[B * IMAGE * PARTS * N * D], text[B * TEXT * PARTS * N * D]; /* the projections */
  bfloat16 joined[PARTS][B * N * JOINED * D];                                /* what attention reads */
  float rstd[4][B * JOINED * N]; /* kept for backward, a row for a segment */
  bfloat16 weight[4][D];
  float cos[JOINED * D], sin[JOINED * D];
  bfloat16 grad_joined[PARTS][B * N * JOINED * D]; /* what attention's backward writes */
  bfloat16 grad_image[B * IMAGE * PARTS * N * D], grad_text[B * TEXT * PARTS * N * D];
  bfloat16 grad_weight[4][D];
} step;

/* Part q, k or v of a packed buffer: neighbours in the sequence are PARTS * N * D elements apart. */
static nr_view packed(bfloat16 *buffer, int part, int64_t length) {
  return nr_view_strided(buffer + part * N * D, NR_BF16, length * PARTS * N * D, PARTS * N * D, D, 1);
}

/* The rows of a joined tensor from `position` on. */
static nr_view joined(bfloat16 *tensor, int64_t position) {
  return nr_view_bnsd(tensor + position * D, NR_BF16, JOINED, N, D);
}

/* Six segments: q, k, v of text and image. Forward and backward use different views of one description. */
static void describe(nr_segment segments[2 * PARTS], step *t) {
  for (int i = 0; i < 2 * PARTS; i++) {
    int part = i / 2, is_image = i % 2;
    int64_t length = is_image ? IMAGE : TEXT, position = is_image ? TEXT : 0;
    nr_segment *s = &segments[i];
    *s = nr_segment_default();
    s->batch = B, s->length = length, s->heads = N, s->dim = D;
    s->x = packed(is_image ? t->image : t->text, part, length);
    s->y = joined(t->joined[part], position);
    s->grad_y = joined(t->grad_joined[part], position);
    s->grad_x = packed(is_image ? t->grad_image : t->grad_text, part, length);
    if (part == VALUE)
      continue;
    s->norm = NR_NORM_RMS_AFFINE;
    s->rstd = nr_view_statistics(t->rstd[i], NR_F32, length, N);
    s->weight = nr_view_channels(t->weight[i], NR_BF16);
    s->grad_weight = nr_view_channels(t->grad_weight[i], NR_BF16);
    s->rope_width = 2, s->rope_length = JOINED, s->rope_position = position;
    s->cos = nr_view_table(t->cos, NR_F32, D);
    s->sin = nr_view_table(t->sin, NR_F32, D);
  }
}

/* A program that trains plans once, keeps the workspace, and runs the plan at every step. */
static void run(nr_direction direction, nr_backend backend, step *t) {
  nr_segment segments[2 * PARTS];
  describe(segments, t);
  nr_problem problem = nr_problem_default();
  problem.direction = direction, problem.backend = backend;
  problem.segments = segments, problem.num_segments = 2 * PARTS;
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &problem);
  size_t size = nr_plan_workspace_size(plan);
  void *workspace = malloc(size);
  if (status == NR_OK)
    status = nr_plan_run(plan, NULL, workspace, size, NULL);
  if (status != NR_OK) {
    printf("%s: %s\n", nr_status_name(status), nr_last_error());
    exit(1);
  }
  free(workspace);
  nr_plan_destroy(plan);
}

static void fill(bfloat16 *array, int64_t count, double mean) {
  static unsigned state = 1;
  for (int64_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    nr_store(array, NR_BF16, i, mean + (state >> 8) * 0x1p-23 - 1);
  }
}

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof(bfloat16)))

/* How many of the elements are further off than the neighbouring bfloat16 number. */
static int64_t differences(const bfloat16 *got, const bfloat16 *expected, int64_t count) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; i++) {
    double a = nr_load(got, NR_BF16, i), b = nr_load(expected, NR_BF16, i);
    wrong += !(fabs(a - b) <= fabs(b) * 0x1p-7 + 1e-6);
  }
  return wrong;
}

int main(void) {
  step *cpu = calloc(1, sizeof *cpu), *exact = malloc(sizeof *exact);
  if (!cpu || !exact)
    return 1;
  fill(cpu->image, COUNT(cpu->image), 0), fill(cpu->text, COUNT(cpu->text), 0);
  fill(cpu->weight[0], COUNT(cpu->weight), 1);
  fill(cpu->grad_joined[0], COUNT(cpu->grad_joined), 0);
  for (int64_t i = 0; i < JOINED * D; i++) {
    double angle = (double)(i / D) * pow(10000, -(double)(i % D / 2 * 2) / D);
    cpu->cos[i] = (float)cos(angle), cpu->sin[i] = (float)sin(angle);
  }
  *exact = *cpu;
  run(NR_FORWARD, NR_BACKEND_CPU, cpu);
  run(NR_BACKWARD, NR_BACKEND_CPU, cpu);
  run(NR_FORWARD, NR_BACKEND_REFERENCE, exact);
  run(NR_BACKWARD, NR_BACKEND_REFERENCE, exact);
  int64_t wrong = differences(cpu->joined[0], exact->joined[0], COUNT(cpu->joined)) +
                  differences(cpu->grad_image, exact->grad_image, COUNT(cpu->grad_image)) +
                  differences(cpu->grad_text, exact->grad_text, COUNT(cpu->grad_text)) +
                  differences(cpu->grad_weight[0], exact->grad_weight[0], COUNT(cpu->grad_weight));
  printf("%d of %d numbers differ from the reference\n", (int)wrong,
         (int)(COUNT(cpu->joined) + COUNT(cpu->grad_image) + COUNT(cpu->grad_text) + COUNT(cpu->grad_weight)));
  free(cpu);
  free(exact);
  return wrong != 0;
}
