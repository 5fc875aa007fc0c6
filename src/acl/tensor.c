/* aclTensor: made and checked once, then only read, but for its address. */
#include "acl/tensor.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl_error.h"
#include "acl/handle.h"
#include "base/alloc.h"

/* Products below this stay far from overflow when multiplied by the size of an element. */
#define MAX_ELEMENTS (INT64_MAX / 64)

static const struct {
  aclDataType dtype;
  const char *name;
} dtypes[] = {
    {ACL_FLOAT, "FLOAT32"},
    {ACL_FLOAT16, "FLOAT16"},
    {ACL_BF16, "BFLOAT16"},
    {ACL_DOUBLE, "DOUBLE"},
    {ACL_INT8, "INT8"},
    {ACL_INT16, "INT16"},
    {ACL_INT32, "INT32"},
    {ACL_INT64, "INT64"},
    {ACL_UINT8, "UINT8"},
    {ACL_UINT16, "UINT16"},
    {ACL_UINT32, "UINT32"},
    {ACL_UINT64, "UINT64"},
    {ACL_BOOL, "BOOL"},
    {ACL_STRING, "STRING"},
    {ACL_COMPLEX32, "COMPLEX32"},
    {ACL_COMPLEX64, "COMPLEX64"},
    {ACL_COMPLEX128, "COMPLEX128"},
    {ACL_INT4, "INT4"},
    {ACL_UINT1, "UINT1"},
    {ACL_HIFLOAT8, "HIFLOAT8"},
    {ACL_FLOAT8_E5M2, "FLOAT8_E5M2"},
    {ACL_FLOAT8_E4M3FN, "FLOAT8_E4M3FN"},
    {ACL_FLOAT8_E8M0, "FLOAT8_E8M0"},
    {ACL_FLOAT6_E3M2, "FLOAT6_E3M2"},
    {ACL_FLOAT6_E2M3, "FLOAT6_E2M3"},
    {ACL_FLOAT4_E2M1, "FLOAT4_E2M1"},
    {ACL_FLOAT4_E1M2, "FLOAT4_E1M2"},
    {ACL_DT_UNDEFINED, "UNDEFINED"},
};

static const aclFormat formats[] = {
    ACL_FORMAT_ND,   ACL_FORMAT_NCHW,  ACL_FORMAT_NHWC,     ACL_FORMAT_NC1HWC0,    ACL_FORMAT_FRACTAL_Z,
    ACL_FORMAT_HWCN, ACL_FORMAT_NDHWC, ACL_FORMAT_NCDHW,    ACL_FORMAT_FRACTAL_NZ, ACL_FORMAT_NC1HWC0_C04,
    ACL_FORMAT_NC,   ACL_FORMAT_NCL,   ACL_FORMAT_NDC1HWC0, ACL_FRACTAL_Z_3D,      ACL_FORMAT_UNDEFINED};

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

static const char *find_dtype(aclDataType dtype) {
  for (int i = 0; i < COUNT(dtypes); i++)
    if (dtypes[i].dtype == dtype)
      return dtypes[i].name;
  return NULL;
}

const char *nr_acl_dtype_name(aclDataType dtype) {
  const char *name = find_dtype(dtype);
  return name ? name : "unknown";
}

static bool known_format(aclFormat format) {
  for (int i = 0; i < COUNT(formats); i++)
    if (formats[i] == format)
      return true;
  return false;
}

const char *nr_shape_text(const int64_t *shape, int rank, char *text) {
  size_t used = 0;
  text[used++] = '[';
  for (int i = 0; i < rank; i++)
    used += (size_t)snprintf(text + used, NR_SHAPE_TEXT - used, i ? ",%" PRId64 : "%" PRId64, shape[i]);
  memcpy(text + used, "]", 2);
  return text;
}

/* Copies dims, none negative, and tells how many elements they span. */
static bool copy_dims(const char *what, const int64_t *dims, uint64_t rank, int64_t copy[NR_TENSOR_RANK],
                      int64_t *count) {
  if (rank > NR_TENSOR_RANK)
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclCreateTensor: %" PRIu64 " %s, expected at most %d", rank, what,
                       NR_TENSOR_RANK),
           false;
  if (rank && !dims)
    return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "aclCreateTensor: %s: null, expected %" PRIu64 " numbers", what, rank),
           false;
  char text[NR_SHAPE_TEXT];
  int64_t nonzero = 1; /* bounded even where a 0 follows, so that no product of some of the dims overflows */
  *count = 1;
  for (uint64_t i = 0; i < rank; i++) {
    copy[i] = dims[i];
    if (dims[i] < 0)
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclCreateTensor: %s %s, expected none below 0", what,
                         nr_shape_text(dims, (int)rank, text)),
             false;
    if (__builtin_mul_overflow(nonzero, dims[i] ? dims[i] : 1, &nonzero) || nonzero > MAX_ELEMENTS)
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclCreateTensor: %s %s, too many elements", what,
                         nr_shape_text(dims, (int)rank, text)),
             false;
    *count *= dims[i];
  }
  return true;
}

