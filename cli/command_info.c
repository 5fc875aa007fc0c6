/* normrope info: what this build and this machine have, and what the environment asks for. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/device.h"
#include "cli/presets.h"
#include "cli/run.h"
#include <jansson.h>

static const nr_option options[] = {NR_JSON_OPTION_ROW, {NULL, 0, NULL, NULL}};

static const struct {
  const char *name, *meaning;
} knobs[] = {{"NORMROPE_ISA", "CPU instruction set to use"},
             {"NORMROPE_NUM_THREADS", "threads of a run (default: OpenMP's rule)"},
             {"NORMROPE_DEVICES", "devices of the runtime, in order, such as cuda,cpu"},
             {"NORMROPE_VERBOSE", "none, error, dispatch or profile: what to say on stderr"}};
enum { NUM_KNOBS = sizeof knobs / sizeof *knobs };

static const char *rope_name(const nr_recipe *r) {
  return r->rope_width == 0 ? "none" : r->rope_width == 2 ? "interleave" : "half";
}

/* Untrusted bytes of the environment as JSON text. */
static json_t *environment_json(const char *value) {
  json_t *text = value ? json_string(value) : json_null();
  return text ? text : json_string("(not UTF-8)");
}

static json_t *preset_json(const nr_recipe *r) {
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:I, s:s, s:s, s:s}", "name", r->name, "heads",
                   (json_int_t)r->heads, "dim", (json_int_t)r->dim, "image", (json_int_t)r->image, "text",
                   (json_int_t)r->text, "norm", (json_int_t)r->norm, "norm_added", (json_int_t)r->norm_added, "rope",
                   rope_name(r), "order", (json_int_t)r->order, "scope",
                   r->scope == NR_SCOPE_ALL_HEADS ? "all-heads" : "head", "dtype", nr_dtype_name((nr_dtype)r->dtype),
                   "note", r->note);
}

static int print_json(void) {
  json_t *isas = json_array(), *settings = json_array(), *presets = json_array(), *devices = json_array();
  for (int32_t i = 0; nr_isa(i); i++)
    json_array_append_new(isas, json_pack("{s:s, s:b}", "name", nr_isa(i), "usable", nr_isa_usable(nr_isa(i))));
  for (int i = 0; i < NUM_KNOBS; i++)
    json_array_append_new(settings, json_pack("{s:s, s:o, s:s}", "name", knobs[i].name, "value",
                                              environment_json(getenv(knobs[i].name)), "meaning", knobs[i].meaning));
  for (int i = 0; nr_preset_name(i); i++) {
    nr_recipe recipe = nr_preset_recipe(i);
    json_array_append_new(presets, preset_json(&recipe));
  }
  json_t *machine = json_array();
  for (int i = 0; i < NR_NUM_DEVICES; i++)
    json_array_append_new(devices, json_string(nr_devices[i].name));
  for (int i = 0; nr_runtime_device(i); i++)
    json_array_append_new(machine, json_string(nr_runtime_device(i)));
  json_t *all = json_pack("{s:s, s:o, s:s, s:i, s:o, s:o, s:o, s:o}", "version", nr_version(), "isas", isas,
                          "default_isa", nr_isa_default(), "threads", (int)nr_default_threads(), "devices", devices,
                          "runtime_devices", machine, "environment", settings, "presets", presets);
  char *text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;
  json_decref(all);
  if (!text) {
    nr_complain("out of memory");
    return NR_EXIT_RUN;
  }
  puts(text);
  free(text);
  return NR_EXIT_OK;
}

static void print_text(void) {
  printf("normrope %s\n\ninstruction sets:", nr_version());
  for (int32_t i = 0; nr_isa(i); i++)
    printf("  %s%s", nr_isa(i), nr_isa_usable(nr_isa(i)) ? "" : " (not on this machine)");
  printf("\nin use:            %s\nthreads:           %" PRId32 "\ndevices:         ", nr_isa_default(),
         nr_default_threads());
  for (int i = 0; i < NR_NUM_DEVICES; i++) {
    const char *absent = nr_devices[i].backend == NR_BACKEND_CUDA ? nr_cuda_absent() : NULL;
    printf("  %s", nr_devices[i].name);
    if (absent)
      printf(" (not here: %s)", absent);
  }
  printf("\nfound here:      ");
  for (int i = 0; nr_runtime_device(i); i++)
    printf("  %d: %s", i, nr_runtime_device(i));
  puts("\n\nenvironment:");
  for (int i = 0; i < NUM_KNOBS; i++) {
    const char *value = getenv(knobs[i].name);
    printf("  %-22s %-10s %s\n", knobs[i].name, value ? value : "(unset)", knobs[i].meaning);
  }
  puts("\npresets:          N x D    image +  text  norms  rope        order  dtype     note");
  for (int i = 0; nr_preset_name(i); i++) {
    nr_recipe r = nr_preset_recipe(i);
    printf("  %-14s %3" PRId64 " x %-4" PRId64 " %6" PRId64 " + %5" PRId64 "  %" PRId64 " / %" PRId64
           "  %-10s  %-5" PRId64 "  %-8s  %s\n",
           r.name, r.heads, r.dim, r.image, r.text, r.norm, r.norm_added, rope_name(&r), r.order,
           nr_dtype_name((nr_dtype)r.dtype), r.note);
  }
}

static int run(const nr_command *self, int argc, char **argv) {
  bool json = false;
  int key;
  while ((key = nr_next_option(self, argc, argv)) > 0)
    json = true;
  if (key != NR_OPTION_END)
    return nr_option_exit(key);
  if (argc > optind)
    return nr_usage(self, "%s: info takes no operand", argv[optind]);
  if (json)
    return print_json();
  print_text();
  return NR_EXIT_OK;
}

const nr_command nr_command_info = {"info",  "[--json]", "Show version, instruction sets, settings and presets",
                                    options, run,        NULL};
