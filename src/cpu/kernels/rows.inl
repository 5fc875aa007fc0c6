/*
 * What the bodies share: the walk over a block's rows, rows in and out of strided views, tables, and the rotation.
 * Included once per instruction set, after its vocabulary.
 *
 * A block is walked in tiles of NR_TILE positions, and a tile in groups of ROWS rows, either head by head within a
 * position or position by position within a head. While a group is worked on, the same number of rows of the next tile
 * is brought to the second-level cache, in the order in which memory has them: the rows of a tile lie in as many places
 * as there are heads, which no hardware follows, and runs of four rows are what the memory serves best.
 *
 * Rows of scratch are floats in one of two orders: as v32s of the rows' dtype lie (simd_scalar.h), with zeros behind
 * the last channel, or plain, as in memory.
 */

/* Where a v16 fits into registers: functions that become part of their callers, with dtypes as constants; the rows of a
   group side by side, so that what belongs to a row stays in registers. Elsewhere that would only be long to compile.
 */
#if V16_REGISTERS
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 4")
#else
#define INLINE static
#define UNROLLED
#endif

/* A function of its own, so that the compiler works on one tight loop at a time. */
#define APART static __attribute__((noinline))

enum { CHUNK = NR_CHUNK, HALF_CHUNK = CHUNK / 2, ROWS = 4, LINE = 64 };

/* A number for each row of a group. Vectors as GCC and Clang have them, since of loops over four rows they make vectors
   only in part, and what is stored in parts and loaded as a whole has to wait. */
typedef double rows_f64 __attribute__((vector_size(ROWS * sizeof(double))));
typedef float rows_f32 __attribute__((vector_size(ROWS * sizeof(float))));
typedef int64_t rows_mask __attribute__((vector_size(ROWS * sizeof(int64_t))));

typedef struct scratch {
  _Alignas(64) float channel[NR_MAX_DIM];
} scratch;

/* Floats from row to row of scratch: close together, and never a multiple of 4 KiB apart, since rows that are would
   push each other out of the first-level cache. */
INLINE int64_t pitch_of(const nr_segment *s) { return nr_padded(s->dim) + HALF_CHUNK; }

INLINE int64_t in_chunk(int64_t channels, int64_t d) { return channels - d < CHUNK ? channels - d : CHUNK; }

INLINE int64_t size_of(nr_dtype dtype) { return dtype == NR_F32 ? 4 : 2; }

/* Chunks. */

INLINE v32 load(const char *row, nr_dtype dtype, int64_t d, int64_t n) {
  const char *from = row + d * size_of(dtype);
  return n == CHUNK ? v32_load(from, dtype) : v32_load_first(from, dtype, n);
}

INLINE void store(char *row, nr_dtype dtype, int64_t d, int64_t n, v32 value, bool stream) {
  char *to = row + d * size_of(dtype);
  if (n < CHUNK)
    v32_store_first(to, dtype, value, n);
  else if (stream)
    v32_stream(to, dtype, value);
  else
    v32_store(to, dtype, value);
}

/* A chunk of one dtype as one of another lies. */
INLINE v32 arranged(v32 value, nr_dtype from, nr_dtype to) {
  if (nr_in_pairs(from) == nr_in_pairs(to))
    return value;
  return nr_in_pairs(to) ? v32_apart(value) : v32_together(value);
}

INLINE v32 get(const float *row, int64_t d) { return (v32){v16_get(row + d), v16_get(row + d + HALF_CHUNK)}; }

INLINE void put(float *row, int64_t d, v32 value) {
  v16_put(row + d, value.a);
  v16_put(row + d + HALF_CHUNK, value.b);
}

INLINE v32 both(v16 value) { return (v32){value, value}; }
INLINE v32 each_add(v32 a, v32 b) { return (v32){v16_add(a.a, b.a), v16_add(a.b, b.b)}; }
INLINE v32 each_sub(v32 a, v32 b) { return (v32){v16_sub(a.a, b.a), v16_sub(a.b, b.b)}; }
INLINE v32 each_mul(v32 a, v32 b) { return (v32){v16_mul(a.a, b.a), v16_mul(a.b, b.b)}; }
INLINE v32 each_fma(v32 a, v32 b, v32 c) { return (v32){v16_fma(a.a, b.a, c.a), v16_fma(a.b, b.b, c.b)}; }
INLINE v32 each_fnma(v32 a, v32 b, v32 c) { return (v32){v16_fnma(a.a, b.a, c.a), v16_fnma(a.b, b.b, c.b)}; }

