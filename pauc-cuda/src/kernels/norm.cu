// Batch normalization of rows (R, C): the pixels of maps with channels last, or the rows of a matrix. The
// per-channel coefficients are mean, 1/deviation, scale, shift.

// How blocks divide rows. Each group of channels, as wide as a block or all channels, has `runs` blocks,
// which share the rows. Neighboring threads of a block process V channels each; its remaining threads process
// other rows.
template <unsigned V> struct Lane {
    unsigned packs, tile, group, run, runs, col;
    size_t row, step, rows;

    __device__ Lane(size_t R, unsigned C) : packs(C / V), tile(1), rows(R) {
        while (tile < packs && tile < THREADS) tile *= 2;
        unsigned groups = (packs + tile - 1) / tile, height = THREADS / tile;
        group = blockIdx.x % groups;
        run = blockIdx.x / groups;
        runs = gridDim.x / groups;
        col = group * tile + threadIdx.x % tile;
        row = (size_t)run * height + threadIdx.x / tile;
        step = (size_t)runs * height;
    }
    // Threads beyond the last channel are idle.
    __device__ bool idle() const { return col >= packs; }
    __device__ size_t at(size_t r) const { return r * packs + col; }
    // The same in reverse order, to read the most recently written rows while they are in the cache.
    __device__ size_t from_end(size_t r) const { return (rows - 1 - r) * packs + col; }
    // Loads this thread's V channels of a vector; `absent` if the vector is null.
    __device__ void channels(const float *vector, float absent, float (&to)[V]) const {
#pragma unroll
        for (unsigned v = 0; v < V; v++) to[v] = vector ? vector[col * V + v] : absent;
    }
};

// Writes the sums over the rows of a block, two per channel, in a fixed order. The sums of all runs of a
// channel are adjacent.
template <unsigned V>
__device__ void block_sums_of_rows(const Lane<V> &lane, const float (&a)[V], const float (&b)[V], unsigned C, double *sums) {
    __shared__ float part[2 * V * MOST_THREADS];
#pragma unroll
    for (unsigned v = 0; v < V; v++) {
        part[2 * v * THREADS + threadIdx.x] = a[v];
        part[(2 * v + 1) * THREADS + threadIdx.x] = b[v];
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < lane.tile * 2 * V; i += THREADS) {
        unsigned which = i / lane.tile, col = i % lane.tile, c = (lane.group * lane.tile + col) * V + which / 2;
        double sum = 0;
        for (unsigned t = col; t < THREADS; t += lane.tile) sum += part[which * THREADS + t];
        if (c < C) sums[2 * ((size_t)c * lane.runs + lane.run) + which % 2] = sum;
    }
}

// Writes the maxima over the rows of a block, one per channel.
template <unsigned V> __device__ void block_largest_of_rows(const Lane<V> &lane, const float (&top)[V], unsigned C, float *largest) {
    __shared__ float part[V * MOST_THREADS];
#pragma unroll
    for (unsigned v = 0; v < V; v++) part[v * THREADS + threadIdx.x] = top[v];
    __syncthreads();
    for (unsigned i = threadIdx.x; i < lane.tile * V; i += THREADS) {
        unsigned which = i / lane.tile, col = i % lane.tile, c = (lane.group * lane.tile + col) * V + which;
        float most = 0;
        for (unsigned t = col; t < THREADS; t += lane.tile) most = fmaxf(most, part[which * THREADS + t]);
        if (c < C) largest[(size_t)c * lane.runs + lane.run] = most;
    }
}

// The two sums of channel c over all runs, and the maximum if maxima are given, for every thread of a block.
__device__ inline void block_totals(const double *sums, const float *largest, unsigned runs, unsigned c, double &a, double &b,
                                    float &top) {
    a = b = 0;
    top = 0;
    for (unsigned run = threadIdx.x; run < runs; run += THREADS) {
        size_t at = (size_t)c * runs + run;
        a += sums[2 * at];
        b += sums[2 * at + 1];
        if (largest) top = fmaxf(top, largest[at]);
    }
    block_totals(a, b, top);
}

