// Feature maps (N, H, W, C): conversions, sums, maxima of windows, means of cells. Filters (K, C, P) of P
// weights per channel, which convolutions read as (K, P, C).

// A loop over packs of V elements, where `n` is the number of elements.
#define FOR_PACKS(i, n) FOR_EACH(i, (n) / V)

template <class T, unsigned V> __device__ void pixels(size_t n, unsigned C, unsigned channels, const float *x, void *y) {
    FOR_PACKS(i, n) {
        float v[V];
        if (V % 4 == 0 && C == channels) {
#pragma unroll
            for (unsigned j = 0; j + 4 <= V; j += 4) {
                float four[4];
                load<float, 4>(x, (i * V + j) / 4, four);
#pragma unroll
                for (unsigned l = 0; l < 4; l++) v[j + l] = four[l];
            }
        } else {
            // V divides the number of channels.
            size_t pixel = quotient(i, channels / V);
            unsigned first = (unsigned)(i - pixel * (channels / V)) * V;
#pragma unroll
            for (unsigned j = 0; j < V; j++) v[j] = first + j < C ? x[pixel * C + first + j] : 0.f;
        }
        store<T, V>(y, i, v);
    }
}

// Converts maps or images of C channels in f32. Additional channels are 0.
extern "C" __global__ void pauc_pixels(unsigned element, size_t n, unsigned C, unsigned channels, const float *x, void *y) {
    if (element == 4) pixels<f16, 8>(n, C, channels, x, y);
    else if (element == 5) pixels<f16, 1>(n, C, channels, x, y);
    else BY_ELEMENT(element, pixels, n, C, channels, x, y);
}

// 8-bit values times the factor of their channel, plus its shift; at most four channels.
extern "C" __global__ void pauc_normalize(size_t n, unsigned C, const unsigned char *x, float f0, float s0, float f1, float s1, float f2,
                                          float s2, float f3, float s3, float *y) {
    FOR_EACH(i, n) {
        unsigned c = i % C;
        float f = c == 0 ? f0 : c == 1 ? f1 : c == 2 ? f2 : f3, s = c == 0 ? s0 : c == 1 ? s1 : c == 2 ? s2 : s3;
        y[i] = (float)x[i] * f + s;
    }
}

template <class T, unsigned V> __device__ void filter(size_t n, unsigned C, unsigned P, unsigned channels, const float *w, void *to) {
    FOR_PACKS(i, n) {
        float v[V];
#pragma unroll
        for (unsigned j = 0; j < V; j++) {
            unsigned at = (unsigned)i * V + j, c = at % channels, p = at / channels % P, k = at / channels / P;
            v[j] = c < C ? w[(k * C + c) * P + p] : 0.f;
        }
        store<T, V>(to, i, v);
    }
}

// Converts a filter to the layout of convolutions, (K, P, channels). Additional channels are 0.
extern "C" __global__ void pauc_filter(unsigned element, size_t n, unsigned C, unsigned P, unsigned channels, const float *w, void *to) {
    BY_ELEMENT(element, filter, n, C, P, channels, w, to);
}

template <class T>
__device__ void filter_gradient(size_t n, unsigned C, unsigned P, unsigned channels, const void *from, const float *unit, float share,
                                float *dw) {
    // Neighboring threads read neighboring channels of `from`. In dw, the P weights of a channel are
    // contiguous.
    FOR_EACH(i, n) {
        unsigned k = (unsigned)i / C, c = (unsigned)i - k * C;
        const T *row = (const T *)from + (size_t)k * P * channels + c;
        float *to = dw + i * P, times = unit ? *unit * share : 1;
        for (unsigned p = 0; p < P; p++) to[p] = fmaf(number(row[(size_t)p * channels]), times, to[p]);
    }
}

// Accumulates the gradient of a filter with n times P weights, given as (K, P, channels). It is multiplied by
// `unit` and `share` if there is a unit.
extern "C" __global__ void pauc_filter_gradient(unsigned element, size_t n, unsigned C, unsigned P, unsigned channels, const void *from,
                                                const float *unit, float share, float *dw) {
    if (element < 2) filter_gradient<float>(n, C, P, channels, from, unit, share, dw);
    else if (element < 4) filter_gradient<bf16>(n, C, P, channels, from, unit, share, dw);
    else filter_gradient<f16>(n, C, P, channels, from, unit, share, dw);
}

template <class T, unsigned V> __device__ void add_maps(size_t n, const void *x, void *y) {
    FOR_PACKS(i, n) {
        float a[V], b[V];
        load<T, V>(x, i, a);
        load<T, V>(y, i, b);
#pragma unroll
        for (unsigned v = 0; v < V; v++) b[v] += a[v];
        store<T, V>(y, i, b);
    }
}

// y <- y + x
extern "C" __global__ void pauc_add_maps(unsigned element, size_t n, const void *x, void *y) {
    BY_ELEMENT(element, add_maps, n, x, y);
}

template <class T, unsigned V>
__device__ void max_pool(size_t n, unsigned C, const void *x, unsigned H, unsigned W, void *y, unsigned char *from, unsigned OH,
                         unsigned OW) {
    unsigned packs = C / V;
    FOR_PACKS(i, n) {
        unsigned at = (unsigned)i, c = at % packs, ox = at / packs % OW, oy = at / packs / OW % OH;
        size_t image = i / packs / OW / OH * ((size_t)H * W);
        float best[V] = {};
        unsigned char which[V];
        bool first = true;
        for (unsigned ky = 0; ky < 3; ky++) {
            for (unsigned kx = 0; kx < 3; kx++) {
                unsigned r = 2 * oy + ky, q = 2 * ox + kx;
                if (r < 1 || r > H || q < 1 || q > W) continue;
                float v[V];
                load<T, V>(x, (image + (r - 1) * W + (q - 1)) * packs + c, v);
#pragma unroll
                for (unsigned j = 0; j < V; j++)
                    if (first || v[j] > best[j] || (v[j] != v[j] && best[j] == best[j])) {
                        best[j] = v[j];
                        which[j] = 3 * ky + kx;
                    }
                first = false;
            }
        }
        store<T, V>(y, i, best);
#pragma unroll
        for (unsigned j = 0; j < V; j++) from[i * V + j] = which[j];
    }
}

