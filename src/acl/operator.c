/* From tensors and attributes to segments: every check of a call, in the words of its parameters. */
#include "acl/operator.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "acl/acl_error.h"
#include "acl/context.h"
#include "acl/device.h"
#include "acl/executor.h"
#include "acl/tensor.h"

enum { MIN_DIM = 2, MAX_DIM = 1024, RANK = 4, TEXT = 192 };

/* The lengths that shapes are made of. */
typedef enum nr_length {
  LENGTH_NONE,
  LENGTH_ONE,
  LENGTH_BATCH,
  LENGTH_HEADS,
  LENGTH_DIM,
  LENGTH_ROPE,
  LENGTH_SEQ, /* of the query; + NR_PART_KEY of the key, and so on; value goes with key */
  NUM_LENGTHS = LENGTH_SEQ + NR_NUM_PARTS
} nr_length;

static const char *const length_names[NUM_LENGTHS] = {
    [LENGTH_ONE] = "1",
    [LENGTH_BATCH] = "batch",
    [LENGTH_HEADS] = "headNum",
    [LENGTH_DIM] = "headDim",
    [LENGTH_ROPE] = "seqRope",
    [LENGTH_SEQ + NR_PART_QUERY] = "seqQuery",
    [LENGTH_SEQ + NR_PART_KEY] = "seqKey",
    [LENGTH_SEQ + NR_PART_TEXT_QUERY] = "seqEncoderQuery",
    [LENGTH_SEQ + NR_PART_TEXT_KEY] = "seqEncoderKey",
};

/* An axis is one length, or the sum of two. */
typedef struct nr_axis {
  nr_length first, second;
} nr_axis;

enum { UNKNOWN = -1 };

typedef struct nr_checker {
  const nr_operator *op;
  const aclTensor *const *handles;
  const nr_attributes *attributes;
  const nr_tensor *tensors[NR_MAX_OPERANDS]; /* those in use, acquired; NULL for the others */
  bool present[NR_NUM_PARTS];
  int64_t lengths[NUM_LENGTHS]; /* UNKNOWN until a tensor shows it */
} nr_checker;

static bool is_text(nr_part part) { return part >= NR_PART_TEXT_QUERY; }

static bool is_value(nr_part part) { return part == NR_PART_VALUE || part == NR_PART_TEXT_VALUE; }

/* The part that the operand's part takes its sequence length from. */
static nr_part measured(nr_part part) { return is_value(part) ? part - 1 : part; }

static const char *part_input(nr_part part) {
  static const char *const names[] = {"query", "key", "key", "encoderQuery", "encoderKey", "encoderKey"};
  return names[part];
}

static bool is_output(const nr_operator *op, int i) { return i >= op->num_inputs; }

static int64_t norm_of(const nr_attributes *a, nr_part part) {
  return is_value(part) ? NR_NORM_NONE : is_text(part) ? a->norm_added_type : a->norm_type;
}

static bool norm_has(int64_t norm, nr_need need) {
  switch (need) {
  case NR_NEED_MEAN: return norm == NR_NORM_LAYER || norm == NR_NORM_LAYER_AFFINE;
  case NR_NEED_RSTD: return norm != NR_NORM_NONE;
  case NR_NEED_WEIGHT: return norm == NR_NORM_LAYER_AFFINE || norm == NR_NORM_RMS_AFFINE;
  case NR_NEED_BIAS: return norm == NR_NORM_LAYER_AFFINE;
  default: return false;
  }
}

static aclnnStatus check_attributes(const nr_operator *op, const nr_attributes *a) {
  const struct {
    const char *name;
    int64_t value, max;
  } checks[] = {{"normType", a->norm_type, NR_NORM_RMS_AFFINE},
                {"normAddedType", a->norm_added_type, NR_NORM_RMS_AFFINE},
                {"ropeType", a->rope_type, 2},
                {"concatOrder", a->concat_order, 1}};
  for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
    if (checks[i].value < 0 || checks[i].value > checks[i].max)
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: %" PRId64 ", expected 0 to %" PRId64, checks[i].name,
                         checks[i].value, checks[i].max);
  if (op->direction == NR_FORWARD && !(isfinite(a->eps) && a->eps >= 0))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "eps: %g, expected finite and at least 0", a->eps);
  return ACLNN_SUCCESS;
}

