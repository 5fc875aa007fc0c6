/*
 * Every model of models.def: its problem at reduced length, with its own norm, rope, order, heads and tables, forward
 * and backward, against the reference; and the reference, smaller still, against finite differences.
 *
 *     test_models                  all of them, and that docs/models.md and the list agree
 *     test_models "Krea 2"         the models with this in their names
 *     test_models --markdown       write docs/models.md
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/device.h"
#include "support/differences.h"
#include "support/fixture.h"
#include "support/models.h"

enum { QUERY, KEY, VALUE, NUM_PARTS };

/* What of a model is made smaller. */
typedef struct extent {
  int64_t batch, image, text, more_keys, heads, kv_heads, dim, rope_dim, width;
} extent;

/* A problem being built: the first segments with this part's parameters, and with these tables. */
typedef struct builder {
  fixture *f;
  nr_direction direction;
  const model *m;
  extent e;
  nr_dtype rows;
  style joined; /* layout of y */
  bool all_gradients;
  nr_segment *weights[NUM_PARTS], *tables[NUM_PARTS][2];
} builder;

static nr_segment *add_segment(builder *b, int part, bool is_text, int64_t length, int64_t position) {
  const model *m = b->m;
  bool normed = part != VALUE, keeps_gradients = m->flags & MODEL_LEARNED || b->all_gradients;
  int64_t window = m->rope == MODEL_ROPE_IMAGE && m->order == MODEL_ORDER_TEXT_FIRST ? b->e.text : 0;
  int64_t image = b->e.image + b->e.more_keys;
  bool text_tables = m->flags & MODEL_TEXT_TABLES && is_text;
  stream s = {.B = b->e.batch,
              .S = length,
              .N = part == QUERY ? b->e.heads : b->e.kv_heads,
              .D = b->e.dim,
              .rows = b->rows,
              .parameters = m->flags & MODEL_WEIGHT_F32 && b->rows != NR_F64 ? NR_F32 : b->rows,
              .tables = m->flags & MODEL_ROW_DTYPE || b->rows == NR_F64 ? b->rows : NR_F32,
              .norm = normed ? m->norm : NR_NORM_NONE,
              .scope = normed ? m->scope : NR_SCOPE_HEAD,
              .eps = m->eps,
              .width = normed ? b->e.width : 0,
              .rope_dim = b->e.rope_dim,
              .table_rows = text_tables                   ? b->e.text
                            : m->rope == MODEL_ROPE_IMAGE ? image
                                                          : image + b->e.text,
              .position = text_tables ? 0 : position - window,
              .weights_per_head = m->scope == NR_SCOPE_ALL_HEADS,
              .tables_per_batch = m->flags & MODEL_PER_BATCH,
              .tables_per_head = m->flags & MODEL_PER_HEAD,
              .wants_tables = keeps_gradients};
  return fixture_add(b->f, &s);
}

/* Image and text, and queries and keys, have the parameters and tables that the model shares between them. */
static void share(builder *b, nr_segment *g, int part, bool is_text) {
  if (part == VALUE)
    return;
  nr_segment **first = &b->weights[part];
  if (*first && b->m->flags & MODEL_SHARED) {
    g->weight = (*first)->weight, g->grad_weight = (*first)->grad_weight;
    g->bias = (*first)->bias, g->grad_bias = (*first)->grad_bias;
  }
  *first = *first ? *first : g;
  first = &b->tables[b->m->flags & MODEL_KEY_TABLES ? part : QUERY][b->m->flags & MODEL_TEXT_TABLES && is_text];
  if (*first && g->rope_width) {
    g->cos = (*first)->cos, g->grad_cos = (*first)->grad_cos;
    g->sin = (*first)->sin, g->grad_sin = (*first)->grad_sin;
  }
  *first = *first ? *first : g;
}

static void slice(nr_view *view, const nr_view *of, int axis, int64_t index) {
  *view = *of;
  view->data = (char *)of->data + index * of->stride[axis] * (int64_t)nr_dtype_size(of->dtype);
}

static void zero_last_row(const nr_view *table, const nr_segment *g) {
  for (int64_t b = 0; b < g->batch; b++)
    for (int64_t d = 0; d < g->rope_dim || (!g->rope_dim && d < g->dim); d++)
      nr_store(table->data, table->dtype,
               b * table->stride[0] + (g->rope_length - 1) * table->stride[1] + d * table->stride[3], 0);
}

