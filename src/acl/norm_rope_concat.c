/* The forward operator: its operands are the list in norm_rope_concat.def. */
#include "aclnnop/aclnn_norm_rope_concat.h"

#include "acl/executor.h"

static const nr_operand operands[] = {
#define INPUTS(n)
#define OPERAND(name, part, layout, need, field)                                                                       \
  {#name, NR_PART_##part, NR_LAYOUT_##layout, NR_NEED_##need, offsetof(nr_segment, field)},
#include "acl/norm_rope_concat.def"
#undef OPERAND
#undef INPUTS
};

const nr_operator nr_operator_forward = {
    .name = "aclnnNormRopeConcat",
    .direction = NR_FORWARD,
    .operands = operands,
#define INPUTS(n) .num_inputs = n,
#define OPERAND(...)
#include "acl/norm_rope_concat.def"
#undef OPERAND
#undef INPUTS
    .num_operands = sizeof operands / sizeof *operands,
};

aclnnStatus aclnnNormRopeConcatGetWorkspaceSize(
    const aclTensor *query, const aclTensor *key, const aclTensor *value, const aclTensor *encoderQuery,
    const aclTensor *encoderKey, const aclTensor *encoderValue, const aclTensor *normQueryWeight,
    const aclTensor *normQueryBias, const aclTensor *normKeyWeight, const aclTensor *normKeyBias,
    const aclTensor *normAddedQueryWeight, const aclTensor *normAddedQueryBias, const aclTensor *normAddedKeyWeight,
    const aclTensor *normAddedKeyBias, const aclTensor *ropeSin, const aclTensor *ropeCos, int64_t normType,
    int64_t normAddedType, int64_t ropeType, int64_t concatOrder, double eps, bool isTraining,
    const aclTensor *queryOutput, const aclTensor *keyOutput, const aclTensor *valueOutput,
    const aclTensor *normQueryMean, const aclTensor *normQueryRstd, const aclTensor *normKeyMean,
    const aclTensor *normKeyRstd, const aclTensor *normAddedQueryMean, const aclTensor *normAddedQueryRstd,
    const aclTensor *normAddedKeyMean, const aclTensor *normAddedKeyRstd, uint64_t *workspaceSize,
    aclOpExecutor **executor) {
  const aclTensor *const tensors[] = {
#define INPUTS(n)
#define OPERAND(name, ...) name,
#include "acl/norm_rope_concat.def"
#undef OPERAND
#undef INPUTS
  };
  const nr_attributes attributes = {.norm_type = normType,
                                    .norm_added_type = normAddedType,
                                    .rope_type = ropeType,
                                    .concat_order = concatOrder,
                                    .eps = eps,
                                    .is_training = isTraining};
  return nr_operator_prepare(&nr_operator_forward, tensors, &attributes, workspaceSize, executor);
}

aclnnStatus aclnnNormRopeConcat(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor, aclrtStream stream) {
  return nr_executor_run(&nr_operator_forward, workspace, workspaceSize, executor, stream);
}
