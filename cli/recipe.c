/* What a recipe's case is made of: its tensors, and metadata in the short form where that can say it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/case.h"
#include "cli/make_case.h"

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t rotary(const nr_recipe *r) { return r->rope_dim ? r->rope_dim : r->dim; }

int nr_recipe_resolve(nr_recipe *r, nr_message *message) {
  if (r->image_key < 0)
    r->image_key = r->image;
  if (r->text_key < 0)
    r->text_key = r->text;
  if (!r->kv_heads)
    r->kv_heads = r->heads;
  if (r->rope_width < 0)
    r->rope_width = rotary(r);
  if (r->rope_start < 0)
    r->rope_start = r->window == NR_WINDOW_IMAGE && r->order == 1 ? r->text : 0;
  int64_t joined = smaller(r->image + r->text, r->image_key + r->text_key);
  int64_t window = r->window == NR_WINDOW_IMAGE ? smaller(r->image, r->image_key) : joined - r->rope_start;
  if (r->rope_length < 0)
    r->rope_length = window;
  if (r->table_dtype < 0)
    r->table_dtype = r->dtype;
  if (r->weight_dtype < 0)
    r->weight_dtype = r->dtype;
  if (r->dim % 2)
    return nr_refuse(message, NR_EXIT_USAGE, "--dim %" PRId64 ", expected an even number", r->dim);
  if (r->rope_dim % 2 || r->rope_dim > r->dim)
    return nr_refuse(message, NR_EXIT_USAGE, "--rope-dim %" PRId64 ", expected an even number up to %" PRId64,
                     r->rope_dim, r->dim);
  if (r->rope_width && (r->rope_width % 2 || rotary(r) % r->rope_width))
    return nr_refuse(message, NR_EXIT_USAGE,
                     "--rope %" PRId64 ", expected an even divisor of the %" PRId64 " channels that rotate",
                     r->rope_width, rotary(r));
  if (r->rope_width && r->rope_length < 1)
    return nr_refuse(message, NR_EXIT_USAGE, "%s", "the rope tables have no rows; give --rope-length or --rope none");
  if (r->shared && r->norm != r->norm_added && r->text + r->text_key > 0)
    return nr_refuse(message, NR_EXIT_USAGE,
                     "--shared needs --norm and --norm-added alike, not %" PRId64 " and %" PRId64, r->norm,
                     r->norm_added);
  return NR_EXIT_OK;
}

bool nr_recipe_is_operator(const nr_recipe *r) {
  bool rope = !r->rope_width ||
              (rotary(r) == r->dim && (r->rope_width == 2 || r->rope_width == r->dim) && r->rope_start == 0 &&
               r->table_dtype == r->dtype && r->rope_length <= smaller(r->image + r->text, r->image_key + r->text_key));
  return rope && r->scope == NR_SCOPE_HEAD && !(r->shared && r->text + r->text_key > 0) &&
         r->weight_dtype == r->dtype && r->kv_heads == r->heads && !r->table_gradients;
}

static int64_t length_of(const nr_recipe *r, const nr_stream *stream, bool text) {
  if (text)
    return stream->projection ? r->text_key : r->text;
  return stream->projection ? r->image_key : r->image;
}

static int64_t heads_of(const nr_recipe *r, const nr_stream *stream) {
  return stream->projection ? r->kv_heads : r->heads;
}

static int64_t norm_of(const nr_recipe *r, const nr_stream *stream) {
  return stream->projection == 2 ? NR_NORM_NONE : stream->text ? r->norm_added : r->norm;
}

/* Whether the stream has a tensor in this slot. */
static bool has_slot(const nr_recipe *r, const nr_stream *stream, nr_case_slot slot) {
  int64_t norm = norm_of(r, stream);
  bool bias = norm == NR_NORM_LAYER_AFFINE;
  switch (slot) {
  case NR_SLOT_MEAN: return bias || norm == NR_NORM_LAYER;
  case NR_SLOT_RSTD: return norm != NR_NORM_NONE;
  case NR_SLOT_WEIGHT:
  case NR_SLOT_GRAD_WEIGHT: return bias || norm == NR_NORM_RMS_AFFINE;
  case NR_SLOT_BIAS:
  case NR_SLOT_GRAD_BIAS: return bias;
  case NR_SLOT_COS:
  case NR_SLOT_SIN: return r->rope_width && stream->projection < 2;
  case NR_SLOT_GRAD_COS:
  case NR_SLOT_GRAD_SIN: return r->rope_width && stream->projection < 2 && r->table_gradients;
  default: return true;
  }
}

