/* The CPU backend: hands the plan's blocks to threads and adds up their sums in the plan's order. */
#include <fenv.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/verbose.h"
#include "cpu/dispatch.h"
#include "plan/backend.h"

/* Bytes of reading and writing that are worth waking one more thread. */
static const double bytes_per_thread = 256 << 10;

/* Bytes that a run reads and writes from which on outputs pass by the caches. */
static const double stream_bytes = 32 << 20;

enum {
  SUM_CHUNK = NR_CHUNK, /* channels of a parameter gradient that are added up at a time */
  MAX_THREADS = 4096    /* OpenMP takes the program down where it gets no more */
};

int32_t nr_default_threads(void) {
  const char *wanted = getenv("NORMROPE_NUM_THREADS");
  int threads = wanted ? atoi(wanted) : 0;
  return threads > 0 && threads <= MAX_THREADS ? threads : omp_get_max_threads();
}

/* True if rows of the output are whole cache lines, and it is too large for the caches to keep for who reads it. */
static bool streams(const nr_plan *plan, const nr_segment *s, const nr_view *out) {
  uint64_t size = nr_dtype_size(out->dtype), bits = (uintptr_t)out->data | (uint64_t)s->dim * size;
  for (int i = 0; i < 3; i++) /* of an axis of extent 1 it is any number */
    bits |= (uint64_t)out->stride[i] * size;
  return plan->bytes > stream_bytes && out->data && out->stride[3] == 1 && bits % 64 == 0;
}

static void run_block(const nr_plan *plan, const nr_segment *segments, char *workspace, int64_t index) {
  nr_block_place place = nr_plan_block(plan, index);
  const nr_segment *s = &segments[place.segment];
  const nr_cut *cut = &plan->cuts[place.segment];
  double *sums = (double *)(workspace + place.slot);
  if (nr_slot_size(cut)) /* without sums there may be no workspace */
    memset(sums, 0, nr_slot_size(cut));
  bool forward = plan->direction == NR_FORWARD;
  nr_block block = {.segment = s,
                    .first = place.first,
                    .count = place.count,
                    .weight_sum = cut->weight_channels ? sums : NULL,
                    .bias_sum = cut->bias_channels ? sums + cut->weight_channels : NULL,
                    .stream = streams(plan, s, forward ? &s->y : &s->grad_x)};
  void (*kernel)(const nr_block *) =
      (forward ? plan->kernels->forward : plan->kernels->backward)[(forward ? &s->y : &s->grad_y)->dtype];
  for (block.batch = place.first_batch; block.batch < place.first_batch + place.batches; block.batch++)
    kernel(&block);
}

/* Channels [first, first + count) of head n of grad_weight or grad_bias: the slots of all segments that share it, in
   order. `first` begins a chunk. */
static void add_slots(const nr_plan *plan, const nr_segment *segments, const char *workspace, const nr_view *out,
                      size_t offset, int64_t n, int64_t first, int64_t count, int64_t dim) {
  double sum[SUM_CHUNK] = {0};
  for (int32_t i = 0; i < plan->num_segments; i++) {
    const nr_cut *cut = &plan->cuts[i];
    bool bias = offset == offsetof(nr_segment, grad_bias);
    if (!nr_shared(nr_view_at(&segments[i], offset), out) || !(bias ? cut->bias_channels : cut->weight_channels))
      continue;
    for (int64_t slot = 0; slot < cut->num_blocks; slot++) {
      const double *part = (const double *)(workspace + cut->slots + (size_t)slot * nr_slot_size(cut));
      part += (bias ? cut->weight_channels : 0) + n * nr_padded(dim) + first;
      for (int64_t c = 0; c < SUM_CHUNK; c++)
        sum[c] += part[c];
    }
  }
  for (int64_t c = 0; c < count; c++)
    nr_store(nr_row(out, 0, 0, n), out->dtype, (first + c) * out->stride[3], sum[nr_paired(c)]);
}

static void add_parameter(const nr_plan *plan, const nr_segment *segments, const char *workspace, int32_t i,
                          size_t offset) {
  const nr_view *out = nr_view_at(&segments[i], offset);
  if (!nr_first_of_shared(segments, i, offset))
    return;
  int64_t dim = segments[i].dim, per_head = nr_padded(dim) / SUM_CHUNK;
#pragma omp for schedule(static)
  for (int64_t chunk = 0; chunk < per_head * (out->stride[2] ? segments[i].heads : 1); chunk++) {
    int64_t first = chunk % per_head * SUM_CHUNK, rest = dim - first;
    add_slots(plan, segments, workspace, out, offset, chunk / per_head, first, rest < SUM_CHUNK ? rest : SUM_CHUNK,
              dim);
  }
}

