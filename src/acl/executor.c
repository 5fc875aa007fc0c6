#include "acl/executor.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#include "acl/acl_error.h"
#include "acl/handle.h"
#include "acl/stream.h"
#include "acl/tensor.h"
#include "base/alloc.h"
#include "cuda/runtime.h"
#include "plan/plan.h"

enum { WORKSPACE_ALIGNMENT = 8 };

/* A plan and who still wants it: the executor, and each run that is queued. */
typedef struct shared_plan {
  atomic_int references;
  nr_plan *plan;
} shared_plan;

typedef struct nr_executor {
  pthread_mutex_t lock; /* of all that follows */
  nr_call call;
  shared_plan *plan;
  bool moved; /* addresses were set since it was planned */
  bool repeatable, used_up;
} nr_executor;

/* One run, queued. */
typedef struct nr_launch {
  shared_plan *plan;
  void *workspace;
  size_t workspace_size;
} nr_launch;

static aclnnStatus make_plan(const nr_call *call, shared_plan **made) {
  *made = NULL;
  nr_plan *plan;
  aclnnStatus status = nr_call_plan(call, &plan);
  if (status != ACLNN_SUCCESS)
    return status;
  shared_plan *shared = nr_calloc(1, sizeof *shared);
  if (!shared) {
    nr_plan_destroy(plan);
    return nr_acl_fail(ACLNN_ERR_INNER_CREATE_EXECUTOR, "%s: out of memory", call->op->name);
  }
  atomic_init(&shared->references, 1);
  shared->plan = plan;
  *made = shared;
  return ACLNN_SUCCESS;
}

static void drop_plan(shared_plan *shared) {
  if (!shared || atomic_fetch_sub(&shared->references, 1) > 1)
    return;
  nr_plan_destroy(shared->plan);
  nr_free(shared);
}

static void destroy_executor(void *object) {
  nr_executor *e = object;
  drop_plan(e->plan);
  pthread_mutex_destroy(&e->lock);
  nr_free(e);
}

aclnnStatus nr_executor_create(const nr_call *call, uint64_t *workspaceSize, aclOpExecutor **executor) {
  shared_plan *plan;
  aclnnStatus status = make_plan(call, &plan);
  if (status != ACLNN_SUCCESS)
    return status;
  size_t workspace = nr_plan_workspace_size(plan->plan);
  nr_executor *e = nr_calloc(1, sizeof *e);
  if (!e) {
    drop_plan(plan);
    return nr_acl_fail(ACLNN_ERR_INNER_CREATE_EXECUTOR, "%s: out of memory", call->op->name);
  }
  pthread_mutex_init(&e->lock, NULL);
  e->call = *call;
  e->plan = plan;
  aclOpExecutor *handle = nr_handle_new(NR_HANDLE_EXECUTOR, e, destroy_executor);
  if (!handle) {
    destroy_executor(e);
    return nr_acl_fail(ACLNN_ERR_INNER_CREATE_EXECUTOR, "%s: out of memory", call->op->name);
  }
  *workspaceSize = workspace;
  *executor = handle;
  return ACLNN_SUCCESS;
}

static aclnnStatus no_executor(const char *function, const aclOpExecutor *executor) {
  if (!executor)
    return nr_acl_fail(ACLNN_ERR_INNER_NULLPTR, "%s: executor: null", function);
  return nr_acl_fail(ACLNN_ERR_INNER_NULLPTR,
                     "%s: executor: %p has run and was not made repeatable, was destroyed, or is none of this operator",
                     function, (void *)executor);
}

static int run_launch(void *argument) {
  const nr_launch *launch = argument;
  if (nr_plan_run(launch->plan->plan, NULL, launch->workspace, launch->workspace_size, NULL) == NR_OK)
    return ACL_SUCCESS;
  return nr_acl_fail(ACL_ERROR_RT_FAILURE, "%s", nr_last_error());
}

