/* What a call needs beside its tensors: a workspace under 1% of the inputs, and nothing else that grows with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "normrope.h"

/* Addresses for a plan, which looks at none of the memory. */
static char *reserve(size_t size) {
  static size_t used;
  static char *base;
  if (!base)
    base = mmap(NULL, (size_t)1 << 36, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  assert_ptr_not_equal(base, MAP_FAILED);
  char *at = base + used;
  used += (size + 63) / 64 * 64;
  return at;
}

/* One stream's backward with all gradients; adds the bytes of its inputs. */
static nr_segment stream(int64_t B, int64_t S, int64_t N, int64_t D, nr_norm norm, nr_scope scope, size_t *inputs) {
  size_t rows = (size_t)(B * S * N * D) * 2, statistics = (size_t)(B * S * N) * 4;
  nr_segment s = nr_segment_default();
  s.batch = B, s.length = S, s.heads = N, s.dim = D, s.norm = norm, s.scope = scope;
  s.x = nr_view_bsnd(reserve(rows), NR_BF16, S, N, D);
  s.grad_y = nr_view_bnsd(reserve(rows), NR_BF16, S, N, D);
  s.grad_x = nr_view_bsnd(reserve(rows), NR_BF16, S, N, D);
  s.mean = nr_view_statistics(reserve(statistics), NR_F32, S, N);
  s.rstd = nr_view_statistics(reserve(statistics), NR_F32, S, N);
  nr_view *parameters[] = {&s.weight, &s.grad_weight, &s.grad_bias};
  for (int i = 0; i < 3; i++) {
    char *at = reserve((size_t)(N * D) * 2);
    *parameters[i] = scope == NR_SCOPE_ALL_HEADS ? nr_view_heads(at, NR_BF16, D) : nr_view_channels(at, NR_BF16);
  }
  *inputs += 2 * rows + 2 * statistics;
  return s;
}

static void workspace_share(const nr_segment *segments, int32_t count, size_t inputs, double limit) {
  nr_problem problem = nr_problem_default();
  problem.segments = segments, problem.num_segments = count;
  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK)
    fail_msg("%s", nr_last_error());
  double share = (double)nr_plan_workspace_size(plan) / (double)inputs;
  print_message("workspace: %.3f%% of the inputs\n", share * 100);
  assert_true(share < limit);
  nr_plan_destroy(plan);
}

static void workspace_is_small(void **state) {
  (void)state;
  size_t inputs = 0;
  nr_segment flux_ln[] = {stream(1, 4096, 24, 128, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs),
                          stream(1, 4096, 24, 128, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs),
                          stream(1, 512, 24, 128, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs),
                          stream(1, 512, 24, 128, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs)};
  workspace_share(flux_ln, 4, inputs, 0.01);
  inputs = 0;
  nr_segment wan = stream(1, 8190, 40, 128, NR_NORM_RMS_AFFINE, NR_SCOPE_ALL_HEADS, &inputs);
  workspace_share(&wan, 1, inputs, 0.01);
  inputs = 0;
  nr_segment wide = stream(1, 1024, 8, 1024, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs);
  workspace_share(&wide, 1, inputs, 0.01);
  inputs = 0;
  nr_segment many_short_sequences = stream(200000, 1, 1, 16, NR_NORM_LAYER_AFFINE, NR_SCOPE_HEAD, &inputs);
  workspace_share(&many_short_sequences, 1, inputs, 0.01);
}

static struct rusage command(char *const arguments[]) {
  struct rusage usage;
  int status;
  pid_t child = fork();
  if (child == 0) {
    execv(arguments[0], arguments);
    _exit(127);
  }
  assert_int_equal(wait4(child, &status, 0, &usage), child);
  assert_int_equal(status, 0);
  return usage;
}

static double file_size(const char *path) {
  struct stat of;
  assert_int_equal(stat(path, &of), 0);
  return (double)of.st_size;
}

/* The files are mapped; what is resident beside them is the program and the workspace. */
static void peak_is_the_tensors(void **state) {
  (void)state;
  char *cli = getenv("NORMROPE_CLI");
#if defined(__SANITIZE_ADDRESS__)
  cli = NULL; /* whose shadow grows with the tensors */
#endif
  if (!cli || getenv("NORMROPE_EMULATOR")) /* which needs memory of its own */
    skip();
  char folder[] = "/tmp/normrope-memory-XXXXXX", from[64], to[64];
  assert_non_null(mkdtemp(folder));
  snprintf(from, sizeof from, "%s/case", folder);
  snprintf(to, sizeof to, "%s/result", folder);
  command((char *[]){cli, "make-case", "flux-ln", "--image", "2048", "-o", from, NULL});
  struct rusage usage = command((char *[]){cli, "backward", from, "-o", to, NULL});
  double unread = (2048 + 512) * 24 * 128 * 2.0; /* value, which the backward does not need */
  double files = file_size(from) + file_size(to) - unread, beside = (double)usage.ru_maxrss * 1024 - files;
  print_message("peak: %.1f MB of tensors and %.1f MB beside\n", files / 1e6, beside / 1e6);
  assert_true(beside < 10e6);
  unlink(from), unlink(to), rmdir(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(workspace_is_small), cmocka_unit_test(peak_is_the_tensors)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
