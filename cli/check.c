#include "cli/check.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Elements of a piece: two float64 buffers of this many per thread. */
enum { PIECE_ELEMENTS = 1 << 20, MAX_THREADS = 64 };

static const nr_case_slot parameters[] = {NR_SLOT_GRAD_WEIGHT, NR_SLOT_GRAD_BIAS, NR_SLOT_GRAD_COS, NR_SLOT_GRAD_SIN};
enum { NUM_PARAMETERS = sizeof parameters / sizeof *parameters };

/* The exact sum of a parameter gradient and of its terms' magnitudes, over the pieces that one worker did. */
typedef struct sum {
  double *exact, *magnitude;
} sum;

/* A parameter gradient in the case: one for all segments that name the same memory. */
typedef struct parameter {
  nr_view view; /* of the result */
  int output;
  nr_case_slot slot;
  int64_t counts[4]; /* [batch, rows, heads, channels], 1 where shared */
  int64_t size;
} parameter;

typedef struct job {
  const nr_case *c;
  nr_direction direction;
  nr_segment segments[NR_MAX_SEGMENTS];
  int origin[NR_MAX_SEGMENTS], num_segments;
  int64_t first_piece[NR_MAX_SEGMENTS + 1], positions[NR_MAX_SEGMENTS];
  parameter parameters[NR_MAX_SEGMENTS * NUM_PARAMETERS];
  int num_parameters;
  int parameter_of[NR_MAX_SEGMENTS][NUM_PARAMETERS]; /* -1: not wanted */
  atomic_llong next_piece, done_pieces;
  atomic_int failed;
} job;

typedef struct worker {
  job *of;
  nr_verdict verdicts[NR_MAX_OUTPUTS];
  sum sums[NR_MAX_SEGMENTS * NUM_PARAMETERS];
  nr_progress *progress; /* of the first worker only */
  nr_message message;
  int code;
} worker;

/* One piece: its segment as given, and the same with float64 outputs for the exact values and the magnitudes. */
typedef struct piece {
  int segment;
  nr_segment given, exact, magnitude;
  double *memory;
  int64_t table_row, batch;
} piece;

static int64_t view_index(const nr_view *v, int64_t b, int64_t s, int64_t n, int64_t d) {
  return b * v->stride[0] + s * v->stride[1] + n * v->stride[2] + d * v->stride[3];
}

static const void *view_at(const nr_view *v, int64_t b, int64_t s, int64_t n, int64_t d) {
  return (const char *)v->data + view_index(v, b, s, n, d) * (int64_t)nr_dtype_size(v->dtype);
}

static double view_value(const nr_view *v, int64_t b, int64_t s, int64_t n, int64_t d) {
  return nr_load(view_at(v, b, s, n, d), v->dtype, 0);
}

static int64_t groups(const nr_segment *s) { return s->scope == NR_SCOPE_ALL_HEADS ? 1 : s->heads; }
static int64_t rotary(const nr_segment *s) { return s->rope_dim ? s->rope_dim : s->dim; }

/* Extents of a parameter gradient of the segment. */
static void parameter_counts(const nr_segment *s, nr_case_slot slot, const nr_view *v, int64_t counts[4]) {
  bool table = nr_slots[slot].extent == NR_EXTENT_TABLE;
  counts[0] = table && v->stride[0] ? s->batch : 1;
  counts[1] = table ? s->rope_length : 1;
  counts[2] = v->stride[2] ? s->heads : 1;
  counts[3] = table ? rotary(s) : s->dim;
}

/* float64 elements that a piece needs for an output of this slot. */
static int64_t slot_elements(const nr_segment *s, nr_case_slot slot) {
  int64_t counts[4];
  nr_segment copy = *s;
  switch (nr_slots[slot].extent) {
  case NR_EXTENT_ROWS: return s->length * s->heads * s->dim;
  case NR_EXTENT_STATISTICS: return s->length * groups(s);
  default: parameter_counts(s, slot, nr_slot_view(&copy, slot), counts); return counts[1] * counts[2] * counts[3];
  }
}

