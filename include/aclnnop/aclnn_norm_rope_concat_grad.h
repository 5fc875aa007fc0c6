/*
 * aclnnNormRopeConcatBackward: from the gradients of the joined tensors [batch, headNum, seq, headDim] to those of the
 * streams [batch, seq, headNum, headDim] and of the norms' weights. docs/operator.md has the formulas, shapes, dtypes,
 * and which attribute requires which tensor.
 *
 * gradQuery, gradKey and gradValue are required; the other outputs may be left out (null). Outputs are assigned, never
 * accumulated. normType, normAddedType: 0 none, 1 LayerNorm, 2 affine LayerNorm, 3 RMSNorm, 4 affine RMSNorm. ropeType:
 * 0 none, 1 interleave, 2 half. concatOrder: 0 image first, 1 text first.
 */
#ifndef ACLNNOP_ACLNN_NORM_ROPE_CONCAT_GRAD_H
#define ACLNNOP_ACLNN_NORM_ROPE_CONCAT_GRAD_H

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* First phase: checks everything and says how large a workspace the second needs. On success *executor is one prepared
   call, and the aclTensors may be destroyed; on failure it is NULL, *workspaceSize is 0 and nothing was touched.
   Errors: 161001, 161002, 561101 (out of memory). */
ACL_FUNC_VISIBILITY aclnnStatus aclnnNormRopeConcatBackwardGetWorkspaceSize(
    const aclTensor *gradQueryOutput, const aclTensor *gradKeyOutput, const aclTensor *gradValueOutput,
    const aclTensor *query, const aclTensor *key, const aclTensor *encoderQuery, const aclTensor *encoderKey,
    const aclTensor *normQueryWeight, const aclTensor *normQueryMean, const aclTensor *normQueryRstd,
    const aclTensor *normKeyWeight, const aclTensor *normKeyMean, const aclTensor *normKeyRstd,
    const aclTensor *normAddedQueryWeight, const aclTensor *normAddedQueryMean, const aclTensor *normAddedQueryRstd,
    const aclTensor *normAddedKeyWeight, const aclTensor *normAddedKeyMean, const aclTensor *normAddedKeyRstd,
    const aclTensor *ropeSin, const aclTensor *ropeCos, int64_t normType, int64_t normAddedType, int64_t ropeType,
    int64_t concatOrder, const aclTensor *gradQuery, const aclTensor *gradKey, const aclTensor *gradValue,
    const aclTensor *gradEncoderQuery, const aclTensor *gradEncoderKey, const aclTensor *gradEncoderValue,
    const aclTensor *gradNormQueryWeight, const aclTensor *gradNormQueryBias, const aclTensor *gradNormKeyWeight,
    const aclTensor *gradNormKeyBias, const aclTensor *gradNormAddedQueryWeight,
    const aclTensor *gradNormAddedQueryBias, const aclTensor *gradNormAddedKeyWeight,
    const aclTensor *gradNormAddedKeyBias, uint64_t *workspaceSize, aclOpExecutor **executor);

/* Second phase: queues the call on the stream (null: the current context's default stream) and returns. workspace: at
   least the first phase's size, a multiple of 8 in address, left alone until the stream got there; may be null for 0.
   On failure nothing is queued and the executor is as it was, so that the call may be mended and repeated.
   Errors: 161001 (null workspace), 161002 (workspace too small; set addresses that overlap), 361001 (no context, stale
   stream or one of another context), 561000 (out of memory), 561103 (no executor of this operator, or one used up). */
ACL_FUNC_VISIBILITY aclnnStatus aclnnNormRopeConcatBackward(void *workspace, uint64_t workspaceSize,
                                                            aclOpExecutor *executor, aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif
