/*
 * The reference backward against finite differences of the reference forward, both in double precision: what the
 * definition of the gradients is worth. Every input, weight, bias and table entry of a small problem is moved.
 */
#ifndef NR_CLI_GRADCHECK_H
#define NR_CLI_GRADCHECK_H

#include "cli/cli.h"
#include "normrope.h"

/* One problem: image and text, query, key and value. Small and odd, so that swapped extents show. */
typedef struct nr_combination {
  char name[64];
  nr_norm norm, norm_added;
  nr_scope scope;
  int order;
  int64_t batch, heads, kv_heads, dim, image, text;
  int64_t rope_width, rope_dim, rope_start, rope_length;
  bool table_batches, table_heads; /* tables of their own per batch, per head */
  bool weight_heads;               /* weights [N, D] */
  bool shared;                     /* text rows use the image's weights */
} nr_combination;

/* Kinds of parameters, each with its worst error. */
enum { NR_GRAD_INPUT, NR_GRAD_WEIGHT, NR_GRAD_BIAS, NR_GRAD_TABLE, NR_NUM_GRADS };

/* The i-th combination: all norms, ropes and orders, then the general options under each norm. False past the end. */
bool nr_combination_get(int i, nr_combination *combination);

/* Worst |difference - gradient| of each kind, relative to the tensor's largest gradient (at least 1). Returns an exit
   code: of the run, not of the judgement. */
int nr_gradcheck(const nr_combination *combination, int64_t seed, double worst[NR_NUM_GRADS], nr_message *message);

#endif
