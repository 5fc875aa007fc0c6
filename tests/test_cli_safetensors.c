/* The safetensors reader against hostile files, and the writer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/case.h"
#include "cli/make_case.h"
#include "cli/run.h"
#include "cli/safetensors.h"

#define T(fields) "{\"a\":{" fields "}}"
#define SHAPED(shape) T("\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[0,8]")
#define PAIR(first, second)                                                                                            \
  "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" first "},"                                               \
  "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" second "}}"

/* Headers with 8 bytes of data, and a part of what must be said about them; NULL: a good file. */
static const struct {
  const char *header, *says;
} headers[] = {
    {SHAPED("[2]"), NULL},
    {SHAPED("[2]") "    ", NULL},
    {SHAPED("[1,2,1]"), NULL},
    {T("\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]"), NULL},
    {PAIR("[4,8]", "[0,4]"), NULL},
    {"{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", NULL},
    {"", "does not begin with"},
    {"[]", "does not begin with"},
    {" {}", "does not begin with"},
    {"{}", "8 bytes of data, expected 0"},
    {"{\"a\":1}", "expected an object"},
    {"{\"a\":[1,2]}", "expected an object"},
    {"{\"a\":{\"dtype\":\"F32\"", "header:"},
    {SHAPED("[2]") "x", "header:"},
    {SHAPED("[2.0]"), "no integer"},
    {SHAPED("[-2]"), "no integer"},
    {SHAPED("[\"2\"]"), "no integer"},
    {SHAPED("[99999999999999999999]"), "header: too big"},
    {SHAPED("2"), "no shape"},
    {SHAPED("[1,1,1,1,1,1,1,1,2]"), "9 dimensions"},
    {SHAPED("[3]"), "8 bytes of data, expected 12"},
    {SHAPED("[4611686018427387904,4]"), "too large"},
    {SHAPED("[4611686018427387904]"), "too large"},
    {SHAPED("[4294967296,4294967296]"), "too large"},
    {SHAPED("[0,9223372036854775807,9223372036854775807]"), "8 bytes of data, expected 0"},
    {T("\"shape\":[2],\"data_offsets\":[0,8]"), "no dtype"},
    {T("\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]"), "no dtype"},
    {T("\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]"), "unknown"},
    {T("\"dtype\":\"F32\",\"shape\":[2]"), "no data_offsets"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]"), "no data_offsets"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8.0]"), "no data_offsets"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), "in order"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]"), "in order"},
    {T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,16]"), "within"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), "8 bytes of data, expected 4"},
    {T("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]"), "begins at byte 4"},
    {PAIR("[0,4]", "[0,4]"), "overlaps"},
    {PAIR("[0,4]", "[2,6]"), "overlaps"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     "header: duplicate"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,8]}}", "header: duplicate"},
    {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "header: unable to decode"},
    {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "header:"},
    {"{\"__metadata__\":[],\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "__metadata__"},
    {"{\"__metadata__\":{\"k\":1},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "no string"},
};

/* The bytes of a file with this header and 8 bytes of data, in memory of exactly their size. */
static unsigned char *file_of(const char *header, size_t length, size_t *size) {
  *size = 8 + length + 8;
  unsigned char *bytes = calloc(1, *size);
  for (int i = 0; i < 8; i++)
    bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
  memcpy(bytes + 8, header, length);
  return bytes;
}

static int parse(const unsigned char *bytes, size_t size, nr_message *message) {
  nr_container c;
  int code = nr_container_parse(&c, bytes, size, "hostile.st", message);
  if (!code)
    nr_container_close(&c);
  return code;
}

static void test_headers(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
    size_t size;
    nr_message message = {""};
    unsigned char *bytes = file_of(headers[i].header, strlen(headers[i].header), &size);
    int code = parse(bytes, size, &message);
    if (code != (headers[i].says ? NR_EXIT_FILE : NR_EXIT_OK) ||
        (headers[i].says && (!strstr(message.text, headers[i].says) || strncmp(message.text, "hostile.st: ", 12))))
      fail_msg("%s: code %d, '%s', expected '%s'", headers[i].header, code, message.text,
               headers[i].says ? headers[i].says : "success");
    free(bytes);
  }
}

static void test_lengths(void **state) {
  (void)state;
  nr_message message;
  unsigned char bytes[16] = {0};
  for (size_t size = 0; size < 8; size++)
    assert_int_equal(parse(bytes, size, &message), NR_EXIT_FILE);
  assert_int_equal(parse(bytes, 8, &message), NR_EXIT_FILE); /* no header */
  bytes[0] = 9;
  assert_int_equal(parse(bytes, 16, &message), NR_EXIT_FILE);
  assert_non_null(strstr(message.text, "truncated"));
  memset(bytes, 0xff, 8);
  assert_int_equal(parse(bytes, 16, &message), NR_EXIT_FILE);
  assert_non_null(strstr(message.text, "at most 100000000"));
}

