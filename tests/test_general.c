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

/* A device's block then has more shared memory than it gets without asking (48 KB and what is beside that, 56), and
   needs more than it could get. */
static void many_heads(void **state) {
  (void)state;
  static const struct {
    int64_t N, D;
    nr_norm norm;
    const char *text;
  } cases[] = {{40, 128, NR_NORM_RMS_AFFINE, "40 heads of 128, RMSNorm"},
               {40, 64, NR_NORM_LAYER_AFFINE, "40 heads of 64, LayerNorm"},
               {13, 1024, NR_NORM_LAYER_AFFINE, "13 heads of 1024, LayerNorm"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    stream s = {.B = 1,
                .S = 25,
                .N = cases[i].N,
                .D = cases[i].D,
                .norm = cases[i].norm,
                .weights_per_head = true,
                .scope = NR_SCOPE_ALL_HEADS,
                .rows = NR_BF16};
    fixture *f = fixture_new(NR_BACKWARD, 2000 + i);
    fixture_add(f, &s);
    fixture_try(f, NULL, 0, cases[i].text);
    fixture_free(f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(random_cases), cmocka_unit_test(several_blocks),
                                     cmocka_unit_test(many_heads)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
