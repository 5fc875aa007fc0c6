/* A recipe made into a case file. */
#ifndef NR_CLI_MAKE_CASE_H
#define NR_CLI_MAKE_CASE_H

#include "cli/presets.h"
#include "cli/safetensors.h"

/* Whether the recipe fits the operator, so that its case has the short form. */
bool nr_recipe_is_operator(const nr_recipe *recipe);

/* Fills in what the recipe leaves to rules (lengths and rope window) and checks it. Returns an exit code. */
int nr_recipe_resolve(nr_recipe *recipe, nr_message *message);

/* The tensors of a resolved recipe's case and its metadata, a new reference; NULL without memory. */
enum { NR_MAX_RECIPE_TENSORS = 64 };
json_t *nr_recipe_describe(const nr_recipe *recipe, nr_tensor tensors[NR_MAX_RECIPE_TENSORS], int *count);

/* Writes the case of a resolved recipe: inputs from the seed, statistics by the reference forward. Memory stays small
   whatever the size. Returns an exit code. */
int nr_make_case(const nr_recipe *recipe, const char *path, bool progress, nr_message *message);

#endif
