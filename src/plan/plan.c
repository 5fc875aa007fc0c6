#include "plan/plan.h"

/* A block is large enough that its slot is under 1% of what it reads, and small enough that blocks outnumber threads.
 */
enum { BLOCK_ELEMENTS = 1 << 18, BLOCK_ROWS = 768, BLOCK_POSITIONS_PER_SUM = 384, CACHE_LINE = 64 };

/* Bytes of reading and writing that are worth waking a thread. */
static const double bytes_per_thread = 256 << 10;

static int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

size_t nr_slot_size(const nr_cut *cut) {
  return (size_t)round_up((cut->weight_channels + cut->bias_channels) * (int64_t)(sizeof(double) + sizeof(float)),
                          CACHE_LINE);
}

/* Sums that one row of a parameter gradient needs: per head where the parameter has a head stride. */
static int64_t channels(const nr_segment *s, const nr_view *gradient, bool contributes) {
  if (!gradient->data || !contributes)
    return 0;
  return (gradient->stride[2] ? s->heads : 1) * nr_padded(s->dim);
}

static double row_bytes(const nr_plan *plan, const nr_segment *s) {
  const nr_view *row[] = {&s->x, &s->y, &s->grad_y, &s->grad_x};
  double bytes = 0;
  for (int i = 0; i < 4; i++)
    if (row[i]->data && (i == 0 || (i == 1) == (plan->direction == NR_FORWARD)))
      bytes += (double)nr_dtype_size(row[i]->dtype);
  return bytes;
}

double nr_plan_bytes(const nr_plan *plan) {
  double bytes = 0;
  for (int32_t i = 0; i < plan->num_segments; i++) {
    const nr_segment *s = &plan->segments[i];
    bytes += row_bytes(plan, s) * (double)s->batch * (double)s->length * (double)s->heads * (double)s->dim;
  }
  return bytes;
}

void nr_plan_cut(nr_plan *plan) {
  int64_t blocks = 0;
  size_t offset = 0;
  for (int32_t i = 0; i < plan->num_segments; i++) {
    const nr_segment *s = &plan->segments[i];
    nr_cut *cut = &plan->cuts[i];
    bool backward = plan->direction == NR_BACKWARD;
    cut->weight_channels = backward ? channels(s, &s->grad_weight, nr_norm_weighs(s->norm)) : 0;
    cut->bias_channels = backward ? channels(s, &s->grad_bias, s->norm == NR_NORM_LAYER_AFFINE) : 0;
    int64_t rows = larger(BLOCK_ROWS, BLOCK_ELEMENTS / s->dim);
    int64_t sums = (cut->weight_channels > nr_padded(s->dim)) + (cut->bias_channels > nr_padded(s->dim));
    cut->positions = sums ? BLOCK_POSITIONS_PER_SUM * sums : round_up(rows / larger(1, s->heads), NR_TILE);
    cut->positions = larger(cut->positions, NR_TILE);
    cut->blocks_per_batch = s->heads ? (s->length + cut->positions - 1) / cut->positions : 0;
    cut->batches = larger(1, s->length ? cut->positions / s->length : 1);
    cut->num_blocks = (s->batch + cut->batches - 1) / cut->batches * cut->blocks_per_batch;
    cut->first_block = blocks;
    cut->slots = offset;
    blocks += cut->num_blocks;
    offset += (size_t)cut->num_blocks * nr_slot_size(cut);
  }
  plan->num_blocks = blocks;
  plan->workspace_size = offset;
  plan->bytes = nr_plan_bytes(plan);
}

double nr_plan_worth(const nr_plan *plan) { return plan->bytes / bytes_per_thread; }

nr_block_place nr_plan_block(const nr_plan *plan, int64_t index) {
  int32_t i = plan->num_segments - 1;
  while (plan->cuts[i].first_block > index)
    i--;
  const nr_cut *cut = &plan->cuts[i];
  int64_t local = index - cut->first_block;
  nr_block_place place = {.segment = i,
                          .first_batch = local / cut->blocks_per_batch * cut->batches,
                          .batches = cut->batches,
                          .first = local % cut->blocks_per_batch * cut->positions,
                          .count = cut->positions,
                          .slot = cut->slots + (size_t)local * nr_slot_size(cut)};
  place.count = smaller(place.count, plan->segments[i].length - place.first);
  place.batches = smaller(place.batches, plan->segments[i].batch - place.first_batch);
  return place;
}

bool nr_first_of_shared(const nr_segment *segments, int32_t i, size_t offset) {
  const nr_view *view = nr_view_at(&segments[i], offset);
  if (!view->data)
    return false;
  for (int32_t j = 0; j < i; j++)
    if (nr_shared(nr_view_at(&segments[j], offset), view))
      return false;
  return true;
}
