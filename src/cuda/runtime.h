/* CUDA's devices, memory, streams and events, as far as src/acl has use for them. In a build without CUDA there are no
   devices and nothing else is ever called. Streams and events are cudaStream_t and cudaEvent_t. */
#ifndef NR_CUDA_RUNTIME_H
#define NR_CUDA_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "normrope.h"

/* Devices that the driver shows and that are new enough; 0 where there is no driver, no device or no CUDA in this
   build. Asks once. */
int32_t nr_cuda_count(void);

/* OK, or UNSUPPORTED with a text that says why there is no device. */
nr_status nr_cuda_available(void);

/* Whether a kernel may start on the current device while the one before it ends. */
bool nr_cuda_overlaps(void);

/* The rest, of which nothing is called where there are no devices; NULL in a build without CUDA. Every function but
   `use` works on the given device and leaves the thread's current one as it was. NULL, or other than NR_OK: it failed,
   and nr_last_error() says why. */
typedef struct nr_cuda_runtime {
  const char *(*name)(int32_t device); /* "NVIDIA H200", say */
  /* Makes it the calling thread's current device, which runs that are given no stream are for. */
  void (*use)(int32_t device);

  void *(*malloc)(int32_t device, size_t size);
  void (*free)(int32_t device, void *address);
  nr_status (*memory)(int32_t device, size_t *available, size_t *total);
  void *(*malloc_host)(size_t size); /* that copies do not wait for */
  void (*free_host)(void *address);

  void *(*stream_new)(int32_t device);
  void (*stream_free)(int32_t device, void *stream);
  nr_status (*stream_synchronize)(int32_t device, void *stream);
  /* Whether all that was queued is done; *status says if it failed. */
  bool (*stream_done)(int32_t device, void *stream, nr_status *status);
  nr_status (*stream_wait)(int32_t device, void *stream, void *event);

  /* Any of the addresses may be the host's or a device's. In the stream, or where `wait` until it is done. */
  nr_status (*copy)(int32_t device, void *to, const void *from, size_t size, void *stream, bool wait);
  nr_status (*copy_rows)(int32_t device, void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                         size_t height);
  nr_status (*set)(int32_t device, void *to, int value, size_t size, void *stream, bool wait);

  void *(*event_new)(int32_t device, bool timed);
  void (*event_free)(int32_t device, void *event);
  nr_status (*event_record)(int32_t device, void *event, void *stream);
  nr_status (*event_synchronize)(int32_t device, void *event);
  bool (*event_done)(int32_t device, void *event, nr_status *status);
  nr_status (*event_elapsed)(int32_t device, float *ms, void *start, void *end);

  /* nr_plan_run there. */
  nr_status (*run)(int32_t device, const nr_plan *plan, void *workspace, size_t workspace_size, void *stream);
} nr_cuda_runtime;

extern const nr_cuda_runtime *const nr_cuda;

#endif
