/* The life of executors: once or repeatable, new addresses, destroyed early or late, many streams and threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "support/acl_call.h"

static const nr_operator *const operators[] = {&nr_operator_forward, &nr_operator_backward};

enum { WORKSPACE = 4096 };

/* A built call and its executor. */
static aclOpExecutor *prepare(acl_call *call, const nr_operator *op, unsigned seed, uint64_t *size) {
  *call = call_default(op, ACL_FLOAT);
  call_build(call, seed);
  aclOpExecutor *executor;
  assert_int_equal(call_prepare(call, size, &executor), ACLNN_SUCCESS);
  assert_true(*size <= WORKSPACE * sizeof(double));
  return executor;
}

static void refused(aclnnStatus status) {
  assert_int_equal(status, ACLNN_ERR_INNER_NULLPTR);
  assert_non_null(aclGetRecentErrMsg());
}

/* Everything that takes an executor refuses this one. */
static void all_refuse(const acl_call *call, aclOpExecutor *executor) {
  static double workspace[WORKSPACE];
  refused(call_launch(call, workspace, sizeof workspace, executor, NULL));
  refused(aclSetAclOpExecutorRepeatable(executor));
  refused(aclSetInputTensorAddr(executor, 0, call->tensors[0].handle, call->tensors[0].memory));
  refused(aclSetOutputTensorAddr(executor, 0, call->tensors[0].handle, call->tensors[0].memory));
  refused(aclSetTensorAddr(executor, 0, call->tensors[0].handle, call->tensors[0].memory));
  refused(aclDestroyAclOpExecutor(executor));
}

static void test_runs_once(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  for (int o = 0; o < 2; o++) {
    acl_call call;
    uint64_t size;
    aclOpExecutor *executor = prepare(&call, operators[o], 1, &size);
    assert_int_equal(call_launch(&call, workspace, size, executor, NULL), ACLNN_SUCCESS);
    all_refuse(&call, executor);
    assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
    all_refuse(&call, executor);
    call_check(&call);
    call_free(&call);
  }
}

/* A launch of this size wakes no thread: whoever waits for it runs it. */
static void test_runs_when_waited_for(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  for (int o = 0; o < 2; o++) {
    acl_call call;
    uint64_t size;
    aclOpExecutor *executor = prepare(&call, operators[o], 1, &size);
    assert_int_equal(call_launch(&call, workspace, size, executor, NULL), ACLNN_SUCCESS);
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    call_assert_untouched(&call);
    aclrtStreamStatus status;
    assert_int_equal(aclrtStreamQuery(NULL, &status), ACL_SUCCESS);
    assert_int_equal(status, ACL_STREAM_STATUS_COMPLETE);
    call_check(&call);
    call_free(&call);
  }
}

static void test_never_run(void **state) {
  (void)state;
  acl_call call;
  uint64_t size;
  aclOpExecutor *executor = prepare(&call, &nr_operator_backward, 1, &size);
  assert_int_equal(aclDestroyAclOpExecutor(executor), ACLNN_SUCCESS);
  all_refuse(&call, executor);
  call_assert_untouched(&call);
  call_free(&call);
}

static void test_foreign(void **state) {
  (void)state;
  acl_call call;
  uint64_t size;
  static char nothing[256];
  aclOpExecutor *executor = prepare(&call, &nr_operator_backward, 1, &size);
  aclrtStream stream;
  assert_int_equal(aclrtCreateStream(&stream), ACL_SUCCESS);
  aclOpExecutor *const foreign[] = {NULL,
                                    (aclOpExecutor *)nothing,
                                    (aclOpExecutor *)1,
                                    (aclOpExecutor *)&call,
                                    (aclOpExecutor *)call.tensors[0].handle,
                                    stream,
                                    (aclOpExecutor *)-1};
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
    all_refuse(&call, foreign[i]);
  /* The other operator's second phase does not take it, and leaves it be. */
  static double workspace[WORKSPACE];
  acl_call forward = {.op = &nr_operator_forward};
  refused(call_launch(&forward, workspace, sizeof workspace, executor, NULL));
  assert_int_equal(call_launch(&call, workspace, sizeof workspace, executor, NULL), ACLNN_SUCCESS);
  assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
  call_check(&call);
  assert_int_equal(aclrtDestroyStream(stream), ACL_SUCCESS);
  call_free(&call);
}

