/* normrope make-case: a preset, or any other shape, as a case file with made-up data. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "cli/make_case.h"
#include "cli/recipe_options.h"
#include "cli/run.h"

static const nr_option options[] = {{"output", 'o', "FILE", "where to write the case (required)"},
                                    {"dtype", NR_RECIPE_DTYPE, "NAME", "float32, float16 or bfloat16"},
                                    NR_RECIPE_OPTION_ROWS,
                                    NR_PROGRESS_OPTION_ROW,
                                    {NULL, 0, NULL, NULL}};

static int run(const nr_command *self, int argc, char **argv) {
  struct {
    int key;
    const char *value;
  } given[64];
  int count = 0, key;
  const char *output = NULL;
  bool progress = false;
  while ((key = nr_next_option(self, argc, argv)) > 0) {
    if (key == 'o') {
      output = optarg;
    } else if (key == NR_KEY_PROGRESS) {
      progress = true;
    } else if (count == 64) {
      return nr_usage(self, "too many options");
    } else {
      given[count].key = key;
      given[count++].value = optarg;
    }
  }
  if (key != NR_OPTION_END)
    return nr_option_exit(key);
  if (argc - optind > 1)
    return nr_usage(self, "%d operands given, expected one preset at most", argc - optind);
  int preset = nr_preset_find(argc > optind ? argv[optind] : "reference");
  if (preset < 0)
    return nr_usage(self, "%s: no such preset; 'normrope info' lists them", argv[optind]);
  if (!output)
    return nr_usage(self, "no output file, expected -o FILE");
  nr_recipe recipe = nr_preset_recipe(preset);
  if (argc == optind)
    recipe.name = NULL;
  int code = NR_EXIT_OK;
  for (int i = 0; i < count && !code; i++)
    code = nr_recipe_option(&recipe, self, given[i].key, given[i].value);
  if (code)
    return code;
  nr_message message = {""};
  code = nr_recipe_resolve(&recipe, &message);
  if (code)
    return nr_usage(self, "%s", message.text);
  code = nr_check_output(output, NULL, 0, &message);
  if (!code)
    code = nr_make_case(&recipe, output, progress, &message);
  if (code)
    nr_complain(message.text);
  return code;
}

static const char notes[] =
    "Options change the preset; without one they change 'reference'. The file has the operator's tensors and "
    "attributes\n"
    "where the operator can express the problem, and otherwise the general description (docs/cases.md).\n";

const nr_command nr_command_make_case = {"make-case",
                                         "[PRESET] -o FILE [OPTION ...]",
                                         "Write a case with made-up data: a preset's shape, or any",
                                         options,
                                         run,
                                         notes};