static void contiguous(nr_tensor *t) {
  int64_t stride = 1;
  for (int i = t->rank - 1; i >= 0; i--) {
    t->stride[i] = stride;
    stride *= t->shape[i] ? t->shape[i] : 1;
  }
}

/* Whether every element of the view is one of the storage's `count`. */
static bool inside(const nr_tensor *t, int64_t count) {
  int64_t first = t->offset, last = t->offset, reach;
  for (int i = 0; i < t->rank; i++) {
    if (t->shape[i] == 0)
      return t->offset >= 0 && t->offset <= count; /* nothing to touch */
  }
  for (int i = 0; i < t->rank; i++)
    if (__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &reach) ||
        __builtin_add_overflow(reach < 0 ? first : last, reach, reach < 0 ? &first : &last))
      return false;
  return first >= 0 && last < count;
}

aclTensor *aclCreateTensor(const int64_t *viewDims, uint64_t viewDimsNum, aclDataType dataType, const int64_t *stride,
                           int64_t offset, aclFormat format, const int64_t *storageDims, uint64_t storageDimsNum,
                           void *tensorData) {
  nr_tensor made = {.offset = offset, .dtype = dataType, .format = format};
  int64_t count, storage_count;
  char shape[NR_SHAPE_TEXT], strides[NR_SHAPE_TEXT], storage[NR_SHAPE_TEXT];
  if (!copy_dims("viewDims", viewDims, viewDimsNum, made.shape, &count) ||
      !copy_dims("storageDims", storageDims, storageDimsNum, made.storage, &storage_count))
    return NULL;
  if (!find_dtype(dataType))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclCreateTensor: dataType %d, expected an aclDataType", (int)dataType),
           NULL;
  if (!known_format(format))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclCreateTensor: format %d, expected an aclFormat", (int)format), NULL;
  made.rank = (int)viewDimsNum;
  made.storage_rank = (int)storageDimsNum;
  if (stride && made.rank)
    memcpy(made.stride, stride, sizeof *stride * (size_t)made.rank);
  else
    contiguous(&made);
  if (!inside(&made, storage_count))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID,
                       "aclCreateTensor: view of shape %s, strides %s, offset %" PRId64
                       ", expected inside storageDims %s",
                       nr_shape_text(made.shape, made.rank, shape), nr_shape_text(made.stride, made.rank, strides),
                       offset, nr_shape_text(made.storage, made.storage_rank, storage)),
           NULL;
  nr_tensor *tensor = nr_calloc(1, sizeof *tensor);
  aclTensor *handle = NULL;
  if (tensor) {
    *tensor = made;
    atomic_store(&tensor->data, tensorData);
    handle = nr_handle_new(NR_HANDLE_TENSOR, tensor, nr_free);
  }
  if (!handle) {
    nr_free(tensor);
    nr_acl_fail(ACLNN_ERR_INNER, "aclCreateTensor: out of memory");
  }
  return handle;
}

aclnnStatus aclDestroyTensor(const aclTensor *tensor) {
  if (!tensor || nr_handle_retire(NR_HANDLE_TENSOR, tensor))
    return ACLNN_SUCCESS;
  return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "aclDestroyTensor: %p is no aclTensor, or destroyed already",
                     (const void *)tensor);
}

const nr_tensor *nr_tensor_acquire(const aclTensor *tensor) { return nr_handle_acquire(NR_HANDLE_TENSOR, tensor); }

void nr_tensor_release(const aclTensor *tensor) { nr_handle_release(tensor); }

int64_t nr_tensor_count(const nr_tensor *tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor->rank; i++)
    count *= tensor->shape[i];
  return count;
}

/* The tensor behind a getter's handle, once `given` (where the answer goes) is there; else NULL and *status. */
static nr_tensor *open_tensor(const char *function, const aclTensor *tensor, bool given, aclnnStatus *status) {
  *status = ACLNN_SUCCESS;
  nr_tensor *t = tensor && given ? nr_handle_acquire(NR_HANDLE_TENSOR, tensor) : NULL;
  if (!tensor || !given)
    *status = nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "%s: %s: null", function, tensor ? "result" : "tensor");
  else if (!t)
    *status = nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: %p is no aclTensor, or destroyed already", function,
                          (const void *)tensor);
  return t;
}

