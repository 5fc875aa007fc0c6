/* The bodies for each dtype, as the list's row of this instruction set. Included after a vocabulary, with NR_ISA set.
 */
#include <float.h>

#include "cpu/kernels/kernel.h"

#include "cpu/kernels/rows.inl"

#include "cpu/kernels/backward.inl"
#include "cpu/kernels/forward.inl"
#include "cpu/kernels/table_gradient.inl"

static void forward_f32(const nr_block *b) { forward_block(b, NR_F32); }
static void forward_f16(const nr_block *b) { forward_block(b, NR_F16); }
static void forward_bf16(const nr_block *b) { forward_block(b, NR_BF16); }
static void backward_f32(const nr_block *b) { backward_block(b, NR_F32); }
static void backward_f16(const nr_block *b) { backward_block(b, NR_F16); }
static void backward_bf16(const nr_block *b) { backward_block(b, NR_BF16); }
static void table_gradient_f32(const nr_table_block *b) { table_gradient(b, NR_F32); }
static void table_gradient_f16(const nr_table_block *b) { table_gradient(b, NR_F16); }
static void table_gradient_bf16(const nr_table_block *b) { table_gradient(b, NR_BF16); }

#define NR_STRING(x) #x
#define NR_NAME(x) NR_STRING(x)
#define NR_JOIN(a, b) a##b
#define NR_KERNELS_OF(isa) NR_JOIN(nr_kernels_, isa)

const nr_kernels NR_KERNELS_OF(NR_ISA) = {
    .isa = NR_NAME(NR_ISA),
    .forward = {[NR_F32] = forward_f32, [NR_F16] = forward_f16, [NR_BF16] = forward_bf16},
    .backward = {[NR_F32] = backward_f32, [NR_F16] = backward_f16, [NR_BF16] = backward_bf16},
    .table_gradient = {[NR_F32] = table_gradient_f32, [NR_F16] = table_gradient_f16, [NR_BF16] = table_gradient_bf16},
};
