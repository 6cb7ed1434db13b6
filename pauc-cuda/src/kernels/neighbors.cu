// The highest of many scores.

// The maximum length of a list, and of the queue of scores to merge into it: at least as many as a block
// reads at once.
#define MAX_NEIGHBORS 1024
#define WAITING 1024
#define AT_ONCE 4
// Minus infinity.
#define LOWEST __uint_as_float(0xff800000u)

// Sorts the first n pairs of a block, n a power of two: by descending score, equal scores by ascending
// number. Uses Batcher's bitonic network, so the order of comparisons does not depend on the values.
__device__ inline void block_sort(float *scores, unsigned *numbers, unsigned n) {
    for (unsigned run = 2; run <= n; run *= 2)
        for (unsigned step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (unsigned i = threadIdx.x; i < n; i += THREADS) {
                unsigned j = i ^ step;
                if (j < i) continue;
                float s = scores[i], t = scores[j];
                unsigned a = numbers[i], b = numbers[j];
                int inverted = t > s || (t == s && b < a);
                if (inverted == ((i & run) == 0)) {
                    scores[i] = t;
                    scores[j] = s;
                    numbers[i] = b;
                    numbers[j] = a;
                }
            }
        }
    __syncthreads();
}

// The sum over the threads before this one, and over all threads.
__device__ inline unsigned block_before(unsigned v, unsigned *all) {
    __shared__ unsigned sums[MOST_THREADS];
    sums[threadIdx.x] = v;
    __syncthreads();
    for (unsigned step = 1; step < THREADS; step *= 2) {
        unsigned more = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
        __syncthreads();
        sums[threadIdx.x] += more;
        __syncthreads();
    }
    *all = sums[THREADS - 1];
    unsigned before = sums[threadIdx.x] - v;
    __syncthreads();
    return before;
}

// Sorts `waiting` pairs, which follow a sorted list of `count` pairs, into the list. Returns its new length,
// at most k.
__device__ inline unsigned block_merge(float *scores, unsigned *numbers, unsigned count, unsigned waiting, unsigned k) {
    unsigned all = count + waiting, n = 1;
    while (n < all) n *= 2;
    for (unsigned i = all + threadIdx.x; i < n; i += THREADS) {
        scores[i] = LOWEST;
        numbers[i] = 0xffffffffu;
    }
    block_sort(scores, numbers, n);
    return all < k ? all : k;
}

// For each query, one per block: merges a tile of T scores, of the rows from `start` on, into the list of the
// k highest, whose length is counts[q]. `shift`, if any, is added to the score of each row. Rows come by
// ascending number, so a score equal to the last of a full list is not inserted. Neither are NaN and minus
// infinity.
extern "C" __global__ void pauc_highest(const float *scores, const float *shift, unsigned start, unsigned T, unsigned k, float *best,
                                        unsigned *numbers, unsigned *counts) {
    // The list, followed by the pairs waiting to be merged.
    __shared__ float value[MAX_NEIGHBORS + WAITING];
    __shared__ unsigned number[MAX_NEIGHBORS + WAITING];
    __shared__ int any;
    size_t q = blockIdx.x;
    unsigned count = counts[q], waiting = 0;
    for (unsigned i = threadIdx.x; i < count; i += THREADS) {
        value[i] = best[q * k + i];
        number[i] = numbers[q * k + i];
    }
    for (unsigned from = threadIdx.x; from - threadIdx.x < T; from += AT_ONCE * THREADS) {
        if (threadIdx.x == 0) any = 0;
        __syncthreads();
        float some[AT_ONCE], bar = count < k ? LOWEST : value[k - 1];
        unsigned own = 0, all;
        for (unsigned i = 0; i < AT_ONCE; i++) {
            unsigned c = from + i * THREADS;
            some[i] = c < T ? scores[q * T + c] + (shift ? shift[start + c] : 0.f) : LOWEST;
            own += some[i] > bar;
        }
        // Almost always no score is better. All writing threads write the same value.
        if (own) any = 1;
        __syncthreads();
        int better = any;
        __syncthreads();
        if (!better) continue;
        unsigned place = block_before(own, &all);
        if (waiting + all > WAITING) {
            count = block_merge(value, number, count, waiting, k);
            waiting = 0;
            bar = count < k ? LOWEST : value[k - 1];
            own = 0;
            for (unsigned i = 0; i < AT_ONCE; i++) own += some[i] > bar;
            place = block_before(own, &all);
        }
        place += count + waiting;
        for (unsigned i = 0; i < AT_ONCE; i++)
            if (some[i] > bar) {
                value[place] = some[i];
                number[place] = start + from + i * THREADS;
                place++;
            }
        waiting += all;
    }
    if (waiting > 0) count = block_merge(value, number, count, waiting, k);
    for (unsigned i = threadIdx.x; i < count; i += THREADS) {
        best[q * k + i] = value[i];
        numbers[q * k + i] = number[i];
    }
    if (threadIdx.x == 0) counts[q] = count;
}
