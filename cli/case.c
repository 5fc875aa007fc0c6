#include "cli/case.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const nr_slot nr_slots[NR_NUM_SLOTS] = {
#define V(slot, field, key, extent, forward, backward)                                                                 \
  {key, offsetof(nr_segment, field), NR_EXTENT_##extent, {forward, backward}},
    NR_CASE_VIEWS(V)
#undef V
};

#define BAD(format, ...) nr_refuse(message, NR_EXIT_FILE, "%s: " format, c->file->path, __VA_ARGS__)

int nr_case_load(nr_case **result, const nr_container *file, nr_message *message) {
  nr_case *c = *result = calloc(1, sizeof *c);
  if (!c)
    return nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", file->path);
  c->file = file;
  int code = json_object_get(file->metadata, "segments") ? nr_case_read_segments(c, message)
                                                         : nr_case_read_operator(c, message);
  if (code) {
    nr_case_free(c);
    *result = NULL;
  }
  return code;
}

void nr_case_free(nr_case *c) {
  if (!c)
    return;
  json_decref(c->description);
  json_decref(c->output_list);
  free(c);
}

nr_case_output *nr_case_add_output(nr_case *c, const char *name, int dtype, nr_direction direction) {
  if (c->num_outputs == NR_MAX_OUTPUTS)
    return NULL;
  nr_case_output *output = &c->outputs[c->num_outputs++];
  *output = (nr_case_output){.tensor = {.name = name, .dtype = dtype}, .direction = direction};
  return output;
}

/* The extents of a view, and whether its stride on each axis is its own or, where an axis is shared, 0. */
static void view_extents(const nr_segment *s, nr_extent extent, int64_t counts[4]) {
  bool whole = s->scope == NR_SCOPE_ALL_HEADS && s->norm != NR_NORM_NONE;
  int64_t table[][4] = {[NR_EXTENT_ROWS] = {s->batch, s->length, s->heads, s->dim},
                        [NR_EXTENT_STATISTICS] = {s->batch, s->length, whole ? 1 : s->heads, 1},
                        [NR_EXTENT_PARAMETER] = {1, 1, s->heads, s->dim},
                        [NR_EXTENT_TABLE] = {s->batch, s->rope_length, s->heads, s->rope_dim ? s->rope_dim : s->dim}};
  memcpy(counts, table[extent], sizeof *table);
}

/* The tensor's shape with leading or trailing ones so that it has `rank` dimensions; false if it cannot. */
static bool padded_shape(const nr_tensor *t, int rank, bool trailing, int64_t *shape) {
  if (t->rank > rank)
    return false;
  for (int i = 0; i < rank; i++)
    shape[i] = 1;
  for (int i = 0; i < t->rank; i++)
    shape[trailing ? i : rank - t->rank + i] = t->shape[i];
  return true;
}

/* Of extents whose product was checked, or that belong to an empty tensor, whose strides do not matter. */
static int64_t times(int64_t a, int64_t b) { return (int64_t)((uint64_t)a * (uint64_t)b); }

/* Rows: the segment's rows are a box inside a tensor [B, S, N, D] or [B, N, S, D]. */
static bool lay_rows(const nr_tensor *t, const int64_t counts[4], const nr_placement *p, nr_case_view *v) {
  if (t->rank != 4 || t->shape[0] != counts[0] || t->shape[3] != counts[3])
    return false;
  int sequence = p->heads_first ? 2 : 1, head = p->heads_first ? 1 : 2;
  if (p->position < 0 || p->position > t->shape[sequence] - counts[1] || p->head < 0 ||
      p->head > t->shape[head] - counts[2])
    return false;
  int64_t outer = times(t->shape[2], t->shape[3]);
  v->stride[0] = times(t->shape[1], outer);
  v->stride[1] = p->heads_first ? t->shape[3] : outer;
  v->stride[2] = p->heads_first ? outer : t->shape[3];
  v->stride[3] = 1;
  v->offset = (int64_t)((uint64_t)times(p->position, v->stride[1]) + (uint64_t)times(p->head, v->stride[2]));
  return true;
}