static void destroy_tensors(acl_call *call) {
  for (int i = 0; i < call->op->num_operands; i++) {
    assert_int_equal(aclDestroyTensor(call->tensors[i].handle), ACLNN_SUCCESS);
    call->tensors[i].handle = NULL;
  }
}

/* The tensors' handles may go after the first phase, the executor while its work is queued. */
static void test_destroyed_early(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  for (int o = 0; o < 2; o++) {
    acl_call call;
    uint64_t size;
    aclOpExecutor *executor = prepare(&call, operators[o], 2, &size);
    destroy_tensors(&call);
    assert_int_equal(aclSetAclOpExecutorRepeatable(executor), ACLNN_SUCCESS);
    for (int i = 0; i < 50; i++)
      assert_int_equal(call_launch(&call, workspace, size, executor, NULL), ACLNN_SUCCESS);
    assert_int_equal(aclDestroyAclOpExecutor(executor), ACLNN_SUCCESS);
    refused(call_launch(&call, workspace, size, executor, NULL));
    assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
    call_check(&call);
    call_free(&call);
  }
}

/* All addresses of an executor become those of another call of the same description. */
static void redirect(aclOpExecutor *executor, const acl_call *to, bool by_side) {
  for (int i = 0; i < to->op->num_operands; i++) {
    const call_tensor *t = &to->tensors[i];
    int inputs = to->op->num_inputs;
    aclnnStatus status;
    if (by_side)
      status = i < inputs ? aclSetInputTensorAddr(executor, (size_t)i, t->handle, t->memory)
                          : aclSetOutputTensorAddr(executor, (size_t)(i - inputs), t->handle, t->memory);
    else
      status = aclSetTensorAddr(executor, (size_t)i, t->handle, t->memory);
    assert_int_equal(status, ACLNN_SUCCESS);
  }
}

/* Runs in a row with other addresses each; setting addresses leaves alone what is queued. */
static void test_new_addresses(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  enum { CALLS = 8 };
  for (int o = 0; o < 2; o++) {
    acl_call calls[CALLS];
    uint64_t size;
    aclOpExecutor *executor = prepare(&calls[0], operators[o], 10, &size);
    assert_int_equal(aclSetAclOpExecutorRepeatable(executor), ACLNN_SUCCESS);
    for (unsigned n = 1; n < CALLS; n++) {
      calls[n] = call_default(operators[o], ACL_FLOAT);
      call_build(&calls[n], 10 + n);
    }
    for (int n = 0; n < CALLS; n++) {
      if (n > 0)
        redirect(executor, &calls[n], n % 2);
      assert_int_equal(call_launch(&calls[n], workspace, size, executor, NULL), ACLNN_SUCCESS);
    }
    assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
    for (int n = 0; n < CALLS; n++) {
      call_check(&calls[n]);
      call_free(&calls[n]);
    }
    assert_int_equal(aclDestroyAclOpExecutor(executor), ACLNN_SUCCESS);
  }
}

/* Strided operands, whose offset counts from the new address, with both parts and the text first. */
static void test_new_addresses_strided(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  for (int o = 0; o < 2; o++) {
    acl_call calls[2];
    for (unsigned n = 0; n < 2; n++) {
      calls[n] = call_default(operators[o], ACL_BF16);
      calls[n].attributes.concat_order = 1;
      calls[n].strided = true;
      call_build(&calls[n], n);
    }
    uint64_t size;
    aclOpExecutor *executor;
    assert_int_equal(call_prepare(&calls[0], &size, &executor), ACLNN_SUCCESS);
    redirect(executor, &calls[1], true);
    assert_int_equal(call_launch(&calls[1], workspace, sizeof workspace, executor, NULL), ACLNN_SUCCESS);
    assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
    call_check(&calls[1]);
    call_assert_untouched(&calls[0]);
    call_free(&calls[0]);
    call_free(&calls[1]);
  }
}