/* Queries, or keys, or values: the image's and the text's rows, joined. */
static void add_part(builder *b, int part, const nr_view *packed, const nr_view *packed_gradient) {
  const model *m = b->m;
  bool has_text = m->order && !(part == QUERY && m->flags & MODEL_TEXT_KEYS);
  bool together = !(part == QUERY && m->flags & MODEL_QUERIES_APART);
  int64_t image = b->e.image + (part == QUERY ? 0 : b->e.more_keys), text = has_text ? b->e.text : 0;
  int64_t text_offset = m->order ? b->e.text : 0;
  int64_t heads = part == QUERY ? b->e.heads : b->e.kv_heads, first_head = 0;
  for (int before = 0; before < part; before++)
    first_head += before == QUERY ? b->e.heads : b->e.kv_heads;
  int64_t shape[] = {b->e.batch, image + text, heads, b->e.dim};
  content filled = b->direction == NR_FORWARD ? CONTENT_POISON : CONTENT_NORMAL;
  nr_view joined = fixture_view(b->f, b->rows, shape, b->joined, filled);
  for (int is_text = 0; is_text <= has_text; is_text++) {
    bool first = is_text == (m->order == MODEL_ORDER_TEXT_FIRST);
    int64_t position = first ? 0 : is_text ? image : text_offset;
    nr_segment *g = add_segment(b, part, is_text, is_text ? text : image, position);
    share(b, g, part, is_text);
    if (together)
      slice(b->direction == NR_FORWARD ? &g->y : &g->grad_y, &joined, 1, has_text ? position : 0);
    if (packed) {
      slice(&g->x, &packed[is_text], 2, first_head);
      if (b->direction == NR_BACKWARD)
        slice(&g->grad_x, &packed_gradient[is_text], 2, first_head);
    }
    if (b->direction == NR_BACKWARD && g->norm)
      fixture_measure(b->f, g);
    if (g->rope_width && m->flags & MODEL_PADDING)
      zero_last_row(&g->cos, g), zero_last_row(&g->sin, g);
  }
}

static fixture *build(const model *m, nr_direction direction, extent e, nr_dtype rows, style joined, bool all_gradients,
                      uint64_t seed) {
  builder b = {.f = fixture_new(direction, seed),
               .direction = direction,
               .m = m,
               .e = e,
               .rows = rows,
               .joined = joined,
               .all_gradients = all_gradients};
  nr_view packed[2], gradient[2];
  for (int is_text = 0; is_text < 2 && m->flags & MODEL_PACKED; is_text++) {
    int64_t shape[] = {e.batch, is_text ? e.text : e.image, 3 * (e.heads + 2 * e.kv_heads), e.dim};
    packed[is_text] = fixture_view(b.f, rows, shape, STYLE_BSND, CONTENT_NORMAL);
    gradient[is_text] = fixture_view(b.f, rows, shape, STYLE_BSND, CONTENT_POISON);
  }
  for (int set = 0; set <= !!(m->flags & MODEL_DIFFERENTIAL); set++)
    for (int part = 0; part < (m->order ? NUM_PARTS : VALUE); part++) /* values that nothing joins need no call */
      add_part(&b, part, m->flags & MODEL_PACKED ? packed : NULL, gradient);
  return b.f;
}

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

/* The model at a few positions, with everything else its own. */
static extent reduced(const model *m) {
  return (extent){.batch = 2,
                  .image = 5,
                  .text = m->order ? 3 : 0,
                  .more_keys = m->flags & MODEL_LONGER_KEYS ? 2 : 0,
                  .heads = m->heads,
                  .kv_heads = m->kv_heads,
                  .dim = m->dim,
                  .rope_dim = m->rope_dim,
                  .width = m->width};
}

/* A few heads and channels, in the model's proportions. */
static extent tiny(const model *m) {
  extent e = reduced(m);
  int64_t per_group = m->heads / gcd(m->heads, m->kv_heads);
  int64_t unit = gcd(m->dim, gcd(m->rope_dim, m->width > 2 ? m->width : 0)) / 4;
  e.image = 3, e.text = m->order ? 2 : 0;
  e.heads = m->heads == m->kv_heads ? 2 : per_group;
  e.kv_heads = m->kv_heads * e.heads / m->heads;
  e.dim = m->dim / unit, e.rope_dim = m->rope_dim / unit;
  e.width = m->width > 2 ? m->width / unit : m->width;
  return e;
}

