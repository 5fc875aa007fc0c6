/*
 * The forward body: one for every norm, rope, layout, dtype and instruction set.
 *
 * Statistics take two passes over a row, so that nothing cancels: the first makes a mean, the second the squares of
 * x - mean and, since that mean was rounded on its way, what it still lacks, `rest`. mean + rest is good to a rounding
 * of either, and y = (x - mean) * rstd - rest * rstd.
 *
 * A row is thus read three times, the second and third time from the first-level cache. Between the readings stand
 * chains of dependent operations, so that groups of rows are worked on in stages: while one is written, the next one's
 * squares are added, and the mean of the one after that. With statistics over all heads a group is ROWS positions, all
 * heads of them, one stage after the other.
 */

enum { SQUARES_PART = 4 * CHUNK /* channels whose squares are added in float32 */, STAGES = 3 };

typedef struct forward_group {
  int64_t rows;                                                /* ROWS or 1 */
  const tables *tables;                                        /* of the tile */
  const char *x[ROWS];                                         /* the rows' elements side by side */
  char *ahead[ROWS], *y[ROWS], *mean_at[ROWS], *rstd_at[ROWS]; /* what comes next; where results go */
  const float *cos[ROWS], *sin[ROWS];
  int64_t position[ROWS];                                /* of the tile */
  float mean[ROWS], rest[ROWS], rstd[ROWS], shift[ROWS]; /* shift = -rest * rstd */
  double sum[ROWS], squares[ROWS];
  scratch *strided; /* [ROWS] */
} forward_group;

typedef struct forward_state {
  const nr_block *b;
  tile tile;
  tables *tables; /* of the tile */
  int64_t pitch;
  float *weight, *bias; /* of the head */
  cursor at;            /* and where it is in each view */
  walk x, y, mean, rstd;
  prefetch ahead;
} forward_state;

/* First stage, where the norm centres: the sum of each row, added to that of other heads. */
INLINE void forward_sum(const forward_state *t, forward_group *of, nr_dtype dtype, int64_t rows, bool centres) {
  const int64_t dim = t->b->segment->dim;
  v16 sum[ROWS];
  float sums[ROWS];
  for (int64_t r = 0; r < ROWS; r++)
    sum[r] = v16_set(0);
  for (int64_t d = 0; d < dim; d += CHUNK) {
    bring(of->ahead[0], dtype, d);
    UNROLLED
    for (int64_t r = 0; r < rows && centres; r++) {
      v32 x = load(of->x[r], dtype, d, in_chunk(dim, d));
      sum[r] = v16_add(v16_add(sum[r], x.a), x.b);
    }
  }
  if (!centres)
    return;
  v16_sum4(sum, sums);
  for (int64_t r = 0; r < ROWS; r++)
    of->sum[r] += (double)sums[r];
}

INLINE void forward_clear(forward_group *of) {
  for (int64_t r = 0; r < ROWS; r++)
    of->sum[r] = of->squares[r] = 0, of->mean[r] = of->rest[r] = of->shift[r] = 0, of->rstd[r] = 1;
}

INLINE void forward_mean(forward_group *of, int64_t channels) {
  const double share = 1 / (double)channels;
  for (int64_t r = 0; r < ROWS; r++) {
    of->mean[r] = (float)(of->sum[r] * share);
    of->sum[r] = 0;
  }
}

/* The sums of a group's chunk at channel d. */
INLINE void squares_chunk(const forward_group *of, nr_dtype dtype, int64_t rows, bool centres, v16 *sum, v16 *square,
                          int64_t d, int64_t n) {
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    v32 x = load(of->x[r], dtype, d, n);
    if (centres) {
      x = first_channels(each_sub(x, both(v16_set(of->mean[r]))), dtype, n);
      sum[r] = v16_add(v16_add(sum[r], x.a), x.b);
    }
    square[r] = v16_fma(x.b, x.b, v16_fma(x.a, x.a, square[r]));
  }
}