/* Each channel where its neighbour was. */
INLINE v32 swapped(v32 value, nr_dtype dtype) {
  return nr_in_pairs(dtype) ? (v32){value.b, value.a} : (v32){v16_swap(value.a), v16_swap(value.b)};
}

/* The first n channels of a chunk; the others become 0. */
INLINE v32 first_channels(v32 value, nr_dtype dtype, int64_t n) {
  if (n == CHUNK)
    return value;
  if (nr_in_pairs(dtype))
    return (v32){v16_first(value.a, n / 2), v16_first(value.b, n / 2)};
  int64_t in_a = n < HALF_CHUNK ? n : HALF_CHUNK;
  return (v32){v16_first(value.a, in_a), v16_first(value.b, n - in_a)};
}

/* Rows. */

/* The elements of a row side by side: the row itself, or its copy in `buffer` where the channels are strided. */
INLINE const char *gathered(const nr_view *v, const char *row, nr_dtype dtype, int64_t channels, scratch *buffer) {
  int64_t stride = v->stride[3];
  if (stride == 1)
    return row;
  for (int64_t d = 0; d < channels; d++)
    if (dtype == NR_F32)
      buffer->channel[d] = ((const float *)row)[d * stride];
    else
      ((uint16_t *)buffer->channel)[d] = ((const uint16_t *)row)[d * stride];
  return (const char *)buffer->channel;
}

/* The same for some rows. */
INLINE void gather(const nr_view *v, char *const *row, nr_dtype dtype, int64_t channels, int64_t rows, scratch *buffer,
                   const char **to) {
  for (int64_t r = 0; r < rows; r++)
    to[r] = row[r];
  for (int64_t r = 0; r < rows && v->stride[3] != 1; r++)
    to[r] = gathered(v, row[r], dtype, channels, &buffer[r]);
}

/* The way back: copies elements side by side to a row, unless they are there already. */
INLINE void scatter(const nr_view *v, char *row, nr_dtype dtype, int64_t channels, const char *from) {
  int64_t stride = v->stride[3];
  for (int64_t d = 0; d < channels && from != row; d++)
    if (dtype == NR_F32)
      ((float *)row)[d * stride] = ((const float *)from)[d];
    else
      ((uint16_t *)row)[d * stride] = ((const uint16_t *)from)[d];
}

/* A row of elements as floats that lie as chunks of dtype `as`; plain where that is float32. */
INLINE void load_row(const nr_view *v, const char *row, nr_dtype dtype, int64_t channels, float *to, nr_dtype as) {
  scratch strided;
  const char *from = gathered(v, row, dtype, channels, &strided);
  for (int64_t d = 0; d < channels; d += CHUNK)
    put(to, d, arranged(load(from, dtype, d, in_chunk(channels, d)), dtype, as));
}

/* The same for a parameter or table, whose dtype is its own. */
static void load_any(const nr_view *v, const char *row, int64_t channels, float *to, nr_dtype as) {
  switch (v->dtype) {
  case NR_F32: load_row(v, row, NR_F32, channels, to, as); break;
  case NR_F16: load_row(v, row, NR_F16, channels, to, as); break;
  default: load_row(v, row, NR_BF16, channels, to, as); break;
  }
}

/* A head's row of a parameter. */
INLINE void load_parameter(const nr_view *v, int64_t head, int64_t dim, float *to, nr_dtype as) {
  load_any(v, nr_row(v, 0, 0, head), dim, to, as);
}

/* A parameter that each head has its own row of. */
INLINE bool per_head(const nr_view *v) { return v->data && v->stride[2]; }

/* The walk. */

/* In which order the rows of some positions are visited. */
typedef enum order { BY_POSITION, BY_HEAD /* all positions of a head, then the next head */ } order;

/* The order in which memory has the rows of a view. */
INLINE order order_of(const nr_view *v) {
  int64_t position = v->stride[1], head = v->stride[2];
  return (position < 0 ? -position : position) < (head < 0 ? -head : head) ? BY_HEAD : BY_POSITION;
}

