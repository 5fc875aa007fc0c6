/* The entry points: describe, check once, plan, run. */
#include "normrope.h"

#include <inttypes.h>
#include <string.h>

#include "api/fields.h"
#include "api/validate.h"
#include "base/alloc.h"
#include "base/environment.h"
#include "base/error.h"
#include "plan/backend.h"

#define STRING(x) #x
#define VERSION(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

const char *nr_version(void) { return VERSION(NR_VERSION_MAJOR, NR_VERSION_MINOR, NR_VERSION_PATCH); }

static const nr_backend_ops *const backends[] = {
    [NR_BACKEND_CPU] = &nr_backend_cpu,
    [NR_BACKEND_REFERENCE] = &nr_backend_reference,
    [NR_BACKEND_MAGNITUDE] = &nr_backend_magnitude,
    [NR_BACKEND_CUDA] = &nr_backend_cuda,
};

/* Copies a descriptor of the caller's size into one of ours: fields that he does not know get their default, zero; of
   fields that we do not know, none may be set. */
static bool copy_descriptor(void *ours, size_t our_size, const void *theirs, size_t their_size) {
  size_t common = their_size < our_size ? their_size : our_size;
  memcpy(ours, theirs, common);
  memset((char *)ours + common, 0, our_size - common);
  memcpy(ours, &our_size, sizeof our_size);
  for (size_t i = common; i < their_size; i++)
    if (((const char *)theirs)[i])
      return false;
  return true;
}

/* The smallest descriptors that were ever published, to tell a size from garbage. */
enum {
  MIN_PROBLEM_SIZE = offsetof(nr_problem, isa) + sizeof(char *),
  MIN_SEGMENT_SIZE = offsetof(nr_segment, grad_sin) + sizeof(nr_view),
  MAX_SIZE = 1 << 16
};

/* Makes absent what the direction does not look at and gradients without elements, so that nothing below ever looks at
   them; and 0 the strides of a parameter or table over axes of extent 1, where sharing and having an axis are one. */
static void simplify(nr_segment *s, nr_direction direction) {
  for (int f = 0; f < NR_NUM_FIELDS; f++) {
    const nr_field *field = &nr_fields[f];
    nr_view *v = (nr_view *)((char *)s + field->offset);
    bool table = field->shape == NR_SHAPE_TABLE, parameter = field->shape == NR_SHAPE_PARAMETER || table;
    if (table && s->batch == 1)
      v->stride[0] = 0;
    if (parameter && s->heads == 1)
      v->stride[2] = 0;
    bool empty = (table && (s->rope_length == 0 || (s->batch == 0 && v->stride[0]))) || (s->heads == 0 && v->stride[2]);
    if (!nr_field_used(s, direction, field) || (field->primal && empty))
      v->data = NULL;
  }
}

static nr_status copy_segments(nr_segment *ours, const nr_segment *theirs, int32_t count, nr_direction direction) {
  size_t stride = count ? theirs->struct_size : 0;
  for (int32_t i = 0; i < count; i++) {
    const nr_segment *segment = (const nr_segment *)((const char *)theirs + stride * (size_t)i);
    if (segment->struct_size != stride || stride < MIN_SEGMENT_SIZE || stride > MAX_SIZE ||
        stride % _Alignof(nr_segment))
      return nr_fail(NR_ERROR_INVALID, "segment %" PRId32 ": struct_size %zu, expected sizeof(nr_segment), %zu", i,
                     segment->struct_size, sizeof(nr_segment));
    if (!copy_descriptor(&ours[i], sizeof *ours, segment, stride))
      return nr_fail(NR_ERROR_UNSUPPORTED, "segment %" PRId32 ": uses a field that version %s does not know", i,
                     nr_version());
    if (ours[i].rope_dim == 0)
      ours[i].rope_dim = ours[i].dim;
    simplify(&ours[i], direction);
  }
  return NR_OK;
}

