#include "acl/event.h"

#include <stdatomic.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/context.h"
#include "acl/device.h"
#include "acl/handle.h"
#include "acl/stream.h"
#include "acl/wait.h"
#include "base/alloc.h"
#include "cuda/runtime.h"

#define FLAGS (ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE)

/* One aclrtRecordEvent: an event names its latest; a stream that waits holds the one that was current when it was told
   to, whatever becomes of the event. */
typedef struct record {
  atomic_int references;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  atomic_bool reached; /* true once the stream got there; changes under lock */
  int64_t time;        /* nr_now() then; written before `reached` */
} record;

typedef struct event {
  void *handle;
  const void *context; /* its handle */
  uint32_t flags;
  int32_t cuda; /* CUDA's number of the context's device, or -1 */
  void *mark;   /* cudaEvent_t there, NULL on the CPU */
  pthread_mutex_t lock;
  record *current; /* NULL: not recorded; guarded by lock */
  bool recorded;   /* the same on a CUDA device */
} event;

/* ---- Records ---- */

static void record_release(void *object) {
  record *r = object;
  if (!r || atomic_fetch_sub(&r->references, 1) != 1)
    return;
  pthread_cond_destroy(&r->changed);
  pthread_mutex_destroy(&r->lock);
  nr_free(r);
}

/* With one reference. */
static record *record_new(void) {
  record *r = nr_calloc(1, sizeof *r);
  if (!r)
    return NULL;
  atomic_init(&r->references, 1);
  pthread_mutex_init(&r->lock, NULL);
  nr_condition_init(&r->changed);
  return r;
}

static bool record_reached(const record *r) { return atomic_load_explicit(&r->reached, memory_order_acquire); }

static int record_reach(void *object) {
  record *r = object;
  pthread_mutex_lock(&r->lock);
  r->time = nr_now();
  atomic_store_explicit(&r->reached, true, memory_order_release);
  pthread_cond_broadcast(&r->changed);
  pthread_mutex_unlock(&r->lock);
  return ACL_SUCCESS;
}

static int record_wait(void *object) {
  record *r = object;
  pthread_mutex_lock(&r->lock);
  while (!record_reached(r))
    nr_sleep(&r->changed, &r->lock, nr_deadline(NR_FOREVER));
  pthread_mutex_unlock(&r->lock);
  return ACL_SUCCESS;
}

/* ---- Events ---- */

static void destroy(void *object) {
  event *e = object;
  record_release(e->current);
  if (e->mark)
    nr_cuda->event_free(e->cuda, e->mark);
  pthread_mutex_destroy(&e->lock);
  nr_free(e);
}

static aclError acquire(aclrtEvent handle, event **e) {
  *e = nr_handle_acquire(NR_HANDLE_EVENT, handle);
  return *e ? ACL_SUCCESS : nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "event %p: no living event", handle);
}

static void release(event *e) { nr_handle_release(e->handle); }

static aclError acquire_both(aclrtEvent handle, aclrtStream stream, event **e, nr_stream **s) {
  aclError error = acquire(handle, e);
  if (error != ACL_SUCCESS)
    return error;
  error = nr_stream_resolve(stream, s);
  void *queue;
  if (error == ACL_SUCCESS && (nr_stream_cuda(*s, &queue) >= 0) != ((*e)->cuda >= 0)) {
    nr_stream_release(*s);
    error = nr_acl_fail(ACL_ERROR_RT_INVALID_DEVICEID, "event %p: of %s, expected one of the stream's device", handle,
                        (*e)->cuda >= 0 ? "a CUDA device" : "the CPU");
  }
  if (error != ACL_SUCCESS)
    release(*e);
  return error;
}

/* ---- On a CUDA device ---- */

static aclError of_cuda(nr_status status) {
  return status == NR_OK ? ACL_SUCCESS : nr_acl_fail(ACL_ERROR_RT_FAILURE, "%s", nr_last_error());
}

static bool is_recorded(event *e) {
  pthread_mutex_lock(&e->lock);
  bool recorded = e->recorded;
  pthread_mutex_unlock(&e->lock);
  return recorded;
}

/* Records, or forgets: streams that were told to wait hold what was recorded then. */
static aclError mark(event *e, nr_stream *s, bool recorded) {
  void *queue;
  int32_t cuda = nr_stream_cuda(s, &queue);
  pthread_mutex_lock(&e->lock);
  aclError error = recorded ? of_cuda(nr_cuda->event_record(cuda, e->mark, queue)) : ACL_SUCCESS;
  if (error == ACL_SUCCESS)
    e->recorded = recorded;
  pthread_mutex_unlock(&e->lock);
  return error;
}