/* Replaces one output of a piece by contiguous float64 memory of the same broadcast; returns the memory after it. */
static double *redirect(nr_segment *s, nr_case_slot slot, double *memory) {
  nr_view *v = nr_slot_view(s, slot);
  int64_t elements = slot_elements(s, slot), heads = v->stride[2];
  switch (nr_slots[slot].extent) {
  case NR_EXTENT_ROWS: *v = nr_view_bsnd(memory, NR_F64, s->length, s->heads, s->dim); break;
  case NR_EXTENT_STATISTICS: *v = nr_view_statistics(memory, NR_F64, s->length, groups(s)); break;
  case NR_EXTENT_PARAMETER:
    *v = heads ? nr_view_heads(memory, NR_F64, s->dim) : nr_view_channels(memory, NR_F64);
    break;
  case NR_EXTENT_TABLE: {
    int64_t row = (heads ? s->heads : 1) * rotary(s);
    *v = nr_view_strided(memory, NR_F64, 0, row, heads ? rotary(s) : 0, 1);
    break;
  }
  }
  return memory + elements;
}

/* Where the element of a result's view lies in its output tensor. */
static int64_t tensor_index(const nr_case *c, int output, const nr_view *v, int64_t element) {
  const char *start = c->outputs[output].tensor.data;
  return ((const char *)v->data - start) / (int64_t)nr_dtype_size(v->dtype) + element;
}

static int output_of(const worker *w, const piece *p, nr_case_slot slot) {
  return w->of->c->segments[w->of->origin[p->segment]].views[slot].output;
}

static double row_magnitude(const nr_view *v, int64_t s, int64_t n, int64_t dim) {
  double largest = 0;
  for (int64_t d = 0; d < dim; d++) {
    double value = view_value(v, 0, s, n, d);
    if (value > largest && isfinite(value))
      largest = value;
  }
  return largest;
}

static void judge_rows(worker *w, piece *p, nr_case_slot slot, int roundings) {
  const nr_view *got = nr_slot_view(&p->given, slot), *exact = nr_slot_view(&p->exact, slot);
  const nr_view *magnitude = nr_slot_view(&p->magnitude, slot);
  int output = output_of(w, p, slot);
  for (int64_t s = 0; s < p->given.length; s++)
    for (int64_t n = 0; n < p->given.heads; n++) {
      double largest = row_magnitude(magnitude, s, n, p->given.dim), slack = nr_slack(roundings, largest);
      for (int64_t d = 0; d < p->given.dim; d++)
        nr_judge(&w->verdicts[output], got->dtype, tensor_index(w->of->c, output, got, view_index(got, 0, s, n, d)),
                 view_value(got, 0, s, n, d), view_value(exact, 0, s, n, d), slack, largest);
    }
}

/* The mean of the magnitudes that were added up for a mean. */
static double mean_magnitude(const nr_segment *s, int64_t position, int64_t group) {
  int64_t heads = s->scope == NR_SCOPE_ALL_HEADS ? s->heads : 1;
  double total = 0;
  for (int64_t n = group; n < group + heads; n++)
    for (int64_t d = 0; d < s->dim; d++)
      total += fabs(view_value(&s->x, 0, position, n, d));
  return total / (double)(heads * s->dim);
}

static void judge_statistics(worker *w, piece *p, nr_case_slot slot) {
  const nr_view *got = nr_slot_view(&p->given, slot), *exact = nr_slot_view(&p->exact, slot);
  int output = output_of(w, p, slot);
  for (int64_t s = 0; s < p->given.length; s++)
    for (int64_t n = 0; n < groups(&p->given); n++) {
      double value = view_value(exact, 0, s, n, 0);
      double slack = (NR_STATISTICS_ULP - 0.5) * nr_ulp(NR_F32, value), size = fabs(value);
      if (slot == NR_SLOT_MEAN) {
        double magnitude = mean_magnitude(&p->given, s, n);
        size = isfinite(magnitude) ? magnitude : 0;
        slack += nr_mean_slack(size);
      }
      nr_judge(&w->verdicts[output], got->dtype, tensor_index(w->of->c, output, got, view_index(got, 0, s, n, 0)),
               view_value(got, 0, s, n, 0), value, slack, size);
    }
}

