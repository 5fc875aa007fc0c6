/* What a tiny call costs, step by step, through the native interface and through the two-phase one. */
#include <string.h>

#include "acl/acl.h"
#include "aclnnop/aclnn_norm_rope_concat.h"
#include "aclnnop/aclnn_norm_rope_concat_grad.h"
#include "cli/bench.h"
#include "cli/make_case.h"

enum { WARM_UP = 200, SAMPLES = 2000, MAX_PARAMETERS = 35 };

const char *const nr_latency_names[NR_NUM_LATENCIES] = {[NR_LATENCY_PLAN] = "plan_create",
                                                        [NR_LATENCY_RUN] = "plan_run",
                                                        [NR_LATENCY_CALL] = "two_phases_and_synchronize",
                                                        [NR_LATENCY_LAUNCH] = "repeatable_launch",
                                                        [NR_LATENCY_REPEAT] = "repeatable_launch_and_synchronize"};

/* The operator's tensors in the order of its parameters. */
static const char *const parameters[2][MAX_PARAMETERS] = {[NR_FORWARD] = {"query",
                                                                          "key",
                                                                          "value",
                                                                          "encoderQuery",
                                                                          "encoderKey",
                                                                          "encoderValue",
                                                                          "normQueryWeight",
                                                                          "normQueryBias",
                                                                          "normKeyWeight",
                                                                          "normKeyBias",
                                                                          "normAddedQueryWeight",
                                                                          "normAddedQueryBias",
                                                                          "normAddedKeyWeight",
                                                                          "normAddedKeyBias",
                                                                          "ropeSin",
                                                                          "ropeCos",
                                                                          "queryOutput",
                                                                          "keyOutput",
                                                                          "valueOutput",
                                                                          "normQueryMean",
                                                                          "normQueryRstd",
                                                                          "normKeyMean",
                                                                          "normKeyRstd",
                                                                          "normAddedQueryMean",
                                                                          "normAddedQueryRstd",
                                                                          "normAddedKeyMean",
                                                                          "normAddedKeyRstd"},
                                                          [NR_BACKWARD] = {"gradQueryOutput",
                                                                           "gradKeyOutput",
                                                                           "gradValueOutput",
                                                                           "query",
                                                                           "key",
                                                                           "encoderQuery",
                                                                           "encoderKey",
                                                                           "normQueryWeight",
                                                                           "normQueryMean",
                                                                           "normQueryRstd",
                                                                           "normKeyWeight",
                                                                           "normKeyMean",
                                                                           "normKeyRstd",
                                                                           "normAddedQueryWeight",
                                                                           "normAddedQueryMean",
                                                                           "normAddedQueryRstd",
                                                                           "normAddedKeyWeight",
                                                                           "normAddedKeyMean",
                                                                           "normAddedKeyRstd",
                                                                           "ropeSin",
                                                                           "ropeCos",
                                                                           "gradQuery",
                                                                           "gradKey",
                                                                           "gradValue",
                                                                           "gradEncoderQuery",
                                                                           "gradEncoderKey",
                                                                           "gradEncoderValue",
                                                                           "gradNormQueryWeight",
                                                                           "gradNormQueryBias",
                                                                           "gradNormKeyWeight",
                                                                           "gradNormKeyBias",
                                                                           "gradNormAddedQueryWeight",
                                                                           "gradNormAddedQueryBias",
                                                                           "gradNormAddedKeyWeight",
                                                                           "gradNormAddedKeyBias"}};

typedef struct session {
  nr_recipe recipe;
  nr_bench_case *b;
  nr_problem problem;
  nr_plan *plan, *fresh;
  char native_workspace[1 << 16] __attribute__((aligned(64)));
  aclrtStream stream;
  aclTensor *tensors[MAX_PARAMETERS];
  void *blocks[MAX_PARAMETERS], *workspace;
  uint64_t workspace_size;
  aclOpExecutor *repeatable;
} session;

/* The steps that are timed, and what puts things back between two of them. All return 0 for success. */
static int create_plan(session *s) { return (int)nr_plan_create(&s->fresh, &s->problem); }

static int destroy_plan(session *s) {
  nr_plan_destroy(s->fresh);
  s->fresh = NULL;
  return 0;
}

static int run_plan(session *s) {
  return (int)nr_plan_run(s->plan, NULL, s->native_workspace, sizeof s->native_workspace, NULL);
}

static int synchronize(session *s) { return aclrtSynchronizeStream(s->stream); }

static int first_phase(session *s, aclOpExecutor **executor) {
  aclTensor **t = s->tensors;
  const nr_recipe *r = &s->recipe;
  int64_t rope = r->rope_width == 0 ? 0 : r->rope_width == 2 ? 1 : 2;
  if (s->b->direction == NR_FORWARD)
    return aclnnNormRopeConcatGetWorkspaceSize(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11],
                                               t[12], t[13], t[14], t[15], r->norm, r->norm_added, rope, r->order,
                                               r->eps, true, t[16], t[17], t[18], t[19], t[20], t[21], t[22], t[23],
                                               t[24], t[25], t[26], &s->workspace_size, executor);
  return aclnnNormRopeConcatBackwardGetWorkspaceSize(
      t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15], t[16],
      t[17], t[18], t[19], t[20], r->norm, r->norm_added, rope, r->order, t[21], t[22], t[23], t[24], t[25], t[26],
      t[27], t[28], t[29], t[30], t[31], t[32], t[33], t[34], &s->workspace_size, executor);
}

