/*
 * The runtime: devices, contexts, streams, events, memory.
 *
 * Errors. Every function refuses null where an address is needed and values outside the lists here with INVALID_PARAM,
 * and a handle that is not alive with INVALID_RESOURCE_HANDLE; further codes are named where they occur. A refused call
 * changes nothing.
 *
 * Current context. Each thread has none, or one that it shares with any number of threads. Streams, events and device
 * memory are made in it; streams are used from threads in whose current context they were made. A null stream is the
 * current context's default stream.
 *
 * Thread safety. All functions may be called from any thread; destroying what another thread still uses is refused
 * there or waits for it, never a crash. Memory is the exception: it must live until the work on it is done.
 */
#ifndef NORMROPE_ACL_RT_H
#define NORMROPE_ACL_RT_H

#include "acl/acl_base.h"

#ifdef __cplusplus
extern "C" {
#endif

static const int ACL_ERROR_RT_PARAM_INVALID = 107000;
static const int ACL_ERROR_RT_INVALID_DEVICEID = 107001;         /* a stream of another device */
static const int ACL_ERROR_RT_CONTEXT_NULL = 107002;             /* the thread has no current context */
static const int ACL_ERROR_RT_STREAM_CONTEXT = 107003;           /* a stream of another context */
static const int ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID = 107006;  /* an event that is not recorded, or not reached yet */
static const int ACL_ERROR_RT_EVENT_TIMESTAMP_REVERSAL = 107007; /* end before start */
static const int ACL_ERROR_RT_STREAM_SYNC_TIMEOUT = 507046;

#define ACL_EVENT_SYNC 0x00000001U
#define ACL_EVENT_CAPTURE_STREAM_PROGRESS 0x00000002U
#define ACL_EVENT_TIME_LINE 0x00000008U

#define ACL_STREAM_FAST_LAUNCH 0x00000001U
#define ACL_STREAM_FAST_SYNC 0x00000002U
#define ACL_STREAM_PERSISTENT 0x00000004U
#define ACL_STREAM_HUGE 0x00000008U
#define ACL_STREAM_CPU_SCHEDULE 0x00000010U
#define ACL_STREAM_DEVICE_USE_ONLY 0x00000020U

typedef enum aclrtRunMode { ACL_DEVICE = 0, ACL_HOST = 1 } aclrtRunMode;

typedef enum {
  ACL_OPT_DETERMINISTIC = 0,       /* 0 off, 1 deterministic, 2 strong, 3 batch consistency */
  ACL_OPT_ENABLE_DEBUG_KERNEL = 1, /* 0 or 1 */
  ACL_OPT_STRONG_CONSISTENCY = 2   /* 0 or 1 */
} aclSysParamOpt;

typedef enum aclrtStreamStatus {
  ACL_STREAM_STATUS_COMPLETE = 0,
  ACL_STREAM_STATUS_NOT_READY = 1,
  ACL_STREAM_STATUS_RESERVED = 0xFFFF
} aclrtStreamStatus;

typedef enum aclrtEventRecordedStatus {
  ACL_EVENT_RECORDED_STATUS_NOT_READY = 0, /* not recorded, or the stream has not got there */
  ACL_EVENT_RECORDED_STATUS_COMPLETE = 1
} aclrtEventRecordedStatus;

typedef enum aclrtEventStatus {
  ACL_EVENT_STATUS_COMPLETE = 0,
  ACL_EVENT_STATUS_NOT_READY = 1,
  ACL_EVENT_STATUS_RESERVED = 2
} aclrtEventStatus;

typedef enum aclrtMemcpyKind {
  ACL_MEMCPY_HOST_TO_HOST = 0,
  ACL_MEMCPY_HOST_TO_DEVICE = 1,
  ACL_MEMCPY_DEVICE_TO_HOST = 2,
  ACL_MEMCPY_DEVICE_TO_DEVICE = 3,
  ACL_MEMCPY_DEFAULT = 4
} aclrtMemcpyKind;

typedef enum aclrtMemMallocPolicy {
  ACL_MEM_MALLOC_HUGE_FIRST = 0,
  ACL_MEM_MALLOC_HUGE_ONLY = 1,
  ACL_MEM_MALLOC_NORMAL_ONLY = 2,
  ACL_MEM_MALLOC_HUGE_FIRST_P2P = 3,
  ACL_MEM_MALLOC_HUGE_ONLY_P2P = 4,
  ACL_MEM_MALLOC_NORMAL_ONLY_P2P = 5,
  ACL_MEM_TYPE_LOW_BAND_WIDTH = 0x0100,
  ACL_MEM_TYPE_HIGH_BAND_WIDTH = 0x1000
} aclrtMemMallocPolicy;

typedef enum aclrtMemAttr {
  ACL_DDR_MEM = 0,
  ACL_HBM_MEM = 1,
  ACL_DDR_MEM_HUGE = 2,
  ACL_DDR_MEM_NORMAL = 3,
  ACL_HBM_MEM_HUGE = 4,
  ACL_HBM_MEM_NORMAL = 5,
  ACL_DDR_MEM_P2P_HUGE = 6,
  ACL_DDR_MEM_P2P_NORMAL = 7,
  ACL_HBM_MEM_P2P_HUGE = 8,
  ACL_HBM_MEM_P2P_NORMAL = 9,
  ACL_HBM_MEM_HUGE1G = 10,
  ACL_HBM_MEM_P2P_HUGE1G = 11,
  ACL_MEM_NORMAL = 12,
  ACL_MEM_HUGE = 13,
  ACL_MEM_HUGE1G = 14,
  ACL_MEM_P2P_NORMAL = 15,
  ACL_MEM_P2P_HUGE = 16,
  ACL_MEM_P2P_HUGE1G = 17
} aclrtMemAttr;

/* ---- Devices. Device 0 is the processor; NORMROPE_DEVICES (a list such as "cuda,cpu") chooses and orders. ---- */

ACL_FUNC_VISIBILITY aclError aclrtGetDeviceCount(uint32_t *count);

/* Makes the device's default context current on the calling thread. Counted: the device is released by the
   aclrtResetDevice that answers the last aclrtSetDevice of the process. Errors: INVALID_DEVICE, BAD_ALLOC. */
ACL_FUNC_VISIBILITY aclError aclrtSetDevice(int32_t deviceId);

/* Answers one aclrtSetDevice; the last one (and one without aclrtSetDevice) lets queued work finish, then releases all
   of the device's contexts, streams, events and aclrtMalloc memory that is left. Errors: INVALID_DEVICE. */
ACL_FUNC_VISIBILITY aclError aclrtResetDevice(int32_t deviceId);

/* The current context's device. Errors: RT_CONTEXT_NULL. */
ACL_FUNC_VISIBILITY aclError aclrtGetDevice(int32_t *deviceId);

/* Waits for all streams of the current context's device. Errors: RT_CONTEXT_NULL; the first failure of queued work. */
ACL_FUNC_VISIBILITY aclError aclrtSynchronizeDevice(void);

/* ACL_HOST: programs run on the host and copy to the device, whichever it is. */
ACL_FUNC_VISIBILITY aclError aclrtGetRunMode(aclrtRunMode *runMode);

/* "CPU", of the current context's device or, without one, of device 0. Never NULL; static. */
ACL_FUNC_VISIBILITY const char *aclrtGetSocName(void);

/* ---- Contexts ---- */

/* A context of its own on a device, made current on the calling thread. Errors: INVALID_DEVICE, BAD_ALLOC. */
ACL_FUNC_VISIBILITY aclError aclrtCreateContext(aclrtContext *context, int32_t deviceId);

/* Lets its queued work finish and releases its streams and events. A thread in which it was current has none then. A
   device's default context is INVALID_PARAM: aclrtResetDevice releases it. */
ACL_FUNC_VISIBILITY aclError aclrtDestroyContext(aclrtContext context);

ACL_FUNC_VISIBILITY aclError aclrtSetCurrentContext(aclrtContext context);

/* Errors: RT_CONTEXT_NULL. */
ACL_FUNC_VISIBILITY aclError aclrtGetCurrentContext(aclrtContext *context);

/* Options of the process, 0 at first, and of the current context, which has the process's value until it is given its
   own. All results are deterministic at any setting. Errors: RT_CONTEXT_NULL for the latter. */
ACL_FUNC_VISIBILITY aclError aclrtSetSysParamOpt(aclSysParamOpt opt, int64_t value);
ACL_FUNC_VISIBILITY aclError aclrtGetSysParamOpt(aclSysParamOpt opt, int64_t *value);
ACL_FUNC_VISIBILITY aclError aclrtCtxSetSysParamOpt(aclSysParamOpt opt, int64_t value);
ACL_FUNC_VISIBILITY aclError aclrtCtxGetSysParamOpt(aclSysParamOpt opt, int64_t *value);

/* ---- Streams: queues of work, each in its order, side by side. All but aclrtDestroyStream have the errors
   RT_CONTEXT_NULL, RT_STREAM_CONTEXT, RT_INVALID_DEVICEID and, where they queue or make something, BAD_ALLOC. ---- */

ACL_FUNC_VISIBILITY aclError aclrtCreateStream(aclrtStream *stream);

/* priority and the ACL_STREAM flags are accepted as hints and change nothing on the processor; other flags are
   INVALID_PARAM. */
ACL_FUNC_VISIBILITY aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag);