static bool lay_parameter(const nr_tensor *t, const int64_t counts[4], nr_case_view *v) {
  int64_t heads;
  bool shared = t->rank == 1 && t->shape[0] == counts[3];
  bool whole = (t->rank == 2 && t->shape[0] == counts[2] && t->shape[1] == counts[3]) ||
               (t->rank == 1 && !__builtin_mul_overflow(counts[2], counts[3], &heads) && t->shape[0] == heads);
  v->stride[2] = shared ? 0 : counts[3];
  v->stride[3] = 1;
  return shared || whole;
}

static bool lay_statistics(const nr_tensor *t, const int64_t counts[4], nr_case_view *v) {
  int64_t shape[4];
  if (!padded_shape(t, 4, true, shape) || memcmp(shape, counts, sizeof shape))
    return false;
  v->stride[0] = times(counts[1], counts[2]);
  v->stride[1] = counts[2];
  v->stride[2] = 1;
  return true;
}

static bool lay_table(const nr_tensor *t, const int64_t counts[4], nr_case_view *v) {
  int64_t shape[4];
  if (t->rank == 3) { /* [B, R, rope_dim] */
    nr_tensor four = {.rank = 4, .shape = {t->shape[0], t->shape[1], 1, t->shape[2]}};
    return lay_table(&four, counts, v);
  }
  if (t->rank == 2) {
    nr_tensor four = {.rank = 4, .shape = {1, t->shape[0], 1, t->shape[1]}};
    return lay_table(&four, counts, v);
  }
  if (!padded_shape(t, 4, false, shape) || shape[1] != counts[1] || shape[3] != counts[3])
    return false;
  for (int i = 0; i < 4; i += 2)
    if (shape[i] != counts[i] && shape[i] != 1)
      return false;
  v->stride[1] = times(shape[2], shape[3]);
  v->stride[0] = shape[0] == 1 && counts[0] != 0 ? 0 : times(shape[1], v->stride[1]);
  v->stride[2] = shape[2] == 1 ? 0 : shape[3];
  v->stride[3] = 1;
  return true;
}

static bool lay(const nr_tensor *t, nr_extent extent, const int64_t counts[4], const nr_placement *p, nr_case_view *v) {
  switch (extent) {
  case NR_EXTENT_ROWS: return lay_rows(t, counts, p, v);
  case NR_EXTENT_STATISTICS: return lay_statistics(t, counts, v);
  case NR_EXTENT_PARAMETER: return lay_parameter(t, counts, v);
  case NR_EXTENT_TABLE: return lay_table(t, counts, v);
  }
  return false;
}

/* Whether every element of the view is one of the tensor's. An empty view has none, and then no offset. */
static bool inside(const nr_tensor *t, const int64_t counts[4], nr_case_view *v) {
  for (int i = 0; i < 4; i++)
    if (counts[i] == 0) {
      v->offset = 0;
      return true;
    }
  int64_t low = v->offset, high = v->offset, total = nr_tensor_elements(t);
  for (int i = 0; i < 4; i++) {
    int64_t span;
    if (__builtin_mul_overflow(counts[i] - 1, v->stride[i], &span) ||
        __builtin_add_overflow(span < 0 ? low : high, span, span < 0 ? &low : &high))
      return false;
  }
  return low >= 0 && high < total;
}

