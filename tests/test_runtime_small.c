/* Tasks too small to wake a stream's worker: who runs them, and when. */
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "acl/acl_error.h"
#include "support/runtime.h"

/* A list that tasks append themselves to. */
enum { MOST = 100000 };
typedef struct list {
  atomic_int busy; /* tasks at work; never two */
  atomic_int length;
  int values[MOST];
  pthread_t by[MOST];
} list;
typedef struct entry {
  list *list;
  int value;
} entry;

static int append(void *object) {
  entry *e = object;
  list *l = e->list;
  if (atomic_fetch_add(&l->busy, 1))
    return nr_acl_fail(ACL_ERROR_INTERNAL_ERROR, "two tasks of a stream at once");
  int n = atomic_load(&l->length);
  l->values[n] = e->value;
  l->by[n] = pthread_self();
  atomic_fetch_sub(&l->busy, 1);
  atomic_store(&l->length, n + 1);
  return ACL_SUCCESS;
}

static void push_worth(aclrtStream stream, int (*run)(void *), void *argument, double worth) {
  nr_stream *s;
  OK(nr_stream_resolve(stream, &s));
  OK(nr_stream_push(s, run, NULL, argument, worth));
  nr_stream_release(s);
}

/* Pushes entries with the values first, first + 1, ... */
static void append_some(aclrtStream stream, list *l, entry *entries, int first, int count, double worth) {
  for (int i = first; i < first + count; i++) {
    entries[i] = (entry){l, i};
    push_worth(stream, append, &entries[i], worth);
  }
}

/* The list has the values from 0 on, and who appended each is the calling thread, or is not. */
static void assert_list(const list *l, int length, bool by_caller) {
  assert_int_equal(atomic_load(&l->length), length);
  for (int i = 0; i < length; i++) {
    assert_int_equal(l->values[i], i);
    assert_int_equal(pthread_equal(l->by[i], pthread_self()) != 0, by_caller);
  }
}

/* Somebody else appends them, though nobody waits for the stream; false after ten seconds. */
static bool reaches(list *l, int length) {
  for (int i = 0; i < 10000 && atomic_load(&l->length) < length; i++)
    sleep_ms(1);
  return atomic_load(&l->length) == length;
}

static void query(aclrtStream stream) {
  aclrtStreamStatus status;
  OK(aclrtStreamQuery(stream, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_COMPLETE);
}
static void synchronize(aclrtStream stream) { OK(aclrtSynchronizeStream(stream)); }
static void look(aclrtStream stream) { OK(aclrtSynchronizeStreamWithTimeout(stream, 0)); }
static void synchronize_device(aclrtStream stream) {
  (void)stream;
  OK(aclrtSynchronizeDevice());
}
static void destroy(aclrtStream stream) { OK(aclrtDestroyStream(stream)); }
static void destroy_context(aclrtStream stream) {
  (void)stream;
  aclrtContext context;
  OK(aclrtGetCurrentContext(&context));
  OK(aclrtDestroyContext(context));
}

static void who_waits_runs_them(void **state) {
  (void)state;
  void (*const waits[])(aclrtStream) = {query, synchronize, look, synchronize_device, destroy, destroy_context};
  aclrtContext context;
  OK(aclrtCreateContext(&context, 0));
  for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
    static list l;
    memset(&l, 0, sizeof l);
    entry entries[3];
    aclrtStream stream;
    OK(aclrtCreateStream(&stream));
    append_some(stream, &l, entries, 0, 3, 0.3);
    sleep_ms(5);
    assert_int_equal(atomic_load(&l.length), 0);
    waits[i](stream);
    assert_list(&l, 3, true);
  }
}

static void together_they_wake_the_worker(void **state) {
  (void)state;
  static list l;
  static entry entries[80];
  append_some(NULL, &l, entries, 0, 3, 0.25);
  sleep_ms(5);
  assert_int_equal(atomic_load(&l.length), 0);
  append_some(NULL, &l, entries, 3, 1, 0.25);
  assert_true(reaches(&l, 4));
  synchronize(NULL);
  append_some(NULL, &l, entries, 4, 3, 0.25); /* what was run counts no more */
  sleep_ms(5);
  assert_list(&l, 4, false);
  synchronize(NULL);
  append_some(NULL, &l, entries, 7, 3, 0.25);
  sleep_ms(5);
  assert_int_equal(atomic_load(&l.length), 7);
  synchronize(NULL);
  memset(&l, 0, sizeof l);
  append_some(NULL, &l, entries, 0, 64, 0); /* neither may very many wait that are worth nothing */
  assert_true(reaches(&l, 64));
  assert_list(&l, 64, false);
}

