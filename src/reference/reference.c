/*
 * The definition of the operator: every output by its formula, in double precision, as plainly as it can be said. All
 * that normrope computes is compared with this file. The forward measures statistics, the backward takes them as given.
 *
 * As the magnitude backend the same formulas run with every term replaced by its magnitude: that bounds the size of
 * what was added up, and so, times the rounding unit, the rounding error of a good computation.
 */
#include <math.h>

#include "plan/backend.h"

typedef double row[NR_MAX_DIM];

/* Which row: segment, batch, position, head; and whether terms count by their magnitude. */
typedef struct place {
  const nr_segment *of;
  int64_t b, s, n;
  bool magnitude;
} place;

static double term(const place *p, double value) { return p->magnitude ? fabs(value) : value; }

static double at(const nr_view *v, int64_t b, int64_t s, int64_t n, int64_t d) {
  return nr_load(nr_row(v, b, s, n), v->dtype, d * v->stride[3]);
}

/* Views that the norm and the direction make useless are absent: the plan has dropped them. */
static void put(const nr_view *v, int64_t b, int64_t s, int64_t n, int64_t d, double value) {
  if (v->data)
    nr_store(nr_row(v, b, s, n), v->dtype, d * v->stride[3], value);
}

/* mean and rstd of the heads that share statistics, of which p->n is the first. */
static void measure(const place *p, double *mean, double *rstd) {
  const nr_segment *g = p->of;
  double count = (double)(nr_group_heads(g) * g->dim), sum = 0, square = 0;
  for (int64_t n = p->n; n < p->n + nr_group_heads(g) && nr_norm_centres(g->norm); n++)
    for (int64_t d = 0; d < g->dim; d++)
      sum += at(&g->x, p->b, p->s, n, d);
  *mean = sum / count;
  for (int64_t n = p->n; n < p->n + nr_group_heads(g) && g->norm; n++)
    for (int64_t d = 0; d < g->dim; d++) {
      double deviation = at(&g->x, p->b, p->s, n, d) - *mean;
      square += deviation * deviation;
    }
  *rstd = g->norm ? 1 / sqrt(square / count + g->eps) : 1;
}

static void given(const place *p, double *mean, double *rstd) {
  int64_t group = p->n / nr_group_heads(p->of);
  *mean = nr_norm_centres(p->of->norm) ? at(&p->of->mean, p->b, p->s, group, 0) : 0;
  *rstd = p->of->norm ? at(&p->of->rstd, p->b, p->s, group, 0) : 1;
}

static double gamma_of(const place *p, int64_t d) {
  return nr_norm_weighs(p->of->norm) ? at(&p->of->weight, 0, 0, p->n, d) : 1;
}

/* xhat = (x - mean) * rstd, and y = gamma * xhat + beta. */
static void normalise(const place *p, double mean, double rstd, row xhat, row y) {
  const nr_segment *g = p->of;
  for (int64_t d = 0; d < g->dim; d++) {
    xhat[d] = term(p, (at(&g->x, p->b, p->s, p->n, d) - mean) * rstd);
    y[d] = term(p, gamma_of(p, d) * xhat[d]) + term(p, g->bias.data ? at(&g->bias, 0, 0, p->n, d) : 0);
  }
}

/* Channel i turns with its partner, i + w/2 in the first half of a block and i - w/2 in the second. */
static bool turns_first(const nr_segment *g, int64_t i) { return i % g->rope_width < g->rope_width / 2; }
static int64_t partner(const nr_segment *g, int64_t i) {
  return turns_first(g, i) ? i + g->rope_width / 2 : i - g->rope_width / 2;
}

/* out[i] = y[i] cos[i] -+ y[partner] sin[i]; transposed, the gradient of that: the partner's sine, the other sign. */
static void rotate(const place *p, const row y, row out, bool transposed) {
  const nr_segment *g = p->of;
  int64_t t = nr_table_row(g, p->s);
  for (int64_t i = 0; i < g->dim; i++) {
    out[i] = y[i];
    if (t < 0 || i >= g->rope_dim)
      continue;
    double sine = at(&g->sin, p->b, t, p->n, transposed ? partner(g, i) : i);
    double sign = turns_first(g, i) == transposed ? 1 : -1;
    out[i] = term(p, y[i] * at(&g->cos, p->b, t, p->n, i)) + term(p, sign * y[partner(g, i)] * sine);
  }
}

/* One group of heads that share statistics, p->n the first of them: y, mean, rstd. */
static void forward(place p) {
  const nr_segment *g = p.of;
  int64_t first = p.n, heads = nr_group_heads(g);
  double mean, rstd;
  row xhat, y, out;
  measure(&p, &mean, &rstd);
  put(&g->mean, p.b, p.s, first / heads, 0, mean);
  put(&g->rstd, p.b, p.s, first / heads, 0, rstd);
  for (; p.n < first + heads; p.n++) {
    normalise(&p, mean, rstd, xhat, y);
    rotate(&p, y, out, false);
    for (int64_t d = 0; d < g->dim; d++)
      put(&g->y, p.b, p.s, p.n, d, out[d]);
  }
}

/* dy, the gradient of the normalised row, and with a norm xhat. */
static void backward_terms(const place *p, row dy, row xhat) {
  double mean, rstd;
  row grad, y;
  for (int64_t d = 0; d < p->of->dim; d++)
    grad[d] = term(p, at(&p->of->grad_y, p->b, p->s, p->n, d));
  rotate(p, grad, dy, true);
  given(p, &mean, &rstd);
  if (p->of->norm)
    normalise(p, mean, rstd, xhat, y);
}