/* The name of the slot's tensor: with shared weights the image's. */
static const char *slot_name(const nr_recipe *r, const nr_stream *stream, nr_case_slot slot) {
  if (slot == NR_SLOT_GRAD_COS || slot == NR_SLOT_GRAD_SIN)
    return slot == NR_SLOT_GRAD_COS ? "gradRopeCos" : "gradRopeSin";
  bool parameter = nr_slots[slot].extent == NR_EXTENT_PARAMETER;
  const nr_stream *owner = parameter && r->shared ? &nr_streams[stream->projection] : stream;
  return owner->names[slot];
}

static nr_tensor slot_tensor(const nr_recipe *r, const nr_stream *stream, nr_case_slot slot) {
  int64_t heads = heads_of(r, stream), length = length_of(r, stream, stream->text);
  int64_t joined = length_of(r, stream, false) + length_of(r, stream, true);
  bool whole = r->scope == NR_SCOPE_ALL_HEADS;
  nr_tensor t = {.name = slot_name(r, stream, slot), .dtype = r->dtype, .rank = 4};
  switch (nr_slots[slot].extent) {
  case NR_EXTENT_ROWS: {
    bool split = slot == NR_SLOT_X || slot == NR_SLOT_GRAD_X;
    int64_t shape[4] = {r->batch, split ? length : heads, split ? heads : joined, r->dim};
    memcpy(t.shape, shape, sizeof shape);
    break;
  }
  case NR_EXTENT_STATISTICS: {
    int64_t shape[4] = {r->batch, length, whole ? 1 : heads, 1};
    memcpy(t.shape, shape, sizeof shape);
    t.dtype = NR_F32;
    break;
  }
  case NR_EXTENT_PARAMETER:
    t.rank = whole ? 2 : 1;
    t.shape[0] = whole ? heads : r->dim;
    t.shape[1] = whole ? r->dim : 0;
    t.dtype = r->weight_dtype;
    break;
  case NR_EXTENT_TABLE:
    t.rank = 2;
    t.shape[0] = r->rope_length;
    t.shape[1] = rotary(r);
    t.dtype = r->table_dtype;
    break;
  }
  return t;
}

static json_t *view_json(const nr_recipe *r, const nr_stream *stream, nr_case_slot slot) {
  const char *name = slot_name(r, stream, slot);
  int64_t others = length_of(r, stream, !stream->text);
  bool joined = slot == NR_SLOT_Y || slot == NR_SLOT_GRAD_Y, second = stream->text != (r->order == 1);
  if (joined && second && others)
    return json_pack("{s:s, s:I}", "tensor", name, "position", (json_int_t)others);
  return json_string(name);
}

static json_t *segment_json(const nr_recipe *r, const nr_stream *stream) {
  bool second = stream->text != (r->order == 1);
  int64_t joined = second ? length_of(r, stream, !stream->text) : 0;
  json_t *s =
      json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "name", stream->names[NR_SLOT_X], "batch", (json_int_t)r->batch,
                "length", (json_int_t)length_of(r, stream, stream->text), "heads", (json_int_t)heads_of(r, stream),
                "dim", (json_int_t)r->dim, "norm", (json_int_t)norm_of(r, stream));
  if (norm_of(r, stream)) {
    json_object_set_new(s, "scope", json_string(r->scope == NR_SCOPE_ALL_HEADS ? "allHeads" : "head"));
    json_object_set_new(s, "eps", json_real(r->eps));
  }
  if (r->rope_width && stream->projection < 2) {
    json_object_set_new(s, "ropeWidth", json_integer(r->rope_width));
    json_object_set_new(s, "ropeDim", json_integer(rotary(r)));
    json_object_set_new(s, "ropeLength", json_integer(r->rope_length));
    json_object_set_new(s, "ropePosition", json_integer(joined - r->rope_start));
  }
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
    if (has_slot(r, stream, slot))
      json_object_set_new(s, nr_slots[slot].key, view_json(r, stream, slot));
  return s;
}

