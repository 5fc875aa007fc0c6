/*
 * The backward body: one for every norm, rope, layout, dtype and instruction set.
 *
 *   dy = the transposed rotation of grad_y,  xhat = (x - mean) * rstd,  dxhat = weight * dy
 *   grad_x = rstd * dxhat - (rstd * mean(dxhat) + xhat * rstd * mean(dxhat * xhat)),  means over the channels that
 *                                                                                     share statistics
 *   grad_weight += dy * xhat,  grad_bias += dy
 *
 * In this form grad_x is a fused multiply-add of dxhat and a correction that is small in long rows, so little is
 * rounded on its way.
 *
 * Tiles of NR_TILE positions are walked head by head, so that table rows serve all heads from the first-level cache. A
 * head's rows of a tile add their part of the parameter gradients in float32, which then goes into the block's float64
 * sums. With statistics over all heads, terms are made twice: once for the means, once for the result.
 */

typedef struct backward_tile {
  int64_t first, rows;
  float mean[NR_TILE], rstd[NR_TILE];
  const float *weight;
  v16 sum_d[NR_TILE], sum_dx[NR_TILE]; /* of dxhat, of dxhat * xhat */
  scratch dy[NR_TILE], xhat[NR_TILE];
  tables tables;
  scratch weight_buffer;
} backward_tile;

INLINE void load_statistics(const nr_block *b, backward_tile *t, int64_t group) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < t->rows; r++) {
    t->mean[r] = nr_norm_centres(s->norm) ? *(const float *)nr_row(&s->mean, b->batch, t->first + r, group) : 0;
    t->rstd[r] = s->norm ? *(const float *)nr_row(&s->rstd, b->batch, t->first + r, group) : 1;
  }
}

/* dy and xhat of one head's rows. */
INLINE void backward_terms(const nr_block *b, nr_dtype dtype, backward_tile *t, int64_t head) {
  const nr_segment *s = b->segment;
  scratch strided;
  if (tables_per_head(s))
    load_tables(s, b->batch, t->first, t->rows, head, &t->tables);
  if (s->weight.stride[2])
    t->weight = parameter(&s->weight, nr_norm_weighs(s->norm), head, s->dim, &t->weight_buffer);
  for (int64_t r = 0; r < t->rows; r++) {
    const char *g = nr_row(&s->grad_y, b->batch, t->first + r, head);
    rotate(s, &t->tables, r, true, gathered(&s->grad_y, g, dtype, s->dim, &strided), dtype, (char *)t->dy[r].channel,
           NR_F32);
    if (s->norm == NR_NORM_NONE)
      continue;
    const char *x = gathered(&s->x, nr_row(&s->x, b->batch, t->first + r, head), dtype, s->dim, &strided);
    v16 mean = v16_set(t->mean[r]), rstd = v16_set(t->rstd[r]);
    for (int64_t d = 0; d < s->dim; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16 xhat = load(x, dtype, d, n);
      if (nr_norm_centres(s->norm))
        xhat = v16_sub(xhat, mean);
      v16_put(&t->xhat[r].channel[d], v16_mul(xhat, rstd), n);
    }
  }
}

/* Adds one head's rows to the sums over channels, and to those over rows; dy becomes dxhat. */
INLINE void backward_sums(const nr_block *b, backward_tile *t, int64_t head) {
  const nr_segment *s = b->segment;
  double *weight_sum = b->weight_sum ? b->weight_sum + (s->grad_weight.stride[2] ? head * s->dim : 0) : NULL;
  double *bias_sum = b->bias_sum ? b->bias_sum + (s->grad_bias.stride[2] ? head * s->dim : 0) : NULL;
  for (int64_t d = 0; d < s->dim; d += VECTOR) {
    int64_t n = lanes(s->dim, d);
    v16 dweight = v16_set(0), dbias = v16_set(0);
    for (int64_t r = 0; r < t->rows; r++) {
      v16 dy = get(t->dy[r].channel, d, n), xhat = get(t->xhat[r].channel, d, n), dxhat = dy;
      if (t->weight) {
        dxhat = v16_mul(dy, get(t->weight, d, n));
        v16_put(&t->dy[r].channel[d], dxhat, n);
      }
      if (nr_norm_centres(s->norm))
        t->sum_d[r] = v16_add(t->sum_d[r], dxhat);
      t->sum_dx[r] = v16_fma(dxhat, xhat, t->sum_dx[r]);
      dweight = v16_fma(dy, xhat, dweight);
      dbias = v16_add(dbias, dy);
    }
    if (weight_sum)
      v16_add_to(weight_sum + d, dweight, n);
    if (bias_sum)
      v16_add_to(bias_sum + d, dbias, n);
  }
}

