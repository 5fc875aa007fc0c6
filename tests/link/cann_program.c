/* A program that knows only CANN's headers and link names: a function from each of the three libraries. */
#include "acl/acl.h"
#include "aclnnop/aclnn_norm_rope_concat.h"
#include "aclnnop/aclnn_norm_rope_concat_grad.h"

#include <stdio.h>

static int failures;

static void expect(const char *what, int found, int expected) {
  if (found == expected)
    return;
  failures++;
  printf("%s: found %d, expected %d\n", what, found, expected);
}

int main(void) {
  /* libascendcl */
  expect("aclInit", aclInit(NULL), ACL_SUCCESS);
  expect("aclInit again: one state behind all names", aclInit(NULL), ACL_ERROR_REPEAT_INITIALIZE);
  expect("aclrtSetDevice", aclrtSetDevice(0), ACL_SUCCESS);

  /* libnnopbase */
  float row[2] = {1, 2};
  const int64_t dims[4] = {1, 1, 1, 2};
  aclTensor *tensor = aclCreateTensor(dims, 4, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, dims, 4, row);
  expect("aclCreateTensor", tensor != NULL, 1);
  expect("aclDestroyTensor", aclDestroyTensor(tensor), ACLNN_SUCCESS);

  /* libopapi */
  expect("aclnnNormRopeConcat", aclnnNormRopeConcat(NULL, 0, NULL, NULL), ACLNN_ERR_INNER_NULLPTR);
  expect("aclnnNormRopeConcatBackward", aclnnNormRopeConcatBackward(NULL, 0, NULL, NULL), ACLNN_ERR_INNER_NULLPTR);
  const char *message = aclGetRecentErrMsg();
  expect("aclGetRecentErrMsg", message != NULL && message[0] != '\0', 1);

  expect("aclrtResetDevice", aclrtResetDevice(0), ACL_SUCCESS);
  expect("aclFinalize", aclFinalize(), ACL_SUCCESS);
  return failures != 0;
}