typedef struct tile {
  int64_t first, count; /* positions, of the batch */
  int64_t ahead;        /* first position of the next whole tile that this thread works on, or -1 */
} tile;

INLINE tile first_tile(const nr_block *b) { return (tile){b->first, 0, -1}; }

/* Steps to the next tile; false behind the last. */
INLINE bool next_tile(const nr_block *b, tile *t) {
  int64_t end = b->first + b->count;
  t->first += t->count;
  t->count = end - t->first < NR_TILE ? end - t->first : NR_TILE;
  int64_t next = t->first + t->count;
  t->ahead = next + NR_TILE <= end ? next : next >= end ? b->next : -1;
  return t->count > 0;
}

/* Where a walk over rows stands: `run` rows follow each other before it turns to the next head or position. */
typedef struct cursor {
  order by;
  int64_t first; /* position, of the tile */
  int64_t run, inner, outer;
} cursor;

INLINE cursor cursor_of(order by, int64_t first, int64_t positions, int64_t heads) {
  return (cursor){.by = by, .first = first, .run = by == BY_HEAD ? positions : heads};
}

/* True if the next rows follow each other without a turn. */
INLINE bool in_run(const cursor *c, int64_t rows) { return c->inner + rows <= c->run; }

/* The places in the tile of the next rows. */
INLINE void positions_of(const cursor *c, int64_t rows, int64_t *to) {
  const int64_t each = c->by == BY_HEAD;
  for (int64_t r = 0; r < rows; r++)
    to[r] = c->first + (each ? c->inner + r : c->outer);
  if (!in_run(c, rows))
    for (int64_t r = 0; r < rows; r++)
      to[r] = c->first + (each ? (c->inner + r) % c->run : c->outer + (c->inner + r) / c->run);
}

INLINE void step(cursor *c, int64_t rows) {
  c->inner += rows;
  while (c->inner >= c->run)
    c->inner -= c->run, c->outer++;
}

/* The addresses of a view's rows on such a walk; of an absent view NULL. */
typedef struct walk {
  char *at;
  int64_t next, turn; /* bytes from a row to the next in its run, from the last one to the first of the next run */
} walk;

INLINE walk walk_of(const nr_view *v, int64_t batch, int64_t first, const cursor *c) {
  if (!v->data)
    return (walk){NULL, 0, 0};
  int64_t size = size_of(v->dtype), inner = v->stride[c->by == BY_HEAD ? 1 : 2] * size,
          outer = v->stride[c->by == BY_HEAD ? 2 : 1] * size;
  return (walk){nr_row(v, batch, first, 0), inner, outer - (c->run - 1) * inner};
}

/* The next rows of the walk, which stands at the cursor. */
INLINE void take(walk *w, const cursor *c, int64_t rows, char **to) {
  if (in_run(c, rows)) {
    for (int64_t r = 0; r < rows; r++)
      to[r] = w->at + r * w->next;
    w->at += (rows - 1) * w->next + (c->inner + rows == c->run ? w->turn : w->next);
    return;
  }
  cursor at = *c;
  for (int64_t r = 0; r < rows; r++, step(&at, 1)) {
    to[r] = w->at;
    w->at += at.inner + 1 == at.run ? w->turn : w->next;
  }
}

/* Rows to bring to the cache: those of the next tile, in memory's order. */
typedef struct prefetch {
  cursor cursor;
  walk rows;
} prefetch;

INLINE prefetch prefetch_of(const nr_block *b, const nr_view *v, const tile *t) {
  prefetch p = {.cursor = cursor_of(order_of(v), 0, NR_TILE, b->segment->heads), .rows = {NULL, 0, 0}};
  if (t->ahead >= 0 && v->stride[3] == 1)
    p.rows = walk_of(v, b->batch, t->ahead, &p.cursor);
  return p;
}

/* The next rows to bring, or, where there are none, these, which are at hand already. */
INLINE void take_ahead(prefetch *p, int64_t rows, char *const *at_hand, char **to) {
  if (p->rows.at) {
    take(&p->rows, &p->cursor, rows, to);
    step(&p->cursor, rows);
  } else {
    for (int64_t r = 0; r < rows; r++)
      to[r] = at_hand[r];
  }
}

