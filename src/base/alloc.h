/* Every allocation of the library goes through here, so that tests can make each one fail in turn. */
#ifndef NR_BASE_ALLOC_H
#define NR_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed memory, or NULL. Free with nr_free. */
void *nr_calloc(size_t count, size_t size);
/* Grows an array as realloc does; on failure returns NULL and leaves the old one. */
void *nr_realloc(void *memory, size_t size);
void nr_free(void *memory);

/* Memory aligned to `alignment` (a power of two), contents undefined, or NULL. Free with nr_free. */
void *nr_aligned_alloc(size_t alignment, size_t size);

/* True when a test wants this site (thread creation, mmap, …) to fail; counts as an allocation. */
bool nr_fault(void);

/* Tests only: the n-th allocation from now (1 = the next) fails, and only that one; 0 switches it off. Returns how many
   allocations have been counted since the last call. */
long nr_fault_at(long n);

#endif
