#include "acl/stream.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "acl/acl_error.h"
#include "acl/context.h"
#include "acl/device.h"
#include "acl/handle.h"
#include "acl/wait.h"
#include "base/alloc.h"
#include "base/verbose.h"
#include "cuda/runtime.h"

enum { FIRST_CAPACITY = 64, MAX_FLAGS = 0x3F };

/* Of any task, so that their number is bounded too. */
static const double least_worth = (double)NR_AT_ONCE / FIRST_CAPACITY;

typedef struct task {
  int (*run)(void *);
  void (*drop)(void *);
  void *argument;
} task;

/*
 * One thread at a time runs tasks: the worker, which sleeps until it is worth waking and then runs all that is queued;
 * or, while only work below that is queued, a thread that waits for its end and has nothing else to do.
 */
struct nr_stream {
  void *handle;
  const void *context; /* its handle */
  int32_t device;
  int32_t cuda; /* CUDA's number of it, or -1: then all but `queue` is of use, else nothing else */
  void *queue;  /* cudaStream_t */
  pthread_t worker;
  pthread_mutex_t lock;      /* guards all below */
  pthread_cond_t work, done; /* signalled when the worker has reason to run, when threads that wait do */
  task *ring;                /* task i is ring[i & (capacity - 1)] for finished <= i < pushed */
  uint64_t capacity;         /* a power of two */
  uint64_t pushed, finished;
  uint64_t wanted;  /* while finished < wanted the worker is to run tasks, else whoever waits */
  uint64_t awaited; /* the least `finished` that a thread sleeps for; of no meaning once it is reached */
  double worth;     /* at least that of the queued tasks from `wanted` on; below NR_AT_ONCE */
  bool running;     /* some thread is at task `finished` */
  bool closing;
  aclError error; /* the first since the last synchronisation */
  char text[NR_ACL_TEXT];
};

/* Runs the next task, which there is and no thread is at. Called with the lock, which is let go meanwhile. */
static void run_next(nr_stream *s) {
  task t = s->ring[s->finished & (s->capacity - 1)];
  s->running = true;
  pthread_mutex_unlock(&s->lock);
  char callers[NR_ACL_TEXT], text[NR_ACL_TEXT];
  nr_acl_take_text(callers);
  aclError error = t.run(t.argument);
  if (error != ACL_SUCCESS)
    nr_acl_take_text(text);
  nr_acl_put_text(callers);
  if (t.drop)
    t.drop(t.argument);
  pthread_mutex_lock(&s->lock);
  s->running = false;
  if (error != ACL_SUCCESS && s->error == ACL_SUCCESS) {
    s->error = error;
    memcpy(s->text, text, sizeof text);
  }
  s->finished++;
  if (s->finished == s->awaited || s->finished >= s->wanted)
    pthread_cond_broadcast(&s->done);
  if (s->finished < s->wanted)
    pthread_cond_signal(&s->work); /* it may have become wanted while another thread was running this task */
}

static void *work(void *object) {
  nr_stream *s = object;
  pthread_mutex_lock(&s->lock);
  do {
    while (s->running || (s->finished >= s->wanted && !s->closing))
      pthread_cond_wait(&s->work, &s->lock);
    while (s->finished < s->pushed)
      run_next(s);
  } while (!s->closing);
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

/* Waits until `target` tasks are finished, running those that the worker is not woken for. Called with the lock, which
   is let go meanwhile. False on time-out. */
static bool wait_for(nr_stream *s, uint64_t target, int32_t timeout_ms) {
  int64_t deadline = nr_deadline(timeout_ms);
  while (s->finished < target)
    if (!s->running && s->finished >= s->wanted) {
      run_next(s);
    } else {
      if (s->awaited <= s->finished || s->awaited > target)
        s->awaited = target;
      if (!nr_sleep(&s->done, &s->lock, deadline))
        return false;
    }
  return true;
}

/* Starts the worker with all signals blocked: they are the program's business. */
static bool start(nr_stream *s) {
  sigset_t all, before;
  sigfillset(&all);
  if (nr_fault() || pthread_sigmask(SIG_SETMASK, &all, &before) != 0)
    return false;
  bool started = pthread_create(&s->worker, NULL, work, s) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}

static void free_stream(nr_stream *s) {
  pthread_cond_destroy(&s->done);
  pthread_cond_destroy(&s->work);
  pthread_mutex_destroy(&s->lock);
  nr_free(s->ring);
  nr_free(s);
}

static void destroy(void *object) {
  nr_stream *s = object;
  if (s->cuda >= 0) {
    nr_cuda->stream_free(s->cuda, s->queue);
    nr_free(s);
    return;
  }
  pthread_mutex_lock(&s->lock);
  s->closing = true;
  pthread_cond_signal(&s->work);
  pthread_mutex_unlock(&s->lock);
  pthread_join(s->worker, NULL);
  if (s->error != ACL_SUCCESS && nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("stream %p: destroyed with an unread failure, %d: %s", s->handle, s->error, s->text);
  free_stream(s);
}

static aclError create(const nr_context *context, void **handle) {
  *handle = NULL;
  nr_stream *s = nr_calloc(1, sizeof *s);
  if (!s)
    return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "stream: out of memory");
  s->context = context->handle;
  s->device = context->device;
  s->cuda = nr_device_cuda(s->device);
  if (s->cuda >= 0) {
    s->queue = nr_cuda->stream_new(s->cuda);
    if (s->queue)
      return nr_context_adopt(context, NR_HANDLE_STREAM, s, destroy, &s->handle, handle);
    nr_free(s);
    return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "stream: %s", nr_last_error());
  }
  s->capacity = FIRST_CAPACITY;
  s->ring = nr_calloc(FIRST_CAPACITY, sizeof *s->ring);
  pthread_mutex_init(&s->lock, NULL);
  nr_condition_init(&s->work);
  nr_condition_init(&s->done);
  if (s->ring && start(s))
    return nr_context_adopt(context, NR_HANDLE_STREAM, s, destroy, &s->handle, handle);
  const char *missing = s->ring ? "no thread" : "out of memory";
  free_stream(s);
  return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "stream: %s", missing);
}

