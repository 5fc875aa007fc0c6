/* Each way to call the operators wrongly, read from their lists of operands: the code, a text that names the parameter,
   no executor, and no byte changed. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "aclnnop/aclnn_norm_rope_concat_grad.h"
#include "base/alloc.h"
#include "support/acl_call.h"

static const nr_operator *const operators[] = {&nr_operator_forward, &nr_operator_backward};

enum { STORAGE = 1 << 16 };
static double storage[STORAGE]; /* room for any spoilt tensor */

/* The first phase refuses with `code` and a text that has `name: ` in front, or just has `part` (each may be NULL). */
static void refuses(const acl_call *call, aclnnStatus code, const char *name, const char *part) {
  uint64_t size = 77;
  aclOpExecutor *executor = (aclOpExecutor *)&size;
  aclGetRecentErrMsg();
  aclnnStatus status = call_prepare(call, &size, &executor);
  const char *text = aclGetRecentErrMsg();
  if (status != code || !text)
    fail_msg("%s, %s: status %d, expected %d; text: %s", call->op->name, name ? name : part, status, code, text);
  if (name && (strncmp(text, name, strlen(name)) != 0 || strncmp(text + strlen(name), ": ", 2) != 0))
    fail_msg("expected a text about %s: %s", name, text);
  if (part && !strstr(text, part))
    fail_msg("expected a text with '%s': %s", part, text);
  assert_null(executor);
  assert_true(size == 0);
  call_assert_untouched(call);
}

/* A handle of the given description over `storage`, in place of the operand's own. */
static void respell(call_tensor *t, const int64_t *shape, int rank, aclDataType dtype, aclFormat format) {
  int64_t stride[8] = {0}, count = STORAGE;
  aclDestroyTensor(t->handle);
  t->handle = aclCreateTensor(shape, (uint64_t)rank, dtype, stride, 0, format, &count, 1, storage);
  assert_non_null(t->handle);
}

typedef void spoil(acl_call *call, int i, int variant);

/* Spoils operand i of a fresh call in each of `variants` ways and expects a refusal. */
static void each_operand(spoil *how, int variants, aclnnStatus code, const char *part, bool named) {
  for (int o = 0; o < 2; o++)
    for (int i = 0; i < operators[o]->num_operands; i++)
      for (int v = 0; v < variants; v++) {
        acl_call call = call_default(operators[o], ACL_FLOAT);
        call_build(&call, 1);
        aclTensor *own = call.tensors[i].handle;
        how(&call, i, v);
        if (call.tensors[i].handle != own || !call.tensors[i].given || strcmp(part, "null address") == 0)
          refuses(&call, code, named ? operators[o]->operands[i].name : NULL, part);
        call_free(&call);
      }
}

static void leave_out(acl_call *call, int i, int variant) {
  (void)variant;
  nr_need need = call->op->operands[i].need;
  call->tensors[i].given = need == NR_NEED_OPTIONAL;
}

static void destroy(acl_call *call, int i, int variant) {
  (void)variant;
  static char nothing[16];
  aclDestroyTensor(call->tensors[i].handle);
  call->tensors[i].handle = (aclTensor *)nothing;
}

static void change_dtype(acl_call *call, int i, int variant) {
  static const aclDataType wrong[] = {ACL_INT32, ACL_DOUBLE, ACL_DT_UNDEFINED, ACL_FLOAT16, ACL_BF16};
  call_tensor *t = &call->tensors[i];
  if (i > 0 || variant < 3)
    respell(t, t->shape, t->rank, wrong[variant], ACL_FORMAT_ND);
}

static void change_format(acl_call *call, int i, int variant) {
  static const aclFormat wrong[] = {ACL_FORMAT_NCHW, ACL_FORMAT_FRACTAL_NZ, ACL_FORMAT_UNDEFINED};
  call_tensor *t = &call->tensors[i];
  respell(t, t->shape, t->rank, t->dtype, wrong[variant]);
}

