/* normrope make-case: a preset, or any other shape, as a case file with made-up data. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "cli/make_case.h"
#include "cli/run.h"

enum {
  KEY_BATCH = NR_KEY_FIRST_FREE,
  KEY_HEADS,
  KEY_KV_HEADS,
  KEY_DIM,
  KEY_IMAGE,
  KEY_TEXT,
  KEY_IMAGE_KEY,
  KEY_TEXT_KEY,
  KEY_NORM,
  KEY_NORM_ADDED,
  KEY_SCOPE,
  KEY_SHARED,
  KEY_ROPE,
  KEY_ROPE_DIM,
  KEY_ROPE_START,
  KEY_ROPE_LENGTH,
  KEY_ORDER,
  KEY_DTYPE,
  KEY_TABLE_DTYPE,
  KEY_WEIGHT_DTYPE,
  KEY_EPS,
  KEY_TABLES,
  KEY_TABLE_GRADIENTS,
  KEY_SEED
};

static const nr_option options[] = {
    {"output", 'o', "FILE", "where to write the case (required)"},
    {"batch", KEY_BATCH, "B", "batch"},
    {"heads", KEY_HEADS, "N", "heads"},
    {"kv-heads", KEY_KV_HEADS, "N", "heads of key and value, where fewer"},
    {"dim", KEY_DIM, "D", "channels of a head, even, up to 1024"},
    {"image", KEY_IMAGE, "S", "length of the image stream"},
    {"text", KEY_TEXT, "S", "length of the text stream; 0: none"},
    {"image-key", KEY_IMAGE_KEY, "S", "length of key and value, where not that of query"},
    {"text-key", KEY_TEXT_KEY, "S", "the same of the text stream"},
    {"norm", KEY_NORM, "TYPE", "0 none, 1 LayerNorm, 2 affine LayerNorm, 3 RMSNorm, 4 affine RMSNorm"},
    {"norm-added", KEY_NORM_ADDED, "TYPE", "the same for the text stream"},
    {"scope", KEY_SCOPE, "WHAT", "statistics over each head, or over all-heads"},
    {"shared", KEY_SHARED, NULL, "text rows use the image's weights"},
    {"rope", KEY_ROPE, "KIND", "none, interleave, half, or the width of a pairing block"},
    {"rope-dim", KEY_ROPE_DIM, "D", "channels that rotate, where fewer than all"},
    {"rope-start", KEY_ROPE_START, "P", "joined position of the tables' first row"},
    {"rope-length", KEY_ROPE_LENGTH, "R", "rows of the tables"},
    {"order", KEY_ORDER, "N", "0 image first, 1 text first"},
    {"dtype", KEY_DTYPE, "NAME", "float32, float16 or bfloat16"},
    {"table-dtype", KEY_TABLE_DTYPE, "NAME", "of the rope tables"},
    {"weight-dtype", KEY_WEIGHT_DTYPE, "NAME", "of the norms' weights and biases"},
    {"eps", KEY_EPS, "X", "eps of the norms"},
    {"tables", KEY_TABLES, "KIND", "angles (default), or random: entries of no angle"},
    {"table-gradients", KEY_TABLE_GRADIENTS, NULL, "the backward gives the gradients of the tables too"},
    {"seed", KEY_SEED, "N", "of the made-up data (default 0)"},
    NR_PROGRESS_OPTION_ROW,
    {NULL, 0, NULL, NULL}};

/* Options that are a number in a range and a field of the recipe. */
static const struct {
  int key;
  int64_t low, high;
  size_t field;
} numbers[] = {{KEY_BATCH, 1, 1 << 20, offsetof(nr_recipe, batch)},
               {KEY_HEADS, 1, 1 << 16, offsetof(nr_recipe, heads)},
               {KEY_KV_HEADS, 1, 1 << 16, offsetof(nr_recipe, kv_heads)},
               {KEY_DIM, 2, 1024, offsetof(nr_recipe, dim)},
               {KEY_IMAGE, 1, 1 << 30, offsetof(nr_recipe, image)},
               {KEY_TEXT, 0, 1 << 30, offsetof(nr_recipe, text)},
               {KEY_IMAGE_KEY, 1, 1 << 30, offsetof(nr_recipe, image_key)},
               {KEY_TEXT_KEY, 0, 1 << 30, offsetof(nr_recipe, text_key)},
               {KEY_NORM, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm)},
               {KEY_NORM_ADDED, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm_added)},
               {KEY_ROPE_DIM, 2, 1024, offsetof(nr_recipe, rope_dim)},
               {KEY_ROPE_START, 0, INT64_C(1) << 31, offsetof(nr_recipe, rope_start)},
               {KEY_ROPE_LENGTH, 1, INT64_C(1) << 31, offsetof(nr_recipe, rope_length)},
               {KEY_ORDER, 0, 1, offsetof(nr_recipe, order)},
               {KEY_SEED, 0, INT64_MAX, offsetof(nr_recipe, seed)}};

static bool parse_dtype(const char *text, int *dtype) {
  for (int i = 0; i < NR_F64; i++)
    if (!strcmp(nr_dtype_name((nr_dtype)i), text)) {
      *dtype = i;
      return true;
    }
  return false;
}

static bool parse_choice(const char *text, const char *first, const char *second, int *value) {
  *value = !strcmp(text, second);
  return *value || !strcmp(text, first);
}

static bool parse_rope(const char *text, int64_t *width) {
  static const struct {
    const char *name;
    int64_t width;
  } kinds[] = {{"none", 0}, {"interleave", 2}, {"half", -1}};
  for (int i = 0; i < 3; i++)
    if (!strcmp(kinds[i].name, text)) {
      *width = kinds[i].width;
      return true;
    }
  return nr_parse_integer(text, 2, 1024, width);
}

/* One option's value into the recipe; false if it is none. */
static bool apply(nr_recipe *r, int key, const char *value) {
  int choice;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (numbers[i].key == key)
      return nr_parse_integer(value, numbers[i].low, numbers[i].high, (int64_t *)((char *)r + numbers[i].field));
  switch (key) {
  case KEY_SHARED: return r->shared = true;
  case KEY_TABLE_GRADIENTS: return r->table_gradients = true;
  case KEY_ROPE: return parse_rope(value, &r->rope_width);
  case KEY_EPS: return nr_parse_number(value, &r->eps);
  case KEY_TABLE_DTYPE: return parse_dtype(value, &r->table_dtype);
  case KEY_WEIGHT_DTYPE: return parse_dtype(value, &r->weight_dtype);
  case KEY_DTYPE:
    if (r->table_dtype == r->dtype) /* tables that went with the rows still do */
      r->table_dtype = -1;
    return parse_dtype(value, &r->dtype);
  case KEY_SCOPE:
    if (!parse_choice(value, "head", "all-heads", &choice))
      return false;
    r->scope = (nr_scope)choice;
    return true;
  case KEY_TABLES:
    if (!parse_choice(value, "angles", "random", &choice))
      return false;
    r->random_tables = choice;
    return true;
  }
  return false;
}

static const char *option_name(int key) {
  const nr_option *o = options;
  while (o->key != key)
    o++;
  return o->name;
}

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
  for (int i = 0; i < count; i++)
    if (!apply(&recipe, given[i].key, given[i].value))
      return nr_usage(self, "--%s %s: not a value that this takes", option_name(given[i].key), given[i].value);
  nr_message message = {""};
  int code = nr_recipe_resolve(&recipe, &message);
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
