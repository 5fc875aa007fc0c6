/*
 * The CANN-compatible interface: a training step's norm, rope and concat, forward and backward, the way a CANN program
 * calls it. The backward's executor is repeatable: prepared once, launched for two gradients. The program checks
 * itself: a rotation by an angle keeps the length of a row, and backward is linear in the gradient.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "acl/acl.h"
#include "aclnnop/aclnn_norm_rope_concat.h"
#include "aclnnop/aclnn_norm_rope_concat_grad.h"

enum { B = 2, N = 4, D = 64, S = 48, S_TEXT = 16, JOINED = S + S_TEXT };

#define CHECK(call)                                                                                                    \
  do {                                                                                                                 \
    int code = (call);                                                                                                 \
    if (code != 0) {                                                                                                   \
      const char *text = aclGetRecentErrMsg();                                                                         \
      printf("%s: %d: %s\n", #call, code, text ? text : "");                                                           \
      exit(1);                                                                                                         \
    }                                                                                                                  \
  } while (0)

/* A float32 tensor on the device, and its description. Device 0 is the processor, so that its memory can be read here;
   a program for any device copies with aclrtMemcpy. */
typedef struct array {
  float *data;
  int64_t count;
  aclTensor *tensor;
} array;

static array make(const int64_t *shape, int rank) {
  array a = {.count = 1};
  for (int i = 0; i < rank; i++)
    a.count *= shape[i];
  CHECK(aclrtMalloc((void **)&a.data, (size_t)a.count * sizeof(float), ACL_MEM_MALLOC_HUGE_FIRST));
  a.tensor = aclCreateTensor(shape, (uint64_t)rank, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, (uint64_t)rank, a.data);
  CHECK(a.tensor == NULL);
  return a;
}

static array rows(int64_t length) { return make((int64_t[]){B, length, N, D}, 4); }
static array joined(void) { return make((int64_t[]){B, N, JOINED, D}, 4); }
static array statistics(int64_t length) { return make((int64_t[]){B, length, N, 1}, 4); }
static array table(void) { return make((int64_t[]){JOINED, D}, 2); }

static array random_array(array a) {
  static unsigned state = 1;
  for (int64_t i = 0; i < a.count; i++) {
    state = state * 1664525u + 1013904223u;
    a.data[i] = (float)(state >> 8) / (1 << 23) - 1;
  }
  return a;
}

static void *workspace_of(uint64_t size) {
  void *workspace = NULL;
  if (size)
    CHECK(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST));
  return workspace;
}

/* The length of row `row` of D numbers. */
static double row_norm(const array *a, int64_t row) {
  double sum = 0;
  for (int d = 0; d < D; d++)
    sum += (double)a->data[row * D + d] * a->data[row * D + d];
  return sqrt(sum);
}