static void test_nesting(void **state) {
  (void)state;
  enum { DEPTH = 100000 };
  char *header = malloc(2 * DEPTH + 16);
  size_t length = (size_t)sprintf(header, "{\"a\":"), size;
  memset(header + length, '[', DEPTH);
  memset(header + length + DEPTH, ']', DEPTH);
  header[length + 2 * DEPTH] = '}';
  unsigned char *bytes = file_of(header, length + 2 * DEPTH + 1, &size);
  nr_message message;
  assert_int_equal(parse(bytes, size, &message), NR_EXIT_FILE);
  assert_non_null(strstr(message.text, "depth"));
  free(bytes);
  free(header);
}

/* Data at an odd address is copied, so that its elements can be read in place. */
static void test_misaligned(void **state) {
  (void)state;
  size_t size;
  nr_message message;
  nr_container c;
  char header[100];
  for (int pad = 0; pad < 8; pad++) {
    snprintf(header, sizeof header, "%s%*s", SHAPED("[2]"), pad, "");
    unsigned char *bytes = file_of(header, strlen(header), &size);
    bytes[size - 8] = 42;
    assert_int_equal(nr_container_parse(&c, bytes, size, "odd.st", &message), NR_EXIT_OK);
    assert_int_equal((uintptr_t)c.tensors->data % 4, 0);
    assert_int_equal(*(unsigned char *)c.tensors->data, 42);
    nr_container_close(&c);
    free(bytes);
  }
}

static char folder[] = "/tmp/normrope-test-XXXXXX", path[64];

static int set_up(void **state) {
  (void)state;
  if (!mkdtemp(folder))
    return -1;
  snprintf(path, sizeof path, "%s/case.st", folder);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  unlink(path);
  return rmdir(folder); /* fails if something was left behind */
}

static void test_round_trip(void **state) {
  (void)state;
  nr_tensor tensors[] = {{.name = "half", .dtype = NR_BF16, .rank = 2, .shape = {3, 1}},
                         {.name = "empty", .dtype = NR_F16, .rank = 3, .shape = {2, 0, 5}},
                         {.name = "double", .dtype = NR_F64, .rank = 0},
                         {.name = "single \"\xc3\xa9", .dtype = NR_F32, .rank = 1, .shape = {3}}};
  json_t *metadata = json_pack("{s:s}", "key", "value");
  nr_container c;
  nr_message message;
  struct stat status;
  assert_int_equal(nr_container_create(&c, path, tensors, 4, metadata, &message), NR_EXIT_OK);
  assert_int_equal(stat(path, &status), -1); /* not there before it is complete */
  for (size_t i = 0; i < c.num_tensors; i++)
    for (int64_t k = 0; k < nr_tensor_elements(&c.tensors[i]); k++)
      nr_store(c.tensors[i].data, (nr_dtype)c.tensors[i].dtype, k, (double)(k + 1));
  assert_int_equal(nr_container_commit(&c, &message), NR_EXIT_OK);
  nr_container_close(&c);
  assert_int_equal(nr_container_open(&c, path, &message), NR_EXIT_OK);
  assert_int_equal(c.num_tensors, 4);
  assert_string_equal(json_string_value(json_object_get(c.metadata, "key")), "value");
  for (int i = 0; i < 4; i++) {
    const nr_tensor *t = nr_container_find(&c, tensors[i].name);
    assert_non_null(t);
    assert_false(t->copied);
    assert_int_equal(t->dtype, tensors[i].dtype);
    assert_int_equal(t->rank, tensors[i].rank);
    assert_memory_equal(t->shape, tensors[i].shape, sizeof t->shape);
    for (int64_t k = 0; k < nr_tensor_elements(t); k++)
      assert_true(nr_load(t->data, (nr_dtype)t->dtype, k) == (double)(k + 1));
  }
  assert_int_equal((uintptr_t)nr_container_find(&c, "double")->data % 64, 0);
  nr_container_close(&c);
  json_decref(metadata);
}

static void test_abandoned(void **state) {
  (void)state;
  nr_tensor tensor = {.name = "a", .dtype = NR_F32, .rank = 1, .shape = {3}};
  json_t *metadata = json_object();
  nr_container c;
  nr_message message;
  unlink(path);
  assert_int_equal(nr_container_create(&c, path, &tensor, 1, metadata, &message), NR_EXIT_OK);
  nr_container_close(&c); /* tear_down finds the folder empty */
  tensor.shape[0] = INT64_MAX / 2;
  assert_int_equal(nr_container_create(&c, path, &tensor, 1, metadata, &message), NR_EXIT_RUN);
  assert_int_equal(nr_container_create(&c, "/nowhere/a.st", &tensor, 1, metadata, &message), NR_EXIT_RUN);
  json_decref(metadata);
}

static void test_no_files(void **state) {
  (void)state;
  nr_container c;
  nr_message message;
  assert_int_equal(nr_container_open(&c, "/nowhere/a.st", &message), NR_EXIT_FILE);
  assert_int_equal(nr_container_open(&c, "/", &message), NR_EXIT_FILE);
  assert_int_equal(nr_container_open(&c, "/dev/null", &message), NR_EXIT_FILE);
}

