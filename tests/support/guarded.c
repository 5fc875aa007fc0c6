#include "support/guarded.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Pages in use, a poisoned page in front at least in part, and a guard page on either side. */
static size_t body_size(size_t size, size_t page) { return (size + page - 1) / page * page + page; }

static char *body_of(const void *block, size_t size, size_t page) {
  return (char *)block + size - body_size(size, page);
}

void *guarded_alloc(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), body = body_size(size, page);
  char *map = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED || mprotect(map + page, body, PROT_READ | PROT_WRITE) != 0)
    abort();
  memset(map + page, POISON, body);
  return map + page + body - size;
}

bool guarded_intact(const void *block, size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (const unsigned char *p = (const unsigned char *)body_of(block, size, page); p < (const unsigned char *)block;
       p++)
    if (*p != POISON)
      return false;
  return true;
}

void guarded_free(void *block, size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  munmap(body_of(block, size, page) - page, body_size(size, page) + 2 * page);
}
