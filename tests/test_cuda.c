/* What only a device has: streams side by side, graphs, memory that runs out, errors of the device. */
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "cuda/runtime.h"
#include "plan/plan.h"
#include "support/device.h"

#define GOOD(call) assert_int_equal((call), cudaSuccess)

enum { B = 1, S = 70, N = 6, D = 64, ROWS = B * S * N * D };

/* RMSNorm with weight gradients and rope on [1, 70, 6, 64] in bfloat16, in the device's memory. */
typedef struct problem {
  device_block x, grad_y, grad_x, rstd, weight, grad_weight, cos, sin, workspace;
  nr_segment segment;
  nr_plan *plan;
} problem;

static device_block filled(nr_dtype dtype, size_t count, unsigned seed) {
  char *host = malloc(count * nr_dtype_size(dtype));
  for (size_t i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    nr_store(host, dtype, (int64_t)i, (double)(seed >> 8) / (1 << 24) + 0.25);
  }
  device_block block = device_copy_of(NULL, count * nr_dtype_size(dtype));
  assert_int_equal(nr_cuda->copy(0, block.data, host, block.size, NULL, true), NR_OK);
  free(host);
  return block;
}

static void make(problem *p, unsigned seed) {
  p->x = filled(NR_BF16, ROWS, seed), p->grad_y = filled(NR_BF16, ROWS, seed + 1);
  p->grad_x = filled(NR_BF16, ROWS, seed + 2), p->rstd = filled(NR_F32, B * S * N, seed + 3);
  p->weight = filled(NR_BF16, D, seed + 4), p->grad_weight = filled(NR_F32, D, seed + 5);
  p->cos = filled(NR_F32, S * D, seed + 6), p->sin = filled(NR_F32, S * D, seed + 7);
  nr_segment *g = &p->segment;
  *g = nr_segment_default();
  g->batch = B, g->length = S, g->heads = N, g->dim = D;
  g->norm = NR_NORM_RMS_AFFINE, g->rope_width = 2, g->rope_length = S;
  g->x = nr_view_bsnd(p->x.data, NR_BF16, S, N, D), g->grad_y = nr_view_bnsd(p->grad_y.data, NR_BF16, S, N, D);
  g->grad_x = nr_view_bsnd(p->grad_x.data, NR_BF16, S, N, D), g->rstd = nr_view_statistics(p->rstd.data, NR_F32, S, N);
  g->weight = nr_view_channels(p->weight.data, NR_BF16), g->grad_weight = nr_view_channels(p->grad_weight.data, NR_F32);
  g->cos = nr_view_table(p->cos.data, NR_F32, D), g->sin = nr_view_table(p->sin.data, NR_F32, D);
  nr_problem of = nr_problem_default();
  of.backend = NR_BACKEND_CUDA, of.segments = g, of.num_segments = 1;
  if (nr_plan_create(&p->plan, &of) != NR_OK)
    fail_msg("%s", nr_last_error());
  p->workspace = device_copy_of(NULL, nr_plan_workspace_size(p->plan));
}

static void unmake(problem *p) {
  device_block *blocks[] = {&p->x,   &p->grad_y,      &p->grad_x, &p->rstd,     &p->weight,
                            &p->cos, &p->grad_weight, &p->sin,    &p->workspace};
  for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
    device_free(blocks[i]);
  nr_plan_destroy(p->plan);
}

static nr_status run(problem *p, void *stream) {
  return nr_plan_run(p->plan, NULL, p->workspace.data, p->workspace.size, stream);
}

/* What a run has written, and then other bytes in its place. */
typedef struct result {
  uint16_t grad_x[ROWS];
  float grad_weight[D];
} result;

static void take(problem *p, result *r) {
  device_read(r->grad_x, &p->grad_x);
  device_read(r->grad_weight, &p->grad_weight);
  assert_int_equal(nr_cuda->set(0, p->grad_x.data, 0x55, p->grad_x.size, NULL, true), NR_OK);
  assert_int_equal(nr_cuda->set(0, p->grad_weight.data, 0x55, p->grad_weight.size, NULL, true), NR_OK);
}

static void every_run_has_the_same_bits(void **state) {
  (void)state;
  problem p;
  static result first, again;
  make(&p, 1);
  void *stream = nr_cuda->stream_new(0);
  for (int i = 0; i < 4; i++) {
    assert_int_equal(run(&p, i % 2 ? stream : NULL), NR_OK);
    assert_int_equal(nr_cuda->stream_synchronize(0, i % 2 ? stream : NULL), NR_OK);
    take(&p, i ? &again : &first);
    if (i)
      assert_memory_equal(&first, &again, sizeof first);
  }
  nr_cuda->stream_free(0, stream);
  unmake(&p);
}

