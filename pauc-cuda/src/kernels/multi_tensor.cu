// Launches over many vectors. A vector has one block per CHUNK elements; `first` is the number of its first
// block.

#define CHUNK 8192

// The vector of this block: the last one whose first block is not after it.
template <class P> __device__ inline P of_block(const P *all, unsigned count) {
    unsigned low = 0, high = count;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (all[middle].first <= blockIdx.x) low = middle;
        else high = middle;
    }
    return all[low];
}

// The elements of the block.
#define FOR_CHUNK(i, part)                                                                          \
    for (size_t i = (size_t)(blockIdx.x - part.first) * CHUNK + threadIdx.x,                        \
                end = min((size_t)part.n, (size_t)(blockIdx.x - part.first + 1) * CHUNK);           \
         i < end; i += THREADS)

struct Pair {
    float *to;
    const float *from;
    unsigned long long n;
    unsigned first, none;
};

// to <- to + rate (from - to)
extern "C" __global__ void pauc_averages(const Pair *all, unsigned count, float rate) {
    Pair part = of_block(all, count);
    FOR_CHUNK(i, part) part.to[i] += (part.from[i] - part.to[i]) * rate;
}

// to <- from
extern "C" __global__ void pauc_copies(const Pair *all, unsigned count) {
    Pair part = of_block(all, count);
    FOR_CHUNK(i, part) part.to[i] = part.from[i];
}

extern "C" __global__ void pauc_clear(const Pair *all, unsigned count) {
    Pair part = of_block(all, count);
    FOR_CHUNK(i, part) part.to[i] = 0;
}

// A sum of squares per block.
extern "C" __global__ void pauc_square_sums(const Pair *all, unsigned count, double *sums) {
    Pair part = of_block(all, count);
    double sum = 0;
    FOR_CHUNK(i, part) sum += (double)part.from[i] * (double)part.from[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

struct Sgd {
    float *w;
    const float *g;
    float *v;
    unsigned long long n;
    unsigned first, nesterov;
    float lr, momentum, decay, adaptation;
};

// d = a (g + l w); v <- m v + d; w <- w - lr (v, or d + m v with Nesterov)
extern "C" __global__ void pauc_sgd(const Sgd *all, unsigned count) {
    Sgd part = of_block(all, count);
    FOR_CHUNK(i, part) {
        float w = part.w[i], d = part.adaptation * (part.g[i] + part.decay * w);
        float u = part.momentum * part.v[i] + d;
        part.v[i] = u;
        part.w[i] = w - part.lr * (part.nesterov ? d + part.momentum * u : u);
    }
}

struct AdamW {
    float *w;
    const float *g;
    float *m;
    float *s;
    unsigned long long n;
    unsigned first;
    float rate, correction, keep, epsilon, beta1, new1, beta2, new2;
    unsigned none;
};

// m <- b1 m + (1 - b1) g; s <- b2 s + (1 - b2) g g; w <- keep w - rate m / (correction sqrt(s) + epsilon)
extern "C" __global__ void pauc_adamw(const AdamW *all, unsigned count) {
    AdamW part = of_block(all, count);
    FOR_CHUNK(i, part) {
        float g = part.g[i];
        float mean = part.beta1 * part.m[i] + part.new1 * g;
        float square = part.beta2 * part.s[i] + part.new2 * g * g;
        part.m[i] = mean;
        part.s[i] = square;
        part.w[i] = part.keep * part.w[i] - part.rate * mean / (part.correction * sqrtf(square) + part.epsilon);
    }
}
