#include "cli/make_case.h"

#include <stdlib.h>
#include <string.h>

#include "cli/case.h"
#include "cli/generate.h"
#include "cli/run.h"

/* Elements between two looks at the progress line, and between two releases of memory. */
enum { CHUNK = 1 << 20 };

typedef struct maker {
  const nr_recipe *recipe;
  nr_case *c;
  nr_container *out;
  nr_progress progress;
} maker;

/* Tables are made by rows, everything else by elements. */
static void fill_chunk(const maker *m, const nr_tensor *t, nr_case_slot slot, int64_t first, int64_t count) {
  nr_dtype dtype = (nr_dtype)t->dtype;
  uint64_t stream = nr_stream_of(m->recipe->seed, t->name);
  switch (slot) {
  case NR_SLOT_X: nr_fill_normal(t->data, dtype, stream, first, count, 0.125, 1); break;
  case NR_SLOT_WEIGHT: nr_fill_normal(t->data, dtype, stream, first, count, 1, 0.25); break;
  case NR_SLOT_BIAS: nr_fill_normal(t->data, dtype, stream, first, count, 0, 0.25); break;
  case NR_SLOT_COS:
  case NR_SLOT_SIN: {
    int64_t dim = t->shape[1];
    if (m->recipe->random_tables)
      nr_fill_normal(t->data, dtype, stream, first * dim, count * dim, 0, 0.75);
    else
      nr_fill_angles(t->data, dtype, dim, m->recipe->rope_width, first, count, slot == NR_SLOT_SIN);
    break;
  }
  default: nr_fill_normal(t->data, dtype, stream, first, count, 0, 1); break;
  }
}

static void fill_tensor(maker *m, const nr_tensor *t, nr_case_slot slot) {
  bool table = nr_slots[slot].extent == NR_EXTENT_TABLE;
  int64_t unit = table ? t->shape[1] : 1, total = nr_tensor_elements(t) / unit;
  int64_t step = CHUNK / unit;
  for (int64_t first = 0; first < total; first += step) {
    int64_t count = step < total - first ? step : total - first;
    fill_chunk(m, t, slot, first, count);
    size_t element = nr_dtype_size((nr_dtype)t->dtype) * (size_t)unit;
    nr_container_release((char *)t->data + (size_t)first * element, (size_t)count * element);
    nr_progress_add(&m->progress, (double)(count * unit));
  }
}

/* Every tensor once, by what the first view of it is for. Statistics come from the inputs. */
static void fill_inputs(maker *m) {
  bool filled[NR_MAX_RECIPE_TENSORS] = {false};
  for (int i = 0; i < m->c->num_segments; i++)
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
      const nr_tensor *t = m->c->segments[i].views[slot].input;
      if (!t || nr_slots[slot].extent == NR_EXTENT_STATISTICS || filled[t - m->out->tensors])
        continue;
      filled[t - m->out->tensors] = true;
      fill_tensor(m, t, slot);
    }
}

/* The segment's statistics by the reference forward; its rows go to scratch. Without the affine part, which has no part
   in them. */
static int measure(maker *m, const nr_case_segment *segment, nr_message *message) {
  nr_segment s = segment->shape;
  const nr_case_view *views = segment->views;
  if (!s.norm)
    return NR_EXIT_OK;
  s.norm = s.norm <= NR_NORM_LAYER_AFFINE ? NR_NORM_LAYER : NR_NORM_RMS;
  s.rope_width = 0;
  s.x = nr_case_view_in(&views[NR_SLOT_X], views[NR_SLOT_X].input);
  s.rstd = nr_case_view_in(&views[NR_SLOT_RSTD], views[NR_SLOT_RSTD].input);
  if (views[NR_SLOT_MEAN].input)
    s.mean = nr_case_view_in(&views[NR_SLOT_MEAN], views[NR_SLOT_MEAN].input);
  int64_t row = s.heads * s.dim, positions = row < CHUNK ? CHUNK / row : 1, table_row;
  float *scratch = malloc((size_t)(positions * row) * sizeof *scratch);
  if (!scratch)
    return nr_refuse(message, NR_EXIT_RUN, "out of memory");
  nr_run_options reference = {.backend = NR_BACKEND_REFERENCE};
  int code = NR_EXIT_OK;
  for (int64_t b = 0; b < s.batch; b++)
    for (int64_t first = 0; first < s.length && !code; first += positions) {
      int64_t count = positions < s.length - first ? positions : s.length - first;
      nr_segment piece = nr_case_slice(&s, b, first, count, &table_row);
      piece.y = nr_view_bsnd(scratch, NR_F32, count, s.heads, s.dim);
      code = nr_run_segments(&piece, 1, NR_FORWARD, &reference, m->out->path, message);
      nr_container_release(piece.x.data, (size_t)(count * row) * nr_dtype_size(piece.x.dtype));
      nr_progress_add(&m->progress, (double)(count * row));
    }
  free(scratch);
  return code;
}

/* Elements to make: all of the file's, and the normed rows again. */
static double amount(const maker *m) {
  double elements = 0;
  for (size_t i = 0; i < m->out->num_tensors; i++)
    elements += (double)nr_tensor_elements(&m->out->tensors[i]);
  for (int i = 0; i < m->c->num_segments; i++) {
    const nr_segment *s = &m->c->segments[i].shape;
    elements += s->norm ? (double)s->batch * (double)s->length * (double)(s->heads * s->dim) : 0;
  }
  return elements;
}

int nr_make_case(const nr_recipe *recipe, const char *path, bool progress, nr_message *message) {
  nr_tensor tensors[NR_MAX_RECIPE_TENSORS];
  int count;
  nr_container out;
  maker m = {.recipe = recipe, .out = &out};
  json_t *metadata = nr_recipe_describe(recipe, tensors, &count);
  int code = nr_container_create(&out, path, tensors, (size_t)count, metadata, message);
  json_decref(metadata);
  if (code)
    return code;
  code = nr_case_load(&m.c, &out, message);
  if (!code) {
    m.progress = nr_progress_start("make-case", amount(&m), progress);
    fill_inputs(&m);
    for (int i = 0; i < m.c->num_segments && !code; i++)
      code = measure(&m, &m.c->segments[i], message);
    nr_progress_end(&m.progress);
  }
  if (!code)
    code = nr_container_commit(&out, message);
  nr_case_free(m.c);
  nr_container_close(&out);
  return code;
}
