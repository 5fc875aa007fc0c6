/* The options that change a recipe, for the commands that start from a preset. */
#ifndef NR_CLI_RECIPE_OPTIONS_H
#define NR_CLI_RECIPE_OPTIONS_H

#include "cli/cli.h"
#include "cli/presets.h"

enum {
  NR_RECIPE_BATCH = 0x200,
  NR_RECIPE_HEADS,
  NR_RECIPE_KV_HEADS,
  NR_RECIPE_DIM,
  NR_RECIPE_IMAGE,
  NR_RECIPE_TEXT,
  NR_RECIPE_IMAGE_KEY,
  NR_RECIPE_TEXT_KEY,
  NR_RECIPE_NORM,
  NR_RECIPE_NORM_ADDED,
  NR_RECIPE_SCOPE,
  NR_RECIPE_SHARED,
  NR_RECIPE_ROPE,
  NR_RECIPE_ROPE_DIM,
  NR_RECIPE_ROPE_START,
  NR_RECIPE_ROPE_LENGTH,
  NR_RECIPE_ORDER,
  NR_RECIPE_DTYPE,
  NR_RECIPE_TABLE_DTYPE,
  NR_RECIPE_WEIGHT_DTYPE,
  NR_RECIPE_EPS,
  NR_RECIPE_TABLES,
  NR_RECIPE_TABLE_GRADIENTS,
  NR_RECIPE_SEED,
  NR_RECIPE_END
};

/* One of these options' values into the recipe, complaining about a bad one. Returns an exit code; other keys are a
   mistake. */
int nr_recipe_option(nr_recipe *recipe, const nr_command *command, int key, const char *value);

/* "float32", "float16", "bfloat16". */
bool nr_parse_dtype(const char *text, int *dtype);

#define NR_RECIPE_NORMS "0 none, 1 LayerNorm, 2 affine LayerNorm, 3 RMSNorm, 4 affine RMSNorm"
#define NR_RECIPE_ORDERS "0 image first, 1 text first"

/* The rows of an option table that describe them, all but the dtype (NR_RECIPE_DTYPE). */
#define NR_RECIPE_OPTION_ROWS                                                                                          \
  {"batch", NR_RECIPE_BATCH, "B", "batch"}, {"heads", NR_RECIPE_HEADS, "N", "heads"},                                  \
      {"kv-heads", NR_RECIPE_KV_HEADS, "N", "heads of key and value, where fewer"},                                    \
      {"dim", NR_RECIPE_DIM, "D", "channels of a head, even, up to 1024"},                                             \
      {"image", NR_RECIPE_IMAGE, "S", "length of the image stream"},                                                   \
      {"text", NR_RECIPE_TEXT, "S", "length of the text stream; 0: none"},                                             \
      {"image-key", NR_RECIPE_IMAGE_KEY, "S", "length of key and value, where not that of query"},                     \
      {"text-key", NR_RECIPE_TEXT_KEY, "S", "the same of the text stream"},                                            \
      {"norm", NR_RECIPE_NORM, "TYPE", "of image rows: " NR_RECIPE_NORMS},                                             \
      {"norm-added", NR_RECIPE_NORM_ADDED, "TYPE", "of text rows, which --norm alone leaves as they are"},             \
      {"scope", NR_RECIPE_SCOPE, "WHAT", "statistics over each head, or over all-heads"},                              \
      {"shared", NR_RECIPE_SHARED, NULL, "text rows use the image's weights"},                                         \
      {"rope", NR_RECIPE_ROPE, "KIND", "none, interleave, half, or the width of a pairing block"},                     \
      {"rope-dim", NR_RECIPE_ROPE_DIM, "D", "channels that rotate, where fewer than all"},                             \
      {"rope-start", NR_RECIPE_ROPE_START, "P", "joined position of the tables' first row"},                           \
      {"rope-length", NR_RECIPE_ROPE_LENGTH, "R", "rows of the tables"},                                               \
      {"order", NR_RECIPE_ORDER, "N", NR_RECIPE_ORDERS "; tables of image rows alone move with them"},                 \
      {"table-dtype", NR_RECIPE_TABLE_DTYPE, "NAME", "of the rope tables"},                                            \
      {"weight-dtype", NR_RECIPE_WEIGHT_DTYPE, "NAME", "of the norms' weights and biases"},                            \
      {"eps", NR_RECIPE_EPS, "X", "eps of the norms"},                                                                 \
      {"tables", NR_RECIPE_TABLES, "KIND", "angles (default), or random: entries of no angle"},                        \
      {"table-gradients", NR_RECIPE_TABLE_GRADIENTS, NULL, "the backward gives the gradients of the tables too"}, {    \
    "seed", NR_RECIPE_SEED, "N", "of the made-up data (default 0)"                                                     \
  }

#endif
