/*
 * normrope: the step between the QKV projections and attention of a multimodal transformer, in one pass over memory:
 * normalise each head, rotate by position, join the streams; forward and backward.
 *
 * Everything is a segment: the rows of one stream (say, the image queries) on their way through norm and rope between
 * two strided views. Concat, transpose, layout, packed QKV and grouped heads are nothing but views, so a call is a
 * short list of segments. Words: B batch, S sequence length, N heads, D channels of a head; a row is the D numbers of
 * one (b, s, n).
 *
 * How to use it:
 *
 *     nr_segment q = nr_segment_default();             // norm none, rope none, everything absent
 *     q.batch = B, q.length = S, q.heads = N, q.dim = D;
 *     q.norm = NR_NORM_RMS_AFFINE;
 *     q.x = nr_view_bsnd(query, NR_BF16, S, N, D);     // strides are in elements
 *     q.y = nr_view_bnsd(joined, NR_BF16, S_joined, N, D);
 *     q.weight = nr_view_channels(gamma, NR_BF16);
 *     nr_problem problem = nr_problem_default();
 *     problem.direction = NR_FORWARD, problem.segments = &q, problem.num_segments = 1;
 *     nr_plan *plan;
 *     if (nr_plan_create(&plan, &problem) != NR_OK) puts(nr_last_error());
 *     void *workspace = malloc(nr_plan_workspace_size(plan));
 *     nr_plan_run(plan, NULL, workspace, nr_plan_workspace_size(plan), NULL);
 *     nr_plan_destroy(plan);
 *
 * Promises: all arithmetic in float32 on exactly converted inputs and one rounding to nearest even into the output;
 * the same bits for any number of threads, on every run and with every instruction set; a NaN in an output is the
 * quiet NaN with a zero payload, except in segments without norm and rope, whose rows are copied bit by bit; a refused
 * call changes no byte; nothing is allocated while a plan runs, but what OpenMP wants for its threads.
 *
 * Thread safety: a plan is immutable. Any number of threads may run one plan at once, each with its own workspace and
 * outputs. Errors are per thread.
 */
#ifndef NORMROPE_H
#define NORMROPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NR_VERSION_MAJOR 0
#define NR_VERSION_MINOR 1
#define NR_VERSION_PATCH 0

#if defined(__GNUC__)
#define NR_API __attribute__((visibility("default")))
#else
#define NR_API
#endif

/* What a call returns. The numbers are fixed. */
typedef enum nr_status {
  NR_OK = 0,
  NR_ERROR_NULL = 1,        /* a required address or view is absent */
  NR_ERROR_INVALID = 2,     /* a value, shape, stride, overlap or size that no backend would take */
  NR_ERROR_UNSUPPORTED = 3, /* valid, but not with this backend or instruction set; the message says why */
  NR_ERROR_MEMORY = 4,      /* the host is out of memory */
  NR_ERROR_DEVICE = 5       /* the device failed */
} nr_status;

typedef enum nr_dtype {
  NR_F32 = 0,
  NR_F16 = 1,  /* IEEE binary16 */
  NR_BF16 = 2, /* the upper half of a binary32 */
  NR_F64 = 3   /* reference backends only */
} nr_dtype;

/* y = gamma * (x - mean) * rstd + beta, with what the type lacks left out. Variance is biased (divided by the count).
 */
typedef enum nr_norm {
  NR_NORM_NONE = 0,
  NR_NORM_LAYER = 1,        /* (x - mean) * rstd, rstd = 1 / sqrt(var + eps) */
  NR_NORM_LAYER_AFFINE = 2, /* gamma * that + beta */
  NR_NORM_RMS = 3,          /* x * rstd, rstd = 1 / sqrt(mean(x^2) + eps) */
  NR_NORM_RMS_AFFINE = 4    /* gamma * that; no bias */
} nr_norm;

/* What the statistics of a norm run over. */
typedef enum nr_scope {
  NR_SCOPE_HEAD = 0,     /* the D channels of a row */
  NR_SCOPE_ALL_HEADS = 1 /* the N * D channels of a (b, s) */
} nr_scope;

typedef enum nr_direction { NR_FORWARD = 0, NR_BACKWARD = 1 } nr_direction;

typedef enum nr_backend {
  NR_BACKEND_CPU = 0,
  NR_BACKEND_REFERENCE = 1, /* the definition: double precision, one thread, any mixture of dtypes, slow */
  NR_BACKEND_MAGNITUDE = 2, /* the reference's formulas with every term replaced by its magnitude: a result's yardstick
                               for rounding errors (docs/numerics.md) */
  NR_BACKEND_CUDA = 3       /* an NVIDIA device of compute capability 8.0 or more: the thread's current one when a plan
                               runs. All addresses are the device's, the workspace too (docs/cuda.md) */
} nr_backend;

