/*
 * What a kernel is called with and where kernels are listed. A kernel works on one block of the plan: it never
 * allocates, logs or fails, and touches no byte outside the segment's views and the block's sums.
 */
#ifndef NR_CPU_KERNELS_KERNEL_H
#define NR_CPU_KERNELS_KERNEL_H

#include "plan/plan.h"

typedef struct nr_block {
  const nr_segment *segment;
  int64_t batch, first, count; /* positions [first, first + count) of one batch, all heads */
  int64_t next;                /* first position of at least NR_TILE that this thread works on next, or -1: a hint */
  double *weight_sum;          /* += the block's part of grad_weight, [N or 1, padded D], channels as nr_place has them;
                                  NULL: not wanted */
  double *bias_sum;            /* likewise of grad_bias */
  float *weight_part, *bias_part;         /* as large as the sums and all zero: to add up a part of them in,
                                             and to be left all zero */
  int64_t weight_channels, bias_channels; /* of the sums */
  bool stream; /* the output is to pass by the caches; rows of whole 64-byte lines begin on lines then */
} nr_block;

/* One row of grad_cos and grad_sin: what the rows of one segment add to it. */
typedef struct nr_table_block {
  const nr_segment *segment;
  int64_t batch, head; /* -1: all of them */
  int64_t position;    /* of the segment */
  double *cos_sum;     /* += [rope_dim]; NULL: not wanted */
  double *sin_sum;
} nr_table_block;

/* The kernels of one instruction set. */
typedef struct nr_kernels {
  const char *isa;
  /* By dtype of the rows: NR_F32, NR_F16, NR_BF16. */
  void (*forward[3])(const nr_block *);
  void (*backward[3])(const nr_block *);
  void (*table_gradient[3])(const nr_table_block *);
} nr_kernels;

#define KERNELS(isa, condition) extern const nr_kernels nr_kernels_##isa;
#include "cpu/kernels/kernels.def"
#undef KERNELS

#endif
