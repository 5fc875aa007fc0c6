/*
 * The operator on a CUDA device beside a copy of the same bytes: presets of cli/presets.def in both directions. Each
 * problem is there several times, in memory that is together larger than the second-level cache; a graph runs one after
 * the other, and its replays are timed by events. JSON to standard output, a table to standard error.
 *
 *     gpu_bench [--repeat N] [--image N] [--preset NAME] [--dtype float32|float16|bfloat16]
 */
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "normrope.h"

enum { MAX_SETS = 16, MAX_REPEAT = 101, PATTERN = 1 << 20, CACHE_TIMES = 3, LATENCY_ROUNDS = 20, LATENCY_CALLS = 100 };
static const double least_ms = 10; /* of a sample */
static const size_t most_memory = (size_t)24 << 30;

enum { IMAGE, ALL, HEAD = NR_SCOPE_HEAD, ALL_HEADS = NR_SCOPE_ALL_HEADS };
typedef struct preset {
  const char *name;
  int64_t heads, dim, image, text;
  int norm[2], rope, window, order, scope; /* norms of image and text */
  nr_dtype dtype, tables;
  double eps;
} preset;
#define PRESET(name, heads, dim, image, text, norm, added, rope, window, order, scope, shares, dtype, tables, eps,     \
               note)                                                                                                   \
  {name, heads, dim, image, text, {norm, added}, rope, window, order, scope, dtype, tables, eps},
static const preset presets[] = {
#include "cli/presets.def"
};
#undef PRESET