static void find_parts(nr_checker *c) {
  for (int p = 0; p < NR_NUM_PARTS; p++)
    c->present[p] = !is_text((nr_part)p);
  for (int i = 0; i < c->op->num_inputs; i++) {
    const nr_operand *o = &c->op->operands[i];
    if (o->field == offsetof(nr_segment, x) && is_text(o->part) && !is_value(o->part))
      c->present[o->part] = c->handles[i] != NULL;
  }
  c->present[NR_PART_TEXT_VALUE] = c->present[NR_PART_TEXT_KEY];
}

static bool is_statistics_output(const nr_checker *c, int i) {
  return c->op->operands[i].layout == NR_LAYOUT_STATISTICS && is_output(c->op, i);
}

static bool required(const nr_checker *c, int i) {
  const nr_operand *o = &c->op->operands[i];
  switch (o->need) {
  case NR_NEED_ALWAYS: return true;
  case NR_NEED_OPTIONAL: return false;
  case NR_NEED_TEXT_KEY: return c->present[NR_PART_TEXT_KEY];
  case NR_NEED_ROPE: return c->attributes->rope_type != 0;
  default: break;
  }
  return c->present[o->part] && norm_has(norm_of(c->attributes, o->part), o->need) &&
         (!is_statistics_output(c, i) || c->attributes->is_training);
}

/* A required operand that is null, and what makes it required. */
static aclnnStatus refuse_null(const nr_checker *c, int i) {
  const nr_operand *o = &c->op->operands[i];
  const nr_attributes *a = c->attributes;
  char reason[TEXT] = "";
  if (o->need == NR_NEED_TEXT_KEY)
    snprintf(reason, TEXT, " by encoderKey");
  else if (o->need == NR_NEED_ROPE)
    snprintf(reason, TEXT, " by ropeType %" PRId64, a->rope_type);
  else if (o->need != NR_NEED_ALWAYS)
    snprintf(reason, TEXT, " by %s %" PRId64 "%s", is_text(o->part) ? "normAddedType" : "normType", norm_of(a, o->part),
             is_statistics_output(c, i) ? " and isTraining" : "");
  return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "%s: null, required%s", o->name, reason);
}

/* Whether operand i, given, is of any use under these attributes. */
static bool useful(const nr_checker *c, int i) {
  nr_need need = c->op->operands[i].need;
  return need == NR_NEED_OPTIONAL || need == NR_NEED_TEXT_KEY || required(c, i);
}

/* Operands that speak of a text part must come with it; only weight gradients (zeros then) and what is ignored need
   not. */
static bool lacks_part(const nr_checker *c, int i) {
  const nr_operand *o = &c->op->operands[i];
  if (!c->handles[i] || c->present[o->part])
    return false;
  return o->layout == NR_LAYOUT_ROWS || (is_statistics_output(c, i) && c->attributes->is_training);
}

static aclnnStatus acquire_tensors(nr_checker *c) {
  for (int i = 0; i < c->op->num_operands; i++)
    if (!c->handles[i] && required(c, i))
      return refuse_null(c, i);
  for (int i = 0; i < c->op->num_operands; i++) {
    const nr_operand *o = &c->op->operands[i];
    if (lacks_part(c, i))
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: given, expected null without %s", o->name, part_input(o->part));
    if (!c->handles[i] || !useful(c, i))
      continue;
    c->tensors[i] = nr_tensor_acquire(c->handles[i]);
    if (!c->tensors[i])
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: %p, expected a living aclTensor", o->name,
                         (const void *)c->handles[i]);
  }
  return ACLNN_SUCCESS;
}