static bool is_present(const nr_recipe *r, const nr_stream *stream) {
  return !stream->text || length_of(r, stream, true) > 0;
}

static json_t *output_json(const nr_tensor *t) {
  static const char *const codes[] = {[NR_F32] = "F32", [NR_F16] = "F16", [NR_BF16] = "BF16", [NR_F64] = "F64"};
  json_t *shape = json_array();
  for (int i = 0; i < t->rank; i++)
    json_array_append_new(shape, json_integer(t->shape[i]));
  return json_pack("{s:s, s:o}", "dtype", codes[t->dtype], "shape", shape);
}

/* The text of a JSON value, as a JSON string; takes the reference. */
static json_t *quoted(json_t *value) {
  char *text = json_dumps(value, JSON_COMPACT);
  json_t *string = text ? json_string(text) : NULL;
  free(text);
  json_decref(value);
  return string;
}

static json_t *integer_text(int64_t value) { return json_sprintf("%" PRId64, value); }

/* The shortest text that reads back as the same number. */
static json_t *number_text(double value) {
  char text[40];
  for (int digits = 1; digits <= 17; digits++) {
    snprintf(text, sizeof text, "%.*g", digits, value);
    if (strtod(text, NULL) == value)
      break;
  }
  return json_string(text);
}

static void describe_operator(const nr_recipe *r, json_t *metadata) {
  json_object_set_new(metadata, "normType", integer_text(r->norm));
  json_object_set_new(metadata, "normAddedType", integer_text(r->norm_added));
  json_object_set_new(metadata, "ropeType", integer_text(r->rope_width == 0 ? 0 : r->rope_width == 2 ? 1 : 2));
  json_object_set_new(metadata, "concatOrder", integer_text(r->order));
  json_object_set_new(metadata, "eps", number_text(r->eps));
}

static void describe_segments(const nr_recipe *r, json_t *metadata) {
  json_t *segments = json_array(), *outputs = json_object();
  for (int i = 0; i < NR_NUM_STREAMS; i++) {
    if (!is_present(r, &nr_streams[i]))
      continue;
    json_array_append_new(segments, segment_json(r, &nr_streams[i]));
    for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
      if (has_slot(r, &nr_streams[i], slot) &&
          (nr_slots[slot].role[NR_FORWARD] == 'o' || nr_slots[slot].role[NR_BACKWARD] == 'o')) {
        nr_tensor t = slot_tensor(r, &nr_streams[i], slot);
        json_object_set_new(outputs, t.name, output_json(&t));
      }
  }
  json_object_set_new(metadata, "segments", quoted(segments));
  json_object_set_new(metadata, "outputs", quoted(outputs));
}

static void add_tensor(nr_tensor *tensors, int *count, const nr_tensor *t) {
  for (int i = 0; i < *count; i++)
    if (!strcmp(tensors[i].name, t->name))
      return;
  tensors[(*count)++] = *t;
}

json_t *nr_recipe_describe(const nr_recipe *r, nr_tensor tensors[NR_MAX_RECIPE_TENSORS], int *count) {
  *count = 0;
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++)
    for (int i = 0; i < NR_NUM_STREAMS; i++) {
      bool input = nr_slots[slot].role[NR_FORWARD] == 'i' || nr_slots[slot].role[NR_BACKWARD] == 'i';
      if (!input || !is_present(r, &nr_streams[i]) || !has_slot(r, &nr_streams[i], slot))
        continue;
      nr_tensor t = slot_tensor(r, &nr_streams[i], slot);
      add_tensor(tensors, count, &t);
    }
  json_t *metadata = json_object();
  json_object_set_new(metadata, "generator", json_sprintf("normrope %s", nr_version()));
  if (r->name)
    json_object_set_new(metadata, "preset", json_string(r->name));
  json_object_set_new(metadata, "seed", integer_text(r->seed));
  if (nr_recipe_is_operator(r))
    describe_operator(r, metadata);
  else
    describe_segments(r, metadata);
  return metadata;
}
