// Softmax regression.

// For each row, one per block: replaces its C products with the classes' weights by softmax(product + bias) -
// onehot(label), the gradient of the logits. losses[i] is -log softmax(product + bias)[label].
extern "C" __global__ void pauc_residuals(float *products, const float *bias, const unsigned *labels, unsigned C, double *losses) {
    float *row = products + blockIdx.x * (size_t)C;
    unsigned label = labels[blockIdx.x];
    float top = row[0] + bias[0];
    for (unsigned c = threadIdx.x; c < C; c += THREADS) top = fmaxf(top, row[c] + bias[c]);
    top = block_max(top);
    double sum = 0;
    for (unsigned c = threadIdx.x; c < C; c += THREADS) sum += exp((double)(row[c] + bias[c]) - top);
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = log(sum) + ((double)top - (row[label] + bias[label]));
    __syncthreads();
    for (unsigned c = threadIdx.x; c < C; c += THREADS)
        row[c] = (float)(exp((double)(row[c] + bias[c]) - top) / sum - (c == label));
}

// right[i] <- whether the label has the largest product + bias of the row, the first among equals; one row
// per block.
extern "C" __global__ void pauc_right(const float *products, const float *bias, const unsigned *labels, unsigned C, unsigned *right) {
    const float *row = products + blockIdx.x * (size_t)C;
    unsigned label = labels[blockIdx.x];
    float own = row[label] + bias[label], above = 0;
    for (unsigned c = threadIdx.x; c < C; c += THREADS) {
        float v = row[c] + bias[c];
        if (v > own || (v == own && c < label)) above = 1;
    }
    above = block_max(above);
    if (threadIdx.x == 0) right[blockIdx.x] = above == 0;
}

// sums <- sums + x
extern "C" __global__ void pauc_accumulate(size_t n, const float *x, double *sums) {
    FOR_EACH(i, n) sums[i] += x[i];
}
