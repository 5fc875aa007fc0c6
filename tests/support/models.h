/* The models of tests/models.def: what a test builds, and docs/models.md tells. */
#ifndef NR_TESTS_MODELS_H
#define NR_TESTS_MODELS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "normrope.h"

enum { MODEL_VARIES = -1, NUM_MODELS = 58 };

typedef enum model_order { MODEL_ORDER_NONE, MODEL_ORDER_IMAGE_FIRST, MODEL_ORDER_TEXT_FIRST } model_order;

typedef enum model_rope { MODEL_ROPE_NONE, MODEL_ROPE_ALL, MODEL_ROPE_IMAGE } model_rope; /* which rows rotate */

enum {
  MODEL_SHARED = 1 << 0,         /* image and text have one weight */
  MODEL_WEIGHT_F32 = 1 << 1,     /* float32 weights beside bfloat16 rows */
  MODEL_ROW_DTYPE = 1 << 2,      /* tables of the rows' dtype; the others have float32 tables */
  MODEL_PER_BATCH = 1 << 3,      /* a table per batch */
  MODEL_PER_HEAD = 1 << 4,       /* a table per head */
  MODEL_KEY_TABLES = 1 << 5,     /* keys have tables of their own */
  MODEL_TEXT_TABLES = 1 << 6,    /* text has tables of its own */
  MODEL_LEARNED = 1 << 7,        /* the tables are parameters, whose gradient is wanted */
  MODEL_PADDING = 1 << 8,        /* some table rows are zero */
  MODEL_PACKED = 1 << 9,         /* q, k and v are slices of one projection with more behind them */
  MODEL_TEXT_KEYS = 1 << 10,     /* text has keys and values only */
  MODEL_QUERIES_APART = 1 << 11, /* queries of image and text are not joined, their keys and values are */
  MODEL_LONGER_KEYS = 1 << 12,   /* another number of keys than of queries */
  MODEL_DIFFERENTIAL = 1 << 13,  /* two queries and two keys */
  MODEL_OR_HALF = 1 << 14,       /* interleave or half, by configuration */
  MODEL_RELU = 1 << 15           /* something between norm and rope: not expressible */
};

typedef struct model {
  const char *name;
  int64_t image, text; /* tokens, or MODEL_VARIES; text 0: no text stream */
  int64_t heads, kv_heads, dim;
  nr_norm norm;
  nr_scope scope;
  double eps; /* 0 without a norm */
  int64_t width, rope_dim;
  model_order order;
  model_rope rope;
  unsigned flags; /* MODEL_... */
  const char *remark;
} model;

extern const model models[NUM_MODELS];

/* Whether normrope.h expresses the model, and whether the operator aclnnNormRopeConcat alone does. */
bool model_expressible(const model *m);
bool model_suits_operator(const model *m);

/* docs/models.md. */
void models_write_markdown(FILE *to);

/* Holds the list against a table of the same models, row by row, in comma separated values with a header; prints each
   difference and returns their number. */
int models_differences(FILE *csv);

#endif
