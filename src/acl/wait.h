/* Clocks and waiting: what streams and events share. */
#ifndef NR_ACL_WAIT_H
#define NR_ACL_WAIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { NR_FOREVER = -1 }; /* a timeout */

/* Nanoseconds on a clock that never goes back. */
int64_t nr_now(void);

/* How many nanoseconds a spin at one place lasts at most. Start with NR_PATIENCE. */
typedef atomic_int nr_patience;
enum { NR_PATIENCE = 8000 };

/*
 * Busy-waits a short while for *counter >= target; true once it is. Waking a sleeping thread takes longer than a small
 * operator runs, so this pays where the other side runs on a processor of its own, and only there: where both share one
 * (the machine is busy), whoever spins keeps the other from working. So each success doubles the patience and each
 * failure halves it, between 1 and 50 microseconds; a process with one processor never spins.
 */
bool nr_spin_until(const atomic_uint_fast64_t *counter, uint64_t target, nr_patience *patience);

/* Sleeps until *counter >= target, at most timeout_ms milliseconds, for ever with NR_FOREVER; changes of *counter are
   made under `lock`, which is held here, and broadcast on `changed` (of nr_condition_init). False on time-out. */
bool nr_sleep_until(const atomic_uint_fast64_t *counter, uint64_t target, pthread_mutex_t *lock,
                    pthread_cond_t *changed, int32_t timeout_ms);

/* A condition variable for nr_sleep_until. */
void nr_condition_init(pthread_cond_t *condition);

#endif
