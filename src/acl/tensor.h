/* What an aclTensor handle stands for. */
#ifndef NR_ACL_TENSOR_H
#define NR_ACL_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "aclnn/acl_meta.h"

enum { NR_TENSOR_RANK = 8 }; /* the most axes that a tensor has */

/* One view of a strided storage, checked: the view lies inside the storage, no product overflows. */
typedef struct nr_tensor {
  int rank, storage_rank;
  int64_t shape[NR_TENSOR_RANK];
  int64_t stride[NR_TENSOR_RANK]; /* in elements */
  int64_t storage[NR_TENSOR_RANK];
  int64_t offset; /* of the view's first element, in elements from data */
  aclDataType dtype;
  aclFormat format;
  _Atomic(void *) data; /* of the storage; the one member that may change */
} nr_tensor;

/* The tensor, alive until nr_tensor_release; NULL if the handle is stale or none of ours. Any thread. */
const nr_tensor *nr_tensor_acquire(const aclTensor *tensor);
void nr_tensor_release(const aclTensor *tensor);

/* Elements of the view. */
int64_t nr_tensor_count(const nr_tensor *tensor);

/* "FLOAT32", "BFLOAT16", …; "unknown" for numbers that no aclDataType has. */
const char *nr_acl_dtype_name(aclDataType dtype);

enum { NR_SHAPE_TEXT = 192 };

/* Writes "[1,10,8,6]" into `text` [NR_SHAPE_TEXT] and returns it. */
const char *nr_shape_text(const int64_t *shape, int rank, char *text);

#endif
