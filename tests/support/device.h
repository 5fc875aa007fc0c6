/* `--device cuda` on a test program's command line: its fixtures then run on the first CUDA device, which is device 0
   of the ACL runtime. Where there is none the program says so and ends with 77, which CTest counts as skipped. */
#ifndef NR_TESTS_DEVICE_H
#define NR_TESTS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "normrope.h"

/* NR_BACKEND_CPU or NR_BACKEND_CUDA. */
nr_backend device_backend(void);
static inline bool device_is_cuda(void) { return device_backend() == NR_BACKEND_CUDA; }

/* Device memory that is as far past a multiple of 256 as `like` is, with the bytes of `like`, unless that is NULL.
   Failures end the test. */
typedef struct device_block {
  void *base, *data;
  size_t size;
} device_block;
device_block device_copy_of(const void *like, size_t size);
/* Back to the host. */
void device_read(void *to, const device_block *block);
void device_free(device_block *block);

/* Plans the problem for the device, runs it in a stream of its own, waits and returns whether that went well; all
   addresses are the device's. */
nr_status device_run(const nr_problem *problem);

#endif
