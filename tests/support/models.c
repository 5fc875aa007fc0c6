#include "support/models.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The shorter words of models.def. */
#define WORD(name) name = MODEL_##name
enum {
  WORD(VARIES),
  WORD(SHARED),
  WORD(WEIGHT_F32),
  WORD(ROW_DTYPE),
  WORD(PER_BATCH),
  WORD(PER_HEAD),
  WORD(KEY_TABLES),
  WORD(TEXT_TABLES),
  WORD(LEARNED),
  WORD(PADDING),
  WORD(PACKED),
  WORD(TEXT_KEYS),
  WORD(QUERIES_APART),
  WORD(LONGER_KEYS),
  WORD(DIFFERENTIAL),
  WORD(OR_HALF),
  WORD(RELU)
};

#define MODEL(name, image, text, heads, kv_heads, dim, norm, scope, eps, width, rope_dim, order, rope, flags, remark)  \
  {name,                                                                                                               \
   image,                                                                                                              \
   text,                                                                                                               \
   heads,                                                                                                              \
   kv_heads,                                                                                                           \
   dim,                                                                                                                \
   NR_NORM_##norm,                                                                                                     \
   NR_SCOPE_##scope,                                                                                                   \
   eps,                                                                                                                \
   width,                                                                                                              \
   rope_dim,                                                                                                           \
   MODEL_ORDER_##order,                                                                                                \
   MODEL_ROPE_##rope,                                                                                                  \
   flags,                                                                                                              \
   remark},
const model models[NUM_MODELS] = {
#include "models.def"
};
#undef MODEL

bool model_expressible(const model *m) { return !(m->flags & RELU); }

/* Writes what the operator lacks for the model; true if there is such a thing. */
static bool write_beyond_operator(FILE *to, const model *m) {
  const struct {
    bool applies;
    const char *what;
  } beyond[] = {{m->scope == NR_SCOPE_ALL_HEADS, "norm across heads"},
                {m->heads != m->kv_heads, "fewer key heads"},
                {m->rope_dim != 0, "part of the channels"},
                {m->width > 2 && m->width < (m->rope_dim ? m->rope_dim : m->dim), "sectioned"},
                {m->rope == MODEL_ROPE_IMAGE && m->order == MODEL_ORDER_TEXT_FIRST, "rope on the last rows only"},
                {m->flags & PER_BATCH, "tables per batch"},
                {m->flags & PER_HEAD, "tables per head"},
                {m->flags & KEY_TABLES, "tables for keys"},
                {m->flags & LEARNED, "table gradients"},
                {m->flags & WEIGHT_F32, "weight dtype"},
                {m->flags & TEXT_KEYS, "text without queries"},
                {m->flags & QUERIES_APART, "queries not joined"}};
  bool any = false;
  for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++)
    if (beyond[i].applies) {
      if (to)
        fprintf(to, "%s%s", any ? ", " : "", beyond[i].what);
      any = true;
    }
  return any;
}

bool model_suits_operator(const model *m) { return !write_beyond_operator(NULL, m); }

static bool weighs(const model *m) { return m->norm == NR_NORM_LAYER_AFFINE || m->norm == NR_NORM_RMS_AFFINE; }

/* One column of the user's table after the other. */

static void write_tokens(FILE *to, int64_t tokens) {
  if (tokens == VARIES)
    fprintf(to, "any");
  else
    fprintf(to, "%" PRId64, tokens);
}

static void write_shape(FILE *to, const model *m) {
  write_tokens(to, m->image);
  if (m->order)
    fprintf(to, " + "), write_tokens(to, m->text);
  fprintf(to, " | %" PRId64, m->heads);
  if (m->kv_heads != m->heads)
    fprintf(to, " (%" PRId64 ")", m->kv_heads);
  fprintf(to, " x %" PRId64 " | ", m->dim);
}

static void write_norm(FILE *to, const model *m) {
  static const char *const names[] = {"NONE", "LAYER", "LAYER_AFFINE", "RMS", "RMS_AFFINE"};
  fprintf(to, "%s%s", names[m->norm], m->scope == NR_SCOPE_ALL_HEADS ? ", all heads" : "");
  if (m->norm && m->eps < 1e-6)
    fprintf(to, ", 2^-23 | ");
  else if (m->norm)
    fprintf(to, ", %s | ", m->eps > 5e-6 ? "1e-5" : "1e-6");
  else
    fprintf(to, " | ");
  if (!weighs(m))
    fprintf(to, "| ");
  else
    fprintf(to, "%s%s%s | ", m->scope == NR_SCOPE_ALL_HEADS ? "[N, D]" : "[D]", m->flags & SHARED ? " shared" : "",
            m->flags & WEIGHT_F32 ? " float32" : "");
}

