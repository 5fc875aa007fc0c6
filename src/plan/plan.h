/*
 * A plan: checked segments, cut into blocks of rows, and the order of every sum. All of it follows from the shapes
 * alone, never from the number of threads or the instruction set, so results have the same bits everywhere.
 *
 * Sums. A parameter gradient is a sum over rows. Within a block, runs of a hundred rows or so are added in float32 and
 * the runs in float64, in the block's slot of the workspace; then the slots are added in float64 in the order of the
 * segments and their blocks, and rounded once. Rounding errors do not grow with the number of rows.
 */
#ifndef NR_PLAN_PLAN_H
#define NR_PLAN_PLAN_H

#include <stdbool.h>

#include "normrope.h"

enum {
  NR_MAX_DIM = 1024,
  NR_TILE = 4,  /* neighbouring positions that are worked on together */
  NR_CHUNK = 32 /* channels that kernels work on together; sums are padded to whole ones */
};

struct nr_kernels;
struct nr_backend_ops;

/* How one segment is cut: blocks of `positions` neighbouring positions, all heads of them, batch by batch; or, where
   sequences are short, of `batches` whole ones. */
typedef struct nr_cut {
  int64_t positions; /* a multiple of NR_TILE */
  int64_t batches;
  int64_t blocks_per_batch; /* 1 where batches > 1 */
  int64_t num_blocks;
  int64_t first_block;     /* number of blocks in the segments before */
  size_t slots;            /* workspace offset of the first block's slot */
  int64_t weight_channels; /* sums per slot, each a float64 and a float32: padded D, or N times that; 0 where not
                              wanted */
  int64_t bias_channels;
} nr_cut;

struct nr_plan {
  nr_direction direction;
  const struct nr_backend_ops *backend;
  const struct nr_kernels *kernels; /* CPU backend only */
  int32_t num_threads;              /* 0: ask at each run */
  int32_t num_segments;
  nr_segment *segments; /* as validated, struct_size normalised, rope_dim resolved */
  nr_cut *cuts;
  int64_t num_blocks;
  size_t workspace_size;
  double bytes; /* that a run reads and writes */
  void *own;    /* what else the backend has prepared, which its `release` frees */
};

/* Bytes of one slot of the segment's cut; 0 where the segment sums nothing. */
size_t nr_slot_size(const nr_cut *cut);

/* Bytes that a run reads and writes, by direction and segments. */
double nr_plan_bytes(const nr_plan *plan);

/* Fills cuts, num_blocks, workspace_size and bytes from direction and segments. */
void nr_plan_cut(nr_plan *plan);

/* How many threads it pays to wake for a run; below 1, it is over sooner than a thread is awake. */
double nr_plan_worth(const nr_plan *plan);

/* D padded to whole chunks; and where in those the sum of channel d is. Of bfloat16 rows the even channels of a chunk
   come before the odd ones (simd_scalar.h says why). */
static inline int64_t nr_padded(int64_t dim) { return (dim + NR_CHUNK - 1) / NR_CHUNK * NR_CHUNK; }
static inline bool nr_in_pairs(nr_dtype dtype) { return dtype == NR_BF16; }
static inline int64_t nr_place(nr_dtype dtype, int64_t d) {
  return nr_in_pairs(dtype) ? d / NR_CHUNK * NR_CHUNK + d % NR_CHUNK / 2 + d % 2 * (NR_CHUNK / 2) : d;
}

/* What block number `index` of the plan is. */
typedef struct nr_block_place {
  int32_t segment;
  int64_t first_batch, batches; /* batches [first_batch, first_batch + batches), of each of which */
  int64_t first, count;         /* positions [first, first + count) */
  size_t slot;                  /* workspace offset */
} nr_block_place;

nr_block_place nr_plan_block(const nr_plan *plan, int64_t index);

/* True if two parameter views are one and the same parameter. */
static inline bool nr_shared(const nr_view *a, const nr_view *b) { return a->data && a->data == b->data; }

/* True if no segment before `i` shares the view at byte `offset` of its segment, so that `i` is to write it. */
bool nr_first_of_shared(const nr_segment *segments, int32_t i, size_t offset);

/* The view at byte `offset` of a segment. */
static inline const nr_view *nr_view_at(const nr_segment *segment, size_t offset) {
  return (const nr_view *)((const char *)segment + offset);
}

/* What the kinds of norm have. */
static inline bool nr_norm_centres(nr_norm norm) { return norm == NR_NORM_LAYER || norm == NR_NORM_LAYER_AFFINE; }
static inline bool nr_norm_weighs(nr_norm norm) { return norm == NR_NORM_LAYER_AFFINE || norm == NR_NORM_RMS_AFFINE; }

/* Heads whose channels share statistics, and the number of those channels. */
static inline int64_t nr_group_heads(const nr_segment *s) {
  return s->norm && s->scope == NR_SCOPE_ALL_HEADS ? s->heads : 1;
}

/* The table row of position `s`, or -1 where the row passes unrotated. */
static inline int64_t nr_table_row(const nr_segment *segment, int64_t s) {
  int64_t t = s + segment->rope_position;
  return segment->rope_width && t >= 0 && t < segment->rope_length ? t : -1;
}

/* Address of element [b, s, n, 0]. */
static inline char *nr_row(const nr_view *v, int64_t b, int64_t s, int64_t n) {
  return (char *)v->data + (b * v->stride[0] + s * v->stride[1] + n * v->stride[2]) * (int64_t)(v->dtype == NR_F32 ? 4
                                                                                                : v->dtype == NR_F64
                                                                                                    ? 8
                                                                                                    : 2);
}

#endif
