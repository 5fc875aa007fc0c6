/*
 * The rows of segments, forward or backward, one chunk for each block (params.h says how they are cut).
 *
 * A team of lanes has a row: each thread V vectors of it, in registers. Weights and table rows wait in shared memory as
 * float32, each thread's own channels in a place of its own (a slot), so no barrier is needed between who reads them
 * and who wrote them: the same thread. While a row is worked on, the next one is on its way.
 *
 * Sums over a row: 4 partial sums a thread, then the lanes of the team by halves. Sums over the heads of a token: each
 * thread's rows in order, the lanes of its warp by halves, the warps in order. Sums over rows, for weights: each
 * thread's rows in order, then the teams in order (in float64), then the chunks (sums.cu). None depends on the grid.
 */
#ifndef NR_CUDA_ROWS_CUH
#define NR_CUDA_ROWS_CUH

#include "cuda/device.cuh"

namespace nr {

/* A row as it lies in memory, and the statistics that the backward is given. */
template <int V, bool BACKWARD> struct fetched {
  vector in[V], x[BACKWARD ? V : 1];
  float mean, rstd;
};

/* A token of the chunk: whether there is one, and whether its rows turn. */
struct token {
  int32_t b, s;
  bool there, turns;
};

template <typename T, int FORM, bool BACKWARD> struct worker {
  enum {
    WHOLE = FORM != NR_CUDA_GENERAL, /* rows are whole vectors */
    E = T::lanes,
    V = WHOLE ? NR_CUDA_VECTORS(FORM, BACKWARD) : (int)NR_CUDA_GENERAL_CHANNELS / E,
    M = V * E,
    THREADS = WHOLE ? NR_CUDA_FAST_THREADS : NR_CUDA_GENERAL_THREADS,
    SLOT = M * THREADS, /* floats */
    WEIGHT = 0,
    COS = 1,
    SIN = 2,
    BIAS = 3,
    SLOTS = NR_CUDA_SLOTS(FORM, BACKWARD),
    /* Which passes over the heads of a token there are; the last is the only one where each row is for itself. */
    PASS_MEAN = 0,
    PASS_MOMENTS = 1,
    PASS_OUTPUT = 2
  };
  using row = fetched<V, BACKWARD>;

  const nr_cuda_segment &g;
  float *shared;
  int thread, team;
  int first;                        /* channel of this lane's first vector */
  int32_t chunk, begin, first_head; /* its first token and head */

  __device__ __forceinline__ worker(const nr_cuda_segment &segment, float *memory) : g(segment), shared(memory) {
    thread = (int)threadIdx.x;
    team = thread / g.lanes;
    first = lane() < g.spread ? lane() * E : NR_CUDA_MAX_DIM;
    chunk = (int32_t)blockIdx.x - g.first_block;
    begin = chunk / g.head_chunks * g.chunk_tokens;
    first_head = chunk % g.head_chunks * g.chunk_heads;
  }

  /* Cheaper to work out than to keep. */
  __device__ __forceinline__ int lane() const { return thread & (g.lanes - 1); }
  __device__ __forceinline__ int teams() const { return THREADS / g.lanes; }
  __device__ __forceinline__ int32_t end() const {
    return g.tokens - begin < g.chunk_tokens ? g.tokens : begin + g.chunk_tokens;
  }
  __device__ __forceinline__ int32_t end_head() const {
    return FORM == NR_CUDA_HEADS || g.heads - first_head < g.chunk_heads ? g.heads : first_head + g.chunk_heads;
  }

  /* What the form settles, and the segment elsewhere. */
  __device__ __forceinline__ bool by_heads() const {
    return FORM == NR_CUDA_HEADS || (FORM == NR_CUDA_GENERAL && g.by_heads);
  }
  __device__ __forceinline__ bool all_heads() const {
    return (FORM == NR_CUDA_HEADS || FORM == NR_CUDA_GENERAL) && g.all_heads;
  }
  __device__ __forceinline__ bool centres() const {
    return FORM == NR_CUDA_LAYER || (FORM != NR_CUDA_RMS && g.centres);
  }
  /* Where sums of weight gradients are: in registers where each thread has one row of them, else in memory. */
  static __device__ __forceinline__ bool in_registers() { return FORM == NR_CUDA_RMS || FORM == NR_CUDA_LAYER; }

  __device__ __forceinline__ int channel(int j) const { return first + j * (g.spread * E); }
  /* Whether element e of vector j is a channel. */
  __device__ __forceinline__ bool live(int j, int e) const { return channel(j) + (WHOLE ? 0 : e) < g.dim; }

  /* The walk: this team's tokens, and of each its heads. */
  __device__ __forceinline__ int num_tokens() const {
    return by_heads() ? end() - begin : (end() - begin + teams() - 1) / teams();
  }
  __device__ __forceinline__ int num_heads() const {
    int32_t count = end_head() - first_head;
    return by_heads() ? (count + teams() - 1) / teams() : count;
  }
  __device__ __forceinline__ int32_t head(int i) const { return by_heads() ? i * teams() + team : first_head + i; }

  __device__ __forceinline__ token locate(int o) const {
    int32_t number = begin + (by_heads() ? o : o * teams() + team);
    bool is = number < end();
    int32_t b = is ? number / g.length : 0;
    token t = {b, is ? number - b * g.length : 0, is, false};
    t.turns = is && g.pairing && (uint64_t)table(t) < (uint64_t)g.rope_length;
    return t;
  }

  /* Absent rows are worked on as zeros, so that every lane comes to every shuffle. Heads are absent only where teams
     share them out. */
  __device__ __forceinline__ bool there(const token &t, int32_t n) const {
    return t.there && (!by_heads() || n < end_head());
  }
  __device__ __forceinline__ bool turns(const token &t, int32_t n) const {
    return t.turns && (!by_heads() || n < end_head());
  }

  /* The token's row of the tables. */
  __device__ __forceinline__ int64_t table(const token &t) const { return t.s + g.rope_position; }

  /* Where a token's rows are: those that are read, and those that are written. */
  struct source {
    const char *in, *x;
  };
  __device__ __forceinline__ source source_of(const token &t) const {
    return {row_of(g.in, t.b, t.s, 0), BACKWARD ? row_of(g.x, t.b, t.s, 0) : nullptr};
  }
  __device__ __forceinline__ char *target_of(const token &t) const { return row_of(g.out, t.b, t.s, 0); }

  __device__ __forceinline__ void fetch(row &r, const source &from, const token &t, int32_t n) const {
    bool is = there(t, n);
    int count = is ? g.dim : 0;
    load<T, WHOLE, V>(r.in, from.in + n * g.in.head, g.in, first, g.spread * E, count);
    if (BACKWARD && g.normalises)
      load<T, WHOLE, V>(r.x, from.x + n * g.x.head, g.x, first, g.spread * E, count);
    r.mean = r.rstd = 0;
    if (BACKWARD && is && g.normalises)
      r.rstd = *(const float *)row_of(g.rstd, t.b, t.s, n);
    if (BACKWARD && is && centres() && g.normalises)
      r.mean = *(const float *)row_of(g.mean, t.b, t.s, n);
  }

  __device__ __forceinline__ float4 *slot(int k) const { return (float4 *)(shared + k * SLOT) + thread; }
  /* Channels 4q to 4q + 3 of this thread's. */
  __device__ __forceinline__ float4 quad(int k, int q) const { return slot(k)[q * THREADS]; }
  static __device__ __forceinline__ float at(const float4 &of, int i) {
    return i == 0 ? of.x : i == 1 ? of.y : i == 2 ? of.z : of.w;
  }

  /* This thread's channels of a row of weights or tables, which has `count`; zeros behind them. */
  __device__ __forceinline__ void fill(int k, const nr_cuda_view &v, const char *from, int count) const {
    float4 *to = slot(k);
    if (v.wide && v.dtype == NR_F32) {
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        int c = channel(q / (E / 4)) + q % (E / 4) * 4;
        to[q * THREADS] = c < count ? *(const float4 *)(from + c * 4) : make_float4(0, 0, 0, 0);
      }
    } else if (v.wide) {
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        int c = channel(q / (E / 4)) + q % (E / 4) * 4;
        uint2 words = c < count ? *(const uint2 *)(from + c * 2) : make_uint2(0, 0);
        float value[4];
        if (v.dtype == NR_F16) {
          f16::unpack(words.x, value);
          f16::unpack(words.y, value + 2);
        } else {
          bf16::unpack(words.x, value);
          bf16::unpack(words.y, value + 2);
        }
        to[q * THREADS] = make_float4(value[0], value[1], value[2], value[3]);
      }
    } else {
      _Pragma("unroll 1") for (int i = 0; i < M; i++) {
        int c = channel(i / E) + i % E;
        ((float *)&to[i / 4 * THREADS])[i % 4] = c < count ? load_one(from + c * v.channel, v.dtype) : 0;
      }
    }
  }

  /* Brings up to date what the next row needs of weights and tables. */
  __device__ __forceinline__ void stage(const token &t, int32_t n, bool new_block, bool new_token) const {
    if (!new_block && !new_token && !g.heads_staged)
      return;
    _Pragma("unroll 1") for (int k = 0; k < SLOTS; k++) {
      const nr_cuda_view &v = (&g.weight)[k];
      bool is_table = k == COS || k == SIN;
      if (v.data && (v.head || (is_table ? new_token : new_block)) && (is_table ? turns(t, n) : there(t, n)))
        fill(k, v, row_of(v, is_table ? t.b : 0, is_table ? table(t) : 0, n), is_table ? g.rope_dim : g.dim);
    }
  }

  /* One pair turns; backward by the transpose. */
  static __device__ __forceinline__ void turn(float &a, float &b, float cos_a, float cos_b, float sin_a, float sin_b) {
    float of_b = BACKWARD ? b * sin_b : -(b * sin_a), of_a = BACKWARD ? -(a * sin_a) : a * sin_b;
    a = fmaf(a, cos_a, of_b);
    b = fmaf(b, cos_b, of_a);
  }

  __device__ __forceinline__ void turn_adjacent(float *v) const {
    NR_UNROLL
    for (int q = 0; q < M / 4; q++) {
      float4 c = quad(COS, q), s = quad(SIN, q);
      turn(v[4 * q], v[4 * q + 1], c.x, c.y, s.x, s.y);
      turn(v[4 * q + 2], v[4 * q + 3], c.z, c.w, s.z, s.w);
    }
  }

  __device__ __forceinline__ void turn_halves(float *v) const {
    NR_UNROLL
    for (int q = 0; q < M / 8; q++) {
      float4 c = quad(COS, q), s = quad(SIN, q), d = quad(COS, q + M / 8), u = quad(SIN, q + M / 8);
      float *a = v + 4 * q, *b = a + M / 2;
      turn(a[0], b[0], c.x, d.x, s.x, u.x);
      turn(a[1], b[1], c.y, d.y, s.y, u.y);
      turn(a[2], b[2], c.z, d.z, s.z, u.z);
      turn(a[3], b[3], c.w, d.w, s.w, u.w);
    }
  }

  /* Any pairing: each thread shows what it has, and looks at its channels' partners. */
  __device__ __forceinline__ void turn_exchanged(float *v, bool wanted) const {
    float *board = shared + SLOTS * SLOT + team * (g.lanes * M);
    int half = g.rope_width / 2;
    NR_UNROLL
    for (int q = 0; q < M / 4; q++) {
      const float *a = v + 4 * q;
      float4 own = make_float4(a[0], a[1], a[2], a[3]);
      if (BACKWARD) {
        float4 s = quad(SIN, q);
        own = make_float4(own.x * s.x, own.y * s.y, own.z * s.z, own.w * s.w);
      }
      int c = channel(q / (E / 4)) + q % (E / 4) * 4;
      if (c < g.dim)
        *(float4 *)(board + c) = own;
    }
    __syncwarp();
    NR_UNROLL
    for (int j = 0; j < V; j++) {
      int within = channel(j) % g.rope_width;
      float4 cosines, sines;
      NR_UNROLL
      for (int e = 0; e < E; e++) {
        int i = j * E + e, c = channel(j) + e;
        bool leads = within < half;
        if (e % 4 == 0) {
          cosines = quad(COS, i / 4);
          if (!BACKWARD)
            sines = quad(SIN, i / 4);
        }
        if (wanted && c < g.rope_dim) {
          float other = board[leads ? c + half : c - half];
          if (!BACKWARD)
            other *= at(sines, e % 4);
          v[i] = fmaf(v[i], at(cosines, e % 4), leads == BACKWARD ? other : -other);
        }
        within = within + 1 == g.rope_width ? 0 : within + 1;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void turn_row(float *v, const token &t, int32_t n) const {
    if (g.pairing == NR_CUDA_EXCHANGE)
      turn_exchanged(v, turns(t, n));
    else if (g.pairing == NR_CUDA_ADJACENT && turns(t, n))
      turn_adjacent(v);
    else if (g.pairing == NR_CUDA_HALVES && turns(t, n))
      turn_halves(v);
  }

  __device__ __forceinline__ void put(const vector *packed, char *out, const token &t, int32_t n) const {
    store<T, WHOLE, V>(out + n * g.out.head, g.out, first, g.spread * E, there(t, n) ? g.dim : 0, packed, g.streams);
  }

  __device__ __forceinline__ void put(const float *v, char *out, const token &t, int32_t n) const {
    if (!g.out.data)
      return;
    vector packed[V];
    NR_UNROLL
    for (int j = 0; j < V; j++)
      packed[j] = pack<T>(v + j * E);
    put(packed, out, t, n);
  }

  /* The two sums over all threads of the block; `parity` alternates from call to call, which saves a barrier. */
  static __device__ __forceinline__ void block_sum(exact_sum &a, exact_sum &b, int parity) {
    enum { WARPS = THREADS / NR_CUDA_LANES };
    __shared__ float parts[2][WARPS][4];
    a = team_sum(a, NR_CUDA_LANES);
    b = team_sum(b, NR_CUDA_LANES);
    if (threadIdx.x % NR_CUDA_LANES == 0) {
      float *mine = parts[parity][threadIdx.x / NR_CUDA_LANES];
      mine[0] = a.high, mine[1] = a.low, mine[2] = b.high, mine[3] = b.low;
    }
    __syncthreads();
    a = b = {0, 0};
    NR_UNROLL
    for (int w = 0; w < WARPS; w++) {
      const float *one = parts[parity][w];
      a = plus(a, {one[0], one[1]});
      b = plus(b, {one[2], one[3]});
    }
  }

  /* What a norm knows about the row or rows: forward the first mean, what it lacks and rstd; backward the sums of dxhat
     and of dxhat * xhat. */
  struct moments {
    float first, second, rstd;
  };

  static __device__ __forceinline__ float sum_of(const float *v) {
    float part[4] = {v[0], v[1], v[2], v[3]};
    NR_UNROLL
    for (int i = 4; i < M; i++)
      part[i % 4] += v[i];
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  static __device__ __forceinline__ float magnitude_of(const float *v) {
    float part[4] = {0, 0, 0, 0};
    NR_UNROLL
    for (int i = 0; i < M; i++)
      part[i % 4] += fabsf(v[i]);
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  /* From the sums of the rows and of their magnitudes, a mean with so few digits that subtracting it loses none: else
     all deviations were rounded by the same amount, which their sum would show. */
  __device__ __forceinline__ float first_mean(float sum, float magnitudes) const {
    float mean = sum * g.count_inverse, grid = magnitudes * g.count_inverse * 0x1p13f;
    return grid < 0x1p127f ? (mean + grid) - grid : mean;
  }

  /* Sums of v - m and of its squares. */
  __device__ __forceinline__ void deviations(const float *v, float m, float &sum, float &squares) const {
    float part[4] = {0, 0, 0, 0}, square[4] = {0, 0, 0, 0};
    NR_UNROLL
    for (int j = 0; j < V; j++) {
      float mean = live(j, 0) ? m : 0;
      NR_UNROLL
      for (int e = 0; e < E; e++) {
        float d = WHOLE || !centres() || live(j, e) ? v[j * E + e] - mean : 0;
        part[e % 4] += d;
        square[e % 4] = fmaf(d, d, square[e % 4]);
      }
    }
    sum = (part[0] + part[1]) + (part[2] + part[3]);
    squares = (square[0] + square[1]) + (square[2] + square[3]);
  }

  /* From the sums of deviations from `of.first`. Where variance and eps are small they are scaled by 2^120, out of the
     range where floats have few digits. */
  __device__ __forceinline__ void measure(moments &of, exact_sum sum, exact_sum squares) const {
    float lacks = fmaf(sum.high, g.count_inverse, sum.low * g.count_inverse);
    of.second = centres() && lacks == lacks ? lacks : 0; /* an infinite mean lacks nothing */
    bool small = squares.high * g.count_inverse < 0x1p-60f && g.eps < 0x1p-60f;
    float scale = small ? 0x1p120f : 1, high = squares.high * scale, low = squares.low * scale;
    float rest = of.second * (small ? 0x1p60f : 1);
    float mean = high * g.count_inverse, lost = fmaf(high, g.count_inverse, -mean);
    lost += fmaf(low, g.count_inverse, high * g.count_inverse_rest);
    exact_sum variance = {mean, lost == lost ? lost : 0};
    if (centres())
      variance = plus(variance, {-(rest * rest), 0});
    of.rstd = inverse_root(plus(variance, {small ? g.eps_scaled : g.eps, 0})) * (small ? 0x1p60f : 1);
  }

  __device__ __forceinline__ void give_statistics(const moments &of, const token &t, int32_t n) const {
    if (lane() != 0 || !there(t, n) || (all_heads() && n != 0))
      return;
    if (centres() && g.mean.data)
      store_one(row_of(g.mean, t.b, t.s, n), NR_F32, of.first + of.second);
    if (g.rstd.data)
      store_one(row_of(g.rstd, t.b, t.s, n), NR_F32, of.rstd);
  }

  /* xhat * weight + bias in place of x. */
  __device__ __forceinline__ void normalise(float *v, const moments &of) const {
    float rest = of.second * of.rstd;
    NR_UNROLL
    for (int i = 0; i < M; i++)
      v[i] = centres() ? fmaf(v[i] - of.first, of.rstd, -rest) : v[i] * of.rstd;
    if (g.weight.data) {
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        float4 w = quad(WEIGHT, q), b = make_float4(-0.0f, -0.0f, -0.0f, -0.0f);
        if (FORM != NR_CUDA_RMS && g.bias.data)
          b = quad(BIAS, q);
        v[4 * q] = fmaf(v[4 * q], w.x, b.x);
        v[4 * q + 1] = fmaf(v[4 * q + 1], w.y, b.y);
        v[4 * q + 2] = fmaf(v[4 * q + 2], w.z, b.z);
        v[4 * q + 3] = fmaf(v[4 * q + 3], w.w, b.w);
      }
    }
  }

  /* One row forward, in the given pass; false if the pass only measures, and `a`, `b` have grown by this row. */
  __device__ __forceinline__ bool forward(float *v, moments &of, int pass, bool is, exact_sum &a, exact_sum &b) const {
    if (!g.normalises)
      return true;
    if (pass == PASS_MEAN) {
      a.high += sum_of(v);
      b.high += magnitude_of(v);
      return false;
    }
    if (pass == PASS_MOMENTS) {
      float sum, squares;
      deviations(v, of.first, sum, squares);
      a = plus(a, {is ? sum : 0, 0});
      b = plus(b, {is ? squares : 0, 0});
      return false;
    }
    if (!all_heads()) {
      float sum, squares;
      of.first = 0;
      if (centres())
        of.first = first_mean(team_sum(sum_of(v), g.lanes), team_sum(magnitude_of(v), g.lanes));
      deviations(v, of.first, sum, squares);
      exact_sum total = {0, 0};
      if (centres())
        total = team_sum(exact_sum{sum, 0}, g.lanes);
      measure(of, total, team_sum(exact_sum{squares, 0}, g.lanes));
    }
    return true;
  }

  /* Where this thread's sums are: part 0 those of weights, 1 of biases; of the i-th of its heads. */
  __device__ __forceinline__ int parts() const { return g.bias_columns ? 2 : 1; }
  __device__ __forceinline__ float4 *sums(int part, int i) const {
    int64_t place = (int64_t)(part * g.team_sums + i) * SLOT;
    float *memory = shared + (in_registers() ? 0 : SLOTS + (g.pairing == NR_CUDA_EXCHANGE)) * SLOT;
    if (!in_registers() && g.spill)
      memory = g.spill + (int64_t)chunk * parts() * g.team_sums * SLOT;
    return (float4 *)(memory + place) + thread;
  }

  __device__ __forceinline__ void clear_sums() const {
    for (int k = 0; k < parts() * g.team_sums; k++)
      for (int q = 0; q < M / 4; q++)
        sums(0, k)[q * THREADS] = make_float4(0, 0, 0, 0);
  }

  static __device__ __forceinline__ void add(float4 *to, float a, float b, float c, float d) {
    float4 sum = *to;
    *to = make_float4(sum.x + a, sum.y + b, sum.z + c, sum.w + d);
  }

  /* One row backward from dy and x: the gradient of x in place of dy. False as forward's. */
  __device__ __forceinline__ bool backward(float *dy, float *x, const row &r, moments &of, int pass, bool is,
                                           exact_sum &a, exact_sum &b, float *weight_sum, float *bias_sum,
                                           int i) const {
    if (!g.normalises)
      return true;
    NR_UNROLL
    for (int j = 0; j < V; j++) {
      float mean = live(j, 0) ? r.mean : 0, rstd = live(j, 0) ? r.rstd : 0;
      NR_UNROLL
      for (int e = 0; e < E; e++)
        x[j * E + e] = WHOLE || live(j, e) ? (x[j * E + e] - mean) * rstd : 0;
    }
    if (pass == PASS_OUTPUT && in_registers()) {
      NR_UNROLL
      for (int k = 0; k < M; k++) {
        weight_sum[k] = fmaf(dy[k], x[k], weight_sum[k]);
        if (centres())
          bias_sum[k] += dy[k];
      }
    } else if (pass == PASS_OUTPUT && wants_sums()) {
      float4 *weights = sums(0, by_heads() ? i : 0), *biases = sums(1, by_heads() ? i : 0);
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        const float *d = dy + 4 * q, *h = x + 4 * q;
        add(weights + q * THREADS, d[0] * h[0], d[1] * h[1], d[2] * h[2], d[3] * h[3]);
        if (g.bias_columns)
          add(biases + q * THREADS, d[0], d[1], d[2], d[3]);
      }
    }
    if (g.weight.data) {
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        float4 w = quad(WEIGHT, q);
        dy[4 * q] *= w.x;
        dy[4 * q + 1] *= w.y;
        dy[4 * q + 2] *= w.z;
        dy[4 * q + 3] *= w.w;
      }
    }
    if (!all_heads() || pass != PASS_OUTPUT) {
      float product[4] = {0, 0, 0, 0}, sum = 0;
      NR_UNROLL
      for (int k = 0; k < M; k++)
        product[k % 4] = fmaf(dy[k], x[k], product[k % 4]);
      if (centres())
        sum = sum_of(dy);
      product[0] = (product[0] + product[1]) + (product[2] + product[3]);
      if (pass != PASS_OUTPUT) {
        a.high += is ? sum : 0;
        b.high += is ? product[0] : 0;
        return false;
      }
      of.first = centres() ? team_sum(sum, g.lanes) : 0;
      of.second = team_sum(product[0], g.lanes);
    }
    bool small = fabsf(of.first) < 0x1p-90f && fabsf(of.second) < 0x1p-90f; /* and few digits, unless scaled */
    float up = small ? 0x1p60f : 1, down = small ? 0x1p-60f : 1;
    float centre = r.rstd * (of.first * up * g.count_inverse), slope = r.rstd * (of.second * up * g.count_inverse);
    NR_UNROLL
    for (int k = 0; k < M; k++)
      dy[k] = fmaf(r.rstd, dy[k], -(fmaf(x[k], slope, centre) * down));
    return true;
  }

  __device__ __forceinline__ bool wants_sums() const { return g.weight_columns || g.bias_columns; }

  /* The sum of one column over this chunk: over the teams in order, and the heads of each, or of the one team that has
     the column's head. */
  __device__ __forceinline__ float column_sum(int part, int column, bool of_heads) const {
    int c = column % g.dim, n = column / g.dim, v = c / E, q = v / g.spread * (E / 4) + c % E / 4;
    int from_team = of_heads ? n % teams() : 0, end_team = of_heads ? from_team + 1 : teams();
    int from = of_heads ? n / teams() : 0, end = of_heads ? from + 1 : g.team_sums;
    double sum = 0;
    for (int i = from; i < end; i++) {
      const float *at = (const float *)(sums(part, i) - thread + q * THREADS + v % g.spread) + c % 4;
      for (int k = from_team; k < end_team; k++)
        sum += at[k * g.lanes * 4];
    }
    return (float)sum;
  }

  /* The sums of this chunk to its rows of the workspace; those in registers by way of each thread's own slots. */
  __device__ __forceinline__ void give_sums(const float *weight_sum, const float *bias_sum) const {
    if (!wants_sums())
      return;
    if (in_registers()) {
      NR_UNROLL
      for (int q = 0; q < M / 4; q++) {
        const float *w = weight_sum + 4 * q, *b = bias_sum + 4 * q;
        sums(0, 0)[q * THREADS] = make_float4(w[0], w[1], w[2], w[3]);
        sums(1, 0)[q * THREADS] = make_float4(b[0], b[1], b[2], b[3]);
      }
    }
    __syncthreads();
    for (int part = 0; part < 2; part++) {
      int columns = part ? g.bias_columns : g.weight_columns;
      float *to = (part ? g.bias_sums : g.weight_sums) + (int64_t)chunk * columns;
      for (int column = thread; column < columns; column += THREADS)
        to[column] = column_sum(part, column, columns > g.dim);
    }
  }

  __device__ __forceinline__ void run() const {
    int tokens = num_tokens(), heads = num_heads(), first_pass = PASS_OUTPUT, parity = 0;
    if (all_heads())
      first_pass = !BACKWARD && centres() ? PASS_MEAN : PASS_MOMENTS;
    int stages = BACKWARD ? first_pass : PASS_OUTPUT; /* the first pass that looks at weights and tables */
    float weight_sum[BACKWARD ? M : 1], bias_sum[BACKWARD ? M : 1];
    if (BACKWARD && in_registers()) {
      NR_UNROLL
      for (int k = 0; k < M; k++)
        weight_sum[k] = bias_sum[k] = 0;
    } else if (BACKWARD && wants_sums()) {
      clear_sums();
    }
    token here = locate(0);
    source from = source_of(here);
    char *out = target_of(here);
    row now, ahead;
    moments of = {0, 0, 0};
    fetch(now, from, here, head(0));
    for (int o = 0; o < tokens; o++) {
      for (int pass = first_pass; pass <= PASS_OUTPUT; pass++) {
        exact_sum a = {0, 0}, b = {0, 0};
        for (int i = 0; i < heads; i++) {
          bool last = i + 1 == heads, leaves = last && pass == PASS_OUTPUT;
          token next = here;
          if (leaves) {
            next = locate(o + 1);
            from = source_of(next);
          }
          if (WHOLE)
            fetch(ahead, from, next, head(last ? 0 : i + 1));
          bool new_token = i == 0 && pass == stages;
          work(now, here, out, i, pass, new_token && o == 0, new_token, of, a, b, weight_sum, bias_sum);
          if (WHOLE)
            now = ahead;
          else
            fetch(now, from, next, head(last ? 0 : i + 1));
          here = next;
          if (leaves)
            out = target_of(next);
        }
        if (pass != PASS_OUTPUT)
          join(of, pass, a, b, parity ^= 1);
      }
    }
    if (BACKWARD)
      give_sums(weight_sum, bias_sum);
  }

  /* What the rows of a token's heads add up to. */
  __device__ __forceinline__ void join(moments &of, int pass, exact_sum a, exact_sum b, int parity) const {
    block_sum(a, b, parity);
    if (BACKWARD) {
      of.first = centres() ? a.high : 0;
      of.second = b.high;
    } else if (pass == PASS_MEAN) {
      of.first = first_mean(a.high, b.high);
    } else {
      measure(of, a, b);
    }
  }

  __device__ __forceinline__ void work(const row &r, const token &t, char *out, int i, int pass, bool new_block,
                                       bool new_token, moments &of, exact_sum &a, exact_sum &b, float *weight_sum,
                                       float *bias_sum) const {
    int32_t n = head(i);
    if (g.copies) {
      put(r.in, out, t, n);
      return;
    }
    if (BACKWARD || pass == PASS_OUTPUT)
      stage(t, n, new_block, new_token);
    float v[M];
    NR_UNROLL
    for (int j = 0; j < V; j++)
      unpack<T>(r.in[j], v + j * E);
    if (BACKWARD) {
      float x[M];
      turn_row(v, t, n);
      if (g.normalises) {
        NR_UNROLL
        for (int j = 0; j < V; j++)
          unpack<T>(r.x[j], x + j * E);
      }
      if (backward(v, x, r, of, pass, there(t, n), a, b, weight_sum, bias_sum, i))
        put(v, out, t, n);
    } else if (forward(v, of, pass, there(t, n), a, b)) {
      if (g.normalises) {
        give_statistics(of, t, n);
        normalise(v, of);
      }
      turn_row(v, t, n);
      put(v, out, t, n);
    }
  }
};

/* Blocks that a multiprocessor's registers are to suffice for: fewer for LayerNorm, which has biases and their sums. */
constexpr int least_blocks(int form) { return form == NR_CUDA_LAYER ? 3 : 4; }

template <typename T, int FORM, bool BACKWARD>
__global__ void __launch_bounds__(FORM == NR_CUDA_GENERAL ? NR_CUDA_GENERAL_THREADS : NR_CUDA_FAST_THREADS,
                                  least_blocks(FORM)) rows(const __grid_constant__ nr_cuda_rows p) {
  NR_SHARED(shared);
  int index = 0;
  while (index + 1 < p.num_segments && (int32_t)blockIdx.x >= p.segments[index + 1].first_block)
    index++;
  worker<T, FORM, BACKWARD>(p.segments[index], shared).run();
}

} // namespace nr

/* [form][direction] */
#define NR_ROWS(T)                                                                                                     \
  {                                                                                                                    \
    NR_ROWS_OF(T, NR_CUDA_GENERAL), NR_ROWS_OF(T, NR_CUDA_RMS), NR_ROWS_OF(T, NR_CUDA_LAYER),                          \
        NR_ROWS_OF(T, NR_CUDA_HEADS)                                                                                   \
  }
#define NR_ROWS_OF(T, form)                                                                                            \
  { NR_ENTRY((nr::rows<nr::T, form, false>), nr_cuda_rows), NR_ENTRY((nr::rows<nr::T, form, true>), nr_cuda_rows) }

#endif