static void write_rope(FILE *to, const model *m) {
  if (!m->width) {
    fprintf(to, "0 | ");
    return;
  }
  fprintf(to, "%" PRId64, m->width);
  if (m->flags & OR_HALF)
    fprintf(to, " or %" PRId64, m->dim);
  if (m->rope_dim)
    fprintf(to, ", rope_dim %" PRId64, m->rope_dim);
  fprintf(to, " | ");
}

static void write_positions(FILE *to, const model *m) {
  static const char *const text[] = {"", "image, text", "text, image"};
  fprintf(to, "%s | ", text[m->order]);
  if (m->rope == MODEL_ROPE_NONE)
    fprintf(to, "| ");
  else if (!m->order)
    fprintf(to, "0 | ");
  else if (m->rope == MODEL_ROPE_IMAGE)
    fprintf(to, "image 0, text no rope | ");
  else if (m->flags & TEXT_TABLES)
    fprintf(to, "image 0, text 0 | ");
  else
    fprintf(to, m->order == MODEL_ORDER_IMAGE_FIRST ? "image 0, text S_image | " : "text 0, image S_text | ");
}

static void write_tables(FILE *to, const model *m) {
  if (m->rope == MODEL_ROPE_NONE) {
    fprintf(to, "| ");
    return;
  }
  fprintf(to, "[%sR, %s%s] %s%s%s%s | ", m->flags & PER_BATCH ? "B, " : "", m->flags & PER_HEAD ? "N, " : "",
          m->rope_dim ? "rope_dim" : "D", m->flags & ROW_DTYPE ? "rows' dtype" : "float32",
          m->flags & KEY_TABLES ? ", others for k" : "", m->flags & TEXT_TABLES ? ", others for text" : "",
          m->flags & LEARNED ? ", with gradients" : "");
}

/* What the table's columns do not say; sentences that several models share come from their flags. */
static void write_remark(FILE *to, const model *m) {
  static const struct {
    unsigned flag;
    const char *text;
  } shared[] = {{TEXT_KEYS, "text has no query segment"},
                {QUERIES_APART, "each stream's queries have a `y` of their own, keys and values are joined"},
                {LONGER_KEYS, "queries and keys differ in length"},
                {DIFFERENTIAL, "q1, q2, k1, k2 are four segments"}};
  const char *separator = "";
  for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
    if (m->flags & shared[i].flag) {
      fprintf(to, "%s%s", separator, shared[i].text);
      separator = "; ";
    }
  if (*m->remark)
    fprintf(to, "%s%s", separator, m->remark);
}

void models_write_markdown(FILE *to) {
  int expressible = 0, suits = 0;
  const model *left_out = NULL;
  for (int i = 0; i < NUM_MODELS; i++) {
    expressible += model_expressible(&models[i]), suits += model_suits_operator(&models[i]);
    left_out = model_expressible(&models[i]) ? left_out : &models[i];
  }
  fprintf(to,
          "# Models\n\n"
          "How to call normrope for the attention of %d diffusion transformers. The native interface\n"
          "(`normrope.h`, [native.md](native.md)) serves %d of them, forward and backward, of which the operator\n"
          "`aclnnNormRopeConcat` and its backward ([operator.md](operator.md)) serve %d alone. The one left out is\n"
          "%s: %s.\n\n"
          "This page is what `test_models --markdown` writes, from the list that the tests build each problem of.\n\n"
          "## Reading the table\n\n"
          "Each stream (image, text) has one segment for its queries and one for its keys. Where the streams are\n"
          "joined, its values are a segment too, without norm and rope. N, D and S are `heads`, `dim` and `length`.\n\n"
          "- **tokens**: image + text, of the pipeline's default size. Without a text stream there is no `+`.\n"
          "- **heads**: N x D; in parentheses the heads of keys and values where they are fewer.\n"
          "- **norm**: `NR_NORM_` this, of both streams, then `eps`. *All heads*: `NR_SCOPE_ALL_HEADS`.\n"
          "- **weight**: `nr_view_channels` for [D], `nr_view_heads` for [N, D]; the bias likewise. Queries and keys\n"
          "  have one each. *Shared*: image and text name one weight and one gradient, which is the sum of both. The\n"
          "  dtype is that of the rows unless it says float32.\n"
          "- **width**: `rope_width`; 2 is interleave, D (or `rope_dim`) is half.\n"
          "- **order**: of the streams in the joined sequence: where the views `y` and `grad_y` begin.\n"
          "- **position**: `rope_position` of each stream. Where only the image rotates, R = S_image, and the text\n"
          "  segments have `rope_width` 0; else R is the length of the joined sequence.\n"
          "- **tables**: shape and dtype of `cos` and `sin`. Strides of [R, D] are 0, D, 0, 1 (`nr_view_table`); of\n"
          "  [B, R, D] R D, D, 0, 1; of [R, N, D] 0, N D, D, 1; of [B, R, N, D] R N D, N D, D, 1. Most models keep\n"
          "  float32 tables beside bfloat16 rows.\n"
          "- **call**: *operator*: the operator alone can do it too; it wants weights and tables of the rows' dtype.\n"
          "  *native*: it takes the native interface, because of what follows.\n\n"
          "| model | tokens | heads | norm | weight | width | order | position | tables | call | remark |\n"
          "|---|---|---|---|---|---|---|---|---|---|---|\n",
          NUM_MODELS, expressible, suits, left_out->name, left_out->remark);
  for (int i = 0; i < NUM_MODELS; i++) {
    const model *m = &models[i];
    fprintf(to, "| %s | ", m->name);
    write_shape(to, m);
    write_norm(to, m);
    write_rope(to, m);
    write_positions(to, m);
    write_tables(to, m);
    fprintf(to, !model_expressible(m) ? "neither: " : model_suits_operator(m) ? "operator" : "native: ");
    write_beyond_operator(to, m);
    fprintf(to, " | ");
    write_remark(to, m);
    fprintf(to, " |\n");
  }
}

