/* normrope forward, normrope backward: a case in, the operator's outputs out, both in place in mapped files. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/case.h"
#include "cli/run.h"

enum { KEY_ONLY = NR_KEY_FIRST_FREE };

static const nr_option options[] = {{"output", 'o', "FILE", "where to write the results (required)"},
                                    NR_RUN_OPTION_ROWS,
                                    {"only", KEY_ONLY, "NAMES", "write only these outputs: names, with commas"},
                                    {NULL, 0, NULL, NULL}};

typedef struct arguments {
  const char *input, *output, *only;
  nr_direction direction;
  nr_run_options run;
} arguments;

/* Whether a list of names with commas has this one. */
static bool listed(const char *list, const char *name) {
  size_t length = strlen(name);
  for (const char *at = list; at; at = strchr(at, ',')) {
    at += at != list;
    if (!strncmp(at, name, length) && (at[length] == ',' || !at[length]))
      return true;
  }
  return false;
}

static int count_names(const char *list) {
  int count = 1;
  for (; *list; list++)
    count += *list == ',';
  return count;
}

/* The outputs to write, as tensors; their number, or -1 after complaining. */
static int choose_outputs(const nr_command *command, const arguments *a, const nr_case *c, nr_tensor *tensors) {
  int count = 0;
  for (int i = 0; i < c->num_outputs; i++)
    if (c->outputs[i].direction == a->direction && c->outputs[i].used &&
        (!a->only || listed(a->only, c->outputs[i].tensor.name)))
      tensors[count++] = c->outputs[i].tensor;
  if (a->only && count != count_names(a->only)) {
    nr_usage(command, "--only %s names something that is no output of this case, or twice", a->only);
    return -1;
  }
  return count;
}

/* The case's attributes, and which direction these are the results of. */
static json_t *result_metadata(const nr_container *file, nr_direction direction) {
  json_t *metadata = json_copy(file->metadata);
  if (metadata)
    json_object_set_new(metadata, "direction", json_string(direction == NR_FORWARD ? "forward" : "backward"));
  return metadata;
}

static int run_into(const arguments *a, nr_case *c, const nr_container *out, nr_message *message) {
  for (int i = 0; i < c->num_outputs; i++) {
    const nr_tensor *t = nr_container_find(out, c->outputs[i].tensor.name);
    c->outputs[i].tensor.data = t && c->outputs[i].direction == a->direction ? t->data : NULL;
  }
  nr_segment segments[NR_MAX_SEGMENTS];
  int count = nr_case_bind(c, a->direction, segments, NULL);
  return nr_run_segments(segments, count, a->direction, &a->run, a->input, message);
}

static int run_case(const nr_command *command, const arguments *a, nr_case *c, nr_message *message) {
  nr_tensor *tensors = calloc(NR_MAX_OUTPUTS, sizeof *tensors);
  json_t *metadata = result_metadata(c->file, a->direction);
  int code = tensors && metadata ? NR_EXIT_OK : nr_refuse(message, NR_EXIT_RUN, "%s: out of memory", a->input);
  int count = code ? 0 : choose_outputs(command, a, c, tensors);
  nr_container out = {0};
  if (count < 0)
    code = NR_EXIT_USAGE;
  if (!code && !nr_case_supports(c, a->direction, message))
    code = NR_EXIT_FILE;
  if (!code)
    code = nr_container_create(&out, a->output, tensors, (size_t)count, metadata, message);
  if (!code) {
    code = run_into(a, c, &out, message);
    if (!code)
      code = nr_container_commit(&out, message);
    nr_container_close(&out);
  }
  json_decref(metadata);
  free(tensors);
  return code;
}

static int run(const nr_command *command, int argc, char **argv, nr_direction direction) {
  arguments a = {.direction = direction};
  int key, code = NR_EXIT_OK;
  while ((key = nr_next_option(command, argc, argv)) > 0) {
    if (key == 'o')
      a.output = optarg;
    else if (key == KEY_ONLY)
      a.only = optarg;
    else
      code = nr_run_option(&a.run, command, key, optarg);
    if (code)
      return code;
  }
  if (key != NR_OPTION_END)
    return nr_option_exit(key);
  if (argc - optind != 1)
    return nr_usage(command, "%d files given, expected one case", argc - optind);
  if (!a.output)
    return nr_usage(command, "no output file, expected -o FILE");
  a.input = argv[optind];
  nr_message message = {""};
  nr_container file;
  nr_case *c = NULL;
  code = nr_check_output(a.output, &a.input, 1, &message);
  if (!code)
    code = nr_container_open(&file, a.input, &message);
  if (!code) {
    code = nr_case_load(&c, &file, &message);
    if (!code)
      code = run_case(command, &a, c, &message);
    nr_case_free(c);
    nr_container_close(&file);
  }
  if (code && *message.text)
    nr_complain(message.text);
  return code;
}

static int run_forward(const nr_command *self, int argc, char **argv) { return run(self, argc, argv, NR_FORWARD); }
static int run_backward(const nr_command *self, int argc, char **argv) { return run(self, argc, argv, NR_BACKWARD); }

const nr_command nr_command_forward = {
    "forward", "FILE -o FILE [OPTION ...]", "Compute a case's outputs and statistics", options, run_forward, NULL};
const nr_command nr_command_backward = {
    "backward", "FILE -o FILE [OPTION ...]", "Compute a case's gradients", options, run_backward, NULL};
