#include "cli/recipe_options.h"

#include <stddef.h>
#include <string.h>

/* Options that are a number in a range and a field of the recipe. */
static const struct {
  int key;
  int64_t low, high;
  size_t field;
} numbers[] = {{NR_RECIPE_BATCH, 1, 1 << 20, offsetof(nr_recipe, batch)},
               {NR_RECIPE_HEADS, 1, 1 << 16, offsetof(nr_recipe, heads)},
               {NR_RECIPE_KV_HEADS, 1, 1 << 16, offsetof(nr_recipe, kv_heads)},
               {NR_RECIPE_DIM, 2, 1024, offsetof(nr_recipe, dim)},
               {NR_RECIPE_IMAGE, 1, 1 << 30, offsetof(nr_recipe, image)},
               {NR_RECIPE_TEXT, 0, 1 << 30, offsetof(nr_recipe, text)},
               {NR_RECIPE_IMAGE_KEY, 1, 1 << 30, offsetof(nr_recipe, image_key)},
               {NR_RECIPE_TEXT_KEY, 0, 1 << 30, offsetof(nr_recipe, text_key)},
               {NR_RECIPE_NORM, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm)},
               {NR_RECIPE_NORM_ADDED, 0, NR_NORM_RMS_AFFINE, offsetof(nr_recipe, norm_added)},
               {NR_RECIPE_ROPE_DIM, 2, 1024, offsetof(nr_recipe, rope_dim)},
               {NR_RECIPE_ROPE_START, 0, INT64_C(1) << 31, offsetof(nr_recipe, rope_start)},
               {NR_RECIPE_ROPE_LENGTH, 1, INT64_C(1) << 31, offsetof(nr_recipe, rope_length)},
               {NR_RECIPE_ORDER, 0, 1, offsetof(nr_recipe, order)},
               {NR_RECIPE_SEED, 0, INT64_MAX, offsetof(nr_recipe, seed)}};

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

bool nr_recipe_option(nr_recipe *r, int key, const char *value) {
  int choice;
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
    if (numbers[i].key == key)
      return nr_parse_integer(value, numbers[i].low, numbers[i].high, (int64_t *)((char *)r + numbers[i].field));
  switch (key) {
  case NR_RECIPE_SHARED: return r->shared = true;
  case NR_RECIPE_TABLE_GRADIENTS: return r->table_gradients = true;
  case NR_RECIPE_ROPE: return parse_rope(value, &r->rope_width);
  case NR_RECIPE_EPS: return nr_parse_number(value, &r->eps);
  case NR_RECIPE_TABLE_DTYPE: return nr_parse_dtype(value, &r->table_dtype);
  case NR_RECIPE_WEIGHT_DTYPE: return nr_parse_dtype(value, &r->weight_dtype);
  case NR_RECIPE_DTYPE:
    if (r->table_dtype == r->dtype) /* tables that went with the rows still do */
      r->table_dtype = -1;
    return nr_parse_dtype(value, &r->dtype);
  case NR_RECIPE_SCOPE:
    if (!parse_choice(value, "head", "all-heads", &choice))
      return false;
    r->scope = (nr_scope)choice;
    return true;
  case NR_RECIPE_TABLES:
    if (!parse_choice(value, "angles", "random", &choice))
      return false;
    r->random_tables = choice;
    return true;
  }
  return false;
}