template <class T, unsigned V> __device__ void block_norm_sums(const void *y, double *sums, size_t R, unsigned C) {
    Lane<V> lane(R, C);
    float origin[V], a[V] = {}, b[V] = {};
    if (!lane.idle()) {
        load<T, V>(y, lane.col, origin);
        for (size_t r = lane.row; r < R; r += lane.step) {
            float x[V];
            load<T, V>(y, lane.from_end(r), x);
#pragma unroll
            for (unsigned v = 0; v < V; v++) {
                float d = x[v] - origin[v];
                a[v] += d;
                b[v] = fmaf(d, d, b[v]);
            }
        }
    }
    block_sums_of_rows(lane, a, b, C, sums);
}

// Sums of the differences from the first row and of their squares. Using differences avoids cancellation in
// the sum of squares.
extern "C" __global__ void pauc_norm_sums(unsigned element, const void *y, double *sums, size_t R, unsigned C) {
    BY_ELEMENT(element, block_norm_sums, y, sums, R, C);
}

// Computes the coefficients from mean and variance.
__device__ inline void coefficients(unsigned c, float m, float variance, const float *gamma, const float *beta, float epsilon,
                                    float *mean, float *inverse, float *scale, float *shift) {
    float inv = (float)(1.0 / sqrt((double)variance + (double)epsilon));
    mean[c] = m;
    inverse[c] = inv;
    scale[c] = gamma[c] * inv;
    shift[c] = beta[c] - m * gamma[c] * inv;
}

// One block per channel: computes mean and variance from the sums of all runs, updates the running
// statistics, and computes the coefficients.
extern "C" __global__ void pauc_norm_moments(unsigned element, const void *y, const double *sums, unsigned runs, size_t R,
                                             float *running_mean, float *running_variance, float momentum, const float *gamma,
                                             const float *beta, float epsilon, float *mean, float *inverse, float *scale,
                                             float *shift) {
    unsigned c = blockIdx.x;
    double a, b, n = (double)R;
    float top;
    block_totals(sums, 0, runs, c, a, b, top);
    if (threadIdx.x > 0) return;
    double origin = element < 2 ? ((const float *)y)[c] : number(((const bf16 *)y)[c]);
    double offset = a / n, spread = b / n - offset * offset;
    float m = (float)(origin + offset), variance = (float)(spread > 0 ? spread : 0);
    running_mean[c] += momentum * (m - running_mean[c]);
    running_variance[c] += momentum * ((float)(variance * n / (n - 1)) - running_variance[c]);
    coefficients(c, m, variance, gamma, beta, epsilon, mean, inverse, scale, shift);
}

// Computes the coefficients from given mean and variance.
extern "C" __global__ void pauc_norm_prepare(unsigned C, const float *given_mean, const float *variance, const float *gamma,
                                             const float *beta, float epsilon, float *mean, float *inverse, float *scale,
                                             float *shift) {
    FOR_EACH(c, C) coefficients(c, given_mean[c], variance[c], gamma, beta, epsilon, mean, inverse, scale, shift);
}

// Only f32 maps and gradients have fp16 copies.
#define HAS_F16_COPY(T) (sizeof(T) == sizeof(float))

