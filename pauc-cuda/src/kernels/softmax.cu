// Cross-entropy of a softmax over inner products with large banks, one tile of logits at a time.

// The row of b that belongs to row i: row at[i], or row i without `at`.
__device__ inline size_t row_of(const unsigned *at, size_t i) { return at ? at[i] : i; }

// out[i] <- scale a_i . b_j, one row per block, where j is i or at[i]. The scale is the same for all if
// `uniform`, otherwise that of b_j. Also initializes the largest logit.
extern "C" __global__ void pauc_row_dots(const float *a, const float *b, const unsigned *at, const float *scale, unsigned uniform,
                                         unsigned D, float *out, float *largest) {
    size_t i = blockIdx.x, j = row_of(at, i);
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) sum += (double)a[i * D + d] * b[j * D + d];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[i] = largest[i] = (float)(sum * scale[uniform ? 0 : j]);
}

// The logit of an excluded candidate: minus infinity.
#define NOTHING __uint_as_float(0xff800000u)

// The factor that turns scores into inner products. Null factors are 1.
__device__ inline float product_of(const float *a, const float *b) { return (a ? *a : 1) * (b ? *b : 1); }

// Whether rows of T scores, and T scales from `start` on, can be read in packs of eight. The scores of a
// second bank may begin at any address.
__device__ inline bool in_eights(const float *scores, unsigned T, unsigned start) {
    return T % 8 == 0 && start % 8 == 0 && (size_t)scores % sizeof(Pack<float, 8>) == 0;
}

template <unsigned V>
__device__ void block_softmax_sums(const float *scores, const float *scale, unsigned uniform, const unsigned *own, unsigned start,
                                   unsigned T, const float *unit_a, const float *unit_b, float *largest, double *sums) {
    size_t i = blockIdx.x;
    unsigned skip = own ? own[i] : 0xffffffffu;
    float unit = product_of(unit_a, unit_b), before = largest[i], top = before;
    double sum = 0;
    for (unsigned p = threadIdx.x; p < T / V; p += THREADS) {
        float logit[V], s[V];
        load<float, V>(scores + i * T, p, logit);
        if (!uniform) load<float, V>(scale + start, p, s);
        float most = top, part = 0;
#pragma unroll
        for (unsigned v = 0; v < V; v++) {
            logit[v] *= unit * (uniform ? scale[0] : s[v]);
            if (start + p * V + v == skip) logit[v] = NOTHING;
            most = fmaxf(most, logit[v]);
        }
        if (most > top) {
            sum *= expf(top - most);
            top = most;
        }
        // A logit of minus infinity adds nothing, even if all logits are. fmaxf ignores NaN, but the sum
        // becomes NaN.
#pragma unroll
        for (unsigned v = 0; v < V; v++) part += logit[v] == NOTHING ? 0.f : expf(logit[v] - top);
        sum += part;
    }
    float all = block_max(top);
    sum = block_sum(top == all ? sum : sum * expf(top - all));
    if (threadIdx.x == 0) {
        sums[i] = (before == all ? sums[i] : sums[i] * exp((double)before - all)) + sum;
        largest[i] = all;
    }
}

// The mean of n numbers, by one block.
extern "C" __global__ void pauc_mean(const double *x, unsigned n, float *mean) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += THREADS) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *mean = (float)(sum / n);
}

// For each row, one per block: the largest logit so far, including the positive's, and the sum of exp(logit -
// largest), over a tile of T candidates from `start` on. Candidate own[i] is excluded. `scale` has one
// element if `uniform`, otherwise one per candidate. Scores times the units are inner products.
extern "C" __global__ void pauc_softmax_sums(const float *scores, const float *scale, unsigned uniform, const unsigned *own,
                                             unsigned start, unsigned T, const float *unit_a, const float *unit_b, float *largest,
                                             double *sums) {
    if (in_eights(scores, T, start)) block_softmax_sums<8>(scores, scale, uniform, own, start, T, unit_a, unit_b, largest, sums);
    else block_softmax_sums<1>(scores, scale, uniform, own, start, T, unit_a, unit_b, largest, sums);
}

// The scale of fp16 weights. Weights are at most 1.
#define WEIGHT_UNIT 16384.f

