/*
 * The forward body: one for every norm, rope, layout, dtype and instruction set.
 *
 * Statistics take two passes, first the mean, then the squares of what is left, so that nothing cancels. The mean is
 * summed in float64 and used as the sum of two floats, so that x - mean is good to float32 however large the mean.
 */

typedef struct forward_tile {
  int64_t first, rows;
  float mean[NR_TILE], mean_rest[NR_TILE], rstd[NR_TILE];
  scratch x[NR_TILE];
  tables tables;
  scratch weight_buffer, bias_buffer;
} forward_tile;

INLINE void forward_load(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t head) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < t->rows; r++) {
    scratch strided;
    const char *x = nr_row(&s->x, b->batch, t->first + r, head);
    convert(gathered(&s->x, x, dtype, s->dim, &strided), dtype, s->dim, t->x[r].channel);
  }
}

INLINE v16 deviation(const nr_segment *s, const forward_tile *t, int64_t r, int64_t d, int64_t n) {
  v16 x = get(t->x[r].channel, d, n);
  if (!nr_norm_centres(s->norm))
    return x;
  x = v16_sub(v16_sub(x, v16_set(t->mean[r])), v16_set(t->mean_rest[r]));
  return n == VECTOR ? x : v16_first(x, n);
}

/* Leaves the rows of the last head in t->x; with one head to a group that is the head to go on with. */
INLINE void forward_statistics(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t first, int64_t heads) {
  const nr_segment *s = b->segment;
  double count = (double)(heads * s->dim);
  if (nr_norm_centres(s->norm)) {
    d16 sum[NR_TILE];
    for (int64_t r = 0; r < t->rows; r++)
      sum[r] = d16_zero();
    for (int64_t head = first; head < first + heads; head++) {
      forward_load(b, dtype, t, head);
      for (int64_t r = 0; r < t->rows; r++)
        for (int64_t d = 0; d < s->dim; d += VECTOR)
          sum[r] = d16_add(sum[r], get(t->x[r].channel, d, lanes(s->dim, d)));
    }
    for (int64_t r = 0; r < t->rows; r++) {
      double mean = d16_sum(sum[r]) / count;
      t->mean[r] = (float)mean;
      t->mean_rest[r] = (float)(mean - (double)t->mean[r]);
    }
  }
  double squares[NR_TILE] = {0}; /* across heads: a float would lose what the later heads add */
  for (int64_t head = first; head < first + heads; head++) {
    if (heads > 1 || !nr_norm_centres(s->norm))
      forward_load(b, dtype, t, head);
    for (int64_t r = 0; r < t->rows; r++) {
      v16 square = v16_set(0);
      for (int64_t d = 0; d < s->dim; d += VECTOR) {
        v16 x = deviation(s, t, r, d, lanes(s->dim, d));
        square = v16_fma(x, x, square);
      }
      squares[r] += (double)v16_sum(square);
    }
  }
  for (int64_t r = 0; r < t->rows; r++)
    t->rstd[r] = (float)(1 / sqrt(squares[r] / count + s->eps));
}

INLINE void forward_store(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t head) {
  const nr_segment *s = b->segment;
  if (tables_per_head(s))
    load_tables(s, b->batch, t->first, t->rows, head, &t->tables);
  const float *weight =
      parameter(&s->weight, nr_norm_weighs(s->norm), s->weight.stride[2] ? head : 0, s->dim, &t->weight_buffer);
  const float *bias =
      parameter(&s->bias, s->norm == NR_NORM_LAYER_AFFINE, s->bias.stride[2] ? head : 0, s->dim, &t->bias_buffer);
  for (int64_t r = 0; r < t->rows; r++) {
    scratch strided;
    v16 rstd = v16_set(t->rstd[r]);
    for (int64_t d = 0; d < s->dim && s->norm; d += VECTOR) {
      int64_t n = lanes(s->dim, d);
      v16_put(&t->x[r].channel[d], affine(v16_mul(deviation(s, t, r, d, n), rstd), weight, bias, d, n), n);
    }
    char *row = nr_row(&s->y, b->batch, t->first + r, head);
    char *out = s->y.stride[3] == 1 ? row : (char *)strided.channel;
    rotate(s, &t->tables, r, false, (const char *)t->x[r].channel, NR_F32, out, dtype);
    scatter(&s->y, row, dtype, s->dim, out);
  }
}

INLINE void forward_block(const nr_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  if (s->norm == NR_NORM_NONE && !s->rope_width) {
    copy_block(b, &s->x, &s->y, dtype);
    return;
  }
  forward_tile t;
  memset(t.tables.cos, 0, sizeof t.tables.cos);
  int64_t heads = nr_group_heads(s);
  for (t.first = b->first; t.first < b->first + b->count; t.first += NR_TILE) {
    t.rows = b->first + b->count - t.first < NR_TILE ? b->first + b->count - t.first : NR_TILE;
    if (s->rope_width && !tables_per_head(s))
      load_tables(s, b->batch, t.first, t.rows, 0, &t.tables);
    for (int64_t first = 0; first < s->heads; first += heads) {
      if (s->norm)
        forward_statistics(b, dtype, &t, first, heads);
      for (int64_t r = 0; r < t.rows; r++) {
        if (s->mean.data)
          *(float *)nr_row(&s->mean, b->batch, t.first + r, first / heads) = nr_f32_quiet(t.mean[r]);
        if (s->rstd.data)
          *(float *)nr_row(&s->rstd, b->batch, t.first + r, first / heads) = nr_f32_quiet(t.rstd[r]);
      }
      for (int64_t head = first; head < first + heads; head++) {
        if (heads > 1 || s->norm == NR_NORM_NONE)
          forward_load(b, dtype, &t, head);
        forward_store(b, dtype, &t, head);
      }
    }
  }
}