template <class T, unsigned V>
__device__ void norm_apply(size_t R, unsigned C, const void *y, const float *scale, const float *shift, const void *residual,
                           const float *residual_scale, const float *residual_shift, bool relu, void *f16_copy, void *out) {
    Lane<V> lane(R, C);
    if (lane.idle()) return;
    float a[V], b[V], c[V], d[V];
    lane.channels(scale, 1, a);
    lane.channels(shift, 0, b);
    lane.channels(residual_scale, 1, c);
    lane.channels(residual_shift, 0, d);
    for (size_t r = lane.row; r < R; r += lane.step) {
        float x[V], z[V];
        load<T, V>(y, lane.at(r), x);
        if (residual) load<T, V>(residual, lane.at(r), z);
#pragma unroll
        for (unsigned v = 0; v < V; v++) {
            x[v] = fmaf(x[v], a[v], b[v]);
            if (residual) x[v] += fmaf(z[v], c[v], d[v]);
            if (relu && !(x[v] > 0) && x[v] == x[v]) x[v] = 0;
        }
        store<T, V>(out, lane.at(r), x);
        if (HAS_F16_COPY(T) && f16_copy) store<f16, V>(f16_copy, lane.at(r), x);
    }
}

// out <- relu?(scale y + shift + residual), where the residual may have its own scale and shift. Absent
// arguments are null. Also writes an fp16 copy if there is memory for it.
extern "C" __global__ void pauc_norm_apply(unsigned element, size_t R, unsigned C, const void *y, const float *scale,
                                           const float *shift, const void *residual, const float *residual_scale,
                                           const float *residual_shift, unsigned relu, void *f16_copy, void *out) {
    BY_ELEMENT(element, norm_apply, R, C, y, scale, shift, residual, residual_scale, residual_shift, relu, f16_copy, out);
}

// The ReLU after a normalization.
#define NO_RELU 0
// ReLU of the normalized value alone, whose sign is the mask.
#define RELU 1
// ReLU of the sum with a residual: the output is the mask.
#define RELU_OF_OUTPUT 2

template <class T, unsigned V>
__device__ void block_norm_gradient_sums(unsigned relu, void *g, const void *more, const void *out, const void *y, const float *mean,
                                         const float *inverse, const float *scale, const float *shift, double *sums,
                                         float *largest, size_t R, unsigned C) {
    Lane<V> lane(R, C);
    float a[V] = {}, b[V] = {}, top[V] = {};
    if (!lane.idle()) {
        float m[V], s[V], t[V];
        lane.channels(mean, 0, m);
        lane.channels(scale, 1, s);
        lane.channels(shift, 0, t);
        for (size_t r = lane.row; r < R; r += lane.step) {
            float d[V], x[V], o[V];
            load<T, V>(g, lane.from_end(r), d);
            load<T, V>(y, lane.from_end(r), x);
            if (relu == RELU_OF_OUTPUT) load<T, V>(out, lane.from_end(r), o);
            if (more) {
                float e[V];
                load<T, V>(more, lane.from_end(r), e);
#pragma unroll
                for (unsigned v = 0; v < V; v++) d[v] += e[v];
            }
#pragma unroll
            for (unsigned v = 0; v < V; v++) {
                if (relu == RELU) o[v] = fmaf(x[v], s[v], t[v]);
                if (relu && !(o[v] > 0)) d[v] = 0;
                a[v] += d[v];
                b[v] = fmaf(d[v], x[v] - m[v], b[v]);
                if (HAS_F16_COPY(T) && largest) top[v] = fmaxf(top[v], fabsf(d[v]));
            }
            if (relu == RELU_OF_OUTPUT || more) store<T, V>(g, lane.from_end(r), d);
        }
        float inv[V];
        lane.channels(inverse, 1, inv);
#pragma unroll
        for (unsigned v = 0; v < V; v++) b[v] *= inv[v];
    }
    block_sums_of_rows(lane, a, b, C, sums);
    if (HAS_F16_COPY(T) && largest) block_largest_of_rows(lane, top, C, largest);
}

// The sums of g and of g times the standardized y, where ReLU was open, and the maximum of |g| if there is
// memory for it. If `more` is given, it is added to g first. With a residual or `more`, g is then set to zero
// in place where ReLU was closed.
extern "C" __global__ void pauc_norm_gradient_sums(unsigned element, unsigned relu, void *g, const void *more, const void *out, const void *y,
                                                   const float *mean, const float *inverse, const float *scale, const float *shift,
                                                   double *sums, float *largest, size_t R, unsigned C) {
    BY_ELEMENT(element, block_norm_gradient_sums, relu, g, more, out, y, mean, inverse, scale, shift, sums, largest, R, C);
}

