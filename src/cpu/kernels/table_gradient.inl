/*
 * The body for the gradients of the tables, which are wanted where a model learns them: with y the normalised row,
 *   grad_cos[i] += grad_y[i] * y[i],  grad_sin[i] += grad_y[i] * -+ y[partner]
 * summed in float64 over the batches and heads that share the table row. Rows are in plain order.
 */
INLINE void table_gradient(const nr_table_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  scratch grad, y, weight, bias;
  int64_t half = s->rope_width / 2, p = b->position;
  for (int64_t batch = b->batch < 0 ? 0 : b->batch; batch < (b->batch < 0 ? s->batch : b->batch + 1); batch++)
    for (int64_t n = b->head < 0 ? 0 : b->head; n < (b->head < 0 ? s->heads : b->head + 1); n++) {
      int64_t group = n / nr_group_heads(s);
      float mean = nr_norm_centres(s->norm) ? *(const float *)nr_row(&s->mean, batch, p, group) : 0;
      float rstd = s->norm ? *(const float *)nr_row(&s->rstd, batch, p, group) : 1;
      load_row(&s->x, nr_row(&s->x, batch, p, n), dtype, s->dim, y.channel, NR_F32);
      load_row(&s->grad_y, nr_row(&s->grad_y, batch, p, n), dtype, s->dim, grad.channel, NR_F32);
      if (nr_norm_weighs(s->norm))
        load_any(&s->weight, nr_row(&s->weight, 0, 0, n), s->dim, weight.channel, NR_F32);
      if (s->norm == NR_NORM_LAYER_AFFINE)
        load_any(&s->bias, nr_row(&s->bias, 0, 0, n), s->dim, bias.channel, NR_F32);
      for (int64_t d = 0; d < s->dim; d++) {
        float xhat = (y.channel[d] - mean) * rstd;
        y.channel[d] = s->norm == NR_NORM_LAYER_AFFINE ? fmaf(xhat, weight.channel[d], bias.channel[d])
                       : nr_norm_weighs(s->norm)       ? xhat * weight.channel[d]
                                                       : xhat;
      }
      for (int64_t i = 0; i < s->rope_dim; i++) {
        bool first = i % s->rope_width < half;
        float other = first ? -y.channel[i + half] : y.channel[i - half];
        if (b->cos_sum)
          b->cos_sum[i] += (double)(grad.channel[i] * y.channel[i]);
        if (b->sin_sum)
          b->sin_sum[i] += (double)(grad.channel[i] * other);
      }
    }
}
