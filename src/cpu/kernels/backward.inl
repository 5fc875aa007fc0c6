/*
 * The backward body: one for every norm, rope, layout, dtype and instruction set. With dy the transposed rotation of
 * grad_y, dxhat = weight * dy and xhat = (x - mean) * rstd,
 *
 *   grad_x = rstd * dxhat - (rstd * mean(dxhat) + xhat * rstd * mean(dxhat * xhat))
 *   grad_weight += dy * xhat,  grad_bias += dy
 *
 * with means over the channels that share statistics, their factors made in float64. x - mean is exact where x is near
 * the mean, so that xhat is good to two roundings of its own. The result is one fused multiply-add of dxhat and a
 * correction that is small in long rows.
 *
 * A group of rows is read, and dxhat and xhat kept in the first-level cache, to make the sums over channels; then they
 * are read again to make the result. In between stands a chain of dependent operations, so the next group is read
 * first. The rows of a group add their part of the parameter gradients in registers, groups in float32, and FLUSH of
 * those in float64.
 *
 * With statistics over all heads a group is ROWS positions of one head, and all heads are read before any result is
 * made; dxhat and xhat are kept where there is room, else made again.
 */

enum {
  FLUSH = 32,     /* groups whose parts of a parameter gradient are added in float32 */
  KEPT = 48 << 10 /* floats that may be kept for all heads: 192 KiB, of the second-level cache */
};

typedef struct backward_group {
  int64_t rows;                  /* ROWS or 1 */
  const char *g[ROWS], *x[ROWS]; /* the rows' elements side by side; with TURN_PLAIN g is dy, in floats */
  char *g_ahead[ROWS], *x_ahead[ROWS];
  bool one_position; /* of whole groups: all rows have the tables of the first */
  const float *cos[ROWS], *sin[ROWS];
  float mean[ROWS], rstd[ROWS];
  float shift[ROWS], slope[ROWS];   /* -rstd * mean(dxhat), rstd * mean(dxhat * xhat) */
  double sum_d[ROWS], sum_dx[ROWS]; /* of dxhat, of dxhat * xhat */
  float *dxhat[ROWS], *xhat[ROWS];  /* scratch */
  char *out[ROWS];
  scratch *g_strided, *x_strided; /* [ROWS] */
} backward_group;

typedef struct backward_state {
  const nr_block *b;
  tile tile;
  tables tables;
  int64_t pitch;
  float *weight;                  /* of the head */
  float *weight_part, *bias_part; /* of the head: float32 sums of the block's, or scratch where those are not wanted */
  float *unwanted;
  cursor at; /* and where it is in each view */
  walk g, x, out, mean, rstd;
  prefetch g_ahead, x_ahead;
  int64_t added; /* groups whose sums are in the float32 parts */
} backward_state;

/* What a group's sums come to, with `share` one over the number of channels. */
INLINE void backward_means(backward_group *of, double share) {
  rows_f64 sum_d, sum_dx;
  rows_f32 rstd32;
  memcpy(&sum_d, of->sum_d, sizeof sum_d);
  memcpy(&sum_dx, of->sum_dx, sizeof sum_dx);
  memcpy(&rstd32, of->rstd, sizeof rstd32);
  const rows_f64 rstd = __builtin_convertvector(rstd32, rows_f64) * share;
  const rows_f32 shift = __builtin_convertvector(-rstd * sum_d, rows_f32),
                 slope = __builtin_convertvector(rstd * sum_dx, rows_f32);
  memcpy(of->shift, &shift, sizeof shift);
  memcpy(of->slope, &slope, sizeof slope);
}

/* What row r turns by, in the chunk at channel d, which turns with that at `partner`. */
INLINE angles backward_angles(const backward_group *of, turn how, int64_t r, int64_t d, int64_t partner) {
  const v32 zero = both(v16_set(0));
  return how == TURN_ADJACENT || how == TURN_CHUNKS ? (angles){get(of->cos[r], d), get(of->sin[r], partner)}
                                                    : (angles){zero, zero};
}

