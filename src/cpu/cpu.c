/* The CPU backend: hands the plan's blocks to threads and adds up their sums in the plan's order. */
#include <omp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/environment.h"
#include "base/verbose.h"
#include "cpu/dispatch.h"
#include "plan/backend.h"

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

/*
 * A thread's place among those of a run, by which they share out its loops. OpenMP's own loops need a team, even of
 * one: without, they would be shared with the parallel region that the program may have called from.
 */
typedef struct member {
  int index, threads;
  atomic_llong *next_block; /* that no thread has taken */
} member;

/* Where the thread's part of `count` iterations begins, and where it ends. */
static int64_t boundary(int64_t count, int64_t index, int64_t threads) {
  int64_t rest = count % threads;
  return count / threads * index + (index < rest ? index : rest);
}
static int64_t first_of(int64_t count, member m) { return boundary(count, m.index, m.threads); }
static int64_t end_of(int64_t count, member m) { return boundary(count, m.index + 1, m.threads); }

/* True if the output is too large for the caches to keep for who reads it, and its rows are whole cache lines; or four
   of them are, which kernels look for themselves. */
static bool streams(const nr_plan *plan, const nr_segment *s, const nr_view *out) {
  uint64_t size = nr_dtype_size(out->dtype), row = (uint64_t)s->dim * size, bits = (uintptr_t)out->data;
  for (int i = 0; i < 3; i++) /* of an axis of extent 1 it is any number */
    bits |= (uint64_t)out->stride[i] * size;
  bool lines = row % 64 ? row * 4 % 64 == 0 : bits % 64 == 0;
  return plan->bytes > stream_bytes && out->data && out->stride[3] == 1 && lines;
}

/* Where the block after this one begins, if it goes on with the same rows. */
static int64_t continued(const nr_block_place *place, nr_block_place next) {
  bool same = next.segment == place->segment && next.first_batch == place->first_batch && place->batches == 1;
  return same && next.count >= NR_TILE ? next.first : -1;
}

/* `next`: the block that this thread runs next, or one past the last. */
static void run_block(const nr_plan *plan, const nr_segment *segments, char *workspace, int64_t index, int64_t next) {
  nr_block_place place = nr_plan_block(plan, index);
  const nr_segment *s = &segments[place.segment];
  const nr_cut *cut = &plan->cuts[place.segment];
  double *sums = (double *)(workspace + place.slot);
  if (nr_slot_size(cut)) /* without sums there may be no workspace */
    memset(sums, 0, nr_slot_size(cut));
  bool forward = plan->direction == NR_FORWARD;
  float *parts = (float *)(sums + cut->weight_channels + cut->bias_channels);
  nr_block block = {.segment = s,
                    .first = place.first,
                    .count = place.count,
                    .next = next < plan->num_blocks ? continued(&place, nr_plan_block(plan, next)) : -1,
                    .weight_sum = cut->weight_channels ? sums : NULL,
                    .bias_sum = cut->bias_channels ? sums + cut->weight_channels : NULL,
                    .weight_part = cut->weight_channels ? parts : NULL,
                    .bias_part = cut->bias_channels ? parts + cut->weight_channels : NULL,
                    .weight_channels = cut->weight_channels,
                    .bias_channels = cut->bias_channels,
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
      for (int64_t c = 0; c < count; c++)
        sum[c] += part[nr_place(segments[i].grad_y.dtype, c)];
    }
  }
  for (int64_t c = 0; c < count; c++)
    nr_store(nr_row(out, 0, 0, n), out->dtype, (first + c) * out->stride[3], sum[c]);
}

static void add_parameter(const nr_plan *plan, const nr_segment *segments, const char *workspace, int32_t i,
                          size_t offset, member m) {
  const nr_view *out = nr_view_at(&segments[i], offset);
  if (!nr_first_of_shared(segments, i, offset))
    return;
  int64_t dim = segments[i].dim, per_head = nr_padded(dim) / SUM_CHUNK;
  int64_t chunks = per_head * (out->stride[2] ? segments[i].heads : 1);
  for (int64_t chunk = first_of(chunks, m), end = end_of(chunks, m); chunk < end; chunk++) {
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

static void table_gradient(const nr_plan *plan, const nr_segment *segments, int32_t i, size_t offset, member m) {
  const nr_segment *owner = &segments[i];
  const nr_view *out = nr_view_at(owner, offset);
  if (!nr_first_of_shared(segments, i, offset))
    return;
  int64_t batches = out->stride[0] ? owner->batch : 1, heads = out->stride[2] ? owner->heads : 1;
  int64_t rows = batches * owner->rope_length * heads;
  for (int64_t row = first_of(rows, m), end = end_of(rows, m); row < end; row++)
    table_row(plan, segments, owner, offset, row / heads / owner->rope_length, row / heads % owner->rope_length,
              row % heads);
}

/* Until all threads of the run are here. */
static void meet(member m) {
  if (m.threads > 1) {
#pragma omp barrier
  }
}

static int64_t take_block(member m) { return atomic_fetch_add(m.next_block, 1); }

/* What each thread of a run does. */
static void work(const nr_plan *plan, const nr_segment *segments, char *workspace, member m) {
  if (plan->direction == NR_BACKWARD) {
    for (int32_t i = 0; i < plan->num_segments; i++) {
      table_gradient(plan, segments, i, offsetof(nr_segment, grad_cos), m);
      table_gradient(plan, segments, i, offsetof(nr_segment, grad_sin), m);
    }
    meet(m); /* they read x, which grad_x may be written over */
  }
  for (int64_t index = take_block(m), next; index < plan->num_blocks; index = next) {
    next = take_block(m);
    run_block(plan, segments, workspace, index, next);
  }
  if (plan->direction == NR_BACKWARD) {
    meet(m);
    for (int32_t i = 0; i < plan->num_segments; i++) {
      add_parameter(plan, segments, workspace, i, offsetof(nr_segment, grad_weight), m);
      add_parameter(plan, segments, workspace, i, offsetof(nr_segment, grad_bias), m);
    }
  }
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The calling thread is one of them. */
static int threads_of(const nr_plan *plan) {
  double worth = plan->num_threads ? plan->num_threads : nr_plan_worth(plan);
  if (worth < 2 || plan->num_blocks < 2)
    return 1;
  int threads = plan->num_threads ? plan->num_threads : nr_default_threads();
  if (threads > worth)
    threads = (int)worth;
  if (threads > MAX_THREADS)
    threads = MAX_THREADS;
  return threads < plan->num_blocks ? threads : (int)plan->num_blocks;
}

static nr_status run(const nr_plan *plan, const nr_segment *segments, void *workspace, void *stream) {
  (void)stream;
  int threads = threads_of(plan);
  double start = nr_verbose() >= NR_VERBOSE_PROFILE ? seconds() : 0;
  atomic_llong next_block = 0;
  if (threads == 1)
    work(plan, segments, workspace, (member){0, 1, &next_block});
  else
#pragma omp parallel num_threads(threads)
  {
    fenv_t theirs; /* OpenMP's threads are the program's too */
    nr_environment_enter(&theirs);
    work(plan, segments, workspace, (member){omp_get_thread_num(), omp_get_num_threads(), &next_block});
    nr_environment_leave(&theirs);
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
