// Numbers as sums of two, of eleven digits each, so that tensor cores can multiply them: of two halves, or of two floats.

// Each block's largest |x|.
extern "C" __global__ void pauc_largest(size_t n, const float *x, float *found) {
    float top = 0;
    FOR_EACH(i, n) {
        float size = fabsf(x[i]);
        // A NaN or an infinity has no size to go by, and stays what it is.
        if (size > top && size < 3e38f) top = size;
    }
    top = block_max(top);
    if (threadIdx.x == 0) found[blockIdx.x] = top;
}

template <unsigned V> __device__ void halves_of(size_t n, const float *x, unsigned D, unsigned second, float up, void *halves) {
    FOR_EACH(i, n / V) {
        float v[V];
        Pack<f16, V> high, low;
        load<float, V>(x, i, v);
#pragma unroll
        for (unsigned j = 0; j < V; j++) {
            set(high.of[j], v[j] * up);
            set(low.of[j], v[j] * up - number(high.of[j]));
        }
        size_t r = quotient(i, D / V);
        Pack<f16, V> *row = (Pack<f16, V> *)halves + r * 3 * (D / V) + (i - r * (D / V));
        // Small products come first, so that sums are small while they are added.
        row[0] = second ? high : low;
        row[D / V] = second ? low : high;
        row[2 * (D / V)] = high;
    }
}

// Rows of D numbers as rows of 3 D halves: lower ones, then upper ones twice, or, if `second`, upper, lower, upper. The product of
// a row of one kind with one of the other is l.U + u.L + u.U. They are numbers times a power of two, whose inverse is written.
extern "C" __global__ void pauc_halves(size_t n, const float *x, unsigned D, unsigned second, const float *found, unsigned blocks,
                                       void *halves, float *inverse) {
    float top = 0;
    for (unsigned b = threadIdx.x; b < blocks; b += THREADS) top = fmaxf(top, found[b]);
    // Halves end just below 2^16.
    float up = lift(block_max(top), 15);
    if (blockIdx.x == 0 && threadIdx.x == 0) *inverse = 1 / up;
    if (D % 4 == 0 && (size_t)x % sizeof(Pack<float, 4>) == 0) halves_of<4>(n, x, D, second, up, halves);
    else halves_of<1>(n, x, D, second, up, halves);
}

template <unsigned V> __device__ void parts_of(size_t n, const float *x, float *upper, float *lower) {
    FOR_EACH(i, n / V) {
        float v[V], high[V], low[V];
        load<float, V>(x, i, v);
#pragma unroll
        for (unsigned j = 0; j < V; j++) {
            unsigned bits = __float_as_uint(v[j]), nearest = (bits + 0x1000u) & 0xffffe000u;
            // What is no number, or would become infinite, stays whole.
            bool whole = (nearest & 0x7f800000u) == 0x7f800000u;
            high[j] = whole ? v[j] : __uint_as_float(nearest);
            low[j] = whole ? 0.f : v[j] - high[j];
        }
        store<float, V>(upper, i, high);
        store<float, V>(lower, i, low);
    }
}

// Floats as sums of two: one of eleven digits, and what that leaves.
extern "C" __global__ void pauc_parts(size_t n, const float *x, float *upper, float *lower) {
    if (n % 4 == 0 && (size_t)x % sizeof(Pack<float, 4>) == 0) parts_of<4>(n, x, upper, lower);
    else parts_of<1>(n, x, upper, lower);
}
