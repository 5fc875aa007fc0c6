/* normrope bench: the operator's time beside a copy of the same bytes and a plain loop over the same rows. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"
#include "cli/make_case.h"
#include "cli/recipe_options.h"
#include "cli/run.h"

enum { KEY_PRESET = NR_KEY_FIRST_FREE, KEY_DIRECTION, KEY_REPEAT, MAX_LIST = 64, MAX_GIVEN = 64, REPEAT = 15 };

static const nr_option options[] = {
    {"preset", KEY_PRESET, "LIST", "presets, with commas, or all (default flux-ln,flux,hunyuan-dit,cosmos,wan,wide)"},
    {"dtype", NR_RECIPE_DTYPE, "LIST", "of float32, float16, bfloat16, or all (default float32,bfloat16)"},
    {"direction", KEY_DIRECTION, "LIST", "of forward, backward (default both)"},
    {"isa", NR_KEY_ISA, "LIST", "CPU instruction sets, or all that this machine can run (default the best)"},
    {"threads", NR_KEY_THREADS, "LIST", "numbers of threads (default as 'normrope info' says)"},
    {"repeat", KEY_REPEAT, "N", "rounds that are measured, after two that are not (default 15)"},
    NR_JSON_OPTION_ROW,
    NR_PROGRESS_OPTION_ROW,
    NR_RECIPE_OPTION_ROWS,
    {NULL, 0, NULL, NULL}};

/* What is to be timed: all combinations of the lists. */
typedef struct wishes {
  const nr_command *command;
  int presets[MAX_LIST], dtypes[MAX_LIST], directions[MAX_LIST], threads[MAX_LIST];
  const char *isas[MAX_LIST];
  int num_presets, num_dtypes, num_directions, num_threads, num_isas;
  int repeat;
  struct {
    int key;
    const char *value;
  } given[MAX_GIVEN];
  int num_given;
  bool json, progress;
} wishes;

static const char *direction_name(int direction) { return direction == NR_FORWARD ? "forward" : "backward"; }

static int add_preset(wishes *w, const char *item) {
  if (!strcmp(item, "all")) {
    for (w->num_presets = 0; nr_preset_name(w->num_presets) && w->num_presets < MAX_LIST / 2; w->num_presets++)
      w->presets[w->num_presets] = w->num_presets;
    return NR_EXIT_OK;
  }
  int preset = nr_preset_find(item);
  if (preset < 0)
    return nr_unexpected(w->command, KEY_PRESET, item, "one that 'normrope info' lists");
  w->presets[w->num_presets++] = preset;
  return NR_EXIT_OK;
}

static int add_dtype(wishes *w, const char *item) {
  if (!strcmp(item, "all")) {
    for (w->num_dtypes = 0; w->num_dtypes < NR_F64; w->num_dtypes++)
      w->dtypes[w->num_dtypes] = w->num_dtypes;
    return NR_EXIT_OK;
  }
  if (!nr_parse_dtype(item, &w->dtypes[w->num_dtypes]))
    return nr_unexpected(w->command, NR_RECIPE_DTYPE, item, "float32, float16, bfloat16 or all");
  w->num_dtypes++;
  return NR_EXIT_OK;
}

static int add_direction(wishes *w, const char *item) {
  bool backward = !strcmp(item, "backward");
  if (!backward && strcmp(item, "forward"))
    return nr_unexpected(w->command, KEY_DIRECTION, item, "forward or backward");
  w->directions[w->num_directions++] = backward ? NR_BACKWARD : NR_FORWARD;
  return NR_EXIT_OK;
}

static int add_isa(wishes *w, const char *item) {
  bool all = !strcmp(item, "all");
  nr_run_options run = {0};
  int code = all ? NR_EXIT_OK : nr_run_option(&run, w->command, NR_KEY_ISA, item);
  for (int32_t i = 0; nr_isa(i) && !code && w->num_isas < MAX_LIST; i++)
    if (all ? nr_isa_usable(nr_isa(i)) : !strcmp(nr_isa(i), item))
      w->isas[w->num_isas++] = nr_isa(i);
  return code;
}

static int add_threads(wishes *w, const char *item) {
  nr_run_options run = {0};
  int code = nr_run_option(&run, w->command, NR_KEY_THREADS, item);
  w->threads[w->num_threads++] = run.threads;
  return code;
}

