/* The same bits for any number of threads, on every run, with every instruction set, and from several programs' threads
   at once; and of a row whatever the others are. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

enum { POSITIONS = 11, HEADS = 5, ROWS = POSITIONS * HEADS };

/* Rows of numbers between -1 and 1, every third one moved by `mean`. */
static void fill(void *x, nr_dtype dtype, int64_t dim, double mean) {
  for (int64_t i = 0; i < ROWS * dim; i++)
    nr_store(x, dtype, i, (double)((i * 7919 + i / 3) % 251) / 125 - 1 + (i / dim % 3 == 1 ? mean : 0));
}

/* The forward of rows and, from its statistics, the backward with them as gradients too. */
static void both_ways(void *x, void *y, void *grad_x, float *statistics, nr_dtype dtype, int64_t dim, nr_norm norm) {
  nr_segment s = nr_segment_default();
  s.batch = 1, s.length = POSITIONS, s.heads = HEADS, s.dim = dim, s.norm = norm;
  s.x = s.grad_y = nr_view_bsnd(x, dtype, POSITIONS, HEADS, dim);
  s.y = nr_view_bsnd(y, dtype, POSITIONS, HEADS, dim);
  s.grad_x = nr_view_bsnd(grad_x, dtype, POSITIONS, HEADS, dim);
  s.mean = nr_view_statistics(statistics, NR_F32, POSITIONS, HEADS);
  s.rstd = nr_view_statistics(statistics + ROWS, NR_F32, POSITIONS, HEADS);
  for (int d = 0; d < 2; d++) {
    nr_problem problem = nr_problem_default();
    problem.direction = d ? NR_BACKWARD : NR_FORWARD;
    problem.segments = &s, problem.num_segments = 1;
    nr_plan *plan;
    assert_int_equal(nr_plan_create(&plan, &problem), NR_OK);
    void *workspace = malloc(nr_plan_workspace_size(plan) + 1);
    assert_int_equal(nr_plan_run(plan, NULL, workspace, nr_plan_workspace_size(plan), NULL), NR_OK);
    free(workspace);
    nr_plan_destroy(plan);
  }
}

/* Kernels work on rows in groups and treat those with a large mean in another way. */
static void rows_know_nothing_of_their_neighbours(void **state) {
  (void)state;
  static const int64_t dims[] = {2, 30, 64, 88, 128, 512, 1024};
  static const double means[] = {0, 0.5, 3, 1e30};
  for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
    for (int norm = NR_NORM_LAYER; norm <= NR_NORM_RMS; norm += 2)
      for (int dtype = NR_F32; dtype <= NR_BF16; dtype++) {
        const size_t row = (size_t)dims[k] * nr_dtype_size((nr_dtype)dtype);
        float statistics[4][2 * ROWS];
        char *x = malloc(ROWS * row), *y[4], *grad[4];
        for (int m = 0; m < 4; m++) {
          y[m] = malloc(ROWS * row), grad[m] = malloc(ROWS * row);
          fill(x, (nr_dtype)dtype, dims[k], means[m]);
          both_ways(x, y[m], grad[m], statistics[m], (nr_dtype)dtype, dims[k], (nr_norm)norm);
          for (size_t r = 0; r < ROWS; r++)
            if (r % 3 != 1 && (memcmp(y[m] + r * row, y[0] + r * row, row) != 0 ||
                               memcmp(grad[m] + r * row, grad[0] + r * row, row) != 0 ||
                               (norm == NR_NORM_LAYER && statistics[m][r] != statistics[0][r]) ||
                               memcmp(&statistics[m][ROWS + r], &statistics[0][ROWS + r], sizeof(float)) != 0))
              fail_msg("%s, D %d, norm %d: row %zu changes with its neighbours' mean %g",
                       nr_dtype_name((nr_dtype)dtype), (int)dims[k], norm, r, means[m]);
        }
        for (int m = 0; m < 4; m++)
          free(y[m]), free(grad[m]);
        free(x);
      }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_instruction_set),
      cmocka_unit_test(any_number_of_threads),
      cmocka_unit_test(several_callers_at_once),
      cmocka_unit_test(callers_of_one_team),
      cmocka_unit_test(rows_know_nothing_of_their_neighbours),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
