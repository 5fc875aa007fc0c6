/* The short form of a case: the operator's tensors by name, its attributes as metadata. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/case.h"

#define STREAM(input, Input, output, Output, projected, is_text)                                                       \
  {                                                                                                                    \
    .names = {[NR_SLOT_X] = input,                                                                                     \
              [NR_SLOT_Y] = output "Output",                                                                           \
              [NR_SLOT_GRAD_Y] = "grad" Output "Output",                                                               \
              [NR_SLOT_GRAD_X] = "grad" Input},                                                                        \
    .projection = projected, .text = is_text                                                                           \
  }
#define NORMED(input, Input, output, Output, Norm, projected, is_text)                                                 \
  {                                                                                                                    \
    .names = {[NR_SLOT_X] = input,                                                                                     \
              [NR_SLOT_Y] = output "Output",                                                                           \
              [NR_SLOT_GRAD_Y] = "grad" Output "Output",                                                               \
              [NR_SLOT_GRAD_X] = "grad" Input,                                                                         \
              [NR_SLOT_MEAN] = "norm" Norm "Mean",                                                                     \
              [NR_SLOT_RSTD] = "norm" Norm "Rstd",                                                                     \
              [NR_SLOT_WEIGHT] = "norm" Norm "Weight",                                                                 \
              [NR_SLOT_BIAS] = "norm" Norm "Bias",                                                                     \
              [NR_SLOT_GRAD_WEIGHT] = "gradNorm" Norm "Weight",                                                        \
              [NR_SLOT_GRAD_BIAS] = "gradNorm" Norm "Bias",                                                            \
              [NR_SLOT_COS] = "ropeCos",                                                                               \
              [NR_SLOT_SIN] = "ropeSin"},                                                                              \
    .projection = projected, .text = is_text                                                                           \
  }

const nr_stream nr_streams[NR_NUM_STREAMS] = {
    NORMED("query", "Query", "query", "Query", "Query", 0, false),
    NORMED("key", "Key", "key", "Key", "Key", 1, false),
    STREAM("value", "Value", "value", "Value", 2, false),
    NORMED("encoderQuery", "EncoderQuery", "query", "Query", "AddedQuery", 0, true),
    NORMED("encoderKey", "EncoderKey", "key", "Key", "AddedKey", 1, true),
    STREAM("encoderValue", "EncoderValue", "value", "Value", 2, true),
};

#define BAD(format, ...) nr_refuse(message, NR_EXIT_FILE, "%s: " format, c->file->path, __VA_ARGS__)

/* The operator's sizes. Value goes with key. */
typedef struct sizes {
  int64_t batch, heads, dim;
  int64_t image[3], text[3]; /* lengths by projection */
  int64_t rope_length;
  int dtype;
} sizes;

typedef struct attributes {
  int64_t norm, norm_added, rope, order;
  double eps;
  bool training;
} attributes;

static int read_attributes(const nr_case *c, attributes *a, nr_message *message) {
  struct {
    const char *name;
    int64_t high, *value;
  } integers[] = {{"normType", NR_NORM_RMS_AFFINE, &a->norm},
                  {"normAddedType", NR_NORM_RMS_AFFINE, &a->norm_added},
                  {"ropeType", 2, &a->rope},
                  {"concatOrder", 1, &a->order}};
  for (int i = 0; i < 4; i++) {
    const char *text = json_string_value(json_object_get(c->file->metadata, integers[i].name));
    if (text && !nr_parse_integer(text, 0, integers[i].high, integers[i].value))
      return BAD("attribute %s: '%.40s', expected an integer from 0 to %" PRId64, integers[i].name, text,
                 integers[i].high);
  }
  const char *eps = json_string_value(json_object_get(c->file->metadata, "eps"));
  if (eps && !nr_parse_number(eps, &a->eps))
    return BAD("attribute eps: '%.40s', expected a finite number >= 0", eps);
  const char *training = json_string_value(json_object_get(c->file->metadata, "isTraining"));
  if (training) {
    a->training = !strcmp(training, "1") || !strcmp(training, "true") || !strcmp(training, "True");
    if (!a->training && strcmp(training, "0") && strcmp(training, "false") && strcmp(training, "False"))
      return BAD("attribute isTraining: '%.40s', expected true or false", training);
  }
  return NR_EXIT_OK;
}

/* The tensor must have exactly this shape; words say what the numbers are. A last 1 may be missing. */
static int expect_shape(const nr_case *c, const nr_tensor *t, const nr_tensor *expected, const char *words,
                        nr_message *message) {
  char found[160], wanted[160];
  int rank = expected->rank;
  if (t->rank == rank - 1 && expected->shape[rank - 1] == 1)
    rank--;
  if (t->rank == rank && !memcmp(t->shape, expected->shape, (size_t)rank * sizeof *t->shape))
    return NR_EXIT_OK;
  return BAD("%s: shape %s, expected %s = %s", t->name, nr_tensor_shape(t, found, sizeof found),
             nr_tensor_shape(expected, wanted, sizeof wanted), words);
}

