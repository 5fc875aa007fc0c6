/* A backend is a row in this table of functions. */
#ifndef NR_PLAN_BACKEND_H
#define NR_PLAN_BACKEND_H

#include "plan/plan.h"

typedef struct nr_backend_ops {
  const char *name;
  bool mixed;   /* takes any mixture of dtypes, float64 too */
  bool streams; /* takes a stream, in which a run is queued */
  /* Cuts the plan and chooses what else it needs (kernels); `isa` as in nr_problem. NULL: nothing, and no workspace. */
  nr_status (*prepare)(nr_plan *plan, const char *isa);
  /* Runs it in the default floating-point environment, which other threads have to set themselves; `segments` are the
     plan's with this run's addresses, `workspace` is large enough, `stream` NULL where it takes none. Nothing can fail
     but a device. */
  nr_status (*run)(const nr_plan *plan, const nr_segment *segments, void *workspace, void *stream);
  /* Frees plan->own, also after a `prepare` that failed. NULL: there is none. */
  void (*release)(nr_plan *plan);
} nr_backend_ops;

extern const nr_backend_ops nr_backend_cpu, nr_backend_reference, nr_backend_magnitude, nr_backend_cuda;

#endif
