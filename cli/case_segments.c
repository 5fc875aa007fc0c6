/* The general form of a case: metadata "segments", a list of segments as JSON, and "outputs". docs/cases.md. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/case.h"

#define BAD(format, ...) nr_refuse(message, NR_EXIT_FILE, "%s: " format, c->file->path, __VA_ARGS__)

static int parse(const nr_case *c, const char *key, json_t **value, nr_message *message) {
  const json_t *text = json_object_get(c->file->metadata, key);
  json_error_t error;
  *value = json_loadb(json_string_value(text), json_string_length(text), JSON_REJECT_DUPLICATES, &error);
  return *value ? NR_EXIT_OK : BAD("metadata %s: %.120s at byte %d", key, error.text, error.position);
}

static int read_dtype(const char *text) {
  static const char *const names[] = {[NR_F32] = "F32", [NR_F16] = "F16", [NR_BF16] = "BF16", [NR_F64] = "F64"};
  for (int i = 0; text && i < 4; i++)
    if (!strcmp(names[i], text))
      return i;
  return NR_FOREIGN_DTYPE;
}

/* {"queryOutput": {"dtype": "BF16", "shape": [1, 24, 4608, 128]}, ...}. Which direction writes one is known when a view
   names it: the two directions have no output views in common. */
static int read_outputs(nr_case *c, nr_message *message) {
  const char *name;
  json_t *entry;
  if (!json_is_object(c->output_list))
    return BAD("metadata %s: expected an object", "outputs");
  json_object_foreach(c->output_list, name, entry) {
    const json_t *shape = json_object_get(entry, "shape");
    int dtype = read_dtype(json_string_value(json_object_get(entry, "dtype")));
    if (!json_is_object(entry) || json_object_size(entry) != 2 || dtype == NR_FOREIGN_DTYPE || !json_is_array(shape) ||
        json_array_size(shape) > NR_MAX_RANK)
      return BAD("output '%.80s': expected an object of dtype (F32, F16, BF16 or F64) and shape", name);
    nr_case_output *output = nr_case_add_output(c, name, dtype, NR_BACKWARD);
    if (!output)
      return BAD("more than %d outputs", NR_MAX_OUTPUTS);
    output->tensor.rank = (int)json_array_size(shape);
    for (int i = 0; i < output->tensor.rank; i++) {
      const json_t *extent = json_array_get(shape, (size_t)i);
      if (!json_is_integer(extent) || json_integer_value(extent) < 0)
        return BAD("output '%.80s': dimension %d of its shape is no integer >= 0", name, i);
      output->tensor.shape[i] = json_integer_value(extent);
    }
    if (!nr_tensor_measure(&output->tensor))
      return BAD("output '%.80s': its shape is too large", name);
  }
  return NR_EXIT_OK;
}

/* A whole number of an object: absent leaves *value. */
static int read_integer(const nr_case *c, const json_t *object, const char *where, const char *key, int64_t low,
                        int64_t high, int64_t *value, nr_message *message) {
  const json_t *number = json_object_get(object, key);
  if (!number)
    return NR_EXIT_OK;
  if (!json_is_integer(number) || json_integer_value(number) < low || json_integer_value(number) > high)
    return BAD("%.80s: %s is no integer from %" PRId64 " to %" PRId64, where, key, low, high);
  *value = json_integer_value(number);
  return NR_EXIT_OK;
}

/* Keys must be known, or with `views` the name of a view: a misspelt one would silently mean its default. */
static int refuse_unknown(const nr_case *c, const json_t *object, const char *where, const char *const *known,
                          bool views, nr_message *message) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)object, key, value) {
    int i = 0;
    while (known[i] && strcmp(known[i], key))
      i++;
    bool view = false;
    for (int slot = 0; views && slot < NR_NUM_SLOTS; slot++)
      view |= !strcmp(nr_slots[slot].key, key);
    if (!known[i] && !view)
      return BAD("%.80s: '%.80s' means nothing here", where, key);
  }
  return NR_EXIT_OK;
}

