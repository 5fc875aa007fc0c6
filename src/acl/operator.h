/*
 * What the two operators share: a list of operands each (norm_rope_concat.def, norm_rope_concat_grad.def), from which
 * null checks, shapes, indices and the translation into segments of normrope.h are read.
 *
 * A call is six parts, one segment each: image and text of query, key and value. A text part that is not there is a
 * segment of length 0, to which only weight gradients (then zero) are bound.
 */
#ifndef NR_ACL_OPERATOR_H
#define NR_ACL_OPERATOR_H

#include <stdbool.h>
#include <stddef.h>

#include "aclnn/aclnn_base.h"
#include "normrope.h"

typedef enum nr_part {
  NR_PART_QUERY,
  NR_PART_KEY,
  NR_PART_VALUE,
  NR_PART_TEXT_QUERY, /* the text part of p is p + NR_PART_TEXT_QUERY */
  NR_PART_TEXT_KEY,
  NR_PART_TEXT_VALUE,
  NR_NUM_PARTS
} nr_part;

typedef enum nr_layout {
  NR_LAYOUT_ROWS,       /* [batch, seq, headNum, headDim], of one part */
  NR_LAYOUT_JOINED,     /* [batch, headNum, seq + seqEncoder, headDim], of an image part and its text part */
  NR_LAYOUT_STATISTICS, /* [batch, seq, headNum, 1], FLOAT32 */
  NR_LAYOUT_CHANNELS,   /* [headDim] */
  NR_LAYOUT_TABLE       /* [seqRope, headDim], of the query and key parts */
} nr_layout;

typedef enum nr_need {
  NR_NEED_ALWAYS,
  NR_NEED_OPTIONAL, /* left out: not computed, or a text part that is not there */
  NR_NEED_TEXT_KEY, /* required with encoderKey */
  NR_NEED_MEAN,     /* required where the part is there and its norm has one, and ignored elsewhere; as output, so */
  NR_NEED_RSTD,     /* with isTraining only */
  NR_NEED_WEIGHT,
  NR_NEED_BIAS,
  NR_NEED_ROPE /* required with a rope, and ignored without */
} nr_need;

typedef struct nr_operand {
  const char *name; /* of the parameter, in messages too */
  nr_part part;     /* the image part of joined operands; of no meaning for tables */
  nr_layout layout;
  nr_need need;
  size_t field; /* offset of the view in nr_segment */
} nr_operand;

enum { NR_MAX_OPERANDS = 35 };

typedef struct nr_operator {
  const char *name;
  nr_direction direction;
  const nr_operand *operands; /* in prototype order: inputs, then outputs */
  int num_inputs, num_operands;
} nr_operator;

extern const nr_operator nr_operator_forward, nr_operator_backward;

typedef struct nr_attributes {
  int64_t norm_type, norm_added_type, rope_type, concat_order;
  double eps;       /* forward only */
  bool is_training; /* forward only */
} nr_attributes;

/* A checked call, as segments. */
typedef struct nr_call {
  const nr_operator *op;
  nr_backend backend; /* of the current context's device in the first phase */
  nr_segment segments[NR_NUM_PARTS];
  int64_t start[NR_NUM_PARTS]; /* of the part in its joined sequence */
  struct {
    bool given, used, empty;
    int64_t offset; /* of the view in its storage, in bytes */
  } operands[NR_MAX_OPERANDS];
} nr_call;

/* Gives operand `index`, one that is used, its storage's address. */
void nr_call_place(nr_call *call, int index, void *storage);

/* A plan for the call with its present addresses, overlaps checked. Codes as the first phase's. */
aclnnStatus nr_call_plan(const nr_call *call, nr_plan **plan);

/* The first phase: `tensors` are the operands in their order. Everything that can be wrong with a call is found here.
 */
aclnnStatus nr_operator_prepare(const nr_operator *op, const aclTensor *const *tensors, const nr_attributes *attributes,
                                uint64_t *workspaceSize, aclOpExecutor **executor);

#endif
