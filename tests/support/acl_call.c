#include "support/acl_call.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "aclnnop/aclnn_norm_rope_concat.h"
#include "aclnnop/aclnn_norm_rope_concat_grad.h"
#include "support/device.h"
#include "support/guarded.h"

static nr_dtype native(aclDataType dtype) {
  return dtype == ACL_FLOAT16 ? NR_F16 : dtype == ACL_BF16 ? NR_BF16 : NR_F32;
}

static size_t width(aclDataType dtype) { return aclDataTypeSize(dtype); }

acl_call call_default(const nr_operator *op, aclDataType dtype) {
  acl_call call = {
      .op = op,
      .attributes = {.norm_type = 2, .norm_added_type = 2, .rope_type = 1, .eps = 1e-5, .is_training = true},
      .dtype = dtype,
      .batch = 2,
      .heads = 3,
      .dim = 10,
      .rope = 6,
      .seq = {5, 7, 7, 3, 2, 2}};
  for (int i = 0; i < op->num_operands; i++)
    call.tensors[i].given = true;
  return call;
}

int call_index(const acl_call *call, const char *name) {
  for (int i = 0; i < call->op->num_operands; i++)
    if (strcmp(call->op->operands[i].name, name) == 0)
      return i;
  fail_msg("no operand %s", name);
  return -1;
}

void call_without_text(acl_call *call, nr_part text_part) {
  for (int i = 0; i < call->op->num_operands; i++) {
    const nr_operand *o = &call->op->operands[i];
    bool same = o->part == text_part || (text_part == NR_PART_TEXT_KEY && o->part == NR_PART_TEXT_VALUE);
    if (same && (o->layout != NR_LAYOUT_CHANNELS || i < call->op->num_inputs))
      call->tensors[i].given = false;
  }
  call->seq[text_part] = 0;
  if (text_part == NR_PART_TEXT_KEY)
    call->seq[NR_PART_TEXT_VALUE] = 0;
}

static int shape_of(const acl_call *c, const nr_operand *o, int64_t shape[CALL_RANK]) {
  int64_t seq = c->seq[o->part];
  int64_t joined = o->layout == NR_LAYOUT_JOINED ? seq + c->seq[o->part + NR_PART_TEXT_QUERY] : 0;
  int64_t shapes[][CALL_RANK] = {[NR_LAYOUT_ROWS] = {c->batch, seq, c->heads, c->dim},
                                 [NR_LAYOUT_JOINED] = {c->batch, c->heads, joined, c->dim},
                                 [NR_LAYOUT_STATISTICS] = {c->batch, seq, c->heads, 1},
                                 [NR_LAYOUT_CHANNELS] = {c->dim},
                                 [NR_LAYOUT_TABLE] = {c->rope, c->dim}};
  memcpy(shape, shapes[o->layout], sizeof shapes[0]);
  return o->layout == NR_LAYOUT_CHANNELS ? 1 : o->layout == NR_LAYOUT_TABLE ? 2 : 4;
}

static double uniform(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (double)(*state >> 11) / 9007199254740992.0 * 2 - 1;
}

/* Contents by index, so that a strided tensor has the numbers of its contiguous twin. */
static void fill(call_tensor *t, const nr_operand *o, uint64_t state) {
  int64_t count = 1;
  for (int k = 0; k < t->rank; k++)
    count *= t->shape[k];
  for (int64_t n = 0; n < count; n++) {
    int64_t at = t->offset, rest = n;
    for (int k = t->rank - 1; k >= 0; k--) {
      at += rest % t->shape[k] * t->stride[k];
      rest /= t->shape[k];
    }
    double u = uniform(&state);
    nr_store(t->memory, native(t->dtype), at, o->field == offsetof(nr_segment, rstd) ? 1.5 + u : u);
  }
}

size_t call_bytes(const call_tensor *t) { return (size_t)t->storage * width(t->dtype); }

