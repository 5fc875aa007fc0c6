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

/* "NVIDIA H200", say. */
const char *nr_cuda_name(int32_t device);

/*
 * All that follows works on the given device and leaves the thread's current one as it was. NULL, false or other than
 * NR_OK: it failed, and nr_last_error() says why.
 */
void *nr_cuda_malloc(int32_t device, size_t size);
void nr_cuda_free(int32_t device, void *address);
nr_status nr_cuda_memory(int32_t device, size_t *available, size_t *total);

/* Host memory that copies do not wait for. */
void *nr_cuda_malloc_host(size_t size);
void nr_cuda_free_host(void *address);

void *nr_cuda_stream_new(int32_t device);
void nr_cuda_stream_free(int32_t device, void *stream);
nr_status nr_cuda_stream_synchronize(int32_t device, void *stream);
/* Whether all that was queued is done; *status says if it failed. */
bool nr_cuda_stream_done(int32_t device, void *stream, nr_status *status);
nr_status nr_cuda_stream_wait(int32_t device, void *stream, void *event);

/* Any of the addresses may be the host's or a device's. In the stream, or where `wait` until it is done. */
nr_status nr_cuda_copy(int32_t device, void *to, const void *from, size_t size, void *stream, bool wait);
nr_status nr_cuda_copy_rows(int32_t device, void *to, size_t to_pitch, const void *from, size_t from_pitch,
                            size_t width, size_t height);
nr_status nr_cuda_set(int32_t device, void *to, int value, size_t size, void *stream, bool wait);

void *nr_cuda_event_new(int32_t device, bool timed);
void nr_cuda_event_free(int32_t device, void *event);
nr_status nr_cuda_event_record(int32_t device, void *event, void *stream);
nr_status nr_cuda_event_synchronize(int32_t device, void *event);
bool nr_cuda_event_done(int32_t device, void *event, nr_status *status);
nr_status nr_cuda_event_elapsed(int32_t device, float *ms, void *start, void *end);

/* nr_plan_run on a device. */
nr_status nr_cuda_run(int32_t device, const nr_plan *plan, void *workspace, size_t workspace_size, void *stream);

#endif