static aclError await(event *e, nr_stream *s) {
  void *queue;
  int32_t cuda = nr_stream_cuda(s, &queue);
  return is_recorded(e) ? of_cuda(nr_cuda->stream_wait(cuda, queue, e->mark)) : ACL_SUCCESS;
}

/* Recorded, and the stream has got there. */
static aclError is_reached(event *e, bool *reached) {
  nr_status status = NR_OK;
  *reached = is_recorded(e) && nr_cuda->event_done(e->cuda, e->mark, &status);
  return of_cuda(status);
}

/* acquire_both's references go back. */
static aclError done_with(event *e, nr_stream *s, aclError error) {
  nr_stream_release(s);
  release(e);
  return error;
}

/* The current record with a reference, or NULL. */
static record *current_record(event *e) {
  pthread_mutex_lock(&e->lock);
  record *r = e->current;
  if (r)
    atomic_fetch_add(&r->references, 1);
  pthread_mutex_unlock(&e->lock);
  return r;
}

void nr_event_retire_all(const void *context) {
  uint32_t cursor = 0;
  for (void *handle; (handle = nr_handle_next(NR_HANDLE_EVENT, &cursor));) {
    event *e = nr_handle_acquire(NR_HANDLE_EVENT, handle);
    if (!e)
      continue;
    if (e->context == context)
      nr_handle_retire(NR_HANDLE_EVENT, handle);
    nr_handle_release(handle);
  }
}

aclError aclrtCreateEvent(aclrtEvent *created) {
  return aclrtCreateEventWithFlag(created, ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE);
}

aclError aclrtCreateEventWithFlag(aclrtEvent *created, uint32_t flag) {
  if (!created)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateEvent: event is null");
  if (flag == 0 || (flag & ~FLAGS))
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateEventWithFlag: flag 0x%x, expected ACL_EVENT flags", flag);
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error != ACL_SUCCESS)
    return error;
  event *e = nr_calloc(1, sizeof *e);
  void *handle = NULL;
  if (e) {
    e->context = context->handle;
    e->flags = flag;
    e->cuda = nr_device_cuda(context->device);
    pthread_mutex_init(&e->lock, NULL);
    if (e->cuda >= 0 && !(e->mark = nr_cuda->event_new(e->cuda, flag & ACL_EVENT_TIME_LINE))) {
      error = nr_acl_fail(ACL_ERROR_BAD_ALLOC, "event: %s", nr_last_error());
      destroy(e);
    } else {
      error = nr_context_adopt(context, NR_HANDLE_EVENT, e, destroy, &e->handle, &handle);
    }
  } else {
    error = nr_acl_fail(ACL_ERROR_BAD_ALLOC, "event: out of memory");
  }
  nr_context_release(context);
  if (error == ACL_SUCCESS)
    *created = handle;
  return error;
}

aclError aclrtDestroyEvent(aclrtEvent handle) {
  if (!nr_handle_retire(NR_HANDLE_EVENT, handle))
    return nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "aclrtDestroyEvent: %p is no living event", handle);
  return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  event *e;
  nr_stream *s;
  aclError error = acquire_both(handle, stream, &e, &s);
  if (error != ACL_SUCCESS)
    return error;
  if (e->mark)
    return done_with(e, s, mark(e, s, true));
  record *r = record_new(), *old = r;
  if (r) {
    atomic_store(&r->references, 2); /* the task's and the event's */
    pthread_mutex_lock(&e->lock);    /* over the push, so that the latest record is the one pushed last */
    error = nr_stream_push(s, record_reach, record_release, r, NR_AT_ONCE);
    if (error == ACL_SUCCESS) {
      old = e->current;
      e->current = r;
    } else {
      atomic_store(&r->references, 1);
    }
    pthread_mutex_unlock(&e->lock);
    record_release(old);
  } else {
    error = nr_acl_fail(ACL_ERROR_BAD_ALLOC, "aclrtRecordEvent: out of memory");
  }
  nr_stream_release(s);
  release(e);
  return error;
}

typedef struct reset {
  event *event;   /* with a reference */
  record *record; /* what to forget, with a reference; may be NULL */
} reset;

