// Cross-entropy of a softmax over inner products with large banks, tile by tile: no matrix of all logits.

// out[i] <- scale[i] a_i . b_i, one row a block.
extern "C" __global__ void pauc_row_dots(const float *a, const float *b, const float *scale, unsigned D, float *out) {
    size_t i = blockIdx.x;
    double sum = 0;
    for (unsigned d = threadIdx.x; d < D; d += THREADS) sum += (double)a[i * D + d] * b[i * D + d];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[i] = (float)(sum * scale[i]);
}

// For each row, one a block: the largest logit so far, the positive's among them, and the sum of exp(logit - largest), over a tile of T candidates that
// begins at candidate `start`; candidate own[i] takes no part. scale has one element if `uniform`, otherwise one a candidate.
extern "C" __global__ void pauc_softmax_sums(const float *scores, const float *scale, unsigned uniform, const unsigned *own,
                                             unsigned start, unsigned T, float *largest, double *sums) {
    size_t i = blockIdx.x;
    unsigned skip = own ? own[i] : 0xffffffffu;
    float top = largest[i];
    for (unsigned c = threadIdx.x; c < T; c += THREADS)
        if (start + c != skip) top = fmaxf(top, scores[i * T + c] * (uniform ? scale[0] : scale[start + c]));
    top = block_max(top);
    double sum = 0;
    for (unsigned c = threadIdx.x; c < T; c += THREADS)
        if (start + c != skip) sum += expf(scores[i * T + c] * (uniform ? scale[0] : scale[start + c]) - top);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[i] = sums[i] * exp((double)largest[i] - top) + sum;
        largest[i] = top;
    }
}

// scores <- share * probability * scale: what each candidate of the tile contributes to the gradient of its query.
extern "C" __global__ void pauc_softmax_weights(size_t n, float *scores, const float *scale, unsigned uniform, const unsigned *own,
                                                unsigned start, unsigned T, const float *positive_logits, const float *largest,
                                                const double *sums, float share) {
    FOR_EACH(k, n) {
        unsigned c = (unsigned)(k % T);
        size_t i = k / T;
        float s = uniform ? scale[0] : scale[start + c];
        int skip = own && own[i] == start + c;
        double all = sums[i] + exp((double)positive_logits[i] - largest[i]);
        scores[k] = skip ? 0.f : (float)(share * s * expf(scores[k] * s - largest[i]) / all);
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
