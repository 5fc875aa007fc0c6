/* The two yardsticks: a copy, and a loop over the operator's rows. Both with ordinary and with streaming stores. */
#include <string.h>

#include "cli/bench.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum {
  LINE = 64,
  VECTOR = 16,
  RUN = 4,           /* positions of one head before the next head: short enough for the nearer caches */
  SMALL = 256 * 1024 /* bytes not worth waking a thread */
};

/* 16 bytes, wherever they lie. */
typedef unsigned char vector __attribute__((vector_size(VECTOR)));

static inline vector load(const char *at) {
  vector v;
  memcpy(&v, at, sizeof v);
  return v;
}

static inline void store(char *at, vector v) { memcpy(at, &v, sizeof v); }

#if defined(__x86_64__)

enum { CAN_STREAM = 1 };

static inline void store_streamed(char *at, vector v) { _mm_stream_si128((__m128i *)at, (__m128i)v); }
static inline void finish_streaming(void) { _mm_sfence(); }

#else

enum { CAN_STREAM = 0 };

static inline void store_streamed(char *at, vector v) { store(at, v); }
static inline void finish_streaming(void) {}

#endif

/* Whole lines, so that stores fill them in one go. */
static void copy_streamed(char *to, const char *from, size_t size) {
  for (size_t i = 0; i < size; i += LINE) {
    __builtin_prefetch(from + i + 16 * LINE);
    vector a = load(from + i), b = load(from + i + 16), c = load(from + i + 32), d = load(from + i + 48);
    store_streamed(to + i, a);
    store_streamed(to + i + 16, b);
    store_streamed(to + i + 32, c);
    store_streamed(to + i + 48, d);
  }
  finish_streaming();
}

bool nr_bench_copy(void *to, const void *from, size_t size, bool streamed, int threads) {
  if (streamed && !CAN_STREAM)
    return false;
  int shares = size < SMALL ? 1 : threads;
  int64_t lines = (int64_t)(size / LINE);
#pragma omp parallel for num_threads(shares) schedule(static) if (shares > 1)
  for (int i = 0; i < shares; i++) {
    size_t first = (size_t)(lines * i / shares) * LINE, end = (size_t)(lines * (i + 1) / shares) * LINE;
    if (streamed)
      copy_streamed((char *)to + first, (const char *)from + first, end - first);
    else
      memcpy((char *)to + first, (const char *)from + first, end - first);
  }
  return true;
}

/* One row of `size` bytes; b may be NULL. The arithmetic is one exclusive or, so that no load can be left out. */
static inline void move_row(char *to, const char *a, const char *b, size_t size, bool streamed) {
  size_t i = 0;
  if (streamed && b)
    for (; i + VECTOR <= size; i += VECTOR)
      store_streamed(to + i, load(a + i) ^ load(b + i));
  else if (streamed)
    for (; i + VECTOR <= size; i += VECTOR)
      store_streamed(to + i, load(a + i));
  else if (b)
    for (; i + VECTOR <= size; i += VECTOR)
      store(to + i, load(a + i) ^ load(b + i));
  else
    for (; i + VECTOR <= size; i += VECTOR)
      store(to + i, load(a + i));
  for (; i < size; i++)
    to[i] = (char)(b ? a[i] ^ b[i] : a[i]);
}

static char *row_of(const nr_view *v, int64_t b, int64_t s, int64_t n) {
  return (char *)v->data + (b * v->stride[0] + s * v->stride[1] + n * v->stride[2]) * (int64_t)nr_dtype_size(v->dtype);
}

typedef struct rows {
  const nr_view *from, *with, *to; /* with: absent where nothing is read beside */
} rows;

static rows rows_of(const nr_segment *s, nr_direction direction) {
  if (direction == NR_FORWARD)
    return (rows){&s->x, NULL, &s->y};
  return (rows){&s->grad_y, s->x.data ? &s->x : NULL, &s->grad_x};
}

/* Positions [first, end) of batch b. */
static void move_rows(const nr_segment *s, const rows *r, int64_t b, int64_t first, int64_t end, bool streamed) {
  size_t size = (size_t)s->dim * nr_dtype_size(r->from->dtype);
  for (int64_t run = first; run < end; run += RUN) {
    int64_t stop = end - run < RUN ? end : run + RUN;
    for (int64_t n = 0; n < s->heads; n++)
      for (int64_t p = run; p < stop; p++)
        move_row(row_of(r->to, b, p, n), row_of(r->from, b, p, n), r->with ? row_of(r->with, b, p, n) : NULL, size,
                 streamed);
  }
}

static bool streams(const nr_segment *s, const rows *r) {
  size_t element = nr_dtype_size(r->to->dtype);
  bool whole = (uintptr_t)r->to->data % VECTOR == 0 && (size_t)s->dim * element % VECTOR == 0;
  for (int i = 0; i < 3; i++)
    whole &= r->to->stride[i] * (int64_t)element % VECTOR == 0;
  return whole && CAN_STREAM;
}

bool nr_bench_loop(const nr_segment *segments, int num_segments, nr_direction direction, bool streamed, int threads) {
  double bytes = 0;
  for (int i = 0; i < num_segments; i++) {
    const nr_segment *s = &segments[i];
    rows r = rows_of(s, direction);
    if (streamed && !streams(s, &r))
      return false;
    bytes += (double)(s->batch * s->length * s->heads * s->dim) * (double)nr_dtype_size(r.to->dtype);
  }
  int shares = bytes < SMALL ? 1 : threads;
#pragma omp parallel for num_threads(shares) schedule(static) if (shares > 1)
  for (int share = 0; share < shares; share++) {
    for (int i = 0; i < num_segments; i++) {
      const nr_segment *s = &segments[i];
      rows r = rows_of(s, direction);
      int64_t positions = s->batch * s->length, end = positions * (share + 1) / shares;
      for (int64_t at = positions * share / shares, stop; at < end; at = stop) {
        int64_t b = at / s->length;
        stop = end < (b + 1) * s->length ? end : (b + 1) * s->length;
        move_rows(s, &r, b, at - b * s->length, stop - b * s->length, streamed);
      }
    }
    if (streamed)
      finish_streaming();
  }
  return true;
}