void call_remake(call_tensor *t) {
  if (t->handle)
    assert_int_equal(aclDestroyTensor(t->handle), ACLNN_SUCCESS);
  t->handle = aclCreateTensor(t->shape, (uint64_t)t->rank, t->dtype, t->stride, t->offset, t->format, &t->storage, 1,
                              t->memory);
  assert_non_null(t->handle);
}

void call_build(acl_call *call, unsigned seed) {
  for (int i = 0; i < call->op->num_operands; i++) {
    call_tensor *t = &call->tensors[i];
    const nr_operand *o = &call->op->operands[i];
    if (!t->given)
      continue;
    t->dtype = o->layout == NR_LAYOUT_STATISTICS ? ACL_FLOAT : call->dtype;
    t->format = ACL_FORMAT_ND;
    t->rank = shape_of(call, o, t->shape);
    t->offset = call->strided ? 3 + i : 0;
    t->storage = call->strided ? 2 : 1;
    for (int k = t->rank - 1; k >= 0; k--) {
      t->stride[k] = t->storage;
      t->storage = t->storage * t->shape[k] + (call->strided ? 2 + k : 0);
    }
    t->storage += t->offset;
    t->memory = guarded_alloc(call_bytes(t));
    if (i < call->op->num_inputs)
      fill(t, o, seed * 1000003u + (uint64_t)i);
    t->before = malloc(call_bytes(t) + 1);
    memcpy(t->before, t->memory, call_bytes(t));
    t->handle = NULL;
    call_remake(t);
  }
}

void call_free(acl_call *call) {
  for (int i = 0; i < call->op->num_operands; i++) {
    call_tensor *t = &call->tensors[i];
    if (t->handle)
      aclDestroyTensor(t->handle);
    if (t->memory)
      guarded_free(t->memory, call_bytes(t));
    free(t->before);
    *t = (call_tensor){0};
  }
}

aclnnStatus call_prepare(const acl_call *call, uint64_t *workspace, aclOpExecutor **executor) {
  const nr_attributes *a = &call->attributes;
  const aclTensor *t[NR_MAX_OPERANDS] = {NULL};
  for (int i = 0; i < call->op->num_operands; i++)
    t[i] = call->tensors[i].given ? call->tensors[i].handle : NULL;
#define THREE(i) t[i], t[(i) + 1], t[(i) + 2]
#define SEVEN(i) THREE(i), t[(i) + 3], THREE((i) + 4)
  if (call->op == &nr_operator_backward)
    return aclnnNormRopeConcatBackwardGetWorkspaceSize(SEVEN(0), SEVEN(7), SEVEN(14), a->norm_type, a->norm_added_type,
                                                       a->rope_type, a->concat_order, SEVEN(21), SEVEN(28), workspace,
                                                       executor);
  return aclnnNormRopeConcatGetWorkspaceSize(SEVEN(0), SEVEN(7), t[14], t[15], a->norm_type, a->norm_added_type,
                                             a->rope_type, a->concat_order, a->eps, a->is_training, SEVEN(16),
                                             THREE(23), t[26], workspace, executor);
}

aclnnStatus call_launch(const acl_call *call, void *workspace, uint64_t size, aclOpExecutor *executor,
                        aclrtStream stream) {
  return call->op == &nr_operator_backward ? aclnnNormRopeConcatBackward(workspace, size, executor, stream)
                                           : aclnnNormRopeConcat(workspace, size, executor, stream);
}

static void run_here(const acl_call *call) {
  uint64_t size;
  aclOpExecutor *executor;
  aclnnStatus status = call_prepare(call, &size, &executor);
  if (status != ACLNN_SUCCESS)
    fail_msg("%s: first phase: %d: %s", call->op->name, status, aclGetRecentErrMsg());
  void *workspace = NULL;
  if (size)
    assert_int_equal(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), ACL_SUCCESS);
  status = call_launch(call, workspace, size, executor, NULL);
  if (status != ACLNN_SUCCESS)
    fail_msg("%s: second phase: %d: %s", call->op->name, status, aclGetRecentErrMsg());
  assert_int_equal(aclrtSynchronizeStream(NULL), ACL_SUCCESS);
  if (workspace)
    assert_int_equal(aclrtFree(workspace), ACL_SUCCESS);
}