static aclError default_stream(nr_context *context, void **handle) {
  *handle = atomic_load_explicit(&context->default_stream, memory_order_acquire);
  if (*handle)
    return ACL_SUCCESS;
  pthread_mutex_lock(&context->lock);
  aclError error = ACL_SUCCESS;
  *handle = atomic_load_explicit(&context->default_stream, memory_order_relaxed);
  if (!*handle)
    error = create(context, handle);
  atomic_store_explicit(&context->default_stream, *handle, memory_order_release);
  pthread_mutex_unlock(&context->lock);
  return error;
}

/* nr_stream_resolve within a known context. */
static aclError resolve(nr_context *context, aclrtStream stream, nr_stream **resolved) {
  aclError error = stream ? ACL_SUCCESS : default_stream(context, &stream);
  if (error != ACL_SUCCESS)
    return error;
  nr_stream *s = nr_handle_acquire(NR_HANDLE_STREAM, stream);
  if (!s)
    return nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "stream %p: no living stream", stream);
  if (s->context == context->handle) {
    *resolved = s;
    return ACL_SUCCESS;
  }
  int32_t device = s->device;
  nr_stream_release(s);
  if (device != context->device)
    return nr_acl_fail(ACL_ERROR_RT_INVALID_DEVICEID, "stream %p: of device %d, the current context is of device %d",
                       stream, (int)device, (int)context->device);
  return nr_acl_fail(ACL_ERROR_RT_STREAM_CONTEXT, "stream %p: of another context than the current one", stream);
}

aclError nr_stream_resolve(aclrtStream stream, nr_stream **resolved) {
  *resolved = NULL;
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error != ACL_SUCCESS)
    return error;
  error = resolve(context, stream, resolved);
  nr_context_release(context);
  return error;
}

void nr_stream_release(nr_stream *stream) { nr_handle_release(stream->handle); }

int32_t nr_stream_cuda(const nr_stream *s, void **queue) {
  *queue = s->queue;
  return s->cuda;
}

/* Doubles the ring; called with the lock. */
static bool grow(nr_stream *s) {
  task *ring = nr_calloc(s->capacity * 2, sizeof *ring);
  if (!ring)
    return false;
  for (uint64_t i = s->finished; i < s->pushed; i++)
    ring[i & (s->capacity * 2 - 1)] = s->ring[i & (s->capacity - 1)];
  nr_free(s->ring);
  s->ring = ring;
  s->capacity *= 2;
  return true;
}

aclError nr_stream_push(nr_stream *s, int (*run)(void *), void (*drop)(void *), void *argument, double worth) {
  pthread_mutex_lock(&s->lock);
  uint64_t waiting = s->pushed - s->finished;
  bool room = waiting < s->capacity || grow(s);
  if (room) {
    s->ring[s->pushed++ & (s->capacity - 1)] = (task){run, drop, argument};
    s->worth = (waiting ? s->worth : 0) + (worth > least_worth ? worth : least_worth);
  }
  bool wake = room && s->worth >= NR_AT_ONCE;
  if (wake) {
    s->worth = 0;
    s->wanted = s->pushed;
  }
  pthread_mutex_unlock(&s->lock);
  if (wake)
    pthread_cond_signal(&s->work);
  return room ? ACL_SUCCESS
              : nr_acl_fail(ACL_ERROR_BAD_ALLOC, "stream: no memory for %llu queued tasks",
                            (unsigned long long)waiting + 1);
}

/* `synchronize` on a CUDA device, which has no waiting with an end: looks again and again. */
static bool synchronize_cuda(nr_stream *s, int32_t timeout_ms, aclError *error) {
  int64_t deadline = nr_deadline(timeout_ms);
  nr_status status;
  bool finished = true;
  if (timeout_ms == NR_FOREVER)
    status = nr_cuda->stream_synchronize(s->cuda, s->queue);
  else
    while (!(finished = nr_cuda->stream_done(s->cuda, s->queue, &status)) && nr_now() < deadline)
      nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
  *error = status == NR_OK ? ACL_SUCCESS : nr_acl_fail(ACL_ERROR_RT_FAILURE, "%s", nr_last_error());
  return finished;
}

