/* Overlap of strided regions against a map of bytes, and the time that the hard ones may take. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/overlap.h"

enum { MAP = 4096, BASE = 1 << 20 };

static uint64_t dice = 7;

static int64_t roll(int64_t n) {
  dice = dice * 6364136223846793005u + 1442695040888963407u;
  return (int64_t)((dice >> 33) % (uint64_t)n);
}

static nr_region region_of(uintptr_t address, const int64_t count[4], const int64_t stride[4], int64_t size) {
  nr_region r = {.address = address, .size = size};
  memcpy(r.count, count, sizeof r.count);
  memcpy(r.stride, stride, sizeof r.stride);
  assert_true(nr_region_bound(&r));
  return r;
}

/* Strides with a common unit more often than not, so that interleaved regions come up. */
static nr_region random_region(void) {
  int64_t unit = 1 + roll(8), count[4], stride[4];
  for (int i = 0; i < 4; i++) {
    count[i] = 1 + roll(4);
    stride[i] = unit * (roll(41) - 20);
  }
  return region_of((uintptr_t)(BASE + roll(160)), count, stride, 1 + roll(8));
}

/* Counts, byte by byte, how many elements of the region lie there. */
static void paint(const nr_region *r, unsigned char map[MAP]) {
  memset(map, 0, MAP);
  int64_t i[4];
  for (i[0] = 0; i[0] < r->count[0]; i[0]++)
    for (i[1] = 0; i[1] < r->count[1]; i[1]++)
      for (i[2] = 0; i[2] < r->count[2]; i[2]++)
        for (i[3] = 0; i[3] < r->count[3]; i[3]++) {
          int64_t at = (int64_t)r->address - BASE + MAP / 2;
          for (int axis = 0; axis < 4; axis++)
            at += i[axis] * r->stride[axis];
          for (int64_t byte = at; byte < at + r->size; byte++)
            if (map[byte] < 2)
              map[byte]++;
        }
}

static void print_region(const nr_region *r) {
  print_message("region at %lld, size %lld:", (long long)r->address, (long long)r->size);
  for (int i = 0; i < 4; i++)
    print_message(" %lld x %lld", (long long)r->count[i], (long long)r->stride[i]);
  print_message("\n");
}

static void agrees_with_brute_force(void **state) {
  (void)state;
  int overlapping = 0, folded = 0;
  for (int trial = 0; trial < 30000; trial++) {
    nr_region a = random_region(), b = random_region();
    unsigned char map_a[MAP], map_b[MAP];
    paint(&a, map_a);
    paint(&b, map_b);
    bool shares = false, folds = false;
    for (int byte = 0; byte < MAP; byte++) {
      shares = shares || (map_a[byte] && map_b[byte]);
      folds = folds || map_a[byte] > 1;
    }
    if (nr_regions_overlap(&a, &b) != shares || nr_regions_overlap(&b, &a) != shares ||
        nr_region_overlaps_itself(&a) != folds) {
      print_region(&a);
      print_region(&b);
      fail_msg("trial %d: expected overlap %d, with itself %d", trial, shares, folds);
    }
    overlapping += shares;
    folded += folds;
  }
  print_message("%d overlapping, %d folded\n", overlapping, folded);
  assert_in_range(overlapping, 1000, 29000);
  assert_in_range(folded, 1000, 29000);
}

static void bounds_are_the_extreme_bytes(void **state) {
  (void)state;
  nr_region r = region_of(BASE, (int64_t[]){3, 1, 5, 2}, (int64_t[]){-100, 7777, 10, 0}, 4);
  assert_int_equal(r.low, BASE - 200);
  assert_int_equal(r.high, BASE + 40 + 4);
}