static void test_bad_addresses(void **state) {
  (void)state;
  static double workspace[WORKSPACE];
  acl_call call = call_default(&nr_operator_backward, ACL_FLOAT);
  call_without_text(&call, NR_PART_TEXT_QUERY);
  call.rope = 5;
  call.attributes.norm_type = 1;
  call_build(&call, 3);
  uint64_t size;
  aclOpExecutor *executor;
  assert_int_equal(call_prepare(&call, &size, &executor), ACLNN_SUCCESS);
  assert_int_equal(aclSetAclOpExecutorRepeatable(executor), ACLNN_SUCCESS);
  call_tensor *query = &call.tensors[call_index(&call, "query")], *key = &call.tensors[call_index(&call, "key")];
  const int grad_query = call_index(&call, "gradQuery");
  aclTensor *stale = aclCreateTensor(NULL, 0, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, NULL, 0, NULL);
  assert_int_equal(aclDestroyTensor(stale), ACLNN_SUCCESS);
  refused(aclSetInputTensorAddr(executor, 3, NULL, query->memory));
  refused(aclSetInputTensorAddr(executor, 3, stale, query->memory));
  assert_int_equal(aclSetInputTensorAddr(executor, 21, query->handle, query->memory), ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclSetOutputTensorAddr(executor, 14, query->handle, query->memory), ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclSetTensorAddr(executor, 35, query->handle, query->memory), ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclSetTensorAddr(executor, SIZE_MAX, query->handle, query->memory), ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclSetInputTensorAddr(executor, 5, query->handle, query->memory), ACLNN_ERR_PARAM_INVALID);
  assert_non_null(strstr(aclGetRecentErrMsg(), "encoderQuery, which was null"));
  assert_int_equal(aclSetInputTensorAddr(executor, 3, query->handle, NULL), ACLNN_ERR_PARAM_NULLPTR);
  /* A weight that normType 1 makes useless may be set to anything. */
  assert_int_equal(aclSetInputTensorAddr(executor, 7, query->handle, NULL), ACLNN_SUCCESS);
  /* Addresses that overlap, or are no multiple of the dtype's size: found by the next second phase, and mended. */
  void *bad[] = {key->memory, query->memory + 4, query->memory + 1};
  for (int i = 0; i < 3; i++) {
    assert_int_equal(aclSetTensorAddr(executor, (size_t)grad_query, query->handle, bad[i]), ACLNN_SUCCESS);
    assert_int_equal(call_launch(&call, workspace, sizeof workspace, executor, NULL), ACLNN_ERR_PARAM_INVALID);
    assert_non_null(strstr(aclGetRecentErrMsg(), "gradQuery"));
  }
  /* Two weight gradients in one place would be summed, if they were let. */
  int weight = call_index(&call, "gradNormAddedKeyWeight"), other = call_index(&call, "gradNormKeyWeight");
  assert_int_equal(aclSetTensorAddr(executor, (size_t)grad_query, query->handle, call.tensors[grad_query].memory), 0);
  assert_int_equal(aclSetTensorAddr(executor, (size_t)weight, query->handle, call.tensors[other].memory), 0);
  assert_int_equal(call_launch(&call, workspace, sizeof workspace, executor, NULL), ACLNN_ERR_PARAM_INVALID);
  assert_non_null(strstr(aclGetRecentErrMsg(), "gradNormAddedKeyWeight: overlaps gradNormKeyWeight"));
  assert_int_equal(aclSetTensorAddr(executor, (size_t)weight, query->handle, call.tensors[weight].memory), 0);
  assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
  call_assert_untouched(&call);
  assert_int_equal(call_launch(&call, workspace, sizeof workspace, executor, NULL), ACLNN_SUCCESS);
  assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
  call_check(&call);
  assert_int_equal(aclDestroyAclOpExecutor(executor), ACLNN_SUCCESS);
  call_free(&call);
}

enum { THREADS = 4, ROUNDS = 20 };

