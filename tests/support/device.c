#include "support/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/runtime.h"

enum { SKIPPED = 77, ALIGNMENT = 256 };

static nr_backend backend = NR_BACKEND_CPU;

nr_backend device_backend(void) { return backend; }

/* Constructors get main's arguments, so that test programs need not pass them on. */
__attribute__((constructor)) static void choose(int argc, char **argv) {
  if (argc != 3 || strcmp(argv[1], "--device") != 0 || strcmp(argv[2], "cuda") != 0)
    return;
  backend = NR_BACKEND_CUDA;
  setenv("NORMROPE_DEVICES", "cuda:0", 1);
  if (nr_cuda_available() == NR_OK)
    return;
  printf("skipped: %s\n", nr_last_error());
  exit(SKIPPED);
}

static void require(bool good) {
  if (!good)
    fail_msg("%s", nr_last_error());
}

device_block device_copy_of(const void *like, size_t size) {
  size_t past = (uintptr_t)like % ALIGNMENT;
  device_block block = {.base = nr_cuda->malloc(0, past + size + 1), .size = size};
  require(block.base != NULL);
  block.data = (char *)block.base + past;
  if (like && size)
    require(nr_cuda->copy(0, block.data, like, size, NULL, true) == NR_OK);
  return block;
}

void device_read(void *to, const device_block *block) {
  if (block->size)
    require(nr_cuda->copy(0, to, block->data, block->size, NULL, true) == NR_OK);
}

void device_free(device_block *block) {
  nr_cuda->free(0, block->base);
  *block = (device_block){0};
}

nr_status device_run(const nr_problem *problem) {
  nr_problem of = *problem;
  of.backend = NR_BACKEND_CUDA;
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &of);
  if (status != NR_OK)
    return status;
  device_block workspace = device_copy_of(NULL, nr_plan_workspace_size(plan));
  void *stream = nr_cuda->stream_new(0);
  require(stream != NULL);
  status = nr_plan_run(plan, NULL, workspace.data, workspace.size, stream);
  nr_plan_destroy(plan);
  if (status == NR_OK)
    status = nr_cuda->stream_synchronize(0, stream);
  nr_cuda->stream_free(0, stream);
  device_free(&workspace);
  return status;
}
