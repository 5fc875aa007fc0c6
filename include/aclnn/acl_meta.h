/*
 * Tensors and executors of the CANN-compatible interface (link name nnopbase).
 *
 * An aclTensor describes a view of memory that the caller owns; an aclOpExecutor is one prepared call of an operator.
 * Both are handles that are looked up, never followed: a null, stale, foreign or twice destroyed one is an error code.
 * All functions may be called from any thread. Each failure sets the text that aclGetRecentErrMsg gives to the thread.
 */
#ifndef ACLNN_ACL_META_H
#define ACLNN_ACL_META_H

#include <stddef.h>
#include <stdint.h>

#include "acl/acl_base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclFloatArray aclFloatArray;
typedef struct aclBoolArray aclBoolArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclScalarList aclScalarList;
typedef struct aclOpExecutor aclOpExecutor;

typedef int32_t aclnnStatus;

static const aclnnStatus ACLNN_SUCCESS = 0;
static const aclnnStatus ACLNN_ERR_PARAM_NULLPTR = 161001; /* a required tensor, address or result is null */
static const aclnnStatus ACLNN_ERR_PARAM_INVALID = 161002; /* dtype, format, shape, attribute, overlap, size */
static const aclnnStatus ACLNN_ERR_RUNTIME_ERROR = 361001; /* no context, wrong device, stream of another context */
static const aclnnStatus ACLNN_ERR_INNER = 561000;         /* out of memory */
static const aclnnStatus ACLNN_ERR_INNER_TILING_ERROR = 561002;
static const aclnnStatus ACLNN_ERR_INNER_CREATE_EXECUTOR = 561101; /* out of memory for an executor */
static const aclnnStatus ACLNN_ERR_INNER_NULLPTR = 561103;         /* no executor: null, stale, used up or foreign */

/*
 * Describes element [i0, i1, ...] of a view at data + (offset + i0 * stride[0] + i1 * stride[1] + ...) elements.
 * viewDims, stride: [viewDimsNum], at most 8, dims of at least 0; stride null: contiguous; strides may have any sign or
 * be 0. storageDims: [storageDimsNum], at most 8; the view must lie inside an array of their product. data may be null
 * where it is set later. The arrays are copied, the memory at data stays the caller's. NULL on bad input, with a text.
 */
ACL_FUNC_VISIBILITY aclTensor *aclCreateTensor(const int64_t *viewDims, uint64_t viewDimsNum, aclDataType dataType,
                                               const int64_t *stride, int64_t offset, aclFormat format,
                                               const int64_t *storageDims, uint64_t storageDimsNum, void *tensorData);

/* Allowed as soon as the first phases that used the tensor returned. Null is fine; 161002 if destroyed already. */
ACL_FUNC_VISIBILITY aclnnStatus aclDestroyTensor(const aclTensor *tensor);

/* Copies of the tensor's numbers in arrays that the caller owns, to be freed with delete[]; by free in a
   process without a C++ library, and wherever operator new[] is malloc.
   Errors of all getters: 161001 null, 161002 no living tensor, 561000 out of memory. */
ACL_FUNC_VISIBILITY aclnnStatus aclGetViewShape(const aclTensor *tensor, int64_t **viewDims, uint64_t *viewDimsNum);
ACL_FUNC_VISIBILITY aclnnStatus aclGetViewStrides(const aclTensor *tensor, int64_t **stridesValue,
                                                  uint64_t *stridesNum);
ACL_FUNC_VISIBILITY aclnnStatus aclGetStorageShape(const aclTensor *tensor, int64_t **storageDims,
                                                   uint64_t *storageDimsNum);
ACL_FUNC_VISIBILITY aclnnStatus aclGetViewOffset(const aclTensor *tensor, int64_t *offset);
ACL_FUNC_VISIBILITY aclnnStatus aclGetFormat(const aclTensor *tensor, aclFormat *format);
ACL_FUNC_VISIBILITY aclnnStatus aclGetDataType(const aclTensor *tensor, aclDataType *dataType);

/* The storage's address (without the view's offset). Executors made before are not affected by a new one. */
ACL_FUNC_VISIBILITY aclnnStatus aclSetRawTensorAddr(aclTensor *tensor, void *addr);
ACL_FUNC_VISIBILITY aclnnStatus aclGetRawTensorAddr(const aclTensor *tensor, void **addr);

/*
 * An executor runs once, and a second phase that succeeded ends it; one that failed leaves it as it was. Made
 * repeatable it runs any number of times, on any streams of any threads at once (each run with its own workspace and
 * outputs), until it is destroyed, which queued runs survive. 561103: null, destroyed, used up or foreign executor.
 */
ACL_FUNC_VISIBILITY aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *executor);
ACL_FUNC_VISIBILITY aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor *executor);

/*
 * Gives a tensor of the executor another storage address, for the runs that are launched from now on; the view of the
 * first phase (shape, strides, offset, dtype) stays. index counts the operator's inputs, its outputs, or both (inputs
 * first), in prototype order from 0. tensor: any living tensor, customarily that of the first phase; it is not changed.
 * The next second phase checks the new addresses: alignment and overlaps.
 * Errors: 561103 null or stale executor or tensor; 161001 null addr where the tensor has elements; 161002 index out of
 * range, or of a tensor that was null, or of no use, in the first phase.
 */
ACL_FUNC_VISIBILITY aclnnStatus aclSetInputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                                                      void *addr);
ACL_FUNC_VISIBILITY aclnnStatus aclSetOutputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                                                       void *addr);
ACL_FUNC_VISIBILITY aclnnStatus aclSetTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor,
                                                 void *addr);

#ifdef __cplusplus
}
#endif

#endif