/* "tensor", or an object with more to say about where in it the view lies. */
static int read_view(nr_case *c, nr_case_segment *segment, nr_case_slot slot, const json_t *value,
                     nr_message *message) {
  static const char *const known[] = {"tensor", "layout", "position", "head", "offset", "strides", NULL};
  const char *name = segment->shape.name, *key = nr_slots[slot].key;
  nr_placement p = {.tensor = json_string_value(json_is_string(value) ? value : json_object_get(value, "tensor")),
                    .heads_first = slot == NR_SLOT_Y || slot == NR_SLOT_GRAD_Y};
  if (!p.tensor)
    return BAD("%.80s: %s names no tensor", name, key);
  if (json_is_object(value)) {
    const json_t *layout = json_object_get(value, "layout"), *strides = json_object_get(value, "strides");
    const char *order = layout ? json_string_value(layout) : p.heads_first ? "BNSD" : "BSND";
    int code = refuse_unknown(c, value, name, known, false, message);
    if (!code && (!order || (strcmp(order, "BNSD") && strcmp(order, "BSND"))))
      code = BAD("%.80s: the layout of %s, expected BSND or BNSD", name, key);
    if (!code)
      code = read_integer(c, value, name, "position", 0, INT64_MAX, &p.position, message);
    if (!code)
      code = read_integer(c, value, name, "head", 0, INT64_MAX, &p.head, message);
    if (!code)
      code = read_integer(c, value, name, "offset", 0, INT64_MAX, &p.offset, message);
    if (!code && strides && (!json_is_array(strides) || json_array_size(strides) != 4))
      code = BAD("%.80s: the strides of %s, expected four integers", name, key);
    if (!code && !strides == !!json_object_get(value, "offset"))
      code = BAD("%.80s: %s has an offset without strides, or strides without an offset", name, key);
    for (int i = 0; i < 4 && strides && !code; i++) {
      if (!json_is_integer(json_array_get(strides, (size_t)i)))
        code = BAD("%.80s: the strides of %s, expected four integers", name, key);
      p.stride[i] = json_integer_value(json_array_get(strides, (size_t)i));
    }
    if (code)
      return code;
    p.heads_first = !strcmp(order, "BNSD");
    p.strided = strides != NULL;
  }
  for (int i = 0; i < c->num_outputs; i++)
    if (!strcmp(c->outputs[i].tensor.name, p.tensor) && !c->outputs[i].used)
      c->outputs[i].direction = nr_slots[slot].role[NR_FORWARD] == 'o' ? NR_FORWARD : NR_BACKWARD;
  int code = nr_case_place(c, segment, slot, &p, message);
  const nr_case_view *v = &segment->views[slot];
  if (!code && !v->input && v->output < 0)
    return BAD("%.80s: %s is '%.80s', which is neither a tensor of the file nor in outputs", name, key, p.tensor);
  return code;
}

static int read_segment(nr_case *c, nr_case_segment *segment, int index, const json_t *object, nr_message *message) {
  static const char *const known[] = {"name", "batch",     "length",  "heads",      "dim",          "norm", "scope",
                                      "eps",  "ropeWidth", "ropeDim", "ropeLength", "ropePosition", NULL};
  nr_segment *s = &segment->shape;
  *s = nr_segment_default();
  s->name = json_string_value(json_object_get(object, "name"));
  int64_t norm = 0;
  if (!json_is_object(object) || !s->name)
    return BAD("segment %d: expected an object with a name", index);
  struct {
    const char *key;
    int64_t low, high, *value;
    bool required;
  } integers[] = {{"batch", 0, INT64_MAX / 64, &s->batch, true},
                  {"length", 0, INT64_MAX / 64, &s->length, true},
                  {"heads", 0, INT64_MAX / 64, &s->heads, true},
                  {"dim", 2, 1024, &s->dim, true},
                  {"norm", 0, NR_NORM_RMS_AFFINE, &norm, false},
                  {"ropeWidth", 0, 1024, &s->rope_width, false},
                  {"ropeDim", 0, 1024, &s->rope_dim, false},
                  {"ropeLength", 0, INT64_MAX / 64, &s->rope_length, false},
                  {"ropePosition", INT64_MIN / 64, INT64_MAX / 64, &s->rope_position, false}};
  int code = refuse_unknown(c, object, s->name, known, true, message);
  for (size_t i = 0; i < sizeof integers / sizeof *integers && !code; i++) {
    if (integers[i].required && !json_object_get(object, integers[i].key))
      return BAD("%.80s: %s is missing", s->name, integers[i].key);
    code = read_integer(c, object, s->name, integers[i].key, integers[i].low, integers[i].high, integers[i].value,
                        message);
  }
  const json_t *scope = json_object_get(object, "scope"), *eps = json_object_get(object, "eps");
  const char *word = scope ? json_string_value(scope) : "head";
  if (!code && (!word || (strcmp(word, "head") && strcmp(word, "allHeads"))))
    code = BAD("%.80s: scope, expected \"head\" or \"allHeads\"", s->name);
  if (!code && eps && (!json_is_number(eps) || !(json_number_value(eps) >= 0) || !isfinite(json_number_value(eps))))
    code = BAD("%.80s: eps, expected a number >= 0", s->name);
  if (code)
    return code;
  s->norm = (nr_norm)norm;
  s->scope = strcmp(word, "head") ? NR_SCOPE_ALL_HEADS : NR_SCOPE_HEAD;
  if (eps)
    s->eps = json_number_value(eps);
  for (int slot = 0; slot < NR_NUM_SLOTS && !code; slot++) {
    const json_t *value = json_object_get(object, nr_slots[slot].key);
    segment->views[slot] = (nr_case_view){.output = -1};
    if (value)
      code = read_view(c, segment, slot, value, message);
  }
  return code;
}

int nr_case_read_segments(nr_case *c, nr_message *message) {
  int code = parse(c, "segments", &c->description, message);
  if (!code && json_object_get(c->file->metadata, "outputs")) {
    code = parse(c, "outputs", &c->output_list, message);
    if (!code)
      code = read_outputs(c, message);
  }
  size_t count = json_array_size(c->description);
  if (!code && (!json_is_array(c->description) || count > NR_MAX_SEGMENTS))
    code = BAD("metadata segments: expected a list of at most %d", NR_MAX_SEGMENTS);
  for (size_t i = 0; i < count && !code; i++)
    code = read_segment(c, &c->segments[c->num_segments++], (int)i, json_array_get(c->description, i), message);
  return code;
}
