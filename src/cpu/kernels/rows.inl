/*
 * What the bodies share: rows in and out of strided views, tables, and the rotation. Included once per instruction set,
 * after its vocabulary.
 *
 * Rows of scratch are floats in one of two orders. Paired, as the vocabulary wants them: each chunk of 32 channels as
 * its 16 even ones and then its 16 odd ones, with zeros behind the last channel. Plain: as in memory.
 */

/* Where a v16 fits into registers: functions that become part of their callers, with dtypes as constants; the rows of a
   tile side by side, so that what belongs to a row stays in registers. Elsewhere that would only be long to compile. */
#if V16_REGISTERS
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 4")
#else
#define INLINE static
#define UNROLLED
#endif

/* A function of its own, so that the compiler works on one tight loop at a time. */
#define APART static __attribute__((noinline))

enum { CHUNK = 32, HALF_CHUNK = 16, AHEAD = 4096 };

typedef struct scratch {
  _Alignas(64) float channel[NR_MAX_DIM];
} scratch;

/* Floats from row to row of scratch: close together, and never a multiple of 4 KiB apart, since rows that are would
   push each other out of the first-level cache. */
INLINE int64_t pitch_of(const nr_segment *s) { return nr_padded(s->dim) + HALF_CHUNK; }

INLINE int64_t in_chunk(int64_t channels, int64_t d) { return channels - d < CHUNK ? channels - d : CHUNK; }

INLINE size_t size_of(nr_dtype dtype) { return dtype == NR_F32 ? 4 : 2; }

INLINE v32 load(const char *row, nr_dtype dtype, int64_t d, int64_t n) {
  const char *from = row + (size_t)d * size_of(dtype);
  return n == CHUNK ? v32_load(from, dtype) : v32_load_first(from, dtype, n);
}

INLINE void store(char *row, nr_dtype dtype, int64_t d, int64_t n, v32 value, bool stream) {
  char *to = row + (size_t)d * size_of(dtype);
  if (n < CHUNK)
    v32_store_first(to, dtype, value, n);
  else if (stream)
    v32_stream(to, dtype, value);
  else
    v32_store(to, dtype, value);
}

INLINE v32 get(const float *paired, int64_t d) { return (v32){v16_get(paired + d), v16_get(paired + d + HALF_CHUNK)}; }

INLINE void put(float *paired, int64_t d, v32 value) {
  v16_put(paired + d, value.even);
  v16_put(paired + d + HALF_CHUNK, value.odd);
}

INLINE v32 each_mul(v32 a, v32 b) { return (v32){v16_mul(a.even, b.even), v16_mul(a.odd, b.odd)}; }
INLINE v32 each_fma(v32 a, v32 b, v32 c) {
  return (v32){v16_fma(a.even, b.even, c.even), v16_fma(a.odd, b.odd, c.odd)};
}
INLINE v32 swapped(v32 a) { return (v32){a.odd, a.even}; }

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

/* The way back: copies the elements in `buffer` to the row, unless they are there already. */
INLINE void scatter(const nr_view *v, char *row, nr_dtype dtype, int64_t channels, const char *buffer) {
  int64_t stride = v->stride[3];
  for (int64_t d = 0; d < channels && buffer != row; d++)
    if (dtype == NR_F32)
      ((float *)row)[d * stride] = ((const float *)buffer)[d];
    else
      ((uint16_t *)row)[d * stride] = ((const uint16_t *)buffer)[d];
}

/* A row of elements as paired floats, or as plain ones. */
INLINE void load_row(const nr_view *v, const char *row, nr_dtype dtype, int64_t channels, float *to, bool paired) {
  scratch strided;
  const char *from = gathered(v, row, dtype, channels, &strided);
  for (int64_t d = 0; d < channels; d += CHUNK) {
    int64_t n = in_chunk(channels, d);
    v32 value = load(from, dtype, d, n);
    if (paired)
      put(to, d, value);
    else
      store((char *)to, NR_F32, d, n, value, false);
  }
}

/* The same for a parameter or table, whose dtype is its own. */
static void load_any(const nr_view *v, const char *row, int64_t channels, float *to, bool paired) {
  switch (v->dtype) {
  case NR_F32: load_row(v, row, NR_F32, channels, to, paired); break;
  case NR_F16: load_row(v, row, NR_F16, channels, to, paired); break;
  default: load_row(v, row, NR_BF16, channels, to, paired); break;
  }
}

/* A head's row of a parameter, paired. */
INLINE void load_parameter(const nr_view *v, int64_t head, int64_t dim, float *to) {
  load_any(v, nr_row(v, 0, 0, head), dim, to, true);
}

/* A parameter that each head has its own row of. */
INLINE bool per_head(const nr_view *v) { return v->data && v->stride[2]; }

