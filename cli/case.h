/*
 * A case: one problem in a safetensors file. Its metadata says what the tensors are for, either shortly, as the
 * attributes of the operator (normType, ..., eps) with tensors named as the operator's parameters, or in general, as a
 * list of segments. docs/cases.md is the format. Both become the same thing here: segments whose views are tensors of
 * the file, or outputs with a name and a shape, from which a direction's nr_segment list is bound.
 *
 * Not thread safe while it is loaded; constant afterwards, but for the outputs' data.
 */
#ifndef NR_CLI_CASE_H
#define NR_CLI_CASE_H

#include "cli/safetensors.h"
#include "normrope.h"

typedef enum nr_extent {
  NR_EXTENT_ROWS,       /* [B, S, N, D] */
  NR_EXTENT_STATISTICS, /* [B, S, N], or [B, S] across heads */
  NR_EXTENT_PARAMETER,  /* [N, D] or [D] */
  NR_EXTENT_TABLE       /* [B, R, N, rope_dim], [B, R, rope_dim] or [R, rope_dim] */
} nr_extent;

/* The views of a segment, with their names in a description and their place in nr_segment. Roles: '-' unused, 'i'
   input, 'o' output, forward and backward. */
#define NR_CASE_VIEWS(V)                                                                                               \
  V(X, x, "x", ROWS, 'i', 'i')                                                                                         \
  V(Y, y, "y", ROWS, 'o', '-')                                                                                         \
  V(MEAN, mean, "mean", STATISTICS, 'o', 'i')                                                                          \
  V(RSTD, rstd, "rstd", STATISTICS, 'o', 'i')                                                                          \
  V(WEIGHT, weight, "weight", PARAMETER, 'i', 'i')                                                                     \
  V(BIAS, bias, "bias", PARAMETER, 'i', 'i')                                                                           \
  V(COS, cos, "cos", TABLE, 'i', 'i')                                                                                  \
  V(SIN, sin, "sin", TABLE, 'i', 'i')                                                                                  \
  V(GRAD_Y, grad_y, "gradY", ROWS, '-', 'i')                                                                           \
  V(GRAD_X, grad_x, "gradX", ROWS, '-', 'o')                                                                           \
  V(GRAD_WEIGHT, grad_weight, "gradWeight", PARAMETER, '-', 'o')                                                       \
  V(GRAD_BIAS, grad_bias, "gradBias", PARAMETER, '-', 'o')                                                             \
  V(GRAD_COS, grad_cos, "gradCos", TABLE, '-', 'o')                                                                    \
  V(GRAD_SIN, grad_sin, "gradSin", TABLE, '-', 'o')

typedef enum nr_case_slot {
#define V(slot, field, key, extent, forward, backward) NR_SLOT_##slot,
  NR_CASE_VIEWS(V)
#undef V
      NR_NUM_SLOTS
} nr_case_slot;

typedef struct nr_slot {
  const char *key;
  size_t offset; /* of the view in nr_segment */
  nr_extent extent;
  char role[2]; /* by nr_direction */
} nr_slot;

extern const nr_slot nr_slots[NR_NUM_SLOTS];

/* The view of a slot in a segment. */
static inline nr_view *nr_slot_view(nr_segment *segment, nr_case_slot slot) {
  return (nr_view *)((char *)segment + nr_slots[slot].offset);
}

/* Where a view lies: in a tensor of the file, an output, both (statistics) or neither (absent). */
typedef struct nr_case_view {
  const char *name; /* the tensor's; of an absent view what it would be called, or NULL */
  const nr_tensor *input;
  int output; /* index in outputs, or -1 */
  int64_t offset, stride[4];
} nr_case_view;

typedef struct nr_case_segment {
  nr_segment shape; /* everything but the views */
  nr_case_view views[NR_NUM_SLOTS];
} nr_case_segment;

/* A tensor that a run writes. Its data is the user's of this interface to set, or NULL: not wanted. */
typedef struct nr_case_output {
  nr_tensor tensor;
  nr_direction direction;
  nr_case_slot slot; /* what it is for, by the first view in it */
  bool used;         /* by a segment */
} nr_case_output;

enum { NR_MAX_OUTPUTS = 8 * NR_MAX_SEGMENTS };

typedef struct nr_case {
  const nr_container *file; /* borrowed, must outlive the case */
  nr_case_segment segments[NR_MAX_SEGMENTS];
  int num_segments;
  nr_case_output outputs[NR_MAX_OUTPUTS];
  int num_outputs;
  json_t *description; /* private: the parsed list of segments, which owns names */
  json_t *output_list; /* private: the parsed outputs */
} nr_case;

/* Reads what the container's metadata describes and checks every view against its tensor, so that bound segments stay
   inside them. Returns a new case in *result, for nr_case_free, or an exit code and NULL. */
int nr_case_load(nr_case **result, const nr_container *file, nr_message *message);
void nr_case_free(nr_case *c);

/* Whether the file has the tensors that a direction reads; if not, the message says which is missing. */
bool nr_case_supports(const nr_case *c, nr_direction direction, nr_message *message);

/* Writes nr_segments for nr_plan_create, with those outputs that have data. Segments for which none is left are
   dropped. Returns their number; segments[k] came from c->segments[origin[k]] (origin may be NULL). */
int nr_case_bind(const nr_case *c, nr_direction direction, nr_segment segments[NR_MAX_SEGMENTS], int *origin);

/* The view in a tensor that has data. */
nr_view nr_case_view_in(const nr_case_view *view, const nr_tensor *tensor);

/* Positions [first, first + count) of batch b of a bound segment, as a segment of its own. Its tables are the rows that
   it needs; *table_row is the number of the first of them. */
nr_segment nr_case_slice(const nr_segment *segment, int64_t b, int64_t first, int64_t count, int64_t *table_row);

/* The operator's streams: names of their tensors, in the order of its parameters. */
typedef struct nr_stream {
  const char *names[NR_NUM_SLOTS]; /* by slot; NULL: none (values have no norm) */
  int projection;                  /* 0 query, 1 key, 2 value */
  bool text;
} nr_stream;

enum { NR_NUM_STREAMS = 6 };
extern const nr_stream nr_streams[NR_NUM_STREAMS];

/* How a tensor is laid under a view. */
typedef struct nr_placement {
  const char *tensor;
  bool heads_first;       /* [B, N, S, D] */
  int64_t position, head; /* of the view's first row in the tensor */
  bool strided;           /* the two below instead of the four above */
  int64_t offset, stride[4];
} nr_placement;

/* Lays a view of a segment whose shape is set; an exit code if it leaves the tensor. For both readers of metadata. */
int nr_case_place(nr_case *c, nr_case_segment *segment, nr_case_slot slot, const nr_placement *placement,
                  nr_message *message);

/* Adds an output and returns it, or NULL if there are too many. Its shape is the caller's to fill in. */
nr_case_output *nr_case_add_output(nr_case *c, const char *name, int dtype, nr_direction direction);

/* The two readers of metadata; see nr_case_load. */
int nr_case_read_operator(nr_case *c, nr_message *message);
int nr_case_read_segments(nr_case *c, nr_message *message);

#endif
