// Transformers: tokens in rows (B T, W), heads in (B H, T, d).

// y <- (x - mean)/sqrt(variance + epsilon) gamma + beta, one row per block. Saves mean and 1/deviation of
// each row.
extern "C" __global__ void pauc_layer_norm(const float *x, const float *gamma, const float *beta, float epsilon, unsigned W,
                                           float *y, float *mean, float *inverse) {
    size_t row = blockIdx.x;
    double sum = 0, squares = 0;
    for (unsigned c = threadIdx.x; c < W; c += THREADS) sum += x[row * W + c];
    double m = block_sum(sum) / W;
    for (unsigned c = threadIdx.x; c < W; c += THREADS) {
        double d = x[row * W + c] - m;
        squares += d * d;
    }
    float inv = (float)(1.0 / sqrt(block_sum(squares) / W + epsilon));
    for (unsigned c = threadIdx.x; c < W; c += THREADS)
        y[row * W + c] = (float)(x[row * W + c] - m) * inv * gamma[c] + beta[c];
    if (threadIdx.x == 0) {
        mean[row] = (float)m;
        inverse[row] = inv;
    }
}

// dx <- dx + the gradient of the input, one row per block.
extern "C" __global__ void pauc_layer_norm_gradient(const float *dy, const float *x, const float *gamma, const float *mean,
                                                    const float *inverse, unsigned W, float *dx) {
    size_t row = blockIdx.x;
    float m = mean[row], inv = inverse[row];
    double a = 0, b = 0;
    for (unsigned c = threadIdx.x; c < W; c += THREADS) {
        float g = dy[row * W + c] * gamma[c];
        a += g;
        b += (double)g * ((x[row * W + c] - m) * inv);
    }
    float mean_g = (float)(block_sum(a) / W), mean_gx = (float)(block_sum(b) / W);
    for (unsigned c = threadIdx.x; c < W; c += THREADS)
        dx[row * W + c] += inv * (dy[row * W + c] * gamma[c] - mean_g - (x[row * W + c] - m) * inv * mean_gx);
}

// Accumulates the gradients of gamma and beta in a fixed order: 32 columns per block, and THREADS / 32 runs
// of rows each.
extern "C" __global__ void pauc_layer_norm_parameters(const float *dy, const float *x, const float *mean, const float *inverse,
                                                      unsigned N, unsigned W, float *d_gamma, float *d_beta) {
    __shared__ double first[MOST_THREADS], second[MOST_THREADS];
    unsigned c = blockIdx.x * 32 + threadIdx.x % 32, run = threadIdx.x / 32;
    double a = 0, b = 0;
    if (c < W)
        for (unsigned n = run; n < N; n += THREADS / 32) {
            float g = dy[(size_t)n * W + c];
            a += (double)g * ((x[(size_t)n * W + c] - mean[n]) * inverse[n]);
            b += g;
        }
    first[threadIdx.x] = a;
    second[threadIdx.x] = b;
    __syncthreads();
    if (run == 0 && c < W) {
        for (unsigned r = 1; r < THREADS / 32; r++) {
            a += first[r * 32 + threadIdx.x];
            b += second[r * 32 + threadIdx.x];
        }
        d_gamma[c] += (float)a;
        d_beta[c] += (float)b;
    }
}

// x Phi(x) and its derivative, Phi(x) + x phi(x).
extern "C" __global__ void pauc_gelu(size_t n, const float *x, float *y) {
    FOR_EACH(i, n) y[i] = 0.5f * x[i] * (1.f + erff(x[i] * 0.70710678f));
}

extern "C" __global__ void pauc_gelu_gradient(size_t n, const float *x, float *g) {
    FOR_EACH(i, n) g[i] *= 0.5f * (1.f + erff(x[i] * 0.70710678f)) + x[i] * 0.39894228f * expf(-0.5f * x[i] * x[i]);
}

// Softmax of each row of T, in place, and its gradient: g <- scale p (g - sum of g p).
extern "C" __global__ void pauc_softmax_rows(float *x, float scale, unsigned T) {
    size_t row = blockIdx.x;
    float top = -3.4e38f;
    for (unsigned c = threadIdx.x; c < T; c += THREADS) top = fmaxf(top, x[row * T + c] * scale);
    top = block_max(top);
    double sum = 0;
    for (unsigned c = threadIdx.x; c < T; c += THREADS) sum += expf(x[row * T + c] * scale - top);
    float inverse = (float)(1.0 / block_sum(sum));
    for (unsigned c = threadIdx.x; c < T; c += THREADS) x[row * T + c] = expf(x[row * T + c] * scale - top) * inverse;
}