static nr_status make_plan(nr_plan *plan, const nr_problem *problem) {
  plan->direction = problem->direction;
  plan->backend = backends[problem->backend];
  plan->num_threads = problem->num_threads;
  plan->num_segments = problem->num_segments;
  nr_status status = copy_segments(plan->segments, problem->segments, problem->num_segments, plan->direction);
  if (status == NR_OK)
    status = nr_validate(plan->segments, plan->num_segments, plan->direction, plan->backend->mixed);
  if (status != NR_OK)
    return status;
  return plan->backend->prepare ? plan->backend->prepare(plan, problem->isa) : NR_OK;
}

nr_status nr_plan_create(nr_plan **plan, const nr_problem *problem) {
  if (!plan)
    return nr_fail(NR_ERROR_NULL, "plan: null, expected where to put the plan");
  *plan = NULL;
  if (!problem)
    return nr_fail(NR_ERROR_NULL, "problem: null");
  nr_problem p;
  if (problem->struct_size < MIN_PROBLEM_SIZE || problem->struct_size > MAX_SIZE)
    return nr_fail(NR_ERROR_INVALID, "problem: struct_size %zu, expected sizeof(nr_problem), %zu", problem->struct_size,
                   sizeof p);
  if (!copy_descriptor(&p, sizeof p, problem, problem->struct_size))
    return nr_fail(NR_ERROR_UNSUPPORTED, "problem: uses a field that version %s does not know", nr_version());
  if ((unsigned)p.direction > NR_BACKWARD)
    return nr_fail(NR_ERROR_INVALID, "problem: direction %d, expected NR_FORWARD or NR_BACKWARD", (int)p.direction);
  if ((unsigned)p.backend >= sizeof backends / sizeof *backends)
    return nr_fail(NR_ERROR_INVALID,
                   "problem: backend %d, expected NR_BACKEND_CPU, NR_BACKEND_REFERENCE, "
                   "NR_BACKEND_MAGNITUDE or NR_BACKEND_CUDA",
                   (int)p.backend);
  if (p.num_segments < 0 || p.num_segments > NR_MAX_SEGMENTS)
    return nr_fail(NR_ERROR_INVALID, "problem: num_segments %" PRId32 ", expected 0 to %d", p.num_segments,
                   NR_MAX_SEGMENTS);
  if (p.num_segments && !p.segments)
    return nr_fail(NR_ERROR_NULL, "problem: segments is null");
  if (p.num_threads < 0)
    return nr_fail(NR_ERROR_INVALID, "problem: num_threads %" PRId32 ", expected at least 0", p.num_threads);
  size_t count = (size_t)p.num_segments;
  char *memory = nr_calloc(1, sizeof(nr_plan) + count * (sizeof(nr_segment) + sizeof(nr_cut)));
  if (!memory)
    return nr_fail(NR_ERROR_MEMORY, "out of memory for a plan of %zu segments", count);
  nr_plan *made = (nr_plan *)memory;
  made->segments = (nr_segment *)(memory + sizeof(nr_plan));
  made->cuts = (nr_cut *)(memory + sizeof(nr_plan) + count * sizeof(nr_segment));
  nr_status status = make_plan(made, &p);
  if (status == NR_OK)
    *plan = made;
  else
    nr_plan_destroy(made);
  return status;
}

void nr_plan_destroy(nr_plan *plan) {
  if (plan && plan->backend && plan->backend->release)
    plan->backend->release(plan);
  nr_free(plan);
}

size_t nr_plan_workspace_size(const nr_plan *plan) { return plan ? plan->workspace_size : 0; }

/* All of a view but its address and name. */
static bool same_layout(const nr_view *a, const nr_view *b) {
  return a->dtype == b->dtype && memcmp(a->stride, b->stride, sizeof a->stride) == 0;
}

