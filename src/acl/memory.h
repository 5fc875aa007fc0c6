/* The registry of memory that programs got from the runtime. */
#ifndef NR_ACL_MEMORY_H
#define NR_ACL_MEMORY_H

#include <stdint.h>

enum { NR_HOST = -1 }; /* in place of a device */

/* Frees the blocks of a device, or of aclrtMallocHost with NR_HOST, that are left. */
void nr_memory_release(int32_t device);

#endif
