/* Running segments with the library, and turning its errors into messages and exit codes. */
#ifndef NR_CLI_RUN_H
#define NR_CLI_RUN_H

#include "cli/cli.h"
#include "normrope.h"

typedef struct nr_run_options {
  nr_backend backend;
  int32_t threads; /* 0: the library's rule */
  const char *isa; /* NULL: the library's choice */
} nr_run_options;

/* Plans and runs; the workspace is allocated for the call. `path` is the file that a bad problem is blamed on. Returns
   an exit code. Any number of threads may call it. */
int nr_run_segments(const nr_segment *segments, int num_segments, nr_direction direction, const nr_run_options *options,
                    const char *path, nr_message *message);

/* An exit code for a call of the library that failed, and the message. */
int nr_run_failure(nr_status status, const char *path, nr_message *message);

/* Understands the values of --device, --threads and --isa (by option key), complaining about bad ones. Returns an exit
   code; other keys are a mistake. */
enum { NR_KEY_DEVICE = 0x100, NR_KEY_THREADS, NR_KEY_ISA, NR_KEY_JSON, NR_KEY_PROGRESS, NR_KEY_FIRST_FREE };
int nr_run_option(nr_run_options *options, const nr_command *command, int key, const char *argument);

/* The rows of an option table that describe them. */
#define NR_RUN_OPTION_ROWS                                                                                             \
  {"device", NR_KEY_DEVICE, "NAME", "cpu (default), cuda, or reference, the slow definition in double precision"},     \
      {"threads", NR_KEY_THREADS, "N", "threads to run with; never changes a bit of the results"}, {                   \
    "isa", NR_KEY_ISA, "NAME", "CPU instruction set, as 'normrope info' lists them"                                    \
  }

#define NR_PROGRESS_OPTION_ROW                                                                                         \
  { "progress", NR_KEY_PROGRESS, NULL, "show progress even where stderr is no terminal" }
#define NR_JSON_OPTION_ROW                                                                                             \
  { "json", NR_KEY_JSON, NULL, "print JSON instead of a table" }

#endif
