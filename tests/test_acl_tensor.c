/* aclTensor: what is taken and refused at creation, what the getters tell, and handles past their life. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "aclnn/aclnn_base.h"
#include "base/alloc.h"

/* delete[], where there is a C++ library (a sanitizer may bring it), as C++ callers do; else free. */
extern void _ZdaPv(void *array) __attribute__((weak));
extern const char _ZSt7nothrow[] __attribute__((weak));

static void release(void *array) {
  if (_ZSt7nothrow)
    _ZdaPv(array);
  else
    free(array);
}

static float data[64];

static void test_getters(void **state) {
  (void)state;
  const int64_t shape[] = {2, 3, 4}, stride[] = {-20, 0, 2}, storage[] = {8, 8};
  aclTensor *t = aclCreateTensor(shape, 3, ACL_BF16, stride, 25, ACL_FORMAT_ND, storage, 2, data);
  assert_non_null(t);
  int64_t *dims, offset;
  uint64_t n;
  aclFormat format;
  aclDataType dtype;
  void *address;
  assert_int_equal(aclGetViewShape(t, &dims, &n), ACLNN_SUCCESS);
  assert_true(n == 3 && memcmp(dims, shape, sizeof shape) == 0);
  release(dims);
  assert_int_equal(aclGetViewStrides(t, &dims, &n), ACLNN_SUCCESS);
  assert_true(n == 3 && memcmp(dims, stride, sizeof stride) == 0);
  release(dims);
  assert_int_equal(aclGetStorageShape(t, &dims, &n), ACLNN_SUCCESS);
  assert_true(n == 2 && memcmp(dims, storage, sizeof storage) == 0);
  release(dims);
  assert_true(aclGetViewOffset(t, &offset) == ACLNN_SUCCESS && offset == 25);
  assert_true(aclGetFormat(t, &format) == ACLNN_SUCCESS && format == ACL_FORMAT_ND);
  assert_true(aclGetDataType(t, &dtype) == ACLNN_SUCCESS && dtype == ACL_BF16);
  assert_true(aclGetRawTensorAddr(t, &address) == ACLNN_SUCCESS && address == data);
  assert_int_equal(aclSetRawTensorAddr(t, data + 1), ACLNN_SUCCESS);
  assert_true(aclGetRawTensorAddr(t, &address) == ACLNN_SUCCESS && address == data + 1);
  assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
}

static void test_contiguous(void **state) {
  (void)state;
  const int64_t shape[] = {2, 0, 4, 5}, expected[] = {20, 20, 5, 1};
  aclTensor *t = aclCreateTensor(shape, 4, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 4, NULL);
  int64_t *stride;
  uint64_t n;
  assert_int_equal(aclGetViewStrides(t, &stride, &n), ACLNN_SUCCESS);
  assert_true(n == 4 && memcmp(stride, expected, sizeof expected) == 0);
  release(stride);
  assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
}

static void test_refused(void **state) {
  (void)state;
  static const int64_t good[] = {2, 3}, negative[] = {2, -1}, huge[] = {INT64_MAX / 2, 3},
                       hidden[] = {1LL << 40, 1LL << 40, 0};
  static const int64_t ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, back[] = {3, -1}, wide[] = {4, 1}, far[] = {INT64_MAX, 1};
  static const struct {
    const int64_t *shape;
    uint64_t rank;
    int dtype;
    const int64_t *stride;
    int64_t offset;
    int format;
    const int64_t *storage;
    uint64_t storage_rank;
  } wrong[] = {{NULL, 2, 0, NULL, 0, 2, good, 2},          {good, 2, 0, NULL, 0, 2, NULL, 2},
               {negative, 2, 0, NULL, 0, 2, good, 2},      {good, 2, 0, NULL, 0, 2, negative, 2},
               {huge, 2, 0, NULL, 0, 2, huge, 2},          {hidden, 3, 0, NULL, 0, 2, hidden, 3},
               {ones, 9, 0, NULL, 0, 2, good, 2},          {good, 2, 0, NULL, 0, 2, ones, 9},
               {good, UINT64_MAX, 0, NULL, 0, 2, good, 2}, {good, 2, 5, NULL, 0, 2, good, 2},
               {good, 2, 99, NULL, 0, 2, good, 2},         {good, 2, -2, NULL, 0, 2, good, 2},
               {good, 2, 0, NULL, 0, 99, good, 2},         {good, 2, 0, NULL, 1, 2, good, 2},
               {good, 2, 0, NULL, -1, 2, good, 2},         {good, 2, 0, back, 1, 2, good, 2},
               {good, 2, 0, wide, 0, 2, good, 2},          {good, 2, 0, far, 0, 2, good, 2},
               {good, 2, 0, NULL, INT64_MAX, 2, good, 2},  {good, 2, 0, NULL, 0, 2, NULL, 0}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    aclGetRecentErrMsg();
    if (aclCreateTensor(wrong[i].shape, wrong[i].rank, (aclDataType)wrong[i].dtype, wrong[i].stride, wrong[i].offset,
                        (aclFormat)wrong[i].format, wrong[i].storage, wrong[i].storage_rank, data))
      fail_msg("case %zu was taken", i);
    assert_non_null(aclGetRecentErrMsg());
  }
}

