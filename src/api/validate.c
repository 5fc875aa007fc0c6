#include "api/validate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "api/fields.h"
#include "base/error.h"
#include "base/overlap.h"
#include "plan/plan.h"

enum { NAME_SIZE = 96 };

static const char *segment_name(const nr_segment *s, int32_t i, char *buffer) {
  if (s->name)
    return s->name;
  snprintf(buffer, NAME_SIZE, "segment %" PRId32, i);
  return buffer;
}

static const char *view_name(const nr_segment *s, int32_t i, const nr_field *field, char *buffer) {
  const nr_view *v = nr_view_at(s, field->offset);
  if (v->name)
    return v->name;
  char segment[NAME_SIZE];
  snprintf(buffer, NAME_SIZE, "%.60s.%s", segment_name(s, i, segment), field->name);
  return buffer;
}

/* What a parameter or table is shared over, its stride says; the extent is one then. */
static void field_shape(const nr_segment *s, const nr_field *field, int64_t shape[4]) {
  const int64_t *stride = nr_view_at(s, field->offset)->stride;
  bool statistics = field->shape == NR_SHAPE_STATISTICS, parameter = field->shape == NR_SHAPE_PARAMETER;
  bool table = field->shape == NR_SHAPE_TABLE;
  bool whole = statistics && s->scope == NR_SCOPE_ALL_HEADS && s->norm != NR_NORM_NONE;
  shape[0] = parameter || (table && stride[0] == 0) ? 1 : s->batch;
  shape[1] = parameter ? 1 : table ? s->rope_length : s->length;
  shape[2] = (parameter || table) && stride[2] == 0 ? 1 : whole ? s->heads > 0 : s->heads;
  shape[3] = statistics ? 1 : table ? s->rope_dim : s->dim;
}

/* Says what requires an absent view, and in which direction: perhaps the default was left, and is not what is meant. */
static nr_status refuse_absent(const nr_segment *s, int32_t i, nr_direction direction, const nr_field *field) {
  static const char *const norms[] = {"table gradients", "NR_NORM_LAYER", "NR_NORM_LAYER_AFFINE", "NR_NORM_RMS",
                                      "NR_NORM_RMS_AFFINE"};
  bool always = field->role[!direction] == NR_UNUSED || (field->shape == NR_SHAPE_ROWS && direction == NR_FORWARD);
  const char *cause = field->shape == NR_SHAPE_TABLE ? "rope_width" : always ? "" : norms[s->norm];
  char name[NAME_SIZE];
  return nr_fail(NR_ERROR_NULL, "%s: null, required by %s%s%s", view_name(s, i, field, name), cause,
                 *cause ? " in " : "",
                 direction == NR_FORWARD ? "the forward (NR_FORWARD)" : "the backward (NR_BACKWARD)");
}

/* Sets *region to the view's memory; of size 0 if the view is absent, not used or empty. */
static nr_status check_view(const nr_segment *s, int32_t i, nr_direction direction, const nr_field *field,
                            nr_region *region) {
  const nr_view *v = nr_view_at(s, field->offset);
  char name[NAME_SIZE];
  region->size = 0;
  if (!v->data)
    return nr_field_required(s, direction, field) ? refuse_absent(s, i, direction, field) : NR_OK;
  if (!nr_field_used(s, direction, field))
    return NR_OK;
  size_t size = nr_dtype_size(v->dtype);
  if ((uintptr_t)v->data % size)
    return nr_fail(NR_ERROR_INVALID, "%s: address %p, expected a multiple of %zu, the size of a %s",
                   view_name(s, i, field, name), v->data, size, nr_dtype_name(v->dtype));
  field_shape(s, field, region->count);
  for (int axis = 0; axis < 4; axis++) {
    if (region->count[axis] == 0)
      return NR_OK;
    if (region->count[axis] == 1)
      region->stride[axis] = 0; /* whatever it is: perhaps an axis that the view does not have */
    else if (__builtin_mul_overflow(v->stride[axis], (int64_t)size, &region->stride[axis]))
      return nr_fail(NR_ERROR_INVALID, "%s: stride %" PRId64 ", too large", view_name(s, i, field, name),
                     v->stride[axis]);
  }
  region->address = (uintptr_t)v->data;
  region->size = (int64_t)size;
  if (!nr_region_bound(region))
    return nr_fail(NR_ERROR_INVALID, "%s: its strides leave the address space", view_name(s, i, field, name));
  if (field->role[direction] == NR_OUTPUT && nr_region_overlaps_itself(region))
    return nr_fail(NR_ERROR_INVALID,
                   "%s: an output that overlaps itself: shape [%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64
                   "], strides [%" PRId64 ",%" PRId64 ",%" PRId64 ",%" PRId64 "]",
                   view_name(s, i, field, name), region->count[0], region->count[1], region->count[2], region->count[3],
                   v->stride[0], v->stride[1], v->stride[2], v->stride[3]);
  return NR_OK;
}