template <unsigned V>
__device__ void softmax_weights(unsigned N, const float *scores, const float *scale, unsigned uniform, float most, const unsigned *own,
                                unsigned start, unsigned T, const float *unit_a, const float *unit_b, const float *largest,
                                const double *sums, void *weights) {
    size_t i = blockIdx.x % N;
    unsigned part = blockIdx.x / N, parts = gridDim.x / N, skip = own ? own[i] : 0xffffffffu;
    float unit = product_of(unit_a, unit_b), factor = WEIGHT_UNIT / most;
    // The logarithm of the negatives' sum. Without negatives, every weight is 0.
    float from = sums[i] == 0 ? -NOTHING : (float)(largest[i] + log(sums[i]));
    f16 *upper = (f16 *)weights + i * 2 * T, *lower = upper + T;
    for (unsigned p = part * THREADS + threadIdx.x; p < T / V; p += parts * THREADS) {
        float score[V], s[V];
        load<float, V>(scores + i * T, p, score);
        if (!uniform) load<float, V>(scale + start, p, s);
        Pack<f16, V> high, low;
#pragma unroll
        for (unsigned v = 0; v < V; v++) {
            float c = uniform ? scale[0] : s[v];
            float w = start + p * V + v == skip ? 0.f : factor * c * expf(score[v] * unit * c - from);
            set(high.of[v], w);
            set(low.of[v], w - number(high.of[v]));
        }
        ((Pack<f16, V> *)upper)[p] = high;
        ((Pack<f16, V> *)lower)[p] = low;
    }
}

// The weight of each candidate of the tile in the gradient of each query: scale times probability among the
// negatives, divided by `most`, the largest scale. Written as high and low parts in fp16, (N, 2 T). The
// blocks are divided evenly among the N rows.
extern "C" __global__ void pauc_softmax_weights(unsigned N, const float *scores, const float *scale, unsigned uniform, float most,
                                                const unsigned *own, unsigned start, unsigned T, const float *unit_a,
                                                const float *unit_b, const float *largest, const double *sums, void *weights) {
    if (in_eights(scores, T, start)) {
        // Four at a time are faster than eight here.
        softmax_weights<4>(N, scores, scale, uniform, most, own, start, T, unit_a, unit_b, largest, sums, weights);
    } else softmax_weights<1>(N, scores, scale, uniform, most, own, start, T, unit_a, unit_b, largest, sums, weights);
}

// gradients <- gradients + share times the weighted sums of rows. These are P partial sums of (N, 2 D), high
// parts of weights with both parts of rows, and Q of (N, D), low parts with high parts.
extern "C" __global__ void pauc_softmax_gather(size_t n, unsigned D, unsigned P, unsigned Q, const float *upper, const float *lower,
                                               const float *unit, float most, const float *positive_logits, const float *largest,
                                               const double *sums, float share, float *gradients) {
    FOR_EACH(i, n) {
        size_t row = quotient(i, D), col = i - row * D;
        double others = sums[row] / (sums[row] + exp((double)positive_logits[row] - largest[row]));
        float sum = 0;
#pragma unroll 4
        for (unsigned p = 0; p < P; p++) {
            const float *both = upper + p * 2 * n + row * 2 * D + col;
            sum += both[0] + both[D];
        }
        for (unsigned q = 0; q < Q; q++) sum += lower[q * n + i];
        gradients[i] += (float)(share * others * most / WEIGHT_UNIT) * *unit * sum;
    }
}

// For N rows, each compared with all others: replaces inner products by the weight of each row in each row's
// gradient, and writes the losses. The positive of row i is row i + N/2 (mod N). The sums include it and
// exclude row i itself.
extern "C" __global__ void pauc_softmax_pairs(unsigned N, float *scores, float scale, const float *largest, const double *sums,
                                              double *losses) {
    size_t i = blockIdx.x;
    unsigned partner = (unsigned)((i + N / 2) % N);
    float share = scale / N, top = largest[i];
    double sum = sums[i];
    if (threadIdx.x == 0) losses[i] = log(sum) + top - (double)(scores[i * N + partner] * scale);
    __syncthreads();
    for (unsigned c = threadIdx.x; c < N; c += THREADS) {
        double p = c == i ? 0 : expf(scores[i * N + c] * scale - top) / sum;
        scores[i * N + c] = share * (float)(c == partner ? p - 1 : p);
    }
}

// Losses ln(sum) + largest - positive, written as ln(1 + sum over negatives of exp(negative - positive))
// where the positive is the largest, and gradients <- gradients - share * (1 - p_positive) * scale *
// positive.
extern "C" __global__ void pauc_softmax_finish(const float *positive_logits, const float *positives, const unsigned *at,
                                               const float *scale, unsigned uniform, unsigned D, const float *largest,
                                               const double *sums, float share, double *losses, float *gradients) {
    size_t i = blockIdx.x, j = row_of(at, i);
    double logit = positive_logits[i], top = largest[i];
    // The sums exclude the positive.
    double ratio = sums[i] * exp(top - logit);
    double others = sums[i] / (sums[i] + exp(logit - top));
    for (unsigned d = threadIdx.x; d < D; d += THREADS)
        gradients[i * D + d] -= (float)(share * others * scale[uniform ? 0 : j]) * positives[j * D + d];
    if (threadIdx.x == 0) losses[i] = ratio < 1e300 ? log1p(ratio) : log(sums[i]) + top - logit;
}
