#include "base/verbose.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const levels[] = {"none", "error", "dispatch", "profile"};

nr_verbosity nr_verbose(void) {
  static atomic_int cached = -1;
  int level = atomic_load_explicit(&cached, memory_order_relaxed);
  if (level >= 0)
    return (nr_verbosity)level;
  const char *wanted = getenv("NORMROPE_VERBOSE");
  level = NR_QUIET;
  for (int i = 0; wanted && i < (int)(sizeof levels / sizeof *levels); i++)
    if (strcmp(wanted, levels[i]) == 0)
      level = i;
  atomic_store_explicit(&cached, level, memory_order_relaxed);
  return (nr_verbosity)level;
}

void nr_say(const char *format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "normrope: %s\n", line);
}
