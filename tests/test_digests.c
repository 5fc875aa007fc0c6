/*
 * The same bits on every machine: digests of what the cases of tests/support/cases.h give, with every usable
 * instruction set, against the stored ones of tests/digests.def.
 *
 *     test_digests                              compares
 *     test_digests --write >tests/digests.def   renews the stored digests, from the scalar kernels
 *     test_digests --list                       one line for each case, to compare between machines; NORMROPE_ISA
 * chooses
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan/plan.h"
#include "support/cases.h"

enum { NUM_CASES = 400, GROUP = 40, NUM_GROUPS = NUM_CASES / GROUP };

/* As the cases are, with special values in their inputs, and those of several blocks. */
typedef enum kind { KIND_USUAL, KIND_SPOILT, KIND_LARGE, NUM_KINDS } kind;

static const struct {
  const char *row, *name;
  int groups;
} kinds[] = {{"USUAL", "cases", NUM_GROUPS}, {"SPOILT", "spoilt cases", NUM_GROUPS}, {"LARGE", "large cases", 1}};

static const struct {
  kind kind;
  int group;
  uint64_t digest;
} stored[] = {
#define DIGEST(kind, group, digest) {KIND_##kind, group, digest},
#include "digests.def"
#undef DIGEST
};

static uint64_t next(uint64_t *dice) {
  *dice = *dice * 6364136223846793005u + 1442695040888963407u;
  return *dice >> 33;
}

/* Puts a special value into one element of some inputs: NaNs quiet and signalling, of either sign and with payloads,
   infinities, subnormals, the largest number, negative zero. */
static void spoil(fixture *f, nr_direction direction, uint64_t number) {
  static const uint32_t f32[] = {0xffc12345, 0x7f800001, 0x7f800000, 0xff800000, 0x00000001,
                                 0x807fffff, 0x7f7fffff, 0x80000000, 0x7fc00000};
  static const uint16_t f16[] = {0xfe55, 0x7c01, 0x7c00, 0xfc00, 0x0001, 0x83ff, 0x7bff, 0x8000, 0x7e00};
  static const uint16_t bf16[] = {0xffd5, 0x7f81, 0x7f80, 0xff80, 0x0001, 0x807f, 0x7f7f, 0x8000, 0x7fc0};
  enum { VALUES = sizeof f32 / sizeof *f32 };
  int32_t count;
  const nr_segment *segments = fixture_segments(f, &count);
  uint64_t dice = number;
  for (int32_t i = 0; i < count; i++)
    for (int k = 0; k < NR_NUM_FIELDS; k++) {
      const nr_view *v = nr_view_at(&segments[i], nr_fields[k].offset);
      bool rows = nr_fields[k].shape == NR_SHAPE_ROWS;
      int64_t shape[4], at[4], elements = 1;
      fixture_shape(&segments[i], &nr_fields[k], shape);
      for (int axis = 0; axis < 4; axis++) {
        elements *= shape[axis];
        at[axis] = shape[axis] ? (int64_t)next(&dice) % shape[axis] : 0;
      }
      uint64_t value = next(&dice) % VALUES, chance = next(&dice) % 6;
      if (nr_fields[k].role[direction] != NR_INPUT || !v->data || !elements || chance >= (rows ? 3 : 1))
        continue;
      char *element = nr_row(v, at[0], at[1], at[2]) + at[3] * v->stride[3] * (int64_t)nr_dtype_size(v->dtype);
      if (v->dtype == NR_F32)
        memcpy(element, &f32[value], sizeof *f32);
      else
        memcpy(element, v->dtype == NR_F16 ? &f16[value] : &bf16[value], sizeof *f16);
    }
}

static int first_case(int group) { return group * GROUP; }
static int end_case(kind k, int group) { return k == KIND_LARGE ? NUM_LARGE_CASES : (group + 1) * GROUP; }

static uint64_t case_digest(kind k, int number, const char *isa) {
  char text[CASE_TEXT];
  fixture *f = k == KIND_LARGE ? large_case_new(number, text) : case_new((uint64_t)number, text);
  if (k == KIND_SPOILT)
    spoil(f, number % 2 ? NR_BACKWARD : NR_FORWARD, (uint64_t)number);
  fixture_poison(f);
  fixture_run(f, isa, 1);
  uint64_t digest = fixture_digest(f);
  fixture_free(f);
  return digest;
}

static uint64_t group_digest(kind k, int group, const char *isa) {
  uint64_t digest = 0xcbf29ce484222325u;
  for (int number = first_case(group); number < end_case(k, group); number++)
    digest = (digest ^ case_digest(k, number, isa)) * 0x100000001b3u;
  return digest;
}

static void equal_the_stored_ones(void **state) {
  const char *isa = *state;
  size_t rows = 0;
  int differ = 0;
  for (int k = 0; k < NUM_KINDS; k++)
    for (int group = 0; group < kinds[k].groups; group++, rows++) {
      assert_true(rows < sizeof stored / sizeof *stored);
      assert_true(stored[rows].kind == (kind)k && stored[rows].group == group);
      uint64_t digest = group_digest((kind)k, group, isa);
      if (digest == stored[rows].digest)
        continue;
      differ++;
      print_error("%s %d to %d: %s gives %016" PRIx64 ", stored is %016" PRIx64 "\n", kinds[k].name, first_case(group),
                  end_case((kind)k, group) - 1, isa, digest, stored[rows].digest);
    }
  assert_true(rows == sizeof stored / sizeof *stored);
  assert_int_equal(differ, 0);
}

static void write_stored(void) {
  printf("/* DIGEST(kind, group, digest): what `test_digests --write` prints. */\n");
  for (int k = 0; k < NUM_KINDS; k++)
    for (int group = 0; group < kinds[k].groups; group++)
      printf("DIGEST(%s, %d, 0x%016" PRIx64 ")\n", kinds[k].row, group, group_digest((kind)k, group, "scalar"));
}

static void list_cases(void) {
  for (int k = 0; k < NUM_KINDS; k++)
    for (int number = 0; number < end_case((kind)k, kinds[k].groups - 1); number++)
      printf("%s %d: %016" PRIx64 "\n", kinds[k].name, number, case_digest((kind)k, number, NULL));
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "--write") == 0) {
    write_stored();
    return 0;
  }
  if (argc > 1 && strcmp(argv[1], "--list") == 0) {
    list_cases();
    return 0;
  }
  enum { MOST = 16 };
  struct CMUnitTest tests[MOST] = {{0}};
  size_t count = 0;
  for (int32_t i = 0; nr_isa(i) && count < MOST; i++)
    if (nr_isa_usable(nr_isa(i)))
      tests[count++] = (struct CMUnitTest){nr_isa(i), equal_the_stored_ones, NULL, NULL, (void *)(uintptr_t)nr_isa(i)};
    else
      print_message("%s: not usable here\n", nr_isa(i));
  return cmocka_run_group_tests_name("digests", tests, NULL, NULL);
}
