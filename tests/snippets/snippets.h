/* What the snippets in the documents take as given: arrays of bfloat16 and float32, sizes, segments, a plan. */
#include <stdio.h>
#include <stdlib.h>

#include "normrope.h"

extern int64_t B, S, N, D, R, N_kv, S_text, S_joined;
extern uint16_t *query, *key, *qkv, *gamma, *joined, *attention_query, *attention_key;
extern uint16_t *grad_query, *grad_qkv, *grad_attention_query;
extern float *grad_gamma, *rstd, *cosines, *sines, *grad_cosines, *grad_sines;
extern nr_segment q, k, v, image, text, whole, interleaved, half, partial, sectioned;
extern nr_problem problem;
extern nr_plan *plan, *backward;
extern void *workspace, *projections[], *outputs[];
extern size_t size;
extern int layers;
