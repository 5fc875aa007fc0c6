/* The CUDA backend: cuts segments into chunks, and puts launches into the caller's stream. */
#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/verbose.h"
#include "cuda/params.h"
#include "cuda/runtime.h"
#include "plan/backend.h"

extern const void *const nr_cuda_rows_f32[NR_CUDA_FORMS][2],
    *const nr_cuda_rows_f16[NR_CUDA_FORMS][2], *const nr_cuda_rows_bf16[NR_CUDA_FORMS][2],
                                                   *const nr_cuda_sums_kernel, *const nr_cuda_table_kernel;

/* What a launch may take with every driver; gradients of tables are for those of CUDA 12.1 on, as is the compiler. */
_Static_assert(sizeof(nr_cuda_rows) <= 4096 && sizeof(nr_cuda_sums) <= 4096, "parameters of at most 4 KB");
_Static_assert(sizeof(nr_cuda_table) <= 32764, "parameters of at most 32,764 bytes");

static const void *const (*const row_kernels[])[2] = {
    [NR_F32] = nr_cuda_rows_f32, [NR_F16] = nr_cuda_rows_f16, [NR_BF16] = nr_cuda_rows_bf16};

/*
 * How work is cut. All of it follows from shapes and dtypes, nothing from addresses, strides of rows or the device, so
 * the same problem has the same bits in any layout and on any device. A block must be short beside the run (many waves
 * of blocks fill the device evenly: it has some hundreds of places for them) and long beside its sums, which it writes
 * once.
 */
enum {
  CHUNK_HEADS = 12,        /* about so many heads take turns with one token's tables, */
  SHORT_CHUNK_HEADS = 6,   /* fewer where there are no sums to write for each chunk */
  TEAM_ROWS = 64,          /* at most so many rows are added up in one float32 */
  CHUNKS_WANTED = 4096,    /* of a segment, before chunks get longer */
  HEADS_CHUNKS = 1024,     /* the same where each chunk has sums of N * D columns, */
  HEADS_CHUNK_TOKENS = 8,  /* and the least tokens of one, */
  HEADS_TOKENS = 2,        /* or all, where teams take heads and there are no sums */
  SHARED_BYTES = 96 << 10, /* that every device of compute capability 8.0 and up lets a block have */
  FREE_SHARED = 40 << 10   /* that a block has without asking, whatever else a kernel has there */
};

/* Bytes that a run reads and writes from which on its outputs pass by the caches. */
static const double stream_bytes = 64 << 20;

typedef struct cut {
  nr_cuda_form form;
  int32_t lanes, spread, chunk_tokens, chunk_heads, head_chunks, team_sums, pairing;
  int64_t weight_columns, bias_columns; /* as nr_cuda_segment's */
  bool works;                           /* it has blocks */
  bool by_heads, copies;
  bool spills;                          /* a block's sums into the workspace */
  int64_t num_blocks, first_block;      /* in its launch */
  size_t weight_sums, bias_sums, spill; /* workspace offsets */
  size_t shared;                        /* bytes of a block */
} cut;

typedef struct launch {
  nr_dtype dtype;
  nr_cuda_form form;
  int32_t segments[NR_CUDA_SEGMENTS], num_segments; /* in the order of their blocks */
  int64_t num_blocks;
  size_t shared;
} launch;

typedef struct cuda_plan {
  cut *cuts;
  launch launches[NR_MAX_SEGMENTS];
  int32_t num_launches;
  bool sums, tables; /* whether there is a gradient of this kind */
} cuda_plan;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

static nr_dtype row_dtype(const nr_plan *plan, const nr_segment *s) {
  return plan->direction == NR_FORWARD ? s->y.dtype : s->grad_y.dtype;
}

static int32_t vector_channels(nr_dtype dtype) { return NR_CUDA_VECTOR / (int32_t)nr_dtype_size(dtype); }

static int32_t threads_of(nr_cuda_form form) {
  return form == NR_CUDA_GENERAL ? NR_CUDA_GENERAL_THREADS : NR_CUDA_FAST_THREADS;
}

