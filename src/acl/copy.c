/* aclrtMemcpy, aclrtMemset and their queued forms. */
#include <stdbool.h>
#include <string.h>

#include "acl/acl_error.h"
#include "acl/acl_rt.h"
#include "acl/context.h"
#include "acl/device.h"
#include "acl/stream.h"
#include "base/alloc.h"
#include "cuda/runtime.h"

static aclError check_kind(aclrtMemcpyKind kind, const char *who) {
  if ((int)kind >= ACL_MEMCPY_HOST_TO_HOST && (int)kind <= ACL_MEMCPY_DEFAULT)
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: kind %d, expected %d to %d", who, (int)kind, ACL_MEMCPY_HOST_TO_HOST,
                     ACL_MEMCPY_DEFAULT);
}

static aclError check_size(const void *dst, size_t limit, size_t count, const char *who) {
  if (!dst)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: the destination is null", who);
  if (count > limit)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: count %zu, expected at most the destination's %zu", who, count,
                       limit);
  return ACL_SUCCESS;
}

static aclError check_copy(const void *dst, size_t limit, const void *src, size_t count, aclrtMemcpyKind kind,
                           const char *who) {
  if (!src)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "%s: the source is null", who);
  aclError error = check_size(dst, limit, count, who);
  return error == ACL_SUCCESS ? check_kind(kind, who) : error;
}

/* CUDA's number of the current device, whose copies know all memory; -1 on the CPU. */
static int32_t current_cuda(void) { return nr_device_cuda(nr_context_current_device()); }

static aclError of_cuda(nr_status status, const char *who) {
  return status == NR_OK ? ACL_SUCCESS : nr_acl_fail(ACL_ERROR_RT_FAILURE, "%s: %s", who, nr_last_error());
}

aclError aclrtMemcpy(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind) {
  aclError error = check_copy(dst, destMax, src, count, kind, __func__);
  if (error != ACL_SUCCESS)
    return error;
  int32_t cuda = current_cuda();
  if (cuda >= 0)
    return of_cuda(nr_cuda->copy(cuda, dst, src, count, NULL, true), __func__);
  memmove(dst, src, count);
  return ACL_SUCCESS;
}

aclError aclrtMemset(void *devPtr, size_t maxCount, int32_t value, size_t count) {
  aclError error = check_size(devPtr, maxCount, count, __func__);
  if (error != ACL_SUCCESS)
    return error;
  int32_t cuda = current_cuda();
  if (cuda >= 0)
    return of_cuda(nr_cuda->set(cuda, devPtr, value & 0xFF, count, NULL, true), __func__);
  memset(devPtr, value & 0xFF, count);
  return ACL_SUCCESS;
}

aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height,
                       aclrtMemcpyKind kind) {
  size_t end;
  aclError error = check_copy(dst, dpitch, src, width, kind, __func__);
  if (error != ACL_SUCCESS)
    return error;
  if (width > spitch)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMemcpy2d: width %zu, expected at most spitch %zu", width, spitch);
  if (__builtin_mul_overflow(dpitch > spitch ? dpitch : spitch, height, &end) || end > PTRDIFF_MAX)
    return nr_acl_fail(ACL_ERROR_INVALID_PARAM, "aclrtMemcpy2d: height %zu goes past the end of memory", height);
  int32_t cuda = current_cuda();
  if (cuda >= 0)
    return of_cuda(nr_cuda->copy_rows(cuda, dst, dpitch, src, spitch, width, height), __func__);
  for (size_t row = 0; row < height; row++)
    memcpy((char *)dst + row * dpitch, (const char *)src + row * spitch, width);
  return ACL_SUCCESS;
}

/* A queued copy, or memset where src is NULL. */
typedef struct transfer {
  void *dst;
  const void *src;
  size_t count;
  int value;
} transfer;

static int run(void *object) {
  const transfer *t = object;
  if (t->src)
    memmove(t->dst, t->src, t->count);
  else
    memset(t->dst, t->value, t->count);
  return ACL_SUCCESS;
}

static aclError queue(transfer wanted, aclrtStream stream, const char *who) {
  nr_stream *s;
  aclError error = nr_stream_resolve(stream, &s);
  if (error != ACL_SUCCESS)
    return error;
  void *cuda_stream;
  int32_t cuda = nr_stream_cuda(s, &cuda_stream);
  if (cuda >= 0) {
    error = of_cuda(wanted.src ? nr_cuda->copy(cuda, wanted.dst, wanted.src, wanted.count, cuda_stream, false)
                               : nr_cuda->set(cuda, wanted.dst, wanted.value, wanted.count, cuda_stream, false),
                    who);
    nr_stream_release(s);
    return error;
  }
  transfer *t = nr_calloc(1, sizeof *t);
  if (t) {
    *t = wanted;
    error = nr_stream_push(s, run, nr_free, t, NR_AT_ONCE);
    if (error != ACL_SUCCESS)
      nr_free(t);
  } else {
    error = nr_acl_fail(ACL_ERROR_BAD_ALLOC, "%s: out of memory", who);
  }
  nr_stream_release(s);
  return error;
}

aclError aclrtMemcpyAsync(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind,
                          aclrtStream stream) {
  aclError error = check_copy(dst, destMax, src, count, kind, __func__);
  return error == ACL_SUCCESS ? queue((transfer){dst, src, count, 0}, stream, __func__) : error;
}

aclError aclrtMemsetAsync(void *devPtr, size_t maxCount, int32_t value, size_t count, aclrtStream stream) {
  aclError error = check_size(devPtr, maxCount, count, __func__);
  return error == ACL_SUCCESS ? queue((transfer){devPtr, NULL, count, value & 0xFF}, stream, __func__) : error;
}
