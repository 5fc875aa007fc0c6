#include "cli/bench.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/generate.h"
#include "cli/make_case.h"

enum { LINE = 64 };

/* Bytes of a tensor: of some dozens of them the sum still is an int64_t. */
static const size_t LARGEST = (size_t)1 << 56;

const char *const nr_timed_names[NR_NUM_TIMED] = {[NR_TIMED_COPY] = "memcpy",
                                                  [NR_TIMED_COPY_STREAMED] = "copy_streamed",
                                                  [NR_TIMED_LOOP] = "loop",
                                                  [NR_TIMED_LOOP_STREAMED] = "loop_streamed",
                                                  [NR_TIMED_OPERATOR] = "operator"};

/* Whether the direction reads or writes the slot: an operator that is asked for gradients need not read all there is.
 */
static bool touches(const nr_segment *shape, nr_direction direction, const nr_case_segment *segment,
                    nr_case_slot slot) {
  const nr_case_view *v = &segment->views[slot];
  char role = nr_slots[slot].role[direction];
  if (role == 'o')
    return v->output >= 0;
  if (role != 'i' || !v->input)
    return false;
  if (direction == NR_BACKWARD && slot == NR_SLOT_X)
    return shape->norm != NR_NORM_NONE || segment->views[NR_SLOT_GRAD_COS].output >= 0;
  if (direction == NR_BACKWARD && slot == NR_SLOT_BIAS)
    return segment->views[NR_SLOT_GRAD_COS].output >= 0;
  return true;
}

/* The tensor behind a view that the direction touches, or NULL. */
static nr_tensor *tensor_of(nr_bench_case *b, const nr_case_segment *segment, nr_case_slot slot) {
  const nr_case_view *v = &segment->views[slot];
  if (!touches(&segment->shape, b->direction, segment, slot))
    return NULL;
  if (nr_slots[slot].role[b->direction] == 'o')
    return &b->c->outputs[v->output].tensor;
  return &b->tensors[v->input - b->tensors];
}

static void fill(const nr_recipe *recipe, const nr_tensor *t, nr_case_slot slot, int threads) {
  nr_dtype dtype = (nr_dtype)t->dtype;
  bool table = slot == NR_SLOT_COS || slot == NR_SLOT_SIN;
  if (table && !recipe->random_tables) {
    int64_t rows = t->shape[0];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++)
      nr_fill_angles(t->data, dtype, t->shape[1], recipe->rope_width, rows * i / threads,
                     rows * (i + 1) / threads - rows * i / threads, slot == NR_SLOT_SIN);
    return;
  }
  double centre = slot == NR_SLOT_RSTD || slot == NR_SLOT_WEIGHT ? 1 : 0;
  double scale = slot == NR_SLOT_MEAN || slot == NR_SLOT_RSTD ? 0.0625
                 : table                                      ? 0.75
                 : slot == NR_SLOT_WEIGHT                     ? 0.25
                                                              : 1;
  nr_bench_fill(t->data, dtype, nr_stream_of(recipe->seed, t->name), nr_tensor_elements(t), centre, scale, threads);
}

/* Calls visit for every tensor of the direction, once. */
static void each_tensor(nr_bench_case *b, void (*visit)(nr_bench_case *, nr_tensor *, nr_case_slot, void *),
                        void *context) {
  const nr_tensor *seen[NR_MAX_RECIPE_TENSORS + NR_MAX_OUTPUTS];
  int count = 0;
  for (int i = 0; i < b->c->num_segments; i++)
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
      nr_tensor *t = tensor_of(b, &b->c->segments[i], slot);
      int k = 0;
      while (k < count && seen[k] != t)
        k++;
      if (!t || k < count)
        continue;
      seen[count++] = t;
      visit(b, t, slot, context);
    }
}