/* Second stage: of x - mean the sum and that of the squares, added to those of other heads. */
INLINE void forward_squares(const forward_state *t, forward_group *of, nr_dtype dtype, int64_t rows, bool centres) {
  const int64_t dim = t->b->segment->dim;
  const v16 zero = v16_set(0);
  v16 sum[ROWS] = {zero, zero, zero, zero};
  float sums[ROWS];
  for (int64_t part = 0; part < dim; part += SQUARES_PART) {
    const int64_t end = dim - part < SQUARES_PART ? dim : part + SQUARES_PART;
    v16 square[ROWS] = {zero, zero, zero, zero};
    int64_t d = part;
    for (; d + CHUNK <= end; d += CHUNK)
      squares_chunk(of, dtype, rows, centres, sum, square, d, CHUNK);
    if (d < end)
      squares_chunk(of, dtype, rows, centres, sum, square, d, end - d);
    v16_sum4(square, sums);
    for (int64_t r = 0; r < ROWS; r++)
      of->squares[r] += (double)sums[r];
  }
  if (!centres)
    return;
  v16_sum4(sum, sums);
  for (int64_t r = 0; r < ROWS; r++)
    of->sum[r] += (double)sums[r];
}

/* The squares were taken from a mean that lacks `rest`; an infinite mean lacks nothing. In loops that become vectors.
 */
INLINE void forward_rstd(const forward_state *t, forward_group *of, int64_t channels) {
  const double share = 1 / (double)channels, eps = t->b->segment->eps;
  double rest[ROWS], deviation[ROWS];
  for (int64_t r = 0; r < ROWS; r++) {
    rest[r] = of->sum[r] * share;
    rest[r] = fabs(rest[r]) <= DBL_MAX ? rest[r] : 0;
    double variance = of->squares[r] * share - rest[r] * rest[r];
    deviation[r] = (variance < 0 ? 0 : variance) + eps;
  }
  for (int64_t r = 0; r < ROWS; r++)
    deviation[r] = sqrt(deviation[r]);
  for (int64_t r = 0; r < ROWS; r++)
    deviation[r] = 1 / deviation[r];
  float rest32[ROWS], rstd[ROWS];
  for (int64_t r = 0; r < ROWS; r++)
    rest32[r] = (float)rest[r];
  for (int64_t r = 0; r < ROWS; r++)
    rstd[r] = (float)deviation[r];
  for (int64_t r = 0; r < ROWS; r++)
    of->rest[r] = rest32[r], of->rstd[r] = rstd[r], of->shift[r] = -rest32[r] * rstd[r];
}

/* Stores some statistics. */
INLINE void forward_keep(const forward_group *of, const float *value, char *const *to) {
  uint32_t bits[ROWS];
  memcpy(bits, value, sizeof bits);
  for (int64_t r = 0; r < ROWS; r++)
    bits[r] = (bits[r] & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits[r]; /* nr_f32_quiet, as vectors have it */
  for (int64_t r = 0; r < of->rows; r++)
    memcpy(to[r], &bits[r], sizeof *bits);
}

INLINE void forward_statistics(const forward_state *t, const forward_group *of) {
  float mean[ROWS];
  for (int64_t r = 0; r < ROWS; r++)
    mean[r] = (float)((double)of->mean[r] + (double)of->rest[r]);
  if (t->mean.at)
    forward_keep(of, mean, of->mean_at);
  if (t->rstd.at)
    forward_keep(of, of->rstd, of->rstd_at);
}

/* The first two stages for each dtype, for whole groups and for single rows. */
#define STAGE(name, dtype)                                                                                             \
  APART void name##_##dtype(const forward_state *t, forward_group *of) {                                               \
    const bool centres = nr_norm_centres(t->b->segment->norm);                                                         \
    if (!V16_REGISTERS || of->rows < ROWS)                                                                             \
      forward_##name(t, of, NR_##dtype, of->rows, centres);                                                            \
    else if (centres)                                                                                                  \
      forward_##name(t, of, NR_##dtype, ROWS, true);                                                                   \
    else                                                                                                               \
      forward_##name(t, of, NR_##dtype, ROWS, false);                                                                  \
  }
