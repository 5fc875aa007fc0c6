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
  const char *g[NR_TILE], *x[NR_TILE]; /* the rows' elements side by side; with TURN_PLAIN g is dy, in floats */
  int64_t g_ahead, x_ahead;            /* bytes to what is prefetched */
  float rstd[NR_TILE], fraction[NR_TILE], scale[NR_TILE], offset[NR_TILE]; /* offset = -mean * scale */
  float shift[NR_TILE], slope[NR_TILE];   /* -rstd * mean(dxhat), rstd * fraction^2 * mean(dxhat * u) */
  double sum_d[NR_TILE], sum_du[NR_TILE]; /* of dxhat, of dxhat * u */
  double *weight_sum, *bias_sum;          /* of the head; NULL: not wanted */
  float *dxhat, *u, *weight;              /* paired scratch; dxhat and u NR_TILE rows `pitch` apart */
  int64_t pitch;
  scratch g_strided[NR_TILE], x_strided[NR_TILE];
  tables tables;
} backward_tile;

/* The power of two at or below a number, but no subnormal; 1 for 0, infinity and NaN. */
INLINE float power_of_two(float value) {
  uint32_t exponent = nr_bits_f32(value) & 0x7f800000u;
  if (exponent == 0x7f800000u || value == 0)
    return 1;
  return exponent ? nr_f32_bits(exponent) : 0x1p-126f;
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
    t->sum_d[r] = t->sum_du[r] = 0;
  }
}

/* dy of the chunk at channel d of a row of gradients. */
INLINE v32 turned_back(const nr_segment *s, turn how, const float *cos, const float *sin, const char *row,
                       nr_dtype dtype, int64_t d, int64_t n, int64_t turns) {
  v32 g = load(row, dtype, d, n);
  if (how == TURN_ADJACENT && d < turns)
    return each_fma(g, get(cos, d), swapped(each_mul(g, get(sin, d))));
  if (how == TURN_CHUNKS && d < turns) {
    int64_t partner = partner_chunk(s, d);
    return each_fma(g, get(cos, d), each_mul(load(row, dtype, partner, CHUNK), get(sin, partner)));
  }
  return g;
}

/* What the terms of a head need and add up, in registers. */
typedef struct backward_work {
  bool norm, weighs, centres;
  int64_t pitch, turns;
  double *weight_sum, *bias_sum;
  const float *cos, *sin, *weight;
  float *dxhat, *u;
  const char *g[NR_TILE], *x[NR_TILE];
  int64_t g_ahead, x_ahead;
  v16 scale[NR_TILE], offset[NR_TILE], fraction[NR_TILE], sum_d[NR_TILE], sum_du[NR_TILE];
} backward_work;

/* dxhat and u in the chunk at channel d of a head's rows, and what they add to the sums over channels and rows. */
INLINE void backward_chunk(const nr_segment *s, backward_work *w, nr_dtype dtype, turn how, int64_t rows, int64_t d,
                           int64_t n) {
  const v16 zero = v16_set(0);
  v32 dweight = {zero, zero}, dbias = {zero, zero}, weight = w->weighs ? get(w->weight, d) : dweight;
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    prefetch(w->g[r] + w->g_ahead, dtype, d);
    v32 dy = turned_back(s, how, w->cos + r * w->pitch, w->sin + r * w->pitch, w->g[r],
                         how == TURN_PLAIN ? NR_F32 : dtype, d, n, w->turns);
    v32 dxhat = w->weighs ? each_mul(dy, weight) : dy;
    put(w->dxhat + r * w->pitch, d, dxhat);
    if (!w->norm)
      continue;
    prefetch(w->x[r] + w->x_ahead, dtype, d);
    v32 u = each_fma(load(w->x[r], dtype, d, n), (v32){w->scale[r], w->scale[r]}, (v32){w->offset[r], w->offset[r]});
    if (n < CHUNK)
      u = (v32){v16_first(u.even, n / 2), v16_first(u.odd, n / 2)};
    put(w->u + r * w->pitch, d, u);
    if (w->centres)
      w->sum_d[r] = v16_add(v16_add(w->sum_d[r], dxhat.even), dxhat.odd);
    w->sum_du[r] = v16_fma(dxhat.odd, u.odd, v16_fma(dxhat.even, u.even, w->sum_du[r]));
    if (w->weight_sum)
      dweight = each_fma(dy, each_mul(u, (v32){w->fraction[r], w->fraction[r]}), dweight);
    if (w->bias_sum)
      dbias = (v32){v16_add(dbias.even, dy.even), v16_add(dbias.odd, dy.odd)};
  }
  if (w->weight_sum) {
    d16_add_to(w->weight_sum + d, dweight.even);
    d16_add_to(w->weight_sum + d + HALF_CHUNK, dweight.odd);
  }
  if (w->bias_sum) {
    d16_add_to(w->bias_sum + d, dbias.even);
    d16_add_to(w->bias_sum + d + HALF_CHUNK, dbias.odd);
  }
}