static bool same_memory(const nr_view *a, const nr_view *b) {
  return a->data == b->data && a->dtype == b->dtype && a->stride[0] == b->stride[0] && a->stride[1] == b->stride[1] &&
         a->stride[2] == b->stride[2] && a->stride[3] == b->stride[3];
}

static bool same_region(const nr_region *a, const nr_region *b) {
  if (a->address != b->address || a->size != b->size)
    return false;
  for (int i = 0; i < 4; i++)
    if (a->count[i] != b->count[i] || a->stride[i] != b->stride[i])
      return false;
  return true;
}

typedef struct used_view {
  const nr_segment *segment;
  const nr_field *field;
  int32_t index;
  nr_region region;
} used_view;

/* In place (rows of one segment), or one parameter that two segments share. */
static bool may_coincide(const used_view *output, const used_view *other, nr_direction direction) {
  const nr_view *a = nr_view_at(output->segment, output->field->offset);
  const nr_view *b = nr_view_at(other->segment, other->field->offset);
  if (output->field == other->field)
    return output->field->primal && output->segment != other->segment && a->dtype == b->dtype &&
           same_region(&output->region, &other->region);
  return output->segment == other->segment && output->field->shape == NR_SHAPE_ROWS &&
         other->field->shape == NR_SHAPE_ROWS && other->field->role[direction] == NR_INPUT && same_memory(a, b);
}

/* What a view spans, which is all that most pairs need to be told apart. */
typedef struct extent {
  uintptr_t low, high;
  int16_t segment, field;
} extent;

static used_view use_view(const nr_segment *segments, nr_direction direction, const extent *e) {
  used_view used = {&segments[e->segment], &nr_fields[e->field], e->segment, {0}};
  check_view(used.segment, used.index, direction, used.field, &used.region); /* which it has passed */
  return used;
}

/* Each output against each other view, in the order of segments and fields. */
static nr_status check_overlaps(const nr_segment *segments, const extent *extents, int n, nr_direction direction) {
  for (int i = 0; i < n; i++) {
    if (nr_fields[extents[i].field].role[direction] != NR_OUTPUT)
      continue;
    for (int j = 0; j < n; j++) {
      if (extents[i].high <= extents[j].low || extents[j].high <= extents[i].low)
        continue;
      if (j <= i && nr_fields[extents[j].field].role[direction] == NR_OUTPUT)
        continue; /* itself, or a pair that was looked at from the other side */
      used_view a = use_view(segments, direction, &extents[i]), b = use_view(segments, direction, &extents[j]);
      if (!nr_regions_overlap(&a.region, &b.region) || may_coincide(&a, &b, direction))
        continue;
      char output[NAME_SIZE], other[NAME_SIZE];
      return nr_fail(NR_ERROR_INVALID, "%s: overlaps %s; expected outputs that share no memory with other tensors",
                     view_name(a.segment, a.index, a.field, output), view_name(b.segment, b.index, b.field, other));
    }
  }
  return NR_OK;
}

static nr_status check_dtypes(const nr_segment *s, int32_t i, nr_direction direction, bool mixed) {
  const nr_view *row = NULL;
  char name[NAME_SIZE];
  for (int f = 0; f < NR_NUM_FIELDS; f++) {
    const nr_field *field = &nr_fields[f];
    const nr_view *v = nr_view_at(s, field->offset);
    if (!v->data || !nr_field_used(s, direction, field))
      continue;
    if (!nr_dtype_name(v->dtype))
      return nr_fail(NR_ERROR_INVALID, "%s: dtype %d, expected NR_F32, NR_F16, NR_BF16 or NR_F64",
                     view_name(s, i, field, name), (int)v->dtype);
    if (mixed)
      continue;
    if (v->dtype == NR_F64)
      return nr_fail(NR_ERROR_UNSUPPORTED, "%s: float64, which only the reference backend takes",
                     view_name(s, i, field, name));
    if (field->shape == NR_SHAPE_STATISTICS && v->dtype != NR_F32)
      return nr_fail(NR_ERROR_UNSUPPORTED, "%s: %s, expected float32 statistics", view_name(s, i, field, name),
                     nr_dtype_name(v->dtype));
    if (field->shape != NR_SHAPE_ROWS)
      continue;
    if (row && row->dtype != v->dtype)
      return nr_fail(NR_ERROR_UNSUPPORTED, "%s: %s, expected %s as the segment's other rows",
                     view_name(s, i, field, name), nr_dtype_name(v->dtype), nr_dtype_name(row->dtype));
    row = v;
  }
  return NR_OK;
}

