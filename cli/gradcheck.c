#include "cli/gradcheck.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/generate.h"

enum { NUM_SEGMENTS = 6, MAX_TENSORS = 32 };

/* Step of the differences: 4-point ones, whose own error is the step's fourth power. */
static const double step = 1e-3;

/* A run of the parameters: one tensor. The gradients lie in a second array at the same place. */
typedef struct tensor {
  int kind;
  int64_t first, count;
} tensor;

typedef struct problem {
  const nr_combination *of;
  nr_segment segments[NUM_SEGMENTS]; /* with the views of both directions */
  tensor tensors[MAX_TENSORS];
  int num_tensors;
  int64_t num_values, num_outputs, num_statistics;
  double *values, *gradients;           /* [num_values] */
  double *outputs, *weights_of_outputs; /* [num_outputs]; the loss is their product's sum */
  double *statistics;
  nr_plan *forward, *backward;
} problem;

/* The first pass only counts: memory is there in the second. */
static int64_t add_tensor(problem *p, int kind, int64_t count) {
  p->tensors[p->num_tensors++] = (tensor){kind, p->num_values, count};
  p->num_values += count;
  return p->num_values - count;
}

static double *within(double *array, int64_t at) { return array ? array + at : NULL; }

static void lay_norm(problem *p, nr_segment *s, const nr_segment *image) {
  const nr_combination *o = p->of;
  bool centres = s->norm == NR_NORM_LAYER || s->norm == NR_NORM_LAYER_AFFINE, bias = s->norm == NR_NORM_LAYER_AFFINE;
  int64_t groups = s->scope == NR_SCOPE_ALL_HEADS ? 1 : s->heads, heads = o->weight_heads ? s->heads : 1;
  int64_t rows = s->batch * s->length * groups;
  if (centres)
    s->mean = nr_view_statistics(within(p->statistics, p->num_statistics), NR_F64, s->length, groups);
  s->rstd = nr_view_statistics(within(p->statistics, p->num_statistics + rows), NR_F64, s->length, groups);
  p->num_statistics += 2 * rows;
  if (image && o->shared) {
    s->weight = image->weight;
    s->bias = image->bias;
    s->grad_weight = image->grad_weight;
    s->grad_bias = image->grad_bias;
    return;
  }
  for (int k = 0; k < (bias ? 2 : s->norm == NR_NORM_RMS_AFFINE ? 1 : 0); k++) {
    int64_t at = add_tensor(p, k ? NR_GRAD_BIAS : NR_GRAD_WEIGHT, heads * s->dim);
    nr_view view = nr_view_strided(NULL, NR_F64, 0, 0, o->weight_heads ? s->dim : 0, 1), gradient = view;
    view.data = within(p->values, at);
    gradient.data = within(p->gradients, at);
    *(k ? &s->bias : &s->weight) = view;
    *(k ? &s->grad_bias : &s->grad_weight) = gradient;
  }
}

static void lay_tables(problem *p) {
  const nr_combination *o = p->of;
  int64_t batches = o->table_batches ? o->batch : 1, heads = o->table_heads ? o->heads : 1;
  int64_t row = heads * o->rope_dim, size = batches * o->rope_length * row;
  for (int k = 0; k < 2; k++) {
    int64_t at = add_tensor(p, NR_GRAD_TABLE, size);
    nr_view view = nr_view_strided(within(p->values, at), NR_F64, o->table_batches ? o->rope_length * row : 0, row,
                                   o->table_heads ? o->rope_dim : 0, 1);
    nr_view gradient = view;
    gradient.data = within(p->gradients, at);
    for (int i = 0; i < NUM_SEGMENTS; i++)
      if (i % 3 < 2) {
        *(k ? &p->segments[i].sin : &p->segments[i].cos) = view;
        *(k ? &p->segments[i].grad_sin : &p->segments[i].grad_cos) = gradient;
      }
  }
}