typedef struct shared {
  pthread_mutex_t lock; /* setting addresses and launching with them is one step */
  aclOpExecutor *executor;
  aclrtContext context;
  aclrtStream streams[THREADS];
  acl_call calls[THREADS];
  double workspaces[THREADS][WORKSPACE];
  aclOpExecutor *once;
  int won, failures;
} shared;

typedef struct worker {
  shared *s;
  int index;
} worker;

static void *launch_often(void *argument) {
  const worker *w = argument;
  shared *s = w->s;
  int failures = aclrtSetCurrentContext(s->context) != ACL_SUCCESS;
  for (int round = 0; round < ROUNDS; round++) {
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->calls[w->index].op->num_operands; i++) {
      const call_tensor *t = &s->calls[w->index].tensors[i];
      failures += aclSetTensorAddr(s->executor, (size_t)i, t->handle, t->memory) != ACLNN_SUCCESS;
    }
    failures += call_launch(&s->calls[w->index], s->workspaces[w->index], sizeof s->workspaces[0], s->executor,
                            s->streams[w->index]) != ACLNN_SUCCESS;
    pthread_mutex_unlock(&s->lock);
  }
  failures += aclrtSynchronizeStream(s->streams[w->index]) != ACL_SUCCESS;
  bool won = call_launch(&s->calls[w->index], s->workspaces[w->index], sizeof s->workspaces[0], s->once,
                         s->streams[w->index]) == ACLNN_SUCCESS;
  failures += aclrtSynchronizeStream(s->streams[w->index]) != ACL_SUCCESS;
  pthread_mutex_lock(&s->lock);
  s->won += won;
  s->failures += failures;
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

/* One repeatable executor from several threads on their own streams, workspaces and tensors; and one that runs once,
   which exactly one of the threads gets. */
static void test_threads(void **state) {
  (void)state;
  for (int o = 0; o < 2; o++) {
    static shared s;
    memset(&s, 0, sizeof s);
    pthread_mutex_init(&s.lock, NULL);
    uint64_t size;
    acl_call once;
    s.once = prepare(&once, operators[o], 99, &size);
    assert_int_equal(aclrtGetCurrentContext(&s.context), ACL_SUCCESS);
    s.executor = prepare(&s.calls[0], operators[o], 20, &size);
    assert_int_equal(aclSetAclOpExecutorRepeatable(s.executor), ACLNN_SUCCESS);
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int n = 0; n < THREADS; n++) {
      if (n > 0) {
        s.calls[n] = call_default(operators[o], ACL_FLOAT);
        call_build(&s.calls[n], 20 + (unsigned)n);
      }
      assert_int_equal(aclrtCreateStream(&s.streams[n]), ACL_SUCCESS);
    }
    for (int n = 0; n < THREADS; n++) {
      workers[n] = (worker){&s, n};
      assert_int_equal(pthread_create(&threads[n], NULL, launch_often, &workers[n]), 0);
    }
    for (int n = 0; n < THREADS; n++)
      pthread_join(threads[n], NULL);
    assert_int_equal(s.failures, 0);
    assert_int_equal(s.won, 1);
    call_check(&once);
    call_free(&once);
    for (int n = 0; n < THREADS; n++) {
      call_check(&s.calls[n]);
      call_free(&s.calls[n]);
      assert_int_equal(aclrtDestroyStream(s.streams[n]), ACL_SUCCESS);
    }
    assert_int_equal(aclDestroyAclOpExecutor(s.executor), ACLNN_SUCCESS);
    pthread_mutex_destroy(&s.lock);
  }
}

static int setup(void **state) {
  (void)state;
  return aclInit(NULL) || aclrtSetDevice(0);
}

static int teardown(void **state) {
  (void)state;
  return aclrtResetDevice(0) || aclFinalize();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_runs_once),
      cmocka_unit_test(test_runs_when_waited_for),
      cmocka_unit_test(test_never_run),
      cmocka_unit_test(test_foreign),
      cmocka_unit_test(test_destroyed_early),
      cmocka_unit_test(test_new_addresses),
      cmocka_unit_test(test_new_addresses_strided),
      cmocka_unit_test(test_bad_addresses),
      cmocka_unit_test(test_threads),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