static int32_t vectors_of(nr_cuda_form form, nr_direction direction, nr_dtype dtype) {
  return form == NR_CUDA_GENERAL ? NR_CUDA_GENERAL_CHANNELS / vector_channels(dtype)
                                 : NR_CUDA_VECTORS(form, direction == NR_BACKWARD);
}

/* Bytes that a block has for one float of each of its threads' channels. */
static size_t slot_of(nr_cuda_form form, nr_direction direction, nr_dtype dtype) {
  return (size_t)(threads_of(form) * vectors_of(form, direction, dtype) * vector_channels(dtype)) * sizeof(float);
}

static bool rotates(const nr_segment *s) { return s->rope_width && s->rope_length; }

static int32_t pairing_of(const nr_segment *s, int64_t thread_channels) {
  if (!rotates(s))
    return NR_CUDA_STRAIGHT;
  if (s->rope_width == 2 && s->rope_dim == s->dim)
    return NR_CUDA_ADJACENT;
  bool whole = s->dim % thread_channels == 0;
  return s->rope_width == s->dim && whole ? NR_CUDA_HALVES : NR_CUDA_EXCHANGE;
}

/* Columns of the chunks' sums for a gradient, if the norm contributes to it. */
static int64_t columns(const nr_segment *s, const nr_view *gradient, bool contributes) {
  return gradient->data && contributes ? (gradient->stride[2] ? s->heads : 1) * s->dim : 0;
}

static void choose_form(const nr_plan *plan, const nr_segment *s, cut *c) {
  nr_dtype dtype = row_dtype(plan, s);
  bool all_heads = s->norm && s->scope == NR_SCOPE_ALL_HEADS;
  c->by_heads = all_heads || c->weight_columns > s->dim || c->bias_columns > s->dim;
  int64_t vector = vector_channels(dtype);
  c->form = c->by_heads ? NR_CUDA_HEADS : nr_norm_centres(s->norm) ? NR_CUDA_LAYER : NR_CUDA_RMS;
  if (s->dim % vector != 0 || s->dim > vector * vectors_of(c->form, plan->direction, dtype) * NR_CUDA_LANES)
    c->form = NR_CUDA_GENERAL;
  int64_t vectors = vectors_of(c->form, plan->direction, dtype);
  c->pairing = pairing_of(s, vector * vectors);
  c->copies = !s->norm && c->pairing == NR_CUDA_STRAIGHT;
  c->spread = (int32_t)over(over(s->dim, vector), vectors);
  c->lanes = 1;
  while (c->lanes < c->spread)
    c->lanes *= 2;
}

/* Slots that a block has: forward without those behind the last that is used. What else is in shared memory is behind
   all of them. */
static size_t slots_of(const nr_plan *plan, const nr_segment *s, const cut *c) {
  if (plan->direction == NR_BACKWARD || c->pairing == NR_CUDA_EXCHANGE)
    return NR_CUDA_SLOTS(c->form, plan->direction == NR_BACKWARD) + (c->pairing == NR_CUDA_EXCHANGE);
  return s->bias.data ? 4 : c->pairing != NR_CUDA_STRAIGHT ? 3 : s->weight.data ? 1 : 0;
}

/* Chunks of the segment, and the memory that they need. */
static void cut_segment(const nr_plan *plan, const nr_segment *s, cut *c) {
  int64_t tokens = s->batch * s->length, teams = threads_of(c->form) / c->lanes;
  if (c->by_heads) {
    c->head_chunks = 1;
    c->chunk_heads = (int32_t)s->heads;
    c->chunk_tokens = HEADS_TOKENS;
    if (c->weight_columns || c->bias_columns)
      c->chunk_tokens = (int32_t)larger(HEADS_CHUNK_TOKENS, smaller(TEAM_ROWS, tokens / HEADS_CHUNKS));
    c->team_sums = (int32_t)over(s->heads, teams);
  } else {
    int64_t most = plan->direction == NR_BACKWARD ? CHUNK_HEADS : SHORT_CHUNK_HEADS;
    c->chunk_heads = (int32_t)over(s->heads, over(s->heads, most));
    c->head_chunks = (int32_t)over(s->heads, c->chunk_heads);
    int64_t turns = larger(1, smaller(TEAM_ROWS / c->chunk_heads, tokens / (teams * CHUNKS_WANTED)));
    c->chunk_tokens = (int32_t)(teams * turns);
    c->team_sums = 1;
  }
  c->num_blocks = over(tokens, c->chunk_tokens) * c->head_chunks;
  if (c->copies)
    return;
  size_t slot = slot_of(c->form, plan->direction, row_dtype(plan, s));
  c->shared = slot * slots_of(plan, s, c);
  bool in_registers = c->form == NR_CUDA_RMS || c->form == NR_CUDA_LAYER;
  if (in_registers || !(c->weight_columns || c->bias_columns))
    return;
  size_t sums = slot * (size_t)c->team_sums * (c->bias_columns ? 2 : 1);
  c->spills = c->shared + sums > SHARED_BYTES;
  if (!c->spills)
    c->shared += sums;
}