/* Segments query, key, value of the image, then of the text. */
static void lay(problem *p) {
  const nr_combination *o = p->of;
  p->num_tensors = 0;
  p->num_values = p->num_outputs = p->num_statistics = 0;
  int64_t joined = o->image + o->text, outputs[3];
  for (int k = 0; k < 3; k++) {
    outputs[k] = p->num_outputs;
    p->num_outputs += o->batch * joined * (k ? o->kv_heads : o->heads) * o->dim;
  }
  for (int i = 0; i < NUM_SEGMENTS; i++) {
    bool text = i >= 3, value = i % 3 == 2;
    nr_segment *s = &p->segments[i];
    *s = nr_segment_default();
    s->batch = o->batch;
    s->length = text ? o->text : o->image;
    s->heads = i % 3 ? o->kv_heads : o->heads;
    s->dim = o->dim;
    s->norm = value ? NR_NORM_NONE : text ? o->norm_added : o->norm;
    s->scope = o->scope;
    s->eps = 1e-3;
    int64_t position = text != (o->order == 1) ? (text ? o->image : o->text) : 0;
    if (!value) {
      s->rope_width = o->rope_width;
      s->rope_dim = o->rope_dim;
      s->rope_length = o->rope_length;
      s->rope_position = position - o->rope_start;
    }
    int64_t at = add_tensor(p, NR_GRAD_INPUT, s->batch * s->length * s->heads * s->dim);
    s->x = nr_view_bsnd(within(p->values, at), NR_F64, s->length, s->heads, s->dim);
    s->grad_x = nr_view_bsnd(within(p->gradients, at), NR_F64, s->length, s->heads, s->dim);
    int64_t row = outputs[i % 3] + position * s->dim;
    s->y = nr_view_bnsd(within(p->outputs, row), NR_F64, joined, s->heads, s->dim);
    s->grad_y = nr_view_bnsd(within(p->weights_of_outputs, row), NR_F64, joined, s->heads, s->dim);
    if (s->norm)
      lay_norm(p, s, text ? &p->segments[i - 3] : NULL);
  }
  if (o->rope_width)
    lay_tables(p);
}

static bool allocate(problem *p) {
  p->values = calloc((size_t)p->num_values, sizeof(double));
  p->gradients = calloc((size_t)p->num_values, sizeof(double));
  p->outputs = calloc((size_t)p->num_outputs, sizeof(double));
  p->weights_of_outputs = calloc((size_t)p->num_outputs, sizeof(double));
  p->statistics = calloc((size_t)p->num_statistics + 1, sizeof(double));
  return p->values && p->gradients && p->outputs && p->weights_of_outputs && p->statistics;
}

static void release(problem *p) {
  nr_plan_destroy(p->forward);
  nr_plan_destroy(p->backward);
  free(p->values);
  free(p->gradients);
  free(p->outputs);
  free(p->weights_of_outputs);
  free(p->statistics);
}

static nr_status plan(problem *p) {
  nr_problem described = nr_problem_default();
  described.backend = NR_BACKEND_REFERENCE;
  described.segments = p->segments;
  described.num_segments = NUM_SEGMENTS;
  nr_status status = nr_plan_create(&p->backward, &described);
  described.direction = NR_FORWARD;
  return status == NR_OK ? nr_plan_create(&p->forward, &described) : status;
}

static void fill(problem *p, int64_t seed) {
  static const double centres[] = {
      [NR_GRAD_INPUT] = 0.25, [NR_GRAD_WEIGHT] = 1, [NR_GRAD_BIAS] = 0, [NR_GRAD_TABLE] = 0.25};
  uint64_t values = nr_stream_of(seed, "values"), weights = nr_stream_of(seed, "weights");
  for (int t = 0; t < p->num_tensors; t++)
    nr_fill_normal(p->values, NR_F64, values, p->tensors[t].first, p->tensors[t].count, centres[p->tensors[t].kind],
                   0.75);
  nr_fill_normal(p->weights_of_outputs, NR_F64, weights, 0, p->num_outputs, 0, 1);
}

/* The loss with parameter i moved by `move`. */
static double loss(problem *p, int64_t i, double move) {
  double kept = p->values[i], sum = 0;
  p->values[i] = kept + move;
  nr_plan_run(p->forward, NULL, NULL, 0, NULL); /* cannot fail: it ran once */
  p->values[i] = kept;
  for (int64_t k = 0; k < p->num_outputs; k++)
    sum += p->outputs[k] * p->weights_of_outputs[k];
  return sum;
}

static double difference(problem *p, int64_t i) {
  double near = loss(p, i, step) - loss(p, i, -step), far = loss(p, i, 2 * step) - loss(p, i, -2 * step);
  return (8 * near - far) / (12 * step);
}

static void compare(problem *p, double worst[NR_NUM_GRADS]) {
  for (int t = 0; t < p->num_tensors; t++) {
    const tensor *of = &p->tensors[t];
    double scale = 1, error = 0;
    for (int64_t i = of->first; i < of->first + of->count; i++)
      scale = fmax(scale, fabs(p->gradients[i]));
    for (int64_t i = of->first; i < of->first + of->count; i++) {
      double distance = fabs(difference(p, i) - p->gradients[i]);
      error = distance <= error ? error : distance; /* NaN stays */
    }
    worst[of->kind] = error / scale <= worst[of->kind] ? worst[of->kind] : error / scale;
  }
}