static bool native_dtype(aclDataType dtype, nr_dtype *native) {
  switch (dtype) {
  case ACL_FLOAT: *native = NR_F32; return true;
  case ACL_FLOAT16: *native = NR_F16; return true;
  case ACL_BF16: *native = NR_BF16; return true;
  default: return false;
  }
}

static aclnnStatus check_types(const nr_checker *c) {
  aclDataType common = c->tensors[0]->dtype; /* the first operand is always required */
  nr_dtype native;
  if (!native_dtype(common, &native))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: dtype %s, expected FLOAT32, FLOAT16 or BFLOAT16",
                       c->op->operands[0].name, nr_acl_dtype_name(common));
  for (int i = 0; i < c->op->num_operands; i++) {
    const nr_operand *o = &c->op->operands[i];
    const nr_tensor *t = c->tensors[i];
    bool statistics = o->layout == NR_LAYOUT_STATISTICS;
    if (!t)
      continue;
    if (t->dtype != (statistics ? ACL_FLOAT : common))
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: dtype %s, expected %s%s", o->name, nr_acl_dtype_name(t->dtype),
                         nr_acl_dtype_name(statistics ? ACL_FLOAT : common),
                         statistics                       ? ""
                         : c->op->direction == NR_FORWARD ? " as query"
                                                          : " as gradQueryOutput");
    if (t->format != ACL_FORMAT_ND)
      return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: format %d, expected ACL_FORMAT_ND (%d)", o->name, (int)t->format,
                         (int)ACL_FORMAT_ND);
  }
  return ACLNN_SUCCESS;
}

/* The table is of the query's sequences; other parts' have their places from there on. */
static int axes_of(const nr_operand *o, nr_axis axes[RANK]) {
  static const nr_axis shapes[][RANK] = {
      [NR_LAYOUT_ROWS] = {{LENGTH_BATCH}, {LENGTH_SEQ}, {LENGTH_HEADS}, {LENGTH_DIM}},
      [NR_LAYOUT_JOINED] = {{LENGTH_BATCH},
                            {LENGTH_HEADS},
                            {LENGTH_SEQ, LENGTH_SEQ + NR_PART_TEXT_QUERY},
                            {LENGTH_DIM}},
      [NR_LAYOUT_STATISTICS] = {{LENGTH_BATCH}, {LENGTH_SEQ}, {LENGTH_HEADS}, {LENGTH_ONE}},
      [NR_LAYOUT_CHANNELS] = {{LENGTH_DIM}},
      [NR_LAYOUT_TABLE] = {{LENGTH_ROPE}, {LENGTH_DIM}}};
  int rank = 0;
  for (; rank < RANK && shapes[o->layout][rank].first; rank++) {
    axes[rank] = shapes[o->layout][rank];
    if (axes[rank].first == LENGTH_SEQ)
      axes[rank].first += measured(o->part);
    if (axes[rank].second)
      axes[rank].second += measured(o->part);
  }
  return rank;
}

static int64_t axis_length(const nr_checker *c, nr_axis axis) {
  int64_t length = c->lengths[axis.first];
  return length == UNKNOWN || axis.second == LENGTH_NONE ? length : length + c->lengths[axis.second];
}

/* "[1,10,9,6] = [batch, headNum, seqKey + seqEncoderKey, headDim]", the left side as far as it is known. */
static void expected_shape(const nr_checker *c, const nr_axis *axes, int rank, char *text, size_t size) {
  size_t used = 0;
  bool known = false;
  for (int k = 0; k < rank; k++)
    known = known || (axis_length(c, axes[k]) != UNKNOWN && axes[k].first != LENGTH_ONE);
  for (int k = 0; k < rank && known; k++) {
    used += (size_t)snprintf(text + used, size - used, k ? "," : "[");
    int64_t length = axis_length(c, axes[k]);
    if (length == UNKNOWN)
      used += (size_t)snprintf(text + used, size - used, "%s", length_names[axes[k].first]);
    else
      used += (size_t)snprintf(text + used, size - used, "%" PRId64, length);
  }
  used += (size_t)snprintf(text + used, size - used, known ? "] = [" : "[");
  for (int k = 0; k < rank; k++)
    used += (size_t)snprintf(text + used, size - used, "%s%s%s%s", k ? ", " : "", length_names[axes[k].first],
                             axes[k].second ? " + " : "", axes[k].second ? length_names[axes[k].second] : "");
  snprintf(text + used, size - used, "]");
}

