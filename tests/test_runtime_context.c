/* Initialising, devices, contexts, options, error texts. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl_error.h"
#include "support/runtime.h"

static void once_a_process(void **state) {
  (void)state;
  REFUSED(aclFinalize(), ACL_ERROR_UNINITIALIZE); /* first test of this program: never initialised yet */
  REFUSED(aclInit("/nowhere/acl.json"), ACL_ERROR_INVALID_FILE);
  REFUSED(aclInit("/"), ACL_ERROR_INVALID_FILE);
  OK(aclInit(""));
  REFUSED(aclInit(NULL), ACL_ERROR_REPEAT_INITIALIZE);
  OK(aclFinalize());
  REFUSED(aclFinalize(), ACL_ERROR_REPEAT_FINALIZE);
  OK(aclInit(NULL));
  OK(aclFinalize());
}

static void the_runtime_works_without_aclInit(void **state) {
  (void)state;
  aclrtStream stream;
  OK(aclrtSetDevice(0));
  OK(aclrtCreateStream(&stream));
  OK(aclrtSynchronizeStream(stream));
  OK(aclrtDestroyStream(stream));
  OK(aclrtResetDevice(0));
}

static void devices(void **state) {
  (void)state;
  uint32_t count = 0;
  OK(aclrtGetDeviceCount(&count));
  assert_true(count >= 1);
  int32_t device = -1;
  OK(aclrtGetDevice(&device));
  assert_int_equal(device, 0);
  aclrtRunMode mode = ACL_DEVICE;
  OK(aclrtGetRunMode(&mode));
  assert_int_equal(mode, ACL_HOST);
  assert_string_equal(aclrtGetSocName(), "CPU");
  REFUSED(aclrtGetDeviceCount(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtGetDevice(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtGetRunMode(NULL), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtSetDevice(-1), ACL_ERROR_INVALID_DEVICE);
  REFUSED(aclrtSetDevice((int32_t)count), ACL_ERROR_INVALID_DEVICE);
  REFUSED(aclrtResetDevice(-1), ACL_ERROR_INVALID_DEVICE);
  REFUSED(aclrtResetDevice(INT32_MAX), ACL_ERROR_INVALID_DEVICE);
}

static void a_device_is_reset_by_the_last_reset(void **state) {
  (void)state;
  int32_t device;
  aclrtContext first, second;
  OK(aclrtGetCurrentContext(&first));
  OK(aclrtSetDevice(0));
  OK(aclrtGetCurrentContext(&second));
  assert_ptr_equal(first, second);
  OK(aclrtResetDevice(0));
  OK(aclrtGetDevice(&device));
  OK(aclrtResetDevice(0));
  REFUSED(aclrtGetDevice(&device), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtSetCurrentContext(first), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  OK(aclrtResetDevice(0));
  OK(aclrtSetDevice(0));
  OK(aclrtGetCurrentContext(&second));
  assert_ptr_not_equal(first, second);
}

static void *context_of_another_thread(void *context) {
  aclrtContext mine;
  REFUSED(aclrtGetCurrentContext(&mine), ACL_ERROR_RT_CONTEXT_NULL);
  OK(aclrtSetCurrentContext(context));
  OK(aclrtGetCurrentContext(&mine));
  assert_ptr_equal(mine, context);
  OK(aclrtSetDevice(0));
  OK(aclrtGetCurrentContext(&mine));
  assert_ptr_not_equal(mine, context);
  return NULL;
}

static void current_contexts(void **state) {
  (void)state;
  aclrtContext standard, own, current;
  OK(aclrtGetCurrentContext(&standard));
  REFUSED(aclrtCreateContext(NULL, 0), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCreateContext(&own, 77), ACL_ERROR_INVALID_DEVICE);
  OK(aclrtCreateContext(&own, 0));
  OK(aclrtGetCurrentContext(&current));
  assert_ptr_equal(current, own);

  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, context_of_another_thread, own), 0);
  pthread_join(thread, NULL);
  OK(aclrtGetCurrentContext(&current));
  assert_ptr_equal(current, own);

  aclrtStream stream;
  OK(aclrtCreateStream(&stream));
  OK(aclrtSetCurrentContext(standard));
  REFUSED(aclrtSynchronizeStream(stream), ACL_ERROR_RT_STREAM_CONTEXT);
  OK(aclrtSetCurrentContext(own));
  OK(aclrtSynchronizeStream(stream));
  REFUSED(aclrtDestroyContext(standard), ACL_ERROR_INVALID_PARAM);
  OK(aclrtDestroyContext(own));
  REFUSED(aclrtDestroyContext(own), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtGetCurrentContext(&current), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtCreateStream(&stream), ACL_ERROR_RT_CONTEXT_NULL);
  OK(aclrtSetCurrentContext(standard));
  REFUSED(aclrtSynchronizeStream(stream), ACL_ERROR_INVALID_RESOURCE_HANDLE); /* went with its context */
  REFUSED(aclrtSetCurrentContext(NULL), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtSetCurrentContext(&stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtGetCurrentContext(NULL), ACL_ERROR_INVALID_PARAM);
  OK(aclrtGetCurrentContext(&current));
  assert_ptr_equal(current, standard);
}

static void *everything_without_a_context(void *unused) {
  (void)unused;
  aclrtStream stream = NULL;
  aclrtEvent event = NULL;
  void *memory = NULL;
  int64_t value;
  REFUSED(aclrtCreateStream(&stream), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtSynchronizeStream(NULL), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtSynchronizeDevice(), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtCreateEvent(&event), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtMalloc(&memory, 1, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, 1), ACL_ERROR_RT_CONTEXT_NULL);
  REFUSED(aclrtCtxGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value), ACL_ERROR_RT_CONTEXT_NULL);
  assert_string_equal(aclrtGetSocName(), "CPU");
  assert_null(stream);
  assert_null(event);
  assert_null(memory);
  return NULL;
}

static void without_a_context(void **state) {
  (void)state;
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, everything_without_a_context, NULL), 0);
  pthread_join(thread, NULL);
}

