#include "cli/presets.h"

#include <stddef.h>
#include <string.h>

static const nr_recipe presets[] = {
#define PRESET(name_, heads_, dim_, image_, text_, norm_, added_, rope, window_, order_, scope_, shared_, dtype_,      \
               tables, eps_, note_)                                                                                    \
  {.name = name_,                                                                                                      \
   .note = note_,                                                                                                      \
   .batch = 1,                                                                                                         \
   .heads = heads_,                                                                                                    \
   .dim = dim_,                                                                                                        \
   .image = image_,                                                                                                    \
   .text = text_,                                                                                                      \
   .image_key = -1,                                                                                                    \
   .text_key = -1,                                                                                                     \
   .norm = norm_,                                                                                                      \
   .norm_added = added_,                                                                                               \
   .rope_width = rope == 1   ? 2                                                                                       \
                 : rope == 2 ? -1                                                                                      \
                             : 0,                                                                                      \
   .rope_start = -1,                                                                                                   \
   .rope_length = -1,                                                                                                  \
   .window = NR_WINDOW_##window_,                                                                                      \
   .order = order_,                                                                                                    \
   .scope = NR_SCOPE_##scope_,                                                                                         \
   .shared = shared_,                                                                                                  \
   .dtype = dtype_,                                                                                                    \
   .table_dtype = tables,                                                                                              \
   .weight_dtype = -1,                                                                                                 \
   .eps = eps_},
#include "cli/presets.def"
#undef PRESET
};

enum { NUM_PRESETS = sizeof presets / sizeof *presets };

const char *nr_preset_name(int i) { return i >= 0 && i < NUM_PRESETS ? presets[i].name : NULL; }

nr_recipe nr_preset_recipe(int i) { return presets[i]; }

int nr_preset_find(const char *name) {
  for (int i = 0; i < NUM_PRESETS; i++)
    if (!strcmp(presets[i].name, name))
      return i;
  return -1;
}
