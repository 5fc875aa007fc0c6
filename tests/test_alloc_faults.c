/* Every allocation made to fail in turn: an error, and nothing left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <cmocka.h>

#include "base/alloc.h"
#include "support/cases.h"

/* Bytes in use on the heap, where the C library tells; under a sanitizer its leak check looks instead. */
static size_t in_use(void) {
#ifdef __GLIBC__
  return mallinfo2().uordblks;
#else
  return 0;
#endif
}

/* The C library keeps a few freed blocks of each size by the thread, and counts them as used. */
enum { WARM_UP = 16 };

static nr_problem problem_of(fixture *f, int number) {
  nr_problem problem = nr_problem_default();
  problem.direction = number % 2 ? NR_BACKWARD : NR_FORWARD;
  problem.segments = fixture_segments(f, &problem.num_segments);
  return problem;
}

static void planning_reports_every_failure(void **state) {
  (void)state;
  char text[CASE_TEXT];
  for (int number = 0; number < 20; number++) {
    fixture *f = case_new((uint64_t)number, text);
    nr_problem problem = problem_of(f, number);
    nr_plan *plan;
    for (int i = 0; i < WARM_UP; i++) {
      assert_int_equal(nr_plan_create(&plan, &problem), NR_OK);
      nr_plan_destroy(plan);
    }
    long failed = 0;
    nr_status status = NR_ERROR_MEMORY;
    size_t before = in_use();
    for (long n = 1; status != NR_OK; n++) {
      nr_fault_at(n);
      status = nr_plan_create(&plan, &problem);
      nr_fault_at(0);
      if (status == NR_OK)
        continue;
      failed++;
      assert_int_equal(status, NR_ERROR_MEMORY);
      assert_null(plan);
      assert_non_null(strstr(nr_last_error(), "memory"));
      assert_int_equal(in_use(), before);
    }
    assert_true(failed > 0);
    nr_plan_destroy(plan);
    assert_int_equal(in_use(), before);
    fixture_free(f);
  }
}

static void refusals_leave_nothing_behind(void **state) {
  (void)state;
  char text[CASE_TEXT];
  fixture *f = case_new(1, text);
  nr_problem problem = problem_of(f, 1);
  nr_plan *plan;
  problem.isa = "abacus";
  nr_plan_create(&plan, &problem);
  size_t before = in_use();
  for (int i = 0; i < 10; i++)
    assert_int_equal(nr_plan_create(&plan, &problem), NR_ERROR_INVALID);
  assert_int_equal(in_use(), before);
  fixture_free(f);
}

static void running_allocates_nothing(void **state) {
  (void)state;
  char text[CASE_TEXT];
  for (int number = 0; number < 20; number++) {
    fixture *f = case_new((uint64_t)number, text);
    nr_problem problem = problem_of(f, number);
    problem.num_threads = 1;
    nr_plan *plan;
    assert_int_equal(nr_plan_create(&plan, &problem), NR_OK);
    size_t size = nr_plan_workspace_size(plan);
    void *workspace = malloc(size + 1);
    nr_fault_at(1);
    assert_int_equal(nr_plan_run(plan, NULL, workspace, size, NULL), NR_OK);
    assert_int_equal(nr_plan_run(plan, problem.segments, workspace, size, NULL), NR_OK);
    assert_int_equal(nr_fault_at(0), 0);
    free(workspace);
    nr_plan_destroy(plan);
    fixture_free(f);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(planning_reports_every_failure),
      cmocka_unit_test(refusals_leave_nothing_behind),
      cmocka_unit_test(running_allocates_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
