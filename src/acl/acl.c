#include "acl/acl.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "acl/acl_error.h"
#include "acl/device.h"
#include "acl/memory.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool initialised, finalised; /* guarded by lock */

static bool readable(const char *path) {
  FILE *file = fopen(path, "re");
  bool read = file && (fgetc(file) != EOF || !ferror(file)); /* a folder opens, but does not read */
  if (file)
    fclose(file);
  return read;
}

aclError aclInit(const char *configPath) {
  pthread_mutex_lock(&lock);
  aclError error = ACL_SUCCESS;
  if (initialised)
    error = nr_acl_fail(ACL_ERROR_REPEAT_INITIALIZE, "aclInit: initialised already");
  else if (configPath && *configPath && !readable(configPath))
    error = nr_acl_fail(ACL_ERROR_INVALID_FILE, "aclInit: cannot read %s", configPath);
  else
    initialised = true;
  pthread_mutex_unlock(&lock);
  return error;
}

aclError aclFinalize(void) {
  pthread_mutex_lock(&lock);
  aclError error = ACL_SUCCESS;
  if (!initialised)
    error = finalised ? nr_acl_fail(ACL_ERROR_REPEAT_FINALIZE, "aclFinalize: finalised already")
                      : nr_acl_fail(ACL_ERROR_UNINITIALIZE, "aclFinalize: aclInit was not called");
  if (error == ACL_SUCCESS) {
    nr_device_release_all();
    nr_memory_release(NR_HOST);
    initialised = false;
    finalised = true;
  }
  pthread_mutex_unlock(&lock);
  return error;
}