#define STAGE_OF(name)                                                                                                 \
  STAGE(name, F32)                                                                                                     \
  STAGE(name, F16)                                                                                                     \
  STAGE(name, BF16)                                                                                                    \
  static void (*const name##_functions[3])(const forward_state *, forward_group *) = {                                 \
      [NR_F32] = name##_F32, [NR_F16] = name##_F16, [NR_BF16] = name##_BF16};
STAGE_OF(sum)
STAGE_OF(squares)

/* Weight and bias in a chunk. */
typedef struct affine {
  v32 weight, bias;
} affine;

INLINE affine parameters(const forward_state *t, nr_norm norm, int64_t d) {
  const v32 zero = both(v16_set(0));
  return (affine){nr_norm_weighs(norm) ? get(t->weight, d) : zero,
                  norm == NR_NORM_LAYER_AFFINE ? get(t->bias, d) : zero};
}

/* The chunk at channel d of row r before it turns. */
INLINE v32 normalised(const forward_group *of, nr_dtype dtype, nr_norm norm, affine by, int64_t r, int64_t d,
                      int64_t n) {
  v32 x = load(of->x[r], dtype, d, n);
  if (norm == NR_NORM_NONE)
    return x;
  const v32 rstd = both(v16_set(of->rstd[r]));
  x = nr_norm_centres(norm) ? each_fma(each_sub(x, both(v16_set(of->mean[r]))), rstd, both(v16_set(of->shift[r])))
                            : each_mul(x, rstd);
  if (norm == NR_NORM_LAYER_AFFINE)
    return each_fma(x, by.weight, by.bias);
  return norm == NR_NORM_RMS_AFFINE ? each_mul(x, by.weight) : x;
}

/* y of a row with TURN_PLAIN, channel by channel. */
INLINE void forward_plain(const forward_state *t, const forward_group *of, nr_dtype dtype, int64_t r, char *to) {
  const nr_segment *s = t->b->segment;
  scratch y, turned;
  int64_t d = 0;
  do {
    v32 value = normalised(of, dtype, s->norm, parameters(t, s->norm, d), r, d, in_chunk(s->dim, d));
    put(y.channel, d, arranged(value, dtype, NR_F32));
  } while ((d += CHUNK) < s->dim);
  turn_plain(s, of->tables, of->position[r], false, y.channel, turned.channel);
  for (d = 0; d < s->dim; d += CHUNK)
    store(to, dtype, d, in_chunk(s->dim, d), arranged(get(turned.channel, d), NR_F32, dtype), false);
}

/* The chunk at channel d of a group's rows; with TURN_CHUNKS its partner too. */
INLINE void forward_chunk(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, int64_t rows,
                          nr_norm norm, char *const *to, bool stream, int64_t d, int64_t n) {
  const int64_t partner = how == TURN_CHUNKS ? d + t->b->segment->rope_width / 2 : d;
  const affine by = parameters(t, norm, d), by_partner = parameters(t, norm, partner);
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    if (r > 0) {
      bring(of->ahead[r], dtype, d);
      if (how == TURN_CHUNKS)
        bring(of->ahead[r], dtype, partner);
    }
    v32 y = normalised(of, dtype, norm, by, r, d, n);
    if (how == TURN_ADJACENT)
      y = each_fma(y, get(of->cos[r], d), each_mul(swapped(y, dtype), get(of->sin[r], d)));
    if (how == TURN_CHUNKS) {
      v32 other = normalised(of, dtype, norm, by_partner, r, partner, n);
      v32 turned = each_fma(other, get(of->cos[r], partner), each_mul(y, get(of->sin[r], partner)));
      store(to[r], dtype, partner, n, turned, stream);
      y = each_fma(y, get(of->cos[r], d), each_mul(other, get(of->sin[r], d)));
    }
    store(to[r], dtype, d, n, y, stream);
  }
}

