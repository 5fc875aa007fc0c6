/*
 * Calls of the two operators for tests: every operand of the list with memory, a shape that fits, and a handle. A test
 * sets sizes, attributes and which operands there are, builds, spoils what it likes, and calls. Failures end the test.
 */
#ifndef NR_TESTS_ACL_CALL_H
#define NR_TESTS_ACL_CALL_H

#include "acl/operator.h"

enum { CALL_RANK = 4 };

typedef struct call_tensor {
  bool given;
  aclDataType dtype;
  aclFormat format;
  int rank;
  int64_t shape[CALL_RANK], stride[CALL_RANK], offset; /* in elements */
  int64_t storage;                                     /* elements */
  unsigned char *memory;                               /* guarded */
  unsigned char *before;                               /* what was in it */
  aclTensor *handle;
} call_tensor;

typedef struct acl_call {
  const nr_operator *op;
  nr_attributes attributes;
  aclDataType dtype;
  int64_t batch, heads, dim, rope, seq[NR_NUM_PARTS]; /* value as key */
  bool strided;                                       /* gaps behind every axis, channels two apart, an offset */
  call_tensor tensors[NR_MAX_OPERANDS];
} acl_call;

/* Every operand given, norms 2, rope 1, odd sizes, training. Free with call_free. */
acl_call call_default(const nr_operator *op, aclDataType dtype);

/* The index of an operand by name. */
int call_index(const acl_call *call, const char *name);

/* No text query, or no text key and value: leaves out every operand of theirs but weight gradients. */
void call_without_text(acl_call *call, nr_part text_part);

/* Shapes, memory and handles for the operands given. Inputs are random, from `seed`; outputs are poison. */
void call_build(acl_call *call, unsigned seed);
/* A new handle after a test changed a tensor's description. */
void call_remake(call_tensor *t);
size_t call_bytes(const call_tensor *t);
void call_free(acl_call *call);

/* The first phase with the tensors' handles. */
aclnnStatus call_prepare(const acl_call *call, uint64_t *workspace, aclOpExecutor **executor);
aclnnStatus call_launch(const acl_call *call, void *workspace, uint64_t size, aclOpExecutor *executor,
                        aclrtStream stream);
/* Both phases on the default stream and a synchronisation, all of which must succeed. */
void call_run(const acl_call *call);

/* No byte of any tensor, nor around it, is other than when it was built. */
void call_assert_untouched(const acl_call *call);

/* Element `index` [rank] of a tensor. */
double call_load(const call_tensor *t, const int64_t *index);

/* Every output against the formulas, in double precision, and the bytes between the elements of outputs, and all of the
   inputs, against what they were. */
void call_check(const acl_call *call);

#endif