static size_t spill_of(const nr_plan *plan, const nr_segment *s, const cut *c) {
  size_t slot = slot_of(c->form, plan->direction, row_dtype(plan, s));
  return c->spills ? slot * (size_t)c->team_sums * (c->bias_columns ? 2 : 1) * (size_t)c->num_blocks : 0;
}

/* Segments of one dtype and form share launches; those that only copy go along with any of their dtype whose rows are
   vectors as theirs. */
static launch *launch_for(cuda_plan *made, nr_dtype dtype, const cut *c) {
  for (int32_t i = 0; i < made->num_launches; i++) {
    launch *l = &made->launches[i];
    bool fits = l->form == c->form ||
                (c->copies && l->form != NR_CUDA_GENERAL && c->form != NR_CUDA_GENERAL && l->form != NR_CUDA_HEADS);
    if (l->dtype == dtype && fits && l->num_segments < NR_CUDA_SEGMENTS)
      return l;
  }
  launch *l = &made->launches[made->num_launches++];
  *l = (launch){.dtype = dtype, .form = c->form};
  return l;
}

static void say_cut(const nr_plan *plan, int32_t i, const cut *c) {
  static const char *const forms[] = {"general", "fast, no mean", "fast, with a mean", "fast, teams by heads"};
  static const char *const pairings[] = {"no rope", "adjacent pairs", "halves", "pairs by shared memory"};
  const nr_segment *s = &plan->segments[i];
  nr_say("segment %" PRId32 ": %s kernel%s, %s%s; %" PRId64 " blocks of %" PRId32 " tokens x %" PRId32
         " heads, %" PRId32 " lanes a row",
         i, forms[c->form],
         c->form != NR_CUDA_GENERAL                          ? ""
         : s->dim % vector_channels(row_dtype(plan, s)) != 0 ? " (D is no whole number of 16-byte vectors)"
                                                             : " (a row is longer than a warp's vectors)",
         pairings[c->pairing], c->spills ? ", sums in the workspace" : "", c->num_blocks, c->chunk_tokens,
         c->chunk_heads, c->lanes);
}

enum { ALIGNMENT = 16 }; /* of what is in the workspace */

static size_t book(nr_plan *plan, size_t bytes) {
  size_t at = plan->workspace_size;
  plan->workspace_size += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return at;
}

/* Kernels count positions, columns and blocks in 32 bits, positions a little past the end; offsets in memory are 64. */
enum { MAX_POSITIONS = 1 << 30 };

static nr_status check_size(const nr_segment *s, int32_t i, int64_t blocks) {
  int64_t columns = larger(1, s->heads) * s->dim;
  if (s->batch * s->length <= MAX_POSITIONS && columns <= INT32_MAX && blocks <= INT32_MAX)
    return NR_OK;
  return nr_fail(NR_ERROR_UNSUPPORTED,
                 "segment %" PRId32 ": batch %" PRId64 ", length %" PRId64 ", heads %" PRId64
                 ", more than the cuda backend counts, expected at most 2^30 positions",
                 i, s->batch, s->length, s->heads);
}

/* Cuts a segment, unless it has nothing to do, and gives it a launch. */
static nr_status add_segment(nr_plan *plan, int32_t i) {
  cuda_plan *made = plan->own;
  const nr_segment *s = &plan->segments[i];
  cut *c = &made->cuts[i];
  launch *l = launch_for(made, row_dtype(plan, s), c);
  c->first_block = l->num_blocks;
  l->num_blocks += c->num_blocks;
  l->segments[l->num_segments++] = i;
  l->shared = (size_t)larger((int64_t)l->shared, (int64_t)c->shared);
  if (nr_verbose() >= NR_VERBOSE_DISPATCH)
    say_cut(plan, i, c);
  return check_size(s, i, l->num_blocks);
}

