#include "api/fields.h"

#include "plan/plan.h"

#define AT(field) offsetof(nr_segment, field)
#define FIELD(name, shape, forward, backward, primal)                                                                  \
  {#name, AT(name), NR_SHAPE_##shape, {NR_##forward, NR_##backward}, AT(primal) == AT(x) ? 0 : AT(primal)},
const nr_field nr_fields[] = {
#include "api/fields.def"
};
#undef FIELD

_Static_assert(sizeof nr_fields / sizeof *nr_fields == NR_NUM_FIELDS, "NR_NUM_FIELDS counts fields.def");

/* Rows of the segment that rotate exist. */
static bool rotates(const nr_segment *s) { return s->rope_width && s->rope_length; }

static bool wants_tables(const nr_segment *s) { return rotates(s) && (s->grad_cos.data || s->grad_sin.data); }

bool nr_field_used(const nr_segment *s, nr_direction direction, const nr_field *field) {
  if (field->role[direction] == NR_UNUSED)
    return false;
  switch (field->offset) {
  case AT(x): return direction == NR_FORWARD || s->norm != NR_NORM_NONE || wants_tables(s);
  case AT(mean): return nr_norm_centres(s->norm);
  case AT(rstd): return s->norm != NR_NORM_NONE;
  case AT(weight): return nr_norm_weighs(s->norm);
  case AT(bias): return s->norm == NR_NORM_LAYER_AFFINE && (direction == NR_FORWARD || wants_tables(s));
  case AT(cos):
  case AT(sin): return rotates(s);
  }
  return true;
}

bool nr_field_required(const nr_segment *s, nr_direction direction, const nr_field *field) {
  if (field->role[direction] == NR_UNUSED || s->batch == 0 || s->length == 0 || s->heads == 0)
    return false;
  if (field->role[direction] == NR_OUTPUT)
    return field->offset == AT(y);
  return nr_field_used(s, direction, field);
}