/* Views at the very ends of their storage. */
static void test_taken(void **state) {
  (void)state;
  static const int64_t good[] = {2, 3}, back[] = {3, -1}, wide[] = {4, 1}, none[] = {0, 3}, seven[] = {7}, six[] = {6};
  static const struct {
    const int64_t *shape, *stride, *storage;
    uint64_t rank, storage_rank;
    int64_t offset;
  } right[] = {{good, NULL, six, 2, 1, 0},   {good, back, six, 2, 1, 2}, {good, wide, seven, 2, 1, 0},
               {good, NULL, seven, 2, 1, 1}, {none, wide, six, 2, 1, 6}, {NULL, NULL, NULL, 0, 0, 0}};
  for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
    aclTensor *t = aclCreateTensor(right[i].shape, right[i].rank, ACL_FLOAT, right[i].stride, right[i].offset,
                                   ACL_FORMAT_ND, right[i].storage, right[i].storage_rank, data);
    if (!t)
      fail_msg("case %zu: %s", i, aclGetRecentErrMsg());
    assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
  }
}

static void all_refuse(aclTensor *t, aclnnStatus code) {
  int64_t *dims, offset;
  uint64_t n;
  aclFormat format;
  aclDataType dtype;
  void *address;
  assert_int_equal(aclGetViewShape(t, &dims, &n), code);
  assert_int_equal(aclGetViewStrides(t, &dims, &n), code);
  assert_int_equal(aclGetStorageShape(t, &dims, &n), code);
  assert_int_equal(aclGetViewOffset(t, &offset), code);
  assert_int_equal(aclGetFormat(t, &format), code);
  assert_int_equal(aclGetDataType(t, &dtype), code);
  assert_int_equal(aclSetRawTensorAddr(t, data), code);
  assert_int_equal(aclGetRawTensorAddr(t, &address), code);
  assert_non_null(aclGetRecentErrMsg());
}

static void test_handles(void **state) {
  (void)state;
  const int64_t shape[] = {4};
  aclTensor *t = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, data);
  int64_t *dims;
  assert_int_equal(aclGetViewShape(t, NULL, NULL), ACLNN_ERR_PARAM_NULLPTR);
  assert_int_equal(aclGetViewShape(t, &dims, NULL), ACLNN_ERR_PARAM_NULLPTR);
  assert_int_equal(aclGetViewOffset(t, NULL), ACLNN_ERR_PARAM_NULLPTR);
  assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
  all_refuse(t, ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclDestroyTensor(t), ACLNN_ERR_PARAM_INVALID);
  /* Its slot's next tenant is another tensor. */
  aclTensor *next = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, data);
  all_refuse(t, ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclDestroyTensor(next), ACLNN_SUCCESS);
  all_refuse(NULL, ACLNN_ERR_PARAM_NULLPTR);
  assert_int_equal(aclDestroyTensor(NULL), ACLNN_SUCCESS);
  all_refuse((aclTensor *)data, ACLNN_ERR_PARAM_INVALID);
  assert_int_equal(aclDestroyTensor((aclTensor *)data), ACLNN_ERR_PARAM_INVALID);
}

static void test_allocations(void **state) {
  (void)state;
  const int64_t shape[] = {4};
  bool made = false;
  for (long n = 1; !made; n++) {
    nr_fault_at(n);
    aclTensor *t = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, data);
    made = t != NULL;
    nr_fault_at(0);
    if (!made)
      assert_non_null(aclGetRecentErrMsg());
    else
      assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
  }
  aclTensor *t = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, data);
  int64_t *dims = NULL;
  uint64_t count = 7;
  nr_fault_at(1);
  assert_int_equal(aclGetViewShape(t, &dims, &count), ACLNN_ERR_INNER);
  nr_fault_at(0);
  assert_true(dims == NULL && count == 7);
  assert_int_equal(aclDestroyTensor(t), ACLNN_SUCCESS);
}

static void test_init(void **state) {
  (void)state;
  assert_int_equal(aclnnInit(NULL), ACLNN_SUCCESS);
  assert_int_equal(aclnnFinalize(), ACLNN_SUCCESS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_getters), cmocka_unit_test(test_contiguous), cmocka_unit_test(test_refused),
      cmocka_unit_test(test_taken),   cmocka_unit_test(test_handles),    cmocka_unit_test(test_allocations),
      cmocka_unit_test(test_init),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