static void change_rank(acl_call *call, int i, int variant) {
  call_tensor *t = &call->tensors[i];
  int64_t shape[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  memcpy(shape, t->shape, sizeof t->shape);
  if (variant != t->rank)
    respell(t, shape, variant, t->dtype, ACL_FORMAT_ND);
}

static void change_shape(acl_call *call, int i, int variant) {
  call_tensor *t = &call->tensors[i];
  int64_t shape[4];
  memcpy(shape, t->shape, sizeof shape);
  if (variant / 2 >= t->rank)
    return;
  shape[variant / 2] += variant % 2 ? 1 : -1;
  bool table = call->op->operands[i].layout == NR_LAYOUT_TABLE;
  if (!table || variant / 2 != 0 || i + 1 == call_index(call, "ropeCos")) /* ropeSin's length is what cos is held to */
    respell(t, shape, t->rank, t->dtype, ACL_FORMAT_ND);
}

static void remove_address(acl_call *call, int i, int variant) {
  (void)variant;
  aclSetRawTensorAddr(call->tensors[i].handle, NULL);
}

static void overlap_itself(acl_call *call, int i, int variant) {
  (void)variant;
  call_tensor *t = &call->tensors[i];
  if (i >= call->op->num_inputs)
    respell(t, t->shape, t->rank, t->dtype, ACL_FORMAT_ND); /* strides of 0 */
}

static void test_null(void **state) {
  (void)state;
  each_operand(leave_out, 1, ACLNN_ERR_PARAM_NULLPTR, "null, required", true);
}

static void test_stale(void **state) {
  (void)state;
  each_operand(destroy, 1, ACLNN_ERR_PARAM_INVALID, "expected a living aclTensor", true);
}

static void test_dtype(void **state) {
  (void)state;
  each_operand(change_dtype, 5, ACLNN_ERR_PARAM_INVALID, "dtype", true);
}

static void test_format(void **state) {
  (void)state;
  each_operand(change_format, 3, ACLNN_ERR_PARAM_INVALID, "format", true);
}

static void test_rank(void **state) {
  (void)state;
  each_operand(change_rank, 9, ACLNN_ERR_PARAM_INVALID, "expected [", true);
}

/* A length that a tensor shows first is held against the others, so that the text may name one of them. */
static void test_shape(void **state) {
  (void)state;
  each_operand(change_shape, 8, ACLNN_ERR_PARAM_INVALID, "expected", false);
}

static void test_null_address(void **state) {
  (void)state;
  each_operand(remove_address, 1, ACLNN_ERR_PARAM_NULLPTR, "null address", true);
}

static void test_overlap_itself(void **state) {
  (void)state;
  each_operand(overlap_itself, 1, ACLNN_ERR_PARAM_INVALID, "overlaps itself", true);
}

/* Each output on the memory of each other tensor, from its start and from one element on. */
static void test_overlap(void **state) {
  (void)state;
  for (int o = 0; o < 2; o++)
    for (int i = operators[o]->num_inputs; i < operators[o]->num_operands; i++)
      for (int j = 0; j < operators[o]->num_operands; j++)
        for (int shift = 0; shift < 2; shift++) {
          const nr_operand *a = &operators[o]->operands[i], *b = &operators[o]->operands[j];
          bool in_place = j < operators[o]->num_inputs && a->layout == NR_LAYOUT_ROWS && b->layout == NR_LAYOUT_ROWS &&
                          a->part == b->part && shift == 0;
          if (i == j || in_place)
            continue;
          acl_call call = call_default(operators[o], ACL_FLOAT);
          call_build(&call, 1);
          aclSetRawTensorAddr(call.tensors[i].handle, (float *)call.tensors[j].memory + shift);
          refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL, b->name);
          refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL, a->name);
          refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL, "overlaps");
          call_free(&call);
        }
}

static void test_unaligned(void **state) {
  (void)state;
  for (int o = 0; o < 2; o++)
    for (int i = 0; i < operators[o]->num_operands; i++) {
      acl_call call = call_default(operators[o], ACL_BF16);
      call_build(&call, 1);
      aclSetRawTensorAddr(call.tensors[i].handle, call.tensors[i].memory + 1);
      refuses(&call, ACLNN_ERR_PARAM_INVALID, operators[o]->operands[i].name, "expected a multiple of");
      call_free(&call);
    }
}