static nr_tensor shaped(int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
  return (nr_tensor){.rank = rank, .shape = {a, b, c, d}};
}

/* Lengths from query, key and what comes with them. */
static int read_sizes(const nr_case *c, sizes *z, nr_message *message) {
  const nr_tensor *query = nr_container_find(c->file, "query");
  char shape[160];
  if (!query)
    return BAD("%s is missing; a case has the operator's tensors, or \"segments\" in its metadata", "query");
  if (query->dtype == NR_FOREIGN_DTYPE)
    return BAD("%s: expected F32, F16 or BF16", "query");
  if (query->rank != 4 || query->shape[1] > INT64_MAX / 64)
    return BAD("query: shape %s, expected [batch, seqQuery, headNum, headDim]",
               nr_tensor_shape(query, shape, sizeof shape));
  *z = (sizes){.batch = query->shape[0], .heads = query->shape[2], .dim = query->shape[3], .dtype = query->dtype};
  for (int i = 0; i < NR_NUM_STREAMS; i++) {
    const nr_stream *stream = &nr_streams[i];
    const nr_tensor *t = nr_container_find(c->file, stream->names[NR_SLOT_X]);
    int64_t *length = stream->text ? &z->text[stream->projection] : &z->image[stream->projection];
    bool value = stream->projection == 2;
    if (value)
      *length = stream->text ? z->text[1] : z->image[1];
    if (i == 1 && !t)
      return BAD("%s is missing", "key");
    if (!t)
      continue;
    if (t->rank != 4 || t->shape[0] != z->batch || t->shape[2] != z->heads || t->shape[3] != z->dim ||
        (value && t->shape[1] != *length) || t->shape[1] > INT64_MAX / 64)
      return BAD("%s: shape %s, expected [%" PRId64 ",%s,%" PRId64 ",%" PRId64 "] = [batch, %s, headNum, headDim]",
                 t->name, nr_tensor_shape(t, shape, sizeof shape), z->batch, value ? "length of key" : "any length",
                 z->heads, z->dim, value ? "seqKey or seqEncoderKey" : "length");
    *length = t->shape[1];
  }
  return NR_EXIT_OK;
}

static int64_t total(const sizes *z, int projection) { return z->image[projection] + z->text[projection]; }

static int read_tables(const nr_case *c, const attributes *a, sizes *z, nr_message *message) {
  if (!a->rope)
    return NR_EXIT_OK;
  int64_t most = total(z, 0) < total(z, 1) ? total(z, 0) : total(z, 1);
  for (int i = 0; i < 2; i++) {
    const char *name = i ? "ropeCos" : "ropeSin";
    const nr_tensor *t = nr_container_find(c->file, name);
    char shape[160];
    if (!t)
      return BAD("%s is missing, which ropeType %" PRId64 " requires", name, a->rope);
    if (t->rank != 2 || t->shape[1] != z->dim || (i && t->shape[0] != z->rope_length))
      return BAD("%s: shape %s, expected [seqRope,%" PRId64 "] = [seqRope, headDim]", name,
                 nr_tensor_shape(t, shape, sizeof shape), z->dim);
    z->rope_length = t->shape[0];
  }
  if (z->rope_length < 1 || z->rope_length > most)
    return BAD("ropeSin: seqRope %" PRId64 ", expected 1 to %" PRId64 ", the shorter joined length", z->rope_length,
               most);
  return NR_EXIT_OK;
}

/* The shape that a stream's tensor of this slot has, and in words. */
static nr_tensor slot_shape(const sizes *z, const nr_stream *stream, nr_case_slot slot, const char **words) {
  int64_t length = stream->text ? z->text[stream->projection] : z->image[stream->projection];
  switch (slot) {
  case NR_SLOT_Y:
  case NR_SLOT_GRAD_Y:
    *words = stream->projection == 0 ? "[batch, headNum, seqQuery + seqEncoderQuery, headDim]"
                                     : "[batch, headNum, seqKey + seqEncoderKey, headDim]";
    return shaped(4, z->batch, z->heads, total(z, stream->projection), z->dim);
  case NR_SLOT_MEAN:
  case NR_SLOT_RSTD: *words = "[batch, length, headNum, 1]"; return shaped(4, z->batch, length, z->heads, 1);
  case NR_SLOT_COS:
  case NR_SLOT_SIN: *words = "[seqRope, headDim]"; return shaped(2, z->rope_length, z->dim, 0, 0);
  case NR_SLOT_X:
  case NR_SLOT_GRAD_X: *words = "[batch, length, headNum, headDim]"; break;
  default: *words = "[headDim]"; return shaped(1, z->dim, 0, 0, 0);
  }
  return shaped(4, z->batch, length, z->heads, z->dim);
}