/* Compares with the lengths that are known; the others are known from then on. */
static aclnnStatus check_shape(nr_checker *c, int i) {
  const nr_operand *o = &c->op->operands[i];
  const nr_tensor *t = c->tensors[i];
  nr_axis axes[RANK];
  int rank = axes_of(o, axes);
  bool fits = t->rank == rank;
  for (int k = 0; k < rank && fits; k++)
    fits = axis_length(c, axes[k]) == UNKNOWN || axis_length(c, axes[k]) == t->shape[k];
  char found[NR_SHAPE_TEXT], expected[2 * TEXT];
  if (!fits) {
    expected_shape(c, axes, rank, expected, sizeof expected);
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: shape %s, expected %s", o->name,
                       nr_shape_text(t->shape, t->rank, found), expected);
  }
  for (int k = 0; k < rank; k++)
    if (axes[k].second == LENGTH_NONE)
      c->lengths[axes[k].first] = t->shape[k];
  int64_t dim = c->lengths[LENGTH_DIM];
  if (dim < MIN_DIM || dim > MAX_DIM || dim % 2)
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID, "%s: shape %s, expected an even headDim from %d to %d", o->name,
                       nr_shape_text(t->shape, t->rank, found), MIN_DIM, MAX_DIM);
  return ACLNN_SUCCESS;
}

/* The table must not be longer than what it rotates; a stream without rows asks nothing of it. */
static aclnnStatus check_table(const nr_checker *c) {
  const int64_t *seq = &c->lengths[LENGTH_SEQ], found = c->lengths[LENGTH_ROPE];
  if (c->attributes->rope_type == 0)
    return ACLNN_SUCCESS;
  int64_t query = seq[NR_PART_QUERY] + seq[NR_PART_TEXT_QUERY], key = seq[NR_PART_KEY] + seq[NR_PART_TEXT_KEY];
  int64_t most = query && (query < key || !key) ? query : key;
  if (most && (found < 1 || found > most))
    return nr_acl_fail(ACLNN_ERR_PARAM_INVALID,
                       "ropeSin: seqRope %" PRId64 ", expected 1 to %" PRId64
                       " = min(seqQuery + seqEncoderQuery, seqKey + seqEncoderKey)",
                       found, most);
  return ACLNN_SUCCESS;
}

static aclnnStatus check_shapes(nr_checker *c) {
  for (int k = 0; k < NUM_LENGTHS; k++)
    c->lengths[k] = UNKNOWN;
  c->lengths[LENGTH_ONE] = 1;
  for (int p = 0; p < NR_NUM_PARTS; p++)
    if (!c->present[p])
      c->lengths[LENGTH_SEQ + p] = 0;
  /* The inputs in rows and the tables show the lengths, which all else is held against. */
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < c->op->num_operands; i++) {
      const nr_operand *o = &c->op->operands[i];
      bool shows = (o->layout == NR_LAYOUT_ROWS && !is_output(c->op, i)) || o->layout == NR_LAYOUT_TABLE;
      if (!c->tensors[i] || shows != (round == 0))
        continue;
      aclnnStatus status = check_shape(c, i);
      if (status != ACLNN_SUCCESS)
        return status;
    }
  return check_table(c);
}

static aclnnStatus check_addresses(const nr_checker *c) {
  for (int i = 0; i < c->op->num_operands; i++)
    if (c->tensors[i] && nr_tensor_count(c->tensors[i]) && !atomic_load(&c->tensors[i]->data))
      return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "%s: null address", c->op->operands[i].name);
  return ACLNN_SUCCESS;
}