static int reset_run(void *object) {
  reset *t = object;
  pthread_mutex_lock(&t->event->lock);
  record *forgotten = t->event->current == t->record ? t->record : NULL;
  if (forgotten)
    t->event->current = NULL;
  pthread_mutex_unlock(&t->event->lock);
  record_release(forgotten);
  return ACL_SUCCESS;
}

static void reset_drop(void *object) {
  reset *t = object;
  record_release(t->record);
  release(t->event);
  nr_free(t);
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream) {
  event *e;
  nr_stream *s;
  aclError error = acquire_both(handle, stream, &e, &s);
  if (error != ACL_SUCCESS)
    return error;
  if (e->mark)
    return done_with(e, s, mark(e, s, false));
  reset *t = nr_calloc(1, sizeof *t);
  if (t) {
    t->event = e;
    t->record = current_record(e);
    error = nr_stream_push(s, reset_run, reset_drop, t, NR_AT_ONCE);
    if (error != ACL_SUCCESS)
      reset_drop(t);
  } else {
    error = nr_acl_fail(ACL_ERROR_BAD_ALLOC, "aclrtResetEvent: out of memory");
    release(e);
  }
  nr_stream_release(s);
  return error;
}

aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  event *e;
  nr_stream *s;
  aclError error = acquire_both(handle, stream, &e, &s);
  if (error != ACL_SUCCESS)
    return error;
  if (e->mark)
    return done_with(e, s, await(e, s));
  record *r = current_record(e);
  if (!r || record_reached(r) || (error = nr_stream_push(s, record_wait, record_release, r, NR_AT_ONCE)) != ACL_SUCCESS)
    record_release(r);
  nr_stream_release(s);
  release(e);
  return error;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus *status) {
  if (!status)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventStatus: status is null");
  event *e;
  aclError error = acquire(handle, &e);
  if (error != ACL_SUCCESS)
    return error;
  record *r = current_record(e);
  bool reached = r && record_reached(r);
  if (e->mark)
    error = is_reached(e, &reached);
  *status = reached ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  record_release(r);
  release(e);
  return error;
}

aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  event *e;
  aclError error = acquire(handle, &e);
  if (error != ACL_SUCCESS)
    return error;
  if (e->mark && is_recorded(e))
    error = of_cuda(nr_cuda->event_synchronize(e->cuda, e->mark));
  record *r = current_record(e);
  release(e);
  if (r)
    record_wait(r);
  record_release(r);
  return error;
}

/* When the event's record was reached; on a CUDA device *time stays as it is. `which` is its name in the error text. */
static aclError event_time(event *e, const char *which, int64_t *time) {
  record *r = current_record(e);
  bool recorded = e->mark ? is_recorded(e) : r != NULL, reached = r && record_reached(r);
  aclError error = e->mark ? is_reached(e, &reached) : ACL_SUCCESS;
  if (!(e->flags & ACL_EVENT_TIME_LINE))
    error = nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: %s has no ACL_EVENT_TIME_LINE", which);
  else if (error == ACL_SUCCESS && !reached)
    error = nr_acl_fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "aclrtEventElapsedTime: %s is %s", which,
                        recorded ? "recorded, but the stream has not got there" : "not recorded");
  else if (r && reached)
    *time = r->time;
  record_release(r);
  return error;
}

/* Between two events that have been reached, at `start` and `end` where they are the CPU's. */
static aclError elapsed(float *ms, const event *first, const event *second, int64_t start, int64_t end) {
  if (first->cuda != second->cuda)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: events of two devices");
  *ms = (float)((double)(end - start) / 1e6);
  aclError error = first->mark ? of_cuda(nr_cuda->event_elapsed(first->cuda, ms, first->mark, second->mark)) : 0;
  if (error == ACL_SUCCESS && *ms < 0)
    return nr_acl_fail(ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL, "aclrtEventElapsedTime: endEvent %g ms before startEvent",
                       -(double)*ms);
  return error;
}

aclError aclrtEventElapsedTime(float *ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  if (!ms)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: ms is null");
  event *first, *second = NULL;
  int64_t start = 0, end = 0;
  aclError error = acquire(startEvent, &first);
  if (error != ACL_SUCCESS)
    return error;
  error = event_time(first, "startEvent", &start);
  if (error == ACL_SUCCESS)
    error = acquire(endEvent, &second);
  if (error == ACL_SUCCESS)
    error = event_time(second, "endEvent", &end);
  if (error == ACL_SUCCESS)
    error = elapsed(ms, first, second, start, end);
  if (second)
    release(second);
  release(first);
  return error;
}