/* A strided array of elements, indexed [batch, sequence, head, channel]. The library never owns the memory. */
typedef struct nr_view {
  void *data;        /* address of element [0, 0, 0, 0], aligned to its dtype; NULL: absent */
  int64_t stride[4]; /* in elements, any sign; a stride of 0 broadcasts, which only an input may */
  nr_dtype dtype;
  const char *name; /* what messages call it; NULL: "SEGMENT.FIELD". Borrowed until the plan is destroyed */
} nr_view;

/*
 * One stream's rows. Views whose comment names fewer axes ignore the strides of the others.
 *
 * Forward reads x and, where norm or rope ask for them, weight, bias, cos, sin; writes y and, where given, mean, rstd.
 * Backward reads grad_y, x (needed with a norm), mean (1, 2), rstd (1-4), weight (2, 4), bias (only for table
 * gradients), cos, sin; writes those of grad_x, grad_weight, grad_bias, grad_cos, grad_sin that are given.
 *
 * Outputs are assigned, never accumulated. Segments that name the same grad_weight (grad_bias, grad_cos, grad_sin)
 * address share that parameter, and the gradient is the sum over them. A parameter gradient that nothing contributes to
 * is filled with zeros. An output may not overlap itself, an input or another output, except that y may be exactly x
 * (same address, strides and dtype), and grad_x exactly x or grad_y, of the same segment.
 *
 * For NR_BACKEND_CPU and NR_BACKEND_CUDA x, y, grad_x, grad_y share one dtype of F32, F16, BF16; mean and rstd are F32;
 * parameters and tables may each have a dtype of their own, of these three.
 */
typedef struct nr_segment {
  size_t struct_size; /* sizeof(nr_segment) as the caller knows it: new fields come last and default to zero */
  const char *name;   /* what messages call the segment; NULL: "segment I" */

  int64_t batch;  /* B >= 0 */
  int64_t length; /* S >= 0 */
  int64_t heads;  /* N >= 0; segments may differ (grouped queries) */
  int64_t dim;    /* D, even, 2 to 1024 */

  nr_norm norm;
  nr_scope scope;
  double eps; /* forward: >= 0, finite */

  int64_t rope_width;    /* w: within each block of w channels, i turns with i + w/2. 2: interleave; rope_dim: half;
                            between: sectioned; 0: no rope. Even, divides rope_dim */
  int64_t rope_dim;      /* channels [0, rope_dim) rotate, the others pass; 0 means D. Even, at most D */
  int64_t rope_length;   /* R: rows in the tables; 0: no row rotates */
  int64_t rope_position; /* row s takes the tables' row t = s + rope_position; where t is outside [0, R) it passes
                            unrotated. Any sign */

  nr_view x;      /* [B, S, N, D] */
  nr_view y;      /* [B, S, N, D] */
  nr_view mean;   /* [B, S, N], or [B, S] with NR_SCOPE_ALL_HEADS */
  nr_view rstd;   /* as mean */
  nr_view weight; /* gamma: [N, D]; head stride 0: one [D] for all heads */
  nr_view bias;   /* beta: as weight */
  nr_view cos;    /* [B, R, N, rope_dim], used as given: the entries of a pair may differ and be no true angle */
  nr_view sin;    /* as cos */

  nr_view grad_y;      /* [B, S, N, D] */
  nr_view grad_x;      /* [B, S, N, D] */
  nr_view grad_weight; /* [N, D]; head stride 0: [D], summed over heads. As weight broadcasts, so must this */
  nr_view grad_bias;   /* as grad_weight */
  nr_view grad_cos; /* [B, R, N, rope_dim]; batch or head stride 0: summed over it. As cos broadcasts, so must this */
  nr_view grad_sin; /* as grad_cos */
} nr_segment;

typedef struct nr_problem {
  size_t struct_size; /* sizeof(nr_problem) as the caller knows it */
  nr_direction direction;
  nr_backend backend;
  const nr_segment *segments; /* [num_segments], all with the same struct_size; read only while planning */
  int32_t num_segments;       /* 0 to NR_MAX_SEGMENTS */
  int32_t num_threads;        /* 0: NORMROPE_NUM_THREADS, else OpenMP's rule. Never changes a bit of the results */
  const char *isa;            /* CPU instruction set, a name of nr_isa(); NULL: NORMROPE_ISA, else the best usable */
} nr_problem;

enum { NR_MAX_SEGMENTS = 64 };

typedef struct nr_plan nr_plan;

/* Descriptors with their size set, everything absent and defaults: backward, CPU; norm none, rope none, eps 1e-6. */
static inline nr_problem nr_problem_default(void) {
  nr_problem p;
  memset(&p, 0, sizeof p);
  p.struct_size = sizeof p;
  p.direction = NR_BACKWARD;
  return p;
}

static inline nr_segment nr_segment_default(void) {
  nr_segment s;
  memset(&s, 0, sizeof s);
  s.struct_size = sizeof s;
  s.eps = 1e-6;
  return s;
}

