/* Values at the edges: NaN, infinity, subnormals, overflow, ties, huge and tiny rows, and the processor's modes. */
#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmocka.h>

#include "base/dtype.h"
#include "plan/plan.h"
#include "support/cases.h"

static const nr_dtype halves[] = {NR_F16, NR_BF16};

static double random_number(uint64_t *dice) {
  *dice = *dice * 6364136223846793005u + 1442695040888963407u;
  return (double)(*dice >> 11) * 0x1p-53;
}

/* What the bits of a half mean, said without the library. */
static double value_of(nr_dtype dtype, uint32_t bits) {
  int digits = dtype == NR_F16 ? 10 : 7, bias = dtype == NR_F16 ? 15 : 127, top = dtype == NR_F16 ? 31 : 255;
  int exponent = (int)(bits >> digits & (uint32_t)top);
  double fraction = ldexp(bits & ((1u << digits) - 1), -digits), sign = bits >> 15 ? -1 : 1;
  if (exponent == top)
    return fraction > 0 ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias));
}

static uint16_t infinity_of(nr_dtype dtype) { return dtype == NR_F16 ? 0x7c00 : 0x7f80; }
static uint16_t nan_of(nr_dtype dtype) { return dtype == NR_F16 ? 0x7e00 : 0x7fc0; }

/* The nearest half of a value of at least 0, by search: halves are in the order of their bits. Infinity stands for the
   power of two behind the largest number. */
static uint16_t nearest(nr_dtype dtype, double value) {
  uint16_t low = 0, high = infinity_of(dtype);
  double behind = dtype == NR_F16 ? 65536 : 0x1p128;
  if (value >= behind)
    return high;
  while (high - low > 1) {
    uint16_t middle = (uint16_t)((low + high) / 2);
    if (value_of(dtype, middle) <= value)
      low = middle;
    else
      high = middle;
  }
  double tie = (value_of(dtype, low) + (high == infinity_of(dtype) ? behind : value_of(dtype, high))) / 2;
  return value > tie || (value == tie && low % 2) ? high : low;
}

static void check_store(nr_dtype dtype, double value) {
  for (int sign = 0; sign < 2; sign++) {
    uint16_t found, expected = (uint16_t)(nearest(dtype, value) | sign << 15);
    nr_store(&found, dtype, 0, sign ? -value : value);
    if (found != expected)
      fail_msg("%a to %s: %04x, expected %04x", sign ? -value : value, nr_dtype_name(dtype), found, expected);
    float single = (float)value;
    uint16_t from_float =
        dtype == NR_F16 ? nr_f16_from_f32(sign ? -single : single) : nr_bf16_from_f32(sign ? -single : single);
    if ((double)single == value && from_float != expected)
      fail_msg("%a to %s from float: %04x, expected %04x", value, nr_dtype_name(dtype), from_float, expected);
  }
}

static void all_halves_convert_exactly(void **state) {
  (void)state;
  for (int k = 0; k < 2; k++)
    for (uint32_t bits = 0; bits < 65536; bits++) {
      uint16_t half = (uint16_t)bits, back;
      double expected = value_of(halves[k], bits), found = nr_load(&half, halves[k], 0);
      assert_true(isnan(expected) ? isnan(found) : found == expected && !signbit(found) == !signbit(expected));
      nr_store(&back, halves[k], 0, found);
      assert_int_equal(back, isnan(expected) ? nan_of(halves[k]) : half);
    }
}

/* Every tie between neighbours, the doubles and floats next to it, and random values: rounded once. */
static void rounding_is_to_nearest_even(void **state) {
  (void)state;
  uint64_t dice = 1;
  for (int k = 0; k < 2; k++) {
    nr_dtype dtype = halves[k];
    for (uint32_t bits = 0; bits < infinity_of(dtype); bits++) {
      double low = value_of(dtype, bits), high = value_of(dtype, bits + 1);
      double tie = isinf(high) ? (dtype == NR_F16 ? 65520 : 0x1.ffp127) : (low + high) / 2;
      double tries[] = {tie,
                        nextafter(tie, 0),
                        nextafter(tie, INFINITY),
                        (double)nextafterf((float)tie, 0),
                        (double)nextafterf((float)tie, INFINITY),
                        low + random_number(&dice) * (tie - low)};
      for (int i = 0; i < 6; i++)
        check_store(dtype, tries[i]);
    }
    check_store(dtype, 0x1p-1074);
    check_store(dtype, 0x1p-200);
    check_store(dtype, 1e300);
    check_store(dtype, INFINITY);
  }
  for (int i = 0; i < 200000; i++) { /* to float as the processor does it */
    double value = ldexp(random_number(&dice) - 0.5, (int)(random_number(&dice) * 290) - 155);
    float found;
    nr_store(&found, NR_F32, 0, value);
    assert_true(nr_bits_f32(found) == nr_bits_f32((float)value));
    assert_true(nr_load(&found, NR_F32, 0) == (double)found);
  }
}

static void nan_is_canonical(void **state) {
  (void)state;
  uint32_t f32;
  uint16_t half;
  double nan = nr_f32_bits(0xffabcdefu);
  nr_store(&f32, NR_F32, 0, nan);
  assert_int_equal(f32, 0x7fc00000);
  for (int k = 0; k < 2; k++) {
    nr_store(&half, halves[k], 0, nan);
    assert_int_equal(half, nan_of(halves[k]));
  }
}

/* The kernels' own conversions: rows that rope leaves alone, and rows times a table of given floats. */
static void kernels_convert_as_the_library(void **state) {
  (void)state;
  enum { D = 1024, S = 64, N = 65536 };
  for (int32_t i = 0; nr_isa(i); i++)
    for (int k = 0; k < 4 && nr_isa_usable(nr_isa(i)); k++) {
      nr_dtype dtype = halves[k % 2];
      stream s = {.B = 1, .S = S, .N = 1, .D = D, .rows = dtype, .width = k < 2 ? 2 : D, .table_rows = S};
      s.position = k < 2 ? S : 0;
      fixture *f = fixture_new(NR_FORWARD, 1);
      nr_segment *g = fixture_add(f, &s);
      uint16_t *x = g->x.data, *y = g->y.data;
      float *cos = g->cos.data, *sin = g->sin.data;
      for (uint32_t bits = 0; bits < N; bits++) {
        x[bits] = k < 2 ? (uint16_t)bits : dtype == NR_F16 ? 0x3c00 : 0x3f80;
        float value = (float)value_of(dtype, bits); /* and to its tie, or next to that */
        cos[bits] = nr_f32_bits(nr_bits_f32(value) + (dtype == NR_F16 ? 0xfff : 0x7fff) + bits * 7 % 3);
        sin[bits] = 0;
      }
      fixture_poison(f);
      fixture_run(f, nr_isa(i), 1);
      for (uint32_t bits = 0; bits < N; bits++) {
        uint16_t expected;
        nr_store(&expected, dtype, 0, k < 2 ? value_of(dtype, bits) : (double)cos[bits]);
        if (y[bits] != expected && !(y[bits] << 1 == 0 && expected << 1 == 0))
          fail_msg("%s, %s, %s %04x: %04x, expected %04x", nr_isa(i), nr_dtype_name(dtype), k < 2 ? "row" : "table",
                   bits, y[bits], expected);
      }
      fixture_free(f);
    }
}

/* A problem with one of everything, for spoiling. */
static stream everything(int64_t D, nr_dtype dtype, nr_norm norm) {
  return (stream){.B = 1,
                  .S = 6,
                  .N = 2,
                  .D = D,
                  .rows = dtype,
                  .norm = norm,
                  .width = norm % 2 ? 2 : D,
                  .table_rows = 6,
                  .y = STYLE_BNSD};
}

static void set(const nr_segment *g, const nr_view *v, int64_t s, int64_t n, int64_t d, double value) {
  assert_true(s < g->length);
  nr_store(nr_row(v, 0, s, n), v->dtype, d * v->stride[3], value);
}

