/* A user's smallest program, valid as C and as C++: one row through RMSNorm, y = x / sqrt(mean(x^2)). */
#include <normrope.h>

#include <stdio.h>
#include <stdlib.h>

int main(void) {
  float x[4] = {2, -2, 2, -2}, y[4] = {0, 0, 0, 0};
  nr_segment row = nr_segment_default();
  row.batch = row.length = row.heads = 1;
  row.dim = 4;
  row.norm = NR_NORM_RMS;
  row.eps = 0;
  row.x = nr_view_bsnd(x, NR_F32, 1, 1, 4);
  row.y = nr_view_bsnd(y, NR_F32, 1, 1, 4);

  nr_problem problem = nr_problem_default();
  problem.direction = NR_FORWARD;
  problem.segments = &row;
  problem.num_segments = 1;

  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK) {
    puts(nr_last_error());
    return 1;
  }
  size_t size = nr_plan_workspace_size(plan);
  void *workspace = size ? malloc(size) : NULL;
  nr_status status = nr_plan_run(plan, NULL, workspace, size, NULL);
  nr_plan_destroy(plan);
  free(workspace);

  printf("normrope %s: %g %g %g %g\n", nr_version(), (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
  return status != NR_OK || y[0] != 1 || y[1] != -1 || y[2] != 1 || y[3] != -1;
}