static int second_phase(session *s, aclOpExecutor *executor) {
  return s->b->direction == NR_FORWARD
             ? aclnnNormRopeConcat(s->workspace, s->workspace_size, executor, s->stream)
             : aclnnNormRopeConcatBackward(s->workspace, s->workspace_size, executor, s->stream);
}

static int launch(session *s) { return second_phase(s, s->repeatable); }

static int launch_and_synchronize(session *s) {
  int code = launch(s);
  return code ? code : synchronize(s);
}

static int two_phases_and_synchronize(session *s) {
  aclOpExecutor *executor;
  int code = first_phase(s, &executor);
  if (!code)
    code = second_phase(s, executor);
  return code ? code : synchronize(s);
}

static const struct {
  int (*timed)(session *);
  int (*after)(session *); /* may be NULL */
} steps[NR_NUM_LATENCIES] = {[NR_LATENCY_PLAN] = {create_plan, destroy_plan},
                             [NR_LATENCY_RUN] = {run_plan, NULL},
                             [NR_LATENCY_CALL] = {two_phases_and_synchronize, NULL},
                             [NR_LATENCY_LAUNCH] = {launch, synchronize},
                             [NR_LATENCY_REPEAT] = {launch_and_synchronize, NULL}};

/* A tensor on the device with the data of the case's; NULL stays in its place where the case has none. */
static int put_tensor(session *s, int place, const char *name) {
  const nr_tensor *t = nr_bench_tensor(s->b, name);
  if (!t)
    return 0;
  int code = aclrtMalloc(&s->blocks[place], t->size, ACL_MEM_MALLOC_HUGE_FIRST);
  if (!code)
    code = aclrtMemcpy(s->blocks[place], t->size, t->data, t->size, ACL_MEMCPY_HOST_TO_DEVICE);
  if (code)
    return code;
  s->tensors[place] = aclCreateTensor(t->shape, (uint64_t)t->rank, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, t->shape,
                                      (uint64_t)t->rank, s->blocks[place]);
  return s->tensors[place] ? 0 : ACL_ERROR_BAD_ALLOC;
}

static int open_device(session *s) {
  int code = aclInit(NULL);
  if (!code)
    code = aclrtSetDevice(0);
  if (!code)
    code = aclrtCreateStream(&s->stream);
  for (int i = 0; i < MAX_PARAMETERS && !code; i++)
    if (parameters[s->b->direction][i])
      code = put_tensor(s, i, parameters[s->b->direction][i]);
  if (!code)
    code = first_phase(s, &s->repeatable);
  if (!code)
    code = aclSetAclOpExecutorRepeatable(s->repeatable);
  if (!code && s->workspace_size)
    code = aclrtMalloc(&s->workspace, s->workspace_size, ACL_MEM_MALLOC_HUGE_FIRST);
  return code;
}

static void close_device(session *s) {
  if (s->repeatable)
    aclDestroyAclOpExecutor(s->repeatable);
  for (int i = 0; i < MAX_PARAMETERS; i++) {
    if (s->tensors[i])
      aclDestroyTensor(s->tensors[i]);
    if (s->blocks[i])
      aclrtFree(s->blocks[i]);
  }
  if (s->workspace)
    aclrtFree(s->workspace);
  if (s->stream)
    aclrtDestroyStream(s->stream);
  aclrtResetDevice(0);
  aclFinalize();
}

static int time_step(session *s, nr_latency what, nr_summary *summary) {
  double samples[SAMPLES];
  int code = 0;
  for (int i = -WARM_UP; i < SAMPLES && !code; i++) {
    double start = nr_seconds();
    code = steps[what].timed(s);
    if (i >= 0)
      samples[i] = nr_seconds() - start;
    if (steps[what].after && !code)
      code = steps[what].after(s);
  }
  if (!code)
    *summary = nr_summarise(samples, SAMPLES);
  return code;
}

int nr_bench_latency(nr_direction direction, nr_summary summary[NR_NUM_LATENCIES], nr_message *message) {
  nr_bench_case b;
  session s = {.recipe = nr_preset_recipe(nr_preset_find("reference")), .b = &b, .problem = nr_problem_default()};
  int code = nr_recipe_resolve(&s.recipe, message);
  if (!code)
    code = nr_bench_case_open(&b, &s.recipe, direction, false, 1, message);
  if (code)
    return code;
  s.problem.direction = direction;
  s.problem.segments = b.segments;
  s.problem.num_segments = b.num_segments;
  int failed =
      nr_plan_create(&s.plan, &s.problem) != NR_OK || nr_plan_workspace_size(s.plan) > sizeof s.native_workspace;
  const char *text = nr_last_error();
  if (!failed) {
    failed = open_device(&s);
    for (int i = 0; i < NR_NUM_LATENCIES && !failed; i++)
      failed = time_step(&s, (nr_latency)i, &summary[i]);
    text = aclGetRecentErrMsg();
  }
  if (failed)
    code = nr_refuse(message, NR_EXIT_RUN, "latency of preset reference: %s", text ? text : "failed");
  close_device(&s);
  nr_plan_destroy(s.fresh);
  nr_plan_destroy(s.plan);
  nr_bench_case_close(&b);
  return code;
}
