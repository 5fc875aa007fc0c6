/* Cases in memory: what the general description may say, what it may not, and where its views lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "cli/case.h"

/* A file in memory with tensors qkv [1,4,6,8], gamma [2,8], cos and sin [3,4]: float32, all zeros. */
static unsigned char *file_with(const char *segments, const char *outputs, size_t *size) {
  json_t *metadata = outputs ? json_pack("{s:s, s:s}", "segments", segments, "outputs", outputs)
                             : json_pack("{s:s}", "segments", segments);
  json_t *header =
      json_pack("{s:o, s:{s:s, s:[i,i,i,i], s:[i,i]}, s:{s:s, s:[i,i], s:[i,i]}, s:{s:s, s:[i,i], s:[i,i]},"
                " s:{s:s, s:[i,i], s:[i,i]}}",
                "__metadata__", metadata, "qkv", "dtype", "F32", "shape", 1, 4, 6, 8, "data_offsets", 0, 768, "gamma",
                "dtype", "F32", "shape", 2, 8, "data_offsets", 768, 832, "cos", "dtype", "F32", "shape", 3, 4,
                "data_offsets", 832, 880, "sin", "dtype", "F32", "shape", 3, 4, "data_offsets", 880, 928);
  char *text = json_dumps(header, JSON_COMPACT);
  size_t length = strlen(text);
  *size = 8 + length + 928;
  unsigned char *bytes = calloc(1, *size);
  for (int i = 0; i < 8; i++)
    bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
  memcpy(bytes + 8, text, length);
  json_decref(header);
  free(text);
  return bytes;
}

#define OUTPUTS "{\"out\":{\"dtype\":\"F32\",\"shape\":[1,2,9,8]},\"rstd\":{\"dtype\":\"F32\",\"shape\":[1,4,2,1]}}"
#define SIZES "\"batch\":1,\"length\":4,\"heads\":2,\"dim\":8"
#define Y "\"y\":{\"tensor\":\"out\",\"position\":5}"
#define SEGMENT(more) "[{\"name\":\"key\"," SIZES more "}]"
#define KEY "\"x\":{\"tensor\":\"qkv\",\"head\":2}," Y

/* Segments and a part of what must be said about them; NULL: good. */
static const struct {
  const char *segments, *outputs, *says;
} descriptions[] = {
    {SEGMENT("," KEY), OUTPUTS, NULL},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":16,\"strides\":[0,48,8,1]}," Y), OUTPUTS, NULL},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":191,\"strides\":[0,-48,-8,-1]}," Y), OUTPUTS, NULL},
    {SEGMENT("," KEY ",\"norm\":4,\"weight\":\"gamma\",\"rstd\":\"rstd\",\"eps\":1e-5"), OUTPUTS, NULL},
    {SEGMENT("," KEY
             ",\"ropeWidth\":2,\"ropeDim\":4,\"ropeLength\":3,\"ropePosition\":-1,\"cos\":\"cos\",\"sin\":\"sin\""),
     OUTPUTS, NULL},
    {"[]", NULL, NULL},
    {"{}", OUTPUTS, "expected a list"},
    {"[1]", OUTPUTS, "segment 0"},
    {"[", OUTPUTS, "metadata segments"},
    {"[{" SIZES "}]", OUTPUTS, "with a name"},
    {"[{\"name\":\"a\",\"batch\":1,\"heads\":2,\"dim\":8}]", OUTPUTS, "length is missing"},
    {"[{\"name\":\"a\",\"batch\":1,\"length\":-1,\"heads\":2,\"dim\":8}]", OUTPUTS, "length is no integer"},
    {"[{\"name\":\"a\",\"batch\":1,\"length\":9223372036854775807,\"heads\":2,\"dim\":8}]", OUTPUTS, "length is no"},
    {SEGMENT("," KEY ",\"norm\":5"), OUTPUTS, "norm is no integer from 0 to 4"},
    {SEGMENT("," KEY ",\"nrom\":1"), OUTPUTS, "'nrom' means nothing here"},
    {SEGMENT("," KEY ",\"eps\":-1"), OUTPUTS, "eps"},
    {SEGMENT("," KEY ",\"scope\":\"heads\""), OUTPUTS, "scope"},
    {SEGMENT(",\"x\":\"qkw\"," Y), OUTPUTS, "'qkw', which is neither"},
    {SEGMENT(",\"x\":7," Y), OUTPUTS, "names no tensor"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"head\":5}," Y), OUTPUTS, "shape [1,4,6,8], expected"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"position\":1}," Y), OUTPUTS, "shape [1,4,6,8], expected"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"layout\":\"BNSD\"}," Y), OUTPUTS, NULL},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"layout\":\"SBND\"}," Y), OUTPUTS, "layout"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":0}," Y), OUTPUTS, "without strides"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":17,\"strides\":[0,56,8,1]}," Y), OUTPUTS, "leaves the tensor"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":0,\"strides\":[0,48,8,-1]}," Y), OUTPUTS, "leaves the tensor"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":0,\"strides\":[0,4611686018427387904,8,1]}," Y), OUTPUTS, "leaves"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"offset\":0,\"strides\":[0,1,1]}," Y), OUTPUTS, "four integers"},
    {SEGMENT(",\"x\":{\"tensor\":\"qkv\",\"ofset\":0}," Y), OUTPUTS, "'ofset' means nothing"},
    {SEGMENT("," KEY ",\"norm\":4,\"weight\":\"cos\""), OUTPUTS, "expected [8] or [2,8]"},
    {SEGMENT("," KEY), NULL, "neither a tensor of the file nor in outputs"},
    {SEGMENT("," KEY), "[]", "expected an object"},
    {SEGMENT("," KEY), "{\"out\":{\"dtype\":\"I64\",\"shape\":[1]}}", "output 'out'"},
    {SEGMENT("," KEY), "{\"out\":{\"dtype\":\"F32\",\"shape\":[-1]}}", "no integer >= 0"},
    {SEGMENT("," KEY), "{\"out\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296]}}", "too large"},
};

