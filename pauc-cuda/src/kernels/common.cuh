// What every file of kernels begins with. Blocks have a power of two of threads, from 32 to MOST_THREADS, in one dimension.
#define MOST_THREADS 256
#define THREADS blockDim.x

// The elements of a grid-wide loop.
#define FOR_EACH(i, n) \
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

// The sum over the threads of a block, for all of them, always in the same order.
__device__ inline double block_sum(double v) {
    __shared__ double sums[MOST_THREADS];
    sums[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    double total = sums[0];
    __syncthreads();
    return total;
}

// The largest value of a block's threads, for all of them.
__device__ inline float block_max(float v) {
    __shared__ float values[MOST_THREADS];
    values[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] = fmaxf(values[threadIdx.x], values[threadIdx.x + half]);
        __syncthreads();
    }
    float top = values[0];
    __syncthreads();
    return top;
}