/* y of a group's rows. */
INLINE void forward_make(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, int64_t rows,
                         nr_norm norm, char *const *to, bool stream) {
  const nr_segment *s = t->b->segment;
  const int64_t dim = s->dim, whole = dim / CHUNK * CHUNK, half = s->rope_width / 2;
  const int64_t turned = of->tables->turned < whole ? of->tables->turned : whole;
  int64_t d = 0;
  for (; d < turned; d += CHUNK)
    if (how != TURN_CHUNKS || d % s->rope_width < half)
      forward_chunk(t, of, dtype, how, rows, norm, to, stream, d, CHUNK);
  for (; d < whole; d += CHUNK)
    forward_chunk(t, of, dtype, TURN_NONE, rows, norm, to, stream, d, CHUNK);
  if (d < dim && how == TURN_ADJACENT && of->tables->turned == dim)
    forward_chunk(t, of, dtype, how, rows, norm, to, stream, d, dim - d);
  else if (d < dim)
    forward_chunk(t, of, dtype, TURN_NONE, rows, norm, to, stream, d, dim - d);
}

/* The same for whole groups, with the norm as a constant. */
INLINE void forward_whole(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, char *const *to,
                          bool stream) {
  switch (t->b->segment->norm) {
  case NR_NORM_NONE: forward_make(t, of, dtype, how, ROWS, NR_NORM_NONE, to, stream); break;
  case NR_NORM_LAYER: forward_make(t, of, dtype, how, ROWS, NR_NORM_LAYER, to, stream); break;
  case NR_NORM_LAYER_AFFINE: forward_make(t, of, dtype, how, ROWS, NR_NORM_LAYER_AFFINE, to, stream); break;
  case NR_NORM_RMS: forward_make(t, of, dtype, how, ROWS, NR_NORM_RMS, to, stream); break;
  case NR_NORM_RMS_AFFINE: forward_make(t, of, dtype, how, ROWS, NR_NORM_RMS_AFFINE, to, stream); break;
  }
}

