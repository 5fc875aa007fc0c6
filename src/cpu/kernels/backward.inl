/*
 * The backward body: one for every norm, rope, layout, dtype and instruction set. With dy the transposed rotation of
 * grad_y, dxhat = weight * dy, and rstd split into scale, a power of two, and fraction, u = (x - mean) * scale,
 *
 *   grad_x = rstd * dxhat - (rstd * mean(dxhat) + u * rstd * fraction^2 * mean(dxhat * u))
 *   grad_weight += dy * u * fraction,  grad_bias += dy
 *
 * with means over the channels that share statistics. That is the gradient of the definition, its factors sorted so
 * that little is rounded on the way: u * scale is exact, and the result is one fused multiply-add of dxhat and a
 * correction that is small in long rows, whose factors are made in float64.
 *
 * Tiles of NR_TILE positions are walked head by head, so that table rows serve all heads from the first-level cache. A
 * head's rows of a tile add their part of the parameter gradients in float32, which then goes into the block's float64
 * sums. With statistics over all heads, terms are made twice: once for the means, once for the result.
 */

typedef struct backward_tile {
  int64_t first, rows;
  float rstd[NR_TILE], fraction[NR_TILE], scale[NR_TILE], offset[NR_TILE]; /* offset = -mean * scale */
  const float *weight;
  v16 sum_d[NR_TILE], sum_du[NR_TILE]; /* of dxhat, of dxhat * u */
  scratch dy[NR_TILE], u[NR_TILE];     /* dy becomes dxhat */
  tables tables;
  scratch weight_buffer;
} backward_tile;

/* The power of two at or below a normal number; 1 for what has none. */
INLINE float power_of_two(float value) {
  uint32_t exponent = nr_bits_f32(value) & 0x7f800000u;
  return exponent && exponent != 0x7f800000u ? nr_f32_bits(exponent) : 1;
}

INLINE void load_statistics(const nr_block *b, backward_tile *t, int64_t group) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < t->rows; r++) {
    float mean = nr_norm_centres(s->norm) ? *(const float *)nr_row(&s->mean, b->batch, t->first + r, group) : 0;
    float rstd = s->norm ? *(const float *)nr_row(&s->rstd, b->batch, t->first + r, group) : 1;
    float scale = power_of_two(rstd);
    if (!isfinite(mean * scale))
      scale = 1;
    t->rstd[r] = rstd;
    t->fraction[r] = rstd / scale;
    t->scale[r] = scale;
    t->offset[r] = -mean * scale;
  }
}

/* dy and u of one head's rows. */
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
    for (int64_t d = 0; d < s->dim; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16 u = v16_fma(load(x, dtype, d, n), v16_set(t->scale[r]), v16_set(t->offset[r]));
      v16_put(&t->u[r].channel[d], u, n);
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
      v16 dy = get(t->dy[r].channel, d, n), u = get(t->u[r].channel, d, n), dxhat = dy;
      if (t->weight) {
        dxhat = v16_mul(dy, get(t->weight, d, n));
        v16_put(&t->dy[r].channel[d], dxhat, n);
      }
      if (nr_norm_centres(s->norm))
        t->sum_d[r] = v16_add(t->sum_d[r], dxhat);
      t->sum_du[r] = v16_fma(dxhat, u, t->sum_du[r]);
      dweight = v16_fma(dy, v16_mul(u, v16_set(t->fraction[r])), dweight);
      dbias = v16_add(dbias, dy);
    }
    if (weight_sum)
      v16_add_to(weight_sum + d, dweight, n);
    if (bias_sum)
      v16_add_to(bias_sum + d, dbias, n);
  }
}

/* One head's grad_x; shift[r] and slope[r] are -rstd * mean(dxhat) and rstd * fraction^2 * mean(dxhat * u)
   of its rows. */
INLINE void backward_store(const nr_block *b, nr_dtype dtype, const backward_tile *t, int64_t head, const float *shift,
                           const float *slope) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < t->rows; r++) {
    scratch strided;
    char *row = nr_row(&s->grad_x, b->batch, t->first + r, head);
    char *out = s->grad_x.stride[3] == 1 ? row : (char *)strided.channel;
    v16 rstd = v16_set(t->rstd[r]);
    for (int64_t d = 0; d < s->dim; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16 value = get(t->dy[r].channel, d, n);
      if (s->norm)
        value = v16_fma(value, rstd, v16_fnma(get(t->u[r].channel, d, n), v16_set(slope[r]), v16_set(shift[r])));
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
  double share = 1 / (double)(heads * s->dim);
  for (t.first = b->first; t.first < b->first + b->count; t.first += NR_TILE) {
    t.rows = b->first + b->count - t.first < NR_TILE ? b->first + b->count - t.first : NR_TILE;
    if (s->rope_width && !tables_per_head(s))
      load_tables(s, b->batch, t.first, t.rows, 0, &t.tables);
    for (int64_t group = 0; group < s->heads / heads; group++) {
      float shift[NR_TILE], slope[NR_TILE];
      load_statistics(b, &t, group);
      for (int64_t r = 0; r < NR_TILE; r++)
        t.sum_d[r] = t.sum_du[r] = v16_set(0);
      for (int64_t n = group * heads; n < (group + 1) * heads; n++) {
        backward_terms(b, dtype, &t, n);
        if (s->norm)
          backward_sums(b, &t, n);
      }
      for (int64_t r = 0; r < t.rows; r++) {
        double rstd = t.rstd[r], fraction = t.fraction[r];
        shift[r] = (float)(-rstd * share * v16_sum(t.sum_d[r]));
        slope[r] = (float)(rstd * fraction * fraction * share * v16_sum(t.sum_du[r]));
      }
      for (int64_t n = group * heads; n < (group + 1) * heads && s->grad_x.data; n++) {
        if (heads > 1)
          backward_again(b, dtype, &t, n);
        backward_store(b, dtype, &t, n, shift, slope);
      }
    }
  }
}
