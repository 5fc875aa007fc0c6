#include "acl/event.h"

#include <stdatomic.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/context.h"
#include "acl/handle.h"
#include "acl/stream.h"
#include "acl/wait.h"
#include "base/alloc.h"

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
  pthread_mutex_t lock;
  record *current; /* NULL: not recorded; guarded by lock */
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
  if (error == ACL_SUCCESS && (error = nr_stream_resolve(stream, s)) != ACL_SUCCESS)
    release(*e);
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
    pthread_mutex_init(&e->lock, NULL);
    error = nr_context_adopt(context, NR_HANDLE_EVENT, e, destroy, &e->handle, &handle);
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
  *status = r && record_reached(r) ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  record_release(r);
  release(e);
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  event *e;
  aclError error = acquire(handle, &e);
  if (error != ACL_SUCCESS)
    return error;
  record *r = current_record(e);
  release(e);
  if (r)
    record_wait(r);
  record_release(r);
  return ACL_SUCCESS;
}

/* When the event's record was reached. `which` is its name in the error text. */
static aclError event_time(aclrtEvent handle, const char *which, int64_t *time) {
  event *e;
  aclError error = acquire(handle, &e);
  if (error != ACL_SUCCESS)
    return error;
  record *r = current_record(e);
  if (!(e->flags & ACL_EVENT_TIME_LINE))
    error = nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: %s has no ACL_EVENT_TIME_LINE", which);
  else if (!r || !record_reached(r))
    error = nr_acl_fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "aclrtEventElapsedTime: %s is %s", which,
                        r ? "recorded, but the stream has not got there" : "not recorded");
  else
    *time = r->time;
  record_release(r);
  release(e);
  return error;
}

aclError aclrtEventElapsedTime(float *ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  if (!ms)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: ms is null");
  int64_t start = 0, end = 0;
  aclError error = event_time(startEvent, "startEvent", &start);
  if (error == ACL_SUCCESS)
    error = event_time(endEvent, "endEvent", &end);
  if (error != ACL_SUCCESS)
    return error;
  if (end < start)
    return nr_acl_fail(ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL,
                       "aclrtEventElapsedTime: endEvent %lld ns before startEvent", (long long)(start - end));
  *ms = (float)((double)(end - start) / 1e6);
  return ACL_SUCCESS;
}