int main(void) {
  aclrtStream stream;
  CHECK(aclInit(NULL));
  CHECK(aclrtSetDevice(0));
  CHECK(aclrtCreateStream(&stream));

  /* Image and text, RMSNorm without weights, half rope over the whole joined sequence, image first. */
  array query = random_array(rows(S)), key = random_array(rows(S)), value = random_array(rows(S));
  array text_query = random_array(rows(S_TEXT)), text_key = random_array(rows(S_TEXT));
  array text_value = random_array(rows(S_TEXT));
  array sines = table(), cosines = table();
  for (int64_t i = 0; i < JOINED * D; i++) {
    double angle = (double)(i / D) * pow(10000, -2.0 * (double)(i % (D / 2)) / D);
    sines.data[i] = (float)sin(angle), cosines.data[i] = (float)cos(angle);
  }
  array query_out = joined(), key_out = joined(), value_out = joined();
  array query_rstd = statistics(S), key_rstd = statistics(S);
  array text_query_rstd = statistics(S_TEXT), text_key_rstd = statistics(S_TEXT);

  uint64_t size;
  aclOpExecutor *forward;
  CHECK(aclnnNormRopeConcatGetWorkspaceSize(
      query.tensor, key.tensor, value.tensor, text_query.tensor, text_key.tensor, text_value.tensor, NULL, NULL, NULL,
      NULL, NULL, NULL, NULL, NULL, sines.tensor, cosines.tensor, 3, 3, 2, 0, 1e-6, true, query_out.tensor,
      key_out.tensor, value_out.tensor, NULL, query_rstd.tensor, NULL, key_rstd.tensor, NULL, text_query_rstd.tensor,
      NULL, text_key_rstd.tensor, &size, &forward));
  void *workspace = workspace_of(size);
  CHECK(aclnnNormRopeConcat(workspace, size, forward, stream)); /* queued; the executor is used up */

  /* Backward for two gradients of the query output. Outputs that are not wanted are null. */
  array grad_out = random_array(joined()), doubled = joined(), no_grad = joined();
  for (int64_t i = 0; i < grad_out.count; i++)
    doubled.data[i] = 2 * grad_out.data[i], no_grad.data[i] = 0;
  array grad_query = rows(S), grad_key = rows(S), grad_value = rows(S), grad_text_query = rows(S_TEXT);
  array again = rows(S);
  aclOpExecutor *backward;
  CHECK(aclnnNormRopeConcatBackwardGetWorkspaceSize(
      grad_out.tensor, no_grad.tensor, no_grad.tensor, query.tensor, key.tensor, text_query.tensor, text_key.tensor,
      NULL, NULL, query_rstd.tensor, NULL, NULL, key_rstd.tensor, NULL, NULL, text_query_rstd.tensor, NULL, NULL,
      text_key_rstd.tensor, sines.tensor, cosines.tensor, 3, 3, 2, 0, grad_query.tensor, grad_key.tensor,
      grad_value.tensor, grad_text_query.tensor, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &size,
      &backward));
  void *backward_workspace = workspace_of(size);
  CHECK(aclSetAclOpExecutorRepeatable(backward));
  CHECK(aclnnNormRopeConcatBackward(backward_workspace, size, backward, stream));
  /* gradQueryOutput is input 0, gradQuery is output 0; what is queued keeps its addresses. */
  CHECK(aclSetInputTensorAddr(backward, 0, doubled.tensor, doubled.data));
  CHECK(aclSetOutputTensorAddr(backward, 0, again.tensor, again.data));
  CHECK(aclnnNormRopeConcatBackward(backward_workspace, size, backward, stream));
  CHECK(aclDestroyAclOpExecutor(backward)); /* what is queued does not need it */
  CHECK(aclrtSynchronizeStream(stream));

  int wrong = 0;
  for (int64_t row = 0; row < B * N * JOINED; row++) /* RMSNorm makes every row as long as sqrt(D); rope keeps that */
    wrong += fabs(row_norm(&query_out, row) - sqrt(D)) > 1e-3;
  for (int64_t i = 0; i < again.count; i++) /* twice the gradient in, twice the gradient out, to the bit */
    wrong += again.data[i] != 2 * grad_query.data[i];
  for (int64_t i = 0; i < grad_key.count; i++) /* nothing in, nothing out */
    wrong += grad_key.data[i] != 0 || grad_value.data[i] != 0;
  printf("%d of %d numbers are wrong\n", wrong, (int)(B * N * JOINED + again.count + grad_key.count));

  array *const all[] = {&query,           &key,       &value,   &text_query, &text_key,   &text_value, &sines,
                        &cosines,         &query_out, &key_out, &value_out,  &query_rstd, &key_rstd,   &text_query_rstd,
                        &text_key_rstd,   &grad_out,  &doubled, &no_grad,    &grad_query, &grad_key,   &grad_value,
                        &grad_text_query, &again};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    CHECK(aclDestroyTensor(all[i]->tensor));
    CHECK(aclrtFree(all[i]->data));
  }
  if (workspace)
    CHECK(aclrtFree(workspace));
  if (backward_workspace)
    CHECK(aclrtFree(backward_workspace));
  CHECK(aclrtDestroyStream(stream));
  CHECK(aclrtResetDevice(0));
  CHECK(aclFinalize());
  return wrong != 0;
}