/* Whether this norm gives the slot a meaning; one that has none is ignored. */
static bool slot_applies(const nr_segment *s, const attributes *a, nr_case_slot slot) {
  bool bias = s->norm == NR_NORM_LAYER_AFFINE, weight = bias || s->norm == NR_NORM_RMS_AFFINE;
  switch (slot) {
  case NR_SLOT_MEAN: return s->norm == NR_NORM_LAYER || bias;
  case NR_SLOT_RSTD: return s->norm != NR_NORM_NONE;
  case NR_SLOT_WEIGHT:
  case NR_SLOT_GRAD_WEIGHT: return weight;
  case NR_SLOT_BIAS:
  case NR_SLOT_GRAD_BIAS: return bias;
  case NR_SLOT_COS:
  case NR_SLOT_SIN: return a->rope != 0;
  default: return true;
  }
}

/* The output of a slot, made when its first stream asks: two streams write one joined output. */
static void want_output(nr_case *c, const sizes *z, const nr_stream *stream, nr_case_slot slot) {
  const char *words;
  for (int i = 0; i < c->num_outputs; i++)
    if (!strcmp(c->outputs[i].tensor.name, stream->names[slot]))
      return;
  bool statistics = nr_slots[slot].extent == NR_EXTENT_STATISTICS;
  nr_tensor tensor = slot_shape(z, stream, slot, &words);
  nr_direction direction = nr_slots[slot].role[NR_FORWARD] == 'o' ? NR_FORWARD : NR_BACKWARD;
  tensor.name = stream->names[slot];
  tensor.dtype = statistics ? NR_F32 : z->dtype;
  nr_case_add_output(c, tensor.name, tensor.dtype, direction)->tensor = tensor;
}

/* One stream becomes one segment. */
static int read_stream(nr_case *c, const sizes *z, const attributes *a, const nr_stream *stream, nr_message *message) {
  nr_case_segment *segment = &c->segments[c->num_segments++];
  nr_segment *s = &segment->shape;
  int64_t others = stream->text ? z->image[stream->projection] : z->text[stream->projection];
  bool second = stream->text != (a->order == 1);
  *s = nr_segment_default();
  s->name = stream->names[NR_SLOT_X];
  s->batch = z->batch;
  s->length = stream->text ? z->text[stream->projection] : z->image[stream->projection];
  s->heads = z->heads;
  s->dim = z->dim;
  s->eps = a->eps;
  if (stream->projection < 2) {
    s->norm = (nr_norm)(stream->text ? a->norm_added : a->norm);
    s->rope_width = a->rope == 1 ? 2 : a->rope == 2 ? z->dim : 0;
    s->rope_length = z->rope_length;
    s->rope_position = second ? others : 0;
  }
  for (int slot = 0; slot < NR_NUM_SLOTS; slot++) {
    segment->views[slot] = (nr_case_view){.name = stream->names[slot], .output = -1};
    if (!stream->names[slot] || !slot_applies(s, a, slot))
      continue;
    const nr_slot *info = &nr_slots[slot];
    bool statistics = info->extent == NR_EXTENT_STATISTICS;
    if ((info->role[NR_FORWARD] == 'o' && (a->training || !statistics)) || info->role[NR_BACKWARD] == 'o')
      want_output(c, z, stream, slot);
    const char *words;
    nr_tensor expected = slot_shape(z, stream, slot, &words);
    const nr_tensor *t = nr_container_find(c->file, stream->names[slot]);
    bool joined = slot == NR_SLOT_Y || slot == NR_SLOT_GRAD_Y;
    bool reads = info->role[NR_FORWARD] == 'i' || info->role[NR_BACKWARD] == 'i';
    nr_placement p = {.tensor = stream->names[slot], .heads_first = joined, .position = joined && second ? others : 0};
    int code = t && reads ? expect_shape(c, t, &expected, words, message) : NR_EXIT_OK;
    if (!code)
      code = nr_case_place(c, segment, slot, &p, message);
    if (code)
      return code;
  }
  return NR_EXIT_OK;
}

int nr_case_read_operator(nr_case *c, nr_message *message) {
  sizes z;
  attributes a = {.eps = 1e-6, .training = true};
  int code = read_attributes(c, &a, message);
  if (!code)
    code = read_sizes(c, &z, message);
  if (!code)
    code = read_tables(c, &a, &z, message);
  for (int i = 0; i < NR_NUM_STREAMS && !code; i++) {
    const nr_stream *stream = &nr_streams[i];
    /* A text stream is there with its tensor; values, which the backward does not read, with their key. */
    const char *witness = stream->projection == 2 ? nr_streams[i - 1].names[NR_SLOT_X] : stream->names[NR_SLOT_X];
    const nr_tensor *t = nr_container_find(c->file, stream->names[NR_SLOT_X]);
    if (!stream->text || nr_container_find(c->file, witness))
      code = read_stream(c, &z, &a, stream, message);
    else if (t)
      code = BAD("%s: given without %s", t->name, witness);
  }
  return code;
}