static void what_is_not_small_is_not_held_back(void **state) {
  (void)state;
  static list l;
  entry entries[5];
  append_some(NULL, &l, entries, 0, 3, 0.1);
  append_some(NULL, &l, entries, 3, 1, NR_AT_ONCE);
  assert_true(reaches(&l, 4));
  assert_list(&l, 4, false);
  append_some(NULL, &l, entries, 4, 1, 0.1);
  char from = 1, to = 0;
  OK(aclrtMemcpyAsync(&to, 1, &from, 1, ACL_MEMCPY_DEVICE_TO_HOST, NULL));
  assert_true(reaches(&l, 5));
  synchronize(NULL);
}

static void events_behind_them_are_reached(void **state) {
  (void)state;
  static list l;
  static entry entries[3];
  aclrtStream other;
  aclrtEvent event;
  OK(aclrtCreateStream(&other));
  OK(aclrtCreateEvent(&event));
  append_some(NULL, &l, entries, 0, 1, 0.1);
  OK(aclrtRecordEvent(event, NULL));
  aclrtEventRecordedStatus status = ACL_EVENT_RECORDED_STATUS_NOT_READY;
  for (int i = 0; i < 10000 && status != ACL_EVENT_RECORDED_STATUS_COMPLETE; i++) {
    OK(aclrtQueryEventStatus(event, &status));
    sleep_ms(1);
  }
  assert_int_equal(status, ACL_EVENT_RECORDED_STATUS_COMPLETE);
  append_some(NULL, &l, entries, 1, 1, 0.1);
  OK(aclrtRecordEvent(event, NULL));
  OK(aclrtStreamWaitEvent(other, event));
  append_some(other, &l, entries, 2, 1, 0.1);
  OK(aclrtSynchronizeEvent(event));
  synchronize(other);
  assert_int_equal(atomic_load(&l.length), 3);
  for (int i = 0; i < 3; i++)
    assert_int_equal(l.values[i], i);
}