static void test_attributes(void **state) {
  (void)state;
  static const struct {
    const char *name;
    size_t offset;
    int64_t max;
  } attributes[] = {{"normType", offsetof(nr_attributes, norm_type), 4},
                    {"normAddedType", offsetof(nr_attributes, norm_added_type), 4},
                    {"ropeType", offsetof(nr_attributes, rope_type), 2},
                    {"concatOrder", offsetof(nr_attributes, concat_order), 1}};
  for (int n = 0; n < 2 * 4 * 4; n++) {
    acl_call call = call_default(operators[n % 2], ACL_FLOAT);
    const int64_t wrong[] = {-1, attributes[n / 8].max + 1, INT64_MIN, INT64_MAX};
    call_build(&call, 1);
    memcpy((char *)&call.attributes + attributes[n / 8].offset, &wrong[n / 2 % 4], sizeof *wrong);
    refuses(&call, ACLNN_ERR_PARAM_INVALID, attributes[n / 8].name, "expected 0 to");
    call_free(&call);
  }
  const double wrong[] = {-1e-9, NAN, INFINITY, -INFINITY};
  for (int n = 0; n < 4; n++) {
    acl_call call = call_default(&nr_operator_forward, ACL_FLOAT);
    call_build(&call, 1);
    call.attributes.eps = wrong[n];
    refuses(&call, ACLNN_ERR_PARAM_INVALID, "eps", "finite");
    call_free(&call);
  }
}

static void test_sizes(void **state) {
  (void)state;
  static const int64_t dims[] = {0, 1, 7, 1023, 1026}, ropes[] = {0, 9, 100};
  for (int o = 0; o < 2; o++) {
    for (int n = 0; n < 5; n++) {
      acl_call call = call_default(operators[o], ACL_FLOAT);
      call.dim = dims[n];
      call_build(&call, 1);
      refuses(&call, ACLNN_ERR_PARAM_INVALID, "query", "an even headDim from 2 to 1024");
      call_free(&call);
    }
    for (int n = 0; n < 3; n++) {
      acl_call call = call_default(operators[o], ACL_FLOAT);
      call.rope = ropes[n]; /* queries are 5 + 3, keys 7 + 2 */
      call_build(&call, 1);
      refuses(&call, ACLNN_ERR_PARAM_INVALID, "ropeSin", "expected 1 to 8 = min(");
      call_free(&call);
    }
  }
}

/* Operands of a text part that is not there. */
static void test_absent_part(void **state) {
  (void)state;
  for (int o = 0; o < 2; o++)
    for (int i = 0; i < operators[o]->num_operands; i++) {
      const nr_operand *a = &operators[o]->operands[i];
      nr_part part = a->part == NR_PART_TEXT_VALUE ? NR_PART_TEXT_KEY : a->part;
      bool output = i >= operators[o]->num_inputs;
      bool refused = a->layout == NR_LAYOUT_ROWS
                         ? a->need != NR_NEED_ALWAYS && strncmp(a->name, "encoderQ", 8) && strcmp(a->name, "encoderKey")
                         : a->layout == NR_LAYOUT_STATISTICS && output;
      if (a->part < NR_PART_TEXT_QUERY || !refused)
        continue;
      acl_call call = call_default(operators[o], ACL_FLOAT);
      call_without_text(&call, part);
      call.rope = 5;
      call.tensors[i].given = true;
      call_build(&call, 1);
      refuses(&call, ACLNN_ERR_PARAM_INVALID, a->name,
              part == NR_PART_TEXT_QUERY ? "expected null without encoderQuery" : "expected null without encoderKey");
      call_free(&call);
    }
}