/* Hands on every item of a list with commas. */
static int read_list(wishes *w, const char *list, int (*add)(wishes *, const char *)) {
  char item[64];
  int code = NR_EXIT_OK, count = 0;
  for (const char *at = list; at && !code; at = strchr(at, ',')) {
    at += at != list;
    size_t length = strcspn(at, ",");
    if (!length || length >= sizeof item || ++count > MAX_LIST / 4)
      return nr_usage(w->command, "%s: an item is empty or too long, or there are too many", list);
    memcpy(item, at, length);
    item[length] = 0;
    code = add(w, item);
  }
  return code;
}

static int read_option(wishes *w, int key, const char *value) {
  int64_t number;
  switch (key) {
  case KEY_PRESET: w->num_presets = 0; return read_list(w, value, add_preset);
  case NR_RECIPE_DTYPE: w->num_dtypes = 0; return read_list(w, value, add_dtype);
  case KEY_DIRECTION: w->num_directions = 0; return read_list(w, value, add_direction);
  case NR_KEY_ISA: w->num_isas = 0; return read_list(w, value, add_isa);
  case NR_KEY_THREADS: w->num_threads = 0; return read_list(w, value, add_threads);
  case NR_KEY_JSON: w->json = true; return NR_EXIT_OK;
  case NR_KEY_PROGRESS: w->progress = true; return NR_EXIT_OK;
  case KEY_REPEAT:
    if (!nr_parse_integer(value, 1, NR_BENCH_MAX_REPEAT, &number))
      return nr_unexpected(w->command, key, value, "a number from 1 to %d", NR_BENCH_MAX_REPEAT);
    w->repeat = (int)number;
    return NR_EXIT_OK;
  }
  if (w->num_given == MAX_GIVEN)
    return nr_usage(w->command, "too many options");
  w->given[w->num_given].key = key;
  w->given[w->num_given++].value = value;
  return NR_EXIT_OK;
}

/* False where there is nothing to run, with the exit code in *code. */
static bool read_wishes(wishes *w, int argc, char **argv, int *code) {
  int key;
  read_list(w, "flux-ln,flux,hunyuan-dit,cosmos,wan,wide", add_preset);
  read_list(w, "float32,bfloat16", add_dtype);
  read_list(w, "forward,backward", add_direction);
  while ((key = nr_next_option(w->command, argc, argv)) > 0)
    if ((*code = read_option(w, key, optarg)))
      return false;
  *code = key == NR_OPTION_END ? NR_EXIT_OK : nr_option_exit(key);
  if (key != NR_OPTION_END)
    return false;
  if (argc > optind)
    *code = nr_usage(w->command, "%s: bench takes no operand; --preset names presets", argv[optind]);
  if (!w->num_isas)
    w->isas[w->num_isas++] = nr_isa_default();
  if (!w->num_threads)
    w->threads[w->num_threads++] = nr_default_threads();
  return !*code;
}

/* A preset in a dtype, with the options that change it. */
static int recipe_of(const wishes *w, int preset, int dtype, nr_recipe *recipe) {
  nr_message message;
  *recipe = nr_preset_recipe(preset);
  int code = nr_recipe_option(recipe, w->command, NR_RECIPE_DTYPE, nr_dtype_name((nr_dtype)dtype));
  for (int i = 0; i < w->num_given && !code; i++)
    code = nr_recipe_option(recipe, w->command, w->given[i].key, w->given[i].value);
  if (code)
    return code;
  return nr_recipe_resolve(recipe, &message) ? nr_usage(w->command, "%s: %s", recipe->name, message.text) : NR_EXIT_OK;
}

/* About what a round moves. */
static double weight_of(const nr_recipe *r, int direction) {
  double rows = (double)(r->heads * (r->image + r->text) + 2 * r->kv_heads * (r->image_key + r->text_key));
  return (double)(r->batch * r->dim) * rows * (double)nr_dtype_size((nr_dtype)r->dtype) *
         (direction == NR_FORWARD ? 2 : 3);
}

/* "12.34 ms" */
static const char *duration(double seconds, char text[24]) {
  snprintf(text, 24, seconds < 1e-3 ? "%.2f us" : "%.2f ms", seconds * (seconds < 1e-3 ? 1e6 : 1e3));
  return text;
}

static double ratio(const nr_bench_result *r, nr_timed yardstick) {
  return r->summary[NR_TIMED_OPERATOR].median / r->summary[yardstick].median;
}