/* dy of the chunk at channel d of a row of gradients. */
INLINE v32 turned_back(turn how, angles by, const char *row, nr_dtype dtype, int64_t d, int64_t partner, int64_t n) {
  if (how == TURN_PLAIN)
    return arranged(load(row, NR_F32, d, n), NR_F32, dtype);
  v32 g = load(row, dtype, d, n);
  if (how == TURN_ADJACENT)
    return each_fma(g, by.cos, swapped(each_mul(g, by.sin), dtype));
  if (how == TURN_CHUNKS)
    return each_fma(g, by.cos, each_mul(load(row, dtype, partner, CHUNK), by.sin));
  return g;
}

typedef struct backward_sums {
  v16 d[ROWS], dx[ROWS];
} backward_sums;

/* dxhat in the chunk at channel d of a group's rows, and what they add to the sums over channels and rows. */
INLINE void backward_chunk(const backward_state *t, const backward_group *of, backward_sums *sums, nr_dtype dtype,
                           turn how, bool one_position, int64_t rows, nr_norm norm, int64_t d, int64_t n) {
  const int64_t partner = how == TURN_CHUNKS ? partner_chunk(t->b->segment, d) : d;
  const v32 zero = both(v16_set(0));
  const bool weighs = nr_norm_weighs(norm), centres = nr_norm_centres(norm);
  v32 dweight = zero, dbias = zero, weight = weighs ? get(t->weight, d) : zero;
  const angles first = backward_angles(of, how, 0, d, partner);
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    bring(of->g_ahead[r], dtype, d);
    v32 dy = turned_back(how, one_position ? first : backward_angles(of, how, r, d, partner), of->g[r], dtype, d,
                         partner, n);
    v32 dxhat = weighs ? each_mul(dy, weight) : dy;
    put(of->dxhat[r], d, dxhat);
    if (norm == NR_NORM_NONE)
      continue;
    v32 x = load(of->x[r], dtype, d, n), rstd = both(v16_set(of->rstd[r])), xhat;
    if (centres) {
      xhat = each_mul(each_sub(x, both(v16_set(of->mean[r]))), rstd);
      xhat = first_channels(xhat, dtype, n);
      sums->d[r] = v16_add(v16_add(sums->d[r], dxhat.a), dxhat.b);
    } else {
      xhat = each_mul(x, rstd);
    }
    put(of->xhat[r], d, xhat);
    sums->dx[r] = v16_fma(dxhat.b, xhat.b, v16_fma(dxhat.a, xhat.a, sums->dx[r]));
    if (weighs)
      dweight = each_fma(dy, xhat, dweight);
    if (weighs && centres)
      dbias = each_add(dbias, dy);
  }
  if (weighs)
    put(t->weight_part, d, each_add(get(t->weight_part, d), dweight));
  if (weighs && centres)
    put(t->bias_part, d, each_add(get(t->bias_part, d), dbias));
}

INLINE void backward_terms(const backward_state *t, backward_group *of, nr_dtype dtype, turn how, bool one_position,
                           int64_t rows, nr_norm norm) {
  const int64_t dim = t->b->segment->dim, whole = dim / CHUNK * CHUNK;
  const int64_t turned = how == TURN_PLAIN || t->tables.turned > whole ? whole : t->tables.turned;
  backward_sums sums;
  UNROLLED
  for (int64_t r = 0; r < ROWS; r++)
    sums.d[r] = sums.dx[r] = v16_set(0);
  int64_t d = 0;
  for (; d < turned; d += CHUNK)
    backward_chunk(t, of, &sums, dtype, how, one_position, rows, norm, d, CHUNK);
  if (how != TURN_PLAIN)
    for (; d < whole; d += CHUNK)
      backward_chunk(t, of, &sums, dtype, TURN_NONE, true, rows, norm, d, CHUNK);
  if (d < dim && how != TURN_CHUNKS && (how != TURN_ADJACENT || t->tables.turned == dim))
    backward_chunk(t, of, &sums, dtype, how, one_position, rows, norm, d, dim - d);
  else if (d < dim)
    backward_chunk(t, of, &sums, dtype, TURN_NONE, true, rows, norm, d, dim - d);
  float sum_d[ROWS] = {0}, sum_dx[ROWS] = {0};
  if (nr_norm_centres(norm))
    v16_sum4(sums.d, sum_d);
  if (norm != NR_NORM_NONE)
    v16_sum4(sums.dx, sum_dx);
  for (int64_t r = 0; r < ROWS; r++)
    of->sum_d[r] = (double)sum_d[r], of->sum_dx[r] = (double)sum_dx[r];
}