static void leaving_the_address_space_is_noticed(void **state) {
  (void)state;
  nr_region r = {.address = 4096, .count = {2, 1, 1, 1}, .stride = {-4096, 0, 0, 0}, .size = 4};
  assert_true(nr_region_bound(&r));
  r.stride[0] = -4097;
  assert_false(nr_region_bound(&r));
  r.stride[0] = INT64_MAX, r.count[0] = 3;
  assert_false(nr_region_bound(&r));
  r = (nr_region){.address = UINTPTR_MAX - 7, .count = {1, 1, 1, 3}, .stride = {0, 0, 0, 4}, .size = 4};
  assert_false(nr_region_bound(&r));
  r = (nr_region){.address = 4096, .count = {3, 3, 1, 1}, .stride = {INT64_MAX / 4, INT64_MAX / 4, 0, 0}, .size = 4};
  assert_false(nr_region_bound(&r));
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Slices of one fused [B, S, 3, N, D] buffer, and of a joined [B, N, S, D] one, at full size and of either dtype size:
   exact, and quick. */
static void packed_views_settle_quickly(void **state) {
  (void)state;
  const int64_t B = 2, S = 118806, N = 24, D = 128;
  double start = seconds();
  for (int64_t size = 2; size <= 4; size += 2) {
    int64_t rows[] = {B, S, N, D}, fused[] = {S * 3 * N * D * size, 3 * N * D * size, D * size, size};
    int64_t per_head[] = {S * 3 * N * D * size, 3 * N * D * size, 3 * D * size, size};
    for (uintptr_t part = 0; part < 3; part++) {
      nr_region q = region_of(BASE, rows, fused, size);
      nr_region other = region_of(BASE + part * (uintptr_t)(N * D * size), rows, fused, size);
      nr_region q3 = region_of(BASE, rows, per_head, size);
      nr_region other3 = region_of(BASE + part * (uintptr_t)(D * size), rows, per_head, size);
      assert_int_equal(nr_regions_overlap(&q, &other), part == 0);
      assert_int_equal(nr_regions_overlap(&q3, &other3), part == 0);
      assert_true(nr_regions_overlap(&q, &q3));
      assert_false(nr_region_overlaps_itself(&other) || nr_region_overlaps_itself(&other3));
    }
    int64_t image[] = {B, S - 226, N, D}, text[] = {B, 226, N, D},
            joined[] = {N * S * D * size, D * size, S * D * size, size};
    nr_region first = region_of(BASE, image, joined, size);
    nr_region second = region_of(BASE + (uintptr_t)((S - 226) * D * size), text, joined, size);
    nr_region one_early = region_of(BASE + (uintptr_t)((S - 227) * D * size), text, joined, size);
    assert_false(nr_regions_overlap(&first, &second));
    assert_true(nr_regions_overlap(&first, &one_early));
    assert_false(nr_region_overlaps_itself(&first));
    int64_t transposed[] = {N * S * D * size, size * D, S * D * size, -size};
    nr_region reversed = region_of(BASE + (uintptr_t)((D - 1) * size), rows, transposed, size);
    assert_false(nr_region_overlaps_itself(&reversed));
    assert_true(nr_regions_overlap(&reversed, &first));
  }
  assert_true(seconds() - start < 0.5);
}

/* Strides that nest in nothing are a knapsack; past a fixed amount of work the answer is the safe one. */
static void hard_problems_end(void **state) {
  (void)state;
  double start = seconds();
  for (int trial = 0; trial < 200; trial++) {
    int64_t count[4], stride[2][4];
    for (int i = 0; i < 4; i++) {
      count[i] = 1 << 20;
      stride[0][i] = ((int64_t)1 << 36) + 2 * roll(1 << 30);
      stride[1][i] = ((int64_t)1 << 36) + 2 * roll(1 << 30);
    }
    nr_region a = region_of((uintptr_t)1 << 40, count, stride[0], 1);
    nr_region b = region_of(((uintptr_t)1 << 40) + (uintptr_t)(roll(1 << 30) * 2), count, stride[1], 1);
    nr_regions_overlap(&a, &b);
    nr_region_overlaps_itself(&a);
    b.address++, b.low++, b.high++; /* odd bytes only: told by the common divisor, whatever the size */
    assert_false(nr_regions_overlap(&a, &b));
  }
  print_message("%.3f s\n", seconds() - start);
  assert_true(seconds() - start < 10);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(agrees_with_brute_force),
      cmocka_unit_test(bounds_are_the_extreme_bytes),
      cmocka_unit_test(leaving_the_address_space_is_noticed),
      cmocka_unit_test(packed_views_settle_quickly),
      cmocka_unit_test(hard_problems_end),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
