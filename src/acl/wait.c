#include "acl/wait.h"

#include <time.h>

int64_t nr_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t nr_deadline(int32_t timeout_ms) {
  return timeout_ms == NR_FOREVER ? INT64_MAX : nr_now() + (int64_t)timeout_ms * 1000000;
}

void nr_condition_init(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}

bool nr_sleep(pthread_cond_t *condition, pthread_mutex_t *lock, int64_t deadline) {
  if (deadline == INT64_MAX)
    return pthread_cond_wait(condition, lock), true;
  if (nr_now() >= deadline)
    return false;
  struct timespec until = {.tv_sec = (time_t)(deadline / 1000000000), .tv_nsec = (long)(deadline % 1000000000)};
  pthread_cond_timedwait(condition, lock, &until);
  return true;
}