/* Waits for what is queued; *error is then the failure to report, with its text set. False on time-out. */
static bool synchronize(nr_stream *s, int32_t timeout_ms, aclError *error) {
  char text[NR_ACL_TEXT];
  *error = ACL_SUCCESS;
  if (s->cuda >= 0)
    return synchronize_cuda(s, timeout_ms, error);
  pthread_mutex_lock(&s->lock);
  bool finished = wait_for(s, s->pushed, timeout_ms);
  if (finished && s->error != ACL_SUCCESS) {
    *error = s->error;
    memcpy(text, s->text, sizeof text);
    s->error = ACL_SUCCESS;
  }
  pthread_mutex_unlock(&s->lock);
  if (*error != ACL_SUCCESS)
    nr_acl_fail(*error, "%s", text[0] ? text : "queued work failed");
  return finished;
}

/* Retires a stream, with a reference, and waits for its work: another thread may hold a reference too and outlive this
   call, but the work may not, since memory is next to go. False if it was retired already. */
static bool retire(nr_stream *s) {
  if (!nr_handle_retire(NR_HANDLE_STREAM, s->handle))
    return false;
  if (s->cuda >= 0) {
    nr_cuda->stream_synchronize(s->cuda, s->queue);
    return true;
  }
  pthread_mutex_lock(&s->lock);
  wait_for(s, s->pushed, NR_FOREVER);
  pthread_mutex_unlock(&s->lock);
  return true;
}

void nr_stream_retire_all(const void *context) {
  uint32_t cursor = 0;
  for (void *handle; (handle = nr_handle_next(NR_HANDLE_STREAM, &cursor));) {
    nr_stream *s = nr_handle_acquire(NR_HANDLE_STREAM, handle);
    if (!s)
      continue;
    if (s->context == context)
      retire(s);
    nr_handle_release(handle);
  }
}

aclError nr_stream_synchronize_device(int32_t device) {
  uint32_t cursor = 0;
  aclError first = ACL_SUCCESS;
  char text[NR_ACL_TEXT];
  for (void *handle; (handle = nr_handle_next(NR_HANDLE_STREAM, &cursor));) {
    nr_stream *s = nr_handle_acquire(NR_HANDLE_STREAM, handle);
    if (!s)
      continue;
    aclError error = ACL_SUCCESS;
    if (s->device == device)
      synchronize(s, NR_FOREVER, &error);
    if (error != ACL_SUCCESS && first == ACL_SUCCESS) {
      first = error;
      nr_acl_take_text(text);
    }
    nr_handle_release(handle);
  }
  return first == ACL_SUCCESS ? ACL_SUCCESS : nr_acl_fail(first, "%s", text);
}

aclError aclrtCreateStream(aclrtStream *stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag) {
  (void)priority;
  if (!stream)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateStream: stream is null");
  if (flag > MAX_FLAGS)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateStreamWithConfig: flag 0x%x, expected ACL_STREAM flags",
                       flag);
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error != ACL_SUCCESS)
    return error;
  void *handle;
  error = create(context, &handle);
  nr_context_release(context);
  if (error == ACL_SUCCESS)
    *stream = handle;
  return error;
}

aclError aclrtDestroyStream(aclrtStream stream) {
  nr_stream *s = nr_handle_acquire(NR_HANDLE_STREAM, stream);
  bool retired = s && retire(s);
  if (s)
    nr_handle_release(stream);
  if (!retired)
    return nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "aclrtDestroyStream: %p is no living stream", stream);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeStream(aclrtStream stream) { return aclrtSynchronizeStreamWithTimeout(stream, NR_FOREVER); }

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
  if (timeout < NR_FOREVER)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM,
                       "aclrtSynchronizeStreamWithTimeout: timeout %d ms, expected -1 (for "
                       "ever) or more",
                       (int)timeout);
  nr_stream *s;
  aclError error = nr_stream_resolve(stream, &s);
  if (error != ACL_SUCCESS)
    return error;
  bool finished = synchronize(s, timeout, &error);
  nr_stream_release(s);
  if (!finished)
    return nr_acl_fail(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "stream %p: work left after %d ms", stream, (int)timeout);
  return error;
}

aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
  if (!status)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtStreamQuery: status is null");
  nr_stream *s;
  aclError error = nr_stream_resolve(stream, &s);
  if (error != ACL_SUCCESS)
    return error;
  bool finished;
  if (s->cuda >= 0) {
    finished = synchronize_cuda(s, 0, &error);
  } else {
    pthread_mutex_lock(&s->lock);
    finished = wait_for(s, s->pushed, 0);
    pthread_mutex_unlock(&s->lock);
  }
  *status = finished ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  nr_stream_release(s);
  return error;
}
