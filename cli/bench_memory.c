#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cli/bench.h"
#include "cli/generate.h"

enum { LINE = 64, PERIOD = 65521 /* prime, so that no two rows or shares are alike */ };

static size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

static size_t unit_of(size_t size) { return size < NR_HUGE_PAGE ? LINE : NR_HUGE_PAGE; }

/* A large block after a small one skips to the next boundary. */
size_t nr_bench_room(size_t size) {
  return size < NR_HUGE_PAGE ? round_up(size, LINE) : round_up(size, NR_HUGE_PAGE) + NR_HUGE_PAGE;
}

/* A number of KiB after `key` in a file of the system's, in bytes; -1 if there is none. */
static int64_t read_kib(const char *path, const char *key) {
  char line[256];
  int64_t value = -1, kib;
  FILE *file = fopen(path, "re");
  if (!file)
    return -1;
  while (value < 0 && fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key)) && sscanf(line + strlen(key), " %" SCNd64, &kib) == 1)
      value = kib * 1024;
  fclose(file);
  return value;
}

int64_t nr_bench_huge_bytes(void) {
  int64_t bytes = read_kib("/proc/self/smaps_rollup", "AnonHugePages:");
  return bytes < 0 ? 0 : bytes;
}

int nr_bench_memory_open(nr_bench_memory *m, size_t room, nr_message *message) {
  int64_t available = read_kib("/proc/meminfo", "MemAvailable:");
  *m = (nr_bench_memory){.size = room, .map_size = room + NR_HUGE_PAGE};
  if (m->map_size < room || (available >= 0 && m->map_size > (uint64_t)available))
    return nr_refuse(message, NR_EXIT_RUN, "%.1f GB are needed, and %.1f GB of memory are free", 1e-9 * (double)room,
                     1e-9 * (double)available);
  void *map = mmap(NULL, m->map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED)
    return nr_refuse(message, NR_EXIT_RUN, "out of memory for %.1f GB", 1e-9 * (double)room);
  m->map = map;
  m->base = (char *)round_up((uintptr_t)map, NR_HUGE_PAGE);
  madvise(m->map, m->map_size, MADV_HUGEPAGE); /* advice: ordinary pages work too, and the report says which */
  return NR_EXIT_OK;
}

void nr_bench_memory_close(nr_bench_memory *m) {
  if (m->map)
    munmap(m->map, m->map_size);
  *m = (nr_bench_memory){0};
}

void *nr_bench_take(nr_bench_memory *m, size_t size) {
  char *block = m->base + round_up(m->used, unit_of(size));
  m->used = (size_t)(block - m->base) + round_up(size, unit_of(size));
  return block;
}

void nr_bench_fill(void *array, nr_dtype dtype, uint64_t stream, int64_t count, double centre, double scale,
                   int threads) {
  static float numbers[PERIOD]; /* of any dtype up to float32 */
  int64_t element = (int64_t)nr_dtype_size(dtype);
  nr_fill_normal(numbers, dtype, stream, 0, count < PERIOD ? count : PERIOD, centre, scale);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < count; first += PERIOD) {
    int64_t some = count - first < PERIOD ? count - first : PERIOD;
    memcpy((char *)array + first * element, numbers, (size_t)(some * element));
  }
}