/* One head's grad_x from its dxhat and xhat and the rows' means times rstd. */
INLINE void backward_store(const nr_block *b, nr_dtype dtype, const backward_tile *t, int64_t head, const float *mean_d,
                           const float *mean_dx) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < t->rows; r++) {
    scratch strided;
    char *row = nr_row(&s->grad_x, b->batch, t->first + r, head);
    char *out = s->grad_x.stride[3] == 1 ? row : (char *)strided.channel;
    v16 rstd = v16_set(t->rstd[r]), minus_d = v16_set(-mean_d[r]), dx = v16_set(mean_dx[r]);
    for (int64_t d = 0; d < s->dim; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16 value = get(t->dy[r].channel, d, n);
      if (s->norm) /* minus_d is 0 without a mean */
        value = v16_fma(value, rstd, v16_fnma(get(t->xhat[r].channel, d, n), dx, minus_d));
      store(out, dtype, d, n, value);
    }
    scatter(&s->grad_x, row, dtype, s->dim, out);
  }
}

/* dxhat of one head's rows in t->dy, for the second time. */
INLINE void backward_again(const nr_block *b, nr_dtype dtype, backward_tile *t, int64_t head) {
  const nr_segment *s = b->segment;
  backward_terms(b, dtype, t, head);
  for (int64_t r = 0; r < t->rows && t->weight; r++)
    for (int64_t d = 0; d < s->dim; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16_put(&t->dy[r].channel[d], v16_mul(get(t->dy[r].channel, d, n), get(t->weight, d, n)), n);
    }
}

INLINE void backward_block(const nr_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  if (s->norm == NR_NORM_NONE && !s->rope_width) {
    if (s->grad_x.data)
      copy_block(b, &s->grad_y, &s->grad_x, dtype);
    return;
  }
  backward_tile t;
  memset(t.tables.cos, 0, sizeof t.tables.cos);
  t.weight = parameter(&s->weight, nr_norm_weighs(s->norm), 0, s->dim, &t.weight_buffer);
  int64_t heads = nr_group_heads(s);
  float count = (float)(heads * s->dim);
  for (t.first = b->first; t.first < b->first + b->count; t.first += NR_TILE) {
    t.rows = b->first + b->count - t.first < NR_TILE ? b->first + b->count - t.first : NR_TILE;
    if (s->rope_width && !tables_per_head(s))
      load_tables(s, b->batch, t.first, t.rows, 0, &t.tables);
    for (int64_t group = 0; group < s->heads / heads; group++) {
      float mean_d[NR_TILE], mean_dx[NR_TILE];
      load_statistics(b, &t, group);
      for (int64_t r = 0; r < NR_TILE; r++)
        t.sum_d[r] = t.sum_dx[r] = v16_set(0);
      for (int64_t n = group * heads; n < (group + 1) * heads; n++) {
        backward_terms(b, dtype, &t, n);
        if (s->norm)
          backward_sums(b, &t, n);
      }
      for (int64_t r = 0; r < t.rows; r++) {
        mean_d[r] = t.rstd[r] * (v16_sum(t.sum_d[r]) / count);
        mean_dx[r] = t.rstd[r] * (v16_sum(t.sum_dx[r]) / count);
      }
      for (int64_t n = group * heads; n < (group + 1) * heads && s->grad_x.data; n++) {
        if (heads > 1)
          backward_again(b, dtype, &t, n);
        backward_store(b, dtype, &t, n, mean_d, mean_dx);
      }
    }
  }
}
