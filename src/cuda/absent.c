/* What stands for the CUDA backend in a build without it. */
#include "base/error.h"
#include "cuda/runtime.h"
#include "plan/backend.h"

static nr_status refuse(nr_plan *plan, const char *isa) {
  (void)plan, (void)isa;
  return nr_cuda_available();
}

const nr_backend_ops nr_backend_cuda = {.name = "cuda", .streams = true, .prepare = refuse};

const nr_cuda_runtime *const nr_cuda = NULL;

int32_t nr_cuda_count(void) { return 0; }

nr_status nr_cuda_available(void) {
  return nr_fail(NR_ERROR_UNSUPPORTED, "cuda: this library was built without it (NORMROPE_CUDA)");
}
