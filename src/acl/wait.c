#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "acl/wait.h"

#include <sched.h>
#include <time.h>

enum { LEAST_SPIN_NS = 1000, MOST_SPIN_NS = 50000 };

int64_t nr_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static bool one_processor(void) {
  static atomic_int cached = -1;
  int known = atomic_load_explicit(&cached, memory_order_relaxed);
  if (known < 0) {
    cpu_set_t set;
    known = sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1;
    atomic_store_explicit(&cached, known, memory_order_relaxed);
  }
  return known != 0;
}

bool nr_spin_until(const atomic_uint_fast64_t *counter, uint64_t target, nr_patience *patience) {
  if (atomic_load_explicit(counter, memory_order_acquire) >= target)
    return true;
  if (one_processor())
    return false;
  int ns = atomic_load_explicit(patience, memory_order_relaxed);
  bool reached = false;
  for (int64_t end = nr_now() + ns; !reached && nr_now() < end;)
    for (int i = 0; i < 8 && !reached; i++) {
      relax();
      reached = atomic_load_explicit(counter, memory_order_acquire) >= target;
    }
  ns = reached ? ns * 2 : ns / 2;
  ns = ns > MOST_SPIN_NS ? MOST_SPIN_NS : ns < LEAST_SPIN_NS ? LEAST_SPIN_NS : ns;
  atomic_store_explicit(patience, ns, memory_order_relaxed);
  return reached;
}

bool nr_sleep_until(const atomic_uint_fast64_t *counter, uint64_t target, pthread_mutex_t *lock,
                    pthread_cond_t *changed, int32_t timeout_ms) {
  int64_t end = nr_now() + (int64_t)timeout_ms * 1000000;
  struct timespec until = {.tv_sec = (time_t)(end / 1000000000), .tv_nsec = (long)(end % 1000000000)};
  while (atomic_load_explicit(counter, memory_order_acquire) < target) {
    if (timeout_ms == NR_FOREVER)
      pthread_cond_wait(changed, lock);
    else if (nr_now() >= end)
      return false;
    else
      pthread_cond_timedwait(changed, lock, &until);
  }
  return true;
}

void nr_condition_init(pthread_cond_t *condition) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(condition, &attributes);
  pthread_condattr_destroy(&attributes);
}
