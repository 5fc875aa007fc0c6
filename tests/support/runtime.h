/* What the runtime's tests share. */
#ifndef NR_TEST_RUNTIME_H
#define NR_TEST_RUNTIME_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "acl/stream.h"

#define OK(call) assert_int_equal((call), ACL_SUCCESS)

/* A refusal: this code, and a text, which reading clears. */
#define REFUSED(call, code)                                                                                            \
  do {                                                                                                                 \
    (void)aclGetRecentErrMsg();                                                                                        \
    assert_int_equal((call), (code));                                                                                  \
    assert_non_null(aclGetRecentErrMsg());                                                                             \
    assert_null(aclGetRecentErrMsg());                                                                                 \
  } while (0)

static inline void sleep_ms(int ms) {
  nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* A task that holds its stream until the gate is opened. */
typedef struct gate {
  atomic_int open;
  int result; /* what the task returns */
} gate;

static inline int gate_run(void *object) {
  gate *g = object;
  while (!atomic_load(&g->open))
    sleep_ms(1);
  return g->result;
}

static inline void push(aclrtStream stream, int (*run)(void *), void *argument) {
  nr_stream *s;
  OK(nr_stream_resolve(stream, &s));
  OK(nr_stream_push(s, run, NULL, argument, NR_AT_ONCE));
  nr_stream_release(s);
}

static inline int set_up(void **state) {
  (void)state;
  OK(aclInit(NULL));
  OK(aclrtSetDevice(0));
  return 0;
}

static inline int tear_down(void **state) {
  (void)state;
  OK(aclFinalize());
  return 0;
}

#endif