static void stop(const char *what, const char *why) {
  fprintf(stderr, "gpu_bench: %s: %s\n", what, why);
  exit(1);
}
#define GOOD(call)                                                                                                     \
  do {                                                                                                                 \
    cudaError_t error = (call);                                                                                        \
    if (error != cudaSuccess)                                                                                          \
      stop(#call, cudaGetErrorString(error));                                                                          \
  } while (0)
#define DONE(call)                                                                                                     \
  do {                                                                                                                 \
    if ((call) != NR_OK)                                                                                               \
      stop(#call, nr_last_error());                                                                                    \
  } while (0)

/* Memory of one set, handed out in pieces; without `base` the pieces are only counted. */
typedef struct arena {
  char *base;
  size_t used;
} arena;

static void *take(arena *a, int64_t count, nr_dtype dtype, char *const pattern[2][3], bool positive) {
  size_t size = (size_t)count * nr_dtype_size(dtype), at = a->used;
  a->used += (size + 255) / 256 * 256;
  if (!a->base)
    return NULL;
  for (size_t done = 0; done < size; done += PATTERN)
    GOOD(cudaMemcpy(a->base + at + done, pattern[positive][dtype], size - done < PATTERN ? size - done : PATTERN,
                    cudaMemcpyDefault));
  return a->base + at;
}

/* One set of a preset: segments for query, key and value of image and text. *bytes: of rows, read and written. */
static int32_t describe(const preset *p, nr_dtype dtype, nr_direction direction, arena *a, char *const pattern[2][3],
                        nr_segment segments[6], double *bytes) {
  int64_t N = p->heads, D = p->dim, total = p->image + p->text;
  nr_dtype tables = dtype == NR_F32 ? NR_F32 : p->tables;
  int64_t rope_rows = p->window == ALL ? total : p->image;
  bool backward = direction == NR_BACKWARD;
  char *cos = take(a, rope_rows * D, tables, pattern, false), *sin = take(a, rope_rows * D, tables, pattern, false);
  int32_t count = 0;
  *bytes = 0;
  for (int part = 0; part < 3; part++) {
    char *joined = take(a, total * N * D, dtype, pattern, false);
    for (int text = 0; text < (p->text ? 2 : 1); text++) {
      nr_segment *g = &segments[count++];
      *g = nr_segment_default();
      int64_t S = text ? p->text : p->image, start = text != (p->order == 1) ? total - S : 0;
      g->batch = 1, g->length = S, g->heads = N, g->dim = D, g->eps = p->eps;
      g->norm = part < 2 ? (nr_norm)p->norm[text] : NR_NORM_NONE;
      g->scope = (nr_scope)p->scope;
      char *rows = joined ? joined + (size_t)(start * D) * nr_dtype_size(dtype) : NULL;
      nr_view there = nr_view_bnsd(rows, dtype, total, N, D);
      nr_view here = nr_view_bsnd(take(a, S * N * D, dtype, pattern, false), dtype, S, N, D);
      int64_t channels = g->scope == NR_SCOPE_ALL_HEADS ? N * D : D, across = g->scope == NR_SCOPE_ALL_HEADS;
      nr_view statistics[2], weights[4];
      for (int i = 0; i < 2; i++)
        statistics[i] = nr_view_statistics(take(a, S * N, NR_F32, pattern, true), NR_F32, S, across ? 1 : N);
      for (int i = 0; i < 4; i++) {
        void *data = take(a, channels, dtype, pattern, false);
        weights[i] = across ? nr_view_heads(data, dtype, D) : nr_view_channels(data, dtype);
      }
      g->mean = statistics[0], g->rstd = statistics[1], g->weight = weights[0], g->bias = weights[1];
      if (backward)
        g->grad_y = there, g->grad_x = here, g->grad_weight = weights[2], g->grad_bias = weights[3];
      else
        g->y = there, g->x = here;
      if (backward && g->norm)
        g->x = nr_view_bsnd(take(a, S * N * D, dtype, pattern, false), dtype, S, N, D);
      if (part < 2 && p->rope && (p->window == ALL || !text)) {
        g->rope_width = p->rope == 1 ? 2 : D, g->rope_length = rope_rows;
        g->rope_position = p->window == ALL ? start : 0;
        g->cos = nr_view_table(cos, tables, D), g->sin = nr_view_table(sin, tables, D);
      }
      *bytes += (double)(S * N * D) * (double)nr_dtype_size(dtype) * (backward && g->norm ? 3 : 2);
    }
  }
  return count;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

typedef struct timing {
  double median, lower, upper; /* microseconds */
} timing;

/* Of one of the `runs` that the graph has. */
static timing time_graph(cudaGraphExec_t graph, cudaStream_t stream, int runs, int repeat) {
  cudaEvent_t start, end;
  double samples[MAX_REPEAT];
  float ms = 0;
  int times = 1;
  GOOD(cudaEventCreateWithFlags(&start, cudaEventDefault));
  GOOD(cudaEventCreateWithFlags(&end, cudaEventDefault));
  for (int i = -2; i < repeat; i++) { /* two to warm up */
    GOOD(cudaEventRecord(start, stream));
    for (int k = 0; k < times; k++)
      GOOD(cudaGraphLaunch(graph, stream));
    GOOD(cudaEventRecord(end, stream));
    GOOD(cudaEventSynchronize(end));
    GOOD(cudaEventElapsedTime(&ms, start, end));
    if (i == -2)
      times = ms > 0 && ms < least_ms ? (int)(least_ms / (double)ms) + 1 : 1;
    else if (i >= 0)
      samples[i] = 1e3 * (double)ms / times / runs;
  }
  GOOD(cudaEventDestroy(start));
  GOOD(cudaEventDestroy(end));
  qsort(samples, (size_t)repeat, sizeof *samples, ascending);
  return (timing){samples[repeat / 2], samples[repeat / 4], samples[repeat * 3 / 4]};
}

static cudaGraphExec_t end_capture(cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  GOOD(cudaStreamEndCapture(stream, &graph));
  GOOD(cudaGraphInstantiate(&ready, graph, 0));
  GOOD(cudaGraphDestroy(graph));
  return ready;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* Microseconds that the calling thread spends on one call, with room in the stream for more: a full one makes it wait
   for the device. */
static double launch_overhead(nr_plan *plan, void *workspace, size_t size, cudaStream_t stream) {
  double spent = 0;
  for (int i = 0; i < LATENCY_ROUNDS; i++) {
    double start = now();
    for (int k = 0; k < LATENCY_CALLS; k++)
      DONE(nr_plan_run(plan, NULL, workspace, size, stream));
    spent += now() - start;
    GOOD(cudaStreamSynchronize(stream));
  }
  return spent / (LATENCY_ROUNDS * LATENCY_CALLS);
}

static void measure(const preset *p, nr_dtype dtype, nr_direction direction, size_t cache, int repeat,
                    char *const pattern[2][3], cudaStream_t stream, bool first) {
  nr_segment segments[6];
  nr_plan *plans[MAX_SETS];
  arena sets[MAX_SETS] = {{0}};
  double bytes;
  describe(p, dtype, direction, &sets[0], pattern, segments, &bytes);
  size_t size = sets[0].used;
  int num_sets = (int)(CACHE_TIMES * cache / size) + 1;
  num_sets = num_sets < 2 ? 2 : num_sets > MAX_SETS ? MAX_SETS : num_sets;
  if (size * (size_t)num_sets > most_memory)
    num_sets = 1;
  size_t workspace_size = 0;
  char *workspace = NULL;
  for (int i = 0; i < num_sets; i++) {
    sets[i].used = 0;
    GOOD(cudaMalloc((void **)&sets[i].base, size));
    nr_problem problem = nr_problem_default();
    problem.direction = direction, problem.backend = NR_BACKEND_CUDA, problem.segments = segments;
    problem.num_segments = describe(p, dtype, direction, &sets[i], pattern, segments, &bytes);
    DONE(nr_plan_create(&plans[i], &problem));
  }
  workspace_size = nr_plan_workspace_size(plans[0]);
  GOOD(cudaMalloc((void **)&workspace, workspace_size + 1));
  DONE(nr_plan_run(plans[0], NULL, workspace, workspace_size, stream)); /* loads the kernels */
  GOOD(cudaStreamSynchronize(stream));
  GOOD(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < num_sets; i++)
    DONE(nr_plan_run(plans[i], NULL, workspace, workspace_size, stream));
  cudaGraphExec_t ours = end_capture(stream);
  size_t half = (size_t)(bytes / 2);
  GOOD(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < num_sets; i++)
    GOOD(cudaMemcpyAsync(sets[i].base + size / 2, sets[i].base, half < size / 2 ? half : size / 2, cudaMemcpyDefault,
                         stream));
  cudaGraphExec_t copy = end_capture(stream);
  half = half < size / 2 ? half : size / 2;
  timing t = time_graph(ours, stream, num_sets, repeat), c = time_graph(copy, stream, num_sets, repeat);
  double overhead = bytes < 1e6 ? launch_overhead(plans[0], workspace, workspace_size, stream) : 0;
  double copied = c.median * bytes / (2 * (double)half); /* of as many bytes, where a set has room for less */
  printf("%s  {\"preset\": \"%s\", \"dtype\": \"%s\", \"direction\": \"%s\", \"bytes\": %.0f, \"sets\": %d,\n"
         "   \"microseconds\": {\"operator\": {\"median\": %.3f, \"lower_quartile\": %.3f, \"upper_quartile\": %.3f},\n"
         "                    \"copy\": {\"median\": %.3f, \"lower_quartile\": %.3f, \"upper_quartile\": %.3f}},\n"
         "   \"bandwidth_of_copy\": %.4f, \"launch_microseconds\": %.3f}",
         first ? "" : ",\n", p->name, nr_dtype_name(dtype), direction ? "backward" : "forward", bytes, num_sets,
         t.median, t.lower, t.upper, copied, c.lower, c.upper, copied / t.median, overhead);
  fprintf(stderr, "%-14s %-9s %-8s %9.1f MB %10.1f us %10.1f us copy %6.1f%% of its bandwidth %8.0f GB/s\n", p->name,
          nr_dtype_name(dtype), direction ? "backward" : "forward", bytes / 1e6, t.median, copied,
          100 * copied / t.median, bytes / t.median * 1e-3);
  if (overhead > 0)
    fprintf(stderr, "%-14s a call takes the calling thread %.2f us\n", p->name, overhead);
  GOOD(cudaGraphExecDestroy(ours));
  GOOD(cudaGraphExecDestroy(copy));
  GOOD(cudaFree(workspace));
  for (int i = 0; i < num_sets; i++) {
    nr_plan_destroy(plans[i]);
    GOOD(cudaFree(sets[i].base));
  }
}

/* Numbers between -2 and 2, and their magnitudes plus 1/4, of each dtype, on the device. */
static void make_patterns(char *pattern[2][3]) {
  static char host[PATTERN];
  for (int positive = 0; positive < 2; positive++)
    for (int dtype = 0; dtype < 3; dtype++) {
      uint32_t state = 1;
      for (int64_t i = 0; i < PATTERN / (int64_t)nr_dtype_size((nr_dtype)dtype); i++) {
        state = state * 1664525u + 1013904223u;
        double value = (double)(state >> 8) / (1 << 22) - 2;
        nr_store(host, (nr_dtype)dtype, i, positive ? (value < 0 ? -value : value) + 0.25 : value);
      }
      GOOD(cudaMalloc((void **)&pattern[positive][dtype], PATTERN));
      GOOD(cudaMemcpy(pattern[positive][dtype], host, PATTERN, cudaMemcpyDefault));
    }
}

int main(int argc, char **argv) {
  const char *only = NULL, *dtype_name = NULL;
  int repeat = 15, image = 0;
  for (int i = 1; i + 1 < argc; i += 2)
    if (strcmp(argv[i], "--repeat") == 0)
      repeat = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--image") == 0)
      image = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--preset") == 0)
      only = argv[i + 1];
    else if (strcmp(argv[i], "--dtype") == 0)
      dtype_name = argv[i + 1];
    else
      stop(argv[i], "expected --repeat, --image, --preset or --dtype");
  if (argc % 2 == 0 || repeat < 1 || repeat > MAX_REPEAT)
    stop("arguments", "expected options with a value each, --repeat from 1 to 101");
  int devices = 0, cache = 0;
  GOOD(cudaGetDeviceCount(&devices));
  struct cudaDeviceProp properties;
  GOOD(cudaGetDeviceProperties(&properties, 0));
  GOOD(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, 0));
  cudaStream_t stream;
  GOOD(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  char *pattern[2][3];
  make_patterns(pattern);
  printf("{\"device\": \"%s\", \"l2_bytes\": %d, \"version\": \"%s\", \"repeat\": %d, \"results\": [\n",
         properties.name, cache, nr_version(), repeat);
  fprintf(stderr, "%s, medians of %d\n", properties.name, repeat);
  bool first = true;
  for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
    preset p = presets[i];
    if (only && strcmp(only, p.name) != 0)
      continue;
    p.image = image && image < p.image ? image : p.image;
    nr_dtype dtypes[] = {NR_F32, NR_F16, NR_BF16};
    for (int k = 0; k < 3; k++)
      for (int direction = 0; direction < 2; direction++) {
        bool wanted = dtype_name ? strcmp(dtype_name, nr_dtype_name(dtypes[k])) == 0 : dtypes[k] != NR_F16;
        if (!wanted)
          continue;
        measure(&p, dtypes[k], (nr_direction)direction, (size_t)cache, repeat, (char *const(*)[3])pattern, stream,
                first);
        first = false;
      }
  }
  printf("\n]}\n");
  GOOD(cudaStreamDestroy(stream));
  for (int positive = 0; positive < 2; positive++)
    for (int dtype = 0; dtype < 3; dtype++)
      GOOD(cudaFree(pattern[positive][dtype]));
  if (first)
    stop("--preset", "no such preset or dtype");
  return 0;
}