/* The first operand with this one's memory. */
static int owner(const acl_call *call, int i) {
  for (int k = 0; k < i; k++)
    if (call->tensors[k].given && call->tensors[k].memory == call->tensors[i].memory)
      return k;
  return i;
}

/* On the device with a copy of each piece of memory, which handles that share one share there, too. */
static void run_there(const acl_call *call) {
  device_block blocks[NR_MAX_OPERANDS];
  void *here[NR_MAX_OPERANDS];
  int count = call->op->num_operands;
  for (int i = 0; i < count; i++)
    if (call->tensors[i].given && owner(call, i) == i)
      blocks[i] = device_copy_of(call->tensors[i].memory, call_bytes(&call->tensors[i]));
  for (int i = 0; i < count; i++) {
    here[i] = NULL;
    if (!call->tensors[i].given || aclGetRawTensorAddr(call->tensors[i].handle, &here[i]) != ACLNN_SUCCESS || !here[i])
      continue; /* a test may have made it none */
    for (int k = 0; k < count; k++)
      if (call->tensors[k].given && owner(call, k) == k && here[i] == call->tensors[k].memory)
        assert_int_equal(aclSetRawTensorAddr(call->tensors[i].handle, blocks[k].data), ACLNN_SUCCESS);
  }
  run_here(call);
  for (int i = 0; i < count; i++) {
    if (!call->tensors[i].given)
      continue;
    if (here[i])
      assert_int_equal(aclSetRawTensorAddr(call->tensors[i].handle, here[i]), ACLNN_SUCCESS);
    if (owner(call, i) == i) {
      device_read(call->tensors[i].memory, &blocks[i]);
      device_free(&blocks[i]);
    }
  }
}

void call_run(const acl_call *call) {
  if (device_is_cuda())
    run_there(call);
  else
    run_here(call);
}

void call_assert_untouched(const acl_call *call) {
  for (int i = 0; i < call->op->num_operands; i++) {
    const call_tensor *t = &call->tensors[i];
    if (t->memory && (memcmp(t->memory, t->before, call_bytes(t)) != 0 || !guarded_intact(t->memory, call_bytes(t))))
      fail_msg("%s was changed", call->op->operands[i].name);
  }
}

double call_load(const call_tensor *t, const int64_t *index) {
  int64_t at = t->offset;
  for (int k = 0; k < t->rank; k++)
    at += index[k] * t->stride[k];
  return nr_load(t->memory, native(t->dtype), at);
}

/* One row of one part in double precision, and what the call is to have there. */
typedef struct oracle {
  const acl_call *call;
  nr_part part;
  bool forward;
  double weight_sum[NR_NUM_PARTS][1024], bias_sum[NR_NUM_PARTS][1024];
  double scale[NR_NUM_PARTS]; /* how large sums became on the way */
} oracle;

static const call_tensor *find(const acl_call *c, nr_part part, nr_layout layout, size_t field) {
  for (int i = 0; i < c->op->num_operands; i++) {
    const nr_operand *o = &c->op->operands[i];
    if (o->layout == layout && o->field == field && (layout == NR_LAYOUT_TABLE || o->part == part))
      return c->tensors[i].given ? &c->tensors[i] : NULL;
  }
  return NULL;
}

#define FIND(part, layout, name) find(c, (part), NR_LAYOUT_##layout, offsetof(nr_segment, name))

