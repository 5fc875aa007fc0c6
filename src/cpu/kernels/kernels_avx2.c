/* AVX2. */
#define NR_ISA avx2
#include "cpu/kernels/simd_avx2.h"

#include "cpu/kernels/kernels.inl"
