/* The first phases' parameters, in the headers, in the lists of operands and (where it is at hand) in the reference's
   page: the same names and types in the same order. */
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "acl/operator.h"

enum { TEXT = 1 << 17 };

/* A file's text, until the next call; NULL without the file. */
static const char *read_text(const char *path) {
  const char *root = getenv("NORMROPE_SOURCE_DIR");
  static char text[TEXT], full[4096];
  snprintf(full, sizeof full, "%s/%s", root ? root : ".", path);
  FILE *file = fopen(full, "rb");
  if (!file)
    return NULL;
  text[fread(text, 1, sizeof text - 1, file)] = 0;
  fclose(file);
  return text;
}

/* The parameter list behind `function(` in a file, white space squeezed; false without the file. */
static bool read_parameters(const char *path, const char *function, char *list) {
  const char *text = read_text(path);
  if (!text)
    return false;
  char mark[128];
  snprintf(mark, sizeof mark, "aclnnStatus %s(", function);
  const char *from = strstr(text, mark);
  if (!from)
    fail_msg("%s: no prototype of %s", path, function);
  size_t used = 0;
  for (from += strlen(mark); *from != ')'; from++) {
    bool space = isspace((unsigned char)*from);
    if (!space || (used && list[used - 1] != ' '))
      list[used++] = space ? ' ' : *from;
  }
  list[used] = 0;
  return true;
}

/* The list as the operands and attributes have it. */
static void write_parameters(const nr_operator *op, const char *attributes, char *list) {
  size_t used = 0;
  for (int i = 0; i < op->num_operands; i++)
    used += (size_t)sprintf(list + used, "%sconst aclTensor *%s, ", i == op->num_inputs ? attributes : "",
                            op->operands[i].name);
  sprintf(list + used, "uint64_t *workspaceSize, aclOpExecutor **executor");
}

#define ATTRIBUTES "int64_t normType, int64_t normAddedType, int64_t ropeType, int64_t concatOrder, "
#define BACKWARD "aclnnNormRopeConcatBackwardGetWorkspaceSize"

static char found[TEXT], expected[TEXT];

static void test_headers(void **state) {
  (void)state;
  write_parameters(&nr_operator_backward, ATTRIBUTES, expected);
  assert_true(read_parameters("include/aclnnop/aclnn_norm_rope_concat_grad.h", BACKWARD, found));
  assert_string_equal(found, expected);
  write_parameters(&nr_operator_forward, ATTRIBUTES "double eps, bool isTraining, ", expected);
  assert_true(
      read_parameters("include/aclnnop/aclnn_norm_rope_concat.h", "aclnnNormRopeConcatGetWorkspaceSize", found));
  assert_string_equal(found, expected);
}

static void test_reference_page(void **state) {
  (void)state;
  write_parameters(&nr_operator_backward, ATTRIBUTES, expected);
  if (!read_parameters("../shared/seed/aclnnNormRopeConcatBackward.md", BACKWARD, found))
    skip();
  assert_string_equal(found, expected);
}

/* The operator page's tables have every operand, under its index. */
static void test_operator_page(void **state) {
  (void)state;
  const nr_operator *const operators[] = {&nr_operator_forward, &nr_operator_backward};
  static const char *const titles[] = {"### Forward", "### Backward"};
  for (int o = 0; o < 2; o++)
    for (int i = 0; i < operators[o]->num_operands; i++) {
      const char *row = strstr(read_text("docs/operator.md"), titles[o]);
      assert_non_null(row);
      bool found_row = false;
      int output = i >= operators[o]->num_inputs, seen_outputs = 0, wanted = output ? i - operators[o]->num_inputs : i;
      for (row = strchr(row, '\n'); row && strncmp(row + 1, "##", 2) != 0 && !found_row; row = strchr(row + 1, '\n')) {
        seen_outputs += strncmp(row + 1, "| | output", 10) == 0;
        int indices[4], n = sscanf(row + 1, "| %d, %d, %d, %d", &indices[0], &indices[1], &indices[2], &indices[3]);
        const char *name = n > 0 ? strchr(row + 3, '|') + 2 : NULL;
        for (int k = 0; k < n && seen_outputs == output; k++) {
          size_t length = strcspn(name, ", ");
          found_row = found_row || (indices[k] == wanted && length == strlen(operators[o]->operands[i].name) &&
                                    strncmp(name, operators[o]->operands[i].name, length) == 0);
          name += length + strspn(name + length, ", ");
        }
      }
      if (!found_row)
        fail_msg("docs/operator.md: no %s under %d", operators[o]->operands[i].name, wanted);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_headers), cmocka_unit_test(test_reference_page),
                                     cmocka_unit_test(test_operator_page)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
