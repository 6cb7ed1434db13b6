// Vectors: sums, moving averages, norms, steps of optimisers.

extern "C" __global__ void pauc_add(size_t n, float a, const float *x, float *y) {
    FOR_EACH(i, n) y[i] += a * x[i];
}

// y <- y + a[0] b x
extern "C" __global__ void pauc_add_times(size_t n, const float *a, float b, const float *x, float *y) {
    FOR_EACH(i, n) y[i] += a[0] * b * x[i];
}

extern "C" __global__ void pauc_copy(size_t n, const float *x, float *y) {
    FOR_EACH(i, n) y[i] = x[i];
}

extern "C" __global__ void pauc_scale(size_t n, float a, float *x) {
    FOR_EACH(i, n) x[i] *= a;
}

// to <- to + rate (from - to)
extern "C" __global__ void pauc_average(size_t n, float rate, const float *from, float *to) {
    FOR_EACH(i, n) to[i] += (from[i] - to[i]) * rate;
}

// One partial sum of squares a block.
extern "C" __global__ void pauc_square_sums(size_t n, const float *x, double *sums) {
    double sum = 0;
    FOR_EACH(i, n) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// d = a (g + l w); v <- m v + d; w <- w - lr (v, or d + m v with Nesterov)
extern "C" __global__ void pauc_sgd(size_t n, float *w, const float *g, float *v, float lr, float momentum, float decay,
                                    float adaptation, unsigned nesterov) {
    FOR_EACH(i, n) {
        float d = adaptation * (g[i] + decay * w[i]);
        float u = momentum * v[i] + d;
        v[i] = u;
        w[i] -= lr * (nesterov ? d + momentum * u : u);
    }
}

// m <- b1 m + (1 - b1) g; s <- b2 s + (1 - b2) g g; w <- keep w - rate m / (correction sqrt(s) + epsilon)
extern "C" __global__ void pauc_adamw(size_t n, float *w, const float *g, float *m, float *s, float rate, float correction,
                                      float keep, float epsilon, float beta1, float new1, float beta2, float new2) {
    FOR_EACH(i, n) {
        float mean = beta1 * m[i] + new1 * g[i];
        float square = beta2 * s[i] + new2 * g[i] * g[i];
        m[i] = mean;
        s[i] = square;
        w[i] = keep * w[i] - rate * mean / (correction * sqrtf(square) + epsilon);
    }
}
