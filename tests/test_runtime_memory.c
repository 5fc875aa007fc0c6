/* Memory and copies. */
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "support/runtime.h"

#define HUGE_PAGE ((size_t)2 << 20)

static void policies(void **state) {
  (void)state;
  static const size_t sizes[] = {1, 63, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 5 * HUGE_PAGE + 123};
  for (int policy = ACL_MEM_MALLOC_HUGE_FIRST; policy <= ACL_MEM_MALLOC_NORMAL_ONLY_P2P; policy++)
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      unsigned char *p = NULL;
      int flags = i & 1 ? ACL_MEM_TYPE_HIGH_BAND_WIDTH : i & 2 ? ACL_MEM_TYPE_LOW_BAND_WIDTH : 0;
      OK(aclrtMalloc((void **)&p, sizes[i], (aclrtMemMallocPolicy)(policy | flags)));
      bool huge =
          policy % 3 == ACL_MEM_MALLOC_HUGE_ONLY || (policy % 3 == ACL_MEM_MALLOC_HUGE_FIRST && sizes[i] >= HUGE_PAGE);
      assert_int_equal((uintptr_t)p % (huge ? HUGE_PAGE : 64), 0);
      memset(p, 0xA5, sizes[i]);
      REFUSED(aclrtFreeHost(p), ACL_ERROR_INVALID_PARAM);
      REFUSED(aclrtFree(p + 64), ACL_ERROR_INVALID_PARAM);
      OK(aclrtFree(p));
      REFUSED(aclrtFree(p), ACL_ERROR_INVALID_PARAM);
    }
}

