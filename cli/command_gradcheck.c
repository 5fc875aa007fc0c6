/* normrope gradcheck: the gradients' definition against finite differences, for every combination of options. */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/gradcheck.h"
#include "cli/run.h"
#include <jansson.h>

enum { KEY_TOLERANCE = NR_KEY_FIRST_FREE, KEY_SEED };

static const nr_option options[] = {{"tolerance", KEY_TOLERANCE, "X", "largest relative error (default 1e-8)"},
                                    {"seed", KEY_SEED, "N", "of the made-up data (default 0)"},
                                    NR_JSON_OPTION_ROW,
                                    NR_PROGRESS_OPTION_ROW,
                                    {NULL, 0, NULL, NULL}};

typedef struct arguments {
  double tolerance;
  int64_t seed;
  bool json, progress;
} arguments;

static const char *const kinds[NR_NUM_GRADS] = {"inputs", "weights", "biases", "tables"};

static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

/* One row of the report; true if all is within the tolerance. */
static bool report(const arguments *a, const nr_combination *c, const double worst[NR_NUM_GRADS], json_t *rows) {
  bool good = true;
  for (int i = 0; i < NR_NUM_GRADS; i++)
    good &= worst[i] <= a->tolerance;
  if (!a->json) {
    printf("%-34s", c->name);
    for (int i = 0; i < NR_NUM_GRADS; i++)
      printf(" %9.1e", worst[i]);
    printf("  %s\n", good ? "ok" : "FAIL");
    return good;
  }
  json_t *row = json_pack("{s:s, s:b}", "name", c->name, "ok", good);
  for (int i = 0; i < NR_NUM_GRADS; i++)
    json_object_set_new(row, kinds[i], number(worst[i]));
  json_array_append_new(rows, row);
  return good;
}

static int gradcheck(const arguments *a, json_t *rows) {
  nr_combination c;
  nr_message message;
  int total = 0, failures = 0, code = NR_EXIT_OK;
  while (nr_combination_get(total, &c))
    total++;
  if (!a->json)
    printf("%-34s %9s %9s %9s %9s  verdict\n", "worst relative error", kinds[0], kinds[1], kinds[2], kinds[3]);
  nr_progress progress = nr_progress_start("gradcheck", total, a->progress);
  for (int i = 0; i < total && !code; i++) {
    double worst[NR_NUM_GRADS];
    nr_combination_get(i, &c);
    code = nr_gradcheck(&c, a->seed, worst, &message);
    if (!code)
      failures += !report(a, &c, worst, rows);
    nr_progress_add(&progress, 1);
  }
  nr_progress_end(&progress);
  if (code) {
    nr_complain(message.text);
    return code;
  }
  if (!a->json)
    printf("%d combinations, %d beyond %g\n", total, failures, a->tolerance);
  return failures ? NR_EXIT_CHECK : NR_EXIT_OK;
}

static int run(const nr_command *self, int argc, char **argv) {
  arguments a = {.tolerance = 1e-8};
  int key;
  while ((key = nr_next_option(self, argc, argv)) > 0) {
    switch (key) {
    case NR_KEY_JSON: a.json = true; break;
    case NR_KEY_PROGRESS: a.progress = true; break;
    case KEY_TOLERANCE:
      if (!nr_parse_number(optarg, &a.tolerance))
        return nr_unexpected(self, key, optarg, "a number of at least 0");
      break;
    case KEY_SEED:
      if (!nr_parse_integer(optarg, 0, INT64_MAX, &a.seed))
        return nr_unexpected(self, key, optarg, "a number from 0 to %" PRId64, INT64_MAX);
      break;
    }
  }
  if (key != NR_OPTION_END)
    return nr_option_exit(key);
  if (argc > optind)
    return nr_usage(self, "%s: gradcheck takes no operand", argv[optind]);
  json_t *rows = json_array();
  int code = gradcheck(&a, rows);
  if (a.json && code <= NR_EXIT_CHECK) {
    json_t *all =
        json_pack("{s:f, s:b, s:O}", "tolerance", a.tolerance, "ok", code == NR_EXIT_OK, "combinations", rows);
    char *text = json_dumps(all, JSON_INDENT(2));
    puts(text ? text : "null");
    free(text);
    json_decref(all);
  }
  json_decref(rows);
  return code;
}

const nr_command nr_command_gradcheck = {
    "gradcheck", "[OPTION ...]", "Compare the reference's gradients with finite differences", options, run, NULL};
