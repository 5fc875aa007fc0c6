/* The table of handles. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "acl/handle.h"
#include "base/alloc.h"
#include "support/runtime.h"

static atomic_int destroyed;

static void count(void *object) {
  (void)object;
  atomic_fetch_add(&destroyed, 1);
}

static void a_life(void **state) {
  (void)state;
  int object;
  atomic_store(&destroyed, 0);
  void *handle = nr_handle_new(NR_HANDLE_TENSOR, &object, count);
  assert_true((uintptr_t)handle & 1);
  assert_ptr_equal(nr_handle_acquire(NR_HANDLE_TENSOR, handle), &object);
  assert_ptr_equal(nr_handle_acquire(NR_HANDLE_TENSOR, handle), &object);
  assert_null(nr_handle_acquire(NR_HANDLE_STREAM, handle));
  assert_false(nr_handle_retire(NR_HANDLE_EVENT, handle));
  nr_handle_release(handle);
  assert_true(nr_handle_retire(NR_HANDLE_TENSOR, handle));
  assert_false(nr_handle_retire(NR_HANDLE_TENSOR, handle));
  assert_null(nr_handle_acquire(NR_HANDLE_TENSOR, handle));
  assert_int_equal(destroyed, 0); /* one reference is left */
  nr_handle_release(handle);
  assert_int_equal(destroyed, 1);

  void *next = nr_handle_new(NR_HANDLE_TENSOR, &object, NULL); /* most likely in the same slot */
  assert_ptr_not_equal(next, handle);
  assert_null(nr_handle_acquire(NR_HANDLE_TENSOR, handle));
  assert_true(nr_handle_retire(NR_HANDLE_TENSOR, next));
  assert_int_equal(destroyed, 1);
}

static void foreign_pointers(void **state) {
  (void)state;
  int object;
  void *handle = nr_handle_new(NR_HANDLE_EVENT, &object, NULL);
  assert_null(nr_handle_acquire(NR_HANDLE_EVENT, NULL));
  assert_null(nr_handle_acquire(NR_HANDLE_EVENT, &object));
  assert_null(nr_handle_acquire(NR_HANDLE_EVENT, (char *)&object + 1));
  assert_null(nr_handle_acquire(NR_HANDLE_EVENT, (void *)UINTPTR_MAX));
  for (int bit = 0; bit < 64; bit++)
    assert_null(nr_handle_acquire(NR_HANDLE_EVENT, (void *)((uintptr_t)handle ^ (uintptr_t)1 << bit)));
  assert_true(nr_handle_retire(NR_HANDLE_EVENT, handle));
}

static void many_and_walking(void **state) {
  (void)state;
  enum { N = 3000 };
  static int objects[N];
  static void *handles[N];
  for (int i = 0; i < N; i++) {
    handles[i] = nr_handle_new(i % 3 ? NR_HANDLE_TENSOR : NR_HANDLE_EXECUTOR, &objects[i], NULL);
    assert_non_null(handles[i]);
  }
  for (int i = 0; i < N; i++) {
    assert_ptr_equal(nr_handle_acquire(i % 3 ? NR_HANDLE_TENSOR : NR_HANDLE_EXECUTOR, handles[i]), &objects[i]);
    nr_handle_release(handles[i]);
  }
  uint32_t cursor = 0;
  int executors = 0;
  for (void *h; (h = nr_handle_next(NR_HANDLE_EXECUTOR, &cursor)); executors++)
    assert_true(nr_handle_retire(NR_HANDLE_EXECUTOR, h));
  assert_int_equal(executors, N / 3);
  for (int i = 0; i < N; i++)
    assert_int_equal(nr_handle_retire(i % 3 ? NR_HANDLE_TENSOR : NR_HANDLE_EXECUTOR, handles[i]), i % 3 != 0);
}

enum { SHARED = 16 };
static void *_Atomic shared[SHARED];

/* Makes, looks up and retires handles in places that all threads share. */
static void *churn(void *seed) {
  unsigned random = *(unsigned *)seed;
  for (int i = 0; i < 20000; i++) {
    random = random * 1664525 + 1013904223;
    unsigned slot = random >> 8 & (SHARED - 1);
    if (random >> 16 & 1) {
      int *object = nr_calloc(1, sizeof *object);
      *object = 4711;
      void *old = atomic_exchange(&shared[slot], nr_handle_new(NR_HANDLE_TENSOR, object, nr_free));
      if (old)
        assert_true(nr_handle_retire(NR_HANDLE_TENSOR, old));
    } else {
      void *handle = atomic_load(&shared[slot]);
      int *object = nr_handle_acquire(NR_HANDLE_TENSOR, handle);
      if (object) {
        assert_int_equal(*object, 4711);
        nr_handle_release(handle);
      }
    }
  }
  return NULL;
}

static void many_threads(void **state) {
  (void)state;
  enum { THREADS = 4 };
  pthread_t threads[THREADS];
  unsigned seeds[THREADS] = {1, 2, 3, 4};
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, churn, &seeds[i]), 0);
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  for (int i = 0; i < SHARED; i++)
    if (shared[i])
      assert_true(nr_handle_retire(NR_HANDLE_TENSOR, shared[i]));
}

/* Printed, not judged: a machine that is busy is no failure. */
static void cost(void **state) {
  (void)state;
  enum { N = 200000 };
  int object;
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int i = 0; i < N; i++) {
    void *handle = nr_handle_new(NR_HANDLE_TENSOR, &object, NULL);
    nr_handle_acquire(NR_HANDLE_TENSOR, handle);
    nr_handle_release(handle);
    nr_handle_retire(NR_HANDLE_TENSOR, handle);
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  print_message("create + look up + destroy: %.0f ns\n",
                ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / N);
}

/* Last of the tests: it fills the table until it has to grow. */
static void growing_may_fail(void **state) {
  (void)state;
  enum { MOST = 1 << 16 };
  static void *handles[MOST];
  int object, n = 0;
  nr_fault_at(1);
  while (n < MOST && (handles[n] = nr_handle_new(NR_HANDLE_TENSOR, &object, NULL)))
    n++;
  assert_true(n < MOST);
  void *handle = nr_handle_new(NR_HANDLE_TENSOR, &object, NULL); /* only that one allocation failed */
  assert_non_null(handle);
  nr_fault_at(0);
  assert_true(nr_handle_retire(NR_HANDLE_TENSOR, handle));
  while (n--)
    assert_true(nr_handle_retire(NR_HANDLE_TENSOR, handles[n]));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_life),
      cmocka_unit_test(foreign_pointers),
      cmocka_unit_test(many_and_walking),
      cmocka_unit_test(many_threads),
      cmocka_unit_test(cost),
      cmocka_unit_test(growing_may_fail),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
