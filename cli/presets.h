/*
 * What make-case makes: the parameters of a case, and the presets (presets.def) that they start from.
 */
#ifndef NR_CLI_PRESETS_H
#define NR_CLI_PRESETS_H

#include <stdbool.h>
#include <stdint.h>

#include "normrope.h"

/* The joined positions that the tables cover: all of them, or those of the image rows. */
typedef enum nr_window { NR_WINDOW_ALL, NR_WINDOW_IMAGE } nr_window;

typedef struct nr_recipe {
  const char *name, *note;
  int64_t batch, heads, kv_heads, dim;      /* kv_heads 0: as heads */
  int64_t image, text, image_key, text_key; /* lengths; -1: the key's as the query's */
  int64_t norm, norm_added;
  nr_scope scope;
  bool shared;                     /* text rows use the image's weights */
  int64_t rope_width;              /* -1: half, that is rope_dim */
  int64_t rope_dim;                /* 0: dim */
  int64_t rope_start, rope_length; /* joined positions; -1: by window */
  nr_window window;
  int64_t order;                        /* 0: image first */
  int dtype, table_dtype, weight_dtype; /* -1: table and weight as dtype */
  double eps;
  bool random_tables; /* pairs of entries that are no angle */
  bool table_gradients;
  int64_t seed;
} nr_recipe;

/* The i-th preset's name, or NULL; its recipe. */
const char *nr_preset_name(int i);
nr_recipe nr_preset_recipe(int i);

/* The preset of that name, -1 if there is none. */
int nr_preset_find(const char *name);

#endif
