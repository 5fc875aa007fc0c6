/*
 * The forward body: one for every norm, rope, layout, dtype and instruction set.
 *
 * Statistics take two passes, first the mean, then the squares of what is left, so that nothing cancels. The mean is
 * summed in float64 and used as the sum of two floats, so that x - mean is good to float32 however large the mean. With
 * statistics over all heads, x is read once for each pass, the second time and the third from the caches.
 */

enum { SQUARES_PART = 4 * CHUNK }; /* channels whose squares are added in float32 */

typedef struct forward_tile {
  int64_t first;
  float mean[NR_TILE], mean_rest[NR_TILE], rstd[NR_TILE];
  float *x, *weight, *bias; /* paired scratch; x has NR_TILE rows `pitch` apart, and becomes x - mean */
  int64_t pitch;
  tables tables;
} forward_tile;

INLINE void forward_load(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t rows, int64_t head) {
  const nr_segment *s = b->segment;
  int64_t ahead = distance_ahead(b, &s->x, dtype, t->first, head);
  for (int64_t r = 0; r < rows; r++) {
    scratch strided;
    const char *x = nr_row(&s->x, b->batch, t->first + r, head);
    x = gathered(&s->x, x, dtype, s->dim, &strided);
    for (int64_t d = 0; d < s->dim; d += CHUNK) {
      prefetch(x + ahead, dtype, d);
      put(t->x + r * t->pitch, d, load(x, dtype, d, in_chunk(s->dim, d)));
    }
  }
}

/* Takes the mean from a head's rows, the lanes behind the last channel staying 0. */
INLINE void forward_centre(const nr_segment *s, forward_tile *t, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) {
    v16 mean = v16_set(t->mean[r]), rest = v16_set(t->mean_rest[r]);
    float *row = t->x + r * t->pitch;
    for (int64_t d = 0; d < s->dim; d += CHUNK) {
      v32 x = get(row, d);
      x = (v32){v16_sub(v16_sub(x.even, mean), rest), v16_sub(v16_sub(x.odd, mean), rest)};
      int64_t n = in_chunk(s->dim, d);
      put(row, d, n == CHUNK ? x : (v32){v16_first(x.even, n / 2), v16_first(x.odd, n / 2)});
    }
  }
}

/* Leaves the centred rows of the last head in t->x; with one head to a group that is the head to go on with. */
INLINE void forward_statistics(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t rows, int64_t first,
                               int64_t heads) {
  const nr_segment *s = b->segment;
  const bool centres = nr_norm_centres(s->norm);
  double count = (double)(heads * s->dim), squares[NR_TILE] = {0};
  if (centres) {
    d16 sum[NR_TILE];
    for (int64_t r = 0; r < NR_TILE; r++)
      sum[r] = d16_zero();
    for (int64_t head = first; head < first + heads; head++) {
      forward_load(b, dtype, t, rows, head);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < s->dim; d += CHUNK) {
          v32 x = get(t->x + r * t->pitch, d);
          sum[r] = d16_add(d16_add(sum[r], x.even), x.odd);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
      double mean = d16_sum(sum[r]) / count;
      t->mean[r] = (float)mean;
      t->mean_rest[r] = (float)(mean - (double)t->mean[r]);
    }
  }
  for (int64_t head = first; head < first + heads; head++) {
    if (heads > 1 || !centres)
      forward_load(b, dtype, t, rows, head);
    if (centres)
      forward_centre(s, t, rows);
    for (int64_t part = 0; part < s->dim; part += SQUARES_PART) {
      const v16 zero = v16_set(0);
      v16 square[NR_TILE] = {zero, zero, zero, zero};
      float sums[NR_TILE];
      for (int64_t r = 0; r < rows; r++) {
        v16 sum = zero;
        for (int64_t d = part; d < s->dim && d < part + SQUARES_PART; d += CHUNK) {
          v32 x = get(t->x + r * t->pitch, d);
          sum = v16_fma(x.odd, x.odd, v16_fma(x.even, x.even, sum));
        }
        square[r] = sum;
      }
      v16_sum4(square, sums);
      for (int64_t r = 0; r < rows; r++)
        squares[r] += (double)sums[r];
    }
  }
  for (int64_t r = 0; r < rows; r++)
    t->rstd[r] = (float)(1 / sqrt(squares[r] / count + s->eps));
}

/* y before it turns, in the chunk at channel d of a centred row. */
INLINE v32 normalised(const nr_segment *s, const forward_tile *t, int64_t r, v16 rstd, int64_t d) {
  v32 y = get(t->x + r * t->pitch, d);
  if (s->norm == NR_NORM_NONE)
    return y;
  y = each_mul(y, (v32){rstd, rstd});
  if (s->norm == NR_NORM_LAYER_AFFINE)
    return each_fma(y, get(t->weight, d), get(t->bias, d));
  return s->norm == NR_NORM_RMS_AFFINE ? each_mul(y, get(t->weight, d)) : y;
}