static void measure_tensor(nr_bench_case *b, nr_tensor *t, nr_case_slot slot, void *room) {
  (void)slot;
  nr_tensor_measure(t); /* the case was checked, so it fits */
  b->bytes += (int64_t)t->size;
  *(size_t *)room += nr_bench_room(t->size);
}

typedef struct filling {
  const nr_recipe *recipe;
  int threads;
} filling;

static void place_tensor(nr_bench_case *b, nr_tensor *t, nr_case_slot slot, void *context) {
  const filling *f = context;
  t->data = nr_bench_take(&b->memory, t->size);
  fill(f->recipe, t, slot, f->threads); /* outputs too: their pages are there before the first run */
}

int nr_bench_case_open(nr_bench_case *b, const nr_recipe *recipe, nr_direction direction, bool copies, int threads,
                       nr_message *message) {
  int count = 0;
  size_t room = 0;
  *b = (nr_bench_case){.direction = direction};
  b->tensors = calloc(NR_MAX_RECIPE_TENSORS, sizeof *b->tensors);
  if (!b->tensors)
    return nr_refuse(message, NR_EXIT_RUN, "out of memory");
  json_t *metadata = nr_recipe_describe(recipe, b->tensors, &count);
  b->file = (nr_container){.path = recipe->name ? (char *)recipe->name : "case",
                           .tensors = b->tensors,
                           .num_tensors = (size_t)count,
                           .metadata = metadata};
  int code = metadata ? NR_EXIT_OK : nr_refuse(message, NR_EXIT_RUN, "out of memory");
  for (int i = 0; i < count && !code; i++)
    if (!nr_tensor_measure(&b->tensors[i]) || b->tensors[i].size > LARGEST)
      code =
          nr_refuse(message, NR_EXIT_RUN, "%s: %s has more elements than any memory", b->file.path, b->tensors[i].name);
  if (!code)
    code = nr_case_load(&b->c, &b->file, message);
  if (!code) {
    each_tensor(b, measure_tensor, &room);
    b->half = (size_t)(b->bytes + 2 * LINE - 1) / (2 * LINE) * LINE;
    code = nr_bench_memory_open(&b->memory, room + (copies ? 2 * nr_bench_room(b->half) : 0), message);
  }
  if (!code) {
    each_tensor(b, place_tensor, &(filling){recipe, threads});
    for (int i = 0; i < 2 && copies; i++) {
      b->copy[i] = nr_bench_take(&b->memory, b->half);
      nr_bench_fill(b->copy[i], NR_F32, nr_stream_of(recipe->seed, i ? "to" : "from"), (int64_t)b->half / 4, 0, 1,
                    threads);
    }
    b->num_segments = nr_case_bind(b->c, direction, b->segments, NULL);
  } else {
    nr_bench_case_close(b);
  }
  return code;
}

void nr_bench_case_close(nr_bench_case *b) {
  nr_bench_memory_close(&b->memory);
  nr_case_free(b->c);
  json_decref(b->file.metadata);
  free(b->tensors);
  *b = (nr_bench_case){.direction = b->direction};
}

