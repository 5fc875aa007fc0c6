#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/bench.h"

/* The first line of a small file of the system's, without its end; false if there is none. */
static bool read_line(const char *path, char *text, size_t size) {
  FILE *file = fopen(path, "re");
  bool got = file && fgets(text, (int)size, file);
  if (file)
    fclose(file);
  if (got)
    text[strcspn(text, "\n")] = 0;
  return got;
}

static json_t *processor_name(void) {
  char line[512];
  json_t *name = NULL;
  FILE *file = fopen("/proc/cpuinfo", "re");
  while (file && !name && fgets(line, sizeof line, file))
    if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
      line[strcspn(line, "\n")] = 0;
      name = json_string(strchr(line, ':') + 1 + strspn(strchr(line, ':') + 1, " "));
    }
  if (file)
    fclose(file);
  return name;
}

/* One cache of processor 0: its level, what it holds, its size as the system writes it ("1024K") and who shares it. */
static json_t *cache_json(int index) {
  static const char *const fields[] = {"level", "type", "size", "shared_cpu_list"};
  json_t *cache = json_object();
  for (int i = 0; i < 4; i++) {
    char path[128], text[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, fields[i]);
    if (read_line(path, text, sizeof text))
      json_object_set_new(cache, fields[i], json_string(text));
  }
  if (json_object_size(cache))
    return cache;
  json_decref(cache);
  return NULL;
}

json_t *nr_bench_machine(void) {
  json_t *machine = json_object(), *caches = json_array(), *name = processor_name();
  struct utsname system;
  char text[128];
  if (name)
    json_object_set_new(machine, "cpu", name);
  json_object_set_new(machine, "processors", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
  json_object_set_new(machine, "memory_bytes",
                      json_integer((json_int_t)sysconf(_SC_PHYS_PAGES) * (json_int_t)sysconf(_SC_PAGESIZE)));
  for (int i = 0; i < 16; i++) {
    json_t *cache = cache_json(i);
    if (cache)
      json_array_append_new(caches, cache);
  }
  json_object_set_new(machine, "caches", caches);
  if (uname(&system) == 0) {
    json_object_set_new(machine, "system", json_sprintf("%s %s", system.sysname, system.release));
    json_object_set_new(machine, "architecture", json_string(system.machine));
  }
  if (read_line("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text))
    json_object_set_new(machine, "transparent_huge_pages", json_string(text));
  return machine;
}
