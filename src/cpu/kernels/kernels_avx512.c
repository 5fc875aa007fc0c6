/* AVX512. */
#define NR_ISA avx512
#include "cpu/kernels/simd_avx512.h"

#include "cpu/kernels/kernels.inl"