static nr_status measure_segment(nr_plan *plan, int32_t i) {
  cuda_plan *made = plan->own;
  const nr_segment *s = &plan->segments[i];
  cut *c = &made->cuts[i];
  bool backward = plan->direction == NR_BACKWARD;
  nr_status status = check_size(s, i, 0);
  if (status != NR_OK)
    return status;
  made->sums |= backward && (s->grad_weight.data || s->grad_bias.data);
  made->tables |= backward && (s->grad_cos.data || s->grad_sin.data);
  c->weight_columns = backward ? columns(s, &s->grad_weight, nr_norm_weighs(s->norm)) : 0;
  c->bias_columns = backward ? columns(s, &s->grad_bias, s->norm == NR_NORM_LAYER_AFFINE) : 0;
  bool wanted = !backward || s->grad_x.data || c->weight_columns || c->bias_columns;
  c->works = wanted && s->batch * s->length * s->heads > 0;
  if (!c->works)
    return NR_OK;
  choose_form(plan, s, c);
  cut_segment(plan, s, c);
  c->weight_sums = book(plan, (size_t)(c->num_blocks * c->weight_columns) * sizeof(float));
  c->bias_sums = book(plan, (size_t)(c->num_blocks * c->bias_columns) * sizeof(float));
  c->spill = book(plan, spill_of(plan, s, c));
  return NR_OK;
}

/* Loads a kernel for the current device: a first launch that did so could not be captured. */
static nr_status load(const void *kernel) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
  if (error == cudaSuccess)
    return NR_OK;
  cudaGetLastError(); /* which would else be some later call's */
  return nr_fail(NR_ERROR_DEVICE, "cuda: loading a kernel: %s", cudaGetErrorString(error));
}

static nr_status load_all(const nr_plan *plan) {
  const cuda_plan *made = plan->own;
  nr_status status = NR_OK;
  for (int32_t k = 0; k < made->num_launches && status == NR_OK; k++)
    status = load(row_kernels[made->launches[k].dtype][made->launches[k].form][plan->direction]);
  if (made->sums && status == NR_OK)
    status = load(nr_cuda_sums_kernel);
  if (made->tables && status == NR_OK)
    status = load(nr_cuda_table_kernel);
  return status;
}

static nr_status prepare(nr_plan *plan, const char *isa) {
  (void)isa;
  nr_status status = nr_cuda_available();
  if (status != NR_OK)
    return status;
  cuda_plan *made = nr_calloc(1, sizeof *made + (size_t)plan->num_segments * sizeof(cut));
  if (!made)
    return nr_fail(NR_ERROR_MEMORY, "out of memory for a plan of %" PRId32 " segments", plan->num_segments);
  made->cuts = (cut *)(made + 1);
  plan->own = made;
  plan->bytes = nr_plan_bytes(plan);
  for (int32_t i = 0; i < plan->num_segments && status == NR_OK; i++)
    status = measure_segment(plan, i);
  for (int copies = 0; copies < 2; copies++) /* those that copy last, to go along with others */
    for (int32_t i = 0; i < plan->num_segments && status == NR_OK; i++)
      if (made->cuts[i].works && made->cuts[i].copies == copies)
        status = add_segment(plan, i);
  plan->workspace_size += plan->workspace_size ? ALIGNMENT : 0; /* callers need not align as much */
  return status == NR_OK ? load_all(plan) : status;
}

static void release(nr_plan *plan) { nr_free(plan->own); }

/* ---- What kernels are told ---- */

/* `unit`: elements that are read at once where all rows begin at multiples of that many; `counts`: extents of batch,
   sequence, head, channel. Of an axis of extent 1 the stride is any number. */
