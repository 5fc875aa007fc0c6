#include "cli/device.h"

#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "cli/case.h"

const nr_device_name nr_devices[NR_NUM_DEVICES] = {
    {"cpu", NR_BACKEND_CPU}, {"reference", NR_BACKEND_REFERENCE}, {"cuda", NR_BACKEND_CUDA}};

const char *nr_runtime_device(int i) {
  uint32_t count = 0;
  static bool initialised;
  if (!initialised)
    initialised = aclInit(NULL) == ACL_SUCCESS;
  if (aclrtGetDeviceCount(&count) != ACL_SUCCESS || i < 0 || (uint32_t)i >= count || aclrtSetDevice(i) != ACL_SUCCESS)
    return NULL;
  return aclrtGetSocName();
}

int nr_runtime_find(bool cuda) {
  const char *name;
  for (int i = 0; (name = nr_runtime_device(i)); i++)
    if ((strcmp(name, "CPU") != 0) == cuda)
      return i;
  return -1;
}

const char *nr_cuda_absent(void) {
  if (nr_runtime_find(true) >= 0)
    return NULL;
  nr_problem nothing = nr_problem_default();
  nothing.backend = NR_BACKEND_CUDA;
  nr_plan *plan;
  nr_status status = nr_plan_create(&plan, &nothing);
  nr_plan_destroy(plan);
  if (status == NR_OK)
    return "NORMROPE_DEVICES leaves none";
  const char *why = nr_last_error();
  return !strncmp(why, "cuda: ", 6) ? why + 6 : why;
}

/* Memory of the host from the first byte of some views to the last, and its copy on the device. */
typedef struct range {
  char *low, *high;
  void *block; /* of aclrtMalloc */
  char *copy;
} range;

enum { MAX_RANGES = NR_MAX_SEGMENTS * NR_NUM_SLOTS, ALIGNMENT = 256 };

/* The memory of a view; false if it has none. */
static bool range_of(const nr_segment *s, nr_case_slot slot, const nr_view *v, range *r) {
  bool across = s->norm && s->scope == NR_SCOPE_ALL_HEADS;
  int64_t rope_dim = s->rope_dim ? s->rope_dim : s->dim;
  int64_t counts[][4] = {
      [NR_EXTENT_ROWS] = {s->batch, s->length, s->heads, s->dim},
      [NR_EXTENT_STATISTICS] = {s->batch, s->length, across ? 1 : s->heads, 1},
      [NR_EXTENT_PARAMETER] = {1, 1, v->stride[2] ? s->heads : 1, s->dim},
      [NR_EXTENT_TABLE] = {v->stride[0] ? s->batch : 1, s->rope_length, v->stride[2] ? s->heads : 1, rope_dim}};
  const int64_t *count = counts[nr_slots[slot].extent];
  int64_t size = (int64_t)nr_dtype_size(v->dtype);
  *r = (range){.low = v->data, .high = (char *)v->data + size};
  for (int axis = 0; axis < 4; axis++) {
    int64_t reach = (count[axis] - 1) * v->stride[axis] * size;
    *(reach < 0 ? &r->low : &r->high) += count[axis] > 1 ? reach : 0;
    if (!v->data || count[axis] == 0)
      return false;
  }
  return true;
}

static int by_address(const void *a, const void *b) {
  const range *x = a, *y = b;
  return x->low < y->low ? -1 : x->low > y->low;
}

/* Ranges that share bytes become one. Returns how many are left. */
static int merge(range *ranges, int count) {
  int kept = 0;
  qsort(ranges, (size_t)count, sizeof *ranges, by_address);
  for (int i = 0; i < count; i++)
    if (kept && ranges[i].low < ranges[kept - 1].high) {
      if (ranges[i].high > ranges[kept - 1].high)
        ranges[kept - 1].high = ranges[i].high;
    } else {
      ranges[kept++] = ranges[i];
    }
  return kept;
}

/* A problem's segments with the device's addresses. */
typedef struct job {
  nr_problem problem;
  nr_segment segments[NR_MAX_SEGMENTS];
  range ranges[MAX_RANGES];
  int num_ranges;
} job;