/* Rows without norm and rope are copies. */
static void judge_copies(worker *w, piece *p, nr_case_slot from, nr_case_slot to) {
  const nr_view *source = nr_slot_view(&p->given, from), *got = nr_slot_view(&p->given, to);
  int output = output_of(w, p, to);
  for (int64_t s = 0; s < p->given.length; s++)
    for (int64_t n = 0; n < p->given.heads; n++)
      for (int64_t d = 0; d < p->given.dim; d++)
        nr_judge_copy(&w->verdicts[output], got->dtype,
                      tensor_index(w->of->c, output, got, view_index(got, 0, s, n, d)), view_at(got, 0, s, n, d),
                      view_at(source, 0, s, n, d));
}

/* Adds a piece's share of a parameter gradient to the worker's sums. */
static void add_parameter(worker *w, piece *p, int k) {
  int index = w->of->parameter_of[p->segment][k];
  if (index < 0)
    return;
  const parameter *of = &w->of->parameters[index];
  int64_t row = of->counts[2] * of->counts[3], rows = 1, first = 0;
  if (nr_slots[of->slot].extent == NR_EXTENT_TABLE) {
    rows = p->given.rope_length;
    first = (of->counts[0] > 1 ? p->batch : 0) * of->counts[1] + p->table_row;
  }
  const double *exact = nr_slot_view(&p->exact, of->slot)->data;
  const double *magnitude = nr_slot_view(&p->magnitude, of->slot)->data;
  for (int64_t i = 0; i < rows * row; i++) {
    w->sums[index].exact[first * row + i] += exact[i];
    w->sums[index].magnitude[first * row + i] += magnitude[i];
  }
}

static bool has(nr_segment *s, nr_case_slot slot) { return nr_slot_view(s, slot)->data != NULL; }

static void judge_piece(worker *w, piece *p) {
  if (w->of->direction == NR_FORWARD) {
    if (has(&p->given, NR_SLOT_Y))
      judge_rows(w, p, NR_SLOT_Y, NR_SLACK_FORWARD);
    bool centres = p->given.norm == NR_NORM_LAYER || p->given.norm == NR_NORM_LAYER_AFFINE;
    if (has(&p->given, NR_SLOT_MEAN) && centres)
      judge_statistics(w, p, NR_SLOT_MEAN);
    if (has(&p->given, NR_SLOT_RSTD) && p->given.norm)
      judge_statistics(w, p, NR_SLOT_RSTD);
    return;
  }
  if (has(&p->given, NR_SLOT_GRAD_X))
    judge_rows(w, p, NR_SLOT_GRAD_X, NR_SLACK_BACKWARD);
  for (int k = 0; k < NUM_PARAMETERS; k++)
    add_parameter(w, p, k);
}

/* Rows that are copied bit by bit: no norm, no rope. (Rows that have a rope but no table row pass too, but as numbers.)
 */
static bool only_copies(const worker *w, piece *p) {
  const nr_segment *s = &p->given;
  bool parameter_wanted = false;
  for (int k = 0; k < NUM_PARAMETERS; k++)
    parameter_wanted |= w->of->parameter_of[p->segment][k] >= 0;
  nr_case_slot from = w->of->direction == NR_FORWARD ? NR_SLOT_X : NR_SLOT_GRAD_Y;
  nr_case_slot to = w->of->direction == NR_FORWARD ? NR_SLOT_Y : NR_SLOT_GRAD_X;
  return s->norm == NR_NORM_NONE && !s->rope_width && !parameter_wanted && has(&p->given, to) &&
         nr_slot_view(&p->given, from)->dtype == nr_slot_view(&p->given, to)->dtype;
}

/* Outputs to compute: those to be judged, and y, without which there is no forward. */
static bool is_computed(const worker *w, piece *p, nr_case_slot slot) {
  return nr_slots[slot].role[w->of->direction] == 'o' && (slot == NR_SLOT_Y || has(&p->given, slot));
}

