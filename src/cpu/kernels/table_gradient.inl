/*
 * The body for the gradients of the tables, which are wanted where a model learns them: with y the normalised row,
 *   grad_cos[i] += grad_y[i] * y[i],  grad_sin[i] += grad_y[i] * -+ y[partner]
 * summed in float64 over the batches and heads that share the table row.
 */
INLINE void table_gradient(const nr_table_block *b, nr_dtype dtype) {
  const nr_segment *s = b->segment;
  scratch g_strided, x_strided, weight_buffer, bias_buffer, y, turned;
  int64_t half = s->rope_width / 2, p = b->position;
  for (int64_t batch = b->batch < 0 ? 0 : b->batch; batch < (b->batch < 0 ? s->batch : b->batch + 1); batch++)
    for (int64_t n = b->head < 0 ? 0 : b->head; n < (b->head < 0 ? s->heads : b->head + 1); n++) {
      const float *weight = parameter(&s->weight, nr_norm_weighs(s->norm), n, s->dim, &weight_buffer);
      const float *bias = parameter(&s->bias, s->norm == NR_NORM_LAYER_AFFINE, n, s->dim, &bias_buffer);
      int64_t group = n / nr_group_heads(s);
      v16 mean = v16_set(nr_norm_centres(s->norm) ? *(const float *)nr_row(&s->mean, batch, p, group) : 0);
      v16 rstd = v16_set(s->norm ? *(const float *)nr_row(&s->rstd, batch, p, group) : 1);
      const char *x = gathered(&s->x, nr_row(&s->x, batch, p, n), dtype, s->dim, &x_strided);
      const char *g = gathered(&s->grad_y, nr_row(&s->grad_y, batch, p, n), dtype, s->dim, &g_strided);
      for (int64_t d = 0; d < s->dim; d += VECTOR) {
        int64_t lane = lanes(s->dim, d);
        v16 xhat = v16_mul(v16_sub(load(x, dtype, d, lane), mean), rstd);
        v16_put(&y.channel[d], affine(xhat, weight, bias, d, lane), lane);
      }
      for (int64_t block = 0; block < s->rope_dim; block += s->rope_width)
        for (int64_t i = block; i < block + half; i++) {
          turned.channel[i] = -y.channel[i + half];
          turned.channel[i + half] = y.channel[i];
        }
      for (int64_t d = 0; d < s->rope_dim; d += VECTOR) {
        int64_t lane = lanes(s->rope_dim, d);
        v16 grad = load(g, dtype, d, lane);
        if (b->cos_sum)
          v16_add_to(b->cos_sum + d, v16_mul(grad, get(y.channel, d, lane)), lane);
        if (b->sin_sum)
          v16_add_to(b->sin_sum + d, v16_mul(grad, get(turned.channel, d, lane)), lane);
      }
    }
}
