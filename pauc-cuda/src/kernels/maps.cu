// Feature maps (N, C, H, W): from pixels, to features, and the maximum of windows.

// (N, H, W, C) to (N, C, H, W)
extern "C" __global__ void pauc_channels_first(size_t n, unsigned C, unsigned P, const float *x, float *y) {
    FOR_EACH(i, n) {
        unsigned p = (unsigned)i % P, c = (unsigned)i / P % C;
        size_t image = i / P / C;
        y[i] = x[(image * P + p) * C + c];
    }
}

// The maximum of 3x3 windows at stride 2 with padding 1; the first of equals, and a NaN wins.
extern "C" __global__ void pauc_max_pool(size_t n, const float *x, unsigned H, unsigned W, float *y, unsigned char *from,
                                         unsigned OH, unsigned OW) {
    FOR_EACH(i, n) {
        unsigned ox = (unsigned)i % OW, oy = (unsigned)i / OW % OH;
        const float *map = x + i / OW / OH * ((size_t)H * W);
        float best = 0;
        unsigned char at = 9;
        for (unsigned ky = 0; ky < 3; ky++) {
            for (unsigned kx = 0; kx < 3; kx++) {
                unsigned r = 2 * oy + ky, c = 2 * ox + kx;
                if (r < 1 || r > H || c < 1 || c > W) continue;
                float v = map[(r - 1) * W + (c - 1)];
                if (at == 9 || v > best || (v != v && best == best)) {
                    best = v;
                    at = 3 * ky + kx;
                }
            }
        }
        y[i] = best;
        from[i] = at;
    }
}

// Every pixel gathers from the windows that chose it, so that nothing is added twice at a time.
extern "C" __global__ void pauc_max_pool_gradient(size_t n, const float *dy, const unsigned char *from, unsigned OH, unsigned OW,
                                                  float *dx, unsigned H, unsigned W) {
    FOR_EACH(i, n) {
        unsigned c = (unsigned)i % W, r = (unsigned)i / W % H;
        size_t map = i / W / H * ((size_t)OH * OW);
        float sum = 0;
        for (unsigned ky = 0; ky < 3; ky++) {
            for (unsigned kx = 0; kx < 3; kx++) {
                if (r + 1 < ky || c + 1 < kx || (r + 1 - ky) % 2 || (c + 1 - kx) % 2) continue;
                unsigned oy = (r + 1 - ky) / 2, ox = (c + 1 - kx) / 2;
                if (oy >= OH || ox >= OW) continue;
                size_t o = map + oy * OW + ox;
                if (from[o] == 3 * ky + kx) sum += dy[o];
            }
        }
        dx[i] = sum;
    }
}

// Features (N, grid, grid, C): the means of grid x grid equal parts of a map; pixel (r, c) belongs to (r grid/H, c grid/W).
extern "C" __global__ void pauc_cell_mean(size_t n, const float *x, unsigned C, unsigned H, unsigned W, unsigned grid, float *y) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)k % C, cell = (unsigned)k / C % (grid * grid);
        size_t image = k / C / (grid * grid);
        unsigned i = cell / grid, j = cell % grid;
        unsigned top = (i * H + grid - 1) / grid, bottom = ((i + 1) * H + grid - 1) / grid;
        unsigned left = (j * W + grid - 1) / grid, right = ((j + 1) * W + grid - 1) / grid;
        const float *map = x + (image * C + c) * H * W;
        float sum = 0;
        for (unsigned r = top; r < bottom; r++)
            for (unsigned q = left; q < right; q++) sum += map[r * W + q];
        y[k] = sum / (float)((bottom - top) * (right - left));
    }
}

extern "C" __global__ void pauc_cell_mean_gradient(size_t n, const float *dy, unsigned C, unsigned H, unsigned W, unsigned grid,
                                                   float *dx) {
    FOR_EACH(k, n) {
        unsigned x = (unsigned)k % W, y = (unsigned)k / W % H, c = (unsigned)k / W / H % C;
        size_t image = k / W / H / C;
        unsigned i = y * grid / H, j = x * grid / W;
        // Rows r with r grid/H = i, and columns likewise.
        unsigned rows = ((i + 1) * H + grid - 1) / grid - (i * H + grid - 1) / grid;
        unsigned cols = ((j + 1) * W + grid - 1) / grid - (j * W + grid - 1) / grid;
        dx[k] = dy[(image * grid * grid + i * grid + j) * C + c] / (float)(rows * cols);
    }
}
