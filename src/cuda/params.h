/* What the host tells the kernels: plain structures, passed by value. */
#ifndef NR_CUDA_PARAMS_H
#define NR_CUDA_PARAMS_H

#include <stdint.h>

enum {
  NR_CUDA_SEGMENTS = 6, /* of one launch, so that its parameters stay below 4 KB */
  NR_CUDA_LANES = 32,   /* threads of a warp */
  NR_CUDA_MAX_DIM = 1 << 20,
  NR_CUDA_VECTOR = 16, /* bytes of the widest access */
  /* The fast kernels: D a whole number of vectors. The general ones: any D. */
  NR_CUDA_FAST_THREADS = 128,
  NR_CUDA_GENERAL_CHANNELS = 32, /* for each thread */
  NR_CUDA_GENERAL_THREADS = 64,
  /* Sums over the chunks: columns of a block and the threads that share out the chunks of each. */
  NR_CUDA_SUM_COLUMNS = 8,
  NR_CUDA_SUM_THREADS = 64,
  NR_CUDA_SUM_JOBS = 16,
  NR_CUDA_SUM_SOURCES = 80,
  NR_CUDA_TABLE_THREADS = 256,
  NR_CUDA_TABLE_SEGMENTS = 64
};

/* nr_view for kernels: strides in bytes. */
typedef struct nr_cuda_view {
  char *data; /* NULL: absent */
  int64_t batch, sequence, head, channel;
  int32_t dtype; /* nr_dtype */
  int32_t wide;  /* rows lie so that 16-byte accesses are allowed */
} nr_cuda_view;

/* What a kernel of rows is compiled for. */
typedef enum nr_cuda_form {
  NR_CUDA_GENERAL, /* any D, norm, scope and weights */
  NR_CUDA_RMS,     /* D whole vectors, not more than a warp has; statistics of a head without a mean, or no norm */
  NR_CUDA_LAYER,   /* the same with a mean */
  NR_CUDA_HEADS,   /* D as these two; statistics across heads, or weights with heads */
  NR_CUDA_FORMS
} nr_cuda_form;

/* Vectors that each thread of the fast kernels has of a row. Four share out better what is done once for a row, where
   no sums need the registers; across heads two, for more teams to take them. */
#define NR_CUDA_VECTORS(form, backward) ((backward) || (form) == NR_CUDA_HEADS ? 2 : 4)

/* What waits in shared memory for each of a thread's channels: a weight, a cosine, a sine, and forward a bias where
   there may be one. */
#define NR_CUDA_SLOTS(form, backward) ((backward) || (form) == NR_CUDA_RMS ? 3 : 4)

/* How channel i finds the partner that it turns with. */
enum {
  NR_CUDA_STRAIGHT, /* no row turns */
  NR_CUDA_ADJACENT, /* width 2 over all channels: its neighbour */
  NR_CUDA_HALVES,   /* width D: another vector of the same thread */
  NR_CUDA_EXCHANGE  /* anything else, by way of shared memory */
};

/* One segment of a launch of rows. Threads work on a row in teams of `lanes`; vector number v of a row, of 16 bytes, is
   vector v / spread of lane v % spread. A block works on one chunk: some tokens (b, s), some heads of each. */
typedef struct nr_cuda_segment {
  nr_cuda_view in; /* x, or grad_y */
  nr_cuda_view x;  /* backward, with a norm */
  nr_cuda_view out;
  nr_cuda_view mean, rstd;
  nr_cuda_view weight, cos, sin, bias; /* in this order: the kernels' slots */
  int64_t rope_length, rope_position;
  float *weight_sums, *bias_sums; /* [chunks, columns] */
  float *spill; /* [chunks, ...], 16-byte aligned, where shared memory has no room for a block's sums; NULL: it has */
  int32_t tokens, length, heads, first_block, chunk_tokens;
  int32_t dim, rope_dim, rope_width, pairing;
  int32_t lanes, spread;
  int32_t chunk_heads, head_chunks;
  int32_t team_sums; /* rows of sums that a team has: one for each head that it takes, or 1 */
  /* Teams take different heads of one token, so that each keeps sums of its own; else different tokens, and each all
     heads of the chunk, so that a token's tables serve them. */
  int32_t by_heads;
  int32_t weight_columns, bias_columns; /* D, or heads * D; 0: not wanted */
  int32_t copies, centres, normalises, all_heads;
  int32_t heads_staged;                    /* weights or tables differ from head to head */
  int32_t streams;                         /* the output is larger than the caches */
  float count_inverse, count_inverse_rest; /* 1 / the channels that share statistics, and what the first one lacks */
  float eps, eps_scaled;                   /* the latter times 2^120 */
} nr_cuda_segment;

typedef struct nr_cuda_rows {
  nr_cuda_segment segments[NR_CUDA_SEGMENTS];
  int32_t num_segments;
} nr_cuda_rows;

/* A parameter gradient: the sum of float32 rows. Column c is channel c % dim of head c / dim. */
typedef struct nr_cuda_sum {
  nr_cuda_view out;
  int64_t columns, first_block;
  int32_t dim, first_source, num_sources;
} nr_cuda_sum;

typedef struct nr_cuda_sums {
  nr_cuda_sum jobs[NR_CUDA_SUM_JOBS];
  struct {
    const float *rows; /* [num_rows, columns] */
    int64_t num_rows;
  } sources[NR_CUDA_SUM_SOURCES];
  int32_t num_jobs;
} nr_cuda_sums;

/* A gradient of cosines or sines, and the segments that share it. */
typedef struct nr_cuda_table {
  nr_cuda_view out;
  int64_t batches, rows, heads; /* of out */
  int32_t rope_dim, of_sines, num_segments;
  struct {
    nr_cuda_view grad_y, x, mean, rstd, weight, bias;
    int64_t batches, length, heads, rope_position;
    int32_t rope_width;
  } segments[NR_CUDA_TABLE_SEGMENTS];
} nr_cuda_table;

#endif