/* Captured without the call doing anything, then replayed with other inputs in the same memory. */
static void a_graph_captures_a_run(void **state) {
  (void)state;
  problem p, other;
  static result expected, found;
  make(&p, 1);
  make(&other, 77);
  cudaStream_t stream = nr_cuda->stream_new(0);
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  GOOD(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  nr_status status = run(&p, stream);
  GOOD(cudaStreamEndCapture(stream, &graph));
  assert_int_equal(status, NR_OK);
  GOOD(cudaGraphInstantiate(&ready, graph, 0));
  take(&p, &found); /* nothing of it has run */
  assert_int_equal(run(&other, stream), NR_OK);
  assert_int_equal(nr_cuda->stream_synchronize(0, stream), NR_OK);
  take(&other, &expected);
  assert_memory_not_equal(&expected, &found, sizeof found);
  const device_block *from[] = {&other.x, &other.grad_y, &other.rstd, &other.weight, &other.cos, &other.sin};
  const device_block *to[] = {&p.x, &p.grad_y, &p.rstd, &p.weight, &p.cos, &p.sin};
  for (int i = 0; i < 6; i++)
    assert_int_equal(nr_cuda->copy(0, to[i]->data, from[i]->data, from[i]->size, NULL, true), NR_OK);
  for (int i = 0; i < 3; i++) {
    GOOD(cudaGraphLaunch(ready, stream));
    assert_int_equal(nr_cuda->stream_synchronize(0, stream), NR_OK);
    take(&p, &found);
    assert_memory_equal(&expected, &found, sizeof found);
  }
  GOOD(cudaGraphExecDestroy(ready));
  GOOD(cudaGraphDestroy(graph));
  nr_cuda->stream_free(0, stream);
  unmake(&other);
  unmake(&p);
}

/* Planning loads the kernels, and a run asks for all the shared memory that it needs (here more than blocks have
   without asking) in a capture, too. */
static void a_graph_captures_a_first_run(void **state) {
  (void)state;
  enum { ROWS_HERE = 40, DIM = 128, COUNT = ROWS_HERE * DIM };
  device_block x = filled(NR_F16, COUNT, 1), y = filled(NR_F16, COUNT, 2), rstd = filled(NR_F32, ROWS_HERE, 3);
  device_block weight = filled(NR_F16, DIM, 4), cosines = filled(NR_F32, COUNT, 5), sines = filled(NR_F32, COUNT, 6);
  nr_segment g = nr_segment_default();
  g.batch = 1, g.length = ROWS_HERE, g.heads = 1, g.dim = DIM, g.norm = NR_NORM_RMS_AFFINE;
  g.rope_width = 2, g.rope_length = ROWS_HERE;
  g.x = nr_view_bsnd(x.data, NR_F16, ROWS_HERE, 1, DIM), g.y = nr_view_bsnd(y.data, NR_F16, ROWS_HERE, 1, DIM);
  g.rstd = nr_view_statistics(rstd.data, NR_F32, ROWS_HERE, 1), g.weight = nr_view_channels(weight.data, NR_F16);
  g.cos = nr_view_table(cosines.data, NR_F32, DIM), g.sin = nr_view_table(sines.data, NR_F32, DIM);
  nr_problem of = nr_problem_default();
  of.direction = NR_FORWARD, of.backend = NR_BACKEND_CUDA, of.segments = &g, of.num_segments = 1;
  nr_plan *plan;
  assert_int_equal(nr_plan_create(&plan, &of), NR_OK);
  assert_int_equal(nr_plan_workspace_size(plan), 0);
  cudaStream_t stream = nr_cuda->stream_new(0);
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  GOOD(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  nr_status status = nr_plan_run(plan, NULL, NULL, 0, stream);
  GOOD(cudaStreamEndCapture(stream, &graph));
  assert_int_equal(status, NR_OK);
  GOOD(cudaGraphInstantiate(&ready, graph, 0));
  GOOD(cudaGraphLaunch(ready, stream));
  assert_int_equal(nr_cuda->stream_synchronize(0, stream), NR_OK);
  uint16_t replayed[COUNT], run_plainly[COUNT];
  device_read(replayed, &y);
  assert_int_equal(nr_cuda->set(0, y.data, 0x55, y.size, NULL, true), NR_OK);
  assert_int_equal(nr_plan_run(plan, NULL, NULL, 0, stream), NR_OK);
  assert_int_equal(nr_cuda->stream_synchronize(0, stream), NR_OK);
  device_read(run_plainly, &y);
  assert_memory_equal(replayed, run_plainly, sizeof replayed);
  GOOD(cudaGraphExecDestroy(ready));
  GOOD(cudaGraphDestroy(graph));
  nr_cuda->stream_free(0, stream);
  nr_plan_destroy(plan);
  device_block *blocks[] = {&x, &y, &rstd, &weight, &cosines, &sines};
  for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
    device_free(blocks[i]);
}

/* A launch that fails: an error that says so, and none left behind. */
static void a_stream_of_another_device(void **state) {
  if (nr_cuda_count() < 2)
    skip();
  problem p;
  make(&p, 1);
  void *stream = nr_cuda->stream_new(1);
  assert_int_equal(run(&p, stream), NR_ERROR_DEVICE);
  assert_non_null(strstr(nr_last_error(), "cuda: launching"));
  GOOD(cudaGetLastError());
  nr_cuda->stream_free(1, stream);
  unmake(&p);
  every_run_has_the_same_bits(state);
}

/* Two problems in two streams, many runs under way at once, against each alone. */
static void streams_do_not_meet(void **state) {
  (void)state;
  problem p[2];
  static result alone[2], together;
  void *streams[2];
  for (int i = 0; i < 2; i++) {
    make(&p[i], 1 + 100u * (unsigned)i);
    streams[i] = nr_cuda->stream_new(0);
    assert_int_equal(run(&p[i], NULL), NR_OK);
    assert_int_equal(nr_cuda->stream_synchronize(0, NULL), NR_OK);
    take(&p[i], &alone[i]);
  }
  for (int n = 0; n < 40; n++)
    assert_int_equal(run(&p[n % 2], streams[n % 2]), NR_OK);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(nr_cuda->stream_synchronize(0, streams[i]), NR_OK);
    take(&p[i], &together);
    assert_memory_equal(&alone[i], &together, sizeof together);
    nr_cuda->stream_free(0, streams[i]);
    unmake(&p[i]);
  }
}

/* More than the device has: an error that says so, and everything works as before. */
static void out_of_device_memory(void **state) {
  (void)state;
  size_t available, total;
  assert_int_equal(nr_cuda->memory(0, &available, &total), NR_OK);
  assert_true(available <= total && total > 0);
  assert_null(nr_cuda->malloc(0, total * 2));
  assert_non_null(strstr(nr_last_error(), "memory"));
  void *block = NULL;
  assert_int_equal(aclInit(NULL), ACL_SUCCESS);
  assert_int_equal(aclrtSetDevice(0), ACL_SUCCESS);
  assert_int_equal(aclrtMalloc(&block, total * 2, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_BAD_ALLOC);
  const char *text = aclGetRecentErrMsg();
  assert_non_null(text);
  assert_non_null(strstr(text, "no memory"));
  assert_int_equal(aclFinalize(), ACL_SUCCESS);
  every_run_has_the_same_bits(state);
}

static void bad_launches_are_reported(void **state) {
  (void)state;
  problem p;
  make(&p, 1);
  assert_int_equal(nr_plan_run(p.plan, NULL, NULL, 0, NULL), NR_ERROR_NULL);
  assert_int_equal(nr_plan_run(p.plan, NULL, p.workspace.data, p.workspace.size - 1, NULL), NR_ERROR_INVALID);
  unmake(&p);
  nr_segment huge = nr_segment_default();
  huge.batch = 1 << 16, huge.length = 1 << 16, huge.heads = 1, huge.dim = 2;
  static float one;
  huge.x = nr_view_strided(&one, NR_F32, 0, 0, 0, 0);
  huge.y = nr_view_bsnd((void *)(uintptr_t)(1ull << 40), NR_F32, 1 << 16, 1, 2);
  nr_problem of = nr_problem_default();
  of.direction = NR_FORWARD, of.backend = NR_BACKEND_CUDA, of.segments = &huge, of.num_segments = 1;
  nr_plan *plan;
  assert_int_equal(nr_plan_create(&plan, &of), NR_ERROR_UNSUPPORTED);
  assert_non_null(strstr(nr_last_error(), "65536"));
}

/* ACL's streams, events and copies on the device are CUDA's. */
static void runtime_on_the_device(void **state) {
  (void)state;
  enum { BYTES = 1 << 16 };
  unsigned char *device, *host, back[BYTES];
  aclrtStream stream, second;
  aclrtEvent start, end;
  aclrtEventRecordedStatus status;
  aclrtStreamStatus stream_status;
  float ms = -1;
  assert_int_equal(aclInit(NULL), ACL_SUCCESS);
  assert_int_equal(aclrtSetDevice(0), ACL_SUCCESS);
  assert_string_equal(aclrtGetSocName(), nr_cuda->name(0));
  assert_int_equal(aclrtCreateStream(&stream), ACL_SUCCESS);
  assert_int_equal(aclrtCreateStream(&second), ACL_SUCCESS);
  assert_int_equal(aclrtCreateEvent(&start), ACL_SUCCESS);
  assert_int_equal(aclrtCreateEvent(&end), ACL_SUCCESS);
  assert_int_equal(aclrtMalloc((void **)&device, BYTES, ACL_MEM_MALLOC_HUGE_FIRST), ACL_SUCCESS);
  assert_int_equal(aclrtMallocHost((void **)&host, BYTES), ACL_SUCCESS);
  for (int i = 0; i < BYTES; i++)
    host[i] = (unsigned char)(i * 7);
  assert_int_equal(aclrtQueryEventStatus(start, &status), ACL_SUCCESS);
  assert_int_equal(status, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  assert_int_equal(aclrtEventElapsedTime(&ms, start, end), ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID);
  assert_int_equal(aclrtRecordEvent(start, stream), ACL_SUCCESS);
  assert_int_equal(aclrtMemcpyAsync(device, BYTES, host, BYTES, ACL_MEMCPY_HOST_TO_DEVICE, stream), ACL_SUCCESS);
  assert_int_equal(aclrtMemsetAsync(device, BYTES, 0x5A, 16, stream), ACL_SUCCESS);
  assert_int_equal(aclrtRecordEvent(end, stream), ACL_SUCCESS);
  assert_int_equal(aclrtStreamWaitEvent(second, end), ACL_SUCCESS);
  assert_int_equal(aclrtSynchronizeStreamWithTimeout(second, 10000), ACL_SUCCESS);
  assert_int_equal(aclrtStreamQuery(second, &stream_status), ACL_SUCCESS);
  assert_int_equal(stream_status, ACL_STREAM_STATUS_COMPLETE);
  assert_int_equal(aclrtSynchronizeEvent(end), ACL_SUCCESS);
  assert_int_equal(aclrtQueryEventStatus(end, &status), ACL_SUCCESS);
  assert_int_equal(status, ACL_EVENT_RECORDED_STATUS_COMPLETE);
  assert_int_equal(aclrtEventElapsedTime(&ms, start, end), ACL_SUCCESS);
  assert_true(ms >= 0 && ms < 1e4f);
  assert_int_equal(aclrtMemcpy(back, BYTES, device, BYTES, ACL_MEMCPY_DEVICE_TO_HOST), ACL_SUCCESS);
  for (int i = 0; i < BYTES; i++)
    assert_int_equal(back[i], i < 16 ? 0x5A : (unsigned char)(i * 7));
  assert_int_equal(aclrtMemset(device, BYTES, 1, BYTES), ACL_SUCCESS);
  assert_int_equal(aclrtMemcpy2d(back, 256, device, 512, 128, 16, ACL_MEMCPY_DEVICE_TO_HOST), ACL_SUCCESS);
  for (int i = 0; i < 16 * 256; i++)
    assert_int_equal(back[i], i % 256 < 128 ? 1 : i < 16 ? 0x5A : (unsigned char)(i * 7));
  assert_int_equal(aclrtResetEvent(end, stream), ACL_SUCCESS);
  assert_int_equal(aclrtQueryEventStatus(end, &status), ACL_SUCCESS);
  assert_int_equal(status, ACL_EVENT_RECORDED_STATUS_NOT_READY);
  assert_int_equal(aclrtSynchronizeDevice(), ACL_SUCCESS);
  assert_int_equal(aclrtFreeHost(host), ACL_SUCCESS);
  assert_int_equal(aclrtFree(device), ACL_SUCCESS);
  assert_int_equal(aclrtDestroyEvent(start), ACL_SUCCESS);
  assert_int_equal(aclrtDestroyStream(second), ACL_SUCCESS);
  assert_int_equal(aclFinalize(), ACL_SUCCESS); /* which takes the rest along */
}

int main(void) {
  if (!device_is_cuda()) {
    fprintf(stderr, "expected --device cuda\n");
    return 2;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_graph_captures_a_first_run), cmocka_unit_test(every_run_has_the_same_bits),
      cmocka_unit_test(a_graph_captures_a_run),       cmocka_unit_test(a_stream_of_another_device),
      cmocka_unit_test(streams_do_not_meet),          cmocka_unit_test(out_of_device_memory),
      cmocka_unit_test(bad_launches_are_reported),    cmocka_unit_test(runtime_on_the_device),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