static void drop_launch(void *argument) {
  nr_launch *launch = argument;
  drop_plan(launch->plan);
  nr_free(launch);
}

/* Checks the addresses that were set since the last plan, and plans with them. */
static aclnnStatus replan(nr_executor *e) {
  if (!e->moved)
    return ACLNN_SUCCESS;
  shared_plan *plan;
  aclnnStatus status = make_plan(&e->call, &plan);
  if (status != ACLNN_SUCCESS)
    return status == ACLNN_ERR_INNER_CREATE_EXECUTOR ? ACLNN_ERR_INNER : status;
  drop_plan(e->plan);
  e->plan = plan;
  e->moved = false;
  return ACLNN_SUCCESS;
}

static aclnnStatus check_workspace(const nr_executor *e, const void *workspace, uint64_t size) {
  size_t needed = nr_plan_workspace_size(e->plan->plan);
  if (needed && !workspace)
    return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "workspace: null, expected %zu bytes", needed);
  if (size < needed)
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "workspaceSize: %" PRIu64 ", expected at least %zu", size, needed);
  if (needed && (uintptr_t)workspace % WORKSPACE_ALIGNMENT)
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "workspace: address %p, expected a multiple of %d", workspace,
                       WORKSPACE_ALIGNMENT);
  return ACLNN_SUCCESS;
}

/* nr_stream_* set the text; the operators know fewer codes than the runtime. */
static aclnnStatus runtime_failure(aclError code) {
  return code == ACL_ERROR_BAD_ALLOC ? ACLNN_ERR_INNER : ACLNN_ERR_RUNTIME_ERROR;
}

/* In a CUDA stream, which needs the plan no more. */
static aclnnStatus launch_on_cuda(nr_executor *e, void *workspace, uint64_t size, int32_t cuda, void *queue) {
  nr_status status = nr_cuda->run(cuda, e->plan->plan, workspace, size, queue);
  return status == NR_OK ? ACLNN_SUCCESS : nr_acl_fail(ACLNN_ERR_RUNTIME_ERROR, "%s", nr_last_error());
}

static aclnnStatus push(nr_executor *e, void *workspace, uint64_t size, aclrtStream stream) {
  nr_stream *resolved;
  aclError code = nr_stream_resolve(stream, &resolved);
  if (code != ACL_SUCCESS)
    return runtime_failure(code);
  void *queue;
  int32_t cuda = nr_stream_cuda(resolved, &queue);
  aclnnStatus status = ACLNN_SUCCESS;
  if ((cuda >= 0) != (e->call.backend == NR_BACKEND_CUDA))
    status = nr_acl_fail(ACLNN_ERR_RUNTIME_ERROR,
                         "%s: stream: of %s, expected one of the kind of device that was current in the first phase",
                         e->call.op->name, cuda >= 0 ? "a CUDA device" : "the CPU");
  else if (cuda >= 0)
    status = launch_on_cuda(e, workspace, size, cuda, queue);
  if (cuda >= 0 || status != ACLNN_SUCCESS) {
    nr_stream_release(resolved);
    return status;
  }
  nr_launch *launch = nr_calloc(1, sizeof *launch);
  if (launch) {
    *launch = (nr_launch){.plan = e->plan, .workspace = workspace, .workspace_size = size};
    atomic_fetch_add(&e->plan->references, 1);
    code = nr_stream_push(resolved, run_launch, drop_launch, launch, nr_plan_worth(e->plan->plan));
    if (code != ACL_SUCCESS)
      drop_launch(launch);
  }
  nr_stream_release(resolved);
  if (!launch)
    return nr_acl_fail(ACLNN_ERR_INNER, "%s: out of memory", e->call.op->name);
  return code == ACL_SUCCESS ? ACLNN_SUCCESS : runtime_failure(code);
}