static const char *extent_words(nr_extent extent, const int64_t n[4], bool heads_first, char *text, size_t size) {
#define N PRId64
  switch (extent) {
  case NR_EXTENT_ROWS:
    snprintf(text, size, "[%" N ",>=%" N ",>=%" N ",%" N "] = [batch, %s, dim]", n[0], n[heads_first ? 2 : 1],
             n[heads_first ? 1 : 2], n[3], heads_first ? "heads, length" : "length, heads");
    break;
  case NR_EXTENT_STATISTICS:
    snprintf(text, size, "[%" N ",%" N ",%" N ",1] = [batch, length, heads or 1, 1]", n[0], n[1], n[2]);
    break;
  case NR_EXTENT_PARAMETER: snprintf(text, size, "[%" N "] or [%" N ",%" N "]", n[3], n[2], n[3]); break;
  case NR_EXTENT_TABLE:
    snprintf(text, size, "[%" N ",%" N "], [%" N ",%" N ",%" N "] or [%" N ",%" N ",%" N ",%" N "]", n[1], n[3], n[0],
             n[1], n[3], n[0], n[1], n[2], n[3]);
    break;
  }
#undef N
  return text;
}

static int place_in(nr_case *c, const nr_segment *s, nr_case_slot slot, const nr_tensor *t, const nr_placement *p,
                    nr_case_view *v, nr_message *message) {
  int64_t counts[4];
  char shape[160], words[200];
  view_extents(s, nr_slots[slot].extent, counts);
  if (t->dtype == NR_FOREIGN_DTYPE)
    return BAD("%.80s: not of a floating-point dtype that normrope reads", t->name);
  if (p->strided) {
    v->offset = p->offset;
    memcpy(v->stride, p->stride, sizeof v->stride);
  } else if (!lay(t, nr_slots[slot].extent, counts, p, v)) {
    return BAD("%.80s: shape %s, expected %s for %s of %.80s", t->name, nr_tensor_shape(t, shape, sizeof shape),
               extent_words(nr_slots[slot].extent, counts, p->heads_first, words, sizeof words), nr_slots[slot].key,
               s->name);
  }
  if (!inside(t, counts, v))
    return BAD("%.80s: %s of %.80s leaves the tensor, which has shape %s", t->name, nr_slots[slot].key, s->name,
               nr_tensor_shape(t, shape, sizeof shape));
  return NR_EXIT_OK;
}

int nr_case_place(nr_case *c, nr_case_segment *segment, nr_case_slot slot, const nr_placement *p, nr_message *message) {
  const nr_segment *s = &segment->shape;
  const nr_slot *info = &nr_slots[slot];
  nr_case_view *v = &segment->views[slot];
  int code = NR_EXIT_OK;
  *v = (nr_case_view){.name = p->tensor, .output = -1};
  if (info->role[NR_FORWARD] == 'i' || info->role[NR_BACKWARD] == 'i')
    v->input = nr_container_find(c->file, p->tensor);
  for (int i = 0; i < c->num_outputs && v->output < 0; i++) {
    nr_case_output *output = &c->outputs[i];
    if (info->role[output->direction] != 'o' || strcmp(output->tensor.name, p->tensor))
      continue;
    v->output = i;
    if (!output->used)
      output->slot = slot;
    output->used = true;
  }
  if (v->input)
    code = place_in(c, s, slot, v->input, p, v, message);
  if (!code && v->output >= 0)
    code = place_in(c, s, slot, &c->outputs[v->output].tensor, p, v, message);
  return code;
}

static bool is_norm_slot(nr_case_slot slot) {
  return slot == NR_SLOT_MEAN || slot == NR_SLOT_RSTD || slot == NR_SLOT_WEIGHT || slot == NR_SLOT_BIAS;
}

/* Inputs that norm and rope make required. The library asks for these too; here the file's own names can be told. */
static bool needs(const nr_segment *s, nr_direction direction, nr_case_slot slot) {
  bool centres = s->norm == NR_NORM_LAYER || s->norm == NR_NORM_LAYER_AFFINE;
  bool weighs = s->norm == NR_NORM_LAYER_AFFINE || s->norm == NR_NORM_RMS_AFFINE;
  if (nr_slots[slot].role[direction] != 'i')
    return false;
  switch (slot) {
  case NR_SLOT_X: return direction == NR_FORWARD || s->norm != NR_NORM_NONE;
  case NR_SLOT_GRAD_Y: return true;
  case NR_SLOT_MEAN: return centres;
  case NR_SLOT_RSTD: return s->norm != NR_NORM_NONE;
  case NR_SLOT_WEIGHT: return weighs;
  case NR_SLOT_BIAS: return direction == NR_FORWARD && s->norm == NR_NORM_LAYER_AFFINE;
  case NR_SLOT_COS:
  case NR_SLOT_SIN: return s->rope_width && s->rope_length;
  default: return false;
  }
}

