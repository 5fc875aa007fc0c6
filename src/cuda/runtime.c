#include "cuda/runtime.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/verbose.h"

enum { MAX_DEVICES = 64, LEAST_CAPABILITY = 8, OVERLAPPING_CAPABILITY = 9 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char why_not[256];
static int32_t num_devices;
static int capability[MAX_DEVICES]; /* major */
static char names[MAX_DEVICES][256];

/* Devices are numbered as CUDA numbers them, so those that are too old may only be the last ones. */
static void ask(void) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    snprintf(why_not, sizeof why_not, "no CUDA device: %s",
             error == cudaSuccess ? "the driver shows none" : cudaGetErrorString(error));
    cudaGetLastError(); /* which would else be some later call's */
    return;
  }
  for (int i = 0; i < count && i < MAX_DEVICES; i++) {
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) {
      cudaGetLastError();
      break;
    }
    if (properties.major < LEAST_CAPABILITY)
      break;
    capability[i] = properties.major;
    snprintf(names[i], sizeof names[i], "%s", properties.name);
    num_devices = i + 1;
  }
  if (!num_devices)
    snprintf(why_not, sizeof why_not, "no usable CUDA device: the first one is of a compute capability below %d.0",
             LEAST_CAPABILITY);
}

int32_t nr_cuda_count(void) {
  pthread_once(&once, ask);
  return num_devices;
}

nr_status nr_cuda_available(void) {
  return nr_cuda_count() ? NR_OK : nr_fail(NR_ERROR_UNSUPPORTED, "cuda: %s", why_not);
}

bool nr_cuda_overlaps(void) {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess && device < nr_cuda_count() &&
         capability[device] >= OVERLAPPING_CAPABILITY;
}

static const char *name(int32_t device) { return device >= 0 && device < nr_cuda_count() ? names[device] : ""; }

static void use(int32_t device) { cudaSetDevice(device); }

/* ---- On a device ---- */

/* Makes it current; what was is for leave(). */
static int enter(int32_t device) {
  int before = device;
  cudaGetDevice(&before);
  if (before != device)
    cudaSetDevice(device);
  return before;
}

static void leave(int32_t device, int before) {
  if (before != device)
    cudaSetDevice(before);
}

static nr_status judge(cudaError_t error, const char *what) {
  if (error == cudaSuccess)
    return NR_OK;
  cudaGetLastError();
  return nr_fail(error == cudaErrorMemoryAllocation ? NR_ERROR_MEMORY : NR_ERROR_DEVICE, "cuda: %s: %s", what,
                 cudaGetErrorString(error));
}

/* One call on a device, as an nr_status. */
#define ON(device, call)                                                                                               \
  int before = enter(device);                                                                                          \
  cudaError_t error = call;                                                                                            \
  leave(device, before);                                                                                               \
  return judge(error, #call)

static void *allocate(int32_t device, size_t size) {
  void *address = NULL;
  int before = enter(device);
  cudaError_t error = nr_fault() ? cudaErrorMemoryAllocation : cudaMalloc(&address, size);
  leave(device, before);
  return judge(error, "cudaMalloc") == NR_OK ? address : NULL;
}

static void release(int32_t device, void *address) {
  int before = enter(device);
  judge(cudaFree(address), "cudaFree");
  leave(device, before);
}

static nr_status memory(int32_t device, size_t *available, size_t *total) {
  ON(device, cudaMemGetInfo(available, total));
}

static void *allocate_host(size_t size) {
  void *address = NULL;
  cudaError_t error = nr_fault() ? cudaErrorMemoryAllocation : cudaMallocHost(&address, size);
  return judge(error, "cudaMallocHost") == NR_OK ? address : NULL;
}

static void release_host(void *address) { judge(cudaFreeHost(address), "cudaFreeHost"); }

static void *stream_new(int32_t device) {
  cudaStream_t stream = NULL;
  int before = enter(device);
  cudaError_t error =
      nr_fault() ? cudaErrorMemoryAllocation : cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  leave(device, before);
  return judge(error, "cudaStreamCreateWithFlags") == NR_OK ? stream : NULL;
}

static void stream_free(int32_t device, void *stream) {
  int before = enter(device);
  judge(cudaStreamDestroy(stream), "cudaStreamDestroy");
  leave(device, before);
}

static nr_status stream_synchronize(int32_t device, void *stream) { ON(device, cudaStreamSynchronize(stream)); }

/* A query's answer: done, not yet, or failed. */
static bool done(cudaError_t error, const char *what, nr_status *status) {
  if (error == cudaErrorNotReady)
    cudaGetLastError();
  *status = error == cudaErrorNotReady ? NR_OK : judge(error, what);
  return error != cudaErrorNotReady;
}

static bool stream_done(int32_t device, void *stream, nr_status *status) {
  int before = enter(device);
  cudaError_t error = cudaStreamQuery(stream);
  leave(device, before);
  return done(error, "cudaStreamQuery", status);
}

static nr_status stream_wait(int32_t device, void *stream, void *event) {
  ON(device, cudaStreamWaitEvent(stream, event, 0));
}

/* What a host call of CUDA's default stream has queued may be on its way still when the call returns. */
static cudaError_t settle(cudaError_t error) { return error == cudaSuccess ? cudaStreamSynchronize(NULL) : error; }

static nr_status copy(int32_t device, void *to, const void *from, size_t size, void *stream, bool wait) {
  ON(device, wait ? settle(cudaMemcpy(to, from, size, cudaMemcpyDefault))
                  : cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream));
}

