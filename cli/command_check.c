/* normrope check: a case's results, its own run's or a file's, against the double-precision reference. */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/case.h"
#include "cli/check.h"
#include "cli/run.h"

enum { KEY_DIRECTION = NR_KEY_FIRST_FREE, ALIGNMENT = 64, POISON = 0xff };

static const nr_option options[] = {
    NR_RUN_OPTION_ROWS,
    {"direction", KEY_DIRECTION, "NAME", "forward or backward only (default: what the files are for)"},
    NR_JSON_OPTION_ROW,
    NR_PROGRESS_OPTION_ROW,
    {NULL, 0, NULL, NULL}};

typedef struct arguments {
  const char *input, *result;
  int direction; /* an nr_direction, or -1: those that the files are for */
  nr_run_options run;
  bool json, progress;
} arguments;

static const char *const direction_names[] = {"forward", "backward"};

/* Memory for the outputs of the case's own run, full of NaN so that what is not written shows. */
static int allocate_outputs(nr_case *c, nr_direction direction, nr_message *message) {
  for (int i = 0; i < c->num_outputs; i++) {
    nr_tensor *t = &c->outputs[i].tensor;
    t->data = NULL;
    if (c->outputs[i].direction != direction || !c->outputs[i].used)
      continue;
    size_t size;
    if (nr_tensor_measure(t) && !__builtin_add_overflow(t->size, ALIGNMENT, &size))
      t->data = aligned_alloc(ALIGNMENT, size / ALIGNMENT * ALIGNMENT);
    if (!t->data)
      return nr_refuse(message, NR_EXIT_RUN, "%s: out of memory for %s", c->file->path, t->name);
    memset(t->data, POISON, t->size);
  }
  return NR_EXIT_OK;
}

static void free_outputs(nr_case *c) {
  for (int i = 0; i < c->num_outputs; i++) {
    free(c->outputs[i].tensor.data);
    c->outputs[i].tensor.data = NULL;
  }
}

/* Takes the outputs of this direction from a result file. *found counts them. */
static int adopt_outputs(nr_case *c, nr_direction direction, const nr_container *result, int *found,
                         nr_message *message) {
  *found = 0;
  for (int i = 0; i < c->num_outputs; i++) {
    nr_tensor *expected = &c->outputs[i].tensor;
    const nr_tensor *t = nr_container_find(result, expected->name);
    expected->data = NULL;
    if (!t || c->outputs[i].direction != direction || !c->outputs[i].used)
      continue;
    char got_shape[160], wanted_shape[160];
    if (t->dtype != expected->dtype || t->rank != expected->rank ||
        memcmp(t->shape, expected->shape, (size_t)t->rank * sizeof *t->shape))
      return nr_refuse(message, NR_EXIT_FILE, "%s: %.80s: %s %s, expected %s %s", result->path, t->name,
                       t->dtype == NR_FOREIGN_DTYPE ? "a foreign dtype" : nr_dtype_name((nr_dtype)t->dtype),
                       nr_tensor_shape(t, got_shape, sizeof got_shape), nr_dtype_name((nr_dtype)expected->dtype),
                       nr_tensor_shape(expected, wanted_shape, sizeof wanted_shape));
    expected->data = t->data;
    ++*found;
  }
  return NR_EXIT_OK;
}

/* "[0,17,3,5]", the place of an element in its tensor. */
static const char *place(const nr_tensor *t, int64_t index, char *buffer, size_t size) {
  nr_tensor at = {.rank = t->rank};
  for (int i = t->rank; i-- > 0; index /= t->shape[i] ? t->shape[i] : 1)
    at.shape[i] = t->shape[i] ? index % t->shape[i] : 0;
  return nr_tensor_shape(&at, buffer, size);
}

static json_t *number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static void print_row(const nr_case_output *output, const nr_verdict *v) {
  char where[160];
  printf("%-26s %12" PRId64 " %10.3g %12.5f  %-22s %s\n", output->tensor.name, v->elements, v->worst_ulp,
         v->worst_ratio, v->elements ? place(&output->tensor, v->worst_index, where, sizeof where) : "-",
         v->failures ? "FAIL" : "ok");
  if (v->failures)
    printf("  %" PRId64 " beyond the bound; at the worst %.9g, expected %.9g\n", v->failures, v->got, v->expected);
}

static json_t *json_row(const nr_case_output *output, const nr_verdict *v) {
  char where[160];
  json_t *index = v->elements
                      ? json_loads(place(&output->tensor, v->worst_index, where, sizeof where), JSON_DECODE_ANY, NULL)
                      : json_null();
  return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:b}", "name", output->tensor.name, "dtype",
                   nr_dtype_name((nr_dtype)output->tensor.dtype), "elements", (json_int_t)v->elements, "worst_ulp",
                   number(v->worst_ulp), "worst_ratio", number(v->worst_ratio), "worst_index", index, "got",
                   number(v->got), "expected", number(v->expected), "failures", (json_int_t)v->failures, "ok",
                   v->failures == 0);
}