/* One row of grad_cos or grad_sin, over all segments that share it. */
static void table_row(const nr_plan *plan, const nr_segment *segments, const nr_segment *owner, size_t offset,
                      int64_t b, int64_t t, int64_t n) {
  const nr_view *out = nr_view_at(owner, offset);
  double sum[NR_MAX_DIM] = {0};
  bool cosine = offset == offsetof(nr_segment, grad_cos);
  for (const nr_segment *s = segments; s < segments + plan->num_segments; s++) {
    int64_t position = t - s->rope_position;
    if (!nr_shared(nr_view_at(s, offset), out) || !s->rope_width || position < 0 || position >= s->length)
      continue;
    nr_table_block block = {.segment = s,
                            .batch = out->stride[0] ? b : -1,
                            .head = out->stride[2] ? n : -1,
                            .position = position,
                            .cos_sum = cosine ? sum : NULL,
                            .sin_sum = cosine ? NULL : sum};
    plan->kernels->table_gradient[s->grad_y.dtype](&block);
  }
  for (int64_t d = 0; d < owner->rope_dim; d++)
    nr_store(nr_row(out, b, t, n), out->dtype, d * out->stride[3], sum[d]);
}

static void table_gradient(const nr_plan *plan, const nr_segment *segments, int32_t i, size_t offset) {
  const nr_segment *owner = &segments[i];
  const nr_view *out = nr_view_at(owner, offset);
  if (!nr_first_of_shared(segments, i, offset))
    return;
  int64_t batches = out->stride[0] ? owner->batch : 1, heads = out->stride[2] ? owner->heads : 1;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < batches * owner->rope_length * heads; row++)
    table_row(plan, segments, owner, offset, row / heads / owner->rope_length, row / heads % owner->rope_length,
              row % heads);
}

/* What each thread of a run does. */
static void work(const nr_plan *plan, const nr_segment *segments, char *workspace) {
  bool backward = plan->direction == NR_BACKWARD;
  for (int32_t i = 0; i < plan->num_segments && backward; i++) { /* they read x, which grad_x may be written over */
    table_gradient(plan, segments, i, offsetof(nr_segment, grad_cos));
    table_gradient(plan, segments, i, offsetof(nr_segment, grad_sin));
  }
#pragma omp for schedule(dynamic)
  for (int64_t index = 0; index < plan->num_blocks; index++)
    run_block(plan, segments, workspace, index);
  for (int32_t i = 0; i < plan->num_segments && backward; i++) {
    add_parameter(plan, segments, workspace, i, offsetof(nr_segment, grad_weight));
    add_parameter(plan, segments, workspace, i, offsetof(nr_segment, grad_bias));
  }
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static nr_status run(const nr_plan *plan, const nr_segment *segments, void *workspace) {
  int threads = plan->num_threads ? plan->num_threads : nr_default_threads();
  double worth = plan->bytes / bytes_per_thread;
  if (!plan->num_threads && threads > worth)
    threads = worth < 1 ? 1 : (int)worth;
  if (threads > MAX_THREADS)
    threads = MAX_THREADS;
  if (threads > plan->num_blocks)
    threads = plan->num_blocks ? (int)plan->num_blocks : 1;
  double start = nr_verbose() >= NR_VERBOSE_PROFILE ? seconds() : 0;
  /* A team of its own even for one thread: in a parallel region of the program, the loops would be shared with it. */
#pragma omp parallel num_threads(threads)
  {
    fenv_t theirs; /* OpenMP's threads are the program's too */
    fegetenv(&theirs);
    fesetenv(FE_DFL_ENV);
#if defined(__aarch64__)
    __asm__ volatile("msr fpcr, xzr"); /* of which FE_DFL_ENV leaves what halves are */
#endif
    work(plan, segments, workspace);
    fesetenv(&theirs);
  }
  if (nr_verbose() >= NR_VERBOSE_PROFILE)
    nr_say("%s, %d segments, %s, %d threads: %.3f ms", plan->direction == NR_FORWARD ? "forward" : "backward",
           (int)plan->num_segments, plan->kernels->isa, threads, (seconds() - start) * 1e3);
  return NR_OK;
}

static nr_status prepare(nr_plan *plan, const char *isa) {
  nr_plan_cut(plan);
  return nr_dispatch(isa, &plan->kernels);
}

const nr_backend_ops nr_backend_cpu = {.name = "cpu", .prepare = prepare, .run = run};
