/*
 * The forward body: one for every norm, rope, layout, dtype and instruction set.
 *
 * One reading of a row makes the sum of x and that of its squares, and so the variance, mean of squares - mean^2. Where
 * mean^2 is not small beside the variance (FAR) that difference would lose digits; such a row is `far` from 0. It is
 * read again for the sums of x - centre, the centre being the mean, rounded. The last reading makes
 *
 *   y = x * rstd + shift,             shift = -mean * rstd             of near rows,
 *   y = (x - centre) * rstd + shift,  shift = -(mean - centre) * rstd  of far rows, which lose nothing either.
 *
 * Between the readings stands a chain of dependent operations, so that groups of rows are worked on in stages: while
 * the sums of one are made and another one is written, the chain of that in between finds its time. With statistics
 * over all heads a group is ROWS positions, all heads of them.
 */

enum {
  PART = 4 * CHUNK, /* channels that are added in float32 */
  FAR = 8,          /* times mean^2 of a near row is at most the variance */
  STAGES = 3
};

typedef struct forward_group {
  int64_t rows;                                                /* ROWS or 1 */
  const tables *tables;                                        /* of the tile */
  const char *x[ROWS];                                         /* the rows' elements side by side */
  char *ahead[ROWS], *y[ROWS], *mean_at[ROWS], *rstd_at[ROWS]; /* what comes next; where results go */
  const float *cos[ROWS], *sin[ROWS];
  int64_t position[ROWS];          /* of the tile */
  double sum[ROWS], squares[ROWS]; /* of x - centre */
  float centre[ROWS], mean[ROWS], rstd[ROWS], shift[ROWS];
  bool far[ROWS], any_far;
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

INLINE void forward_clear(forward_group *of) {
  for (int64_t r = 0; r < ROWS; r++) {
    of->sum[r] = of->squares[r] = 0;
    of->centre[r] = of->mean[r] = of->shift[r] = 0, of->rstd[r] = 1;
    of->far[r] = false;
  }
  of->any_far = false;
}

/* The sums of a group's chunk at channel d. */
INLINE void sums_chunk(const forward_group *of, nr_dtype dtype, int64_t rows, bool centres, bool again, v16 *sum,
                       v16 *square, int64_t d, int64_t n) {
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    v32 x = load(of->x[r], dtype, d, n);
    if (again)
      x = first_channels(each_sub(x, both(v16_set(of->centre[r]))), dtype, n);
    if (centres)
      sum[r] = v16_add(v16_add(sum[r], x.a), x.b);
    square[r] = v16_fma(x.b, x.b, v16_fma(x.a, x.a, square[r]));
  }
}

/* Adds a group's x and its squares, for norms that do not centre only these, to the sums, which other heads may have
   begun. `again`: those of x - centre. */
INLINE void forward_sums(const forward_state *t, forward_group *of, nr_dtype dtype, int64_t rows, bool centres,
                         bool again) {
  const int64_t dim = t->b->segment->dim;
  const v16 zero = v16_set(0);
  float sums[ROWS];
  for (int64_t part = 0; part < dim; part += PART) {
    const int64_t end = dim - part < PART ? dim : part + PART;
    v16 sum[ROWS] = {zero, zero, zero, zero}, square[ROWS] = {zero, zero, zero, zero};
    int64_t d = part;
    for (; d + CHUNK <= end; d += CHUNK) {
      bring(of->ahead[0], dtype, d);
      sums_chunk(of, dtype, rows, centres, again, sum, square, d, CHUNK);
    }
    if (d < end) {
      bring(of->ahead[0], dtype, d);
      sums_chunk(of, dtype, rows, centres, again, sum, square, d, end - d);
    }
    v16_sum4(square, sums);
    for (int64_t r = 0; r < ROWS; r++)
      of->squares[r] += (double)sums[r];
    if (!centres)
      continue;
    v16_sum4(sum, sums);
    for (int64_t r = 0; r < ROWS; r++)
      of->sum[r] += (double)sums[r];
  }
}

