/* All that a segment can say, in random combinations, against the reference and its bounds. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "support/cases.h"
#include "support/device.h"

static void random_cases(void **state) {
  (void)state;
  enum { NUM_CASES = 2000 };
  /* Fewer where a device is slow: stood in for, or under a sanitizer of its own. */
  const char *wanted = device_is_cuda() ? getenv("NORMROPE_TEST_CASES") : NULL;
  uint64_t count = wanted ? strtoull(wanted, NULL, 10) : NUM_CASES;
  char text[CASE_TEXT];
  for (uint64_t number = 0; number < count; number++) {
    fixture *f = case_new(number, text);
    fixture_try(f, NULL, 0, text);
    fixture_free(f);
  }
  print_message("%" PRIu64 " cases, worst error %.3f of the bound\n", count, fixture_worst());
}

static void several_blocks(void **state) {
  (void)state;
  char text[CASE_TEXT];
  for (int number = 0; number < NUM_LARGE_CASES; number++) {
    fixture *f = large_case_new(number, text);
    fixture_try(f, NULL, 0, text);
    fixture_free(f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(random_cases), cmocka_unit_test(several_blocks)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