/* Prints what was judged; adds to the JSON report. Returns the exit code. */
static int report(const arguments *a, const nr_case *c, nr_direction direction, const nr_verdict *verdicts,
                  json_t *rows) {
  int code = NR_EXIT_OK, absent = 0;
  if (!a->json)
    printf("%-26s %12s %10s %12s  %-22s %s\n", direction_names[direction], "elements", "worst ulp", "error/bound",
           "worst at", "verdict");
  for (int i = 0; i < c->num_outputs; i++) {
    const nr_case_output *output = &c->outputs[i];
    if (output->direction != direction || !output->used)
      continue;
    if (!output->tensor.data && !a->json)
      printf("%-26s %12s\n", output->tensor.name, "absent");
    if (!output->tensor.data) {
      absent++;
      continue;
    }
    if (verdicts[i].failures)
      code = NR_EXIT_CHECK;
    if (a->json)
      json_array_append_new(rows, json_row(output, &verdicts[i]));
    else
      print_row(output, &verdicts[i]);
  }
  if (!a->json && absent)
    printf("%d absent, not judged.\n", absent);
  if (!a->json && !code)
    printf("All that is there is within its bounds (docs/numerics.md). Many ulp are a result near 0 in a row of large "
           "terms.\n");
  return code;
}

static int check_direction(const arguments *a, nr_case *c, nr_direction direction, const nr_container *result,
                           json_t *rows, bool *checked, nr_message *message) {
  int found = 1, code;
  nr_segment segments[NR_MAX_SEGMENTS];
  if (result) {
    code = adopt_outputs(c, direction, result, &found, message);
    if (!code && found && !nr_case_supports(c, direction, message))
      code = NR_EXIT_FILE;
  } else {
    code = allocate_outputs(c, direction, message);
    int count = code ? 0 : nr_case_bind(c, direction, segments, NULL);
    if (!code)
      code = nr_run_segments(segments, count, direction, &a->run, a->input, message);
  }
  nr_verdict *verdicts = calloc(NR_MAX_OUTPUTS, sizeof *verdicts);
  if (!code && !verdicts)
    code = nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", a->input);
  if (!code && found) {
    code = nr_check_case(c, direction, a->run.threads, a->progress, verdicts, message);
    if (!code)
      code = report(a, c, direction, verdicts, rows);
    *checked = true;
  }
  free(verdicts);
  if (!result)
    free_outputs(c);
  return code;
}

static int check(const arguments *a, nr_case *c, const nr_container *result, nr_message *message) {
  json_t *rows = json_array();
  int worst = NR_EXIT_OK;
  bool checked = false;
  for (int d = NR_FORWARD; d <= NR_BACKWARD && worst <= NR_EXIT_CHECK; d++) {
    if (a->direction >= 0 && a->direction != d)
      continue;
    if (!result && !nr_case_supports(c, (nr_direction)d, message)) {
      if (a->direction == d)
        worst = NR_EXIT_FILE;
      continue;
    }
    int code = check_direction(a, c, (nr_direction)d, result, rows, &checked, message);
    worst = code > worst ? code : worst;
  }
  if (worst <= NR_EXIT_CHECK && !checked) {
    worst = NR_EXIT_FILE;
    if (result)
      nr_refuse(message, 0, "%s: none of the case's outputs is in it", result->path);
  }
  if (worst <= NR_EXIT_CHECK && a->json) {
    json_t *all = json_pack("{s:s, s:s?, s:b, s:O}", "case", a->input, "result", a->result, "ok", worst == NR_EXIT_OK,
                            "outputs", rows);
    char *text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;
    if (!text)
      worst = nr_refuse(message, NR_EXIT_RUN, "%s: its name, or an output's, cannot be written as JSON", a->input);
    else
      puts(text);
    free(text);
    json_decref(all);
  }
  json_decref(rows);
  return worst;
}

static int check_files(const arguments *a, nr_message *message) {
  nr_container file, result;
  nr_case *c;
  int code = nr_container_open(&file, a->input, message);
  if (code)
    return code;
  code = nr_case_load(&c, &file, message);
  if (!code && a->result) {
    code = nr_container_open(&result, a->result, message);
    if (!code) {
      code = check(a, c, &result, message);
      nr_container_close(&result);
    }
  } else if (!code) {
    code = check(a, c, NULL, message);
  }
  nr_case_free(c);
  nr_container_close(&file);
  return code;
}

static int run(const nr_command *self, int argc, char **argv) {
  arguments a = {.direction = -1};
  int key, code = NR_EXIT_OK;
  while ((key = nr_next_option(self, argc, argv)) > 0) {
    switch (key) {
    case NR_KEY_JSON: a.json = true; break;
    case NR_KEY_PROGRESS: a.progress = true; break;
    case KEY_DIRECTION:
      a.direction = !strcmp(optarg, "forward") ? NR_FORWARD : !strcmp(optarg, "backward") ? NR_BACKWARD : -1;
      if (a.direction < 0)
        code = nr_unexpected(self, key, optarg, "forward or backward");
      break;
    default: code = nr_run_option(&a.run, self, key, optarg);
    }
    if (code)
      return code;
  }
  if (key != NR_OPTION_END)
    return nr_option_exit(key);
  if (argc - optind < 1 || argc - optind > 2)
    return nr_usage(self, "%d files given, expected a case and perhaps a result", argc - optind);
  a.input = argv[optind];
  a.result = argc - optind == 2 ? argv[optind + 1] : NULL;
  nr_message message = {""};
  code = check_files(&a, &message);
  if (code > NR_EXIT_CHECK && *message.text)
    nr_complain(message.text);
  return code;
}

static const char notes[] =
    "Bounds: rows, half an ulp of the output's dtype and 3 (forward: 4) float32 roundings of the row's largest term;\n"
    "parameter and table gradients, half an ulp and 4 roundings of the sum of their terms' magnitudes; statistics,\n"
    "2 ulp and the roundings of their sums; rows without norm and rope, equal bits. Exits 1 if an element is beyond "
    "them.\n";

const nr_command nr_command_check = {
    "check", "FILE [RESULT] [OPTION ...]", "Compare a case's results with the double-precision reference", options, run,
    notes};
