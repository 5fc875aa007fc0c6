/* Gradients of parameters: the second step of weights' and biases', and those of the tables. */
#include "cuda/device.cuh"

namespace nr {

/* Adds up the chunks' rows: of each column, NR_CUDA_SUM_THREADS threads take every so-manieth row of all sources, and
   their float64 sums are added by halves. Coalesced over NR_CUDA_SUM_COLUMNS neighbouring columns. */
__global__ void __launch_bounds__(NR_CUDA_SUM_COLUMNS *NR_CUDA_SUM_THREADS)
    sums(const __grid_constant__ nr_cuda_sums p) {
  __shared__ double part[NR_CUDA_SUM_THREADS][NR_CUDA_SUM_COLUMNS];
  int index = 0;
  while (index + 1 < p.num_jobs && (int64_t)blockIdx.x >= p.jobs[index + 1].first_block)
    index++;
  const nr_cuda_sum &job = p.jobs[index];
  int within = (int)threadIdx.x % NR_CUDA_SUM_COLUMNS, thread = (int)threadIdx.x / NR_CUDA_SUM_COLUMNS;
  int64_t column = ((int64_t)blockIdx.x - job.first_block) * NR_CUDA_SUM_COLUMNS + within;
  double sum = 0;
  nr_wait_for_launch();
  if (column < job.columns) {
    int64_t skipped = thread; /* rows to leave out at the start of a source */
    for (int i = job.first_source; i < job.first_source + job.num_sources; i++) {
      const float *rows = p.sources[i].rows + column;
      int64_t row = skipped, count = p.sources[i].num_rows;
      _Pragma("unroll 8") for (; row < count; row += NR_CUDA_SUM_THREADS) sum += rows[row * job.columns];
      skipped = row - count;
    }
  }
  part[thread][within] = sum;
  for (int half = NR_CUDA_SUM_THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half)
      part[thread][within] += part[thread + half][within];
  }
  if (thread == 0 && column < job.columns) {
    int64_t n = column / job.dim, c = column % job.dim;
    store_one(row_of(job.out, 0, 0, n) + c * job.out.channel, job.out.dtype, part[0][within]);
  }
}

/* One entry of a table's gradient for each thread: its rows of all segments in order, heads within batches. */
__global__ void __launch_bounds__(NR_CUDA_TABLE_THREADS) tables(const __grid_constant__ nr_cuda_table p) {
  int64_t entry = (int64_t)blockIdx.x * NR_CUDA_TABLE_THREADS + threadIdx.x;
  int64_t c = entry % p.rope_dim, n = entry / p.rope_dim % p.heads, t = entry / p.rope_dim / p.heads % p.rows;
  int64_t b = entry / p.rope_dim / p.heads / p.rows;
  if (b >= p.batches)
    return;
  double sum = 0;
  for (int i = 0; i < p.num_segments; i++) {
    const auto &g = p.segments[i];
    int64_t s = t - g.rope_position, first_batch = p.out.batch ? b : 0, first_head = p.out.head ? n : 0;
    int64_t end_batch = p.out.batch ? b + 1 : g.batches, end_head = p.out.head ? n + 1 : g.heads;
    if (s < 0 || s >= g.length)
      continue;
    /* The channel of y that is multiplied by: this one, or its partner, with the sign it turns by. */
    int half = g.rope_width / 2;
    bool leads = c % g.rope_width < half;
    int64_t from = !p.of_sines ? c : leads ? c + half : c - half;
    for (int64_t batch = first_batch; batch < end_batch; batch++) {
      const char *x = row_of(g.x, batch, s, 0) + from * g.x.channel, *mean = row_of(g.mean, batch, s, 0);
      const char *grad_y = row_of(g.grad_y, batch, s, 0) + c * g.grad_y.channel, *rstd = row_of(g.rstd, batch, s, 0);
      const char *weight = g.weight.data + from * g.weight.channel, *bias = g.bias.data + from * g.bias.channel;
      _Pragma("unroll 1") for (int64_t head = first_head; head < end_head; head++) {
        float y = load_one(x + head * g.x.head, g.x.dtype);
        float dy = load_one(grad_y + head * g.grad_y.head, g.grad_y.dtype);
        if (g.mean.data)
          y -= *(const float *)(mean + head * g.mean.head);
        if (g.rstd.data)
          y *= *(const float *)(rstd + head * g.rstd.head);
        if (g.weight.data)
          y *= load_one(weight + head * g.weight.head, g.weight.dtype);
        if (g.bias.data)
          y += load_one(bias + head * g.bias.head, g.bias.dtype);
        double product = (double)y * dy;
        sum += p.of_sines && leads ? -product : product;
      }
    }
  }
  store_one(row_of(p.out, b, t, n) + c * p.out.channel, p.out.dtype, sum);
}

} // namespace nr

extern "C" {
extern const void *const nr_cuda_sums_kernel, *const nr_cuda_table_kernel;
const void *const nr_cuda_sums_kernel = NR_ENTRY(nr::sums, nr_cuda_sums);
const void *const nr_cuda_table_kernel = NR_ENTRY(nr::tables, nr_cuda_table);
}