/* The third stage of a group for each dtype and way of turning. */
#define MAKE(dtype, how)                                                                                               \
  APART void make_##dtype##_##how(const forward_state *t, const forward_group *of, char *const *to, bool stream) {     \
    if (V16_REGISTERS && of->rows == ROWS)                                                                             \
      forward_whole(t, of, NR_##dtype, TURN_##how, to, stream);                                                        \
    else                                                                                                               \
      forward_make(t, of, NR_##dtype, TURN_##how, of->rows, t->b->segment->norm, to, stream);                          \
  }
#define MAKE_OF(dtype) MAKE(dtype, NONE) MAKE(dtype, ADJACENT) MAKE(dtype, CHUNKS)
MAKE_OF(F32)
MAKE_OF(F16)
MAKE_OF(BF16)
#define MAKE_ROW(dtype)                                                                                                \
  [NR_##dtype] = {[TURN_NONE] = make_##dtype##_NONE,                                                                   \
                  [TURN_ADJACENT] = make_##dtype##_ADJACENT,                                                           \
                  [TURN_CHUNKS] = make_##dtype##_CHUNKS}
static void (*const make_functions[3][3])(const forward_state *, const forward_group *, char *const *,
                                          bool) = {MAKE_ROW(F32), MAKE_ROW(F16), MAKE_ROW(BF16)};

APART void forward_store(const forward_state *t, const forward_group *of, nr_dtype dtype) {
  const nr_block *b = t->b;
  const nr_segment *s = b->segment;
  const int64_t size = s->dim * size_of(dtype);
  scratch strided[ROWS];
  destination out = {.staged = NULL};
  char *made[ROWS] = {NULL};
  memcpy(out.row, of->y, sizeof out.row);
  settle(&out, b, dtype, of->rows, (char *)strided);
  for (int64_t r = 0; r < of->rows; r++)
    made[r] = out.staged ? out.staged + r * size : s->y.stride[3] == 1 ? out.row[r] : (char *)strided[r].channel;
  if (of->tables->turn == TURN_PLAIN)
    for (int64_t r = 0; r < of->rows; r++)
      forward_plain(t, of, dtype, r, made[r]);
  else
    make_functions[dtype][of->tables->turn](t, of, made, out.stream);
  if (out.staged)
    unstage(&out, of->rows * size);
  else
    for (int64_t r = 0; r < of->rows; r++)
      scatter(&s->y, out.row[r], dtype, s->dim, made[r]);
}

/* The next rows of the walk. */
INLINE void forward_rows(forward_state *t, forward_group *of, nr_dtype dtype, int64_t rows) {
  const nr_segment *s = t->b->segment;
  char *x[ROWS];
  take(&t->x, &t->at, rows, x);
  take(&t->y, &t->at, rows, of->y);
  take(&t->mean, &t->at, rows, of->mean_at);
  take(&t->rstd, &t->at, rows, of->rstd_at);
  take_ahead(&t->ahead, rows, x, of->ahead);
  of->tables = t->tables;
  positions_of(&t->at, rows, of->position);
  for (int64_t r = 0; r < rows; r++) {
    of->cos[r] = t->tables->cos + of->position[r] * t->pitch;
    of->sin[r] = t->tables->sin + of->position[r] * t->pitch;
  }
  gather(&s->x, x, dtype, s->dim, rows, of->strided, of->x);
  step(&t->at, rows);
}

/* The next rows of the walk, as many as the group has. */
INLINE void forward_read(forward_state *t, forward_group *of, nr_dtype dtype) {
  if (V16_REGISTERS && of->rows == ROWS)
    forward_rows(t, of, dtype, ROWS);
  else
    forward_rows(t, of, dtype, of->rows);
}

/* Begins a walk over `count` positions from `first` on. */
INLINE void forward_walk(forward_state *t, order by, int64_t first, int64_t count) {
  const nr_block *b = t->b;
  const nr_segment *s = b->segment;
  t->at = cursor_of(by, first - t->tile.first, count, s->heads);
  t->x = walk_of(&s->x, b->batch, first, &t->at);
  t->y = walk_of(&s->y, b->batch, first, &t->at);
  t->mean = walk_of(&s->mean, b->batch, first, &t->at);
  t->rstd = walk_of(&s->rstd, b->batch, first, &t->at);
}

/* Parameters and tables that belong to a head. */
INLINE void forward_head(forward_state *t, nr_dtype dtype, int64_t head) {
  const nr_segment *s = t->b->segment;
  if (tables_per_head(s))
    load_tables(s, t->b->batch, t->tile.first, t->tile.count, head, dtype, t->tables);
  if (per_head(&s->weight))
    load_parameter(&s->weight, head, s->dim, t->weight, dtype);
  if (per_head(&s->bias))
    load_parameter(&s->bias, head, s->dim, t->bias, dtype);
}

INLINE void forward_begin(forward_state *t, nr_dtype dtype) {
  const nr_segment *s = t->b->segment;
  t->ahead = prefetch_of(t->b, &s->x, &t->tile);
  if (s->rope_width && !tables_per_head(s))
    load_tables(s, t->b->batch, t->tile.first, t->tile.count, 0, dtype, t->tables);
}

/* Groups on their way through the stages. */
typedef struct pipeline {
  forward_group group[STAGES];
  int64_t read, squared, known, made; /* groups that are through with reading, squares, rstd, and all */
} pipeline;

/* The rstds of groups whose squares are known, and their statistics to where they are kept. */
INLINE void forward_know(const forward_state *t, pipeline *p) {
  const nr_segment *s = t->b->segment;
  for (; p->known < p->squared; p->known++) {
    forward_group *of = &p->group[p->known % STAGES];
    if (!s->norm)
      continue;
    forward_rstd(t, of, s->dim);
    forward_statistics(t, of);
  }
}

/* Takes groups on, each stage at what an earlier turn left it, so that none waits for another; at the end all the way.
 */
INLINE void forward_flow(const forward_state *t, pipeline *p, nr_dtype dtype, bool end) {
  const nr_segment *s = t->b->segment;
  forward_know(t, p);
  for (; p->squared < p->read - !end; p->squared++) {
    forward_group *of = &p->group[p->squared % STAGES];
    forward_mean(of, s->dim);
    if (s->norm)
      squares_functions[dtype](t, of);
  }
  if (end)
    forward_know(t, p);
  for (; p->made < p->read - (end ? 0 : STAGES - 1); p->made++)
    forward_store(t, &p->group[p->made % STAGES], dtype);
}

/* Statistics over each head. */
INLINE void forward_heads(forward_state *t, nr_dtype dtype, tables *tables_of) {
  const nr_segment *s = t->b->segment;
  const bool differ = tables_per_head(s) || per_head(&s->weight) || per_head(&s->bias);
  const order by = differ ? BY_HEAD : order_of(&s->y);
  scratch strided[STAGES][ROWS];
  pipeline p = {.read = 0};
  for (int i = 0; i < STAGES; i++)
    p.group[i].strided = strided[i];
  for (int64_t number = 0; next_tile(t->b, &t->tile); number++) {
    const int64_t count = t->tile.count;
    t->tables = &tables_of[number % STAGES]; /* groups of earlier tiles are still on their way */
    forward_begin(t, dtype);
    forward_walk(t, by, t->tile.first, count);
    for (int64_t left = count * s->heads, rows; left; left -= rows) {
      forward_group *group = &p.group[p.read++ % STAGES];
      rows = group->rows = left < ROWS || (differ && count < ROWS) ? 1 : ROWS;
      if (differ && t->at.inner == 0)
        forward_head(t, dtype, t->at.outer);
      forward_read(t, group, dtype);
      forward_clear(group);
      sum_functions[dtype](t, group);
      forward_flow(t, &p, dtype, differ);
    }
  }
  forward_flow(t, &p, dtype, true);
}

/* Statistics over all heads, of the group's positions from `first` on. */
INLINE void forward_positions(forward_state *t, nr_dtype dtype, forward_group *group, int64_t first) {
  const nr_segment *s = t->b->segment;
  const int64_t channels = s->heads * s->dim;
  forward_clear(group);
  for (int stage = 0; stage < STAGES; stage++) {
    forward_walk(t, BY_HEAD, first, group->rows);
    for (int64_t n = 0; n < s->heads; n++) {
      if (stage == STAGES - 1)
        forward_head(t, dtype, n);
      forward_read(t, group, dtype);
      if (stage == STAGES - 1)
        forward_store(t, group, dtype);
      else
        (stage == 0 ? sum_functions : squares_functions)[dtype](t, group);
    }
    t->ahead.rows.at = NULL; /* that has come */
    if (stage == 0)
      forward_mean(group, channels);
    if (stage == 1)
      forward_rstd(t, group, channels);
  }
  forward_walk(t, BY_HEAD, first, group->rows);
  forward_read(t, group, dtype);
  forward_statistics(t, group);
}

INLINE void forward_all_heads(forward_state *t, nr_dtype dtype, tables *tables_of) {
  scratch strided[ROWS];
  forward_group group = {.strided = strided};
  t->tables = tables_of;
  while (next_tile(t->b, &t->tile)) {
    forward_begin(t, dtype);
    group.rows = t->tile.count < ROWS ? 1 : ROWS;
    for (int64_t first = 0; first < t->tile.count; first += group.rows)
      forward_positions(t, dtype, &group, t->tile.first + first);
  }
}

INLINE void forward_block(const nr_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  if (s->norm == NR_NORM_NONE && !s->rope_width) {
    copy_block(b, &s->x, &s->y, dtype);
    return;
  }
  _Alignas(LINE) float pool[(2 * NR_TILE * STAGES + 2) * (NR_MAX_DIM + HALF_CHUNK)];
  forward_state t = {.b = b, .tile = first_tile(b), .pitch = pitch_of(s), .weight = pool};
  tables tables_of[STAGES];
  t.bias = t.weight + t.pitch;
  for (int i = 0; i < STAGES; i++)
    tables_of[i] = tables_at(t.bias + t.pitch + i * 2 * NR_TILE * t.pitch, t.pitch);
  if (s->weight.data && !per_head(&s->weight))
    load_parameter(&s->weight, 0, s->dim, t.weight, dtype);
  if (s->bias.data && !per_head(&s->bias))
    load_parameter(&s->bias, 0, s->dim, t.bias, dtype);
  if (nr_group_heads(s) > 1)
    forward_all_heads(&t, dtype, tables_of);
  else
    forward_heads(&t, dtype, tables_of);
  if (b->stream)
    v32_fence();
}
