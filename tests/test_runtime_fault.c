/* Every allocation, mapping and thread of the runtime made to fail in turn: BAD_ALLOC with a text, nothing changed, and
   (under AddressSanitizer) nothing leaked. */
#include <stdlib.h>

#include "base/alloc.h"
#include "support/runtime.h"

/* Does all that allocates, step by step; the first failure ends it. Cleaning up is aclFinalize's, as a program may. */
static aclError everything(void) {
  aclrtContext context;
  aclrtStream stream;
  aclrtEvent event;
  void *memory, *huge, *reserved, *host;
  char a[8] = {0}, b[8] = {0};
  static const int keep = ACL_MEM_MALLOC_NORMAL_ONLY;
  aclError error;
  if ((error = aclrtSetDevice(0)) || (error = aclrtSynchronizeStream(NULL)) ||
      (error = aclrtCreateContext(&context, 0)) || (error = aclrtCreateStream(&stream)) ||
      (error = aclrtCreateEvent(&event)) || (error = aclrtMalloc(&memory, 100, (aclrtMemMallocPolicy)keep)) ||
      (error = aclrtMalloc(&huge, (size_t)3 << 20, ACL_MEM_MALLOC_HUGE_FIRST)) ||
      (error = aclrtMalloc(&reserved, 100, ACL_MEM_MALLOC_HUGE_ONLY)) || (error = aclrtMallocHost(&host, 100)) ||
      (error = aclrtRecordEvent(event, stream)) || (error = aclrtStreamWaitEvent(NULL, event)) ||
      (error = aclrtResetEvent(event, stream)) ||
      (error = aclrtMemcpyAsync(a, 8, b, 8, ACL_MEMCPY_HOST_TO_DEVICE, stream)) ||
      (error = aclrtMemsetAsync(a, 8, 0, 8, stream)))
    goto end;
  for (int i = 0; i < 200 && error == ACL_SUCCESS; i++) /* until the queue grows */
    error = aclrtMemsetAsync(a, 8, 0, 8, stream);
end:
  aclrtSynchronizeDevice(); /* a and b must outlive what is queued */
  return error;
}

static void each_in_turn(void **state) {
  (void)state;
  OK(aclInit(NULL));
  nr_fault_at(0);
  OK(everything()); /* the handle table has grown now, and stays */
  long sites = nr_fault_at(0);
  OK(aclFinalize());
  assert_true(sites > 200);
  int refused = 0;
  for (long n = 1; n <= sites; n++) {
    OK(aclInit(NULL));
    (void)aclGetRecentErrMsg();
    nr_fault_at(n);
    aclError error = everything();
    nr_fault_at(0);
    if (error != ACL_SUCCESS) { /* where it is none, there was another way: normal pages */
      assert_int_equal(error, ACL_ERROR_BAD_ALLOC);
      refused++;
    }
    OK(aclFinalize());
  }
  print_message("%ld sites, %d refusals\n", sites, refused);
  assert_true(refused > 200);
}

/* A refused call can be made again. */
static void once_more(void **state) {
  (void)state;
  OK(aclInit(NULL));
  OK(aclrtSetDevice(0));
  aclrtStream stream = NULL;
  aclrtEvent event = NULL;
  for (long n = 1; n <= 3; n++) { /* the stream, its queue, its thread */
    nr_fault_at(n);
    REFUSED(aclrtCreateStream(&stream), ACL_ERROR_BAD_ALLOC);
    assert_null(stream);
    nr_fault_at(n);
    REFUSED(aclrtSynchronizeStream(NULL), ACL_ERROR_BAD_ALLOC); /* the default stream */
  }
  nr_fault_at(0);
  OK(aclrtCreateStream(&stream));
  OK(aclrtCreateEvent(&event));
  nr_fault_at(1);
  REFUSED(aclrtRecordEvent(event, stream), ACL_ERROR_BAD_ALLOC);
  nr_fault_at(0);
  aclrtEventRecordedStatus status;
  OK(aclrtQueryEventStatus(event, &status));
  assert_int_equal(status, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  OK(aclrtRecordEvent(event, stream));
  OK(aclrtSynchronizeEvent(event));
  OK(aclFinalize());
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(each_in_turn), cmocka_unit_test(once_more)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
