// Batch normalisation of rows (R, C): the pixels of maps whose channels come last, or the rows of a matrix. Per channel the
// coefficients are mean, 1/deviation, scale, shift.

// How blocks share rows. A group of channels, as wide as a block or all of them, has `runs` blocks, and each of its rows is
// one block's; threads side by side take V channels each, those below them other rows.
template <unsigned V> struct Lane {
    unsigned packs, tile, group, run, col;
    size_t row, step, rows;

    __device__ Lane(size_t R, unsigned C) : packs(C / V), tile(1), rows(R) {
        while (tile < packs && tile < THREADS) tile *= 2;
        unsigned groups = (packs + tile - 1) / tile, height = THREADS / tile;
        group = blockIdx.x % groups;
        run = blockIdx.x / groups;
        col = group * tile + threadIdx.x % tile;
        row = (size_t)run * height + threadIdx.x / tile;
        step = (size_t)(gridDim.x / groups) * height;
    }
    // Threads beyond the last channel have nothing to do.
    __device__ bool idle() const { return col >= packs; }
    __device__ size_t at(size_t r) const { return r * packs + col; }
    // The same from the last row on: what was written last is read while it is still in the cache.
    __device__ size_t from_end(size_t r) const { return (rows - 1 - r) * packs + col; }
    // Its V channels of a vector, or what an absent vector stands for.
    __device__ void channels(const float *of, float absent, float (&to)[V]) const {
#pragma unroll
        for (unsigned v = 0; v < V; v++) to[v] = of ? of[col * V + v] : absent;
    }
};

// Writes the sums over the rows of a block, two a channel, in one order.
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
        if (c < C) sums[2 * ((size_t)lane.run * C + c) + which % 2] = sum;
    }
}

// The two sums of channel c over all runs, for every thread of a block.
__device__ inline void block_totals(const double *sums, unsigned runs, unsigned C, unsigned c, double &a, double &b) {
    a = b = 0;
    for (unsigned run = threadIdx.x; run < runs; run += THREADS) {
        a += sums[2 * ((size_t)run * C + c)];
        b += sums[2 * ((size_t)run * C + c) + 1];
    }
    a = block_sum(a);
    b = block_sum(b);
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

// Sums of the differences from the first row and of their squares. Differences keep the sum of squares from cancelling.
extern "C" __global__ void pauc_norm_sums(unsigned element, const void *y, double *sums, size_t R, unsigned C) {
    BY_ELEMENT(element, block_norm_sums, y, sums, R, C);
}

// From mean and variance to the coefficients.
__device__ inline void coefficients(unsigned c, float m, float variance, const float *gamma, const float *beta, float epsilon,
                                    float *mean, float *inverse, float *scale, float *shift) {
    float inv = (float)(1.0 / sqrt((double)variance + (double)epsilon));
    mean[c] = m;
    inverse[c] = inv;
    scale[c] = gamma[c] * inv;
    shift[c] = beta[c] - m * gamma[c] * inv;
}

// A block a channel: mean and variance from the sums of all runs, the running statistics moved towards them, coefficients.
extern "C" __global__ void pauc_norm_moments(unsigned element, const void *y, const double *sums, unsigned runs, size_t R, unsigned C,
                                             float *running_mean, float *running_variance, float momentum, const float *gamma,
                                             const float *beta, float epsilon, float *mean, float *inverse, float *scale,
                                             float *shift) {
    unsigned c = blockIdx.x;
    double a, b, n = (double)R;
    block_totals(sums, runs, C, c, a, b);
    if (threadIdx.x > 0) return;
    double origin = element < 2 ? ((const float *)y)[c] : number(((const bf16 *)y)[c]);
    double offset = a / n, spread = b / n - offset * offset;
    float m = (float)(origin + offset), variance = (float)(spread > 0 ? spread : 0);
    running_mean[c] += momentum * (m - running_mean[c]);
    running_variance[c] += momentum * ((float)(variance * n / (n - 1)) - running_variance[c]);
    coefficients(c, m, variance, gamma, beta, epsilon, mean, inverse, scale, shift);
}

// Coefficients from given mean and variance.
extern "C" __global__ void pauc_norm_prepare(unsigned C, const float *given_mean, const float *variance, const float *gamma,
                                             const float *beta, float epsilon, float *mean, float *inverse, float *scale,
                                             float *shift) {
    FOR_EACH(c, C) coefficients(c, given_mean[c], variance[c], gamma, beta, epsilon, mean, inverse, scale, shift);
}

template <class T, unsigned V>
__device__ void norm_apply(size_t R, unsigned C, const void *y, const float *scale, const float *shift, const void *residual,
                           const float *residual_scale, const float *residual_shift, bool relu, void *out) {
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
    }
}

