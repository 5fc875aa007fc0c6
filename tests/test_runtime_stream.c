/* Streams and events. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl_error.h"
#include "acl/handle.h"
#include "support/runtime.h"

/* A task that appends to a list, which only its stream touches until it is synchronised. */
enum { MOST = 5000 };
typedef struct list {
  int length, values[MOST];
} list;
typedef struct entry {
  list *list;
  int value;
} entry;

static int append(void *object) {
  entry *e = object;
  e->list->values[e->list->length++] = e->value;
  return ACL_SUCCESS;
}

static int fail_with(void *message) { return nr_acl_fail(361001, "%s", (const char *)message); }

static int fail_silently(void *unused) {
  (void)unused;
  return 500000;
}

static void tasks_keep_their_order(void **state) {
  (void)state;
  static list l;
  static entry entries[MOST];
  aclrtStream stream;
  OK(aclrtCreateStreamWithConfig(&stream, 3, ACL_STREAM_FAST_LAUNCH | ACL_STREAM_FAST_SYNC));
  gate g = {0};
  push(stream, gate_run, &g);
  for (int i = 0; i < MOST; i++) { /* the queue grows over them while it is held */
    entries[i] = (entry){&l, i};
    push(stream, append, &entries[i]);
  }
  aclrtStreamStatus status;
  OK(aclrtStreamQuery(stream, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_NOT_READY);
  assert_int_equal(l.length, 0); /* it really runs elsewhere: pushing did not wait */
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeStream(stream));
  assert_int_equal(l.length, MOST);
  for (int i = 0; i < MOST; i++)
    assert_int_equal(l.values[i], i);
  OK(aclrtStreamQuery(stream, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_COMPLETE);
  OK(aclrtDestroyStream(stream));
}

static void streams_run_side_by_side(void **state) {
  (void)state;
  aclrtStream one, two;
  OK(aclrtCreateStream(&one));
  OK(aclrtCreateStream(&two));
  gate first = {0}, second = {0};
  push(one, gate_run, &first);
  push(two, gate_run, &second);
  atomic_store(&second.open, 1);
  OK(aclrtSynchronizeStream(two)); /* while the first is held */
  OK(aclrtSynchronizeStream(NULL));
  aclrtStreamStatus status;
  OK(aclrtStreamQuery(one, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_NOT_READY);
  atomic_store(&first.open, 1);
  OK(aclrtSynchronizeDevice());
  OK(aclrtStreamQuery(one, &status));
  assert_int_equal(status, ACL_STREAM_STATUS_COMPLETE);
  OK(aclrtDestroyStream(one));
  OK(aclrtDestroyStream(two));
}

static void timeouts(void **state) {
  (void)state;
  gate g = {0};
  OK(aclrtSynchronizeStreamWithTimeout(NULL, 0));
  push(NULL, gate_run, &g);
  REFUSED(aclrtSynchronizeStreamWithTimeout(NULL, 0), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  REFUSED(aclrtSynchronizeStreamWithTimeout(NULL, 20), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  REFUSED(aclrtSynchronizeStreamWithTimeout(NULL, -2), ACL_ERROR_INVALID_PARAM);
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeStreamWithTimeout(NULL, 60000));
  OK(aclrtSynchronizeStreamWithTimeout(NULL, -1));
  OK(aclrtSynchronizeStreamWithTimeout(NULL, 0));
}

static void failures_come_with_the_next_synchronisation(void **state) {
  (void)state;
  static list l;
  entry after = {&l, 1};
  push(NULL, fail_with, "the first");
  push(NULL, fail_with, "the second");
  push(NULL, append, &after);
  assert_int_equal(aclrtSynchronizeStream(NULL), 361001);
  assert_string_equal(aclGetRecentErrMsg(), "the first");
  assert_int_equal(l.length, 1); /* what follows runs all the same */
  OK(aclrtSynchronizeStream(NULL));
  push(NULL, fail_silently, NULL);
  REFUSED(aclrtSynchronizeStream(NULL), ACL_ERROR_INTERNAL_ERROR);
  push(NULL, fail_with, "for the device");
  assert_int_equal(aclrtSynchronizeDevice(), 361001);
  assert_string_equal(aclGetRecentErrMsg(), "for the device");
  OK(aclrtSynchronizeDevice());
  push(NULL, fail_with, "never read");
}

static int dropped;
static void drop(void *object) { dropped += *(int *)object; }
static int nothing(void *object) {
  (void)object;
  return ACL_SUCCESS;
}

static void arguments_are_dropped_before_synchronisation_ends(void **state) {
  (void)state;
  int one = 1;
  nr_stream *s;
  OK(nr_stream_resolve(NULL, &s));
  for (int i = 1; i <= 100; i++) {
    OK(nr_stream_push(s, nothing, drop, &one, NR_AT_ONCE));
    OK(aclrtSynchronizeStream(NULL));
    assert_int_equal(dropped, i);
  }
  nr_stream_release(s);
}

static void destroying_waits_for_the_work(void **state) {
  (void)state;
  static list l;
  entry last = {&l, 1};
  aclrtStream stream;
  aclrtEvent event;
  gate g = {0};
  OK(aclrtCreateStream(&stream));
  OK(aclrtCreateEvent(&event));
  push(stream, gate_run, &g);
  OK(aclrtRecordEvent(event, stream));
  OK(aclrtStreamWaitEvent(NULL, event));
  OK(aclrtDestroyEvent(event)); /* recorded, not reached, and waited for */
  push(stream, append, &last);
  atomic_store(&g.open, 1);
  OK(aclrtDestroyStream(stream));
  assert_int_equal(l.length, 1);
  REFUSED(aclrtDestroyStream(stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtSynchronizeStream(stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtDestroyEvent(event), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  OK(aclrtSynchronizeStream(NULL));
}

static void bad_arguments(void **state) {
  (void)state;
  int here;
  float ms;
  aclrtStream stream;
  aclrtEvent event, plain;
  aclrtStreamStatus stream_status;
  aclrtEventRecordedStatus event_status;
  REFUSED(aclrtCreateStream(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCreateStreamWithConfig(&stream, 0, 0x40), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCreateEvent(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCreateEventWithFlag(&event, 0), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCreateEventWithFlag(&event, 4), ACL_ERROR_INVALID_PARAM);
  OK(aclrtCreateStream(&stream));
  OK(aclrtCreateEvent(&event));
  OK(aclrtCreateEventWithFlag(&plain, ACL_EVENT_SYNC));
  REFUSED(aclrtStreamQuery(stream, NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtQueryEventStatus(event, NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtEventElapsedTime(NULL, event, event), ACL_ERROR_INVALID_PARAM);
  void *const wrong[] = {&here, event, plain};
  for (int i = 0; i < 3; i++) {
    REFUSED(aclrtSynchronizeStream(wrong[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtStreamQuery(wrong[i], &stream_status), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtDestroyStream(wrong[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtRecordEvent(event, wrong[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtResetEvent(event, wrong[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtStreamWaitEvent(wrong[i], event), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  }
  void *const no_event[] = {&here, stream, NULL};
  for (int i = 0; i < 3; i++) {
    REFUSED(aclrtRecordEvent(no_event[i], stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtResetEvent(no_event[i], stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtStreamWaitEvent(stream, no_event[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtQueryEventStatus(no_event[i], &event_status), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtSynchronizeEvent(no_event[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtEventElapsedTime(&ms, event, no_event[i]),
            ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID); /* the first is not recorded */
    REFUSED(aclrtEventElapsedTime(&ms, no_event[i], event), ACL_ERROR_INVALID_RESOURCE_HANDLE);
    REFUSED(aclrtDestroyEvent(no_event[i]), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  }
  REFUSED(aclrtDestroyStream(NULL), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  OK(aclrtRecordEvent(plain, stream));
  OK(aclrtSynchronizeStream(stream));
  REFUSED(aclrtEventElapsedTime(&ms, plain, plain), ACL_ERROR_INVALID_PARAM);
}

static void assert_status(aclrtEvent event, aclrtEventRecordedStatus expected) {
  aclrtEventRecordedStatus status;
  OK(aclrtQueryEventStatus(event, &status));
  assert_int_equal(status, expected);
}

static void events(void **state) {
  (void)state;
  aclrtEvent start, end;
  float ms = -1;
  OK(aclrtCreateEvent(&start));
  OK(aclrtCreateEvent(&end));
  assert_status(start, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  OK(aclrtSynchronizeEvent(start)); /* nothing to wait for */
  REFUSED(aclrtEventElapsedTime(&ms, start, end), ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID);
  gate g = {0};
  OK(aclrtRecordEvent(start, NULL));
  OK(aclrtSynchronizeEvent(start));
  assert_status(start, ACL_EVENT_RECORDED_STATUS_COMPLETE);
  push(NULL, gate_run, &g);
  OK(aclrtRecordEvent(end, NULL));
  sleep_ms(20);
  assert_status(end, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  REFUSED(aclrtEventElapsedTime(&ms, start, end), ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID);
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeEvent(end));
  assert_status(end, ACL_EVENT_RECORDED_STATUS_COMPLETE);
  OK(aclrtEventElapsedTime(&ms, start, end));
  assert_true(ms >= 20 && ms < 60000);
  REFUSED(aclrtEventElapsedTime(&ms, end, start), ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL);
  OK(aclrtEventElapsedTime(&ms, end, end));
  assert_true(ms == 0);

  atomic_store(&g.open, 0); /* recorded again */
  push(NULL, gate_run, &g);
  OK(aclrtRecordEvent(end, NULL));
  assert_status(end, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeEvent(end));
  OK(aclrtResetEvent(end, NULL));
  OK(aclrtSynchronizeStream(NULL));
  assert_status(end, ACL_EVENT_RECORDED_STATUS_NOT_READY);

  atomic_store(&g.open, 0); /* a record made after the reset stays */
  push(NULL, gate_run, &g);
  OK(aclrtResetEvent(end, NULL));
  OK(aclrtRecordEvent(end, NULL));
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeStream(NULL));
  assert_status(end, ACL_EVENT_RECORDED_STATUS_COMPLETE);
}

static void waits_across_streams(void **state) {
  (void)state;
  static list l;
  entry one = {&l, 1}, two = {&l, 2}, three = {&l, 3};
  aclrtStream a, b;
  aclrtEvent event;
  OK(aclrtCreateStream(&a));
  OK(aclrtCreateStream(&b));
  OK(aclrtCreateEvent(&event));
  OK(aclrtStreamWaitEvent(b, event)); /* not recorded: no wait */
  OK(aclrtSynchronizeStream(b));
  gate g = {0};
  push(a, gate_run, &g);
  push(a, append, &one);
  OK(aclrtRecordEvent(event, a));
  OK(aclrtStreamWaitEvent(b, event));
  OK(aclrtResetEvent(event, b)); /* neither this */
  push(b, append, &two);
  gate later = {0};
  OK(aclrtRecordEvent(event, b)); /* nor a newer record changes what b waits for */
  OK(aclrtStreamWaitEvent(a, event));
  push(a, append, &three);
  push(a, gate_run, &later);
  REFUSED(aclrtSynchronizeStreamWithTimeout(b, 20), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeStream(b));
  atomic_store(&later.open, 1);
  OK(aclrtSynchronizeStream(a));
  assert_int_equal(l.length, 3);
  for (int i = 0; i < 3; i++)
    assert_int_equal(l.values[i], i + 1);
}

/* Several host threads on several streams of one context, handing a counter round by events. */
enum { THREADS = 4, ROUNDS = 300 };
typedef struct ring {
  aclrtContext context;
  aclrtStream streams[THREADS];
  pthread_mutex_t order; /* of pushes: the counter's turn goes on with the event */
  aclrtEvent turn;
  int counter; /* no lock of its own: only the events keep the streams' tasks apart */
} ring;

static int increment(void *object) {
  ((ring *)object)->counter++;
  return ACL_SUCCESS;
}

static void *go_round(void *object) {
  ring *r = object;
  static atomic_int next;
  aclrtStream mine = r->streams[atomic_fetch_add(&next, 1) % THREADS];
  OK(aclrtSetCurrentContext(r->context));
  for (int i = 0; i < ROUNDS; i++) {
    pthread_mutex_lock(&r->order);
    OK(aclrtStreamWaitEvent(mine, r->turn));
    push(mine, increment, r);
    OK(aclrtRecordEvent(r->turn, mine));
    pthread_mutex_unlock(&r->order);
    if (i % 16 == 0)
      OK(aclrtSynchronizeStream(mine));
  }
  OK(aclrtSynchronizeStream(mine));
  return NULL;
}

static void many_threads_and_streams(void **state) {
  (void)state;
  ring r = {.order = PTHREAD_MUTEX_INITIALIZER};
  OK(aclrtGetCurrentContext(&r.context));
  OK(aclrtCreateEvent(&r.turn));
  for (int i = 0; i < THREADS; i++)
    OK(aclrtCreateStream(&r.streams[i]));
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, go_round, &r), 0);
  for (int i = 0; i < THREADS; i++)
    pthread_join(threads[i], NULL);
  assert_int_equal(r.counter, THREADS * ROUNDS);
}

/* Threads that use one stream and one event while another destroys them: refused or done, nothing else. */
typedef struct target {
  aclrtContext context;
  aclrtStream stream;
  aclrtEvent event;
} target;

static void *use_what_goes(void *object) {
  target *t = object;
  OK(aclrtSetCurrentContext(t->context));
  aclError error = ACL_SUCCESS;
  for (int i = 0; i < 2000 && error == ACL_SUCCESS; i++) {
    error = aclrtRecordEvent(t->event, t->stream);
    if (error == ACL_SUCCESS)
      error = aclrtStreamWaitEvent(NULL, t->event);
    if (error == ACL_SUCCESS)
      error = aclrtSynchronizeStream(t->stream);
  }
  assert_true(error == ACL_SUCCESS || error == ACL_ERROR_INVALID_RESOURCE_HANDLE);
  return NULL;
}

static void destroying_what_others_use(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    target t;
    pthread_t threads[2];
    OK(aclrtGetCurrentContext(&t.context));
    OK(aclrtCreateStream(&t.stream));
    OK(aclrtCreateEvent(&t.event));
    for (int k = 0; k < 2; k++)
      assert_int_equal(pthread_create(&threads[k], NULL, use_what_goes, &t), 0);
    sleep_ms(i % 4);
    if (i % 2)
      OK(aclrtDestroyEvent(t.event));
    OK(aclrtDestroyStream(t.stream));
    for (int k = 0; k < 2; k++)
      pthread_join(threads[k], NULL);
  }
}

static void *make_until_it_goes(void *context) {
  aclrtStream stream;
  aclrtEvent event;
  aclError error = aclrtSetCurrentContext(context);
  for (int i = 0; i < 20000 && error == ACL_SUCCESS; i++) {
    error = aclrtCreateEvent(&event);
    if (error == ACL_SUCCESS && i % 64 == 0)
      error = aclrtCreateStream(&stream);
  }
  return NULL;
}

static void destroying_a_context_in_which_others_make_things(void **state) {
  (void)state;
  for (int i = 0; i < 40; i++) {
    aclrtContext context;
    pthread_t threads[2];
    OK(aclrtCreateContext(&context, 0));
    for (int k = 0; k < 2; k++)
      assert_int_equal(pthread_create(&threads[k], NULL, make_until_it_goes, context), 0);
    if (i % 2)
      sleep_ms(1);
    OK(aclrtDestroyContext(context));
    for (int k = 0; k < 2; k++)
      pthread_join(threads[k], NULL);
    uint32_t cursor = 0;
    assert_null(nr_handle_next(NR_HANDLE_STREAM, &cursor)); /* none is left behind */
    cursor = 0;
    assert_null(nr_handle_next(NR_HANDLE_EVENT, &cursor));
  }
}

static void *synchronize_default(void *context) {
  aclError error = aclrtSetCurrentContext(context);
  return (void *)(intptr_t)(error == ACL_SUCCESS ? aclrtSynchronizeStream(NULL) : error);
}

static void *open_later(void *object) {
  sleep_ms(30);
  atomic_store(&((gate *)object)->open, 1);
  return NULL;
}

/* A thread that waits for a stream keeps it alive, but its work must not outlive what the context's end releases. */
static void destroying_a_context_in_which_others_wait(void **state) {
  (void)state;
  aclrtContext context;
  pthread_t waiting, opening;
  gate g = {0};
  OK(aclrtCreateContext(&context, 0));
  push(NULL, gate_run, &g);
  assert_int_equal(pthread_create(&waiting, NULL, synchronize_default, context), 0);
  sleep_ms(10);
  assert_int_equal(pthread_create(&opening, NULL, open_later, &g), 0);
  OK(aclrtDestroyContext(context));
  assert_int_equal(atomic_load(&g.open), 1);
  pthread_join(opening, NULL);
  pthread_join(waiting, NULL);
}

/* Printed, not judged: a machine that is busy is no failure. */
static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void latency(void **state) {
  (void)state;
  enum { N = 2001 };
  static double us[N];
  nr_stream *s;
  OK(nr_stream_resolve(NULL, &s));
  for (int i = 0; i < N; i++) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    OK(nr_stream_push(s, nothing, NULL, NULL, NR_AT_ONCE));
    OK(aclrtSynchronizeStream(NULL));
    clock_gettime(CLOCK_MONOTONIC, &b);
    us[i] = (double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) / 1e3;
  }
  nr_stream_release(s);
  qsort(us, N, sizeof *us, by_size);
  print_message("queue + synchronise: median %.2f us, 99%% %.2f us\n", us[N / 2], us[N * 99 / 100]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(tasks_keep_their_order, set_up, tear_down),
      cmocka_unit_test_setup_teardown(streams_run_side_by_side, set_up, tear_down),
      cmocka_unit_test_setup_teardown(timeouts, set_up, tear_down),
      cmocka_unit_test_setup_teardown(failures_come_with_the_next_synchronisation, set_up, tear_down),
      cmocka_unit_test_setup_teardown(arguments_are_dropped_before_synchronisation_ends, set_up, tear_down),
      cmocka_unit_test_setup_teardown(destroying_waits_for_the_work, set_up, tear_down),
      cmocka_unit_test_setup_teardown(bad_arguments, set_up, tear_down),
      cmocka_unit_test_setup_teardown(events, set_up, tear_down),
      cmocka_unit_test_setup_teardown(waits_across_streams, set_up, tear_down),
      cmocka_unit_test_setup_teardown(many_threads_and_streams, set_up, tear_down),
      cmocka_unit_test_setup_teardown(destroying_what_others_use, set_up, tear_down),
      cmocka_unit_test_setup_teardown(destroying_a_context_in_which_others_make_things, set_up, tear_down),
      cmocka_unit_test_setup_teardown(destroying_a_context_in_which_others_wait, set_up, tear_down),
      cmocka_unit_test_setup_teardown(latency, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
