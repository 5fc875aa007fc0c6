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

/* A device's block then has more shared memory than it gets without asking: 48 KB and what is beside that, and 56. */
static void many_heads(void **state) {
  (void)state;
  for (int biased = 0; biased < 2; biased++) {
    stream s = {.B = 1,
                .S = 25,
                .N = 40,
                .D = biased ? 64 : 128,
                .norm = biased ? NR_NORM_LAYER_AFFINE : NR_NORM_RMS_AFFINE,
                .weights_per_head = true,
                .scope = NR_SCOPE_ALL_HEADS,
                .rows = NR_BF16};
    fixture *f = fixture_new(NR_BACKWARD, 2000 + (uint64_t)biased);
    fixture_add(f, &s);
    fixture_try(f, NULL, 0, biased ? "40 heads of 64, LayerNorm" : "40 heads of 128, RMSNorm");
    fixture_free(f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(random_cases), cmocka_unit_test(several_blocks),
                                     cmocka_unit_test(many_heads)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
