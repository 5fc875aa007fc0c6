/* Memory that ends at a page which may not be touched, and begins behind poison: what a test's tensors live in. */
#ifndef NR_TESTS_GUARDED_H
#define NR_TESTS_GUARDED_H

#include <stdbool.h>
#include <stddef.h>

enum { POISON = 0xA7 };

/* `size` bytes, all POISON, whose end is a guard page. Aligned as far as `size` is. */
void *guarded_alloc(size_t size);
/* True if the poison in front of the block is whole. */
bool guarded_intact(const void *block, size_t size);
void guarded_free(void *block, size_t size);

#endif
