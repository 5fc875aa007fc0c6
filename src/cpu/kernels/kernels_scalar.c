/* Plain C: the definition of the bits that every other instruction set must give. */
#define NR_ISA scalar
#include "cpu/kernels/simd_scalar.h"

#include "cpu/kernels/kernels.inl"