static nr_status copy_rows(int32_t device, void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                           size_t height) {
  ON(device, settle(cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, cudaMemcpyDefault)));
}

static nr_status set(int32_t device, void *to, int value, size_t size, void *stream, bool wait) {
  ON(device, wait ? settle(cudaMemset(to, value, size)) : cudaMemsetAsync(to, value, size, stream));
}

static void *event_new(int32_t device, bool timed) {
  cudaEvent_t event = NULL;
  int before = enter(device);
  cudaError_t error = nr_fault() ? cudaErrorMemoryAllocation
                                 : cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming);
  leave(device, before);
  return judge(error, "cudaEventCreateWithFlags") == NR_OK ? event : NULL;
}

static void event_free(int32_t device, void *event) {
  int before = enter(device);
  judge(cudaEventDestroy(event), "cudaEventDestroy");
  leave(device, before);
}

static nr_status event_record(int32_t device, void *event, void *stream) { ON(device, cudaEventRecord(event, stream)); }

static nr_status event_synchronize(int32_t device, void *event) { ON(device, cudaEventSynchronize(event)); }

static bool event_done(int32_t device, void *event, nr_status *status) {
  int before = enter(device);
  cudaError_t error = cudaEventQuery(event);
  leave(device, before);
  return done(error, "cudaEventQuery", status);
}

static nr_status event_elapsed(int32_t device, float *ms, void *start, void *end) {
  ON(device, cudaEventElapsedTime(ms, start, end));
}

static nr_status run(int32_t device, const nr_plan *plan, void *workspace, size_t workspace_size, void *stream) {
  int before = enter(device);
  nr_status status = nr_plan_run(plan, NULL, workspace, workspace_size, stream);
  leave(device, before);
  return status;
}

static const nr_cuda_runtime runtime = {.name = name,
                                        .use = use,
                                        .malloc = allocate,
                                        .free = release,
                                        .memory = memory,
                                        .malloc_host = allocate_host,
                                        .free_host = release_host,
                                        .stream_new = stream_new,
                                        .stream_free = stream_free,
                                        .stream_synchronize = stream_synchronize,
                                        .stream_done = stream_done,
                                        .stream_wait = stream_wait,
                                        .copy = copy,
                                        .copy_rows = copy_rows,
                                        .set = set,
                                        .event_new = event_new,
                                        .event_free = event_free,
                                        .event_record = event_record,
                                        .event_synchronize = event_synchronize,
                                        .event_done = event_done,
                                        .event_elapsed = event_elapsed,
                                        .run = run};

const nr_cuda_runtime *const nr_cuda = &runtime;
