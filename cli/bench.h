/*
 * Timing the operator beside what the memory allows: a copy of the same bytes, and a plain loop that walks the same
 * rows in the same order without the arithmetic. All of them take turns in one run, on the same threads and in memory
 * of the same kind, so that what else the machine does falls on all alike. Not thread safe.
 */
#ifndef NR_CLI_BENCH_H
#define NR_CLI_BENCH_H

#include "cli/case.h"
#include "cli/presets.h"

/* One anonymous mapping that blocks are taken from in turn: those of 2 MiB and more on a boundary of 2 MiB, smaller
   ones on one of 64 bytes. The system was asked for huge pages; nothing is touched yet. */
typedef struct nr_bench_memory {
  char *map, *base;
  size_t map_size, size, used;
} nr_bench_memory;

enum { NR_HUGE_PAGE = 2 << 20 };

/* What a block of `size` bytes takes, at most. */
size_t nr_bench_room(size_t size);

/* Room for blocks of this sum of nr_bench_room. Returns an exit code: the machine must have it to spare. */
int nr_bench_memory_open(nr_bench_memory *memory, size_t room, nr_message *message);
void nr_bench_memory_close(nr_bench_memory *memory);
void *nr_bench_take(nr_bench_memory *memory, size_t size);

/* Bytes of this process that huge pages back; 0 where the system does not say. */
int64_t nr_bench_huge_bytes(void);

/* array[0, count): numbers as of nr_fill_normal, the same 65,521 over and over, each thread's share touched by it. */
void nr_bench_fill(void *array, nr_dtype dtype, uint64_t stream, int64_t count, double centre, double scale,
                   int threads);

/* What is timed. A yardstick that comes in two ways counts by the faster. */
typedef enum nr_timed {
  NR_TIMED_COPY,          /* memcpy of each thread's share */
  NR_TIMED_COPY_STREAMED, /* stores past the caches, of whole lines */
  NR_TIMED_LOOP,          /* rows in and out as the operator's, ordinary stores */
  NR_TIMED_LOOP_STREAMED,
  NR_TIMED_OPERATOR,
  NR_NUM_TIMED
} nr_timed;

extern const char *const nr_timed_names[NR_NUM_TIMED];

/* Copies `size` bytes between blocks of nr_bench_take; false where this machine has no such copy. */
bool nr_bench_copy(void *to, const void *from, size_t size, bool streamed, int threads);

/* Forward: every row of x into that of y. Backward: every row of grad_y, with that of x where there is one, into that
   of grad_x. False, with nothing written, where the rows or this machine do not suit streaming stores. */
bool nr_bench_loop(const nr_segment *segments, int num_segments, nr_direction direction, bool streamed, int threads);

/* A recipe's tensors of one direction, filled: plausible statistics, tables of true angles. */
typedef struct nr_bench_case {
  nr_direction direction;
  nr_bench_memory memory;
  nr_container file; /* of the tensors below, not of a file */
  nr_tensor *tensors;
  nr_case *c;
  nr_segment segments[NR_MAX_SEGMENTS];
  int num_segments;
  int64_t bytes; /* that the operator reads and writes, each tensor once */
  void *copy[2]; /* half of these bytes each, rounded up to whole lines */
  size_t half;
} nr_bench_case;

/* `copies`: have the two blocks to copy. Returns an exit code; after a failure there is nothing to close. */
int nr_bench_case_open(nr_bench_case *b, const nr_recipe *recipe, nr_direction direction, bool copies, int threads,
                       nr_message *message);
void nr_bench_case_close(nr_bench_case *b);

/* The tensor of that name if it is bound, or NULL: for callers of the operator's own interface. */
const nr_tensor *nr_bench_tensor(const nr_bench_case *b, const char *name);

/* Seconds of a run of samples. */
typedef struct nr_summary {
  double median, lower, upper, least, most; /* lower, upper: the quartiles */
} nr_summary;

nr_summary nr_summarise(const double *samples, int count);

typedef struct nr_bench_result {
  bool timed[NR_NUM_TIMED];      /* whether there is such a thing here */
  double *samples[NR_NUM_TIMED]; /* [repeat], the i-th of each from the i-th round */
  nr_summary summary[NR_NUM_TIMED];
  nr_timed copy, loop; /* the faster ways, by their medians */
} nr_bench_result;

/* Rounds that go before the measured ones. */
enum { NR_BENCH_WARM_UP = 2, NR_BENCH_MAX_REPEAT = 10000 };

/* Plans once, then times `repeat` rounds of everything in turn. `weight` goes to progress for each round. Returns an
   exit code; the result is the caller's to free whatever it is. */
int nr_bench_measure(const nr_bench_case *b, const char *isa, int threads, int repeat, nr_progress *progress,
                     double weight, nr_bench_result *result, nr_message *message);
void nr_bench_result_free(nr_bench_result *result);

/* What a tiny call costs: preset `reference`, each step timed by itself. */
typedef enum nr_latency {
  NR_LATENCY_PLAN,   /* nr_plan_create */
  NR_LATENCY_RUN,    /* nr_plan_run */
  NR_LATENCY_CALL,   /* first phase, second phase, synchronise */
  NR_LATENCY_LAUNCH, /* second phase of a repeatable executor */
  NR_LATENCY_REPEAT, /* that and synchronise */
  NR_NUM_LATENCIES
} nr_latency;

extern const char *const nr_latency_names[NR_NUM_LATENCIES];

/* Returns an exit code. The two-phase steps run on device 0 of the process. */
int nr_bench_latency(nr_direction direction, nr_summary summary[NR_NUM_LATENCIES], nr_message *message);

/* Processor, caches, memory and system, as JSON; what the system does not say is left out. A new reference. */
json_t *nr_bench_machine(void);

#endif