static void refusals(void **state) {
  (void)state;
  int here = 0;
  void *p = &here;
  REFUSED(aclrtMalloc(NULL, 1, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMalloc(&p, 0, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMalloc(&p, 1, (aclrtMemMallocPolicy)6), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMalloc(&p, 1, (aclrtMemMallocPolicy)-1), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMalloc(&p, 1, (aclrtMemMallocPolicy)0x10000), ACL_ERROR_INVALID_PARAM);
  static const size_t absurd[] = {SIZE_MAX, SIZE_MAX - 62, SIZE_MAX / 2, (size_t)1 << 60};
  for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
    for (int policy = ACL_MEM_MALLOC_HUGE_FIRST; policy <= ACL_MEM_MALLOC_NORMAL_ONLY; policy++)
      REFUSED(aclrtMalloc(&p, absurd[i], (aclrtMemMallocPolicy)policy), ACL_ERROR_BAD_ALLOC);
    REFUSED(aclrtMallocHost(&p, absurd[i]), ACL_ERROR_BAD_ALLOC);
  }
  assert_ptr_equal(p, &here);
  REFUSED(aclrtFree(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtFree(&here), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMallocHost(NULL, 1), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMallocHost(&p, 0), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtFreeHost(NULL), ACL_ERROR_INVALID_PARAM);
  OK(aclrtMallocHost(&p, 100));
  assert_int_equal((uintptr_t)p % 64, 0);
  REFUSED(aclrtFree(p), ACL_ERROR_INVALID_PARAM);
  OK(aclrtFreeHost(p));
}

static void the_registry_at_size(void **state) {
  (void)state;
  enum { N = 1000 };
  static void *blocks[N];
  for (int i = 0; i < N; i++)
    OK(aclrtMalloc(&blocks[i], (size_t)(1 + i % 97), ACL_MEM_MALLOC_NORMAL_ONLY));
  for (int i = 0; i < N; i++) /* 7 and 1000 have no common divisor: every block once, out of order */
    OK(aclrtFree(blocks[i * 7 % N]));
  for (int i = 0; i < N; i++)
    REFUSED(aclrtFree(blocks[i]), ACL_ERROR_INVALID_PARAM);
  for (int i = 0; i < N; i++)
    OK(aclrtMalloc(&blocks[i], 10, ACL_MEM_MALLOC_NORMAL_ONLY));
  void *host;
  OK(aclrtMallocHost(&host, 10));
  OK(aclrtResetDevice(0));
  for (int i = 0; i < N; i++)
    REFUSED(aclrtFree(blocks[i]), ACL_ERROR_INVALID_PARAM);
  OK(aclrtFreeHost(host)); /* of no device */
}

static void information(void **state) {
  (void)state;
  size_t available = 0, total = 0;
  for (int attr = ACL_DDR_MEM; attr <= ACL_MEM_P2P_HUGE1G; attr++) {
    OK(aclrtGetMemInfo((aclrtMemAttr)attr, &available, &total));
    assert_true(available > 0 && available <= total);
  }
  REFUSED(aclrtGetMemInfo((aclrtMemAttr)18, &available, &total), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtGetMemInfo(ACL_HBM_MEM, NULL, &total), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtGetMemInfo(ACL_HBM_MEM, &available, NULL), ACL_ERROR_INVALID_PARAM);
}

static void copies(void **state) {
  (void)state;
  char from[] = "0123456789", to[11] = "";
  for (int kind = ACL_MEMCPY_HOST_TO_HOST; kind <= ACL_MEMCPY_DEFAULT; kind++) {
    memset(to, 'x', 10);
    OK(aclrtMemcpy(to, 10, from, 9, (aclrtMemcpyKind)kind));
    assert_string_equal(to, "012345678x");
  }
  OK(aclrtMemcpy(to + 1, 9, to, 9, ACL_MEMCPY_DEFAULT)); /* overlapping */
  assert_string_equal(to, "0012345678");
  OK(aclrtMemset(to, 10, 0x141, 3)); /* the low byte */
  assert_string_equal(to, "AAA2345678");
  OK(aclrtMemcpy(to, 0, from, 0, ACL_MEMCPY_DEFAULT));
  REFUSED(aclrtMemcpy(to, 10, from, 11, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy(NULL, 10, from, 1, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy(to, 10, NULL, 1, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy(to, 10, from, 1, (aclrtMemcpyKind)5), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy(to, 10, from, 1, (aclrtMemcpyKind)-1), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemset(NULL, 10, 0, 1), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemset(to, 10, 0, 11), ACL_ERROR_INVALID_PARAM);
  assert_string_equal(to, "AAA2345678");

  OK(aclrtMemcpy2d(to, 5, from, 3, 2, 2, ACL_MEMCPY_HOST_TO_DEVICE));
  assert_string_equal(to, "01A2334678");
  OK(aclrtMemcpy2d(to, 5, from, 3, 2, 0, ACL_MEMCPY_HOST_TO_DEVICE));
  REFUSED(aclrtMemcpy2d(to, 1, from, 3, 2, 2, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy2d(to, 5, from, 1, 2, 2, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy2d(to, 5, from, 3, 2, SIZE_MAX, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy2d(NULL, 5, from, 3, 2, 2, ACL_MEMCPY_DEFAULT), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpy2d(to, 5, from, 3, 2, 2, (aclrtMemcpyKind)9), ACL_ERROR_INVALID_PARAM);
  assert_string_equal(to, "01A2334678");
}

static void queued_copies(void **state) {
  (void)state;
  char from[4] = "abc", to[4] = "", back[4] = "";
  gate g = {0};
  push(NULL, gate_run, &g);
  OK(aclrtMemcpyAsync(to, 4, from, 4, ACL_MEMCPY_HOST_TO_DEVICE, NULL));
  OK(aclrtMemsetAsync(to, 4, 'z', 1, NULL));
  OK(aclrtMemcpyAsync(back, 4, to, 4, ACL_MEMCPY_DEVICE_TO_HOST, NULL));
  assert_string_equal(to, "");
  atomic_store(&g.open, 1);
  OK(aclrtSynchronizeStream(NULL));
  assert_string_equal(back, "zbc");
  REFUSED(aclrtMemcpyAsync(to, 3, from, 4, ACL_MEMCPY_DEFAULT, NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpyAsync(to, 4, from, 4, (aclrtMemcpyKind)7, NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemcpyAsync(to, 4, from, 4, ACL_MEMCPY_DEFAULT, &g), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtMemsetAsync(to, 3, 0, 4, NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtMemsetAsync(NULL, 3, 0, 1, NULL), ACL_ERROR_INVALID_PARAM);
}

static void *allocate_often(void *context) {
  OK(aclrtSetCurrentContext(context));
  void *blocks[16] = {0};
  for (int i = 0; i < 4000; i++) {
    void **p = &blocks[i * 5 % 16];
    if (*p)
      OK(aclrtFree(*p));
    OK(aclrtMalloc(p, 64, ACL_MEM_MALLOC_NORMAL_ONLY));
  }
  for (int i = 0; i < 16; i++)
    OK(aclrtFree(blocks[i]));
  return NULL;
}

static void many_threads(void **state) {
  (void)state;
  pthread_t threads[4];
  aclrtContext context;
  OK(aclrtGetCurrentContext(&context));
  for (int i = 0; i < 4; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, allocate_often, context), 0);
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
}

int main(void) {
  setenv("NORMROPE_DEVICES", "tpu", 1); /* nothing usable: the processor takes its place */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(policies, set_up, tear_down),
      cmocka_unit_test_setup_teardown(refusals, set_up, tear_down),
      cmocka_unit_test_setup_teardown(the_registry_at_size, set_up, tear_down),
      cmocka_unit_test_setup_teardown(information, set_up, tear_down),
      cmocka_unit_test_setup_teardown(copies, set_up, tear_down),
      cmocka_unit_test_setup_teardown(queued_copies, set_up, tear_down),
      cmocka_unit_test_setup_teardown(many_threads, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
