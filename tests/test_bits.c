/* The same bits for any number of threads, on every run, with every instruction set, and from several programs' threads
   at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <omp.h>

#include "support/cases.h"

enum { NUM_CASES = 400 };

/* Problem number `i` of all that this file tries. */
static fixture *any_case(int i, char text[CASE_TEXT]) {
  return i < NUM_CASES ? case_new((uint64_t)i, text) : large_case_new(i - NUM_CASES, text);
}

static uint64_t digest(fixture *f, const char *isa, int32_t threads) {
  fixture_poison(f);
  fixture_run(f, isa, threads);
  return fixture_digest(f);
}

static void every_instruction_set(void **state) {
  (void)state;
  char text[CASE_TEXT];
  assert_string_equal(nr_isa(0), "scalar");
  for (int i = 0; i < NUM_CASES + NUM_LARGE_CASES; i++) {
    fixture *f = any_case(i, text);
    uint64_t scalar = digest(f, "scalar", 1);
    for (int32_t k = 1; nr_isa(k); k++)
      if (nr_isa_usable(nr_isa(k)) && digest(f, nr_isa(k), 1) != scalar)
        fail_msg("%s: %s differs from scalar", text, nr_isa(k));
    fixture_free(f);
  }
  for (int32_t k = 0; nr_isa(k); k++)
    print_message("%s: %s\n", nr_isa(k), nr_isa_usable(nr_isa(k)) ? "compared" : "not usable here");
}

static void any_number_of_threads(void **state) {
  (void)state;
  static const int32_t threads[] = {2, 3, 7, 16, 0, 1};
  char text[CASE_TEXT];
  for (int i = 0; i < NUM_CASES + NUM_LARGE_CASES; i += i < NUM_CASES ? 4 + i % 2 : 1) {
    fixture *f = any_case(i, text);
    uint64_t one = digest(f, NULL, 1);
    for (size_t k = 0; k < sizeof threads / sizeof *threads; k++)
      if (digest(f, NULL, threads[k]) != one)
        fail_msg("%s: %d threads differ from one", text, (int)threads[k]);
    fixture_free(f);
  }
}

typedef struct caller {
  const nr_plan *plan;
  fixture *f;
  nr_status status;
} caller;

static void *run_many(void *argument) {
  caller *c = argument;
  size_t size = nr_plan_workspace_size(c->plan);
  void *workspace = malloc(size + 1);
  for (int i = 0; i < 20 && c->status == NR_OK; i++)
    c->status = nr_plan_run(c->plan, fixture_segments(c->f, NULL), workspace, size, NULL);
  free(workspace);
  return NULL;
}

/* One plan, and each thread with its own tensors and workspace. */
static void several_callers_at_once(void **state) {
  (void)state;
  enum { CALLERS = 4 };
  char text[CASE_TEXT];
  for (int number = 0; number < 40; number++) {
    pthread_t threads[CALLERS];
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++)
      callers[i] = (caller){.f = case_new((uint64_t)number, text)};
    uint64_t expected = digest(callers[0].f, NULL, 1);
    nr_problem problem = nr_problem_default();
    problem.direction = number % 2 ? NR_BACKWARD : NR_FORWARD;
    problem.segments = fixture_segments(callers[0].f, &problem.num_segments);
    problem.num_threads = 1 + number % 3;
    nr_plan *plan;
    assert_int_equal(nr_plan_create(&plan, &problem), NR_OK);
    for (int i = 0; i < CALLERS; i++) {
      fixture_poison(callers[i].f);
      callers[i].plan = plan;
      assert_int_equal(pthread_create(&threads[i], NULL, run_many, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++) {
      pthread_join(threads[i], NULL);
      assert_int_equal(callers[i].status, NR_OK);
      if (fixture_digest(callers[i].f) != expected)
        fail_msg("%s: caller %d of %d differs", text, i, CALLERS);
      fixture_free(callers[i].f);
    }
    nr_plan_destroy(plan);
  }
}

/* In a parallel region of the program: with the whole team, each thread its own tensors, and on one thread of it. */
static void callers_of_one_team(void **state) {
  (void)state;
  enum { CALLERS = 4 };
  char text[CASE_TEXT];
  for (int number = 0; number < 40; number++) {
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++)
      callers[i] = (caller){.f = case_new((uint64_t)number, text)};
    uint64_t expected = digest(callers[0].f, NULL, 1);
    nr_problem problem = nr_problem_default();
    problem.direction = number % 2 ? NR_BACKWARD : NR_FORWARD;
    problem.segments = fixture_segments(callers[0].f, &problem.num_segments);
    problem.num_threads = 1 + number % 3;
    nr_plan *plan;
    assert_int_equal(nr_plan_create(&plan, &problem), NR_OK);
    for (int i = 0; i < CALLERS; i++) {
      fixture_poison(callers[i].f);
      callers[i].plan = plan;
    }
    bool all = number % 4 < 2;
#pragma omp parallel num_threads(CALLERS)
    for (int i = omp_get_thread_num(); i < CALLERS && (all || i == 0); i += omp_get_num_threads())
      run_many(&callers[i]);
    for (int i = 0; i < CALLERS; i++) {
      assert_int_equal(callers[i].status, NR_OK);
      if ((all || i == 0) && fixture_digest(callers[i].f) != expected)
        fail_msg("%s: caller %d of %d differs", text, i, CALLERS);
      fixture_free(callers[i].f);
    }
    nr_plan_destroy(plan);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_instruction_set),
      cmocka_unit_test(any_number_of_threads),
      cmocka_unit_test(several_callers_at_once),
      cmocka_unit_test(callers_of_one_team),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
