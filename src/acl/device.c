#include "acl/device.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/context.h"
#include "acl/memory.h"
#include "acl/stream.h"
#include "base/verbose.h"
#include "cuda/runtime.h"

enum { CPU = -1, MAX_DEVICES = 65 };

typedef struct device {
  int32_t cuda;  /* CUDA's number, or CPU */
  void *context; /* the default one, a handle; NULL while the device is not set */
  int64_t set;   /* aclrtSetDevice without its aclrtResetDevice */
} device;

static device devices[MAX_DEVICES];
static int32_t device_count;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards context and set */

/* Unless it is there already. */
static void add_device(int32_t cuda) {
  for (int32_t i = 0; i < device_count; i++)
    if (devices[i].cuda == cuda)
      return;
  if (device_count < MAX_DEVICES)
    devices[device_count++].cuda = cuda;
}

static void add_cuda_devices(void) {
  for (int32_t i = 0; i < nr_cuda_count(); i++)
    add_device(i);
}

static bool is(const char *name, size_t length, const char *word) {
  return strlen(word) == length && memcmp(name, word, length) == 0;
}

/* The devices of one word of the list; false if there are none. */
static bool add_named(const char *name, size_t length) {
  char *end;
  if (is(name, length, "cpu")) {
    add_device(CPU);
    return true;
  }
  if (is(name, length, "cuda") && nr_cuda_count() > 0) {
    add_cuda_devices();
    return true;
  }
  if (length < sizeof "cuda:" || memcmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9')
    return false;
  long number = strtol(name + 5, &end, 10);
  if (end != name + length || number >= nr_cuda_count())
    return false;
  add_device((int32_t)number);
  return true;
}

static void list_devices(void) {
  const char *list = getenv("NORMROPE_DEVICES");
  for (const char *at = list ? list : ""; *at;) {
    at += strspn(at, ", \t");
    size_t length = strcspn(at, ", \t");
    if (length && !add_named(at, length) && nr_verbose() >= NR_VERBOSE_ERROR)
      nr_say("NORMROPE_DEVICES: this machine or build has no device \"%.*s\"", (int)length, at);
    at += length;
  }
  if (device_count)
    return;
  if (list && nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("NORMROPE_DEVICES=%s: no usable device, so cpu", list);
  add_device(CPU);
  if (!list)
    add_cuda_devices();
}

int32_t nr_device_count(void) {
  pthread_once(&once, list_devices);
  return device_count;
}

aclError nr_device_check(int32_t id) {
  int32_t count = nr_device_count();
  if (id >= 0 && id < count)
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_INVALID_DEVICE, "device %d, expected 0 to %d", (int)id, (int)count - 1);
}

int32_t nr_device_cuda(int32_t id) { return id >= 0 && id < nr_device_count() ? devices[id].cuda : CPU; }

/* Called with the lock. */
static void release(int32_t id) {
  devices[id].set = 0;
  devices[id].context = NULL;
  nr_context_retire_device(id);
  nr_memory_release(id);
}

void nr_device_release_all(void) {
  pthread_mutex_lock(&lock);
  for (int32_t id = 0; id < nr_device_count(); id++)
    release(id);
  pthread_mutex_unlock(&lock);
}

aclError aclrtGetDeviceCount(uint32_t *count) {
  if (!count)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetDeviceCount: count is null");
  *count = (uint32_t)nr_device_count();
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t deviceId) {
  aclError error = nr_device_check(deviceId);
  if (error != ACL_SUCCESS)
    return error;
  pthread_mutex_lock(&lock);
  device *d = &devices[deviceId];
  if (!d->context)
    error = nr_context_new(deviceId, true, &d->context);
  if (error == ACL_SUCCESS) {
    d->set++;
    nr_context_make_current(d->context);
  }
  pthread_mutex_unlock(&lock);
  return error;
}

aclError aclrtResetDevice(int32_t deviceId) {
  aclError error = nr_device_check(deviceId);
  if (error != ACL_SUCCESS)
    return error;
  pthread_mutex_lock(&lock);
  if (devices[deviceId].set <= 1)
    release(deviceId);
  else
    devices[deviceId].set--;
  pthread_mutex_unlock(&lock);
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t *deviceId) {
  if (!deviceId)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetDevice: deviceId is null");
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error == ACL_SUCCESS) {
    *deviceId = context->device;
    nr_context_release(context);
  }
  return error;
}

aclError aclrtSynchronizeDevice(void) {
  nr_context *context;
  aclError error = nr_context_current(&context);
  if (error != ACL_SUCCESS)
    return error;
  error = nr_stream_synchronize_device(context->device);
  nr_context_release(context);
  return error;
}

aclError aclrtGetRunMode(aclrtRunMode *runMode) {
  if (!runMode)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtGetRunMode: runMode is null");
  *runMode = ACL_HOST;
  return ACL_SUCCESS;
}

const char *aclrtGetSocName(void) {
  int32_t id = nr_context_current_device(), cuda = nr_device_cuda(id < 0 ? 0 : id);
  return cuda == CPU ? "CPU" : nr_cuda->name(cuda);
}
