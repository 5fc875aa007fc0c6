/* NEON. */
#define NR_ISA neon
#include "cpu/kernels/simd_neon.h"

#include "cpu/kernels/kernels.inl"