/* Whether the operand is bound to the part's segment. */
static bool feeds(const nr_operand *o, nr_part part) {
  switch (o->layout) {
  case NR_LAYOUT_TABLE: return !is_value(part);
  case NR_LAYOUT_JOINED: return part == o->part || part == o->part + NR_PART_TEXT_QUERY;
  default: return part == o->part;
  }
}

static nr_view *view_of(nr_call *call, int part, const nr_operand *o) {
  return (nr_view *)((char *)&call->segments[part] + o->field);
}

static void fill_segment(const nr_checker *c, nr_call *call, nr_part part) {
  const nr_attributes *a = c->attributes;
  const int64_t *seq = &c->lengths[LENGTH_SEQ];
  nr_segment *s = &call->segments[part];
  *s = nr_segment_default();
  s->name = part_input(part);
  s->batch = c->lengths[LENGTH_BATCH];
  s->length = seq[measured(part)];
  s->heads = c->lengths[LENGTH_HEADS];
  s->dim = c->lengths[LENGTH_DIM];
  s->norm = c->present[part] ? (nr_norm)norm_of(a, part) : NR_NORM_NONE;
  if (call->op->direction == NR_FORWARD)
    s->eps = a->eps;
  if (is_text(part) != (a->concat_order == 1))
    call->start[part] = seq[measured(is_text(part) ? part - NR_PART_TEXT_QUERY : part + NR_PART_TEXT_QUERY)];
  if (is_value(part) || a->rope_type == 0 || !c->present[part])
    return;
  s->rope_width = a->rope_type == 1 ? 2 : s->dim;
  s->rope_length = c->lengths[LENGTH_ROPE];
  s->rope_position = call->start[part];
}

/* A view's strides in the order batch, sequence, head, channel. */
static void view_strides(const nr_operand *o, const nr_tensor *t, int64_t stride[4]) {
  static const signed char axis[][4] = {[NR_LAYOUT_ROWS] = {0, 1, 2, 3},
                                        [NR_LAYOUT_JOINED] = {0, 2, 1, 3},
                                        [NR_LAYOUT_STATISTICS] = {0, 1, 2, -1},
                                        [NR_LAYOUT_CHANNELS] = {-1, -1, -1, 0},
                                        [NR_LAYOUT_TABLE] = {-1, 0, -1, 1}};
  for (int k = 0; k < 4; k++)
    stride[k] = axis[o->layout][k] < 0 ? 0 : t->stride[axis[o->layout][k]];
}

static void bind(const nr_checker *c, nr_call *call, int i) {
  const nr_operand *o = &call->op->operands[i];
  const nr_tensor *t = c->tensors[i];
  call->operands[i].given = c->handles[i] != NULL;
  if (!t)
    return;
  nr_view view = {.name = o->name};
  native_dtype(t->dtype, &view.dtype);
  view_strides(o, t, view.stride);
  call->operands[i].used = true;
  call->operands[i].empty = nr_tensor_count(t) == 0;
  call->operands[i].offset = t->offset * (int64_t)nr_dtype_size(view.dtype);
  for (int p = 0; p < NR_NUM_PARTS; p++)
    if (feeds(o, (nr_part)p))
      *view_of(call, p, o) = view;
  nr_call_place(call, i, atomic_load(&t->data));
}

void nr_call_place(nr_call *call, int index, void *storage) {
  const nr_operand *o = &call->op->operands[index];
  for (int p = 0; p < NR_NUM_PARTS; p++) {
    if (!feeds(o, (nr_part)p))
      continue;
    nr_view *v = view_of(call, p, o);
    /* Modulo 2^64, since the stride of an axis without a second element is any number. */
    uint64_t start = o->layout == NR_LAYOUT_JOINED ? (uint64_t)call->start[p] * (uint64_t)v->stride[1] : 0;
    uintptr_t skipped = (uintptr_t)call->operands[index].offset + start * nr_dtype_size(v->dtype);
    /* Whatever address a tensor without elements has, it is of no interest. */
    v->data = call->operands[index].empty ? NULL : (void *)((uintptr_t)storage + skipped);
  }
}

