#include "cuda/rows.cuh"

extern "C" {
extern const void *const nr_cuda_rows_bf16[NR_CUDA_FORMS][2];
const void *const nr_cuda_rows_bf16[NR_CUDA_FORMS][2] = NR_ROWS(bf16);
}