static void options(void **state) {
  (void)state;
  int64_t value = -1;
  OK(aclrtCtxGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value));
  assert_int_equal(value, 0);
  OK(aclrtSetSysParamOpt(ACL_OPT_DETERMINISTIC, 2));
  OK(aclrtCtxGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value));
  assert_int_equal(value, 2);
  for (int64_t v = 3; v >= 0; v--) {
    OK(aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, v));
    OK(aclrtCtxGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value));
    assert_int_equal(value, v);
  }
  OK(aclrtGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value));
  assert_int_equal(value, 2);
  aclrtContext own;
  OK(aclrtCreateContext(&own, 0));
  OK(aclrtCtxGetSysParamOpt(ACL_OPT_DETERMINISTIC, &value));
  assert_int_equal(value, 2);
  OK(aclrtSetSysParamOpt(ACL_OPT_DETERMINISTIC, 0));
  REFUSED(aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, 4), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCtxSetSysParamOpt(ACL_OPT_DETERMINISTIC, -1), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCtxSetSysParamOpt(ACL_OPT_STRONG_CONSISTENCY, 2), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtSetSysParamOpt((aclSysParamOpt)3, 0), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtCtxGetSysParamOpt((aclSysParamOpt)-1, &value), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtGetSysParamOpt(ACL_OPT_DETERMINISTIC, NULL), ACL_ERROR_INVALID_PARAM);
}

static void *no_text_here(void *unused) {
  (void)unused;
  assert_null(aclGetRecentErrMsg());
  return NULL;
}

static void texts_are_per_thread(void **state) {
  (void)state;
  assert_null(aclGetRecentErrMsg());
  assert_int_equal(nr_acl_fail(161002, "gradKey: %d", 7), 161002);
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, no_text_here, NULL), 0);
  pthread_join(thread, NULL);
  const char *text = aclGetRecentErrMsg();
  assert_string_equal(text, "gradKey: 7");
  nr_acl_fail(1, "the next"); /* a failure leaves what was read alone, */
  nr_acl_fail(1, "%s: again", text);
  assert_string_equal(text, "gradKey: 7");
  assert_string_equal(aclGetRecentErrMsg(), "gradKey: 7: again");
  assert_null(aclGetRecentErrMsg());
  char longer[2 * NR_ACL_TEXT];
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = 0;
  nr_acl_fail(1, "%s", longer);
  assert_int_equal(strlen(aclGetRecentErrMsg()), NR_ACL_TEXT - 1);
}