static bool uses(const job *j, int slot) { return nr_slots[slot].role[j->problem.direction] != '-'; }

static const range *find(const job *j, const char *address) {
  for (int i = 0; i < j->num_ranges; i++)
    if (address >= j->ranges[i].low && address < j->ranges[i].high)
      return &j->ranges[i];
  return NULL;
}

/* Copies everything to the device; false without memory there. */
static bool upload(job *j) {
  range r;
  for (int32_t i = 0; i < j->problem.num_segments; i++) {
    j->segments[i] = j->problem.segments[i];
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
      if (uses(j, slot) && range_of(&j->segments[i], slot, nr_slot_view(&j->segments[i], slot), &r))
        j->ranges[j->num_ranges++] = r;
  }
  j->num_ranges = merge(j->ranges, j->num_ranges);
  for (int i = 0; i < j->num_ranges; i++) {
    range *of = &j->ranges[i];
    size_t size = (size_t)(of->high - of->low), past = (uintptr_t)of->low % ALIGNMENT;
    if (aclrtMalloc(&of->block, size + past, ACL_MEM_MALLOC_HUGE_FIRST) != ACL_SUCCESS)
      return false;
    of->copy = (char *)of->block + past;
    if (aclrtMemcpy(of->copy, size, of->low, size, ACL_MEMCPY_HOST_TO_DEVICE) != ACL_SUCCESS)
      return false;
  }
  for (int32_t i = 0; i < j->problem.num_segments; i++)
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
      nr_view *v = nr_slot_view(&j->segments[i], slot);
      const range *of = uses(j, slot) && v->data ? find(j, v->data) : NULL;
      v->data = of ? of->copy + ((char *)v->data - of->low) : NULL;
    }
  return true;
}

/* Outputs come back, and with them what lies between their elements. */
static bool download(const job *j) {
  range r;
  for (int32_t i = 0; i < j->problem.num_segments; i++) {
    nr_segment s = j->problem.segments[i];
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
      if (nr_slots[slot].role[j->problem.direction] != 'o' || !range_of(&s, slot, nr_slot_view(&s, slot), &r))
        continue;
      const range *of = find(j, r.low);
      size_t size = (size_t)(r.high - r.low);
      if (aclrtMemcpy(r.low, size, of->copy + (r.low - of->low), size, ACL_MEMCPY_DEVICE_TO_HOST) != ACL_SUCCESS)
        return false;
    }
  }
  return true;
}

static int run_job(job *j, const char *path, nr_message *message) {
  nr_plan *plan = NULL;
  void *workspace = NULL;
  int code = NR_EXIT_OK;
  if (!upload(j))
    return nr_refuse(message, NR_EXIT_RUN, "%s: %s", path, aclGetRecentErrMsg());
  j->problem.segments = j->segments;
  nr_status status = nr_plan_create(&plan, &j->problem);
  size_t size = nr_plan_workspace_size(plan);
  if (status == NR_OK && size && aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST) != ACL_SUCCESS)
    code = nr_refuse(message, NR_EXIT_RUN, "%s: %s", path, aclGetRecentErrMsg());
  if (!code && status == NR_OK)
    status = nr_plan_run(plan, NULL, workspace, size, NULL);
  if (!code && status != NR_OK)
    code = nr_run_failure(status, path, message);
  nr_plan_destroy(plan);
  if (workspace)
    aclrtFree(workspace);
  return code;
}

int nr_run_on_cuda(const nr_problem *problem, const char *path, nr_message *message) {
  const char *absent = nr_cuda_absent();
  if (absent)
    return nr_refuse(message, NR_EXIT_RUN, "--device cuda: not here: %s", absent);
  job *j = calloc(1, sizeof *j);
  if (!j)
    return nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", path);
  j->problem = *problem;
  int code = run_job(j, path, message);
  j->problem.segments = problem->segments;
  if (!code && !download(j))
    code = nr_refuse(message, NR_EXIT_RUN, "%s: %s", path, aclGetRecentErrMsg());
  for (int i = 0; i < j->num_ranges; i++)
    if (j->ranges[i].block)
      aclrtFree(j->ranges[i].block);
  free(j);
  return code;
}