/* Lets queued work finish. */
ACL_FUNC_VISIBILITY aclError aclrtDestroyStream(aclrtStream stream);

/* Waits for the work that was queued before the call. Work that failed since the last synchronisation is reported here,
   by the first failure's code and text. */
ACL_FUNC_VISIBILITY aclError aclrtSynchronizeStream(aclrtStream stream);

/* The same for at most `timeout` milliseconds: 0 does not wait for other threads, -1 waits for ever. Errors:
   RT_STREAM_SYNC_TIMEOUT. */
ACL_FUNC_VISIBILITY aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout);

ACL_FUNC_VISIBILITY aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status);

/* Work queued from now on starts when the record that the event has now is reached; at once if it has none. */
ACL_FUNC_VISIBILITY aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event);

/* ---- Events: marks in streams. Made in the current context (RT_CONTEXT_NULL), usable from any. ---- */

/* With ACL_EVENT_SYNC and ACL_EVENT_TIME_LINE. */
ACL_FUNC_VISIBILITY aclError aclrtCreateEvent(aclrtEvent *event);

/* flag: a sum of ACL_EVENT values, not 0. */
ACL_FUNC_VISIBILITY aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag);

/* Streams that wait for the event still do. */
ACL_FUNC_VISIBILITY aclError aclrtDestroyEvent(aclrtEvent event);