/* dxhat and u of one head's rows, and their sums. */
INLINE void backward_terms(const nr_segment *s, backward_tile *t, nr_dtype dtype, turn how, int64_t rows) {
  backward_work w = {.norm = s->norm != NR_NORM_NONE,
                     .weighs = nr_norm_weighs(s->norm),
                     .centres = nr_norm_centres(s->norm),
                     .pitch = t->pitch,
                     .turns = t->tables.turned,
                     .weight_sum = t->weight_sum,
                     .bias_sum = t->bias_sum,
                     .cos = t->tables.cos,
                     .sin = t->tables.sin,
                     .weight = t->weight,
                     .dxhat = t->dxhat,
                     .u = t->u,
                     .g_ahead = how == TURN_PLAIN ? 0 : t->g_ahead,
                     .x_ahead = t->x_ahead};
  UNROLLED
  for (int64_t r = 0; r < NR_TILE; r++) {
    w.sum_d[r] = w.sum_du[r] = v16_set(0);
    if (r >= rows)
      continue;
    w.g[r] = t->g[r], w.x[r] = t->x[r];
    w.scale[r] = v16_set(t->scale[r]), w.offset[r] = v16_set(t->offset[r]), w.fraction[r] = v16_set(t->fraction[r]);
  }
  int64_t whole = V16_REGISTERS ? s->dim / CHUNK * CHUNK : 0;
  for (int64_t d = 0; d < whole; d += CHUNK)
    backward_chunk(s, &w, dtype, how, rows, d, CHUNK);
  for (int64_t d = whole; d < s->dim; d += CHUNK)
    backward_chunk(s, &w, dtype, how, rows, d, in_chunk(s->dim, d));
  float of_d[NR_TILE] = {0}, of_du[NR_TILE];
  if (w.centres)
    v16_sum4(w.sum_d, of_d);
  v16_sum4(w.sum_du, of_du);
  for (int64_t r = 0; r < rows; r++) {
    t->sum_d[r] += (double)of_d[r];
    t->sum_du[r] += (double)of_du[r];
  }
}

