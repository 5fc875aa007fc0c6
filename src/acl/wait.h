/* Clocks and waiting: what streams and events share. */
#ifndef NR_ACL_WAIT_H
#define NR_ACL_WAIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { NR_FOREVER = -1 }; /* a timeout */

/* Nanoseconds on a clock that never goes back. */
int64_t nr_now(void);

/* On that clock, when a wait that begins now and lasts at most timeout_ms milliseconds, or NR_FOREVER, has to end. */
int64_t nr_deadline(int32_t timeout_ms);

/* A condition variable for nr_sleep. */
void nr_condition_init(pthread_cond_t *condition);

/* Sleeps until the condition is signalled, or for no reason at all. False, at once, when the deadline has passed. */
bool nr_sleep(pthread_cond_t *condition, pthread_mutex_t *lock, int64_t deadline);

#endif
