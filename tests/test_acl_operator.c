/* The CANN-compatible operators compute what their formulas say, for any attributes, parts, dtypes and strides. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "acl/acl.h"
#include "support/acl_call.h"
#include "support/guarded.h"

static const nr_operator *const operators[] = {&nr_operator_forward, &nr_operator_backward};
static const aclDataType dtypes[] = {ACL_FLOAT, ACL_FLOAT16, ACL_BF16};

static void test_attributes(void **state) {
  (void)state;
  for (int n = 0; n < 2 * 3 * 5 * 5 * 3 * 2; n++) {
    acl_call call = call_default(operators[n % 2], dtypes[n / 2 % 3]);
    call.attributes.norm_type = n / 6 % 5;
    call.attributes.norm_added_type = n / 30 % 5;
    call.attributes.rope_type = n / 150 % 3;
    call.attributes.concat_order = n / 450;
    call.strided = n % 7 == 0;
    call_build(&call, (unsigned)n);
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* Text queries and keys are there or not, each on its own; query and key lengths differ. */
static void test_parts(void **state) {
  (void)state;
  for (int n = 0; n < 2 * 4 * 2 * 3; n++) {
    acl_call call = call_default(operators[n % 2], dtypes[n / 16]);
    call.attributes.concat_order = n / 8 % 2;
    call.rope = 5;
    if (n / 2 % 2)
      call_without_text(&call, NR_PART_TEXT_QUERY);
    if (n / 4 % 2)
      call_without_text(&call, NR_PART_TEXT_KEY);
    call_build(&call, (unsigned)n);
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* All operands strided, against the contiguous call: the same bits. */
static void test_strided_bits(void **state) {
  (void)state;
  for (int n = 0; n < 6; n++) {
    acl_call a = call_default(operators[n % 2], dtypes[n / 2]), b = a;
    b.strided = true;
    call_build(&a, 5);
    call_build(&b, 5);
    call_run(&a);
    call_run(&b);
    call_check(&b);
    for (int i = a.op->num_inputs; i < a.op->num_operands; i++) {
      const call_tensor *t = &a.tensors[i];
      int64_t at[4] = {0}, count = 1;
      for (int k = 0; k < t->rank; k++)
        count *= t->shape[k];
      for (int64_t m = 0; m < count; m++) {
        int64_t rest = m;
        for (int k = t->rank - 1; k >= 0; k--) {
          at[k] = rest % t->shape[k];
          rest /= t->shape[k];
        }
        assert_true(call_load(t, at) == call_load(&b.tensors[i], at));
      }
    }
    call_free(&a);
    call_free(&b);
  }
}

/* A stride of 0 broadcasts an input. */
static void test_broadcast(void **state) {
  (void)state;
  for (int n = 0; n < 2; n++) {
    acl_call call = call_default(operators[n], ACL_FLOAT);
    call_build(&call, 9);
    for (int i = 0; i < call.op->num_inputs; i++) {
      call.tensors[i].stride[0] = 0;
      call_remake(&call.tensors[i]);
    }
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* Any set of optional outputs may be left out; the others are the same. */
static void test_optional_outputs(void **state) {
  (void)state;
  for (unsigned n = 0; n < 64; n++) {
    acl_call call = call_default(&nr_operator_backward, ACL_FLOAT);
    call.attributes.norm_type = n % 5;
    unsigned mask = n * 2654435761u >> 16;
    for (int i = call.op->num_inputs; i < call.op->num_operands; i++)
      if (call.op->operands[i].need == NR_NEED_OPTIONAL)
        call.tensors[i].given = mask >> (i - call.op->num_inputs) & 1;
    call_build(&call, n);
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* What the attributes make useless is not looked at: made-up handles would be refused. */
static void test_useless_inputs(void **state) {
  (void)state;
  static char nothing[64];
  for (int n = 0; n < 2; n++) {
    acl_call call = call_default(operators[n], ACL_FLOAT);
    call.attributes.norm_type = call.attributes.norm_added_type = call.attributes.rope_type = 0;
    call.attributes.is_training = false;
    call_build(&call, 3);
    for (int i = 0; i < call.op->num_operands; i++)
      if (call.op->operands[i].need >= NR_NEED_MEAN) {
        aclDestroyTensor(call.tensors[i].handle);
        call.tensors[i].handle = (aclTensor *)nothing;
      }
    call_run(&call);
    call_check(&call);
    for (int i = 0; i < call.op->num_operands; i++)
      if (call.op->operands[i].need >= NR_NEED_MEAN)
        call.tensors[i].handle = NULL;
    call_free(&call);
  }
}

/* Batch, heads or sequences of 0: success, nothing touched but the weight gradients, which are zero where no rows are.
 */
static void test_empty(void **state) {
  (void)state;
  for (int n = 0; n < 2 * 2 * 6; n++) {
    acl_call call = call_default(operators[n % 2], dtypes[n % 3]);
    call.strided = n / 2 % 2;
    switch (n / 4) {
    case 0: call.batch = 0; break;
    case 1: call.heads = 0; break;
    case 2: call.seq[NR_PART_QUERY] = call.seq[NR_PART_TEXT_QUERY] = 0; break;
    case 3: call.seq[NR_PART_TEXT_KEY] = call.seq[NR_PART_TEXT_VALUE] = 0; break;
    case 4: call.seq[NR_PART_KEY] = call.seq[NR_PART_VALUE] = 0, call.rope = 2; break;
    case 5: memset(call.seq, 0, sizeof call.seq); break;
    }
    call_build(&call, (unsigned)n);
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* The address of a tensor without elements is not looked at. */
static void test_empty_without_address(void **state) {
  (void)state;
  for (int n = 0; n < 4; n++) {
    acl_call call = call_default(operators[n % 2], ACL_FLOAT);
    call.batch = 0;
    call_build(&call, 1);
    for (int i = 0; i < call.op->num_operands; i++)
      if (call.tensors[i].rank == 4)
        assert_int_equal(aclSetRawTensorAddr(call.tensors[i].handle, n < 2 ? NULL : (char *)&call + 1), ACLNN_SUCCESS);
    call_run(&call);
    call_check(&call);
    call_free(&call);
  }
}

/* Gives one tensor the memory and view of another, and its numbers. */
static void alias(acl_call *call, const char *name, const char *other) {
  call_tensor *t = &call->tensors[call_index(call, name)], *o = &call->tensors[call_index(call, other)];
  assert_int_equal(aclSetRawTensorAddr(t->handle, o->memory), ACLNN_SUCCESS);
}

/* In place: the same bits as apart. */
static void test_in_place(void **state) {
  (void)state;
  static const char *const pairs[][2] = {{"gradQuery", "query"},
                                         {"gradKey", "key"},
                                         {"gradEncoderQuery", "encoderQuery"},
                                         {"gradEncoderKey", "encoderKey"}};
  for (int n = 0; n < 6; n++) {
    acl_call apart = call_default(&nr_operator_backward, dtypes[n % 3]), in_place = apart;
    in_place.strided = apart.strided = n >= 3;
    call_build(&apart, 8);
    call_build(&in_place, 8);
    if (n >= 3) /* the strided tensors' offsets differ */
      for (int k = 0; k < 4; k++) {
        call_tensor *t = &in_place.tensors[call_index(&in_place, pairs[k][0])];
        const call_tensor *o = &in_place.tensors[call_index(&in_place, pairs[k][1])];
        assert_non_null(o);
        aclDestroyTensor(t->handle);
        t->handle = aclCreateTensor(o->shape, 4, o->dtype, o->stride, o->offset, ACL_FORMAT_ND, &o->storage, 1, NULL);
      }
    for (int k = 0; k < 4; k++)
      alias(&in_place, pairs[k][0], pairs[k][1]);
    call_run(&apart);
    call_run(&in_place);
    for (int k = 0; k < 4; k++) {
      const call_tensor *want = &apart.tensors[call_index(&apart, pairs[k][0])];
      const call_tensor *got = &in_place.tensors[call_index(&in_place, pairs[k][1])];
      for (int64_t b = 0; b < want->shape[0]; b++)
        for (int64_t s = 0; s < want->shape[1]; s++)
          for (int64_t h = 0; h < want->shape[2]; h++)
            for (int64_t d = 0; d < want->shape[3]; d++)
              assert_true(call_load(want, (int64_t[]){b, s, h, d}) == call_load(got, (int64_t[]){b, s, h, d}));
    }
    call_free(&apart);
    call_free(&in_place);
  }
}

/* Forward in place: image and text are two slices of a joined buffer, which is what comes out, too. */
static void test_in_place_forward(void **state) {
  (void)state;
  static const char *const names[][3] = {{"query", "encoderQuery", "queryOutput"},
                                         {"key", "encoderKey", "keyOutput"},
                                         {"value", "encoderValue", "valueOutput"}};
  for (int n = 0; n < 6; n++) {
    acl_call apart = call_default(&nr_operator_forward, dtypes[n % 3]), in_place = apart;
    apart.attributes.concat_order = in_place.attributes.concat_order = n / 3;
    call_build(&apart, 8);
    call_build(&in_place, 8);
    for (int k = 0; k < 3; k++) {
      call_tensor *y = &in_place.tensors[call_index(&in_place, names[k][2])];
      for (int text = 0; text < 2; text++) {
        const call_tensor *from = &apart.tensors[call_index(&apart, names[k][text])];
        call_tensor *x = &in_place.tensors[call_index(&in_place, names[k][text])];
        int64_t other = apart.tensors[call_index(&apart, names[k][!text])].shape[1];
        int64_t start = text == (n / 3 == 0) ? other : 0, at[4];
        int64_t stride[] = {y->stride[0], y->stride[2], y->stride[1], y->stride[3]}, offset = start * y->stride[2];
        for (at[0] = 0; at[0] < x->shape[0]; at[0]++)
          for (at[1] = 0; at[1] < x->shape[1]; at[1]++)
            for (at[2] = 0; at[2] < x->shape[2]; at[2]++)
              for (at[3] = 0; at[3] < x->shape[3]; at[3]++)
                nr_store(y->memory,
                         n % 3 == 0   ? NR_F32
                         : n % 3 == 1 ? NR_F16
                                      : NR_BF16,
                         offset + at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2] + at[3] * stride[3],
                         call_load(from, at));
        aclDestroyTensor(x->handle);
        x->handle = aclCreateTensor(x->shape, 4, x->dtype, stride, offset, ACL_FORMAT_ND, &y->storage, 1, y->memory);
      }
    }
    call_run(&apart);
    call_run(&in_place);
    call_check(&apart);
    for (int i = apart.op->num_inputs; i < apart.op->num_operands; i++)
      assert_memory_equal(apart.tensors[i].memory, in_place.tensors[i].memory, call_bytes(&apart.tensors[i]));
    call_free(&apart);
    call_free(&in_place);
  }
}

/* Query, key and value as slices of one packed buffer, and the gradients into slices of another. */
static void test_packed(void **state) {
  (void)state;
  static const char *const slices[][3] = {{"query", "key", "value"}, {"gradQuery", "gradKey", "gradValue"}};
  acl_call call = call_default(&nr_operator_backward, ACL_BF16);
  call.seq[NR_PART_QUERY] = 7;
  call_build(&call, 4);
  int64_t row = 3 * call.heads * call.dim, storage = call.batch * 7 * row;
  for (int side = 0; side < 2; side++) {
    unsigned char *packed = guarded_alloc((size_t)storage * 2);
    for (int64_t i = 0; i < storage; i++)
      nr_store(packed, NR_BF16, i, (double)(i * 37 % 101) / 50 - 1);
    for (int k = 0; k < (side ? 3 : 2); k++) {
      call_tensor *t = &call.tensors[call_index(&call, slices[side][k])];
      guarded_free(t->memory, call_bytes(t));
      int64_t stride[] = {7 * row, row, call.dim, 1};
      memcpy(t->stride, stride, sizeof stride);
      t->offset = k * call.heads * call.dim;
      t->storage = storage;
      t->memory = packed;
      free(t->before);
      t->before = malloc((size_t)storage * 2);
      memcpy(t->before, packed, (size_t)storage * 2);
      call_remake(t);
    }
  }
  call_run(&call);
  /* The slices share their memory, so that the bytes around one are the others': only the numbers are compared. */
  for (int side = 0; side < 2; side++)
    for (int k = 0; k < (side ? 3 : 2); k++) {
      call_tensor *t = &call.tensors[call_index(&call, slices[side][k])];
      memcpy(t->before, t->memory, (size_t)storage * 2);
    }
  call_check(&call);
  for (int side = 0; side < 2; side++)
    for (int k = (side ? 2 : 1); k >= 0; k--) {
      call_tensor *t = &call.tensors[call_index(&call, slices[side][k])];
      if (k)
        t->memory = NULL;
    }
  call_free(&call);
}

static int setup(void **state) {
  (void)state;
  return aclInit(NULL) || aclrtSetDevice(0);
}

static int teardown(void **state) {
  (void)state;
  return aclrtResetDevice(0) || aclFinalize();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_attributes),
      cmocka_unit_test(test_parts),
      cmocka_unit_test(test_strided_bits),
      cmocka_unit_test(test_broadcast),
      cmocka_unit_test(test_optional_outputs),
      cmocka_unit_test(test_useless_inputs),
      cmocka_unit_test(test_empty),
      cmocka_unit_test(test_empty_without_address),
      cmocka_unit_test(test_in_place),
      cmocka_unit_test(test_packed),
      cmocka_unit_test(test_in_place_forward),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