/* Two segments with one gradient address would sum into it, which the operators have no use for. */
static aclnnStatus check_gradients(const nr_call *call) {
  static const size_t fields[] = {offsetof(nr_segment, grad_weight), offsetof(nr_segment, grad_bias)};
  for (int f = 0; f < 2; f++)
    for (int p = 0; p < NR_NUM_PARTS; p++)
      for (int q = 0; q < p; q++) {
        const nr_view *a = (const nr_view *)((const char *)&call->segments[p] + fields[f]);
        const nr_view *b = (const nr_view *)((const char *)&call->segments[q] + fields[f]);
        if (a->data && a->data == b->data)
          return nr_acl_fail(ACLNN_ERR_PARAM_INVALID,
                             "%s: overlaps %s; expected outputs that share no memory with other tensors", a->name,
                             b->name);
      }
  return ACLNN_SUCCESS;
}

aclnnStatus nr_call_plan(const nr_call *call, nr_plan **plan) {
  aclnnStatus status = check_gradients(call);
  if (status != ACLNN_SUCCESS)
    return status;
  nr_problem problem = nr_problem_default();
  problem.direction = call->op->direction;
  problem.backend = call->backend;
  problem.segments = call->segments;
  problem.num_segments = NR_NUM_PARTS;
  switch (nr_plan_create(plan, &problem)) {
  case NR_OK: return ACLNN_SUCCESS;
  case NR_ERROR_NULL: status = ACLNN_ERR_PARAM_NULLPTR; break;
  case NR_ERROR_INVALID: status = ACLNN_ERR_PARAM_INVALID; break;
  case NR_ERROR_MEMORY: status = ACLNN_ERR_INNER_CREATE_EXECUTOR; break;
  default: status = ACLNN_ERR_RUNTIME_ERROR; break; /* the device */
  }
  return nr_acl_fail(status, "%s", nr_last_error());
}

static aclnnStatus translate(nr_checker *c, nr_call *call) {
  aclnnStatus status = acquire_tensors(c);
  if (status == ACLNN_SUCCESS)
    status = check_types(c);
  if (status == ACLNN_SUCCESS)
    status = check_shapes(c);
  if (status == ACLNN_SUCCESS)
    status = check_addresses(c);
  if (status != ACLNN_SUCCESS)
    return status;
  call->op = c->op;
  call->backend = nr_device_cuda(nr_context_current_device()) >= 0 ? NR_BACKEND_CUDA : NR_BACKEND_CPU;
  for (int p = 0; p < NR_NUM_PARTS; p++)
    fill_segment(c, call, (nr_part)p);
  for (int i = 0; i < c->op->num_operands; i++)
    bind(c, call, i);
  return ACLNN_SUCCESS;
}

aclnnStatus nr_operator_prepare(const nr_operator *op, const aclTensor *const *tensors, const nr_attributes *attributes,
                                uint64_t *workspaceSize, aclOpExecutor **executor) {
  if (workspaceSize)
    *workspaceSize = 0;
  if (executor)
    *executor = NULL;
  if (!workspaceSize || !executor)
    return nr_acl_fail(ACLNN_ERR_PARAM_NULLPTR, "%s: null, expected where to put the result",
                       workspaceSize ? "executor" : "workspaceSize");
  aclnnStatus status = check_attributes(op, attributes);
  if (status != ACLNN_SUCCESS)
    return status;
  nr_checker c = {.op = op, .handles = tensors, .attributes = attributes};
  nr_call call = {0};
  find_parts(&c);
  status = translate(&c, &call);
  for (int i = 0; i < op->num_operands; i++)
    if (c.tensors[i])
      nr_tensor_release(tensors[i]);
  return status == ACLNN_SUCCESS ? nr_executor_create(&call, workspaceSize, executor) : status;
}