static nr_cuda_view view_of(const nr_view *v, int64_t unit, int64_t b, int64_t s, int64_t n, int64_t d) {
  if (!v->data)
    return (nr_cuda_view){0};
  int64_t size = (int64_t)nr_dtype_size(v->dtype);
  nr_cuda_view view = {.data = v->data,
                       .batch = b > 1 ? v->stride[0] * size : 0,
                       .sequence = s > 1 ? v->stride[1] * size : 0,
                       .head = n > 1 ? v->stride[2] * size : 0,
                       .channel = v->stride[3] * size,
                       .dtype = v->dtype};
  uint64_t bits = (uint64_t)(uintptr_t)v->data | (uint64_t)view.batch | (uint64_t)view.sequence | (uint64_t)view.head;
  view.wide = v->stride[3] == 1 && d % unit == 0 && bits % (uint64_t)(unit * size) == 0;
  return view;
}

static void fill_segment(const nr_plan *plan, const nr_segment *s, const cut *c, char *workspace, nr_cuda_segment *g) {
  bool backward = plan->direction == NR_BACKWARD;
  int64_t B = s->batch, S = s->length, N = s->heads, D = s->dim, statistics = nr_group_heads(s) > 1 ? 1 : N;
  int64_t vector = vector_channels(row_dtype(plan, s));
  nr_view none = {0};
  double inverse = 1 / (double)(nr_group_heads(s) * D);
  *g = (nr_cuda_segment){.in = view_of(backward ? &s->grad_y : &s->x, vector, B, S, N, D),
                         .x = view_of(backward && s->norm ? &s->x : &none, vector, B, S, N, D),
                         .out = view_of(backward ? &s->grad_x : &s->y, vector, B, S, N, D),
                         .mean = view_of(nr_norm_centres(s->norm) ? &s->mean : &none, 1, B, S, statistics, 1),
                         .rstd = view_of(s->norm ? &s->rstd : &none, 1, B, S, statistics, 1),
                         .weight = view_of(&s->weight, 4, 1, 1, N, D),
                         .bias = view_of(backward ? &none : &s->bias, 4, 1, 1, N, D),
                         .tokens = (int32_t)(B * S),
                         .length = (int32_t)S,
                         .heads = (int32_t)N,
                         .first_block = (int32_t)c->first_block,
                         .chunk_tokens = c->chunk_tokens,
                         .dim = (int32_t)D,
                         .pairing = c->pairing,
                         .lanes = c->lanes,
                         .spread = c->spread,
                         .chunk_heads = c->chunk_heads,
                         .head_chunks = c->head_chunks,
                         .team_sums = c->team_sums,
                         .by_heads = c->by_heads,
                         .weight_columns = (int32_t)c->weight_columns,
                         .bias_columns = (int32_t)c->bias_columns,
                         .copies = c->copies,
                         .centres = nr_norm_centres(s->norm),
                         .normalises = s->norm != NR_NORM_NONE,
                         .all_heads = s->norm && s->scope == NR_SCOPE_ALL_HEADS,
                         .streams = plan->bytes > stream_bytes,
                         .count_inverse = (float)inverse,
                         .count_inverse_rest = (float)(inverse - (double)(float)inverse),
                         .eps = (float)s->eps,
                         .eps_scaled = (float)(s->eps * 0x1p120),
                         .weight_sums = (float *)(workspace + c->weight_sums),
                         .bias_sums = (float *)(workspace + c->bias_sums),
                         .spill = c->spills ? (float *)(workspace + c->spill) : NULL};
  g->heads_staged = g->weight.head || g->bias.head;
  if (c->pairing == NR_CUDA_STRAIGHT)
    return;
  g->cos = view_of(&s->cos, 4, B, s->rope_length, N, s->rope_dim);
  g->sin = view_of(&s->sin, 4, B, s->rope_length, N, s->rope_dim);
  g->heads_staged |= g->cos.head || g->sin.head;
  g->rope_length = s->rope_length, g->rope_position = s->rope_position;
  g->rope_dim = (int32_t)s->rope_dim, g->rope_width = (int32_t)s->rope_width;
}