// The maximum of 3x3 windows with stride 2 and padding 1. The first of equals wins; NaN wins over all.
extern "C" __global__ void pauc_max_pool(unsigned element, size_t n, unsigned C, const void *x, unsigned H, unsigned W, void *y,
                                         unsigned char *from, unsigned OH, unsigned OW) {
    BY_ELEMENT(element, max_pool, n, C, x, H, W, y, from, OH, OW);
}

template <class T, unsigned V>
__device__ void max_pool_gradient(size_t n, unsigned C, const void *dy, const unsigned char *from, unsigned OH, unsigned OW, void *dx,
                                  unsigned H, unsigned W) {
    unsigned packs = C / V;
    FOR_PACKS(i, n) {
        unsigned at = (unsigned)i, c = at % packs, q = at / packs % W, r = at / packs / W % H;
        size_t image = i / packs / W / H * ((size_t)OH * OW);
        float sum[V] = {};
        for (unsigned ky = 0; ky < 3; ky++) {
            for (unsigned kx = 0; kx < 3; kx++) {
                if (r + 1 < ky || q + 1 < kx || (r + 1 - ky) % 2 || (q + 1 - kx) % 2) continue;
                unsigned oy = (r + 1 - ky) / 2, ox = (q + 1 - kx) / 2;
                if (oy >= OH || ox >= OW) continue;
                size_t o = (image + oy * OW + ox) * packs + c;
                float g[V];
                load<T, V>(dy, o, g);
#pragma unroll
                for (unsigned j = 0; j < V; j++)
                    if (from[o * V + j] == 3 * ky + kx) sum[j] += g[j];
            }
        }
        store<T, V>(dx, i, sum);
    }
}

// Each pixel gathers from the windows that chose it, so no two threads add to one pixel.
extern "C" __global__ void pauc_max_pool_gradient(unsigned element, size_t n, unsigned C, const void *dy, const unsigned char *from,
                                                  unsigned OH, unsigned OW, void *dx, unsigned H, unsigned W) {
    BY_ELEMENT(element, max_pool_gradient, n, C, dy, from, OH, OW, dx, H, W);
}

template <class T, unsigned V>
__device__ void cell_mean(size_t n, const void *x, unsigned C, unsigned H, unsigned W, unsigned grid, float *y) {
    unsigned packs = C / V;
    FOR_PACKS(k, n) {
        unsigned c = (unsigned)k % packs, cell = (unsigned)k / packs % (grid * grid);
        size_t image = k / packs / (grid * grid);
        unsigned i = cell / grid, j = cell % grid;
        unsigned top = (i * H + grid - 1) / grid, bottom = ((i + 1) * H + grid - 1) / grid;
        unsigned left = (j * W + grid - 1) / grid, right = ((j + 1) * W + grid - 1) / grid;
        float sum[V] = {};
        for (unsigned r = top; r < bottom; r++)
            for (unsigned q = left; q < right; q++) {
                float v[V];
                load<T, V>(x, ((image * H + r) * W + q) * packs + c, v);
#pragma unroll
                for (unsigned l = 0; l < V; l++) sum[l] += v[l];
            }
#pragma unroll
        for (unsigned l = 0; l < V; l++) sum[l] /= (float)((bottom - top) * (right - left));
        store<float, V>(y, k, sum);
    }
}

// Features (N, grid, grid, C): the means of grid x grid equal cells of a map. Pixel (r, c) belongs to cell (r
// grid/H, c grid/W).
extern "C" __global__ void pauc_cell_mean(unsigned element, size_t n, const void *x, unsigned C, unsigned H, unsigned W, unsigned grid,
                                          float *y) {
    BY_ELEMENT(element, cell_mean, n, x, C, H, W, grid, y);
}

template <class T, unsigned V>
__device__ void cell_mean_gradient(size_t n, const float *dy, unsigned C, unsigned H, unsigned W, unsigned grid, void *dx) {
    unsigned packs = C / V;
    FOR_PACKS(k, n) {
        unsigned c = (unsigned)k % packs, x = (unsigned)k / packs % W, y = (unsigned)k / packs / W % H;
        size_t image = k / packs / W / H;
        unsigned i = y * grid / H, j = x * grid / W;
        // Rows r with r grid/H = i, and columns likewise.
        unsigned rows = ((i + 1) * H + grid - 1) / grid - (i * H + grid - 1) / grid;
        unsigned cols = ((j + 1) * W + grid - 1) / grid - (j * W + grid - 1) / grid;
        float v[V];
        load<float, V>(dy, (image * grid * grid + i * grid + j) * packs + c, v);
#pragma unroll
        for (unsigned l = 0; l < V; l++) v[l] /= (float)(rows * cols);
        store<T, V>(dx, k, v);
    }
}

extern "C" __global__ void pauc_cell_mean_gradient(unsigned element, size_t n, const float *dy, unsigned C, unsigned H, unsigned W,
                                                   unsigned grid, void *dx) {
    BY_ELEMENT(element, cell_mean_gradient, n, dy, C, H, W, grid, dx);
}
