/*
 * Streams. Those of a CUDA device are CUDA's. Those of the CPU device: a queue and a worker thread each. Tasks of one
 * stream run one after another in the order of their pushes, streams run side by side. Functions may be called from any
 * thread. Waking a worker takes longer than small tasks run: those stay queued, until more is or until a thread waits
 * for the stream, which then runs them itself.
 */
#ifndef NR_ACL_STREAM_H
#define NR_ACL_STREAM_H

#include "acl/acl_base.h"
#include "acl/acl_rt.h"

typedef struct nr_stream nr_stream;

/*
 * The stream that `stream` means on the calling thread: null is the default stream of the current context. On success
 * *resolved holds a reference, to be given back with nr_stream_release; else it is NULL, the error text is set, and the
 * code tells why:
 *   ACL_ERROR_RT_CONTEXT_NULL          the thread has no current context (or it was destroyed)
 *   ACL_ERROR_INVALID_RESOURCE_HANDLE  no living stream: stale, destroyed twice, or not a stream at all
 *   ACL_ERROR_RT_INVALID_DEVICEID      a stream of another device than the current context's
 *   ACL_ERROR_RT_STREAM_CONTEXT        a stream of another context on the same device
 *   ACL_ERROR_BAD_ALLOC                the default stream could not be made
 */
aclError nr_stream_resolve(aclrtStream stream, nr_stream **resolved);
void nr_stream_release(nr_stream *stream);

/* CUDA's number of the stream's device, and its cudaStream_t; -1 where that is the CPU. */
int32_t nr_stream_cuda(const nr_stream *stream, void **queue);

/*
 * Queues run(argument), in a stream of the CPU device; it is called once, followed by drop(argument) unless drop is
 * NULL. A result of run other than 0 is an aclError: the first one since the last synchronisation, with the text that
 * run left by nr_acl_fail, is what the next aclrtSynchronizeStream (or aclrtSynchronizeDevice) reports; the tasks
 * behind it run all the same. drop is called before a synchronisation that waits for this task returns. Neither may
 * push to, wait for or release a stream. On failure (ACL_ERROR_BAD_ALLOC) nothing is queued, neither is called and the
 * argument stays the caller's.
 *
 * worth: for how many workers it would pay to be woken for this task. The worker is once what waits adds up to
 * NR_AT_ONCE. A task below that may run on any thread that waits for the stream, so it must not wait for anything; one
 * whose end can be seen without waiting for the stream (a copy to host memory, an event) is of worth NR_AT_ONCE.
 */
enum { NR_AT_ONCE = 1 };
aclError nr_stream_push(nr_stream *stream, int (*run)(void *argument), void (*drop)(void *argument), void *argument,
                        double worth);

/* Retires the streams of a context (its handle). Their queued work finishes first. */
void nr_stream_retire_all(const void *context);

/* Waits for every stream of a device; the first failure of their tasks. */
aclError nr_stream_synchronize_device(int32_t device);

#endif
