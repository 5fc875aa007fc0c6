#include "support/cases.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define COUNT(array) (int64_t)(sizeof(array) / sizeof *(array))

/* A number from 0 to n - 1: splitmix64, which needs no floating point. */
static int64_t roll(uint64_t *dice, int64_t n) {
  uint64_t z = *dice += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return (int64_t)((z ^ z >> 31) % (uint64_t)n);
}

static bool chance(uint64_t *dice, int64_t one_in) { return roll(dice, one_in) == 0; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Half rope on D / 2 odd, widths around the 16 lanes of a vector, what models use, and the ends of the range. */
static const int64_t dims[] = {2,   4,   6,   8,   10,  14,  16,  18,  24,  30,  32,  34,   40,
                               48,  62,  64,  66,  70,  72,  80,  88,  90,  94,  96,  98,   104,
                               112, 120, 126, 128, 130, 160, 192, 254, 256, 258, 512, 1022, 1024};

/* A pairing width: an even divisor of rope_dim, interleave and half more often than what lies between. */
static int64_t draw_width(uint64_t *dice, int64_t rope_dim) {
  int64_t kind = roll(dice, 3);
  if (kind < 2)
    return kind ? rope_dim : 2;
  int64_t width = 2 * (1 + roll(dice, rope_dim / 2));
  while (rope_dim % width)
    width -= 2;
  return width;
}

static void draw_rope(uint64_t *dice, stream *s) {
  s->width = s->rope_dim = s->table_rows = s->position = 0;
  if (chance(dice, 4))
    return;
  s->rope_dim = chance(dice, 2) ? 2 * (1 + roll(dice, s->D / 2)) : s->D;
  s->width = draw_width(dice, s->rope_dim);
  s->table_rows = roll(dice, s->S + 4);
  s->position = roll(dice, 3) ? roll(dice, 3) : roll(dice, 2 * s->S + 7) - s->S - 3;
  s->tables_per_batch = chance(dice, 3);
  s->tables_per_head = chance(dice, 3);
  s->wants_tables = chance(dice, 2);
}

static stream draw(uint64_t *dice, int64_t D) {
  static const double eps[] = {1e-6, 1e-5, 1e-12, 0.25};
  stream s = {.D = D};
  s.B = 1 + roll(dice, 3), s.N = 1 + roll(dice, 5);
  s.S = 1 + roll(dice, smaller(13, 1 + 6000 / (s.B * s.N * D)));
  if (chance(dice, 40))
    *(int64_t *[]){&s.B, &s.S, &s.N}[roll(dice, 3)] = 0;
  s.rows = (nr_dtype)roll(dice, 3), s.parameters = (nr_dtype)roll(dice, 3), s.tables = (nr_dtype)roll(dice, 3);
  s.norm = (nr_norm)roll(dice, 5);
  s.scope = chance(dice, 3) ? NR_SCOPE_ALL_HEADS : NR_SCOPE_HEAD;
  s.eps = eps[roll(dice, COUNT(eps))];
  s.mean = chance(dice, 6) ? 12 : 0;
  s.weights_per_head = chance(dice, 2);
  s.x = (style)roll(dice, NUM_STYLES), s.y = (style)roll(dice, NUM_STYLES);
  s.parameter = chance(dice, 3) ? STYLE_CHANNELS : STYLE_BSND;
  s.no_gradients = chance(dice, 8);
  draw_rope(dice, &s);
  return s;
}

/* Another stream that can share the first one's weights and tables: same channels, but any length, norm and pairing;
   other heads (grouped queries) and batches where nothing has them as an axis. */
static stream draw_sharing(uint64_t *dice, const stream *first) {
  stream s = draw(dice, first->D);
  s.S = first->S ? first->S : s.S;
  s.parameters = first->parameters, s.tables = first->tables, s.parameter = first->parameter;
  s.weights_per_head = first->weights_per_head, s.no_gradients = first->no_gradients;
  s.rope_dim = first->rope_dim, s.table_rows = first->table_rows, s.wants_tables = first->wants_tables;
  s.tables_per_batch = first->tables_per_batch, s.tables_per_head = first->tables_per_head;
  if (s.tables_per_batch)
    s.B = first->B;
  if (s.tables_per_head || s.weights_per_head)
    s.N = first->N;
  s.width = first->width ? draw_width(dice, s.rope_dim) : 0;
  return s;
}

static void share(nr_segment *to, const nr_segment *from) {
  to->weight = from->weight, to->grad_weight = from->grad_weight;
  to->bias = from->bias, to->grad_bias = from->grad_bias;
  to->cos = from->cos, to->grad_cos = from->grad_cos;
  to->sin = from->sin, to->grad_sin = from->grad_sin;
}

static void say(char text[CASE_TEXT], const char *format, ...) {
  size_t length = strlen(text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text + length, CASE_TEXT - length, format, arguments);
  va_end(arguments);
}

static void describe(char text[CASE_TEXT], const stream *s, bool shared) {
  say(text, "; [%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "] %s", s->B, s->S, s->N, s->D, nr_dtype_name(s->rows));
  say(text, " x %d y %d parameters %d norm %d scope %d eps %g mean %g", s->x, s->y, s->parameter, s->norm, s->scope,
      s->eps, s->mean);
  say(text, " weights %s%s%s", nr_dtype_name(s->parameters), s->weights_per_head ? " per head" : "",
      s->no_gradients ? " no gradients" : "");
  if (s->width)
    say(text, " rope %" PRId64 "/%" PRId64 " R %" PRId64 " at %" PRId64 " tables %s%s%s%s", s->width, s->rope_dim,
        s->table_rows, s->position, nr_dtype_name(s->tables), s->tables_per_batch ? " per batch" : "",
        s->tables_per_head ? " per head" : "", s->wants_tables ? " with gradients" : "");
  if (shared)
    say(text, " shared");
}

fixture *case_new(uint64_t number, char text[CASE_TEXT]) {
  uint64_t dice = number * 0x2545f4914f6cdd1du + 11;
  nr_direction direction = number % 2 ? NR_BACKWARD : NR_FORWARD;
  fixture *f = fixture_new(direction, number);
  text[0] = 0;
  say(text, "case %" PRIu64 ", %s", number, direction ? "backward" : "forward");
  int64_t segments = 1 + roll(&dice, 3);
  for (int64_t i = 0; i < segments; i++) {
    stream first = draw(&dice, i ? dims[roll(&dice, COUNT(dims))] : dims[number / 2 % COUNT(dims)]);
    const nr_segment *owner = fixture_add(f, &first);
    describe(text, &first, false);
    for (; i + 1 < segments + 2 && chance(&dice, 2); i++) {
      stream other = draw_sharing(&dice, &first);
      share(fixture_add(f, &other), owner);
      describe(text, &other, true);
    }
  }
  return f;
}

fixture *large_case_new(int number, char text[CASE_TEXT]) {
  /* Blocks are of 256 positions where a weight has heads, of 512 for one more sum, else of 512 rows or 2^18 channels.
   */
  static const stream large[NUM_LARGE_CASES] = {
      {.S = 1100, .N = 1, .D = 512, .norm = NR_NORM_LAYER_AFFINE, .width = 512, .table_rows = 1000, .position = -3},
      {.S = 515, .N = 1, .D = 1024, .norm = NR_NORM_RMS_AFFINE, .rows = NR_BF16, .x = STYLE_PADDED},
      {.S = 1030,
       .N = 3,
       .D = 6,
       .norm = NR_NORM_LAYER_AFFINE,
       .weights_per_head = true,
       .rows = NR_F16,
       .width = 2,
       .table_rows = 1030,
       .tables_per_head = true,
       .scope = NR_SCOPE_ALL_HEADS,
       .y = STYLE_BNSD},
      {.S = 777,
       .N = 2,
       .D = 40,
       .norm = NR_NORM_RMS_AFFINE,
       .weights_per_head = true,
       .width = 8,
       .rope_dim = 24,
       .table_rows = 800,
       .wants_tables = true,
       .rows = NR_BF16,
       .y = STYLE_BNSD},
      {.S = 300, .N = 9, .D = 112, .norm = NR_NORM_LAYER, .width = 112, .table_rows = 300, .x = STYLE_REVERSED},
      {.S = 700, .N = 4, .D = 100, .rows = NR_F16, .y = STYLE_BNSD},
  };
  nr_direction direction = number % 2 ? NR_FORWARD : NR_BACKWARD;
  fixture *f = fixture_new(direction, 1000 + (uint64_t)number);
  stream s = large[number];
  s.B = 1;
  text[0] = 0;
  say(text, "large case %d, %s", number, direction ? "backward" : "forward");
  for (int i = 0; i < 2; i++, s.S = 21) { /* a long stream and a short one, one weight */
    nr_segment *g = fixture_add(f, &s);
    if (i && !s.weights_per_head)
      g->weight = fixture_segments(f, NULL)->weight, g->grad_weight = fixture_segments(f, NULL)->grad_weight;
    describe(text, &s, i && !s.weights_per_head);
  }
  return f;
}