/* The texts, word for word. */
static void test_texts(void **state) {
  (void)state;
  acl_call call = call_default(&nr_operator_backward, ACL_FLOAT);
  call.batch = 1, call.heads = 10, call.dim = 6;
  call_build(&call, 1);
  call_tensor *joined = &call.tensors[call_index(&call, "gradKeyOutput")];
  respell(joined, (int64_t[]){1, 10, 8, 6}, 4, ACL_FLOAT, ACL_FORMAT_ND);
  refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL,
          "gradKeyOutput: shape [1,10,8,6], expected [1,10,9,6] = [batch, headNum, seqKey + seqEncoderKey, headDim]");
  respell(joined, joined->shape, 4, ACL_FLOAT16, ACL_FORMAT_ND);
  refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL, "gradKeyOutput: dtype FLOAT16, expected FLOAT32 as gradQueryOutput");
  call.tensors[call_index(&call, "normQueryMean")].given = false;
  refuses(&call, ACLNN_ERR_PARAM_NULLPTR, NULL, "normQueryMean: null, required by normType 2");
  call.tensors[call_index(&call, "ropeCos")].given = false;
  call.attributes.norm_type = 4;
  refuses(&call, ACLNN_ERR_PARAM_NULLPTR, NULL, "ropeCos: null, required by ropeType 1");
  respell(joined, joined->shape, 4, ACL_FLOAT, ACL_FORMAT_ND);
  call.attributes.rope_type = 0;
  call_tensor *key = &call.tensors[call_index(&call, "key")];
  respell(key, (int64_t[]){1, 7, 9, 6}, 4, ACL_FLOAT, ACL_FORMAT_ND);
  refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL,
          "key: shape [1,7,9,6], expected [1,seqKey,10,6] = [batch, seqKey, headNum, headDim]");
  respell(&call.tensors[call_index(&call, "query")], (int64_t[]){50, 6}, 2, ACL_FLOAT, ACL_FORMAT_ND);
  refuses(&call, ACLNN_ERR_PARAM_INVALID, NULL, "query: shape [50,6], expected [batch, seqQuery, headNum, headDim]");
  call_free(&call);
}

static void test_null_results(void **state) {
  (void)state;
  for (int o = 0; o < 2; o++) {
    acl_call call = call_default(operators[o], ACL_FLOAT);
    call_build(&call, 1);
    uint64_t size = 7;
    aclOpExecutor *executor = (aclOpExecutor *)&size;
    assert_int_equal(call_prepare(&call, NULL, &executor), ACLNN_ERR_PARAM_NULLPTR);
    assert_null(executor);
    assert_non_null(strstr(aclGetRecentErrMsg(), "workspaceSize"));
    assert_int_equal(call_prepare(&call, &size, NULL), ACLNN_ERR_PARAM_NULLPTR);
    assert_true(size == 0);
    assert_non_null(strstr(aclGetRecentErrMsg(), "executor"));
    call_free(&call);
  }
}

/* The second phase refuses, and the executor is as it was: the call then works. */
static void test_second_phase(void **state) {
  (void)state;
  acl_call call = call_default(&nr_operator_backward, ACL_FLOAT);
  call_build(&call, 1);
  uint64_t size;
  aclOpExecutor *executor;
  assert_int_equal(call_prepare(&call, &size, &executor), ACLNN_SUCCESS);
  assert_true(size > 0);
  char *workspace;
  assert_int_equal(aclrtMalloc((void **)&workspace, size + 8, ACL_MEM_MALLOC_HUGE_FIRST), ACL_SUCCESS);
  aclrtContext first, other;
  aclrtStream stale, foreign;
  assert_int_equal(aclrtGetCurrentContext(&first), ACL_SUCCESS);
  assert_int_equal(aclrtCreateStream(&stale), ACL_SUCCESS);
  assert_int_equal(aclrtDestroyStream(stale), ACL_SUCCESS);
  assert_int_equal(aclrtCreateContext(&other, 0), ACL_SUCCESS);
  assert_int_equal(aclrtCreateStream(&foreign), ACL_SUCCESS);
  assert_int_equal(aclrtSetCurrentContext(first), ACL_SUCCESS);
  const struct {
    void *workspace;
    uint64_t size;
    aclrtStream stream;
    aclnnStatus code;
  } wrong[] = {{NULL, size, NULL, ACLNN_ERR_PARAM_NULLPTR},       {workspace, size - 1, NULL, ACLNN_ERR_PARAM_INVALID},
               {workspace, 0, NULL, ACLNN_ERR_PARAM_INVALID},     {workspace + 4, size, NULL, ACLNN_ERR_PARAM_INVALID},
               {workspace, size, stale, ACLNN_ERR_RUNTIME_ERROR}, {workspace, size, foreign, ACLNN_ERR_RUNTIME_ERROR},
               {workspace, size, &size, ACLNN_ERR_RUNTIME_ERROR}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    aclGetRecentErrMsg();
    assert_int_equal(call_launch(&call, wrong[i].workspace, wrong[i].size, executor, wrong[i].stream), wrong[i].code);
    assert_non_null(aclGetRecentErrMsg());
  }
  assert_int_equal(aclrtSynchronizeDevice(), ACL_SUCCESS);
  call_assert_untouched(&call);
  assert_int_equal(call_launch(&call, workspace, size, executor, NULL), ACLNN_SUCCESS);
  assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
  call_check(&call);
  assert_int_equal(aclrtDestroyContext(other), ACL_SUCCESS);
  assert_int_equal(aclrtSetCurrentContext(first), ACL_SUCCESS);
  aclrtFree(workspace);
  call_free(&call);
}