static nr_status put(const void *kernel, int64_t blocks, int threads, size_t shared, void *params, bool waits_inside,
                     cudaStream_t stream, const char *what) {
  cudaLaunchAttribute attribute = {.id = cudaLaunchAttributeProgrammaticStreamSerialization,
                                   .val = {.programmaticStreamSerializationAllowed = 1}};
  cudaLaunchConfig_t config = {.gridDim = {(unsigned)blocks, 1, 1},
                               .blockDim = {(unsigned)threads, 1, 1},
                               .dynamicSmemBytes = shared,
                               .stream = stream,
                               .attrs = &attribute,
                               .numAttrs = waits_inside};
  cudaError_t error = cudaSuccess;
  /* Of the current device, which no plan knows; and always as much, since another thread may launch the kernel now. */
  if (shared > FREE_SHARED)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
  if (error == cudaSuccess)
    error = cudaLaunchKernelExC(&config, kernel, &params);
  if (error == cudaSuccess)
    return NR_OK;
  cudaGetLastError(); /* which would else be some later call's */
  return nr_fail(NR_ERROR_DEVICE, "cuda: launching %s, %" PRId64 " blocks: %s", what, blocks,
                 cudaGetErrorString(error));
}

static nr_status run_rows(const nr_plan *plan, const nr_segment *segments, char *workspace, cudaStream_t stream) {
  const cuda_plan *made = plan->own;
  for (int32_t k = 0; k < made->num_launches; k++) {
    const launch *l = &made->launches[k];
    nr_cuda_rows rows;
    rows.num_segments = l->num_segments;
    for (int32_t j = 0; j < l->num_segments; j++)
      fill_segment(plan, &segments[l->segments[j]], &made->cuts[l->segments[j]], workspace, &rows.segments[j]);
    nr_status status = put(row_kernels[l->dtype][l->form][plan->direction], l->num_blocks, threads_of(l->form),
                           l->shared, &rows, false, stream, "rows");
    if (status != NR_OK)
      return status;
  }
  return NR_OK;
}

/* Chunks' sums of one gradient: of all segments that share it. False if they do not fit into `sums` any more. */
static bool add_job(const nr_plan *plan, const nr_segment *segments, int32_t i, size_t offset, const char *workspace,
                    nr_cuda_sums *sums, int32_t *num_sources, int64_t *blocks) {
  const cuda_plan *made = plan->own;
  const nr_segment *owner = &segments[i];
  const nr_view *out = nr_view_at(owner, offset);
  bool bias = offset == offsetof(nr_segment, grad_bias);
  int64_t heads = out->stride[2] ? owner->heads : 1;
  if (sums->num_jobs == NR_CUDA_SUM_JOBS)
    return false;
  nr_cuda_sum job = {.out = view_of(out, 1, 1, 1, heads, owner->dim),
                     .columns = heads * owner->dim,
                     .first_block = *blocks,
                     .dim = (int32_t)owner->dim,
                     .first_source = *num_sources};
  for (int32_t j = i; j < plan->num_segments; j++) {
    const cut *c = &made->cuts[j];
    if (!nr_shared(nr_view_at(&segments[j], offset), out) || !(bias ? c->bias_columns : c->weight_columns))
      continue;
    if (job.first_source + job.num_sources == NR_CUDA_SUM_SOURCES)
      return false;
    sums->sources[job.first_source + job.num_sources].rows =
        (const float *)(workspace + (bias ? c->bias_sums : c->weight_sums));
    sums->sources[job.first_source + job.num_sources++].num_rows = c->num_blocks;
  }
  sums->jobs[sums->num_jobs++] = job;
  *num_sources += job.num_sources;
  *blocks += over(job.columns, NR_CUDA_SUM_COLUMNS);
  return true;
}

static nr_status run_sums(const nr_plan *plan, const nr_segment *segments, const char *workspace, cudaStream_t stream) {
  static const size_t fields[] = {offsetof(nr_segment, grad_weight), offsetof(nr_segment, grad_bias)};
  nr_cuda_sums sums;
  sums.num_jobs = 0;
  int32_t num_sources = 0;
  int64_t blocks = 0;
  for (int32_t k = 0; k < 2 * plan->num_segments; k++) {
    if (!nr_first_of_shared(segments, k / 2, fields[k % 2]))
      continue;
    while (!add_job(plan, segments, k / 2, fields[k % 2], workspace, &sums, &num_sources, &blocks)) {
      nr_status status = put(nr_cuda_sums_kernel, blocks, NR_CUDA_SUM_COLUMNS * NR_CUDA_SUM_THREADS, 0, &sums,
                             nr_cuda_overlaps(), stream, "sums");
      if (status != NR_OK)
        return status;
      sums.num_jobs = 0, num_sources = 0, blocks = 0;
    }
  }
  return put(nr_cuda_sums_kernel, blocks, NR_CUDA_SUM_COLUMNS * NR_CUDA_SUM_THREADS, 0, &sums, nr_cuda_overlaps(),
             stream, "sums");
}