// out <- relu?(scale y + shift + residual), where the residual may have a scale and shift of its own; absent ones are 0.
extern "C" __global__ void pauc_norm_apply(unsigned element, size_t R, unsigned C, const void *y, const float *scale,
                                           const float *shift, const void *residual, const float *residual_scale,
                                           const float *residual_shift, unsigned relu, void *out) {
    BY_ELEMENT(element, norm_apply, R, C, y, scale, shift, residual, residual_scale, residual_shift, relu, out);
}

// What a gradient passes through before it comes to a normalisation.
#define NO_RELU 0
// ReLU of the normalised value alone, which tells where it was shut.
#define RELU 1
// ReLU behind a residual: the output tells.
#define RELU_OF_OUTPUT 2

template <class T, unsigned V>
__device__ void block_norm_gradient_sums(unsigned relu, void *g, const void *more, const void *out, const void *y, const float *mean,
                                         const float *inverse, const float *scale, const float *shift, double *sums, size_t R,
                                         unsigned C) {
    Lane<V> lane(R, C);
    float a[V] = {}, b[V] = {};
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
            }
            if (relu == RELU_OF_OUTPUT) store<T, V>(g, lane.from_end(r), d);
        }
        float inv[V];
        lane.channels(inverse, 1, inv);
#pragma unroll
        for (unsigned v = 0; v < V; v++) b[v] *= inv[v];
    }
    block_sums_of_rows(lane, a, b, C, sums);
}

// The sums of g and of g times the standardised y, where ReLU lets g through; behind a residual, `more` is added to g, if there
// is more, and g is cut in place.
extern "C" __global__ void pauc_norm_gradient_sums(unsigned element, unsigned relu, void *g, const void *more, const void *out, const void *y,
                                                   const float *mean, const float *inverse, const float *scale,
                                                   const float *shift, double *sums, size_t R, unsigned C) {
    BY_ELEMENT(element, block_norm_gradient_sums, relu, g, more, out, y, mean, inverse, scale, shift, sums, R, C);
}

// A block a channel: gradients of gamma and beta, added to, and the means that the gradient of y needs.
extern "C" __global__ void pauc_norm_gradient_finish(const double *sums, unsigned runs, size_t R, unsigned C, float *d_gamma,
                                                     float *d_beta, float *mean_g, float *mean_gx) {
    unsigned c = blockIdx.x;
    double a, b, n = (double)R;
    block_totals(sums, runs, C, c, a, b);
    if (threadIdx.x > 0) return;
    d_beta[c] += (float)a;
    d_gamma[c] += (float)b;
    mean_g[c] = (float)(a / n);
    mean_gx[c] = (float)(b / n);
}

template <class T, unsigned V>
__device__ void norm_gradient(unsigned relu, size_t R, unsigned C, const void *g, const void *y, const float *mean,
                              const float *inverse, const float *scale, const float *shift, const float *mean_g,
                              const float *mean_gx, void *dy) {
    Lane<V> lane(R, C);
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
    }
}

// The gradient of y, which may take the place of g.
extern "C" __global__ void pauc_norm_gradient(unsigned element, unsigned relu, size_t R, unsigned C, const void *g, const void *y,
                                              const float *mean, const float *inverse, const float *scale, const float *shift,
                                              const float *mean_g, const float *mean_gx, void *dy) {
    BY_ELEMENT(element, norm_gradient, relu, R, C, g, y, mean, inverse, scale, shift, mean_g, mean_gx, dy);
}