/* Marks the end of what the stream has queued now; replaces an earlier record, which streams may still wait for. */
ACL_FUNC_VISIBILITY aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream);

/* When the stream gets there, the record that the event has now is forgotten, unless it was replaced meanwhile. */
ACL_FUNC_VISIBILITY aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream);

ACL_FUNC_VISIBILITY aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status);

/* Waits until the record that the event has now is reached; returns at once if it has none. */
ACL_FUNC_VISIBILITY aclError aclrtSynchronizeEvent(aclrtEvent event);

/* Milliseconds between two records. Errors: RT_EVENT_TIMESTAMP_INVALID, RT_EVENT_TIMESTAMP_REVERSAL; INVALID_PARAM for
   events without ACL_EVENT_TIME_LINE. */
ACL_FUNC_VISIBILITY aclError aclrtEventElapsedTime(float *ms, aclrtEvent startEvent, aclrtEvent endEvent);

/* ---- Memory. On the processor any address is device memory as well. ---- */

/*
 * Device memory, aligned to at least 64 bytes, contents undefined. HUGE_FIRST and HUGE_ONLY (from 2 MiB on, HUGE_ONLY
 * always) are aligned to 2 MiB and backed by huge pages as far as the system has them, by normal pages else; HUGE_ONLY
 * takes reserved huge pages first. The P2P policies are the same; the band width flags are ignored.
 * Errors: RT_CONTEXT_NULL, INVALID_PARAM for size 0, BAD_ALLOC.
 */
ACL_FUNC_VISIBILITY aclError aclrtMalloc(void **devPtr, size_t size, aclrtMemMallocPolicy policy);

/* INVALID_PARAM for what is no block of aclrtMalloc, or was freed. */
ACL_FUNC_VISIBILITY aclError aclrtFree(void *devPtr);

/* Host memory, aligned to 64 bytes; needs no context and lives until aclrtFreeHost or aclFinalize. */
ACL_FUNC_VISIBILITY aclError aclrtMallocHost(void **hostPtr, size_t size);
ACL_FUNC_VISIBILITY aclError aclrtFreeHost(void *hostPtr);

/* Copies count <= destMax bytes; source and destination may overlap. The second queues: both must live until then. */
ACL_FUNC_VISIBILITY aclError aclrtMemcpy(void *dst, size_t destMax, const void *src, size_t count,
                                         aclrtMemcpyKind kind);
ACL_FUNC_VISIBILITY aclError aclrtMemcpyAsync(void *dst, size_t destMax, const void *src, size_t count,
                                              aclrtMemcpyKind kind, aclrtStream stream);

/* Sets count <= maxCount bytes to the low byte of value. */
ACL_FUNC_VISIBILITY aclError aclrtMemset(void *devPtr, size_t maxCount, int32_t value, size_t count);
ACL_FUNC_VISIBILITY aclError aclrtMemsetAsync(void *devPtr, size_t maxCount, int32_t value, size_t count,
                                              aclrtStream stream);

/* Copies height rows of width bytes, rows being dpitch >= width and spitch >= width bytes apart; no overlap. */
ACL_FUNC_VISIBILITY aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                                           size_t height, aclrtMemcpyKind kind);

/* Bytes of the machine's memory, whatever kind is asked for, and how many of them are available now. */
ACL_FUNC_VISIBILITY aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *free, size_t *total);

#ifdef __cplusplus
}
#endif

#endif
