/* The backward operator: its operands are the list in norm_rope_concat_grad.def. */
#include "aclnnop/aclnn_norm_rope_concat_grad.h"

#include "acl/executor.h"

static const nr_operand operands[] = {
#define INPUTS(n)
#define OPERAND(name, part, layout, need, field)                                                                       \
  {#name, NR_PART_##part, NR_LAYOUT_##layout, NR_NEED_##need, offsetof(nr_segment, field)},
#include "acl/norm_rope_concat_grad.def"
#undef OPERAND
#undef INPUTS
};

const nr_operator nr_operator_backward = {
    .name = "aclnnNormRopeConcatBackward",
    .direction = NR_BACKWARD,
    .operands = operands,
#define INPUTS(n) .num_inputs = n,
#define OPERAND(...)
#include "acl/norm_rope_concat_grad.def"
#undef OPERAND
#undef INPUTS
    .num_operands = sizeof operands / sizeof *operands,
};

_Static_assert(sizeof operands / sizeof *operands == NR_MAX_OPERANDS, "the backward has the most operands");

aclnnStatus aclnnNormRopeConcatBackwardGetWorkspaceSize(
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
    const aclTensor *gradNormAddedKeyBias, uint64_t *workspaceSize, aclOpExecutor **executor) {
  const aclTensor *const tensors[] = {
#define INPUTS(n)
#define OPERAND(name, ...) name,
#include "acl/norm_rope_concat_grad.def"
#undef OPERAND
#undef INPUTS
  };
  const nr_attributes attributes = {
      .norm_type = normType, .norm_added_type = normAddedType, .rope_type = ropeType, .concat_order = concatOrder};
  return nr_operator_prepare(&nr_operator_backward, tensors, &attributes, workspaceSize, executor);
}

aclnnStatus aclnnNormRopeConcatBackward(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor,
                                        aclrtStream stream) {
  return nr_executor_run(&nr_operator_backward, workspace, workspaceSize, executor, stream);
}