/* A NaN or infinity in one row of x or grad_y spoils that row and the weights' gradients, and no other. */
static void nan_and_infinity_stay_in_their_row(void **state) {
  (void)state;
  static const double poison[] = {NAN, INFINITY, -INFINITY};
  static const int64_t dims[] = {6, 16, 40, 70};
  for (int i = 0; i < 2 * 5 * 3 * 3 * 2; i++) {
    bool backward = i % 2;
    stream s = everything(dims[i % 4], (nr_dtype)(i / 2 % 3), (nr_norm)(i / 6 % 5));
    double bad = poison[i / 30 % 3];
    fixture *f = fixture_new(backward ? NR_BACKWARD : NR_FORWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    const nr_view *in = backward && i / 90 ? &g->grad_y : &g->x, *out = backward ? &g->grad_x : &g->y;
    size_t row = (size_t)s.D * nr_dtype_size(s.rows);
    unsigned char clean[6][2][70 * 4];
    fixture_poison(f);
    fixture_run(f, NULL, 0);
    for (int p = 0; p < 6; p++)
      for (int n = 0; n < 2; n++)
        memcpy(clean[p][n], nr_row(out, 0, p, n), row);
    set(g, in, 3, 1, s.D - 1, bad);
    char what[100];
    snprintf(what, sizeof what, "%f in %s, %s, norm %d, D %d", bad, in == &g->x ? "x" : "grad_y", nr_dtype_name(s.rows),
             s.norm, (int)s.D);
    if (backward && g->norm)
      fixture_measure(f, g);
    fixture_try(f, NULL, 0, what);
    for (int p = 0; p < 6; p++)
      for (int n = 0; n < 2; n++)
        if ((p != 3 || n != 1) && memcmp(clean[p][n], nr_row(out, 0, p, n), row) != 0)
          fail_msg("%s: row %d of head %d is spoilt", what, p, n);
    fixture_free(f);
  }
}

/* NaN right behind each row, where the lanes of a vector that the row does not fill would look. */
static void dead_lanes_do_not_leak(void **state) {
  (void)state;
  for (int i = 0; i < 2 * 5 * 3; i++) {
    bool backward = i % 2;
    stream s = everything((const int64_t[]){2, 10, 18, 24, 38}[i % 5], (nr_dtype)(i / 2 % 3), (nr_norm)(i / 6));
    fixture *f = fixture_new(backward ? NR_BACKWARD : NR_FORWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    int64_t wide[] = {1, 6, 2, s.D + 16};
    nr_view *inputs[] = {&g->x, &g->grad_y};
    for (int k = 0; k < 1 + backward; k++) {
      nr_view padded = fixture_view(f, s.rows, wide, STYLE_BSND, CONTENT_NORMAL);
      for (int64_t p = 0; p < 6; p++)
        for (int64_t n = 0; n < 2; n++)
          for (int64_t d = s.D; d < s.D + 16; d++)
            set(g, &padded, p, n, d, NAN);
      *inputs[k] = padded;
    }
    if (backward && g->norm)
      fixture_measure(f, g);
    for (int32_t k = 0; nr_isa(k); k++)
      if (nr_isa_usable(nr_isa(k)))
        fixture_try(f, nr_isa(k), 0, nr_isa(k));
    fixture_free(f);
  }
}

/* x and grad_y times a power of two, with eps of that scale: float32 rows, then what the halves can hold. */
static void huge_and_tiny_rows(void **state) {
  (void)state;
  static const double scales[] = {1e15, 1e-15, 1e-38, 1e-42, 100, 1e-4, 1e-7};
  for (int i = 0; i < 2 * 5 * 7 * 3; i++) {
    double scale = scales[i / 10 % 7];
    nr_dtype dtype = (nr_dtype)(i / 70);
    stream s = everything(40, dtype, (nr_norm)(i / 2 % 5));
    if (scale == 1e-42 && nr_norm_centres(s.norm))
      continue; /* the mean, a float, is no better than the spacing of subnormals */
    s.eps = scale < 1e-20 ? 1e-6 : scale * scale * 1e-6;
    fixture *f = fixture_new(i % 2 ? NR_BACKWARD : NR_FORWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    for (int64_t p = 0; p < 6; p++)
      for (int64_t n = 0; n < 2; n++)
        for (int64_t d = 0; d < 40; d++) {
          set(g, &g->x, p, n, d, scale * nr_load(nr_row(&g->x, 0, p, n), dtype, d));
          if (i % 2 && !g->norm)
            set(g, &g->grad_y, p, n, d, scale * nr_load(nr_row(&g->grad_y, 0, p, n), dtype, d * g->grad_y.stride[3]));
        }
    if (i % 2 && g->norm)
      fixture_measure(f, g);
    char what[100];
    snprintf(what, sizeof what, "%s, scale %g, norm %d, %s", i % 2 ? "backward" : "forward", scale, s.norm,
             nr_dtype_name(dtype));
    fixture_try(f, NULL, 0, what);
    fixture_free(f);
  }
}

/* Neither where the variance is not a difference of squares, nor where it is. */
static void a_mean_cancels_nothing(void **state) {
  (void)state;
  static const int64_t dims[] = {30, 64, 128, 1024};
  static const double means[] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1, 3, 1000}; /* the spread is 1 */
  for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
    for (size_t m = 0; m < sizeof means / sizeof *means; m++)
      for (int i = 0; i < 4; i++) {
        stream s = everything(dims[k], NR_F32, i / 2 ? NR_NORM_LAYER_AFFINE : NR_NORM_LAYER);
        s.mean = means[m];
        s.S = (i % 2 ? 3000 : 60000) / dims[k];
        fixture *f = fixture_new(i % 2 ? NR_BACKWARD : NR_FORWARD, (uint64_t)i);
        fixture_add(f, &s);
        char text[64];
        snprintf(text, sizeof text, "mean %g, spread 1", means[m]);
        fixture_try(f, NULL, 0, text);
        fixture_free(f);
      }
}

/* Where a weight's gradient is one product, an error of a small xhat is all of it. */
static void gradients_of_a_single_row(void **state) {
  (void)state;
  static const int64_t dims[] = {4, 64, 1024};
  static const double means[] = {0, 0.3, 0.9, 30};
  for (int i = 0; i < 3 * 4 * 3 * 8; i++) {
    stream s = everything(dims[i % 3], (nr_dtype)(i / 12 % 3), NR_NORM_LAYER_AFFINE);
    s.parameters = NR_F32;
    s.B = s.S = s.N = 1;
    s.mean = means[i / 3 % 4];
    fixture *f = fixture_new(NR_BACKWARD, (uint64_t)i);
    fixture_add(f, &s);
    fixture_try(f, NULL, 0, "one row");
    fixture_free(f);
  }
}

/* Statistics that came from a row of zeros or of overflow, and weights that are all 0. */
static void statistics_and_weights_of_zero(void **state) {
  (void)state;
  static const double rstd[] = {0, 1e30, 1e-30, 1e-40};
  for (int i = 0; i < 4 * 4 * 3; i++) {
    stream s = everything(24, (nr_dtype)(i % 3), (nr_norm)(1 + i / 3 % 4));
    fixture *f = fixture_new(NR_BACKWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    set(g, &g->rstd, 2, 0, 0, rstd[i / 12]);
    for (int64_t d = 0; d < s.D && i % 2; d++)
      nr_store(g->weight.data, g->weight.dtype, d, 0);
    fixture_try(f, NULL, 0, "statistics of zero");
    fixture_free(f);
  }
  for (int i = 0; i < 4; i++) { /* rstd infinite: that row is lost, the others are as they were */
    stream s = everything(24, NR_F32, (nr_norm)(1 + i));
    s.width = s.table_rows = 0;
    fixture *f = fixture_new(NR_BACKWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    g->grad_weight.data = g->grad_bias.data = NULL;
    fixture_try(f, NULL, 0, "finite");
    float before[24], lost = 0;
    memcpy(before, nr_row(&g->grad_x, 0, 1, 1), sizeof before);
    set(g, &g->rstd, 2, 0, 0, INFINITY);
    fixture_run(f, NULL, 0);
    assert_memory_equal(before, nr_row(&g->grad_x, 0, 1, 1), sizeof before);
    for (int64_t d = 0; d < 24; d++)
      lost += !isfinite(nr_load(nr_row(&g->grad_x, 0, 2, 0), NR_F32, d));
    assert_true(lost == 24);
    fixture_free(f);
  }
}

/* A constant row of huge numbers, whose rstd is 1 / sqrt(eps): mean * rstd has no float, and is not needed. */
static void a_huge_mean_and_rstd(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    stream s = everything(24, i < 2 ? NR_F32 : NR_BF16, i % 2 ? NR_NORM_LAYER_AFFINE : NR_NORM_LAYER);
    fixture *f = fixture_new(NR_BACKWARD, (uint64_t)i);
    nr_segment *g = fixture_add(f, &s);
    for (int64_t d = 0; d < s.D; d++)
      set(g, &g->x, 2, 0, d, 0x1p126);
    set(g, &g->mean, 2, 0, 0, 0x1p126);
    set(g, &g->rstd, 2, 0, 0, 1000);
    fixture_try(f, NULL, 0, "a constant row of 2^126");
    fixture_free(f);
  }
}

/* Beyond 65504 a float16 result is infinity, with its sign; the largest below is rounded down. */
static void float16_overflows_to_infinity(void **state) {
  (void)state;
  static const struct {
    double gain;
    uint16_t expected;
  } of[] = {{65519.99, 0x7bff}, {65520, 0x7c00}, {-65520, 0xfc00}, {1e9, 0x7c00}, {-65519.99, 0xfbff}};
  for (int32_t isa = 0; nr_isa(isa); isa++)
    for (size_t i = 0; i < sizeof of / sizeof *of && nr_isa_usable(nr_isa(isa)); i++) {
      stream s = {.B = 1, .S = 1, .N = 1, .D = 18, .rows = NR_F16, .width = 18, .table_rows = 1};
      fixture *f = fixture_new(NR_FORWARD, 1);
      nr_segment *g = fixture_add(f, &s);
      for (int64_t d = 0; d < 18; d++) {
        set(g, &g->x, 0, 0, d, 1);
        set(g, &g->cos, 0, 0, d, of[i].gain);
        set(g, &g->sin, 0, 0, d, 0);
      }
      fixture_run(f, nr_isa(isa), 1);
      for (int64_t d = 0; d < 18; d++)
        assert_int_equal(((uint16_t *)g->y.data)[d], of[i].expected);
      fixture_free(f);
    }
}

#if defined(__x86_64__) || defined(__aarch64__)
/* Makes this thread flush subnormals, results and operands; on AArch64 also take halves for the alternative format,
   which has no infinity. */
static void flush_subnormals(void) {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#else
  uint64_t control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control));
  __asm__ volatile("msr fpcr, %0" : : "r"(control | UINT64_C(1) << 24 | UINT64_C(1) << 26));
#endif
}

static bool flushes_subnormals(void) {
  volatile double least = 0x1p-1022, half = 0.5;
  return least * half == 0;
}

static void modes_do_not_matter(void **state) {
  (void)state;
  static const int modes[] = {FE_UPWARD, FE_TOWARDZERO, FE_DOWNWARD};
  char text[CASE_TEXT];
  for (uint64_t number = 0; number < 120; number++) {
    fixture *f = case_new(number, text);
    const nr_segment *g = fixture_segments(f, NULL);
    for (int64_t d = 0; d < g->dim && g->batch * g->length * g->heads > 0; d++) { /* a row with subnormals */
      const nr_view *v = number % 2 ? &g->grad_y : &g->x;
      nr_store(nr_row(v, 0, 0, 0), v->dtype, d * v->stride[3],
               (double)(d + 1) * (v->dtype == NR_F16 ? 0x1p-24 : 0x1p-133));
      if (g->length * g->heads > 1) /* and one with an infinity */
        nr_store(nr_row(v, 0, g->length - 1, g->heads - 1), v->dtype, d * v->stride[3], d ? 1 : INFINITY);
    }
    fixture_poison(f);
    fixture_run(f, NULL, 1);
    fixture_check(f, text);
    uint64_t expected = fixture_digest(f);
    fixture_poison(f);
    fenv_t usual;
    fegetenv(&usual);
    int threads = number % 4 ? 1 : 3, kept = 0;
#pragma omp parallel num_threads(threads) /* the very threads that will run it */
    {
      fesetround(modes[number % 3]);
      flush_subnormals();
    }
    fixture_run(f, NULL, threads);
#pragma omp parallel num_threads(threads) reduction(+ : kept)
    {
      kept += fegetround() == modes[number % 3] && flushes_subnormals();
      fesetenv(&usual);
    }
    assert_int_equal(kept, threads);
    if (fixture_digest(f) != expected)
      fail_msg("%s: the caller's rounding mode or flushing changed the result", text);
    fixture_free(f);
  }
}

/* The reference and the conversions, too. */
static void modes_do_not_matter_to_conversions(void **state) {
  (void)state;
  const float tiny = 0x1p-140f;
  const uint16_t tiny_half = 0x0003;
  fenv_t usual;
  fegetenv(&usual);
  fesetround(FE_UPWARD);
  flush_subnormals();
  uint32_t stored[3], third;
  nr_store(&stored[0], NR_F32, 0, 0x1.8p-140);
  nr_store(&stored[1], NR_F16, 0, 1 + 0x1p-11);
  nr_store(&stored[2], NR_BF16, 0, 0x1p-130);
  double loaded[] = {nr_load(&tiny, NR_F32, 0), nr_load(&tiny_half, NR_F16, 0), nr_load(&tiny_half, NR_BF16, 0)};
  float one = 1, three = 3;
  nr_segment s = nr_segment_default();
  s.batch = s.length = s.heads = 1, s.dim = 2, s.rope_width = 2, s.rope_length = 1;
  s.x = nr_view_strided(&one, NR_F32, 0, 0, 0, 0);
  float table[] = {0x1p-140f, 0x1p-140f}, zero[2] = {0}, y[2] = {three, three};
  s.cos = nr_view_table(table, NR_F32, 2), s.sin = nr_view_table(zero, NR_F32, 2);
  s.y = nr_view_bsnd(y, NR_F32, 1, 1, 2);
  nr_problem problem = nr_problem_default();
  problem.direction = NR_FORWARD, problem.backend = NR_BACKEND_REFERENCE;
  problem.segments = &s, problem.num_segments = 1;
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &problem);
  if (status == NR_OK)
    status = nr_plan_run(plan, NULL, NULL, 0, NULL);
  nr_plan_destroy(plan);
  fesetenv(&usual);
  assert_int_equal(status, NR_OK);
  assert_true(y[0] == 0x1p-140f && y[1] == 0x1p-140f);
  memcpy(&third, &stored[0], sizeof third);
  assert_true(nr_f32_bits(third) == 0x1.8p-140f);
  assert_int_equal((uint16_t)stored[1], 0x3c00);
  assert_int_equal((uint16_t)stored[2], 0x0008);
  assert_true(loaded[0] == 0x1p-140 && loaded[1] == 0x1.8p-23 && loaded[2] == 0x1.8p-132);
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_halves_convert_exactly),
    cmocka_unit_test(rounding_is_to_nearest_even),
    cmocka_unit_test(nan_is_canonical),
    cmocka_unit_test(kernels_convert_as_the_library),
    cmocka_unit_test(nan_and_infinity_stay_in_their_row),
    cmocka_unit_test(dead_lanes_do_not_leak),
    cmocka_unit_test(huge_and_tiny_rows),
    cmocka_unit_test(a_mean_cancels_nothing),
    cmocka_unit_test(gradients_of_a_single_row),
    cmocka_unit_test(statistics_and_weights_of_zero),
    cmocka_unit_test(a_huge_mean_and_rstd),
    cmocka_unit_test(float16_overflows_to_infinity),
#if defined(__x86_64__) || defined(__aarch64__)
    cmocka_unit_test(modes_do_not_matter),
    cmocka_unit_test(modes_do_not_matter_to_conversions),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
