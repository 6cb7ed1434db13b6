// Cross-entropy of a softmax over inner products with large banks, a tile of logits at a time.

// out[i] <- scale[i] a_i . b_i, one row a block.
extern "C" __global__ void pauc_row_dots(const float *a, const float *b, const float *scale, unsigned D, float *out) {
    size_t i = blockIdx.x;
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) sum += (double)a[i * D + d] * b[i * D + d];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[i] = (float)(sum * scale[i]);
}

// For each row, one a block: the largest logit so far, the positive's among them, and the sum of exp(logit - largest), over a
// tile of T candidates that begins at candidate `start`; candidate own[i] takes no part. scale has one element if `uniform`,
// otherwise one a candidate.
extern "C" __global__ void pauc_softmax_sums(const float *scores, const float *scale, unsigned uniform, const unsigned *own,
                                             unsigned start, unsigned T, float *largest, double *sums) {
    size_t i = blockIdx.x;
    unsigned skip = own ? own[i] : 0xffffffffu;
    float before = largest[i], top = before;
    double sum = 0;
    for (unsigned c = threadIdx.x; c < T; c += THREADS) {
        if (start + c == skip) continue;
        float logit = scores[i * T + c] * (uniform ? scale[0] : scale[start + c]);
        if (logit > top) {
            sum *= expf(top - logit);
            top = logit;
        }
        sum += expf(logit - top);
    }
    float all = block_max(top);
    // A logit of minus infinity is nothing, also where all are.
    sum = block_sum(top == all ? sum : sum * expf(top - all));
    if (threadIdx.x == 0) {
        sums[i] = (before == all ? sums[i] : sums[i] * exp((double)before - all)) + sum;
        largest[i] = all;
    }
}

// scores <- share * probability * scale: what each candidate of the tile contributes to the gradient of its query. A row has as
// many blocks as there are for each of N rows.
extern "C" __global__ void pauc_softmax_weights(unsigned N, float *scores, const float *scale, unsigned uniform, const unsigned *own,
                                                unsigned start, unsigned T, const float *positive_logits, const float *largest,
                                                const double *sums, float share) {
    size_t i = blockIdx.x % N;
    unsigned part = blockIdx.x / N, parts = gridDim.x / N, skip = own ? own[i] : 0xffffffffu;
    float top = largest[i], factor = (float)(share / (sums[i] + exp((double)positive_logits[i] - top)));
    for (unsigned c = part * THREADS + threadIdx.x; c < T; c += parts * THREADS) {
        float s = uniform ? scale[0] : scale[start + c], *score = scores + i * T + c;
        *score = start + c == skip ? 0.f : factor * s * expf(*score * s - top);
    }
}

// For N rows, each among all others: from inner products to what each row contributes to the gradient of each, and the losses.
// The positive of a row is the one half of them further on; the sums have it among the rest, and no row itself.
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

// Losses ln(sum) + largest - positive, written as ln(1 + sum over negatives of exp(negative - positive)) where the positive is
// the largest, and gradients <- gradients - share * (1 - p_positive) * scale * positive.
extern "C" __global__ void pauc_softmax_finish(const float *positive_logits, const float *positives, const float *scale, unsigned D,
                                               const float *largest, const double *sums, float share, double *losses,
                                               float *gradients) {
    size_t i = blockIdx.x;
    double logit = positive_logits[i], top = largest[i];
    // The sums leave the positive out.
    double ratio = sums[i] * exp(top - logit);
    double others = sums[i] / (sums[i] + exp(logit - top));
    for (unsigned d = threadIdx.x; d < D; d += THREADS)
        gradients[i * D + d] -= (float)(share * others * scale[i]) * positives[i * D + d];
    if (threadIdx.x == 0) losses[i] = ratio < 1e300 ? log1p(ratio) : log(sums[i]) + top - logit;
}