static void *run_without_context(void *executor) {
  static double workspace[4096];
  static aclnnStatus status;
  status = aclnnNormRopeConcatBackward(workspace, sizeof workspace, executor, NULL);
  return aclGetRecentErrMsg() ? &status : NULL;
}

static void test_no_context(void **state) {
  (void)state;
  acl_call call = call_default(&nr_operator_backward, ACL_FLOAT);
  call_build(&call, 1);
  uint64_t size;
  aclOpExecutor *executor;
  assert_int_equal(call_prepare(&call, &size, &executor), ACLNN_SUCCESS);
  assert_true(size <= 4096 * sizeof(double));
  pthread_t thread;
  void *status;
  assert_int_equal(pthread_create(&thread, NULL, run_without_context, executor), 0);
  pthread_join(thread, &status);
  assert_non_null(status);
  assert_int_equal(*(aclnnStatus *)status, ACLNN_ERR_RUNTIME_ERROR);
  call_assert_untouched(&call);
  assert_int_equal(aclDestroyAclOpExecutor(executor), ACLNN_SUCCESS);
  call_free(&call);
}

/* Each allocation of a call fails in turn: an error, nothing lost, nothing changed; then the rest of the call works. */
static void test_allocations(void **state) {
  (void)state;
  static double workspace[4096];
  for (int o = 0; o < 2; o++)
    for (long n = 1;; n++) {
      acl_call call = call_default(operators[o], ACL_FLOAT);
      call_build(&call, 1);
      uint64_t size = 0;
      aclOpExecutor *executor = NULL;
      nr_fault_at(n);
      aclnnStatus first = call_prepare(&call, &size, &executor), second = ACLNN_SUCCESS;
      if (first == ACLNN_SUCCESS) {
        second = call_launch(&call, workspace, sizeof workspace, executor, NULL);
        aclrtSynchronizeStream(NULL);
      }
      bool over = nr_fault_at(0) < n;
      if (first != ACLNN_SUCCESS || second != ACLNN_SUCCESS) {
        assert_int_equal(first == ACLNN_SUCCESS ? second : first,
                         first == ACLNN_SUCCESS ? ACLNN_ERR_INNER : ACLNN_ERR_INNER_CREATE_EXECUTOR);
        assert_non_null(aclGetRecentErrMsg());
        call_assert_untouched(&call);
      }
      if (first != ACLNN_SUCCESS)
        assert_true(executor == NULL && size == 0);
      else if (second != ACLNN_SUCCESS)
        assert_int_equal(call_launch(&call, workspace, sizeof workspace, executor, NULL), ACLNN_SUCCESS);
      assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
      if (first == ACLNN_SUCCESS)
        call_check(&call);
      call_free(&call);
      if (over)
        break;
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
      cmocka_unit_test(test_null),         cmocka_unit_test(test_stale),          cmocka_unit_test(test_dtype),
      cmocka_unit_test(test_format),       cmocka_unit_test(test_rank),           cmocka_unit_test(test_shape),
      cmocka_unit_test(test_null_address), cmocka_unit_test(test_overlap_itself), cmocka_unit_test(test_overlap),
      cmocka_unit_test(test_unaligned),    cmocka_unit_test(test_attributes),     cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_absent_part),  cmocka_unit_test(test_texts),          cmocka_unit_test(test_null_results),
      cmocka_unit_test(test_second_phase), cmocka_unit_test(test_no_context),     cmocka_unit_test(test_allocations),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