INLINE void bring(const char *row, nr_dtype dtype, int64_t d) {
  row += d * size_of(dtype);
  v32_prefetch(row);
  if (dtype == NR_F32)
    v32_prefetch(row + LINE);
}

/* Where a group's rows go. Rows that are whole lines pass by the caches as they are; others that follow each other and
   are whole lines together do so by way of `staged`. */
typedef struct destination {
  char *row[ROWS];
  bool stream;
  char *staged; /* where the rows are made, or NULL */
} destination;

INLINE bool whole_lines(const char *const *row, int64_t rows, int64_t size) {
  bool whole = (uintptr_t)row[0] % LINE == 0 && rows * size % LINE == 0;
  for (int64_t r = 1; r < rows; r++)
    whole = whole && row[r] == row[r - 1] + size;
  return whole;
}

INLINE void settle(destination *to, const nr_block *b, nr_dtype dtype, int64_t rows, char *stage) {
  int64_t size = b->segment->dim * size_of(dtype);
  to->staged = NULL;
  to->stream = b->stream;
  if (b->stream && size % LINE) {
    to->stream = false;
    if (whole_lines((const char *const *)to->row, rows, size))
      to->staged = stage;
  }
}

/* The rows made in the stage go where they belong. */
INLINE void unstage(const destination *to, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += LINE)
    v32_stream_bytes(to->row[0] + byte, to->staged + byte);
}

/* Tables. */

/* How the rows of a tile turn. */
typedef enum turn {
  TURN_NONE,     /* not at all: no rope, or all of them outside the window */
  TURN_ADJACENT, /* channels with their neighbours: lanes with lanes */
  TURN_CHUNKS,   /* whole chunks with whole chunks */
  TURN_PLAIN     /* any other way, channel by channel in plain order */
} turn;

/* The tables' rows for the positions of a tile, which lie as the rows do, plain for TURN_PLAIN. The sine's sign is
   turned in the first half of each pairing block, where the rotation subtracts. */
typedef struct tables {
  turn turn;
  int64_t turned; /* channels that rotate */
  bool present[NR_TILE];
  float *cos, *sin; /* NR_TILE rows each, `pitch` apart */
  int64_t pitch;
} tables;

/* Cosine and sine of a row, in a chunk. */
typedef struct angles {
  v32 cos, sin;
} angles;

/* Tables that are to be loaded into 2 * NR_TILE rows of scratch. */
INLINE tables tables_at(float *rows, int64_t pitch) {
  return (tables){.turn = TURN_NONE, .cos = rows, .sin = rows + NR_TILE * pitch, .pitch = pitch};
}

/* What turns the sine's sign in the first channels of the pairs of a chunk: of neighbours, or in all of them. */
INLINE v32 signs(nr_dtype dtype, bool adjacent) {
  static const _Alignas(LINE) float alternating[HALF_CHUNK] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  if (!adjacent)
    return both(v16_set(-1));
  return nr_in_pairs(dtype) ? (v32){v16_set(-1), v16_set(1)} : both(v16_get(alternating));
}

static void load_tables(const nr_segment *s, int64_t b, int64_t first, int64_t rows, int64_t head, nr_dtype dtype,
                        tables *of) {
  int64_t half = s->rope_width / 2, present = 0;
  for (int64_t r = 0; r < rows; r++)
    present += of->present[r] = nr_table_row(s, first + r) >= 0;
  bool chunks = s->rope_dim % CHUNK == 0 || s->rope_dim == s->dim;
  of->turned = present ? s->rope_dim : 0;
  of->turn = present == 0                                    ? TURN_NONE
             : present < rows || !chunks                     ? TURN_PLAIN
             : half == 1                                     ? TURN_ADJACENT
             : half % CHUNK == 0 && s->rope_dim % CHUNK == 0 ? TURN_CHUNKS
                                                             : TURN_PLAIN;
  nr_dtype as = of->turn == TURN_PLAIN ? NR_F32 : dtype;
  for (int64_t r = 0; r < rows && present; r++) {
    if (!of->present[r])
      continue;
    int64_t t = nr_table_row(s, first + r);
    float *sin = of->sin + r * of->pitch;
    load_any(&s->cos, nr_row(&s->cos, b, t, head), s->rope_dim, of->cos + r * of->pitch, as);
    load_any(&s->sin, nr_row(&s->sin, b, t, head), s->rope_dim, sin, as);
    for (int64_t d = 0; d < s->rope_dim && of->turn != TURN_PLAIN; d += CHUNK)
      if (half == 1 || d % s->rope_width < half)
        put(sin, d, each_mul(get(sin, d), signs(dtype, half == 1)));
    for (int64_t block = 0; block < s->rope_dim && of->turn == TURN_PLAIN; block += s->rope_width)
      for (int64_t i = block; i < block + half; i++)
        sin[i] = -sin[i];
  }
}