const nr_tensor *nr_bench_tensor(const nr_bench_case *b, const char *name) {
  for (int i = 0; i < b->c->num_outputs; i++)
    if (!strcmp(b->c->outputs[i].tensor.name, name) && b->c->outputs[i].tensor.data)
      return &b->c->outputs[i].tensor;
  const nr_tensor *t = nr_container_find(&b->file, name);
  return t && t->data ? t : NULL;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Between two samples where `share` of the way falls there. */
static double quantile(const double *sorted, int count, double share) {
  double place = share * (count - 1);
  int low = (int)place, high = low + 1 < count ? low + 1 : low;
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

nr_summary nr_summarise(const double *samples, int count) {
  double sorted[NR_BENCH_MAX_REPEAT];
  memcpy(sorted, samples, (size_t)count * sizeof *samples);
  qsort(sorted, (size_t)count, sizeof *sorted, compare);
  return (nr_summary){quantile(sorted, count, 0.5), quantile(sorted, count, 0.25), quantile(sorted, count, 0.75),
                      sorted[0], sorted[count - 1]};
}

/* Runs one of them; false where it does not exist. */
static bool run_timed(const nr_bench_case *b, nr_timed what, int threads, const nr_plan *plan, void *workspace,
                      nr_status *status) {
  bool streamed = what == NR_TIMED_COPY_STREAMED || what == NR_TIMED_LOOP_STREAMED;
  switch (what) {
  case NR_TIMED_COPY:
  case NR_TIMED_COPY_STREAMED: return nr_bench_copy(b->copy[1], b->copy[0], b->half, streamed, threads);
  case NR_TIMED_LOOP:
  case NR_TIMED_LOOP_STREAMED: return nr_bench_loop(b->segments, b->num_segments, b->direction, streamed, threads);
  default: *status = nr_plan_run(plan, NULL, workspace, nr_plan_workspace_size(plan), NULL); return true;
  }
}

static nr_status run_rounds(const nr_bench_case *b, const nr_plan *plan, void *workspace, int threads, int repeat,
                            nr_progress *progress, double weight, nr_bench_result *result) {
  nr_status status = NR_OK;
  for (int round = -NR_BENCH_WARM_UP; round < repeat && status == NR_OK; round++) {
    for (int i = 0; i < NR_NUM_TIMED && status == NR_OK; i++) {
      double start = nr_seconds();
      result->timed[i] = run_timed(b, (nr_timed)i, threads, plan, workspace, &status);
      if (round >= 0)
        result->samples[i][round] = nr_seconds() - start;
    }
    nr_progress_add(progress, weight);
  }
  return status;
}

static nr_timed faster(const nr_bench_result *r, nr_timed ordinary, nr_timed streamed) {
  return r->timed[streamed] && r->summary[streamed].median < r->summary[ordinary].median ? streamed : ordinary;
}

int nr_bench_measure(const nr_bench_case *b, const char *isa, int threads, int repeat, nr_progress *progress,
                     double weight, nr_bench_result *result, nr_message *message) {
  nr_problem problem = nr_problem_default();
  problem.direction = b->direction;
  problem.segments = b->segments;
  problem.num_segments = b->num_segments;
  problem.num_threads = threads;
  problem.isa = isa;
  *result = (nr_bench_result){0};
  bool room = true;
  for (int i = 0; i < NR_NUM_TIMED; i++)
    room &= (result->samples[i] = calloc((size_t)repeat, sizeof *result->samples[i])) != NULL;
  if (!room)
    return nr_refuse(message, NR_EXIT_RUN, "out of memory");
  nr_plan *plan;
  if (nr_plan_create(&plan, &problem) != NR_OK)
    return nr_refuse(message, NR_EXIT_RUN, "%s: %s", b->file.path, nr_last_error());
  nr_bench_memory workspace;
  int code = nr_bench_memory_open(&workspace, nr_bench_room(nr_plan_workspace_size(plan)), message);
  if (!code && run_rounds(b, plan, workspace.base, threads, repeat, progress, weight, result) != NR_OK)
    code = nr_refuse(message, NR_EXIT_RUN, "%s: %s", b->file.path, nr_last_error());
  nr_bench_memory_close(&workspace);
  nr_plan_destroy(plan);
  for (int i = 0; i < NR_NUM_TIMED && !code; i++)
    if (result->timed[i])
      result->summary[i] = nr_summarise(result->samples[i], repeat);
  result->copy = faster(result, NR_TIMED_COPY, NR_TIMED_COPY_STREAMED);
  result->loop = faster(result, NR_TIMED_LOOP, NR_TIMED_LOOP_STREAMED);
  return code;
}

void nr_bench_result_free(nr_bench_result *result) {
  for (int i = 0; i < NR_NUM_TIMED; i++)
    free(result->samples[i]);
  *result = (nr_bench_result){0};
}
