/*
 * The views of a segment, one row each in fields.def: what shape they have and whether a direction reads or writes
 * them.
 */
#ifndef NR_API_FIELDS_H
#define NR_API_FIELDS_H

#include <stdbool.h>
#include <stddef.h>

#include "normrope.h"

typedef enum nr_shape {
  NR_SHAPE_ROWS,       /* [B, S, N, D] */
  NR_SHAPE_STATISTICS, /* [B, S, N], or [B, S] */
  NR_SHAPE_PARAMETER,  /* [N, D] */
  NR_SHAPE_TABLE       /* [B, R, N, rope_dim] */
} nr_shape;

typedef enum nr_role { NR_UNUSED, NR_INPUT, NR_OUTPUT } nr_role;

typedef struct nr_field {
  const char *name;
  size_t offset; /* in nr_segment */
  nr_shape shape;
  nr_role role[2]; /* by nr_direction */
  size_t primal;   /* of a parameter's gradient: offset of the parameter, which it broadcasts like; else 0 */
} nr_field;

extern const nr_field nr_fields[];
enum { NR_NUM_FIELDS = 14 };

/* Whether the segment makes an input required in this direction, given its norm, rope and wanted outputs. */
bool nr_field_required(const nr_segment *segment, nr_direction direction, const nr_field *field);

/* Whether the direction looks at the field at all, given the segment's norm and rope: false for inputs and statistics
   that they make useless. */
bool nr_field_used(const nr_segment *segment, nr_direction direction, const nr_field *field);

#endif