/* The columns of the other table. */
enum { NAME, NORM, ADDED, EPS, ROPE, ORDER, SCOPE, HEADS, DIM, IMAGE, TEXT, EXPRESSIBLE, NUM_COLUMNS };

static bool same_number(const char *text, int64_t number) {
  return number == VARIES ? *text == '\0' : atoll(text) == number;
}

static bool same_heads(const char *text, const model *m) {
  const char *kv = strstr(text, "(kv ");
  bool fixed = kv && kv[4] >= '0' && kv[4] <= '9';
  return atoll(text) == m->heads && (fixed ? atoll(kv + 4) == m->kv_heads : kv || m->kv_heads == m->heads);
}

static bool same_eps(const char *text, double eps) {
  return strncmp(text, "fp32 machine eps", 16) == 0 ? eps == 0x1p-23 : *text ? strtod(text, NULL) == eps : eps == 0;
}

static int differs(const model *m, char *const column[NUM_COLUMNS]) {
  static const char *const across[] = {"", "", "layer_affine_across_heads", "", "rms_affine_across_heads"};
  static const char *const headers[] = {"name",      "norm_type",    "norm_added_type", "eps",
                                        "rope_type", "concat_order", "rope_scope",      "N",
                                        "D",         "S_img",        "S_txt",           "expressible"};
  char digit[] = {(char)('0' + m->norm), '\0'}, keys_only[16];
  const char *norm = m->scope == NR_SCOPE_ALL_HEADS ? across[m->norm] : digit;
  snprintf(keys_only, sizeof keys_only, "%s (k only)", digit);
  const char *added = !m->order || !m->norm  ? "n/a"
                      : m->flags & SHARED    ? "shared"
                      : m->flags & TEXT_KEYS ? keys_only
                                             : norm;
  static const char *const orders[] = {"n/a", "0", "1"};
  int rope = m->width == 0 ? 0 : m->width == 2 ? 1 : 2;
  const char *scope = m->rope == MODEL_ROPE_NONE            ? "none"
                      : m->rope == MODEL_ROPE_ALL           ? "all"
                      : m->order == MODEL_ORDER_IMAGE_FIRST ? "image_only_first"
                                                            : "image_only_last";
  bool same[NUM_COLUMNS] = {[NAME] = strcmp(column[NAME], m->name) == 0,
                            [NORM] = strcmp(column[NORM], norm) == 0,
                            [ADDED] = strcmp(column[ADDED], added) == 0,
                            [EPS] = same_eps(column[EPS], m->eps),
                            [ROPE] = atoi(column[ROPE]) == rope,
                            [ORDER] = strcmp(column[ORDER], orders[m->order]) == 0,
                            [SCOPE] = strcmp(column[SCOPE], scope) == 0,
                            [HEADS] = same_heads(column[HEADS], m),
                            [DIM] = atoll(column[DIM]) == m->dim,
                            [IMAGE] = same_number(column[IMAGE], m->image),
                            [TEXT] = same_number(column[TEXT], m->text),
                            [EXPRESSIBLE] = (strcmp(column[EXPRESSIBLE], "yes") == 0) == model_suits_operator(m)};
  int count = 0;
  for (int i = 0; i < NUM_COLUMNS; i++)
    if (!same[i]) {
      printf("%s: %s is %s in the other table, unlike here\n", m->name, headers[i], column[i]);
      count++;
    }
  return count;
}

int models_differences(FILE *csv) {
  char line[1024];
  int row = 0, count = 0;
  if (!fgets(line, sizeof line, csv))
    return 1;
  for (; fgets(line, sizeof line, csv); row++) {
    char *column[NUM_COLUMNS], *rest = line;
    for (int i = 0; i < NUM_COLUMNS; i++)
      column[i] = rest ? strsep(&rest, ",\n") : "";
    if (row < NUM_MODELS)
      count += differs(&models[row], column);
  }
  if (row != NUM_MODELS)
    printf("%d models in the other table, %d here\n", row, NUM_MODELS), count++;
  return count;
}