static uint64_t next_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  return z ^ z >> 31;
}

/* One to four changes: a byte set, a piece of the header replaced, removed or doubled, the end cut off. */
static size_t mutate(unsigned char *bytes, size_t size, size_t room, uint64_t *random) {
  static const char *const pieces[] = {"[",           "]",    "{",        "}",    "\"",
                                       ",",           ":",    "-",        "0",    "9",
                                       "99999999999", "null", "\\u0000",  "\xff", "4611686018427387904",
                                       "F32",         "BF16", "segments", "1e5",  "query"};
  for (uint64_t changes = 1 + next_random(random) % 4; changes > 0 && size > 16; changes--) {
    uint64_t kind = next_random(random) % 6;
    size_t header = size < 2600 ? size : 2600, at = 8 + next_random(random) % (header - 8);
    if (kind == 0)
      bytes[next_random(random) % header] = (unsigned char)next_random(random);
    if (kind == 1 || kind == 2) {
      const char *piece = pieces[next_random(random) % (sizeof pieces / sizeof *pieces)];
      size_t length = strlen(piece);
      if (at + length <= size)
        memcpy(bytes + at, piece, length);
    }
    if (kind == 3 && size - at > 8) {
      size_t length = 1 + next_random(random) % 8;
      memmove(bytes + at, bytes + at + length, size - at - length);
      size -= length;
    }
    if (kind == 4 && size + 8 < room) {
      size_t length = 1 + next_random(random) % 8;
      memmove(bytes + at + length, bytes + at, size - at);
      size += length;
    }
    if (kind == 5 && next_random(random) % 8 == 0)
      size = next_random(random) % size;
  }
  return size;
}

/* Runs what a mutated file describes, where it is small: a view that left its tensor shows under the address sanitizer.
 */
static void run_case(nr_case *c, nr_direction direction) {
  nr_segment bound[NR_MAX_SEGMENTS];
  nr_run_options options = {.backend = NR_BACKEND_CPU, .threads = 1};
  nr_message message;
  bool small = nr_case_supports(c, direction, &message);
  for (int i = 0; i < c->num_outputs; i++) {
    nr_tensor *t = &c->outputs[i].tensor;
    if (c->outputs[i].direction != direction)
      continue;
    small = small && nr_tensor_measure(t) && t->size < 100000;
    t->data = small ? malloc(t->size ? t->size : 1) : NULL;
  }
  int count = small ? nr_case_bind(c, direction, bound, NULL) : 0;
  for (int i = 0; i < count; i++)
    small = small && (double)bound[i].batch * (double)bound[i].length * (double)bound[i].heads < 10000;
  if (small)
    nr_run_segments(bound, count, direction, &options, "fuzz.st", &message);
  for (int i = 0; i < c->num_outputs; i++) {
    free(c->outputs[i].tensor.data);
    c->outputs[i].tensor.data = NULL;
  }
}

/* Whatever the bytes, reading them ends in a case or a message. */
static void fuzz(const char *preset, bool segments, int rounds) {
  nr_recipe recipe = nr_preset_recipe(nr_preset_find(preset));
  nr_message message;
  recipe.image = 3;
  recipe.text = 2;
  recipe.heads = 2;
  recipe.dim = 4;
  assert_int_equal(nr_recipe_resolve(&recipe, &message), NR_EXIT_OK);
  assert_int_equal(nr_recipe_is_operator(&recipe), !segments);
  assert_int_equal(nr_make_case(&recipe, path, false, &message), NR_EXIT_OK);
  FILE *file = fopen(path, "rb");
  unsigned char original[32768];
  size_t size = fread(original, 1, sizeof original, file);
  fclose(file);
  assert_in_range(size, 1000, sizeof original - 1);
  uint64_t random = 12345;
  int good = 0;
  for (int i = 0; i < rounds; i++) {
    unsigned char *bytes = malloc(size + 64);
    memcpy(bytes, original, size);
    size_t length = mutate(bytes, size, size + 64, &random);
    bytes = realloc(bytes, length ? length : 1);
    nr_container c;
    nr_case *read;
    if (!nr_container_parse(&c, bytes, length, "fuzz.st", &message)) {
      if (!nr_case_load(&read, &c, &message)) {
        good++;
        run_case(read, NR_FORWARD);
        run_case(read, NR_BACKWARD);
        nr_case_free(read);
      }
      nr_container_close(&c);
    }
    free(bytes);
  }
  assert_in_range(good, 1, rounds - 1); /* the mutations are neither all harmless nor all fatal */
}

static void test_fuzz_operator(void **state) {
  (void)state;
  fuzz("reference", false, 8000);
}

static void test_fuzz_segments(void **state) {
  (void)state;
  fuzz("cogvideox", true, 8000);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_headers),    cmocka_unit_test(test_lengths),       cmocka_unit_test(test_nesting),
      cmocka_unit_test(test_misaligned), cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_abandoned),
      cmocka_unit_test(test_no_files),   cmocka_unit_test(test_fuzz_operator), cmocka_unit_test(test_fuzz_segments),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}