/* Two segments share a parameter now just as they did when planned. */
static nr_status check_sharing(const nr_plan *plan, const nr_segment *bound) {
  for (int32_t i = 1; i < plan->num_segments; i++)
    for (int f = 0; f < NR_NUM_FIELDS; f++)
      for (int32_t j = 0; j < i && nr_fields[f].primal; j++) {
        size_t at = nr_fields[f].offset;
        if (nr_shared(nr_view_at(&plan->segments[i], at), nr_view_at(&plan->segments[j], at)) !=
            nr_shared(nr_view_at(&bound[i], at), nr_view_at(&bound[j], at)))
          return nr_fail(NR_ERROR_INVALID,
                         "segments %" PRId32 " and %" PRId32 ": share %s now or when planned, but not both", j, i,
                         nr_fields[f].name);
      }
  return NR_OK;
}

/* This run's segments: the plan's with other addresses. `same` tells that no address differs. */
static nr_status rebind(const nr_plan *plan, const nr_segment *theirs, nr_segment *bound, bool *same) {
  nr_status status = copy_segments(bound, theirs, plan->num_segments, plan->direction);
  if (status != NR_OK)
    return status;
  *same = true;
  for (int32_t i = 0; i < plan->num_segments; i++) {
    const nr_segment *planned = &plan->segments[i];
    bound[i].name = planned->name;
    if (memcmp(planned, &bound[i], offsetof(nr_segment, x)) != 0)
      return nr_fail(NR_ERROR_INVALID, "segment %" PRId32 ": differs from the planned one in more than addresses", i);
    for (int f = 0; f < NR_NUM_FIELDS; f++) {
      const nr_view *then = nr_view_at(planned, nr_fields[f].offset);
      nr_view *now = (nr_view *)((char *)&bound[i] + nr_fields[f].offset);
      now->name = then->name;
      *same = *same && then->data == now->data;
      if (!then->data != !now->data)
        return nr_fail(NR_ERROR_INVALID, "segment %" PRId32 ".%s: %s, unlike when it was planned", i, nr_fields[f].name,
                       now->data ? "present" : "absent");
      if (then->data && !same_layout(then, now))
        return nr_fail(NR_ERROR_INVALID, "segment %" PRId32 ".%s: other strides or dtype than when planned", i,
                       nr_fields[f].name);
    }
  }
  return check_sharing(plan, bound);
}

static nr_status run_backend(const nr_plan *plan, const nr_segment *segments, void *workspace, void *stream) {
  fenv_t callers;
  nr_environment_enter(&callers);
  nr_status status = plan->backend->run(plan, segments, workspace, stream);
  nr_environment_leave(&callers);
  return status;
}

nr_status nr_plan_run(const nr_plan *plan, const nr_segment *segments, void *workspace, size_t workspace_size,
                      void *stream) {
  if (!plan)
    return nr_fail(NR_ERROR_NULL, "plan: null");
  if (stream && !plan->backend->streams)
    return nr_fail(NR_ERROR_INVALID, "stream: %p, expected null on the %s backend", stream, plan->backend->name);
  if (plan->workspace_size && !workspace)
    return nr_fail(NR_ERROR_NULL, "workspace: null, expected %zu bytes", plan->workspace_size);
  if (workspace_size < plan->workspace_size)
    return nr_fail(NR_ERROR_INVALID, "workspace: %zu bytes, expected at least %zu", workspace_size,
                   plan->workspace_size);
  if (plan->workspace_size && (uintptr_t)workspace % sizeof(double))
    return nr_fail(NR_ERROR_INVALID, "workspace: address %p, expected a multiple of %zu", workspace, sizeof(double));
  if (!segments)
    return run_backend(plan, plan->segments, workspace, stream);
  nr_segment bound[NR_MAX_SEGMENTS];
  bool same;
  nr_status status = rebind(plan, segments, bound, &same);
  if (status == NR_OK && !same)
    status = nr_validate_addresses(bound, plan->num_segments, plan->direction);
  return status == NR_OK ? run_backend(plan, bound, workspace, stream) : status;
}