// One block per channel: accumulates the gradients of gamma and beta, and writes the means that the gradient
// of y needs. If there is memory for it, also writes the maximum of |g scale|.
extern "C" __global__ void pauc_norm_gradient_finish(const double *sums, const float *largest, unsigned runs, size_t R,
                                                     const float *scale, float *d_gamma, float *d_beta, float *mean_g, float *mean_gx,
                                                     float *size) {
    unsigned c = blockIdx.x;
    double a, b, n = (double)R;
    float top;
    block_totals(sums, largest, runs, c, a, b, top);
    if (threadIdx.x > 0) return;
    if (size) size[c] = top * fabsf(scale[c]);
    d_beta[c] += (float)a;
    d_gamma[c] += (float)b;
    mean_g[c] = (float)(a / n);
    mean_gx[c] = (float)(b / n);
}

// The scale of a gradient in fp16: the maximum of |g scale| becomes at most 2^4. The gradient of y exceeds it
// by less than a factor of the square root of the number of rows. So fewer than 2^24 rows do not reach 2^16,
// the range of fp16.
#define F16_TOP 4

template <class T, unsigned V>
__device__ void block_norm_gradient(unsigned relu, size_t R, unsigned C, const void *g, const void *y, const float *mean,
                                    const float *inverse, const float *scale, const float *shift, const float *mean_g,
                                    const float *mean_gx, const float *size, float *unit, void *f16_copy, void *dy) {
    Lane<V> lane(R, C);
    float up = 1;
    if (HAS_F16_COPY(T) && f16_copy) {
        float top = 0;
        for (unsigned c = threadIdx.x; c < C; c += THREADS) top = fmaxf(top, size[c]);
        up = lift(block_max(top), F16_TOP);
        if (blockIdx.x == 0 && threadIdx.x == 0) *unit = 1 / up;
    }
    if (lane.idle()) return;
    float m[V], s[V], t[V], k[V], inv[V], from[V];
    lane.channels(mean, 0, m);
    lane.channels(scale, 1, s);
    lane.channels(shift, 0, t);
    lane.channels(inverse, 1, inv);
    lane.channels(mean_gx, 0, k);
    lane.channels(mean_g, 0, from);
#pragma unroll
    for (unsigned v = 0; v < V; v++) k[v] *= inv[v];
    for (size_t r = lane.row; r < R; r += lane.step) {
        float d[V], x[V];
        load<T, V>(g, lane.at(r), d);
        load<T, V>(y, lane.at(r), x);
#pragma unroll
        for (unsigned v = 0; v < V; v++) {
            if (relu == RELU && !(fmaf(x[v], s[v], t[v]) > 0)) d[v] = 0;
            d[v] = s[v] * (d[v] - from[v] - (x[v] - m[v]) * k[v]);
        }
        store<T, V>(dy, lane.at(r), d);
        if (HAS_F16_COPY(T) && f16_copy) {
#pragma unroll
            for (unsigned v = 0; v < V; v++) d[v] *= up;
            store<f16, V>(f16_copy, lane.at(r), d);
        }
    }
}

// The gradient of y, which may overwrite g. If there is memory for it, also an fp16 copy times a power of
// two, whose inverse is written to `unit`.
extern "C" __global__ void pauc_norm_gradient(unsigned element, unsigned relu, size_t R, unsigned C, const void *g, const void *y,
                                              const float *mean, const float *inverse, const float *scale, const float *shift,
                                              const float *mean_g, const float *mean_gx, const float *size, float *unit, void *f16_copy,
                                              void *dy) {
    BY_ELEMENT(element, block_norm_gradient, relu, R, C, g, y, mean, inverse, scale, shift, mean_g, mean_gx, size, unit, f16_copy, dy);
}
