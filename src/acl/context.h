/* Contexts: what a thread's current device, default stream and options hang on. */
#ifndef NR_ACL_CONTEXT_H
#define NR_ACL_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "acl/acl_base.h"
#include "acl/handle.h"

enum { NR_OPTIONS = 3 }; /* values of aclSysParamOpt */

typedef struct nr_context {
  void *handle;
  int32_t device;
  bool is_default; /* made by aclrtSetDevice, gone with aclrtResetDevice */
  pthread_mutex_t lock;
  void *_Atomic default_stream;    /* a handle, NULL until first used; made under lock */
  atomic_llong option[NR_OPTIONS]; /* LLONG_MIN: as the process's */
} nr_context;

/* Makes a context; it becomes no thread's current one by that. BAD_ALLOC. */
aclError nr_context_new(int32_t device, bool is_default, void **handle);

/* The calling thread's current context with a reference (nr_context_release), or RT_CONTEXT_NULL. */
aclError nr_context_current(nr_context **context);
void nr_context_release(nr_context *context);
void nr_context_make_current(void *handle);

/* The current context's device, -1 without one (which is no failure here). */
int32_t nr_context_current_device(void);

/*
 * Gives `object`, made in `context`, its handle (nr_handle_new_known), unless the context is retired meanwhile.
 * On failure, RT_CONTEXT_NULL or BAD_ALLOC, the object is destroyed and *handle NULL.
 */
aclError nr_context_adopt(const nr_context *context, nr_handle_kind kind, void *object, void (*destroy)(void *object),
                          void **self, void **handle);

/* Retires a context, its streams (whose work finishes first) and its events. False if it was retired already. */
bool nr_context_retire(void *handle);

/* Retires all contexts of a device. */
void nr_context_retire_device(int32_t device);

#endif