static int check_piece(worker *w, piece *p) {
  const job *j = w->of;
  if (only_copies(w, p)) {
    judge_copies(w, p, j->direction == NR_FORWARD ? NR_SLOT_X : NR_SLOT_GRAD_Y,
                 j->direction == NR_FORWARD ? NR_SLOT_Y : NR_SLOT_GRAD_X);
    return NR_EXIT_OK;
  }
  int64_t elements = 0;
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
    if (is_computed(w, p, slot))
      elements += slot_elements(&p->given, slot);
  p->memory = calloc((size_t)elements * 2 + 1, sizeof *p->memory);
  if (!p->memory)
    return nr_refuse(&w->message, NR_EXIT_RUN, "%s: out of memory", j->c->file->path);
  p->exact = p->magnitude = p->given;
  double *exact = p->memory, *magnitude = p->memory + elements;
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
    if (is_computed(w, p, slot)) {
      exact = redirect(&p->exact, slot, exact);
      magnitude = redirect(&p->magnitude, slot, magnitude);
    }
  nr_run_options reference = {.backend = NR_BACKEND_REFERENCE}, sizes = {.backend = NR_BACKEND_MAGNITUDE};
  const char *path = j->c->file->path;
  int code = nr_run_segments(&p->exact, 1, j->direction, &reference, path, &w->message);
  if (!code)
    code = nr_run_segments(&p->magnitude, 1, j->direction, &sizes, path, &w->message);
  if (!code)
    judge_piece(w, p);
  free(p->memory);
  return code;
}

static void *work(void *context) {
  worker *w = context;
  job *j = w->of;
  long long shown = 0, total = j->first_piece[j->num_segments], next;
  while (!w->code && !j->failed && (next = atomic_fetch_add(&j->next_piece, 1)) < total) {
    piece p = {0};
    while (j->first_piece[p.segment + 1] <= next)
      p.segment++;
    const nr_segment *s = &j->segments[p.segment];
    int64_t local = next - j->first_piece[p.segment], count = j->positions[p.segment];
    int64_t per_batch = (s->length + count - 1) / count, first = local % per_batch * count;
    p.batch = local / per_batch;
    p.given = nr_case_slice(s, p.batch, first, count < s->length - first ? count : s->length - first, &p.table_row);
    w->code = check_piece(w, &p);
    if (w->code)
      j->failed = 1;
    long long done = atomic_fetch_add(&j->done_pieces, 1) + 1;
    if (w->progress) {
      nr_progress_add(w->progress, (double)(done - shown));
      shown = done;
    }
  }
  return NULL;
}

/* Finds the parameter gradients that the job is to sum up. */
static void find_parameters(job *j) {
  for (int i = 0; i < j->num_segments; i++)
    for (int k = 0; k < NUM_PARAMETERS; k++) {
      nr_case_slot slot = parameters[k];
      nr_view *v = nr_slot_view(&j->segments[i], slot);
      j->parameter_of[i][k] = -1;
      if (nr_slots[slot].role[j->direction] != 'o' || !v->data)
        continue;
      int index = 0;
      while (index < j->num_parameters &&
             (j->parameters[index].view.data != v->data || j->parameters[index].slot != slot))
        index++;
      if (index == j->num_parameters) {
        parameter *p = &j->parameters[j->num_parameters++];
        *p = (parameter){.view = *v, .slot = slot, .output = j->c->segments[j->origin[i]].views[slot].output};
        parameter_counts(&j->segments[i], slot, v, p->counts);
        p->size = p->counts[0] * p->counts[1] * p->counts[2] * p->counts[3];
      }
      j->parameter_of[i][k] = index;
    }
}

static void cut(job *j) {
  for (int i = 0; i < j->num_segments; i++) {
    const nr_segment *s = &j->segments[i];
    int64_t row = s->heads * s->dim;
    j->positions[i] = row > 0 && row < PIECE_ELEMENTS ? PIECE_ELEMENTS / row : 1;
    int64_t pieces = row ? s->batch * ((s->length + j->positions[i] - 1) / j->positions[i]) : 0;
    j->first_piece[i + 1] = j->first_piece[i] + pieces;
  }
}

