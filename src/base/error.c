#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/verbose.h"

static _Thread_local char last_error[512];

nr_status nr_fail(nr_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  if (nr_verbose() >= NR_VERBOSE_ERROR)
    nr_say("%s: %s", nr_status_name(status), last_error);
  return status;
}

const char *nr_last_error(void) { return last_error; }

const char *nr_status_name(nr_status status) {
  switch (status) {
  case NR_OK: return "NR_OK";
  case NR_ERROR_NULL: return "NR_ERROR_NULL";
  case NR_ERROR_INVALID: return "NR_ERROR_INVALID";
  case NR_ERROR_UNSUPPORTED: return "NR_ERROR_UNSUPPORTED";
  case NR_ERROR_MEMORY: return "NR_ERROR_MEMORY";
  case NR_ERROR_DEVICE: return "NR_ERROR_DEVICE";
  }
  return "unknown status";
}
