/* The operator against the reference: every combination of norms, rope, order and dtype, odd sizes, strides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "support/fixture.h"

/* The reference operator's call as segments: image and text of query and key, joined in either order, and value. */
static void add_joined(fixture *f, nr_direction direction, nr_dtype dtype, nr_norm norm, nr_norm added, int rope,
                       int order, int64_t D) {
  const int64_t B = 2, N = 3, image[] = {7, 5}, text[] = {4, 6}, R = 8;
  for (int k = 0; k < 3; k++) {
    int64_t S_image = image[k > 0], S_text = text[k > 0], joined[] = {B, S_image + S_text, N, D};
    nr_view y = fixture_view(f, dtype, joined, STYLE_BNSD, direction == NR_FORWARD ? CONTENT_POISON : CONTENT_NORMAL);
    for (int is_text = 0; is_text < 2; is_text++) {
      int64_t position = is_text == order ? 0 : order ? S_text : S_image;
      stream s = {.B = B,
                  .S = is_text ? S_text : S_image,
                  .N = N,
                  .D = D,
                  .rows = dtype,
                  .parameters = dtype,
                  .tables = dtype,
                  .norm = k == 2    ? NR_NORM_NONE
                          : is_text ? added
                                    : norm,
                  .width = k == 2 || rope == 0 ? 0
                           : rope == 1         ? 2
                                               : D,
                  .table_rows = R,
                  .position = position};
      nr_segment *g = fixture_add(f, &s);
      nr_view *view = direction == NR_FORWARD ? &g->y : &g->grad_y;
      *view = y;
      view->data = (char *)y.data + position * y.stride[1] * (int64_t)nr_dtype_size(dtype);
    }
  }
}

static void every_combination(void **state) {
  (void)state;
  static const int64_t dims[] = {6, 16, 40, 70};
  int tried = 0;
  for (int direction = 0; direction < 2; direction++)
    for (int norm = 0; norm < 5; norm++)
      for (int added = 0; added < 5; added++)
        for (int rope = 0; rope < 3; rope++)
          for (int order = 0; order < 2; order++)
            for (int dtype = 0; dtype < 3; dtype++) {
              int64_t D = dims[tried++ % 4];
              char what[160];
              snprintf(what, sizeof what, "%s %s norm %d added %d rope %d order %d D %d",
                       direction ? "backward" : "forward", nr_dtype_name((nr_dtype)dtype), norm, added, rope, order,
                       (int)D);
              fixture *f = fixture_new((nr_direction)direction, (uint64_t)tried);
              add_joined(f, (nr_direction)direction, (nr_dtype)dtype, (nr_norm)norm, (nr_norm)added, rope, order, D);
              fixture_try(f, NULL, 0, what);
              fixture_free(f);
            }
  print_message("%d combinations, worst error %.3f of the bound\n", tried, fixture_worst());
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(every_combination)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