/* operator new[] and std::nothrow, there only in a process that has a C++ library. */
extern void *_ZnamRKSt9nothrow_t(size_t size, const void *nothrow) __attribute__((weak));
extern const char _ZSt7nothrow[] __attribute__((weak));

/* An array that the caller frees with delete[] in C++ and with free in C. On common systems these are one and the same,
   but not under a replaced operator new[] or a sanitizer that tells them apart. */
static void *new_array(size_t size) {
  if (nr_fault())
    return NULL;
  return _ZnamRKSt9nothrow_t && _ZSt7nothrow ? _ZnamRKSt9nothrow_t(size, _ZSt7nothrow) : malloc(size);
}

/* Hands out a copy of one of a tensor's arrays, given by the offsets of its numbers and of how many there are. */
static aclnnStatus give_array(const char *function, const aclTensor *tensor, size_t array, size_t rank,
                              int64_t **values, uint64_t *number) {
  aclnnStatus status;
  nr_tensor *t = open_tensor(function, tensor, values && number, &status);
  if (!t)
    return status;
  int length;
  memcpy(&length, (const char *)t + rank, sizeof length);
  int64_t *copy = new_array(sizeof *copy * (size_t)(length ? length : 1));
  if (copy) {
    memcpy(copy, (const char *)t + array, sizeof *copy * (size_t)length);
    *values = copy;
    *number = (uint64_t)length;
  } else {
    status = nr_acl_fail(ACLNN_ERR_INNER, "%s: out of memory", function);
  }
  nr_tensor_release(tensor);
  return status;
}

aclnnStatus aclGetViewShape(const aclTensor *tensor, int64_t **viewDims, uint64_t *viewDimsNum) {
  return give_array("aclGetViewShape", tensor, offsetof(nr_tensor, shape), offsetof(nr_tensor, rank), viewDims,
                    viewDimsNum);
}

aclnnStatus aclGetViewStrides(const aclTensor *tensor, int64_t **stridesValue, uint64_t *stridesNum) {
  return give_array("aclGetViewStrides", tensor, offsetof(nr_tensor, stride), offsetof(nr_tensor, rank), stridesValue,
                    stridesNum);
}

aclnnStatus aclGetStorageShape(const aclTensor *tensor, int64_t **storageDims, uint64_t *storageDimsNum) {
  return give_array("aclGetStorageShape", tensor, offsetof(nr_tensor, storage), offsetof(nr_tensor, storage_rank),
                    storageDims, storageDimsNum);
}

aclnnStatus aclGetViewOffset(const aclTensor *tensor, int64_t *offset) {
  aclnnStatus status;
  nr_tensor *t = open_tensor("aclGetViewOffset", tensor, offset != NULL, &status);
  if (!t)
    return status;
  *offset = t->offset;
  nr_tensor_release(tensor);
  return ACLNN_SUCCESS;
}

aclnnStatus aclGetFormat(const aclTensor *tensor, aclFormat *format) {
  aclnnStatus status;
  nr_tensor *t = open_tensor("aclGetFormat", tensor, format != NULL, &status);
  if (!t)
    return status;
  *format = t->format;
  nr_tensor_release(tensor);
  return ACLNN_SUCCESS;
}

aclnnStatus aclGetDataType(const aclTensor *tensor, aclDataType *dataType) {
  aclnnStatus status;
  nr_tensor *t = open_tensor("aclGetDataType", tensor, dataType != NULL, &status);
  if (!t)
    return status;
  *dataType = t->dtype;
  nr_tensor_release(tensor);
  return ACLNN_SUCCESS;
}

aclnnStatus aclSetRawTensorAddr(aclTensor *tensor, void *addr) {
  aclnnStatus status;
  nr_tensor *t = open_tensor("aclSetRawTensorAddr", tensor, true, &status);
  if (!t)
    return status;
  atomic_store(&t->data, addr);
  nr_tensor_release(tensor);
  return ACLNN_SUCCESS;
}

aclnnStatus aclGetRawTensorAddr(const aclTensor *tensor, void **addr) {
  aclnnStatus status;
  nr_tensor *t = open_tensor("aclGetRawTensorAddr", tensor, addr != NULL, &status);
  if (!t)
    return status;
  *addr = atomic_load(&t->data);
  nr_tensor_release(tensor);
  return ACLNN_SUCCESS;
}