static void expect(const acl_call *c, const call_tensor *t, const int64_t *index, double want, double scale) {
  static const double unit[] = {[NR_F32] = 3e-6, [NR_F16] = 1e-3, [NR_BF16] = 8e-3};
  double got = call_load(t, index);
  if (!(fabs(got - want) <= unit[native(t->dtype)] * (fabs(want) + 0.01) + 3e-6 * scale))
    fail_msg("%s, norm %d/%d rope %d order %d: %s[%d,%d,%d,%d] is %.9g, expected %.9g", c->op->name,
             (int)c->attributes.norm_type, (int)c->attributes.norm_added_type, (int)c->attributes.rope_type,
             (int)c->attributes.concat_order, c->op->operands[t - c->tensors].name, (int)index[0],
             t->rank > 1 ? (int)index[1] : 0, t->rank > 2 ? (int)index[2] : 0, t->rank > 3 ? (int)index[3] : 0, got,
             want);
}

static void rotate(const acl_call *c, double *row, int64_t position, bool forward) {
  int64_t half = c->dim / 2;
  if (!c->attributes.rope_type || position >= c->rope)
    return;
  const call_tensor *sin_table = FIND(0, TABLE, sin), *cos_table = FIND(0, TABLE, cos);
  for (int64_t i = 0; i < half; i++) {
    int64_t a = c->attributes.rope_type == 1 ? 2 * i : i, b = c->attributes.rope_type == 1 ? a + 1 : a + half;
    double cos_a = call_load(cos_table, (int64_t[]){position, a}),
           cos_b = call_load(cos_table, (int64_t[]){position, b});
    double sin_a = call_load(sin_table, (int64_t[]){position, a}),
           sin_b = call_load(sin_table, (int64_t[]){position, b});
    double u = row[a], v = row[b];
    row[a] = u * cos_a + (forward ? -v * sin_a : v * sin_b);
    row[b] = v * cos_b + (forward ? u * sin_b : -u * sin_a);
  }
}

static void check_row(oracle *r, nr_part part, int64_t b, int64_t s, int64_t n) {
  const acl_call *c = r->call;
  bool text = part >= NR_PART_TEXT_QUERY, value = part == NR_PART_VALUE || part == NR_PART_TEXT_VALUE;
  nr_part image = text ? part - NR_PART_TEXT_QUERY : part;
  int64_t norm = value ? 0 : text ? c->attributes.norm_added_type : c->attributes.norm_type, D = c->dim;
  int64_t p = s + (text == (c->attributes.concat_order == 0) ? c->seq[text ? image : image + NR_PART_TEXT_QUERY] : 0);
  const call_tensor *x = FIND(part, ROWS, x), *y = FIND(image, JOINED, y), *grad_x = FIND(part, ROWS, grad_x);
  const call_tensor *mean_of = FIND(part, STATISTICS, mean), *rstd_of = FIND(part, STATISTICS, rstd);
  const call_tensor *grad_y = FIND(image, JOINED, grad_y), *gamma = FIND(part, CHANNELS, weight);
  const call_tensor *beta = FIND(part, CHANNELS, bias);
  double row[1024], xhat[1024] = {0}, mean = 0, square = 0, rstd = 1, scale = 1;
  bool centred = norm == 1 || norm == 2, weighed = norm == 2 || norm == 4;
  if (r->forward) {
    for (int64_t d = 0; d < D; d++)
      row[d] = call_load(x, (int64_t[]){b, s, n, d});
    for (int64_t d = 0; d < D && centred; d++)
      mean += row[d] / (double)D;
    for (int64_t d = 0; d < D; d++)
      square += (row[d] - mean) * (row[d] - mean) / (double)D;
    rstd = norm ? 1 / sqrt(square + c->attributes.eps) : 1;
    for (int64_t d = 0; d < D; d++)
      row[d] = (row[d] - mean) * rstd * (weighed ? call_load(gamma, &d) : 1) + (norm == 2 ? call_load(beta, &d) : 0);
    if (!value)
      rotate(c, row, p, true);
    for (int64_t d = 0; d < D; d++)
      expect(c, y, (int64_t[]){b, n, p, d}, row[d], 4);
    if (centred && c->attributes.is_training)
      expect(c, mean_of, (int64_t[]){b, s, n, 0}, mean, 1);
    if (norm && c->attributes.is_training)
      expect(c, rstd_of, (int64_t[]){b, s, n, 0}, rstd, rstd);
    return;
  }
  for (int64_t d = 0; d < D; d++)
    row[d] = call_load(grad_y, (int64_t[]){b, n, p, d});
  if (!value)
    rotate(c, row, p, false);
  if (norm) {
    double sum = 0, product = 0;
    mean = centred ? call_load(mean_of, (int64_t[]){b, s, n, 0}) : 0;
    rstd = call_load(rstd_of, (int64_t[]){b, s, n, 0});
    for (int64_t d = 0; d < D; d++) {
      xhat[d] = (call_load(x, (int64_t[]){b, s, n, d}) - mean) * rstd;
      r->weight_sum[part][d] += weighed ? row[d] * xhat[d] : 0;
      r->bias_sum[part][d] += norm == 2 ? row[d] : 0;
      r->scale[part] += fabs(row[d] * xhat[d]) + fabs(row[d]);
      row[d] *= weighed ? call_load(gamma, &d) : 1;
      sum += row[d] / (double)D;
      product += row[d] * xhat[d] / (double)D;
    }
    for (int64_t d = 0; d < D; d++)
      row[d] = rstd * (row[d] - (centred ? sum : 0) - xhat[d] * product);
    scale = 20 * rstd * (1 + rstd);
  }
  for (int64_t d = 0; d < D && grad_x; d++)
    expect(c, grad_x, (int64_t[]){b, s, n, d}, row[d], scale);
}