/* True if the tables differ from head to head, so that each head loads its own. */
INLINE bool tables_per_head(const nr_segment *s) { return per_head(&s->cos) || per_head(&s->sin); }

/* The chunk that turns with the one at channel d, for TURN_CHUNKS. */
INLINE int64_t partner_chunk(const nr_segment *s, int64_t d) {
  int64_t half = s->rope_width / 2;
  return d % s->rope_width < half ? d + half : d - half;
}

/* TURN_PLAIN for one row, in plain order: out[i] = y[i] * cos[i] + y[partner] * sin[i], transposed with the partner's
   sine; channels that do not turn pass. `at`: the row's place in the tables. */
static void turn_plain(const nr_segment *s, const tables *of, int64_t at, bool transposed, const float *y, float *out) {
  const float *cos = of->cos + at * of->pitch, *sin = of->sin + at * of->pitch;
  int64_t half = s->rope_width / 2, turned = of->present[at] ? of->turned : 0;
  for (int64_t block = 0; block < turned; block += 2 * half)
    for (int64_t a = block; a < block + half; a++) {
      int64_t b = a + half;
      float sin_a = transposed ? sin[b] : sin[a], sin_b = transposed ? sin[a] : sin[b], y_a = y[a], y_b = y[b];
      out[a] = fmaf(y_a, cos[a], y_b * sin_a);
      out[b] = fmaf(y_b, cos[b], y_a * sin_b);
    }
  for (int64_t d = turned; d < s->dim; d++)
    out[d] = y[d];
}

/* Copies. */

/* A block of a segment without norm and rope: bits are copied. In place, a row may be copied to itself. */
INLINE void copy_block(const nr_block *b, const nr_view *from, const nr_view *to, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  const int64_t size = s->dim * size_of(dtype);
  scratch buffer, strided;
  _Alignas(LINE) char stage[ROWS * NR_MAX_DIM * sizeof(float)];
  tile t = first_tile(b);
  while (next_tile(b, &t)) {
    cursor at = cursor_of(order_of(to), 0, t.count, s->heads);
    walk in_walk = walk_of(from, b->batch, t.first, &at), out_walk = walk_of(to, b->batch, t.first, &at);
    prefetch ahead = prefetch_of(b, from, &t);
    for (int64_t left = t.count * s->heads, rows; left; left -= rows) {
      rows = left < ROWS ? 1 : ROWS;
      char *in[ROWS], *coming[ROWS];
      destination out = {.staged = NULL};
      take(&in_walk, &at, rows, in);
      take(&out_walk, &at, rows, out.row);
      take_ahead(&ahead, rows, in, coming);
      step(&at, rows);
      settle(&out, b, dtype, rows, stage);
      for (int64_t r = 0; r < rows; r++) {
        for (int64_t d = 0; d < s->dim; d += CHUNK)
          bring(coming[r], dtype, d);
        if (from->stride[3] != 1 || to->stride[3] != 1) {
          memcpy(buffer.channel, gathered(from, in[r], dtype, s->dim, &strided), (size_t)size);
          scatter(to, out.row[r], dtype, s->dim, (char *)buffer.channel);
        } else if (out.stream) {
          for (int64_t byte = 0; byte < size; byte += LINE)
            v32_stream_bytes(out.row[r] + byte, in[r] + byte);
        } else {
          memmove(out.staged ? out.staged + r * size : out.row[r], in[r], (size_t)size);
        }
      }
      if (out.staged)
        unstage(&out, rows * size);
    }
  }
  if (b->stream)
    v32_fence();
}