/* A function for each dtype and way of turning, for whole tiles and for single rows. */
#define TERMS(dtype, how)                                                                                              \
  APART void terms_##dtype##_##how(const nr_segment *s, backward_tile *t) {                                            \
    if (V16_REGISTERS && t->rows == NR_TILE)                                                                           \
      backward_terms(s, t, NR_##dtype, TURN_##how, NR_TILE);                                                           \
    else                                                                                                               \
      backward_terms(s, t, NR_##dtype, TURN_##how, V16_REGISTERS ? 1 : t->rows);                                       \
  }
#define TERMS_OF(dtype) TERMS(dtype, NONE) TERMS(dtype, ADJACENT) TERMS(dtype, CHUNKS) TERMS(dtype, PLAIN)
TERMS_OF(F32)
TERMS_OF(F16)
TERMS_OF(BF16)
#define TERMS_ROW(dtype)                                                                                               \
  [NR_##dtype] = {[TURN_NONE] = terms_##dtype##_NONE,                                                                  \
                  [TURN_ADJACENT] = terms_##dtype##_ADJACENT,                                                          \
                  [TURN_CHUNKS] = terms_##dtype##_CHUNKS,                                                              \
                  [TURN_PLAIN] = terms_##dtype##_PLAIN}
static void (*const terms_functions[3][4])(const nr_segment *, backward_tile *) = {TERMS_ROW(F32), TERMS_ROW(F16),
                                                                                   TERMS_ROW(BF16)};

/* One head's grad_x. */
INLINE void backward_store(const nr_block *b, nr_dtype dtype, const backward_tile *t, int64_t head, bool stream) {
  const nr_segment *s = b->segment;
  const bool norm = s->norm != NR_NORM_NONE;
  const int64_t dim = s->dim;
  for (int64_t r = 0; r < t->rows; r++) {
    scratch strided;
    char *row = nr_row(&s->grad_x, b->batch, t->first + r, head);
    char *out = s->grad_x.stride[3] == 1 ? row : (char *)strided.channel;
    const float *const dxhat = t->dxhat + r * t->pitch, *const u = t->u + r * t->pitch;
    v16 rstd = v16_set(t->rstd[r]), shift = v16_set(t->shift[r]), slope = v16_set(t->slope[r]);
    for (int64_t d = 0; d < dim; d += CHUNK) {
      v32 value = get(dxhat, d);
      if (norm) {
        v32 of_u = get(u, d);
        value.even = v16_fma(value.even, rstd, v16_fnma(of_u.even, slope, shift));
        value.odd = v16_fma(value.odd, rstd, v16_fnma(of_u.odd, slope, shift));
      }
      store(out, dtype, d, in_chunk(dim, d), value, stream);
    }
    scatter(&s->grad_x, row, dtype, dim, out);
  }
}

/* The terms of one head. Its sums over rows go to the block's only where `summed`: the first time. */
INLINE void backward_head(const nr_block *b, nr_dtype dtype, backward_tile *t, int64_t head, bool summed) {
  const nr_segment *s = b->segment;
  if (tables_per_head(s))
    load_tables(s, b->batch, t->first, t->rows, head, &t->tables);
  if (per_head(&s->weight))
    load_parameter(&s->weight, head, s->dim, t->weight);
  for (int64_t r = 0; r < t->rows; r++) {
    const char *row = nr_row(&s->grad_y, b->batch, t->first + r, head);
    if (t->tables.turn == TURN_PLAIN) {
      scratch plain;
      load_row(&s->grad_y, row, dtype, s->dim, plain.channel, false);
      turn_plain(s, &t->tables, r, true, plain.channel, t->g_strided[r].channel);
      t->g[r] = (const char *)t->g_strided[r].channel;
    } else {
      t->g[r] = gathered(&s->grad_y, row, dtype, s->dim, &t->g_strided[r]);
    }
    if (s->norm)
      t->x[r] = gathered(&s->x, nr_row(&s->x, b->batch, t->first + r, head), dtype, s->dim, &t->x_strided[r]);
  }
  int64_t padded = nr_padded(s->dim);
  t->weight_sum = b->weight_sum && summed ? b->weight_sum + (s->grad_weight.stride[2] ? head * padded : 0) : NULL;
  t->bias_sum = b->bias_sum && summed ? b->bias_sum + (s->grad_bias.stride[2] ? head * padded : 0) : NULL;
  terms_functions[dtype][t->tables.turn](s, t);
}

INLINE void backward_rows(const nr_block *b, nr_dtype dtype, backward_tile *t) {
  const nr_segment *s = b->segment;
  int64_t heads = nr_group_heads(s);
  double share = 1 / (double)(heads * s->dim);
  if (s->rope_width && !tables_per_head(s))
    load_tables(s, b->batch, t->first, t->rows, 0, &t->tables);
  for (int64_t first = 0; first < s->heads; first += heads) {
    load_statistics(b, t, first / heads);
    for (int64_t n = first; n < first + heads; n++) {
      t->g_ahead = distance_ahead(b, &s->grad_y, dtype, t->first, n);
      t->x_ahead = distance_ahead(b, &s->x, dtype, t->first, n);
      backward_head(b, dtype, t, n, true);
    }
    for (int64_t r = 0; r < t->rows; r++) {
      double rstd = t->rstd[r], fraction = t->fraction[r];
      t->shift[r] = (float)(-rstd * share * t->sum_d[r]);
      t->slope[r] = (float)(rstd * fraction * fraction * share * t->sum_du[r]);
    }
    for (int64_t n = first; n < first + heads && s->grad_x.data; n++) {
      if (heads > 1)
        backward_head(b, dtype, t, n, false);
      if (b->stream)
        backward_store(b, dtype, t, n, true);
      else
        backward_store(b, dtype, t, n, false);
    }
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
  _Alignas(64) float pool[(4 * NR_TILE + 1) * (NR_MAX_DIM + HALF_CHUNK)];
  t.pitch = t.tables.pitch = pitch_of(s);
  t.dxhat = pool;
  t.u = t.dxhat + NR_TILE * t.pitch;
  t.tables.cos = t.u + NR_TILE * t.pitch;
  t.tables.sin = t.tables.cos + NR_TILE * t.pitch;
  t.weight = t.tables.sin + NR_TILE * t.pitch;
  t.tables.turn = TURN_NONE;
  if (s->weight.data && !per_head(&s->weight))
    load_parameter(&s->weight, 0, s->dim, t.weight);
  int64_t end = b->first + b->count;
  for (t.first = b->first; t.first < end; t.first += t.rows) {
    t.rows = end - t.first < NR_TILE ? 1 : NR_TILE;
    backward_rows(b, dtype, &t);
  }
  if (b->stream)
    v32_fence();
}