static void timeouts_end_behind_other_work(void **state) {
  (void)state;
  static list l;
  entry entries[1];
  gate g = {0};
  push(NULL, gate_run, &g);
  append_some(NULL, &l, entries, 0, 1, 0.1);
  aclrtStreamStatus status;
  OK(aclrtStreamQuery(NULL, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_NOT_READY);
  REFUSED(aclrtSynchronizeStreamWithTimeout(NULL, 0), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  REFUSED(aclrtSynchronizeStreamWithTimeout(NULL, 5), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  assert_int_equal(atomic_load(&l.length), 0);
  atomic_store(&g.open, 1);
  assert_true(reaches(&l, 1)); /* the worker is awake: no reason to leave it */
}

static int fail_with(void *message) { return nr_acl_fail(361001, "%s", (const char *)message); }

static void failures_wait_for_a_synchronisation(void **state) {
  (void)state;
  nr_acl_fail(1, "the caller's own");
  push_worth(NULL, fail_with, "the task's", 0.1);
  query(NULL);
  assert_string_equal(aclGetRecentErrMsg(), "the caller's own");
  assert_int_equal(aclrtSynchronizeStream(NULL), 361001);
  assert_string_equal(aclGetRecentErrMsg(), "the task's");
  synchronize(NULL);
}

static void many_that_nobody_waits_for(void **state) {
  (void)state;
  static list l;
  static entry entries[MOST];
  append_some(NULL, &l, entries, 0, MOST, 0.05);
  synchronize(NULL);
  assert_int_equal(atomic_load(&l.length), MOST);
  for (int i = 0; i < MOST; i++)
    assert_int_equal(l.values[i], i);
}

/* Several threads that push to one stream and wait for it. */
enum { THREADS = 3, ROUNDS = 2000 };
typedef struct crowd {
  aclrtContext context;
  list list;
} crowd;

static void *push_and_wait(void *object) {
  crowd *c = object;
  OK(aclrtSetCurrentContext(c->context));
  entry e = {&c->list, 0};
  for (int i = 0; i < ROUNDS; i++) {
    for (int k = i % 3; k < 3; k++)
      push_worth(NULL, append, &e, i % 32 ? 0.1 : NR_AT_ONCE);
    synchronize(NULL);
  }
  return NULL;
}

static void many_threads_wait(void **state) {
  (void)state;
  static crowd c;
  pthread_t threads[THREADS];
  OK(aclrtGetCurrentContext(&c.context));
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, push_and_wait, &c), 0);
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  int expected = 0;
  for (int i = 0; i < ROUNDS; i++)
    expected += 3 - i % 3;
  assert_int_equal(atomic_load(&c.list.length), THREADS * expected);
}

static void *synchronize_in(void *context) {
  OK(aclrtSetCurrentContext(context));
  synchronize(NULL);
  return NULL;
}

static void *synchronize_and_tell(void *object) {
  crowd *c = object;
  synchronize_in(c->context);
  atomic_fetch_add(&c->list.length, 1);
  return NULL;
}

/* Threads wait for the first of two tasks, another thread for both; false if the first did not wake theirs. */
static bool each_is_woken(void) {
  static crowd c;
  atomic_store(&c.list.length, 0);
  pthread_t early[THREADS], late;
  OK(aclrtGetCurrentContext(&c.context));
  gate first = {0}, second = {0};
  push(NULL, gate_run, &first);
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&early[i], NULL, synchronize_and_tell, &c), 0);
  sleep_ms(20);
  push(NULL, gate_run, &second);
  assert_int_equal(pthread_create(&late, NULL, synchronize_in, c.context), 0);
  sleep_ms(20);
  atomic_store(&first.open, 1);
  for (int i = 0; i < 1000 && atomic_load(&c.list.length) < THREADS; i++)
    sleep_ms(1);
  bool woken = atomic_load(&c.list.length) == THREADS;
  atomic_store(&second.open, 1);
  for (int i = 0; i < THREADS; i++)
    pthread_join(early[i], NULL);
  pthread_join(late, NULL);
  return woken;
}

static void all_that_wait_are_woken(void **state) {
  (void)state;
  bool woken = false;
  for (int i = 0; i < 5 && !woken; i++) /* a thread may have come too late to wait for the first task only */
    woken = each_is_woken();
  assert_true(woken);
}

/* A small task that tells when it has begun. */
typedef struct slow {
  gate gate;
  atomic_int begun;
} slow;

static int slow_run(void *object) {
  slow *s = object;
  atomic_store(&s->begun, 1);
  return gate_run(&s->gate);
}

/* A thread runs one task only, since it waits for no more, and what came meanwhile goes on without it. */
static void others_go_on_behind_a_thread_that_waited(void **state) {
  (void)state;
  const double worths[] = {NR_AT_ONCE, 0.1};
  for (int i = 0; i < 2; i++) {
    static list l;
    memset(&l, 0, sizeof l);
    entry e[1];
    slow s = {0};
    pthread_t first, second;
    aclrtContext context;
    OK(aclrtGetCurrentContext(&context));
    push_worth(NULL, slow_run, &s, 0.1);
    assert_int_equal(pthread_create(&first, NULL, synchronize_in, context), 0);
    while (!atomic_load(&s.begun))
      sleep_ms(1);
    append_some(NULL, &l, e, 0, 1, worths[i]);
    bool waits = worths[i] < NR_AT_ONCE;
    if (waits)
      assert_int_equal(pthread_create(&second, NULL, synchronize_in, context), 0);
    sleep_ms(5);
    assert_int_equal(atomic_load(&l.length), 0);
    atomic_store(&s.gate.open, 1);
    assert_true(reaches(&l, 1));
    assert_list(&l, 1, false);
    pthread_join(first, NULL);
    if (waits)
      pthread_join(second, NULL);
  }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(who_waits_runs_them),
      TEST(together_they_wake_the_worker),
      TEST(what_is_not_small_is_not_held_back),
      TEST(events_behind_them_are_reached),
      TEST(timeouts_end_behind_other_work),
      TEST(failures_wait_for_a_synchronisation),
      TEST(many_that_nobody_waits_for),
      TEST(many_threads_wait),
      TEST(all_that_wait_are_woken),
      TEST(others_go_on_behind_a_thread_that_waited),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