bool nr_case_supports(const nr_case *c, nr_direction direction, nr_message *message) {
  static const char *const names[] = {"forward", "backward"};
  bool any = false;
  for (int i = 0; i < c->num_outputs; i++)
    any |= c->outputs[i].direction == direction && c->outputs[i].used;
  if (!any && c->num_segments)
    return BAD("describes no output of the %s", names[direction]), false;
  for (int i = 0; i < c->num_segments; i++) {
    const nr_case_segment *s = &c->segments[i];
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
      if (needs(&s->shape, direction, slot) && !s->views[slot].input) {
        const char *name = s->views[slot].name ? s->views[slot].name : nr_slots[slot].key;
        if (is_norm_slot(slot))
          return BAD("%.80s is missing, which the %s of norm type %d requires", name, names[direction],
                     (int)s->shape.norm),
                 false;
        return BAD("%.80s is missing, which the %s of %.80s requires", name, names[direction], s->shape.name), false;
      }
    if (direction == NR_FORWARD && s->views[NR_SLOT_Y].output < 0)
      return BAD("%.80s has no y, which the forward writes", s->shape.name), false;
  }
  return true;
}

nr_view nr_case_view_in(const nr_case_view *view, const nr_tensor *tensor) {
  nr_view v = {.name = view->name, .dtype = (nr_dtype)tensor->dtype};
  v.data = (char *)tensor->data + view->offset * (int64_t)nr_dtype_size(v.dtype);
  memcpy(v.stride, view->stride, sizeof v.stride);
  return v;
}

int nr_case_bind(const nr_case *c, nr_direction direction, nr_segment segments[NR_MAX_SEGMENTS], int *origin) {
  int count = 0;
  for (int i = 0; i < c->num_segments; i++) {
    nr_segment *s = &segments[count];
    bool any = false;
    *s = c->segments[i].shape;
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
      const nr_case_view *v = &c->segments[i].views[slot];
      char role = nr_slots[slot].role[direction];
      const nr_tensor *t = role == 'i'                     ? v->input
                           : role == 'o' && v->output >= 0 ? &c->outputs[v->output].tensor
                                                           : NULL;
      nr_view *view = nr_slot_view(s, slot);
      view->name = v->name;
      if (!t || !t->data)
        continue;
      any |= role == 'o';
      *view = nr_case_view_in(v, t);
    }
    if (origin)
      origin[count] = i;
    count += any;
  }
  return count;
}

static void move(nr_view *v, int64_t b, int64_t s) {
  if (v->data)
    v->data = (char *)v->data + (b * v->stride[0] + s * v->stride[1]) * (int64_t)nr_dtype_size(v->dtype);
}

nr_segment nr_case_slice(const nr_segment *s, int64_t b, int64_t first, int64_t count, int64_t *table_row) {
  nr_segment r = *s;
  int64_t position = first + s->rope_position, low = position < 0 ? 0 : position, high = position + count;
  if (high > s->rope_length)
    high = s->rope_length;
  if (low > s->rope_length)
    low = s->rope_length;
  r.batch = 1;
  r.length = count;
  r.rope_length = high > low ? high - low : 0;
  r.rope_position = position - low;
  *table_row = low;
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
    nr_extent extent = nr_slots[slot].extent;
    if (extent == NR_EXTENT_ROWS || extent == NR_EXTENT_STATISTICS)
      move(nr_slot_view(&r, slot), b, first);
    if (extent == NR_EXTENT_TABLE)
      move(nr_slot_view(&r, slot), b, low);
  }
  return r;
}