/* The chunk at channel d of y turned. */
INLINE v32 turned(const nr_segment *s, const forward_tile *t, turn how, int64_t r, v16 rstd, int64_t d) {
  v32 value = normalised(s, t, r, rstd, d);
  if (how == TURN_NONE || d >= t->tables.turned)
    return value;
  const float *cos = t->tables.cos + r * t->pitch, *sin = t->tables.sin + r * t->pitch;
  v32 other = how == TURN_ADJACENT ? swapped(value) : normalised(s, t, r, rstd, partner_chunk(s, d));
  return each_fma(value, get(cos, d), each_mul(other, get(sin, d)));
}

INLINE void forward_store(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t rows, turn how, int64_t head) {
  const nr_segment *s = b->segment;
  for (int64_t r = 0; r < rows; r++) {
    scratch strided, plain, out_plain;
    v16 rstd = v16_set(s->norm ? t->rstd[r] : 1);
    char *row = nr_row(&s->y, b->batch, t->first + r, head);
    char *out = s->y.stride[3] == 1 ? row : (char *)strided.channel;
    if (how == TURN_PLAIN) {
      for (int64_t d = 0; d < s->dim; d += CHUNK)
        store((char *)plain.channel, NR_F32, d, in_chunk(s->dim, d), normalised(s, t, r, rstd, d), false);
      turn_plain(s, &t->tables, r, false, plain.channel, out_plain.channel);
    }
    for (int64_t d = 0; d < s->dim; d += CHUNK) {
      int64_t n = in_chunk(s->dim, d);
      v32 value =
          how == TURN_PLAIN ? load((const char *)out_plain.channel, NR_F32, d, n) : turned(s, t, how, r, rstd, d);
      store(out, dtype, d, n, value, b->stream);
    }
    scatter(&s->y, row, dtype, s->dim, out);
  }
}

/* One head from its loaded rows to y. */
INLINE void forward_head(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t rows, int64_t head) {
  const nr_segment *s = b->segment;
  if (tables_per_head(s))
    load_tables(s, b->batch, t->first, rows, head, &t->tables);
  if (per_head(&s->weight))
    load_parameter(&s->weight, head, s->dim, t->weight);
  if (per_head(&s->bias))
    load_parameter(&s->bias, head, s->dim, t->bias);
  switch (t->tables.turn) { /* each a body of its own to the compiler */
  case TURN_NONE: forward_store(b, dtype, t, rows, TURN_NONE, head); break;
  case TURN_ADJACENT: forward_store(b, dtype, t, rows, TURN_ADJACENT, head); break;
  case TURN_CHUNKS: forward_store(b, dtype, t, rows, TURN_CHUNKS, head); break;
  case TURN_PLAIN: forward_store(b, dtype, t, rows, TURN_PLAIN, head); break;
  }
}

INLINE void forward_rows(const nr_block *b, nr_dtype dtype, forward_tile *t, int64_t rows) {
  const nr_segment *s = b->segment;
  int64_t heads = nr_group_heads(s);
  if (s->rope_width && !tables_per_head(s))
    load_tables(s, b->batch, t->first, rows, 0, &t->tables);
  for (int64_t first = 0; first < s->heads; first += heads) {
    if (s->norm)
      forward_statistics(b, dtype, t, rows, first, heads);
    for (int64_t r = 0; r < rows; r++) {
      if (s->mean.data)
        *(float *)nr_row(&s->mean, b->batch, t->first + r, first / heads) = nr_f32_quiet(t->mean[r]);
      if (s->rstd.data)
        *(float *)nr_row(&s->rstd, b->batch, t->first + r, first / heads) = nr_f32_quiet(t->rstd[r]);
    }
    for (int64_t head = first; head < first + heads; head++) {
      if (heads > 1 || s->norm == NR_NORM_NONE)
        forward_load(b, dtype, t, rows, head);
      if (heads > 1 && nr_norm_centres(s->norm))
        forward_centre(s, t, rows);
      forward_head(b, dtype, t, rows, head);
    }
  }
}

INLINE void forward_block(const nr_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  if (s->norm == NR_NORM_NONE && !s->rope_width) {
    copy_block(b, &s->x, &s->y, dtype);
    return;
  }
  forward_tile t;
  _Alignas(64) float pool[(3 * NR_TILE + 2) * (NR_MAX_DIM + HALF_CHUNK)];
  t.pitch = t.tables.pitch = pitch_of(s);
  t.x = pool;
  t.tables.cos = t.x + NR_TILE * t.pitch;
  t.tables.sin = t.tables.cos + NR_TILE * t.pitch;
  t.weight = t.tables.sin + NR_TILE * t.pitch;
  t.bias = t.weight + t.pitch;
  t.tables.turn = TURN_NONE;
  if (s->weight.data && !per_head(&s->weight))
    load_parameter(&s->weight, 0, s->dim, t.weight);
  if (s->bias.data && !per_head(&s->bias))
    load_parameter(&s->bias, 0, s->dim, t.bias);
  int64_t end = b->first + b->count;
  for (int64_t rows = NR_TILE; rows; rows = rows == NR_TILE ? 1 : 0) /* whole tiles, then single rows */
    for (t.first = rows == NR_TILE ? b->first : t.first; t.first + rows <= end; t.first += rows)
      forward_rows(b, dtype, &t, rows);
  if (b->stream)
    v32_fence();
}
