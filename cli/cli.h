/*
 * What the commands of normrope share: exit codes, messages, options, the progress line.
 */
#ifndef NR_CLI_CLI_H
#define NR_CLI_CLI_H

#include <stdbool.h>
#include <stdint.h>

/* Exit codes, which docs/normrope.1 documents. */
enum {
  NR_EXIT_OK = 0,
  NR_EXIT_CHECK = 1, /* the command ran, and what it checked is out of bounds */
  NR_EXIT_USAGE = 2,
  NR_EXIT_FILE = 3, /* an input file is missing, damaged or describes no valid problem */
  NR_EXIT_RUN = 4   /* the run failed: memory, disk, device, or nothing here can do it */
};

/* Why a function failed; "FILE: what, expected what". Meaningful only after a failure. */
typedef struct nr_message {
  char text[1024];
} nr_message;

/* Writes the message and returns `code`, so that a failure is one line: return nr_refuse(m, NR_EXIT_FILE, ...). */
__attribute__((format(printf, 3, 4))) int nr_refuse(nr_message *message, int code, const char *format, ...);

/* Prints "normrope: TEXT" on stderr, control characters (names come from untrusted files) shown as '?'. */
void nr_complain(const char *text);

/* One option of a command: a row of a table ending with a NULL name. Parsing and --help are read from it. */
typedef struct nr_option {
  const char *name;
  int key;              /* what nr_next_option returns, > 0; a letter is also the short form */
  const char *argument; /* NULL: takes none */
  const char *help;
} nr_option;

typedef struct nr_command {
  const char *name;
  const char *arguments; /* of the usage line, such as "FILE -o FILE" */
  const char *summary;
  const nr_option *options;
  int (*run)(const struct nr_command *self, int argc, char **argv); /* returns an exit code */
  const char *notes; /* printed by --help after the options; may be NULL */
} nr_command;

enum { NR_OPTION_END = 0, NR_OPTION_HELP = -1, NR_OPTION_BAD = -2 };

/* The next option's key, its argument in optarg; NR_OPTION_HELP after printing --help (exit 0), NR_OPTION_BAD after
   complaining (exit 2). After NR_OPTION_END argv[optind...] are the operands. */
int nr_next_option(const nr_command *command, int argc, char **argv);

/* Exit code of the two negative keys. */
static inline int nr_option_exit(int key) { return key == NR_OPTION_HELP ? NR_EXIT_OK : NR_EXIT_USAGE; }

/* Complains, adds where help is to be found and returns NR_EXIT_USAGE. */
__attribute__((format(printf, 2, 3))) int nr_usage(const nr_command *command, const char *format, ...);

/* The same for a value that the option with that key does not take: "--heads 0, expected WHAT", where the format and
   what follows it are WHAT. */
__attribute__((format(printf, 4, 5))) int nr_unexpected(const nr_command *command, int key, const char *value,
                                                        const char *format, ...);

/* Whole text as a decimal integer in [low, high]; false, with *value unchanged, for anything else. */
bool nr_parse_integer(const char *text, int64_t low, int64_t high, int64_t *value);

/* Whole text as a finite number >= 0. */
bool nr_parse_number(const char *text, double *value);

/* Of a clock that only goes forward. */
double nr_seconds(void);

/* A line on stderr for work that lasts over a second, where stderr is a terminal or `force` was set. */
typedef struct nr_progress {
  const char *what;
  double total, done;
  double started, shown; /* seconds */
  bool enabled, drawn;
} nr_progress;

nr_progress nr_progress_start(const char *what, double total, bool force);
void nr_progress_add(nr_progress *progress, double amount);
void nr_progress_end(nr_progress *progress);

extern const nr_command nr_command_info, nr_command_make_case, nr_command_forward, nr_command_backward,
    nr_command_check, nr_command_gradcheck, nr_command_bench;

#endif
