#include "acl/context.h"

#include <limits.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/device.h"
#include "acl/event.h"
#include "acl/stream.h"
#include "base/alloc.h"
#include "cuda/runtime.h"

static _Thread_local void *current; /* a handle, perhaps stale: whoever uses it looks it up */
static atomic_llong process_option[NR_OPTIONS];
static const long long option_limit[NR_OPTIONS] = {3, 1, 1}; /* the greatest value of each aclSysParamOpt */

static void destroy(void *object) {
  nr_context *context = object;
  pthread_mutex_destroy(&context->lock);
  nr_free(context);
}

aclError nr_context_new(int32_t device, bool is_default, void **handle) {
  *handle = NULL;
  nr_context *context = nr_calloc(1, sizeof *context);
  if (!context)
    return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "context: out of memory");
  context->device = device;
  context->is_default = is_default;
  pthread_mutex_init(&context->lock, NULL);
  for (int i = 0; i < NR_OPTIONS; i++)
    atomic_init(&context->option[i], LLONG_MIN);
  *handle = nr_handle_new_known(NR_HANDLE_CONTEXT, context, destroy, &context->handle);
  if (*handle)
    return ACL_SUCCESS;
  destroy(context);
  return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "context: out of memory");
}

aclError nr_context_current(nr_context **context) {
  *context = nr_handle_acquire(NR_HANDLE_CONTEXT, current);
  if (*context)
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no current context: %s",
                     current ? "it was destroyed, or its device reset"
                             : "call aclrtSetDevice or aclrtSetCurrentContext");
}

void nr_context_release(nr_context *context) { nr_handle_release(context->handle); }

/* With it the device becomes CUDA's current one, for runs of the native interface. */
static void make_current(void *handle, int32_t device) {
  current = handle;
  if (nr_device_cuda(device) >= 0)
    nr_cuda->use(nr_device_cuda(device));
}

void nr_context_make_current(void *handle) {
  nr_context *context = nr_handle_acquire(NR_HANDLE_CONTEXT, handle);
  make_current(handle, context ? context->device : -1);
  if (context)
    nr_context_release(context);
}

int32_t nr_context_current_device(void) {
  nr_context *context = nr_handle_acquire(NR_HANDLE_CONTEXT, current);
  int32_t device = context ? context->device : -1;
  if (context)
    nr_context_release(context);
  return device;
}

aclError nr_context_adopt(const nr_context *context, nr_handle_kind kind, void *object, void (*destroy_object)(void *),
                          void **self, void **handle) {
  *handle = nr_handle_new_known(kind, object, destroy_object, self);
  if (!*handle) {
    destroy_object(object);
    return nr_acl_fail(ACL_ERROR_BAD_ALLOC, "out of memory");
  }
  /* Publish, then look whether the context lives; nr_context_retire retires it, then looks for what is published. The
     handle table is sequentially consistent, so at least one of the two sees the other. */
  if (nr_handle_acquire(NR_HANDLE_CONTEXT, context->handle)) {
    nr_handle_release(context->handle);
    return ACL_SUCCESS;
  }
  nr_handle_retire(kind, *handle);
  *handle = NULL;
  return nr_acl_fail(ACL_ERROR_RT_CONTEXT_NULL, "the context was destroyed by another thread");
}

bool nr_context_retire(void *handle) {
  if (!nr_handle_retire(NR_HANDLE_CONTEXT, handle))
    return false;
  nr_stream_retire_all(handle);
  nr_event_retire_all(handle);
  return true;
}

void nr_context_retire_device(int32_t device) {
  uint32_t cursor = 0;
  for (void *handle; (handle = nr_handle_next(NR_HANDLE_CONTEXT, &cursor));) {
    nr_context *context = nr_handle_acquire(NR_HANDLE_CONTEXT, handle);
    if (!context)
      continue;
    if (context->device == device)
      nr_context_retire(handle);
    nr_handle_release(handle);
  }
}

aclError aclrtCreateContext(aclrtContext *context, int32_t deviceId) {
  if (!context)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtCreateContext: context is null");
  if (nr_device_check(deviceId) != ACL_SUCCESS)
    return ACL_ERROR_INVALID_DEVICE;
  void *handle;
  aclError error = nr_context_new(deviceId, false, &handle);
  if (error == ACL_SUCCESS)
    nr_context_make_current(*context = handle);
  return error;
}

aclError aclrtDestroyContext(aclrtContext context) {
  nr_context *c = nr_handle_acquire(NR_HANDLE_CONTEXT, context);
  bool is_default = c && c->is_default;
  if (c)
    nr_handle_release(context);
  if (is_default)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtDestroyContext: a device's default context; aclrtResetDevice "
                                                "releases it");
  if (!nr_context_retire(context))
    return nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "aclrtDestroyContext: %p is no living context", context);
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  nr_context *c = nr_handle_acquire(NR_HANDLE_CONTEXT, context);
  if (!c)
    return nr_acl_fail(ACL_ERROR_INVALID_RESOURCE_HANDLE, "aclrtSetCurrentContext: %p is no living context", context);
  make_current(context, c->device);
  nr_handle_release(context);
  return ACL_SUCCESS;
}

aclError aclrtGetCurrentContext(aclrtContext *context) {
  if (!context)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetCurrentContext: context is null");
  nr_context *c;
  aclError error = nr_context_current(&c);
  if (error == ACL_SUCCESS) {
    *context = c->handle;
    nr_context_release(c);
  }
  return error;
}

static aclError check_option(aclSysParamOpt opt, const char *who) {
  if ((int)opt >= 0 && (int)opt < NR_OPTIONS)
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: option %d, expected 0 to %d", who, (int)opt, NR_OPTIONS - 1);
}

static aclError check_value(aclSysParamOpt opt, int64_t value, const char *who) {
  if (check_option(opt, who) != ACL_SUCCESS)
    return ACL_ERROR_INVALID_PARAM;
  if (value >= 0 && value <= option_limit[opt])
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: value %lld of option %d, expected 0 to %lld", who, (long long)value,
                     (int)opt, option_limit[opt]);
}

static aclError check_read(aclSysParamOpt opt, const int64_t *value, const char *who) {
  return value ? check_option(opt, who) : nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: value is null", who);
}

aclError aclrtSetSysParamOpt(aclSysParamOpt opt, int64_t value) {
  aclError error = check_value(opt, value, __func__);
  if (error == ACL_SUCCESS)
    atomic_store(&process_option[opt], value);
  return error;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt opt, int64_t *value) {
  aclError error = check_read(opt, value, __func__);
  if (error == ACL_SUCCESS)
    *value = atomic_load(&process_option[opt]);
  return error;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt opt, int64_t value) {
  aclError error = check_value(opt, value, __func__);
  nr_context *context;
  if (error != ACL_SUCCESS || (error = nr_context_current(&context)) != ACL_SUCCESS)
    return error;
  atomic_store(&context->option[opt], value);
  nr_context_release(context);
  return ACL_SUCCESS;
}

aclError aclrtCtxGetSysParamOpt(aclSysParamOpt opt, int64_t *value) {
  aclError error = check_read(opt, value, __func__);
  nr_context *context;
  if (error != ACL_SUCCESS || (error = nr_context_current(&context)) != ACL_SUCCESS)
    return error;
  long long own = atomic_load(&context->option[opt]);
  *value = own == LLONG_MIN ? atomic_load(&process_option[opt]) : own;
  nr_context_release(context);
  return ACL_SUCCESS;
}
