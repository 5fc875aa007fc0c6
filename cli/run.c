#include "cli/run.h"

#include <stdlib.h>
#include <string.h>

#include "cli/device.h"

enum { ALIGNMENT = 64 };

/* A problem that no backend takes is the file's fault, anything else the run's. */
int nr_run_failure(nr_status status, const char *path, nr_message *message) {
  bool file = status == NR_ERROR_NULL || status == NR_ERROR_INVALID || status == NR_ERROR_UNSUPPORTED;
  return nr_refuse(message, file ? NR_EXIT_FILE : NR_EXIT_RUN, "%s: %s", path, nr_last_error());
}

int nr_run_segments(const nr_segment *segments, int num_segments, nr_direction direction, const nr_run_options *options,
                    const char *path, nr_message *message) {
  nr_problem problem = nr_problem_default();
  problem.direction = direction;
  problem.backend = options->backend;
  problem.segments = segments;
  problem.num_segments = num_segments;
  problem.num_threads = options->threads;
  problem.isa = options->isa;
  if (problem.backend == NR_BACKEND_CUDA)
    return nr_run_on_cuda(&problem, path, message);
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &problem);
  if (status != NR_OK)
    return nr_run_failure(status, path, message);
  size_t size = (nr_plan_workspace_size(plan) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  void *workspace = size ? aligned_alloc(ALIGNMENT, size) : NULL;
  int code = NR_EXIT_OK;
  if (size && !workspace)
    code = nr_refuse(message, NR_EXIT_RUN, "%s: out of memory for a workspace of %zu bytes", path, size);
  if (!code) {
    status = nr_plan_run(plan, NULL, workspace, size, NULL);
    if (status != NR_OK)
      code = nr_run_failure(status, path, message);
  }
  free(workspace);
  nr_plan_destroy(plan);
  return code;
}

int nr_run_option(nr_run_options *options, const nr_command *command, int key, const char *argument) {
  int64_t threads;
  switch (key) {
  case NR_KEY_DEVICE:
    for (int i = 0; i < NR_NUM_DEVICES; i++)
      if (!strcmp(nr_devices[i].name, argument)) {
        options->backend = nr_devices[i].backend;
        return NR_EXIT_OK;
      }
    return nr_unexpected(command, key, argument, "cpu, cuda or reference");
  case NR_KEY_THREADS:
    if (!nr_parse_integer(argument, 1, 1024, &threads))
      return nr_unexpected(command, key, argument, "a number from 1 to 1024");
    options->threads = (int32_t)threads;
    return NR_EXIT_OK;
  default:
    for (int32_t i = 0; nr_isa(i); i++)
      if (!strcmp(nr_isa(i), argument)) {
        options->isa = argument;
        if (nr_isa_usable(argument))
          return NR_EXIT_OK;
        nr_message message;
        nr_refuse(&message, 0, "--isa %s: this machine cannot run it", argument);
        nr_complain(message.text);
        return NR_EXIT_RUN;
      }
    return nr_unexpected(command, key, argument, "one that 'normrope info' lists");
  }
}