static nr_status run_table(const nr_plan *plan, const nr_segment *segments, int32_t i, size_t offset,
                           cudaStream_t stream) {
  const nr_segment *owner = &segments[i];
  const nr_view *out = nr_view_at(owner, offset);
  if (!nr_first_of_shared(segments, i, offset))
    return NR_OK;
  nr_cuda_table table;
  table.batches = out->stride[0] ? owner->batch : 1;
  table.rows = owner->rope_length;
  table.heads = out->stride[2] ? owner->heads : 1;
  table.rope_dim = (int32_t)owner->rope_dim;
  table.of_sines = offset == offsetof(nr_segment, grad_sin);
  table.out = view_of(out, 1, 2, table.rows, 2, owner->rope_dim);
  table.num_segments = 0;
  for (int32_t j = i; j < plan->num_segments; j++) {
    const nr_segment *s = &segments[j];
    if (!nr_shared(nr_view_at(s, offset), out) || !s->rope_width)
      continue;
    int64_t statistics = nr_group_heads(s) > 1 ? 1 : s->heads;
    nr_view none = {0};
    nr_cuda_view x = view_of(&s->x, 1, s->batch, s->length, s->heads, s->dim);
    table.segments[table.num_segments].x = x;
    table.segments[table.num_segments].grad_y = view_of(&s->grad_y, 1, s->batch, s->length, s->heads, s->dim);
    table.segments[table.num_segments].mean =
        view_of(nr_norm_centres(s->norm) ? &s->mean : &none, 1, s->batch, s->length, statistics, 1);
    table.segments[table.num_segments].rstd =
        view_of(s->norm ? &s->rstd : &none, 1, s->batch, s->length, statistics, 1);
    table.segments[table.num_segments].weight = view_of(&s->weight, 1, 1, 1, s->heads, s->dim);
    table.segments[table.num_segments].bias = view_of(&s->bias, 1, 1, 1, s->heads, s->dim);
    table.segments[table.num_segments].batches = s->batch;
    table.segments[table.num_segments].length = s->length;
    table.segments[table.num_segments].heads = s->heads;
    table.segments[table.num_segments].rope_position = s->rope_position;
    table.segments[table.num_segments++].rope_width = (int32_t)s->rope_width;
  }
  int64_t entries = table.batches * table.rows * table.heads * table.rope_dim;
  return put(nr_cuda_table_kernel, over(entries, NR_CUDA_TABLE_THREADS), NR_CUDA_TABLE_THREADS, 0, &table, false,
             stream, "table gradients");
}

/* Before the rows, since grad_x may be written over x. */
static nr_status run_tables(const nr_plan *plan, const nr_segment *segments, cudaStream_t stream) {
  nr_status status = NR_OK;
  for (int32_t i = 0; i < plan->num_segments && status == NR_OK; i++) {
    status = run_table(plan, segments, i, offsetof(nr_segment, grad_cos), stream);
    if (status == NR_OK)
      status = run_table(plan, segments, i, offsetof(nr_segment, grad_sin), stream);
  }
  return status;
}

static nr_status run(const nr_plan *plan, const nr_segment *segments, void *workspace, void *stream) {
  const cuda_plan *made = plan->own;
  char *aligned = (char *)(((uintptr_t)workspace + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  nr_status status = made->tables ? run_tables(plan, segments, stream) : NR_OK;
  if (status == NR_OK)
    status = run_rows(plan, segments, aligned, stream);
  if (status == NR_OK && made->sums)
    status = run_sums(plan, segments, aligned, stream);
  return status;
}

const nr_backend_ops nr_backend_cuda = {
    .name = "cuda", .streams = true, .prepare = prepare, .run = run, .release = release};