/* grad_x of such a group: rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)), dxhat = gamma * dy. */
static void backward(place p) {
  const nr_segment *g = p.of;
  int64_t first = p.n, heads = nr_group_heads(g);
  double count = (double)(heads * g->dim), mean_d = 0, mean_dx = 0, mean, rstd;
  row dy, xhat = {0};
  given(&p, &mean, &rstd);
  for (; p.n < first + heads && g->norm; p.n++) {
    backward_terms(&p, dy, xhat);
    for (int64_t d = 0; d < g->dim; d++) {
      mean_d += nr_norm_centres(g->norm) ? term(&p, dy[d] * gamma_of(&p, d)) / count : 0;
      mean_dx += term(&p, dy[d] * gamma_of(&p, d)) * xhat[d] / count;
    }
  }
  for (p.n = first; p.n < first + heads; p.n++) {
    backward_terms(&p, dy, xhat);
    for (int64_t d = 0; d < g->dim; d++) {
      double dxhat = term(&p, dy[d] * gamma_of(&p, d));
      double centred = dxhat + term(&p, -mean_d) + term(&p, -xhat[d] * mean_dx);
      put(&g->grad_x, p.b, p.s, p.n, d, g->norm ? rstd * centred : dxhat);
    }
  }
}

/* Adds what one row contributes to the row of the parameter gradient at byte `offset` of a segment. */
static void contribute(const place *p, size_t offset, row sum) {
  const nr_segment *g = p->of;
  bool weight = offset == offsetof(nr_segment, grad_weight), bias = offset == offsetof(nr_segment, grad_bias);
  double mean, rstd;
  row dy, xhat, y;
  if (weight || bias) {
    backward_terms(p, dy, xhat);
    for (int64_t d = 0; d < g->dim; d++)
      sum[d] += bias ? dy[d] : dy[d] * xhat[d];
    return;
  }
  given(p, &mean, &rstd);
  normalise(p, mean, rstd, xhat, y);
  for (int64_t i = 0; i < g->rope_dim; i++) {
    double turned = turns_first(g, i) ? -y[partner(g, i)] : y[partner(g, i)];
    double factor = offset == offsetof(nr_segment, grad_cos) ? y[i] : turned;
    sum[i] += term(p, at(&g->grad_y, p->b, p->s, p->n, i) * factor);
  }
}

/* Row [b, t, n] of a parameter gradient: the sum over the rows of all segments that share the parameter there. */
static void gradient_row(const nr_plan *plan, const nr_segment *segments, const nr_segment *owner, size_t offset,
                         int64_t b, int64_t t, int64_t n, bool magnitude) {
  const nr_view *out = nr_view_at(owner, offset);
  bool table = offset >= offsetof(nr_segment, grad_cos), bias = offset == offsetof(nr_segment, grad_bias);
  row sum = {0};
  for (const nr_segment *g = segments; g < segments + plan->num_segments; g++) {
    bool contributes = table ? g->rope_width > 0 : bias ? g->norm == NR_NORM_LAYER_AFFINE : nr_norm_weighs(g->norm);
    for (int64_t pb = 0; nr_shared(nr_view_at(g, offset), out) && contributes && pb < g->batch; pb++)
      for (int64_t s = table ? t - g->rope_position : 0; s >= 0 && s < g->length; s += table ? g->length : 1)
        for (int64_t pn = 0; pn < g->heads; pn++)
          if ((!table || !out->stride[0] || pb == b) && (!out->stride[2] || pn == n))
            contribute(&(place){g, pb, s, pn, magnitude}, offset, sum);
  }
  for (int64_t d = 0; d < (table ? owner->rope_dim : owner->dim); d++)
    put(out, b, t, n, d, sum[d]);
}

static void gradient(const nr_plan *plan, const nr_segment *segments, int32_t i, size_t offset, bool magnitude) {
  const nr_segment *g = &segments[i];
  const nr_view *out = nr_view_at(g, offset);
  bool first = nr_first_of_shared(segments, i, offset), table = offset >= offsetof(nr_segment, grad_cos);
  for (int64_t b = 0; first && b < (table && out->stride[0] ? g->batch : 1); b++)
    for (int64_t t = 0; t < (table ? g->rope_length : 1); t++)
      for (int64_t n = 0; n < (out->stride[2] ? g->heads : 1); n++)
        gradient_row(plan, segments, g, offset, b, t, n, magnitude);
}

static nr_status run(const nr_plan *plan, const nr_segment *segments, void *workspace, void *stream) {
  (void)workspace, (void)stream;
  bool magnitude = plan->backend == &nr_backend_magnitude, backward_run = plan->direction == NR_BACKWARD;
  for (int32_t i = 0; i < plan->num_segments && backward_run; i++) { /* before grad_x, which may be written over x */
    gradient(plan, segments, i, offsetof(nr_segment, grad_weight), magnitude);
    gradient(plan, segments, i, offsetof(nr_segment, grad_bias), magnitude);
    gradient(plan, segments, i, offsetof(nr_segment, grad_cos), magnitude);
    gradient(plan, segments, i, offsetof(nr_segment, grad_sin), magnitude);
  }
  for (const nr_segment *g = segments; g < segments + plan->num_segments; g++)
    for (int64_t b = 0; b < g->batch; b++)
      for (int64_t s = 0; s < g->length; s++)
        for (int64_t n = 0; n < g->heads; n += nr_group_heads(g))
          if (!backward_run)
            forward((place){g, b, s, n, magnitude});
          else if (g->grad_x.data)
            backward((place){g, b, s, n, magnitude});
  return NR_OK;
}

const nr_backend_ops nr_backend_reference = {.name = "reference", .mixed = true, .run = run};
const nr_backend_ops nr_backend_magnitude = {.name = "magnitude", .mixed = true, .run = run};
