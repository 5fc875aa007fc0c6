#include "cli/recipe_options.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

/* Options that are a number in a range and a field of the recipe. */
static const struct number {
  int key;
  int64_t low, high;
  size_t field;
  const char *expected; /* where the range does not say it */
} numbers[] = {{NR_RECIPE_BATCH, 1, 1 << 20, offsetof(nr_recipe, batch), NULL},
               {NR_RECIPE_HEADS, 1, 1 << 16, offsetof(nr_recipe, heads), NULL},
               {NR_RECIPE_KV_HEADS, 1, 1 << 16, offsetof(nr_recipe, kv_heads), NULL},
               {NR_RECIPE_DIM, 2, 1024, offsetof(nr_recipe, dim), "an even number from 2 to 1024"},
               {NR_RECIPE_IMAGE, 1, 1 << 30, offsetof(nr_recipe, image), NULL},
               {NR_RECIPE_TEXT, 0, 1 << 30, offsetof(nr_recipe, text), NULL},
               {NR_RECIPE_IMAGE_KEY, 1, 1 << 30, offsetof(nr_recipe, image_key), NULL},
               {NR_RECIPE_TEXT_KEY, 0, 1 << 30, offsetof(nr_recipe, text_key), NULL},
               {NR_RECIPE_NORM, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm), NR_RECIPE_NORMS},
               {NR_RECIPE_NORM_ADDED, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm_added), NR_RECIPE_NORMS},
               {NR_RECIPE_ROPE_DIM, 2, 1024, offsetof(nr_recipe, rope_dim), "an even number from 2 to 1024"},
               {NR_RECIPE_ROPE_START, 0, INT64_C(1) << 31, offsetof(nr_recipe, rope_start), NULL},
               {NR_RECIPE_ROPE_LENGTH, 1, INT64_C(1) << 31, offsetof(nr_recipe, rope_length), NULL},
               {NR_RECIPE_ORDER, 0, 1, offsetof(nr_recipe, order), NR_RECIPE_ORDERS},
               {NR_RECIPE_SEED, 0, INT64_MAX, offsetof(nr_recipe, seed), NULL}};

bool nr_parse_dtype(const char *text, int *dtype) {
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

static int read_number(nr_recipe *r, const nr_command *command, const struct number *n, const char *value) {
  if (nr_parse_integer(value, n->low, n->high, (int64_t *)((char *)r + n->field)))
    return NR_EXIT_OK;
  if (n->expected)
    return nr_unexpected(command, n->key, value, "%s", n->expected);
  return nr_unexpected(command, n->key, value, "a number from %" PRId64 " to %" PRId64, n->low, n->high);
}

int nr_recipe_option(nr_recipe *r, const nr_command *command, int key, const char *value) {
  int choice;
  const char *expected = NULL; /* where the value is not that */
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (numbers[i].key == key)
      return read_number(r, command, &numbers[i], value);
  switch (key) {
  case NR_RECIPE_SHARED: r->shared = true; break;
  case NR_RECIPE_TABLE_GRADIENTS: r->table_gradients = true; break;
  case NR_RECIPE_ROPE:
    if (!parse_rope(value, &r->rope_width))
      expected = "none, interleave, half, or the width of a pairing block, an even number from 2 to 1024";
    break;
  case NR_RECIPE_EPS:
    if (!nr_parse_number(value, &r->eps))
      expected = "a number of at least 0";
    break;
  case NR_RECIPE_TABLE_DTYPE:
  case NR_RECIPE_WEIGHT_DTYPE:
  case NR_RECIPE_DTYPE:
    if (!nr_parse_dtype(value, &choice)) {
      expected = "float32, float16 or bfloat16";
      break;
    }
    if (key == NR_RECIPE_DTYPE && r->table_dtype == r->dtype) /* tables that went with the rows still do */
      r->table_dtype = -1;
    if (key == NR_RECIPE_DTYPE)
      r->dtype = choice;
    else
      *(key == NR_RECIPE_TABLE_DTYPE ? &r->table_dtype : &r->weight_dtype) = choice;
    break;
  case NR_RECIPE_SCOPE:
    if (!parse_choice(value, "head", "all-heads", &choice))
      expected = "head or all-heads";
    else
      r->scope = (nr_scope)choice;
    break;
  case NR_RECIPE_TABLES:
    if (!parse_choice(value, "angles", "random", &choice))
      expected = "angles or random";
    else
      r->random_tables = choice;
    break;
  }
  return expected ? nr_unexpected(command, key, value, "%s", expected) : NR_EXIT_OK;
}