/* Everything but the elements that the call is to write is as it was. */
static void check_rest(const acl_call *c) {
  for (int i = 0; i < c->op->num_operands; i++) {
    const call_tensor *t = &c->tensors[i];
    const nr_operand *o = &c->op->operands[i];
    if (!t->given)
      continue;
    int64_t norm = o->part >= NR_PART_TEXT_QUERY ? c->attributes.norm_added_type : c->attributes.norm_type, count = 1;
    bool ignored = o->layout == NR_LAYOUT_STATISTICS &&
                   (!c->attributes.is_training || norm == 0 || (o->need == NR_NEED_MEAN && norm > 2));
    for (int k = 0; k < t->rank; k++)
      count *= t->shape[k];
    size_t bytes = call_bytes(t), size = width(t->dtype);
    unsigned char *rest = malloc(bytes + 1);
    memcpy(rest, t->memory, bytes);
    for (int64_t n = 0; n < count && i >= c->op->num_inputs && !ignored; n++) {
      int64_t at = t->offset, left = n;
      for (int k = t->rank - 1; k >= 0; k--) {
        at += left % t->shape[k] * t->stride[k];
        left /= t->shape[k];
      }
      memcpy(rest + (size_t)at * size, t->before + (size_t)at * size, size);
    }
    bool same = memcmp(rest, t->before, bytes) == 0 && guarded_intact(t->memory, bytes);
    free(rest);
    if (!same)
      fail_msg("%s: bytes that are not its elements were changed", o->name);
  }
}

void call_check(const acl_call *c) {
  static _Thread_local oracle r;
  memset(&r, 0, sizeof r);
  r.call = c;
  r.forward = c->op == &nr_operator_forward;
  for (int p = 0; p < NR_NUM_PARTS; p++)
    for (int64_t b = 0; b < c->batch; b++)
      for (int64_t s = 0; s < c->seq[p]; s++)
        for (int64_t n = 0; n < c->heads; n++)
          check_row(&r, (nr_part)p, b, s, n);
  for (int p = 0; p < NR_NUM_PARTS && !r.forward; p++)
    for (int64_t d = 0; d < c->dim; d++) {
      const call_tensor *weight = FIND((nr_part)p, CHANNELS, grad_weight);
      const call_tensor *bias = FIND((nr_part)p, CHANNELS, grad_bias);
      if (weight)
        expect(c, weight, &d, r.weight_sum[p][d], r.scale[p] / (double)c->dim);
      if (bias)
        expect(c, bias, &d, r.bias_sum[p][d], r.scale[p] / (double)c->dim);
    }
  check_rest(c);
}