static nr_status check_shape(const nr_segment *s, int32_t i) {
  char name[NAME_SIZE];
#define REFUSE(format, ...) nr_fail(NR_ERROR_INVALID, "%s: " format, segment_name(s, i, name), __VA_ARGS__)
  if (s->batch < 0 || s->length < 0 || s->heads < 0)
    return REFUSE("batch %" PRId64 ", length %" PRId64 ", heads %" PRId64 ", expected none below 0", s->batch,
                  s->length, s->heads);
  if (s->dim < 2 || s->dim > NR_MAX_DIM || s->dim % 2)
    return REFUSE("dim %" PRId64 ", expected an even number from 2 to %d", s->dim, NR_MAX_DIM);
  int64_t elements = s->dim;
  if (__builtin_mul_overflow(elements, s->heads ? s->heads : 1, &elements) ||
      __builtin_mul_overflow(elements, s->length ? s->length : 1, &elements) ||
      __builtin_mul_overflow(elements, s->batch ? s->batch : 1, &elements) ||
      elements > INT64_MAX >> 16) /* so that a workspace has a size */
    return REFUSE("%s", "batch * length * heads * dim is too large");
  if ((unsigned)s->norm > NR_NORM_RMS_AFFINE)
    return REFUSE("norm %d, expected NR_NORM_NONE, NR_NORM_LAYER, NR_NORM_LAYER_AFFINE, NR_NORM_RMS or "
                  "NR_NORM_RMS_AFFINE",
                  (int)s->norm);
  if ((unsigned)s->scope > NR_SCOPE_ALL_HEADS)
    return REFUSE("scope %d, expected NR_SCOPE_HEAD or NR_SCOPE_ALL_HEADS", (int)s->scope);
  if (!(s->eps >= 0) || !isfinite(s->eps))
    return REFUSE("eps %g, expected a finite number of at least 0", s->eps);
  if (s->rope_width == 0 && !s->grad_cos.data && !s->grad_sin.data)
    return NR_OK;
  if (s->rope_dim < 2 || s->rope_dim > s->dim || s->rope_dim % 2)
    return REFUSE("rope_dim %" PRId64 ", expected an even number from 2 to dim %" PRId64, s->rope_dim, s->dim);
  if (s->rope_width && (s->rope_width < 2 || s->rope_width % 2 || s->rope_dim % s->rope_width))
    return REFUSE("rope_width %" PRId64 ", expected an even divisor of rope_dim %" PRId64, s->rope_width, s->rope_dim);
  if (s->rope_length < 0 || s->rope_length > INT64_MAX / 4)
    return REFUSE("rope_length %" PRId64 ", expected a number of table rows", s->rope_length);
  if (s->rope_position < INT64_MIN / 4 || s->rope_position > INT64_MAX / 4)
    return REFUSE("rope_position %" PRId64 ", too far from 0", s->rope_position);
#undef REFUSE
  return NR_OK;
}

/* A gradient is summed over what its parameter is shared over, so both must be shared over the same axes. */
static nr_status check_broadcast(const nr_segment *s, int32_t i, nr_direction direction, const nr_field *field) {
  const nr_view *gradient = nr_view_at(s, field->offset), *primal = nr_view_at(s, field->primal);
  if (!field->primal || field->role[direction] != NR_OUTPUT || !gradient->data || !primal->data)
    return NR_OK;
  bool table = field->shape == NR_SHAPE_TABLE;
  if ((s->heads > 1 && !gradient->stride[2] != !primal->stride[2]) ||
      (table && s->batch > 1 && !gradient->stride[0] != !primal->stride[0])) {
    char name[NAME_SIZE];
    return nr_fail(NR_ERROR_INVALID, "%s: expected a stride of 0 on the axes where %s has one, and only there",
                   view_name(s, i, field, name), &field->name[sizeof "grad_" - 1]);
  }
  return NR_OK;
}

nr_status nr_validate_addresses(const nr_segment *segments, int32_t count, nr_direction direction) {
  extent extents[NR_MAX_SEGMENTS * NR_NUM_FIELDS];
  int n = 0;
  for (int32_t i = 0; i < count; i++)
    for (int f = 0; f < NR_NUM_FIELDS; f++) {
      nr_region region;
      nr_status status = check_view(&segments[i], i, direction, &nr_fields[f], &region);
      if (status != NR_OK)
        return status;
      if (region.size)
        extents[n++] = (extent){region.low, region.high, (int16_t)i, (int16_t)f};
    }
  return check_overlaps(segments, extents, n, direction);
}

nr_status nr_validate(const nr_segment *segments, int32_t count, nr_direction direction, bool mixed) {
  for (int32_t i = 0; i < count; i++) {
    nr_status status = check_shape(&segments[i], i);
    if (status == NR_OK)
      status = check_dtypes(&segments[i], i, direction, mixed);
    for (int f = 0; f < NR_NUM_FIELDS && status == NR_OK; f++)
      status = check_broadcast(&segments[i], i, direction, &nr_fields[f]);
    if (status != NR_OK)
      return status;
  }
  return nr_validate_addresses(segments, count, direction);
}