extern "C" __global__ void pauc_softmax_rows_gradient(const float *p, float scale, unsigned T, float *g) {
    size_t row = blockIdx.x;
    double sum = 0;
    for (unsigned c = threadIdx.x; c < T; c += THREADS) sum += (double)g[row * T + c] * p[row * T + c];
    float dot = (float)block_sum(sum);
    for (unsigned c = threadIdx.x; c < T; c += THREADS)
        g[row * T + c] = scale * p[row * T + c] * (g[row * T + c] - dot);
}

// The position in rows (B T, pitch), from column `offset` on, of element k of heads (B H, T, d).
__device__ inline size_t place_in_rows(size_t k, unsigned pitch, unsigned offset, unsigned T, unsigned H, unsigned d) {
    unsigned l = (unsigned)k % d, t = (unsigned)k / d % T, h = (unsigned)k / d / T % H;
    size_t b = k / d / T / H;
    return (b * T + t) * pitch + offset + h * d + l;
}

// Copies columns [offset, offset + H d) of rows to heads, and back.
extern "C" __global__ void pauc_split_heads(size_t n, const float *rows, unsigned pitch, unsigned offset, unsigned T, unsigned H,
                                            unsigned d, float *heads) {
    FOR_EACH(k, n) heads[k] = rows[place_in_rows(k, pitch, offset, T, H, d)];
}

extern "C" __global__ void pauc_merge_heads(size_t n, const float *heads, unsigned pitch, unsigned offset, unsigned T, unsigned H,
                                            unsigned d, float *rows) {
    FOR_EACH(k, n) rows[place_in_rows(k, pitch, offset, T, H, d)] = heads[k];
}

// Copies images (B, H, W, C) to rows of patches (B patches, C p p), values in the order (C, row, column).
extern "C" __global__ void pauc_patches(size_t n, const float *x, unsigned H, unsigned W, unsigned C, unsigned p, float *y) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)k % p, r = (unsigned)k / p % p, channel = (unsigned)k / p / p % C;
        size_t patch = k / p / p / C;
        unsigned px = (unsigned)patch % (W / p), py = (unsigned)patch / (W / p) % (H / p);
        size_t image = patch / (W / p) / (H / p);
        y[k] = x[((image * H + py * p + r) * W + px * p + c) * C + channel];
    }
}

// Tokens (B, T, W): the class token, if any, before the patches of each image, with positions added.
extern "C" __global__ void pauc_tokens(size_t n, const float *patches, const float *token, const float *positions, unsigned T,
                                       unsigned W, float *y) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)k % W, t = (unsigned)k / W % T, first = token != 0;
        size_t b = k / W / T;
        float v = first && t == 0 ? token[c] : patches[(b * (T - first) + t - first) * W + c];
        y[k] = v + positions[t * W + c];
    }
}

// Gradients of positions and class token, accumulated over images in order; and of patches.
extern "C" __global__ void pauc_tokens_gradient(size_t n, const float *g, unsigned B, unsigned T, unsigned W, float *d_positions,
                                                float *d_token, float *d_patches) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)k % W, t = (unsigned)k / W, first = d_token != 0;
        double sum = 0;
        for (unsigned b = 0; b < B; b++) {
            float v = g[((size_t)b * T + t) * W + c];
            sum += v;
            if (t >= first) d_patches[((size_t)b * (T - first) + t - first) * W + c] = v;
        }
        d_positions[k] += (float)sum;
        if (first && t == 0) d_token[c] += (float)sum;
    }
}

// The class token of each image (mean = 0), or the mean of its tokens; and the gradient, which overwrites all
// of g.
extern "C" __global__ void pauc_pool_tokens(size_t n, const float *x, unsigned T, unsigned W, unsigned mean, float *y) {
    FOR_EACH(k, n) {
        size_t b = k / W;
        unsigned c = (unsigned)(k % W);
        float sum = 0;
        for (unsigned t = 0; t < (mean ? T : 1); t++) sum += x[(b * T + t) * W + c];
        y[k] = mean ? sum / T : sum;
    }
}

extern "C" __global__ void pauc_pool_tokens_gradient(size_t n, const float *dy, unsigned T, unsigned W, unsigned mean, float *g) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)k % W, t = (unsigned)k / W % T;
        float v = dy[k / W / T * W + c];
        g[k] = mean ? v / T : (t == 0 ? v : 0.f);
    }
}
