// Nearest centroids and means of rows.

// One centroid c per block, with the mean m = sums / K of all: writes c - m and (|c|^2 - |m|^2) / 2. The
// latter minus the product of a row with c - m is half their squared distance, up to a term common to all
// centroids.
extern "C" __global__ void pauc_around(const float *centroids, const float *sums, unsigned K, unsigned D, float *around, float *bias) {
    size_t c = blockIdx.x;
    double square = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) {
        float v = centroids[c * D + d], m = sums[d] / K;
        around[c * D + d] = v - m;
        square += (double)v * v - (double)m * m;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) bias[c] = (float)(square / 2);
}

// For each row of a tile, one per block: the centroid with the smallest bias - score, the lowest index among
// equals, and the squared distance to it, computed from differences. With `lower`, a smaller distance is
// kept.
extern "C" __global__ void pauc_nearest(const float *scores, const float *bias, const float *x, const float *centroids, unsigned K,
                                        unsigned D, unsigned lower, unsigned *index, float *square) {
    __shared__ float least[MOST_THREADS];
    __shared__ unsigned from[MOST_THREADS];
    size_t row = blockIdx.x;
    float best = 0;
    unsigned at = 0xffffffffu;
    for (unsigned k = threadIdx.x; k < K; k += THREADS) {
        float v = bias[k] - scores[row * K + k];
        if (at == 0xffffffffu || v < best) {
            best = v;
            at = k;
        }
    }
    least[threadIdx.x] = best;
    from[threadIdx.x] = at;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            float other = least[threadIdx.x + half];
            unsigned o = from[threadIdx.x + half], own = from[threadIdx.x];
            if (o != 0xffffffffu && (own == 0xffffffffu || other < least[threadIdx.x] || (other == least[threadIdx.x] && o < own))) {
                least[threadIdx.x] = other;
                from[threadIdx.x] = o;
            }
        }
        __syncthreads();
    }
    unsigned nearest = from[0];
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) {
        float v = x[row * D + d] - centroids[(size_t)nearest * D + d];
        sum += (double)v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        index[row] = nearest;
        square[row] = lower ? fminf(square[row], (float)sum) : (float)sum;
    }
}

// The mean of each centroid's rows, summed in their order; one centroid per block. A centroid without rows
// does not change.
extern "C" __global__ void pauc_means(const float *x, const unsigned *order, const unsigned *starts, unsigned D, float *centroids) {
    unsigned c = blockIdx.x, begin = starts[c], end = starts[c + 1];
    if (begin == end) return;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) {
        double sum = 0;
        for (unsigned i = begin; i < end; i++) sum += x[(size_t)order[i] * D + d];
        centroids[(size_t)c * D + d] = (float)(sum / (end - begin));
    }
}