/* How the rows of a tile turn. */
typedef enum turn {
  TURN_NONE,     /* not at all: no rope, or all of them outside the window */
  TURN_ADJACENT, /* even channels with odd ones: lanes with lanes */
  TURN_CHUNKS,   /* whole chunks with whole chunks */
  TURN_PLAIN     /* any other way, channel by channel in plain order */
} turn;

/* The tables' rows for the positions of a tile, paired but for TURN_PLAIN. The sine's sign is turned in the first half
   of each pairing block, where the rotation subtracts. */
typedef struct tables {
  turn turn;
  int64_t turned; /* channels that rotate */
  bool present[NR_TILE];
  float *cos, *sin; /* NR_TILE rows each, `pitch` apart */
  int64_t pitch;
} tables;

INLINE v32 negated(v32 a, bool even, bool odd) {
  v16 zero = v16_set(-0.0f);
  return (v32){even ? v16_sub(zero, a.even) : a.even, odd ? v16_sub(zero, a.odd) : a.odd};
}

static void load_tables(const nr_segment *s, int64_t b, int64_t first, int64_t rows, int64_t head, tables *of) {
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
  bool paired = of->turn != TURN_PLAIN;
  for (int64_t r = 0; r < rows && present; r++) {
    if (!of->present[r])
      continue;
    int64_t t = nr_table_row(s, first + r);
    float *sine = of->sin + r * of->pitch;
    load_any(&s->cos, nr_row(&s->cos, b, t, head), s->rope_dim, (of->cos + r * of->pitch), paired);
    load_any(&s->sin, nr_row(&s->sin, b, t, head), s->rope_dim, sine, paired);
    for (int64_t d = 0; d < s->rope_dim && paired; d += CHUNK) {
      bool first_half = half == 1 || d % s->rope_width < half;
      put(sine, d, negated(get(sine, d), first_half, first_half && half > 1));
    }
    for (int64_t block = 0; block < s->rope_dim && !paired; block += s->rope_width)
      for (int64_t i = block; i < block + half; i++)
        sine[i] = -sine[i];
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
   sine; channels that do not turn pass. */
static void turn_plain(const nr_segment *s, const tables *of, int64_t r, bool transposed, const float *y, float *out) {
  const float *cos = of->cos + r * of->pitch, *sin = of->sin + r * of->pitch;
  int64_t half = s->rope_width / 2, turned = of->present[r] ? of->turned : 0;
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

/* How far, in bytes, the rows that are worked on some 4 KiB after those of a head are from them, in this tile or the
   next one: where prefetches go, since reading jumps from head to head, which no hardware follows. 0 where there are
   none. */
INLINE int64_t distance_ahead(const nr_block *b, const nr_view *v, nr_dtype dtype, int64_t first, int64_t head) {
  const nr_segment *s = b->segment;
  int64_t size = (int64_t)size_of(dtype), heads = 0, positions = 0;
  for (int64_t bytes = 0; bytes < AHEAD && positions <= NR_TILE; bytes += NR_TILE * s->dim * size)
    if (head + ++heads == s->heads) {
      heads -= s->heads;
      positions += NR_TILE;
    }
  if (first + positions + NR_TILE > b->first + b->count || v->stride[3] != 1)
    return 0;
  return (heads * v->stride[2] + positions * v->stride[1]) * size;
}

/* Brings a chunk of a row to the caches. */
INLINE void prefetch(const char *row, nr_dtype dtype, int64_t d) {
  row += (size_t)d * size_of(dtype);
  __builtin_prefetch(row);
  if (dtype == NR_F32)
    __builtin_prefetch(row + 64);
}

/* Bytes from row to row, which in place may be one and the same. */
INLINE void copy_row(char *to, const char *from, size_t bytes, bool stream) {
  if (stream)
    for (size_t byte = 0; byte < bytes; byte += 64)
      v32_stream_bytes(to + byte, from + byte);
  else
    memmove(to, from, bytes);
}

/* A block of a segment without norm and rope: bits are copied. */
INLINE void copy_block(const nr_block *b, const nr_view *from, const nr_view *to, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  for (int64_t first = b->first; first < b->first + b->count; first += NR_TILE)
    for (int64_t n = 0; n < s->heads; n++) {
      int64_t ahead = distance_ahead(b, from, dtype, first, n);
      for (int64_t p = first; p < first + NR_TILE && p < b->first + b->count; p++) {
        char *out = nr_row(to, b->batch, p, n);
        const char *in = nr_row(from, b->batch, p, n);
        for (int64_t d = 0; d < s->dim; d += CHUNK)
          prefetch(in + ahead, dtype, d);
        if (from->stride[3] == 1 && to->stride[3] == 1) {
          copy_row(out, in, (size_t)s->dim * size_of(dtype), b->stream);
          continue;
        }
        scratch buffer, strided;
        char *side = (char *)buffer.channel;
        memcpy(side, gathered(from, in, dtype, s->dim, &strided), (size_t)s->dim * size_of(dtype));
        scatter(to, out, dtype, s->dim, side);
      }
    }
  if (b->stream)
    v32_fence();
}