/* The sums for each dtype. Without a norm there is only something to bring. */
#define SUMS(dtype)                                                                                                    \
  APART void sums_##dtype(const forward_state *t, forward_group *of) {                                                 \
    const nr_segment *s = t->b->segment;                                                                               \
    const bool centres = nr_norm_centres(s->norm);                                                                     \
    if (s->norm == NR_NORM_NONE)                                                                                       \
      for (int64_t d = 0; d < s->dim; d += CHUNK)                                                                      \
        bring(of->ahead[0], NR_##dtype, d);                                                                            \
    else if (!V16_REGISTERS || of->rows < ROWS)                                                                        \
      forward_sums(t, of, NR_##dtype, of->rows, centres, false);                                                       \
    else if (centres)                                                                                                  \
      forward_sums(t, of, NR_##dtype, ROWS, true, false);                                                              \
    else                                                                                                               \
      forward_sums(t, of, NR_##dtype, ROWS, false, false);                                                             \
  }                                                                                                                    \
  APART void sums_again_##dtype(const forward_state *t, forward_group *of) {                                           \
    forward_sums(t, of, NR_##dtype, of->rows, true, true);                                                             \
  }
SUMS(F32)
SUMS(F16)
SUMS(BF16)
typedef void (*const sums_function)(const forward_state *, forward_group *);
static sums_function sums_functions[3] = {[NR_F32] = sums_F32, [NR_F16] = sums_F16, [NR_BF16] = sums_BF16};
static sums_function sums_again_functions[3] = {
    [NR_F32] = sums_again_F32, [NR_F16] = sums_again_F16, [NR_BF16] = sums_again_BF16};

/* What a group's sums come to. */
INLINE void forward_means(const forward_state *t, forward_group *of, int64_t channels) {
  const double share = 1 / (double)channels;
  double root[ROWS];
  rows_f64 rest, variance;
  rows_f32 centre, rstd;
  memcpy(&centre, of->centre, sizeof centre);
  memcpy(&rest, of->sum, sizeof rest);
  memcpy(&variance, of->squares, sizeof variance);
  rest *= share;
  variance = variance * share - rest * rest;
  const bool centres = nr_norm_centres(t->b->segment->norm);
  const rows_mask below = variance < 0, far = ~((FAR * rest * rest <= variance) & (variance <= DBL_MAX));
  variance = (rows_f64)(~below & (rows_mask)variance) + t->b->segment->eps;
  memcpy(root, &variance, sizeof root);
  for (int64_t r = 0; r < ROWS; r++)
    root[r] = sqrt(root[r]);
  memcpy(&variance, root, sizeof root);
  rstd = __builtin_convertvector(1 / variance, rows_f32);
  const rows_f32 shift = -__builtin_convertvector(rest, rows_f32) * rstd;
  const rows_f32 mean = __builtin_convertvector(__builtin_convertvector(centre, rows_f64) + rest, rows_f32);
  memcpy(of->rstd, &rstd, sizeof rstd);
  memcpy(of->shift, &shift, sizeof shift);
  memcpy(of->mean, &mean, sizeof mean);
  for (int64_t r = 0; r < ROWS; r++)
    of->far[r] = far[r];
  of->any_far = centres && (far[0] | far[1] | far[2] | far[3]);
}

/* Makes a group ready for its second reading. */
INLINE void forward_recentre(forward_group *of) {
  for (int64_t r = 0; r < ROWS; r++)
    of->centre[r] = of->far[r] ? of->mean[r] : 0, of->sum[r] = of->squares[r] = 0;
}

/* What the sums of the second reading come to; rows that were near stay as they were. */
INLINE void forward_means_again(const forward_state *t, forward_group *of, int64_t channels) {
  const forward_group first = *of;
  for (int64_t r = 0; r < ROWS; r++)
    of->sum[r] = fabs(of->sum[r]) <= DBL_MAX ? of->sum[r] : 0; /* what overflowed says nothing of what is lacking */
  forward_means(t, of, channels);
  for (int64_t r = 0; r < ROWS; r++)
    if (!first.far[r])
      of->mean[r] = first.mean[r], of->rstd[r] = first.rstd[r], of->shift[r] = first.shift[r];
  of->any_far = true;
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

/* Stores a group's statistics where they are kept. */
INLINE void forward_statistics(const forward_state *t, const forward_group *of) {
  if (t->mean.at)
    forward_keep(of, of->mean, of->mean_at);
  if (t->rstd.at)
    forward_keep(of, of->rstd, of->rstd_at);
}

/* Weight and bias in a chunk. */
typedef struct affine {
  v32 weight, bias;
} affine;

INLINE affine parameters(const forward_state *t, nr_norm norm, int64_t d) {
  const v32 zero = both(v16_set(0));
  return (affine){nr_norm_weighs(norm) ? get(t->weight, d) : zero,
                  norm == NR_NORM_LAYER_AFFINE ? get(t->bias, d) : zero};
}

/* The chunk at channel d of row r before it turns. `far`: the group has far rows; near ones get the same bits then,
   their centre being 0. */
INLINE v32 normalised(const forward_group *of, nr_dtype dtype, nr_norm norm, bool far, affine by, int64_t r, int64_t d,
                      int64_t n) {
  v32 x = load(of->x[r], dtype, d, n);
  if (norm == NR_NORM_NONE)
    return x;
  const v32 rstd = both(v16_set(of->rstd[r]));
  if (nr_norm_centres(norm) && far)
    x = each_sub(x, both(v16_set(of->centre[r])));
  x = nr_norm_centres(norm) ? each_fma(x, rstd, both(v16_set(of->shift[r]))) : each_mul(x, rstd);
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
    v32 value = normalised(of, dtype, s->norm, true, parameters(t, s->norm, d), r, d, in_chunk(s->dim, d));
    put(y.channel, d, arranged(value, dtype, NR_F32));
  } while ((d += CHUNK) < s->dim);
  turn_plain(s, of->tables, of->position[r], false, y.channel, turned.channel);
  for (d = 0; d < s->dim; d += CHUNK)
    store(to, dtype, d, in_chunk(s->dim, d), arranged(get(turned.channel, d), NR_F32, dtype), false);
}

/* The chunk at channel d of a group's rows; with TURN_CHUNKS that at `partner` too. */
INLINE void forward_chunk(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, int64_t rows,
                          nr_norm norm, bool far, char *const *to, bool stream, int64_t d, int64_t partner, int64_t n) {
  const affine by = parameters(t, norm, d), by_partner = parameters(t, norm, partner);
  UNROLLED
  for (int64_t r = 0; r < rows; r++) {
    if (r > 0) {
      bring(of->ahead[r], dtype, d);
      if (how == TURN_CHUNKS)
        bring(of->ahead[r], dtype, partner);
    }
    v32 y = normalised(of, dtype, norm, far, by, r, d, n);
    if (how == TURN_ADJACENT)
      y = each_fma(y, get(of->cos[r], d), each_mul(swapped(y, dtype), get(of->sin[r], d)));
    if (how == TURN_CHUNKS) {
      v32 other = normalised(of, dtype, norm, far, by_partner, r, partner, n);
      v32 turned = each_fma(other, get(of->cos[r], partner), each_mul(y, get(of->sin[r], partner)));
      store(to[r], dtype, partner, n, turned, stream);
      y = each_fma(y, get(of->cos[r], d), each_mul(other, get(of->sin[r], d)));
    }
    store(to[r], dtype, d, n, y, stream);
  }
}

/* y of a group's rows. */
INLINE void forward_make(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, int64_t rows,
                         nr_norm norm, bool far, char *const *to, bool stream) {
  const nr_segment *s = t->b->segment;
  const int64_t dim = s->dim, whole = dim / CHUNK * CHUNK, width = s->rope_width;
  const int64_t turned = of->tables->turned < whole ? of->tables->turned : whole;
  int64_t d = 0;
  if (how == TURN_CHUNKS)
    for (; d < turned; d += width)
      for (int64_t a = d; a < d + width / 2; a += CHUNK)
        forward_chunk(t, of, dtype, how, rows, norm, far, to, stream, a, a + width / 2, CHUNK);
  for (; d < turned; d += CHUNK)
    forward_chunk(t, of, dtype, how, rows, norm, far, to, stream, d, d, CHUNK);
  for (; d < whole; d += CHUNK)
    forward_chunk(t, of, dtype, TURN_NONE, rows, norm, far, to, stream, d, d, CHUNK);
  if (d < dim && how == TURN_ADJACENT && of->tables->turned == dim)
    forward_chunk(t, of, dtype, how, rows, norm, far, to, stream, d, d, dim - d);
  else if (d < dim)
    forward_chunk(t, of, dtype, TURN_NONE, rows, norm, far, to, stream, d, d, dim - d);
}

/* The same for whole groups of near rows, with the norm as a constant. */
INLINE void forward_whole(const forward_state *t, const forward_group *of, nr_dtype dtype, turn how, char *const *to,
                          bool stream) {
#define WHOLE(norm)                                                                                                    \
  case norm: forward_make(t, of, dtype, how, ROWS, norm, false, to, stream); break
  switch (t->b->segment->norm) {
    WHOLE(NR_NORM_NONE);
    WHOLE(NR_NORM_LAYER);
    WHOLE(NR_NORM_LAYER_AFFINE);
    WHOLE(NR_NORM_RMS);
    WHOLE(NR_NORM_RMS_AFFINE);
  }
#undef WHOLE
}

/* The last reading of a group for each dtype and way of turning. */
#define MAKE(dtype, how)                                                                                               \
  APART void make_##dtype##_##how(const forward_state *t, const forward_group *of, char *const *to, bool stream) {     \
    const nr_norm norm = t->b->segment->norm;                                                                          \
    if (V16_REGISTERS && of->rows == ROWS && !of->any_far)                                                             \
      forward_whole(t, of, NR_##dtype, TURN_##how, to, stream);                                                        \
    else if (V16_REGISTERS && of->rows == ROWS)                                                                        \
      forward_make(t, of, NR_##dtype, TURN_##how, ROWS, norm, true, to, stream);                                       \
    else                                                                                                               \
      forward_make(t, of, NR_##dtype, TURN_##how, of->rows, norm, true, to, stream);                                   \
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

/* From the sums of a group to its statistics. */
INLINE void forward_know(const forward_state *t, forward_group *of, nr_dtype dtype) {
  const nr_segment *s = t->b->segment;
  if (!s->norm)
    return;
  forward_means(t, of, s->dim);
  if (of->any_far) {
    forward_recentre(of);
    sums_again_functions[dtype](t, of);
    forward_means_again(t, of, s->dim);
  }
  forward_statistics(t, of);
}

/* Groups on their way. */
typedef struct pipeline {
  forward_group group[STAGES];
  int64_t read, known, made; /* how many have been read for their sums, have their statistics, have been written */
} pipeline;

/* Takes each group on by one stage, at the end all the way. */
INLINE void forward_flow(const forward_state *t, pipeline *p, nr_dtype dtype, bool end) {
  for (; p->known < p->read - !end; p->known++)
    forward_know(t, &p->group[p->known % STAGES], dtype);
  for (; p->made < p->known - !end; p->made++)
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
      sums_functions[dtype](t, group);
      forward_flow(t, &p, dtype, differ);
    }
  }
  forward_flow(t, &p, dtype, true);
}

/* What the readings of positions' heads are for. */
typedef enum reading { READ_SUMS, READ_SUMS_AGAIN, READ_LAST } reading;

/* All heads of the group's positions from `first` on. */
INLINE void forward_reading(forward_state *t, nr_dtype dtype, forward_group *group, int64_t first, reading what) {
  forward_walk(t, BY_HEAD, first, group->rows);
  for (int64_t n = 0; n < t->b->segment->heads; n++) {
    if (what == READ_LAST)
      forward_head(t, dtype, n);
    forward_read(t, group, dtype);
    if (what == READ_SUMS)
      sums_functions[dtype](t, group);
    else if (what == READ_SUMS_AGAIN)
      sums_again_functions[dtype](t, group);
    else
      forward_store(t, group, dtype);
  }
}

/* Statistics over all heads, of the group's positions from `first` on. */
INLINE void forward_positions(forward_state *t, nr_dtype dtype, forward_group *group, int64_t first) {
  const int64_t channels = t->b->segment->heads * t->b->segment->dim;
  forward_clear(group);
  forward_reading(t, dtype, group, first, READ_SUMS);
  t->ahead.rows.at = NULL; /* that has come */
  forward_means(t, group, channels);
  if (group->any_far) {
    forward_recentre(group);
    forward_reading(t, dtype, group, first, READ_SUMS_AGAIN);
    forward_means_again(t, group, channels);
  }
  forward_reading(t, dtype, group, first, READ_LAST);
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
