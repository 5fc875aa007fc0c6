/* The bounds of normrope check: units in the last place, overflow, classes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>

#include "cli/bounds.h"

static void test_ulp(void **state) {
  (void)state;
  assert_true(nr_ulp(NR_F32, 1) == FLT_EPSILON);
  assert_true(nr_ulp(NR_F32, -1.99) == FLT_EPSILON);
  assert_true(nr_ulp(NR_F32, 0) == ldexp(1, -149));
  assert_true(nr_ulp(NR_F16, 1) == ldexp(1, -10));
  assert_true(nr_ulp(NR_F16, 1e-6) == ldexp(1, -24));
  assert_true(nr_ulp(NR_F16, 1e9) == 32);
  assert_true(nr_ulp(NR_BF16, 2.5) == ldexp(1, -6));
  assert_true(nr_ulp(NR_F64, 1) == DBL_EPSILON);
}

/* Ratio of error and bound that one element gets. */
static double ratio(nr_dtype dtype, double got, double exact, double slack, double magnitude) {
  nr_verdict verdict = {0};
  nr_judge(&verdict, dtype, 0, got, exact, slack, magnitude);
  assert_int_equal(verdict.elements, 1);
  assert_int_equal(verdict.failures, !(verdict.worst_ratio <= 1));
  return verdict.worst_ratio;
}

static void test_judge(void **state) {
  (void)state;
  double half = FLT_EPSILON / 2;
  assert_true(ratio(NR_F32, 1, 1, 0, 1) == 0);
  assert_true(ratio(NR_F32, 1, 1 + half, 0, 1) == 1);
  assert_true(ratio(NR_F32, 1, 1 + 2 * half, 0, 1) == 2);
  assert_true(ratio(NR_F32, 1, 1 + 2 * half, half, 1) == 1);
  assert_true(ratio(NR_F32, NAN, NAN, 0, 1) == 0);
  assert_true(ratio(NR_F32, INFINITY, NAN, 0, 1) == 0);
  assert_true(ratio(NR_F32, NAN, INFINITY, 0, 1) == 0);
  assert_true(isinf(ratio(NR_F32, 1, NAN, 0, 1)));
  assert_true(isinf(ratio(NR_F32, 1, INFINITY, 0, 1)));
  assert_true(isinf(ratio(NR_F32, NAN, 1, 0, 1)));
  assert_true(isinf(ratio(NR_F32, INFINITY, -INFINITY, 0, 1)));
  assert_true(ratio(NR_F32, -INFINITY, -INFINITY, 0, 1) == 0);
  assert_true(isinf(ratio(NR_F32, INFINITY, 1, 0, 1)));
  assert_true(ratio(NR_F16, INFINITY, 65520, 0, 1) == 0);
  assert_true(isinf(ratio(NR_F16, INFINITY, 65519, 0, 1)));
  assert_true(isinf(ratio(NR_F16, -INFINITY, 65520, 0, 1)));
  assert_true(ratio(NR_F16, 65504, 65519, 0, 1) <= 1);
  assert_true(ratio(NR_BF16, NAN, 1, 0, 1e39) == 0); /* its terms overflow float32 */
}

static void test_copies(void **state) {
  (void)state;
  nr_verdict verdict = {0};
  float zero = 0, minus = -0.0f, one = 1, next = 1 + FLT_EPSILON, nan = NAN;
  nr_judge_copy(&verdict, NR_F32, 0, &nan, &nan);
  nr_judge_copy(&verdict, NR_F32, 1, &one, &one);
  assert_int_equal(verdict.failures, 0);
  nr_judge_copy(&verdict, NR_F32, 2, &zero, &minus);
  nr_judge_copy(&verdict, NR_F32, 3, &one, &next);
  assert_int_equal(verdict.failures, 2);
  assert_int_equal(verdict.elements, 4);
  assert_int_equal(verdict.worst_index, 2);
  assert_true(verdict.worst_ulp == 1);
}

static void test_add(void **state) {
  (void)state;
  nr_verdict sum = {0}, a = {0}, b = {0};
  nr_judge(&a, NR_F32, 7, 1, 1 + FLT_EPSILON, 0, 1);
  nr_judge(&b, NR_F32, 3, 1, 1 + 2 * FLT_EPSILON, 0, 1);
  nr_verdict_add(&sum, &a);
  nr_verdict_add(&sum, &b);
  nr_verdict_add(&sum, &(nr_verdict){0});
  assert_int_equal(sum.elements, 2);
  assert_int_equal(sum.failures, 2);
  assert_int_equal(sum.worst_index, 3);
  assert_true(sum.worst_ratio == 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_ulp), cmocka_unit_test(test_judge),
                                     cmocka_unit_test(test_copies), cmocka_unit_test(test_add)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