static void test_descriptions(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof descriptions / sizeof *descriptions; i++) {
    size_t size;
    nr_message message = {""};
    nr_container file;
    nr_case *c;
    unsigned char *bytes = file_with(descriptions[i].segments, descriptions[i].outputs, &size);
    assert_int_equal(nr_container_parse(&file, bytes, size, "case.st", &message), NR_EXIT_OK);
    const char *says = descriptions[i].says;
    int code = nr_case_load(&c, &file, &message);
    if (code != (says ? NR_EXIT_FILE : NR_EXIT_OK) || (says && !strstr(message.text, says)))
      fail_msg("%s: code %d, '%s', expected '%s'", descriptions[i].segments, code, message.text, says ? says : "good");
    nr_case_free(c);
    nr_container_close(&file);
    free(bytes);
  }
}

/* Where the views of a packed key and a joined output lie. */
static void test_views(void **state) {
  (void)state;
  size_t size;
  nr_message message;
  nr_container file;
  nr_case *c;
  nr_segment segments[NR_MAX_SEGMENTS];
  float out[144], rstd[8];
  unsigned char *bytes = file_with(SEGMENT("," KEY ",\"norm\":3,\"rstd\":\"rstd\""), OUTPUTS, &size);
  assert_int_equal(nr_container_parse(&file, bytes, size, "case.st", &message), NR_EXIT_OK);
  assert_int_equal(nr_case_load(&c, &file, &message), NR_EXIT_OK);
  assert_true(nr_case_supports(c, NR_FORWARD, &message));
  assert_false(nr_case_supports(c, NR_BACKWARD, &message));
  assert_int_equal(nr_case_bind(c, NR_FORWARD, segments, NULL), 0); /* no output has data yet */
  c->outputs[0].tensor.data = out;
  c->outputs[1].tensor.data = rstd;
  assert_int_equal(nr_case_bind(c, NR_FORWARD, segments, NULL), 1);
  const float *qkv = nr_container_find(&file, "qkv")->data;
  const int64_t x[] = {192, 48, 8, 1}, y[] = {144, 8, 72, 1}, statistics[] = {8, 2, 1, 0};
  assert_ptr_equal(segments->x.data, qkv + 16);
  assert_memory_equal(segments->x.stride, x, sizeof x);
  assert_ptr_equal(segments->y.data, out + 40);
  assert_memory_equal(segments->y.stride, y, sizeof y);
  assert_ptr_equal(segments->rstd.data, rstd);
  assert_memory_equal(segments->rstd.stride, statistics, sizeof statistics);
  assert_null(segments->grad_x.data);
  nr_case_free(c);
  nr_container_close(&file);
  free(bytes);
}

/* A piece is the rows that it says, with the table rows that they need. */
static void test_slice(void **state) {
  (void)state;
  float x[96], cosine[24];
  nr_segment s = nr_segment_default();
  int64_t row;
  s.batch = 2, s.length = 6, s.heads = 2, s.dim = 4;
  s.x = nr_view_bsnd(x, NR_F32, 6, 2, 4);
  s.cos = nr_view_table(cosine, NR_F32, 4);
  s.rope_width = 2, s.rope_length = 3, s.rope_position = -1;
  nr_segment p = nr_case_slice(&s, 1, 2, 3, &row); /* positions 2, 3, 4: table rows 1, 2 and none */
  assert_int_equal(p.batch, 1);
  assert_int_equal(p.length, 3);
  assert_ptr_equal(p.x.data, x + 48 + 16);
  assert_int_equal(row, 1);
  assert_int_equal(p.rope_length, 2);
  assert_int_equal(p.rope_position, 0);
  assert_ptr_equal(p.cos.data, cosine + 4);
  p = nr_case_slice(&s, 0, 0, 2, &row); /* none and row 0 */
  assert_int_equal(p.rope_position, -1);
  assert_int_equal(p.rope_length, 1);
  p = nr_case_slice(&s, 0, 5, 1, &row);
  assert_int_equal(p.rope_length, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_descriptions), cmocka_unit_test(test_views),
                                     cmocka_unit_test(test_slice)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