static void print_heading(const wishes *w) {
  json_t *machine = nr_bench_machine();
  const char *cpu = json_string_value(json_object_get(machine, "cpu"));
  printf("normrope %s%s%s; medians of %d rounds of copy, loop and operator in turn; %d go before\n"
         "memory on boundaries of 2 MiB, huge pages asked for; * copy or loop with streaming stores\n\n",
         nr_version(), cpu ? ", " : "", cpu ? cpu : "", w->repeat, NR_BENCH_WARM_UP);
  printf("%-13s %-8s %-8s %-7s %7s %10s %-21s %11s %11s %6s %6s %6s\n", "preset", "dtype", "", "isa", "threads", "time",
         "  quartiles", "copy", "loop", "GB/s", "/copy", "/loop");
  json_decref(machine);
}

static void print_result(const nr_recipe *recipe, const nr_bench_case *b, const char *isa, int threads,
                         const nr_bench_result *r) {
  const nr_summary *s = &r->summary[NR_TIMED_OPERATOR];
  char time[24], lower[24], upper[24], copy[24], loop[24], range[64];
  snprintf(range, sizeof range, "[%s, %s]", duration(s->lower, lower), duration(s->upper, upper));
  printf("%-13s %-8s %-8s %-7s %7d %10s %-21s %10s%c %10s%c %6.1f %6.2f %6.2f\n", recipe->name,
         nr_dtype_name((nr_dtype)recipe->dtype), direction_name(b->direction), isa, threads, duration(s->median, time),
         range, duration(r->summary[r->copy].median, copy), r->copy == NR_TIMED_COPY ? ' ' : '*',
         duration(r->summary[r->loop].median, loop), r->loop == NR_TIMED_LOOP ? ' ' : '*',
         1e-9 * (double)b->bytes / s->median, ratio(r, r->copy), ratio(r, r->loop));
  fflush(stdout);
}

static json_t *summary_json(const nr_summary *s, const double *samples, int count) {
  json_t *object = json_pack("{s:f, s:f, s:f, s:f, s:f}", "median", s->median, "lower_quartile", s->lower,
                             "upper_quartile", s->upper, "least", s->least, "most", s->most);
  if (!samples)
    return object;
  json_t *list = json_array();
  for (int i = 0; i < count; i++)
    json_array_append_new(list, json_real(samples[i]));
  json_object_set_new(object, "samples", list);
  return object;
}

static json_t *result_json(const nr_recipe *r, const nr_bench_case *b, const char *isa, int threads,
                           const nr_bench_result *result, int repeat) {
  json_t *object =
      json_pack("{s:s, s:s, s:s, s:s, s:i, s:I, s:I}", "preset", r->name, "dtype", nr_dtype_name((nr_dtype)r->dtype),
                "direction", direction_name(b->direction), "isa", isa, "threads", threads, "bytes",
                (json_int_t)b->bytes, "huge_page_bytes", (json_int_t)nr_bench_huge_bytes());
  json_object_set_new(object, "shape",
                      json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "batch", (json_int_t)r->batch, "heads",
                                (json_int_t)r->heads, "kv_heads", (json_int_t)r->kv_heads, "dim", (json_int_t)r->dim,
                                "image", (json_int_t)r->image, "text", (json_int_t)r->text, "image_key",
                                (json_int_t)r->image_key, "text_key", (json_int_t)r->text_key));
  json_t *seconds = json_object();
  for (int i = 0; i < NR_NUM_TIMED; i++)
    if (result->timed[i])
      json_object_set_new(seconds, nr_timed_names[i], summary_json(&result->summary[i], result->samples[i], repeat));
  json_object_set_new(object, "seconds", seconds);
  json_object_set_new(object, "copy", json_string(nr_timed_names[result->copy]));
  json_object_set_new(object, "loop", json_string(nr_timed_names[result->loop]));
  json_object_set_new(object, "ratio_to_copy", json_real(ratio(result, result->copy)));
  json_object_set_new(object, "ratio_to_loop", json_real(ratio(result, result->loop)));
  json_object_set_new(object, "gigabytes_per_second",
                      json_real(1e-9 * (double)b->bytes / result->summary[NR_TIMED_OPERATOR].median));
  return object;
}

/* One preset, dtype and direction: the data once, every instruction set and number of threads on it. */
static int bench_case(const wishes *w, const nr_recipe *recipe, int direction, nr_progress *progress, json_t *results,
                      nr_message *message) {
  nr_bench_case b;
  int most = 1;
  for (int i = 0; i < w->num_threads; i++)
    most = w->threads[i] > most ? w->threads[i] : most;
  int code = nr_bench_case_open(&b, recipe, (nr_direction)direction, true, most, message);
  if (code)
    return code;
  for (int i = 0; i < w->num_isas && !code; i++)
    for (int k = 0; k < w->num_threads && !code; k++) {
      nr_bench_result result;
      code = nr_bench_measure(&b, w->isas[i], w->threads[k], w->repeat, progress, weight_of(recipe, direction), &result,
                              message);
      nr_progress_end(progress);
      if (!code && w->json)
        json_array_append_new(results, result_json(recipe, &b, w->isas[i], w->threads[k], &result, w->repeat));
      else if (!code)
        print_result(recipe, &b, w->isas[i], w->threads[k], &result);
      nr_bench_result_free(&result);
    }
  nr_bench_case_close(&b);
  return code;
}