aclnnStatus nr_executor_run(const nr_operator *op, void *workspace, uint64_t workspaceSize, aclOpExecutor *executor,
                            aclrtStream stream) {
  nr_executor *e = nr_handle_acquire(NR_HANDLE_EXECUTOR, executor);
  if (!e)
    return no_executor(op->name, executor);
  pthread_mutex_lock(&e->lock);
  aclnnStatus status = e->used_up || e->call.op != op ? no_executor(op->name, executor) : replan(e);
  if (status == ACLNN_SUCCESS)
    status = check_workspace(e, workspace, workspaceSize);
  if (status == ACLNN_SUCCESS)
    status = push(e, workspace, workspaceSize, stream);
  bool ends = status == ACLNN_SUCCESS && !e->repeatable;
  e->used_up = e->used_up || ends;
  pthread_mutex_unlock(&e->lock);
  if (ends)
    nr_handle_retire(NR_HANDLE_EXECUTOR, executor);
  nr_handle_release(executor);
  return status;
}

aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor *executor) {
  nr_executor *e = nr_handle_acquire(NR_HANDLE_EXECUTOR, executor);
  if (!e)
    return no_executor(__func__, executor);
  pthread_mutex_lock(&e->lock);
  bool used_up = e->used_up;
  e->repeatable = true;
  pthread_mutex_unlock(&e->lock);
  nr_handle_release(executor);
  return used_up ? no_executor(__func__, executor) : ACLNN_SUCCESS;
}

aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor *executor) {
  return nr_handle_retire(NR_HANDLE_EXECUTOR, executor) ? ACLNN_SUCCESS : no_executor(__func__, executor);
}

typedef enum nr_range { RANGE_INPUTS, RANGE_OUTPUTS, RANGE_ALL } nr_range;

static aclnnStatus place(const char *function, nr_executor *e, size_t index, nr_range range, void *addr) {
  const nr_operator *op = e->call.op;
  int first = range == RANGE_OUTPUTS ? op->num_inputs : 0;
  int end = range == RANGE_INPUTS ? op->num_inputs : op->num_operands;
  if (index >= (size_t)(end - first))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: index %zu, expected below %d", function, index, end - first);
  int i = first + (int)index;
  if (!e->call.operands[i].given)
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: index %zu is %s, which was null in the first phase", function,
                       index, op->operands[i].name);
  if (!e->call.operands[i].used)
    return ACLNN_SUCCESS;
  if (!addr && !e->call.operands[i].empty)
    return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "%s: %s: null address", function, op->operands[i].name);
  nr_call_place(&e->call, i, addr);
  e->moved = true;
  return ACLNN_SUCCESS;
}

static aclnnStatus set_address(const char *function, aclOpExecutor *executor, size_t index, nr_range range,
                               const aclTensor *tensor, void *addr) {
  nr_executor *e = nr_handle_acquire(NR_HANDLE_EXECUTOR, executor);
  if (!e)
    return no_executor(function, executor);
  aclnnStatus status;
  if (!nr_tensor_acquire(tensor)) {
    status = nr_acl_fail(ACLNN_ERR_INNER_NULLPTR, "%s: tensor: %p, expected a living aclTensor", function,
                         (const void *)tensor);
  } else {
    nr_tensor_release(tensor);
    pthread_mutex_lock(&e->lock);
    status = e->used_up ? no_executor(function, executor) : place(function, e, index, range, addr);
    pthread_mutex_unlock(&e->lock);
  }
  nr_handle_release(executor);
  return status;
}

aclnnStatus aclSetInputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr) {
  return set_address(__func__, executor, index, RANGE_INPUTS, tensor, addr);
}

aclnnStatus aclSetOutputTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr) {
  return set_address(__func__, executor, index, RANGE_OUTPUTS, tensor, addr);
}

aclnnStatus aclSetTensorAddr(aclOpExecutor *executor, const size_t index, aclTensor *tensor, void *addr) {
  return set_address(__func__, executor, index, RANGE_ALL, tensor, addr);
}