static void judge_parameters(const job *j, const sum *total, nr_verdict *verdicts) {
  for (int i = 0; i < j->num_parameters; i++) {
    const parameter *p = &j->parameters[i];
    int roundings = nr_slots[p->slot].extent == NR_EXTENT_TABLE ? NR_SLACK_TABLE : NR_SLACK_PARAMETER;
    int64_t k = 0;
    for (int64_t b = 0; b < p->counts[0]; b++)
      for (int64_t t = 0; t < p->counts[1]; t++)
        for (int64_t n = 0; n < p->counts[2]; n++)
          for (int64_t d = 0; d < p->counts[3]; d++, k++) {
            double magnitude = isfinite(total[i].magnitude[k]) ? total[i].magnitude[k] : 0;
            nr_judge(&verdicts[p->output], p->view.dtype,
                     tensor_index(j->c, p->output, &p->view, view_index(&p->view, b, t, n, d)),
                     view_value(&p->view, b, t, n, d), total[i].exact[k], nr_slack(roundings, magnitude), magnitude);
          }
  }
}

static bool allocate_sums(worker *w) {
  for (int i = 0; i < w->of->num_parameters; i++) {
    w->sums[i].exact = calloc((size_t)w->of->parameters[i].size + 1, sizeof(double));
    w->sums[i].magnitude = calloc((size_t)w->of->parameters[i].size + 1, sizeof(double));
    if (!w->sums[i].exact || !w->sums[i].magnitude)
      return false;
  }
  return true;
}

/* Everything of the other workers into the first. */
static void collect(worker *workers, int count, nr_verdict *verdicts) {
  const job *j = workers->of;
  for (int t = 0; t < count; t++)
    for (int i = 0; i < NR_MAX_OUTPUTS; i++)
      nr_verdict_add(&verdicts[i], &workers[t].verdicts[i]);
  for (int t = 1; t < count; t++)
    for (int i = 0; i < j->num_parameters; i++)
      for (int64_t k = 0; k < j->parameters[i].size; k++) {
        workers->sums[i].exact[k] += workers[t].sums[i].exact[k];
        workers->sums[i].magnitude[k] += workers[t].sums[i].magnitude[k];
      }
  judge_parameters(j, workers->sums, verdicts);
}

static int run_workers(job *j, worker *workers, int count, nr_progress *progress, nr_message *message) {
  pthread_t threads[MAX_THREADS];
  int started = 1, code = NR_EXIT_OK;
  for (int t = 0; t < count; t++) {
    workers[t].of = j;
    if (!allocate_sums(&workers[t]))
      return nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", j->c->file->path);
  }
  workers->progress = progress;
  while (started < count && !pthread_create(&threads[started], NULL, work, &workers[started]))
    started++;
  work(workers);
  for (int t = 1; t < started; t++)
    pthread_join(threads[t], NULL);
  for (int t = 0; t < started && !code; t++)
    if ((code = workers[t].code))
      *message = workers[t].message;
  return code;
}

int nr_check_case(const nr_case *c, nr_direction direction, int32_t threads, bool progress, nr_verdict *verdicts,
                  nr_message *message) {
  int count = threads ? threads : nr_default_threads();
  count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  job *j = calloc(1, sizeof *j);
  worker *workers = calloc((size_t)count, sizeof *workers);
  int code = j && workers ? NR_EXIT_OK : nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", c->file->path);
  memset(verdicts, 0, NR_MAX_OUTPUTS * sizeof *verdicts);
  if (!code) {
    j->c = c;
    j->direction = direction;
    j->num_segments = nr_case_bind(c, direction, j->segments, j->origin);
    find_parameters(j);
    cut(j);
    nr_progress line = nr_progress_start("check", (double)j->first_piece[j->num_segments], progress);
    code = run_workers(j, workers, count, &line, message);
    nr_progress_end(&line);
    if (!code)
      collect(workers, count, verdicts);
  }
  for (int t = 0; workers && t < count; t++)
    for (int i = 0; j && i < j->num_parameters; i++) {
      free(workers[t].sums[i].exact);
      free(workers[t].sums[i].magnitude);
    }
  free(workers);
  free(j);
  return code;
}