/* Latencies of both directions, into the JSON or as text. */
static int bench_latency(const wishes *w, json_t *latencies, nr_message *message) {
  nr_summary s[NR_NUM_LATENCIES];
  int code = NR_EXIT_OK;
  if (!w->json)
    printf("\na tiny call: preset reference, float32, %s, %d threads\n", nr_isa_default(), (int)nr_default_threads());
  for (int direction = 0; direction < 2 && !(code = nr_bench_latency((nr_direction)direction, s, message));
       direction++) {
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:i}", "preset", "reference", "dtype", "float32", "direction",
                  direction_name(direction), "isa", nr_isa_default(), "threads", (int)nr_default_threads());
    for (int i = 0; i < NR_NUM_LATENCIES; i++) {
      char median[24], lower[24], upper[24];
      json_object_set_new(object, nr_latency_names[i], summary_json(&s[i], NULL, 0));
      if (!w->json)
        printf("%-8s %-34s %10s  [%s, %s]\n", direction_name(direction), nr_latency_names[i],
               duration(s[i].median, median), duration(s[i].lower, lower), duration(s[i].upper, upper));
    }
    json_array_append_new(latencies, object);
  }
  return code;
}

static int print_json(const wishes *w, json_t *results, json_t *latencies) {
  json_t *all = json_pack("{s:s, s:o, s:i, s:i, s:{s:i, s:b}, s:O, s:O}", "version", nr_version(), "machine",
                          nr_bench_machine(), "repeat", w->repeat, "warm_up", NR_BENCH_WARM_UP, "memory", "alignment",
                          NR_HUGE_PAGE, "huge_pages_advised", 1, "results", results, "latency", latencies);
  char *text = all ? json_dumps(all, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
  json_decref(all);
  if (!text) {
    nr_complain("out of memory");
    return NR_EXIT_RUN;
  }
  puts(text);
  free(text);
  return NR_EXIT_OK;
}

static int run(const nr_command *self, int argc, char **argv) {
  wishes w = {.command = self, .repeat = REPEAT};
  nr_message message = {""};
  nr_recipe recipe;
  double total = 0;
  int code;
  if (!read_wishes(&w, argc, argv, &code))
    return code;
  for (int p = 0; p < w.num_presets; p++) /* all is checked before anything is timed */
    for (int t = 0; t < w.num_dtypes && !code; t++) {
      code = recipe_of(&w, w.presets[p], w.dtypes[t], &recipe);
      for (int d = 0; d < w.num_directions && !code; d++)
        total += weight_of(&recipe, w.directions[d]);
    }
  if (code)
    return code;
  json_t *results = json_array(), *latencies = json_array();
  nr_progress progress =
      nr_progress_start("bench", total * w.num_isas * w.num_threads * (w.repeat + NR_BENCH_WARM_UP), w.progress);
  if (!w.json)
    print_heading(&w);
  for (int p = 0; p < w.num_presets; p++)
    for (int t = 0; t < w.num_dtypes; t++)
      for (int d = 0; d < w.num_directions && !code; d++) {
        code = recipe_of(&w, w.presets[p], w.dtypes[t], &recipe);
        if (!code)
          code = bench_case(&w, &recipe, w.directions[d], &progress, results, &message);
      }
  if (!code)
    code = bench_latency(&w, latencies, &message);
  if (!code && w.json)
    code = print_json(&w, results, latencies);
  if (code && *message.text)
    nr_complain(message.text);
  json_decref(results);
  json_decref(latencies);
  return code;
}

static const char notes[] =
    "Every combination is timed at the preset's full size; the options from --batch on change it, as in make-case.\n"
    "copy: the bytes that the operator reads and writes, copied; loop: its rows read and written in its order without\n"
    "the arithmetic. All take turns in one run, on the same threads. normrope(1) says more.\n";

const nr_command nr_command_bench = {"bench", "[OPTION ...]", "Time presets beside a copy of the same bytes", options,
                                     run,     notes};
