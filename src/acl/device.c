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

/* What NORMROPE_DEVICES may name, in the order of a program that does not set it. */
static const struct { const char *name, *soc; } known[] = {{"cpu", "CPU"}};
enum { KNOWN = sizeof known / sizeof *known };

typedef struct device {
  int known;
  void *context; /* the default one, a handle; NULL while the device is not set */
  int64_t set;   /* aclrtSetDevice without its aclrtResetDevice */
} device;

static device devices[KNOWN];
static int32_t device_count;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards context and set */

static void add_device(const char *name, size_t length) {
  for (int k = 0; k < KNOWN; k++)
    if (strlen(known[k].name) == length && memcmp(known[k].name, name, length) == 0) {
      for (int32_t i = 0; i < device_count; i++)
        if (devices[i].known == k)
          return;
      devices[device_count++].known = k;
      return;
    }
  if (nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("NORMROPE_DEVICES: this machine or build has no device \"%.*s\"", (int)length, name);
}

static void list_devices(void) {
  const char *list = getenv("NORMROPE_DEVICES");
  for (const char *at = list ? list : ""; *at;) {
    at += strspn(at, ", \t");
    size_t length = strcspn(at, ", \t");
    if (length)
      add_device(at, length);
    at += length;
  }
  if (device_count)
    return;
  if (list && nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("NORMROPE_DEVICES=%s: no usable device, so cpu", list);
  add_device("cpu", 3);
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
  int32_t id = nr_context_current_device();
  nr_device_count();
  return known[devices[id < 0 ? 0 : id].known].soc;
}
