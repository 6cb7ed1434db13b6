// Matrices of rows (N, C): biases, ReLU, sums of columns.

extern "C" __global__ void pauc_bias(size_t n, unsigned C, const float *bias, unsigned relu, float *y) {
    FOR_EACH(i, n) {
        float v = y[i] + (bias ? bias[i % C] : 0.f);
        y[i] = relu && !(v > 0) && v == v ? 0.f : v;
    }
}

// g <- g where out > 0
extern "C" __global__ void pauc_relu_gradient(size_t n, const float *out, float *g) {
    FOR_EACH(i, n) if (!(out[i] > 0)) g[i] = 0;
}

// Columns per block: few, so that there are many blocks.
#define COLUMNS 8

// sums <- sums + the sum of each column, in a fixed order.
extern "C" __global__ void pauc_column_sums(const float *x, unsigned N, unsigned C, float *sums) {
    __shared__ double part[MOST_THREADS];
    unsigned c = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, run = threadIdx.x / COLUMNS, runs = THREADS / COLUMNS;
    double sum = 0;
    if (c < C)
        for (unsigned n = run; n < N; n += runs) sum += x[(size_t)n * C + c];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = runs / 2; half > 0; half /= 2) {
        if (run < half) part[threadIdx.x] += part[threadIdx.x + half * COLUMNS];
        __syncthreads();
    }
    if (run == 0 && c < C) sums[c] += (float)part[threadIdx.x];
}

// z <- x / sqrt(|x|^2 + epsilon), one row per block, and the factors.
extern "C" __global__ void pauc_unit(const float *x, unsigned D, float epsilon, float *z, float *inverse) {
    size_t i = blockIdx.x;
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) sum += (double)x[i * D + d] * (double)x[i * D + d];
    float scale = (float)(1.0 / sqrt(block_sum(sum) + (double)epsilon));
    for (unsigned d = threadIdx.x; d < D; d += THREADS) z[i * D + d] = x[i * D + d] * scale;
    if (threadIdx.x == 0) inverse[i] = scale;
}

// dx <- dx + (g - (g.z) z) times the row's factor
extern "C" __global__ void pauc_unit_gradient(const float *z, const float *g, const float *inverse, unsigned D, float *dx) {
    size_t i = blockIdx.x;
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) sum += (double)z[i * D + d] * (double)g[i * D + d];
    float dot = (float)block_sum(sum);
    for (unsigned d = threadIdx.x; d < D; d += THREADS) dx[i * D + d] += inverse[i] * (g[i * D + d] - dot * z[i * D + d]);
}
