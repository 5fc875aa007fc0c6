/* Executors: a checked call, its plan, and the rules of how often it may run. */
#ifndef NR_ACL_EXECUTOR_H
#define NR_ACL_EXECUTOR_H

#include "acl/operator.h"

/* Plans the call and keeps a copy of it; sets *workspaceSize and *executor on success only. Codes as the first phase's.
 */
aclnnStatus nr_executor_create(const nr_call *call, uint64_t *workspaceSize, aclOpExecutor **executor);

/* The second phase of `op`. What is queued holds the plan with the addresses of now and needs the executor no more. */
aclnnStatus nr_executor_run(const nr_operator *op, void *workspace, uint64_t workspaceSize, aclOpExecutor *executor,
                            aclrtStream stream);

#endif