static void finalize_releases_what_is_left(void **state) {
  (void)state;
  aclrtContext context;
  aclrtStream stream;
  aclrtEvent event;
  void *device, *host;
  gate g = {0};
  OK(aclrtCreateContext(&context, 0));
  OK(aclrtCreateStream(&stream));
  OK(aclrtCreateEvent(&event));
  OK(aclrtMalloc(&device, 4096, ACL_MEM_MALLOC_HUGE_FIRST));
  OK(aclrtMallocHost(&host, 4096));
  push(NULL, gate_run, &g);
  push(stream, gate_run, &g);
  OK(aclrtMemsetAsync(device, 4096, 1, 4096, stream));
  OK(aclrtRecordEvent(event, stream));
  atomic_store(&g.open, 1);
  OK(aclFinalize());
  REFUSED(aclrtFree(device), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtFreeHost(host), ACL_ERROR_INVALID_PARAM);
  REFUSED(aclrtDestroyEvent(event), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtDestroyStream(stream), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  REFUSED(aclrtDestroyContext(context), ACL_ERROR_INVALID_RESOURCE_HANDLE);
  OK(aclInit(NULL));
  OK(aclrtSetDevice(0));
}

static void data_types(void **state) {
  (void)state;
  assert_int_equal(aclDataTypeSize(ACL_FLOAT), 4);
  assert_int_equal(aclDataTypeSize(ACL_FLOAT16), 2);
  assert_int_equal(aclDataTypeSize(ACL_BF16), 2);
  assert_int_equal(aclDataTypeSize(ACL_BOOL), 1);
  assert_int_equal(aclDataTypeSize(ACL_COMPLEX128), 16);
  assert_int_equal(aclDataTypeSize(ACL_STRING), 0);
  assert_int_equal(aclDataTypeSize(ACL_DT_UNDEFINED), 0);
  assert_int_equal(aclDataTypeSize((aclDataType)1000), 0);
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    float f = aclFloat16ToFloat((aclFloat16)bits);
    if (f == f)
      assert_int_equal(aclFloatToFloat16(f), bits);
    else
      assert_true((aclFloatToFloat16(f) & 0x7C00) == 0x7C00 && (aclFloatToFloat16(f) & 0x3FF) != 0);
  }
  assert_int_equal(aclFloatToFloat16(65519.99f), 0x7BFF);
  assert_int_equal(aclFloatToFloat16(65520.0f), 0x7C00);
  assert_int_equal(aclFloatToFloat16(1.0f + 0x1p-11f), 0x3C00); /* ties go to even */
  assert_int_equal(aclFloatToFloat16(1.0f + 0x3p-11f), 0x3C02);
  assert_int_equal(aclFloatToFloat16(0x1p-25f), 0);
  assert_int_equal(aclFloatToFloat16(0x1.8p-25f), 1);
  assert_true(aclFloat16ToFloat(1) == 0x1p-24f);
}

int main(void) {
  setenv("NORMROPE_DEVICES", " tpu, cpu,,cpu", 1); /* unknown and repeated names are passed over */
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(once_a_process),
      cmocka_unit_test(the_runtime_works_without_aclInit),
      cmocka_unit_test_setup_teardown(devices, set_up, tear_down),
      cmocka_unit_test_setup_teardown(a_device_is_reset_by_the_last_reset, set_up, tear_down),
      cmocka_unit_test_setup_teardown(current_contexts, set_up, tear_down),
      cmocka_unit_test_setup_teardown(without_a_context, set_up, tear_down),
      cmocka_unit_test_setup_teardown(options, set_up, tear_down),
      cmocka_unit_test_setup_teardown(texts_are_per_thread, set_up, tear_down),
      cmocka_unit_test_setup_teardown(finalize_releases_what_is_left, set_up, tear_down),
      cmocka_unit_test(data_types),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
