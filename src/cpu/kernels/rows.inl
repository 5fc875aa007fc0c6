/* What the bodies share: rows in and out of strided views, tables, and the rotation. Included once per instruction set,
   after its vocabulary. Scratch rows are floats, 64-byte aligned. */

#define INLINE static inline __attribute__((always_inline))

enum { VECTOR = 16 };

/* A row of scratch. Each starts on a cache line. */
typedef struct scratch {
  _Alignas(64) float channel[NR_MAX_DIM];
} scratch;

INLINE int64_t lanes(int64_t channels, int64_t d) { return channels - d < VECTOR ? channels - d : VECTOR; }

INLINE v16 load(const char *row, nr_dtype dtype, int64_t d, int64_t n) {
  const char *from = row + d * (dtype == NR_F32 ? 4 : 2);
  return n == VECTOR ? v16_load(from, dtype) : v16_load_first(from, dtype, n);
}

INLINE void store(char *row, nr_dtype dtype, int64_t d, int64_t n, v16 value) {
  char *to = row + d * (dtype == NR_F32 ? 4 : 2);
  if (n == VECTOR)
    v16_store(to, dtype, value);
  else
    v16_store_first(to, dtype, value, n);
}

INLINE v16 get(const float *row, int64_t d, int64_t n) { return load((const char *)row, NR_F32, d, n); }

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

INLINE void convert(const char *row, nr_dtype dtype, int64_t channels, float *to) {
  for (int64_t d = 0; d < channels; d += VECTOR)
    v16_put(to + d, load(row, dtype, d, lanes(channels, d)), lanes(channels, d));
}

/* A row of a parameter or table as floats: itself where it is one, else converted into `buffer`. */
static const float *floats(const nr_view *v, const char *row, int64_t channels, scratch *buffer) {
  if (v->dtype == NR_F32 && v->stride[3] == 1)
    return (const float *)row;
  scratch elements;
  switch (v->dtype) {
  case NR_F32: convert(gathered(v, row, NR_F32, channels, &elements), NR_F32, channels, buffer->channel); break;
  case NR_F16: convert(gathered(v, row, NR_F16, channels, &elements), NR_F16, channels, buffer->channel); break;
  default: convert(gathered(v, row, NR_BF16, channels, &elements), NR_BF16, channels, buffer->channel); break;
  }
  return buffer->channel;
}

/* The tables' rows for the positions of a tile. The sine's sign is turned in the first half of each pairing block,
   where the rotation subtracts. */
typedef struct tables {
  const float *cos[NR_TILE]; /* NULL: the row passes unrotated */
  const float *sin[NR_TILE];
  scratch cos_buffer[NR_TILE], sin_buffer[NR_TILE];
} tables;

static void load_tables(const nr_segment *s, int64_t b, int64_t first, int64_t rows, int64_t head, tables *of) {
  int64_t half = s->rope_width / 2;
  for (int64_t r = 0; r < rows; r++) {
    int64_t t = nr_table_row(s, first + r);
    of->cos[r] = of->sin[r] = NULL;
    if (t < 0)
      continue;
    float *sine = of->sin_buffer[r].channel;
    const float *given = floats(&s->sin, nr_row(&s->sin, b, t, head), s->rope_dim, &of->sin_buffer[r]);
    for (int64_t block = 0; block < s->rope_dim; block += s->rope_width)
      for (int64_t i = block; i < block + half; i++) {
        sine[i] = -given[i];
        sine[i + half] = given[i + half];
      }
    of->sin[r] = sine;
    of->cos[r] = floats(&s->cos, nr_row(&s->cos, b, t, head), s->rope_dim, &of->cos_buffer[r]);
  }
}

/* True if the tables differ from head to head, so that each head loads its own. */
INLINE bool tables_per_head(const nr_segment *s) { return s->rope_width && (s->cos.stride[2] || s->sin.stride[2]); }

/*
 * The rotation, or transposed its gradient, of a row given as elements of `from_dtype` to elements of `to_dtype`:
 *   out[i] = y[i] * cos[i] + y[partner] * sin[i], transposed y[partner] * sin[partner], with the signed sine.
 * Without tables, and in the channels past rope_dim, the row passes. `from` and `to` may be the same row of floats.
 */
INLINE void rotate(const nr_segment *s, const tables *of, int64_t r, bool transposed, const char *from,
                   nr_dtype from_dtype, char *to, nr_dtype to_dtype) {
  const float *cos = of->cos[r], *sin = of->sin[r];
  int64_t half = s->rope_width / 2, turned = cos ? s->rope_dim : 0;
  if (turned && half == 1)
    for (int64_t d = 0; d < turned; d += VECTOR) {
      int64_t n = lanes(turned, d);
      v16 y = load(from, from_dtype, d, n), sine = get(sin, d, n);
      v16 other = transposed ? v16_swap(v16_mul(y, sine)) : v16_mul(v16_swap(y), sine);
      store(to, to_dtype, d, n, v16_fma(y, get(cos, d, n), other));
    }
  else
    for (int64_t block = 0; block < turned; block += 2 * half)
      for (int64_t i = 0; i < half; i += VECTOR) {
        int64_t a = block + i, b = a + half, n = lanes(half, i);
        v16 y_a = load(from, from_dtype, a, n), y_b = load(from, from_dtype, b, n);
        v16 sin_a = get(sin, a, n), sin_b = get(sin, b, n);
        store(to, to_dtype, a, n, v16_fma(y_a, get(cos, a, n), v16_mul(y_b, transposed ? sin_b : sin_a)));
        store(to, to_dtype, b, n, v16_fma(y_b, get(cos, b, n), v16_mul(y_a, transposed ? sin_a : sin_b)));
      }
  for (int64_t d = turned; d < s->dim; d += VECTOR)
    store(to, to_dtype, d, lanes(s->dim, d), load(from, from_dtype, d, lanes(s->dim, d)));
}

/* A block of a segment without norm and rope: bits are copied. */
static void copy_block(const nr_block *b, const nr_view *from, const nr_view *to, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  size_t size = dtype == NR_F32 ? 4 : 2;
  for (int64_t first = b->first; first < b->first + b->count; first += NR_TILE)
    for (int64_t n = 0; n < s->heads; n++)
      for (int64_t p = first; p < first + NR_TILE && p < b->first + b->count; p++) {
        char *out = nr_row(to, b->batch, p, n);
        const char *in = nr_row(from, b->batch, p, n);
        if (from->stride[3] == 1 && to->stride[3] == 1) {
          memmove(out, in, (size_t)s->dim * size); /* in place, they are the same row */
          continue;
        }
        scratch buffer, strided;
        char *side = (char *)buffer.channel;
        memcpy(side, gathered(from, in, dtype, s->dim, &strided), (size_t)s->dim * size);
        scatter(to, out, dtype, s->dim, side);
      }
}

/* The parameter's row of a head as floats, or NULL where the segment has none. */
static const float *parameter(const nr_view *v, bool has, int64_t head, int64_t dim, scratch *buffer) {
  return has ? floats(v, nr_row(v, 0, 0, head), dim, buffer) : NULL;
}

INLINE v16 affine(v16 xhat, const float *weight, const float *bias, int64_t d, int64_t n) {
  if (!weight)
    return xhat;
  return bias ? v16_fma(xhat, get(weight, d, n), get(bias, d, n)) : v16_mul(xhat, get(weight, d, n));
}
