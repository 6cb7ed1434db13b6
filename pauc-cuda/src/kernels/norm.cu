// Batch normalisation of maps (N, C, P), P pixels a channel; P = 1 is a matrix of rows. Element (n, c, p) lies at
// (n C + c) P + p. Per channel the coefficients are mean, 1/deviation, scale, shift.

#define ELEMENT(j, c) ((j) / P * C + (c)) * P + (j) % P

// Sums of the differences from the channel's first element and of their squares, over one of `splits` runs of the
// channel's N P elements. Differences keep the sum of squares from cancelling.
extern "C" __global__ void pauc_norm_sums(const float *y, double *sums, unsigned N, unsigned C, unsigned P, unsigned splits) {
    unsigned c = blockIdx.x % C, split = blockIdx.x / C, count = N * P, run = (count + splits - 1) / splits;
    unsigned from = split * run, to = min(from + run, count);
    float origin = y[c * P], a = 0, b = 0;
    for (unsigned j = from + threadIdx.x; j < to; j += THREADS) {
        float d = y[ELEMENT(j, c)] - origin;
        a += d;
        b += d * d;
    }
    double first = block_sum(a), second = block_sum(b);
    if (threadIdx.x == 0) {
        sums[2 * (split * C + c)] = first;
        sums[2 * (split * C + c) + 1] = second;
    }
}

// Mean and variance of each channel from the sums, and the running statistics moved towards them.
extern "C" __global__ void pauc_norm_moments(const float *y, const double *sums, float *mean, float *variance, float *running_mean,
                                             float *running_variance, unsigned N, unsigned C, unsigned P, unsigned splits,
                                             float momentum) {
    FOR_EACH(i, C) {
        double a = 0, b = 0, n = (double)N * P;
        for (unsigned s = 0; s < splits; s++) {
            a += sums[2 * (s * C + i)];
            b += sums[2 * (s * C + i) + 1];
        }
        double shift = a / n, spread = b / n - shift * shift;
        float m = (float)(y[i * P] + shift), v = (float)(spread > 0 ? spread : 0);
        mean[i] = m;
        variance[i] = v;
        running_mean[i] += momentum * (m - running_mean[i]);
        running_variance[i] += momentum * ((float)(v * n / (n - 1)) - running_variance[i]);
    }
}

extern "C" __global__ void pauc_norm_prepare(const float *mean, const float *variance, const float *gamma, const float *beta,
                                             float epsilon, float *inverse, float *scale, float *shift, unsigned C) {
    FOR_EACH(i, C) {
        float inv = (float)(1.0 / sqrt((double)variance[i] + (double)epsilon));
        inverse[i] = inv;
        scale[i] = gamma[i] * inv;
        shift[i] = beta[i] - mean[i] * gamma[i] * inv;
    }
}

// out <- relu?(scale y + shift + residual), where the residual may have a scale and shift of its own; absent ones are 0.
extern "C" __global__ void pauc_norm_apply(size_t n, unsigned C, unsigned P, const float *y, const float *scale,
                                           const float *shift, const float *residual, const float *residual_scale,
                                           const float *residual_shift, unsigned relu, float *out) {
    FOR_EACH(i, n) {
        unsigned c = (unsigned)i / P % C;
        float v = y[i] * scale[c] + shift[c];
        if (residual) v += residual_scale ? residual[i] * residual_scale[c] + residual_shift[c] : residual[i];
        out[i] = relu && !(v > 0) && v == v ? 0.f : v;
    }
}

// g <- g where out > 0 (everywhere without out), and the sums of g and of g times the standardised y.
extern "C" __global__ void pauc_norm_gradient_sums(float *g, const float *out, const float *y, const float *mean,
                                                   const float *inverse, double *sums, unsigned N, unsigned C, unsigned P,
                                                   unsigned splits) {
    unsigned c = blockIdx.x % C, split = blockIdx.x / C, count = N * P, run = (count + splits - 1) / splits;
    unsigned from = split * run, to = min(from + run, count);
    float m = mean[c], inv = inverse[c], a = 0, b = 0;
    for (unsigned j = from + threadIdx.x; j < to; j += THREADS) {
        size_t i = ELEMENT(j, c);
        float v = g[i];
        if (out && !(out[i] > 0)) g[i] = v = 0;
        a += v;
        b += v * ((y[i] - m) * inv);
    }
    double first = block_sum(a), second = block_sum(b);
    if (threadIdx.x == 0) {
        sums[2 * (split * C + c)] = first;
        sums[2 * (split * C + c) + 1] = second;
    }
}

// Gradients of gamma and beta, added to, and the means that the gradient of y needs.
extern "C" __global__ void pauc_norm_gradient_finish(const double *sums, float *d_gamma, float *d_beta, float *mean_g,
                                                     float *mean_gx, unsigned N, unsigned C, unsigned P, unsigned splits) {
    FOR_EACH(i, C) {
        double a = 0, b = 0, n = (double)N * P;
        for (unsigned s = 0; s < splits; s++) {
            a += sums[2 * (s * C + i)];
            b += sums[2 * (s * C + i) + 1];
        }
        d_beta[i] += (float)a;
        d_gamma[i] += (float)b;
        mean_g[i] = (float)(a / n);
        mean_gx[i] = (float)(b / n);
    }
}

extern "C" __global__ void pauc_norm_gradient(size_t n, unsigned C, unsigned P, const float *g, const float *y, const float *mean,
                                              const float *inverse, const float *scale, const float *mean_g,
                                              const float *mean_gx, float *dy) {
    FOR_EACH(i, n) {
        unsigned c = (unsigned)i / P % C;
        dy[i] = scale[c] * (g[i] - mean_g[c] - (y[i] - mean[c]) * inverse[c] * mean_gx[c]);
    }
}