int nr_gradcheck(const nr_combination *combination, int64_t seed, double worst[NR_NUM_GRADS], nr_message *message) {
  problem p = {.of = combination};
  int code = NR_EXIT_OK;
  for (int i = 0; i < NR_NUM_GRADS; i++)
    worst[i] = 0;
  lay(&p);
  if (allocate(&p)) {
    lay(&p);
    fill(&p, seed);
    nr_status status = plan(&p);
    if (status == NR_OK)
      status = nr_plan_run(p.forward, NULL, NULL, 0, NULL); /* statistics */
    if (status == NR_OK)
      status = nr_plan_run(p.backward, NULL, NULL, 0, NULL);
    if (status == NR_OK)
      compare(&p, worst);
    else
      code = nr_refuse(message, NR_EXIT_RUN, "%s: %s", combination->name, nr_last_error());
  } else {
    code = nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", combination->name);
  }
  release(&p);
  return code;
}

static nr_combination plain(nr_norm norm, nr_norm added, int rope, int order) {
  nr_combination c = {.norm = norm,
                      .norm_added = added,
                      .order = order,
                      .batch = 2,
                      .heads = 2,
                      .kv_heads = 2,
                      .dim = 6,
                      .image = 3,
                      .text = 2,
                      .rope_dim = 6,
                      .rope_length = 4};
  c.rope_width = rope == 1 ? 2 : rope == 2 ? 6 : 0;
  return c;
}

/* The general options, each as a change to a plain problem. */
static void across_heads(nr_combination *c) {
  c->scope = NR_SCOPE_ALL_HEADS;
  c->weight_heads = true;
}
static void across_heads_shared_weight(nr_combination *c) { c->scope = NR_SCOPE_ALL_HEADS; }
static void weight_per_head(nr_combination *c) { c->weight_heads = true; }
static void shared_weight(nr_combination *c) { c->shared = true; }
static void partial_rotary(nr_combination *c) { c->rope_dim = c->rope_width = 4; }
static void sectioned(nr_combination *c) {
  c->dim = c->rope_dim = 8;
  c->rope_width = 4;
}
static void window_on_image(nr_combination *c) {
  c->order = 1;
  c->rope_start = c->text;
  c->rope_length = c->image;
}
static void position_before_window(nr_combination *c) { c->rope_start = -1; }
static void table_per_batch(nr_combination *c) { c->table_batches = true; }
static void table_per_head(nr_combination *c) { c->table_heads = true; }
static void table_per_row(nr_combination *c) { c->table_batches = c->table_heads = true; }
static void grouped_heads(nr_combination *c) { c->kv_heads = 1; }
static void all_at_once(nr_combination *c) {
  across_heads(c);
  shared_weight(c);
  window_on_image(c);
  table_per_row(c);
  c->rope_dim = 4;
}

static const struct {
  const char *name;
  void (*change)(nr_combination *);
} general[] = {{"across heads", across_heads},
               {"across heads, one weight", across_heads_shared_weight},
               {"weight per head", weight_per_head},
               {"shared weight", shared_weight},
               {"partial rotary", partial_rotary},
               {"sectioned", sectioned},
               {"window on the image", window_on_image},
               {"position offset", position_before_window},
               {"table per batch", table_per_batch},
               {"table per head", table_per_head},
               {"table per batch and head", table_per_row},
               {"grouped heads", grouped_heads},
               {"all at once", all_at_once}};

enum { NORMS = 5, ROPES = 3, ORDERS = 2, PLAIN = NORMS * NORMS * ROPES * ORDERS };

bool nr_combination_get(int i, nr_combination *c) {
  if (i < 0 || i >= PLAIN + NORMS * (int)(sizeof general / sizeof *general))
    return false;
  if (i < PLAIN) {
    int order = i % ORDERS, rope = i / ORDERS % ROPES, added = i / ORDERS / ROPES % NORMS;
    int norm = i / ORDERS / ROPES / NORMS;
    *c = plain((nr_norm)norm, (nr_norm)added, rope, order);
    snprintf(c->name, sizeof c->name, "norm %d added %d rope %d order %d", norm, added, rope, order);
    return true;
  }
  int option = (i - PLAIN) / NORMS, norm = (i - PLAIN) % NORMS;
  *c = plain((nr_norm)norm, (nr_norm)norm, 1, 0);
  general[option].change(c);
  snprintf(c->name, sizeof c->name, "norm %d %s", norm, general[option].name);
  return true;
}