/* Views of contiguous arrays. Adjust the strides, or the address, for slices of larger ones. */
static inline nr_view nr_view_strided(const void *data, nr_dtype dtype, int64_t batch, int64_t sequence, int64_t head,
                                      int64_t channel) {
  nr_view v;
  memset(&v, 0, sizeof v);
  memcpy(&v.data, &data, sizeof data);
  v.dtype = dtype;
  v.stride[0] = batch;
  v.stride[1] = sequence;
  v.stride[2] = head;
  v.stride[3] = channel;
  return v;
}

/* [B, S, N, D], what projections produce. S is the length of the array, not of the segment. */
static inline nr_view nr_view_bsnd(const void *data, nr_dtype dtype, int64_t S, int64_t N, int64_t D) {
  return nr_view_strided(data, dtype, S * N * D, N * D, D, 1);
}

/* [B, N, S, D], what attention wants. */
static inline nr_view nr_view_bnsd(const void *data, nr_dtype dtype, int64_t S, int64_t N, int64_t D) {
  return nr_view_strided(data, dtype, N * S * D, D, S * D, 1);
}

/* [B, S, N] statistics; with NR_SCOPE_ALL_HEADS pass N = 1. */
static inline nr_view nr_view_statistics(const void *data, nr_dtype dtype, int64_t S, int64_t N) {
  return nr_view_strided(data, dtype, S * N, N, 1, 0);
}

/* [D] parameters, shared by all heads. */
static inline nr_view nr_view_channels(const void *data, nr_dtype dtype) {
  return nr_view_strided(data, dtype, 0, 0, 0, 1);
}

/* [N, D] parameters. */
static inline nr_view nr_view_heads(const void *data, nr_dtype dtype, int64_t D) {
  return nr_view_strided(data, dtype, 0, 0, D, 1);
}

/* [R, rope_dim] tables, shared by batch and heads. */
static inline nr_view nr_view_table(const void *data, nr_dtype dtype, int64_t rope_dim) {
  return nr_view_strided(data, dtype, 0, rope_dim, 0, 1);
}

/*
 * Checks the whole problem once and fixes the order of every sum. On success *plan is the caller's to destroy; on
 * failure it is NULL and nr_last_error() says which view of which segment, what was found and what was expected.
 * Segments' addresses are kept as the default for runs; views and their strides are copied.
 * Errors: NULL, INVALID, UNSUPPORTED, MEMORY.
 */
NR_API nr_status nr_plan_create(nr_plan **plan, const nr_problem *problem);

/* Frees a plan that no thread is running. NULL is fine. */
NR_API void nr_plan_destroy(nr_plan *plan);

/* Bytes of scratch that a run needs, possibly 0 (and 0 of NULL); 64-byte alignment serves best, 8 is required. It does
   not depend on the number of threads. */
NR_API size_t nr_plan_workspace_size(const nr_plan *plan);

/*
 * Runs the plan. segments: NULL for the addresses given when planning, else [num_segments] descriptors that differ from
 * the planned ones in their addresses only (anything else is INVALID); overlaps are checked again. workspace: the
 * caller's, of at least nr_plan_workspace_size bytes, its contents neither read nor meaningful afterwards. stream: NULL
 * on the CPU, where the results are there on return; for NR_BACKEND_CUDA a cudaStream_t (NULL: the default stream) of
 * the current device, in which the run is queued: the call does not wait for it, so workspace and tensors stay in use
 * until the stream has got there, and a graph may capture it. The plan may be destroyed at once.
 * Errors: NULL, INVALID, DEVICE. It allocates nothing, but what OpenMP wants for its threads.
 */
NR_API nr_status nr_plan_run(const nr_plan *plan, const nr_segment *segments, void *workspace, size_t workspace_size,
                             void *stream);

/* The text of this thread's last failure; "" before the first. Valid until this thread's next failure. */
NR_API const char *nr_last_error(void);

/* "NR_ERROR_INVALID" and so on; "unknown status" for other numbers. */
NR_API const char *nr_status_name(nr_status status);

/* Bytes of an element: 4, 2, 2, 8; 0 for other numbers. */
NR_API size_t nr_dtype_size(nr_dtype dtype);

/* "float32", "float16", "bfloat16", "float64"; NULL for other numbers. */
NR_API const char *nr_dtype_name(nr_dtype dtype);

/* Exact conversion to double, and rounding to nearest even from double, of element `index` of an array. */
NR_API double nr_load(const void *array, nr_dtype dtype, int64_t index);
NR_API void nr_store(void *array, nr_dtype dtype, int64_t index, double value);

/* CPU instruction sets that this build has kernels for, slowest first: the name of the i-th, NULL past the end. */
NR_API const char *nr_isa(int32_t i);

/* 1 if the processor and the operating system let this machine use it, else 0. */
NR_API int nr_isa_usable(const char *isa);

/* What a problem without an isa gets now: NORMROPE_ISA where usable, else the best usable. */
NR_API const char *nr_isa_default(void);

/* The number of threads that a problem with num_threads = 0 gets now. */
NR_API int32_t nr_default_threads(void);

/* "0.1.0", of the library that runs (the NR_VERSION macros are of the header compiled against). */
NR_API const char *nr_version(void);

#ifdef __cplusplus
}
#endif

#endif
