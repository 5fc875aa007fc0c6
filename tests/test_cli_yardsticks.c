/* What normrope bench measures with: that the copies copy, the loops move the operator's rows and bytes are counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/make_case.h"

static nr_bench_case open_case(const char *preset, int dtype, int64_t image, int64_t text, nr_direction direction) {
  nr_bench_case b;
  nr_message message = {""};
  nr_recipe recipe = nr_preset_recipe(nr_preset_find(preset));
  recipe.dtype = recipe.table_dtype = dtype;
  recipe.image = image;
  recipe.text = text;
  assert_int_equal(nr_recipe_resolve(&recipe, &message), 0);
  if (nr_bench_case_open(&b, &recipe, direction, true, 2, &message))
    fail_msg("%s", message.text);
  return b;
}

static void copies(void **state) {
  (void)state;
  nr_bench_case b = open_case("flux", NR_F32, 40, 8, NR_FORWARD);
  assert_true(b.half % 64 == 0 && 2 * b.half >= (size_t)b.bytes && 2 * b.half < (size_t)b.bytes + 128);
  for (int threads = 1; threads <= 3; threads++)
    for (int streamed = 0; streamed < 2; streamed++) {
      memset(b.copy[1], 0xab, b.half);
      if (nr_bench_copy(b.copy[1], b.copy[0], b.half, streamed, threads))
        assert_memory_equal(b.copy[1], b.copy[0], b.half);
    }
  nr_bench_case_close(&b);
}

static const unsigned char *row(const nr_view *v, int64_t s, int64_t n) {
  return (const unsigned char *)v->data + (s * v->stride[1] + n * v->stride[2]) * (int64_t)nr_dtype_size(v->dtype);
}

/* Every row of every segment, of one batch. */
static void check_rows(const nr_bench_case *b) {
  for (int i = 0; i < b->num_segments; i++) {
    const nr_segment *s = &b->segments[i];
    bool forward = b->direction == NR_FORWARD, both = !forward && s->norm != NR_NORM_NONE;
    int64_t size = s->dim * (int64_t)nr_dtype_size(forward ? s->y.dtype : s->grad_x.dtype);
    assert_true(forward || both == (s->x.data != NULL));
    for (int64_t p = 0; p < s->length; p++)
      for (int64_t n = 0; n < s->heads; n++) {
        const unsigned char *from = row(forward ? &s->x : &s->grad_y, p, n), *with = both ? row(&s->x, p, n) : NULL;
        const unsigned char *to = row(forward ? &s->y : &s->grad_x, p, n);
        for (int64_t k = 0; k < size; k++)
          assert_int_equal(to[k], with ? from[k] ^ with[k] : from[k]);
      }
  }
}

static void loops(void **state) {
  (void)state;
  for (int direction = 0; direction < 2; direction++)
    for (int streamed = 0; streamed < 2; streamed++)
      for (int threads = 1; threads <= 3; threads++) {
        nr_bench_case b = open_case("flux", NR_BF16, 41, 6, (nr_direction)direction);
        if (nr_bench_loop(b.segments, b.num_segments, b.direction, streamed, threads))
          check_rows(&b);
        else
          assert_true(streamed);
        nr_bench_case_close(&b);
      }
  nr_bench_case odd = open_case("reference", NR_F32, 5, 3, NR_BACKWARD); /* rows of 24 bytes */
  assert_false(nr_bench_loop(odd.segments, odd.num_segments, odd.direction, true, 2));
  assert_true(nr_bench_loop(odd.segments, odd.num_segments, odd.direction, false, 2));
  check_rows(&odd);
  nr_bench_case_close(&odd);
}

static void bytes(void **state) {
  (void)state;
  /* cosmos: 32 heads, D = 128, RMSNorm with weights on query and key, half rope, one stream, here of 10 rows. */
  int64_t rows = 10 * 32 * 128 * 2, statistics = 10 * 32 * 4, table = 10 * 128 * 2, weight = 128 * 2;
  nr_bench_case forward = open_case("cosmos", NR_BF16, 10, 0, NR_FORWARD);
  assert_int_equal(forward.bytes, 6 * rows + 2 * statistics + 2 * table + 2 * weight);
  nr_bench_case_close(&forward);
  nr_bench_case backward = open_case("cosmos", NR_BF16, 10, 0, NR_BACKWARD);
  assert_int_equal(backward.bytes, 8 * rows + 2 * statistics + 2 * table + 4 * weight);
  assert_null(nr_bench_tensor(&backward, "value"));
  assert_non_null(nr_bench_tensor(&backward, "gradValue"));
  nr_bench_case_close(&backward);
}

/* Blocks of 2 MiB lie on such a boundary, and none overlaps another. */
static void memory(void **state) {
  (void)state;
  static const size_t sizes[] = {100, NR_HUGE_PAGE, 64, 3 * NR_HUGE_PAGE + 5, 1, NR_HUGE_PAGE - 1};
  nr_bench_memory m;
  nr_message message = {""};
  size_t room = 0;
  for (int i = 0; i < 6; i++)
    room += nr_bench_room(sizes[i]);
  assert_int_equal(nr_bench_memory_open(&m, room, &message), 0);
  char *end = m.base;
  for (int i = 0; i < 6; i++) {
    char *block = nr_bench_take(&m, sizes[i]);
    assert_true(block >= end && (uintptr_t)block % (sizes[i] < NR_HUGE_PAGE ? 64 : NR_HUGE_PAGE) == 0);
    end = block + sizes[i];
    assert_true(end <= m.base + m.size);
    memset(block, 1, sizes[i]);
  }
  nr_bench_memory_close(&m);
  assert_int_equal(nr_bench_memory_open(&m, (size_t)1 << 50, &message), NR_EXIT_RUN);
}

static void summaries(void **state) {
  (void)state;
  nr_summary five = nr_summarise((double[]){5, 1, 4, 2, 3}, 5), four = nr_summarise((double[]){4, 1, 3, 2}, 4);
  assert_true(five.median == 3 && five.lower == 2 && five.upper == 4 && five.least == 1 && five.most == 5);
  assert_true(four.median == 2.5 && four.lower == 1.75 && four.upper == 3.25 && four.least == 1 && four.most == 4);
  nr_summary one = nr_summarise((double[]){7}, 1);
  assert_true(one.median == 7 && one.lower == 7 && one.upper == 7);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(copies), cmocka_unit_test(loops), cmocka_unit_test(bytes),
                                     cmocka_unit_test(memory), cmocka_unit_test(summaries)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
