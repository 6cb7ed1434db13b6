// Nearest centroids and means of rows.

// For each row of a tile, one a block: the centroid with the smallest bias - score, the lowest among equals, and the squared
// distance to it from differences.
extern "C" __global__ void pauc_nearest(const float *scores, const float *bias, const float *x, const float *centroids, unsigned K,
                                        unsigned D, unsigned *index, float *square) {
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
        square[row] = (float)sum;
    }
}

// The mean of each centroid's rows, summed in their order; one centroid a block. A centroid without rows stays.
extern "C" __global__ void pauc_means(const float *x, const unsigned *order, const unsigned *starts, unsigned D, float *centroids) {
    unsigned c = blockIdx.x, begin = starts[c], end = starts[c + 1];
    if (begin == end) return;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) {
        double sum = 0;
        for (unsigned i = begin; i < end; i++) sum += x[(size_t)order[i] * D + d];
        centroids[(size_t)c * D + d] = (float)(sum / (end - begin));
    }
}