/* The same for whole groups of one position, with the norm as a constant. */
INLINE void backward_whole(const backward_state *t, backward_group *of, nr_dtype dtype, turn how) {
#define WHOLE(norm)                                                                                                    \
  case norm: backward_terms(t, of, dtype, how, true, ROWS, norm); break
  switch (t->b->segment->norm) {
    WHOLE(NR_NORM_NONE);
    WHOLE(NR_NORM_LAYER);
    WHOLE(NR_NORM_LAYER_AFFINE);
    WHOLE(NR_NORM_RMS);
    WHOLE(NR_NORM_RMS_AFFINE);
  }
#undef WHOLE
}

/* dxhat of a group, and its sums; a function for each dtype and way of turning. */
#define TERMS(dtype, how)                                                                                              \
  APART void terms_##dtype##_##how(const backward_state *t, backward_group *of) {                                      \
    const nr_norm norm = t->b->segment->norm;                                                                          \
    const bool whole = V16_REGISTERS && of->rows == ROWS;                                                              \
    if (whole && (TURN_##how == TURN_NONE || of->one_position))                                                        \
      backward_whole(t, of, NR_##dtype, TURN_##how);                                                                   \
    else if (whole)                                                                                                    \
      backward_terms(t, of, NR_##dtype, TURN_##how, false, ROWS, norm);                                                \
    else                                                                                                               \
      backward_terms(t, of, NR_##dtype, TURN_##how, false, of->rows, norm);                                            \
  }
#define TERMS_PLAIN(dtype)                                                                                             \
  APART void terms_##dtype##_PLAIN(const backward_state *t, backward_group *of) {                                      \
    backward_terms(t, of, NR_##dtype, TURN_PLAIN, false, of->rows, t->b->segment->norm);                               \
  }
#define TERMS_OF(dtype) TERMS(dtype, NONE) TERMS(dtype, ADJACENT) TERMS(dtype, CHUNKS) TERMS_PLAIN(dtype)
TERMS_OF(F32)
TERMS_OF(F16)
TERMS_OF(BF16)
#define TERMS_ROW(dtype)                                                                                               \
  [NR_##dtype] = {[TURN_NONE] = terms_##dtype##_NONE,                                                                  \
                  [TURN_ADJACENT] = terms_##dtype##_ADJACENT,                                                          \
                  [TURN_CHUNKS] = terms_##dtype##_CHUNKS,                                                              \
                  [TURN_PLAIN] = terms_##dtype##_PLAIN}
static void (*const terms_functions[3][4])(const backward_state *, backward_group *) = {TERMS_ROW(F32), TERMS_ROW(F16),
                                                                                        TERMS_ROW(BF16)};

/* A group's grad_x into rows of `to`. */
INLINE void backward_make(const backward_state *t, const backward_group *of, nr_dtype dtype, char *const *to,
                          bool stream) {
  const bool norm = t->b->segment->norm != NR_NORM_NONE;
  const int64_t dim = t->b->segment->dim;
  for (int64_t r = 0; r < of->rows; r++) {
    const float *const dxhat = of->dxhat[r], *const xhat = of->xhat[r];
    const char *const ahead = of->x_ahead[r];
    char *const row = to[r];
    const v32 rstd = both(v16_set(of->rstd[r])), shift = both(v16_set(of->shift[r])),
              slope = both(v16_set(of->slope[r]));
    for (int64_t d = 0; d < dim; d += CHUNK) {
      v32 value = get(dxhat, d);
      if (norm) {
        bring(ahead, dtype, d);
        value = each_fma(value, rstd, each_fnma(get(xhat, d), slope, shift));
      }
      store(row, dtype, d, in_chunk(dim, d), value, stream);
    }
  }
}

APART void backward_store(const backward_state *t, const backward_group *of, nr_dtype dtype) {
  const nr_segment *s = t->b->segment;
  if (!s->grad_x.data)
    return;
  scratch strided[ROWS];
  destination out = {.staged = NULL};
  char *made[ROWS] = {NULL};
  memcpy(out.row, of->out, sizeof out.row);
  settle(&out, t->b, dtype, of->rows, (char *)strided);
  for (int64_t r = 0; r < of->rows; r++)
    made[r] = out.staged                 ? out.staged + r * s->dim * size_of(dtype)
              : s->grad_x.stride[3] == 1 ? out.row[r]
                                         : (char *)strided[r].channel;
  if (out.stream)
    backward_make(t, of, dtype, made, true);
  else
    backward_make(t, of, dtype, made, false);
  if (out.staged)
    unstage(&out, of->rows * s->dim * size_of(dtype));
  else
    for (int64_t r = 0; r < of->rows; r++)
      scatter(&s->grad_x, out.row[r], dtype, s->dim, made[r]);
}

/* The gradients of a group's rows: the elements side by side, or with TURN_PLAIN turned back already. */
INLINE void read_gradients(backward_state *t, backward_group *of, nr_dtype dtype, int64_t rows, char *const *g,
                           const int64_t *position) {
  const nr_segment *s = t->b->segment;
  if (t->tables.turn != TURN_PLAIN) {
    gather(&s->grad_y, g, dtype, s->dim, rows, of->g_strided, of->g);
    return;
  }
  for (int64_t r = 0; r < rows; r++) {
    scratch plain;
    load_row(&s->grad_y, g[r], dtype, s->dim, plain.channel, NR_F32);
    turn_plain(s, &t->tables, position[r], true, plain.channel, of->g_strided[r].channel);
    of->g[r] = (const char *)of->g_strided[r].channel;
  }
}

/* The next rows' means and rstds. */
INLINE void read_statistics(backward_state *t, backward_group *of, int64_t rows) {
  char *mean[ROWS], *rstd[ROWS];
  take(&t->mean, &t->at, rows, mean);
  take(&t->rstd, &t->at, rows, rstd);
  for (int64_t r = 0; r < ROWS; r++)
    of->mean[r] = 0, of->rstd[r] = 1;
  for (int64_t r = 0; r < rows && t->mean.at; r++)
    of->mean[r] = *(const float *)mean[r];
  for (int64_t r = 0; r < rows && t->rstd.at; r++)
    of->rstd[r] = *(const float *)rstd[r];
}

/* The next rows of the walk. */
INLINE void read_rows(backward_state *t, backward_group *of, nr_dtype dtype, int64_t rows, bool statistics,
                      bool gradients) {
  const nr_segment *s = t->b->segment;
  char *g[ROWS], *x[ROWS];
  int64_t position[ROWS];
  take(&t->g, &t->at, rows, g);
  take(&t->x, &t->at, rows, x);
  take(&t->out, &t->at, rows, of->out);
  take_ahead(&t->g_ahead, rows, g, of->g_ahead);
  take_ahead(&t->x_ahead, rows, x, of->x_ahead);
  of->one_position = t->at.by == BY_POSITION && in_run(&t->at, rows);
  positions_of(&t->at, rows, position);
  for (int64_t r = 0; r < rows; r++) {
    of->cos[r] = t->tables.cos + position[r] * t->pitch;
    of->sin[r] = t->tables.sin + position[r] * t->pitch;
  }
  if (s->norm)
    gather(&s->x, x, dtype, s->dim, rows, of->x_strided, of->x);
  if (gradients)
    read_gradients(t, of, dtype, rows, g, position);
  if (statistics)
    read_statistics(t, of, rows);
  step(&t->at, rows);
}

/* The next rows of the walk, as many as the group has. */
INLINE void read_group(backward_state *t, backward_group *of, nr_dtype dtype, bool statistics, bool gradients) {
  if (V16_REGISTERS && of->rows == ROWS)
    read_rows(t, of, dtype, ROWS, statistics, gradients);
  else
    read_rows(t, of, dtype, of->rows, statistics, gradients);
}

/* Begins a walk over `count` positions from `first` on. */
INLINE void begin_walk(backward_state *t, order by, int64_t first, int64_t count) {
  const nr_segment *s = t->b->segment;
  const nr_view none = {.data = NULL};
  t->at = cursor_of(by, first - t->tile.first, count, s->heads);
  t->g = walk_of(&s->grad_y, t->b->batch, first, &t->at);
  t->x = walk_of(s->norm ? &s->x : &none, t->b->batch, first, &t->at);
  t->out = walk_of(&s->grad_x, t->b->batch, first, &t->at);
  t->mean = walk_of(nr_norm_centres(s->norm) ? &s->mean : &none, t->b->batch, first, &t->at);
  t->rstd = walk_of(s->norm ? &s->rstd : &none, t->b->batch, first, &t->at);
}

INLINE void begin_tile(backward_state *t, nr_dtype dtype) {
  const nr_segment *s = t->b->segment;
  t->g_ahead = prefetch_of(t->b, &s->grad_y, &t->tile);
  t->x_ahead = prefetch_of(t->b, &s->x, &t->tile);
  if (s->rope_width && !tables_per_head(s))
    load_tables(s, t->b->batch, t->tile.first, t->tile.count, 0, dtype, &t->tables);
}

/* Parameters and tables that belong to a head. */
INLINE void begin_head(backward_state *t, nr_dtype dtype, int64_t head) {
  const nr_block *b = t->b;
  const nr_segment *s = b->segment;
  int64_t padded = nr_padded(s->dim);
  if (tables_per_head(s))
    load_tables(s, b->batch, t->tile.first, t->tile.count, head, dtype, &t->tables);
  if (per_head(&s->weight))
    load_parameter(&s->weight, head, s->dim, t->weight, dtype);
  t->weight_part = b->weight_part ? b->weight_part + (s->grad_weight.stride[2] ? head * padded : 0) : t->unwanted;
  t->bias_part = b->bias_part ? b->bias_part + (s->grad_bias.stride[2] ? head * padded : 0) : t->unwanted;
}

/* True if rows of different heads have something of their own besides their place. */
INLINE bool heads_differ(const nr_segment *s) {
  return tables_per_head(s) || per_head(&s->weight) || per_head(&s->grad_weight) || per_head(&s->grad_bias);
}

static void flush(float *part, double *sum, int64_t channels) {
  for (int64_t d = 0; part && d < channels; d += HALF_CHUNK) {
    v16_add_to(sum + d, v16_get(part + d));
    v16_put(part + d, v16_set(0));
  }
}

/* The float32 parts go to the block's sums, after FLUSH additions to each, and at the end. */
INLINE void count_added(backward_state *t, int64_t added, bool end) {
  const nr_block *b = t->b;
  t->added += added;
  if (t->added < FLUSH && !end)
    return;
  flush(b->weight_part, b->weight_sum, b->weight_channels);
  flush(b->bias_part, b->bias_sum, b->bias_channels);
  t->added = 0;
}

/* How many of the `left` rows of a tile the next group has: where heads differ all of one head, and where rows turn all
   of one position. */
INLINE int64_t rows_together(const backward_state *t, int64_t left, bool differ) {
  bool alike = !differ && (t->tables.turn == TURN_NONE || t->tables.turn == TURN_PLAIN);
  return left < ROWS || (!alike && t->at.inner + ROWS > t->at.run) ? 1 : ROWS;
}

/* Where a group keeps dxhat and xhat: 2 * ROWS rows of scratch. */
INLINE void keep_in(backward_group *of, float *scratch_rows, int64_t pitch) {
  for (int64_t r = 0; r < ROWS; r++)
    of->dxhat[r] = scratch_rows + r * pitch, of->xhat[r] = scratch_rows + (ROWS + r) * pitch;
}

/* Statistics over each head. */
INLINE void backward_heads(backward_state *t, nr_dtype dtype) {
  const nr_segment *s = t->b->segment;
  const bool differ = heads_differ(s);
  const double share = 1 / (double)s->dim;
  _Alignas(LINE) float kept[2][2 * ROWS * (NR_MAX_DIM + HALF_CHUNK)];
  scratch g_strided[ROWS], x_strided[2][ROWS];
  backward_group groups[2], *group = groups, *read = NULL;
  for (int i = 0; i < 2; i++) {
    groups[i] = (backward_group){.g_strided = g_strided, .x_strided = x_strided[i]};
    keep_in(&groups[i], kept[i], t->pitch);
  }
  if (!differ)
    begin_head(t, dtype, 0);
  while (next_tile(t->b, &t->tile)) {
    const int64_t count = t->tile.count;
    begin_tile(t, dtype);
    begin_walk(t, differ ? BY_HEAD : BY_POSITION, t->tile.first, count);
    for (int64_t left = count * s->heads; left; left -= read->rows) {
      if (differ && t->at.inner == 0)
        begin_head(t, dtype, t->at.outer);
      group->rows = rows_together(t, left, differ);
      read_group(t, group, dtype, true, true);
      terms_functions[dtype][t->tables.turn](t, group);
      if (read)
        backward_store(t, read, dtype);
      backward_means(group, share);
      read = group;
      group = &groups[group == groups];
      if (!differ)
        count_added(t, 1, false);
    }
    if (differ)
      count_added(t, count < ROWS ? count : 1, false);
  }
  if (read)
    backward_store(t, read, dtype);
}

/* Statistics over all heads, of the group's positions from `first` on. */
INLINE void backward_positions(backward_state *t, nr_dtype dtype, backward_group *group, int64_t first, float *rows) {
  const nr_segment *s = t->b->segment;
  const int64_t room = 2 * ROWS * t->pitch;
  const bool kept = s->heads * room <= KEPT;
  double sum_d[ROWS] = {0}, sum_dx[ROWS] = {0};
  begin_walk(t, BY_HEAD, first, group->rows);
  read_statistics(t, group, group->rows);
  for (int64_t n = 0; n < s->heads; n++) {
    begin_head(t, dtype, n);
    keep_in(group, rows + (kept ? n * room : 0), t->pitch);
    read_group(t, group, dtype, false, true);
    terms_functions[dtype][t->tables.turn](t, group);
    for (int64_t r = 0; r < ROWS; r++)
      sum_d[r] += group->sum_d[r], sum_dx[r] += group->sum_dx[r];
  }
  memcpy(group->sum_d, sum_d, sizeof sum_d);
  memcpy(group->sum_dx, sum_dx, sizeof sum_dx);
  backward_means(group, 1 / (double)(s->heads * s->dim));
  begin_walk(t, BY_HEAD, first, group->rows);
  t->g_ahead.rows.at = t->x_ahead.rows.at = NULL; /* that has come */
  for (int64_t n = 0; n < s->heads; n++) {
    keep_in(group, rows + (kept ? n * room : 0), t->pitch);
    if (!kept)
      begin_head(t, dtype, n);
    read_group(t, group, dtype, false, !kept);
    if (!kept) {
      t->weight_part = t->bias_part = t->unwanted; /* they have been added */
      terms_functions[dtype][t->tables.turn](t, group);
    }
    backward_store(t, group, dtype);
  }
}

INLINE void backward_all_heads(backward_state *t, nr_dtype dtype) {
  _Alignas(LINE) float kept[KEPT];
  scratch g_strided[ROWS], x_strided[ROWS];
  backward_group group = {.g_strided = g_strided, .x_strided = x_strided};
  while (next_tile(t->b, &t->tile)) {
    begin_tile(t, dtype);
    group.rows = t->tile.count < ROWS ? 1 : ROWS;
    for (int64_t first = 0; first < t->tile.count; first += group.rows)
      backward_positions(t, dtype, &group, t->tile.first + first, kept);
    count_added(t, heads_differ(t->b->segment) ? 1 : t->b->segment->heads, false);
  }
}

INLINE void backward_block(const nr_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  if (s->norm == NR_NORM_NONE && !s->rope_width) {
    if (s->grad_x.data)
      copy_block(b, &s->grad_y, &s->grad_x, dtype);
    return;
  }
  _Alignas(LINE) float pool[(2 * NR_TILE + 2) * (NR_MAX_DIM + HALF_CHUNK)];
  backward_state t = {.b = b, .tile = first_tile(b), .pitch = pitch_of(s), .weight = pool};
  t.unwanted = pool + t.pitch;
  memset(t.unwanted, 0, (size_t)t.pitch * sizeof(float)); /* it is added to, and never read */
  t.tables = tables_at(t.unwanted + t.pitch, t.pitch);
  if (s->weight.data && !per_head(&s->weight))
    load_parameter(&s->weight, 0, s->dim, t.weight, dtype);
  if (nr_group_heads(s) > 1)
    backward_all_heads(&t, dtype);
  else
    backward_heads(&t, dtype);
  count_added(&t, 0, true);
  if (b->stream)
    v32_fence();
}
