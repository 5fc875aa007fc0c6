#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>

static atomic_long allocations; /* since the last nr_fault_at */
static atomic_long fault_at;

bool nr_fault(void) {
  long n = atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed) + 1;
  return n == atomic_load_explicit(&fault_at, memory_order_relaxed);
}

long nr_fault_at(long n) {
  atomic_store(&fault_at, n);
  return atomic_exchange(&allocations, 0);
}

void *nr_calloc(size_t count, size_t size) { return nr_fault() ? NULL : calloc(count ? count : 1, size ? size : 1); }

void *nr_realloc(void *memory, size_t size) { return nr_fault() ? NULL : realloc(memory, size ? size : 1); }

void *nr_aligned_alloc(size_t alignment, size_t size) {
  if (nr_fault())
    return NULL;
  size_t rounded = (size + alignment - 1) / alignment * alignment;
  return rounded < size ? NULL : aligned_alloc(alignment, rounded ? rounded : alignment);
}

void nr_free(void *memory) { free(memory); }