static void try_width(const model *m, const extent *e, const char *width) {
  static const struct {
    nr_dtype rows;
    style joined;
  } variants[] = {{NR_BF16, STYLE_BNSD}, {NR_F32, STYLE_BSND}};
  for (int i = 0; i < 2; i++)
    for (int direction = 0; direction < 2; direction++) {
      char what[192];
      snprintf(what, sizeof what, "%s%s: %s, %s rows (again: test_models '%s')", m->name, width,
               direction == NR_FORWARD ? "forward" : "backward", nr_dtype_name(variants[i].rows), m->name);
      fixture *f = build(m, (nr_direction)direction, *e, variants[i].rows, variants[i].joined, false, (uint64_t)i);
      fixture_try(f, NULL, 0, what);
      fixture_free(f);
    }
}

static void one_model(void **state) {
  const model *m = *state;
  if (!model_expressible(m)) {
    print_message("%s is left out: %s\n", m->name, m->remark);
    assert_string_equal(m->name, "Sana-Video (linear attention)");
    return;
  }
  extent e = reduced(m);
  try_width(m, &e, "");
  if (m->flags & MODEL_OR_HALF) {
    e.width = e.dim;
    try_width(m, &e, ", half");
  }
  char what[192];
  snprintf(what, sizeof what, "%s: reference (again: test_models '%s')", m->name, m->name);
  fixture *f = build(m, NR_BACKWARD, tiny(m), NR_F64, STYLE_BSND, true, 7);
  int32_t count;
  const nr_segment *segments = fixture_segments(f, &count);
  differences_check(segments, count, what);
  fixture_free(f);
}

/* A file below the source, or NULL where it or the source is not at hand. */
static FILE *open_source(const char *path) {
  const char *source = getenv("NORMROPE_SOURCE_DIR");
  char name[4096];
  snprintf(name, sizeof name, "%s/%s", source ? source : "", path);
  FILE *file = source ? fopen(name, "r") : NULL;
  if (!file)
    print_message("%s is not at hand: not compared\n", path);
  return file;
}

static void all_but_one_are_expressible(void **state) {
  (void)state;
  int expressible = 0;
  for (int i = 0; i < NUM_MODELS; i++)
    expressible += model_expressible(&models[i]);
  assert_int_equal(expressible, NUM_MODELS - 1);
}

static void list_equals_the_survey(void **state) {
  (void)state;
  FILE *csv = open_source("../shared/models.csv");
  if (!csv)
    return;
  int differences = models_differences(csv);
  fclose(csv);
  assert_int_equal(differences, 0);
}

static void page_is_current(void **state) {
  (void)state;
  FILE *page = open_source("docs/models.md");
  if (!page)
    return;
  char *text;
  size_t size, at = 0;
  FILE *memory = open_memstream(&text, &size);
  models_write_markdown(memory);
  fclose(memory);
  while (at < size && fgetc(page) == (unsigned char)text[at])
    at++;
  bool same = at == size && fgetc(page) == EOF;
  fclose(page);
  free(text);
  if (!same)
    fail_msg("docs/models.md differs at byte %zu from what 'test_models --markdown' writes", at);
}

int main(int argc, char **argv) {
  if (device_is_cuda())
    argc = 1;
  if (argc > 1 && strcmp(argv[1], "--markdown") == 0) {
    models_write_markdown(stdout);
    return 0;
  }
  struct CMUnitTest tests[NUM_MODELS + 3] = {{0}};
  int count = 0;
  for (int i = 0; i < NUM_MODELS; i++)
    if (argc < 2 || strstr(models[i].name, argv[1]))
      tests[count++] = (struct CMUnitTest){models[i].name, one_model, NULL, NULL, (void *)(uintptr_t)&models[i]};
  if (argc < 2) {
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(all_but_one_are_expressible);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(list_equals_the_survey);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(page_is_current);
  }
  if (!count) {
    fprintf(stderr, "no model has '%s' in its name\n", argv[1]);
    return 2;
  }
  int failures = cmocka_run_group_tests_name("models", tests, NULL, NULL);
  print_message("worst error %.3f of the bound\n", fixture_worst());
  return failures;
}
