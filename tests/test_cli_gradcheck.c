/* The reference's gradients against finite differences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "cli/gradcheck.h"

static void test_combinations(void **state) {
  (void)state;
  nr_combination c;
  nr_message message;
  int count = 0;
  for (; nr_combination_get(count, &c); count++) {
    double worst[NR_NUM_GRADS];
    assert_int_equal(nr_gradcheck(&c, 3, worst, &message), NR_EXIT_OK);
    for (int k = 0; k < NR_NUM_GRADS; k++)
      if (!(worst[k] <= 1e-8))
        fail_msg("%s: kind %d: %g", c.name, k, worst[k]);
  }
  assert_int_equal(count, 5 * 5 * 3 * 2 + 5 * 13);
}

/* What the library refuses is a failed run, not a verdict. */
static void test_refused(void **state) {
  (void)state;
  nr_combination c;
  nr_message message;
  double worst[NR_NUM_GRADS];
  assert_true(nr_combination_get(0, &c));
  c.dim = 3;
  assert_int_equal(nr_gradcheck(&c, 0, worst, &message), NR_EXIT_RUN);
  assert_non_null(strstr(message.text, "dim 3"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_combinations), cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
