// Numbers split into sums of two with eleven mantissa bits each, for tensor cores: two fp16 or two TF32
// numbers.

// The largest |x| of each block.
extern "C" __global__ void pauc_largest(size_t n, const float *x, float *largest) {
    float top = 0;
    FOR_EACH(i, n) {
        float size = fabsf(x[i]);
        // NaN and infinity do not count: they are the same at any scale.
        if (size > top && size < 3e38f) top = size;
    }
    top = block_max(top);
    if (threadIdx.x == 0) largest[blockIdx.x] = top;
}

template <unsigned V> __device__ void split_f16(size_t n, const float *x, unsigned D, unsigned is_right, float up, void *parts) {
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
        Pack<f16, V> *row = (Pack<f16, V> *)parts + r * 3 * (D / V) + (i - r * (D / V));
        // Small products come first, so that sums are small while they are accumulated.
        row[0] = is_right ? high : low;
        row[D / V] = is_right ? low : high;
        row[2 * (D / V)] = high;
    }
}

// Converts rows of D numbers to rows of 3 D fp16: low, high, high parts, or high, low, high for the right
// operand. The inner product of a left row with a right one is low.HIGH + high.LOW + high.HIGH. Numbers are
// multiplied by a power of two first, whose inverse is written.
extern "C" __global__ void pauc_split_f16(size_t n, const float *x, unsigned D, unsigned is_right, const float *largest,
                                          unsigned blocks, void *parts, float *inverse) {
    float top = 0;
    for (unsigned b = threadIdx.x; b < blocks; b += THREADS) top = fmaxf(top, largest[b]);
    // The largest fp16 is just below 2^16.
    float up = lift(block_max(top), 15);
    if (blockIdx.x == 0 && threadIdx.x == 0) *inverse = 1 / up;
    if (D % 4 == 0 && (size_t)x % sizeof(Pack<float, 4>) == 0) split_f16<4>(n, x, D, is_right, up, parts);
    else split_f16<1>(n, x, D, is_right, up, parts);
}

template <unsigned V> __device__ void split_tf32(size_t n, const float *x, float *upper, float *lower) {
    FOR_EACH(i, n / V) {
        float v[V], high[V], low[V];
        load<float, V>(x, i, v);
#pragma unroll
        for (unsigned j = 0; j < V; j++) {
            unsigned bits = __float_as_uint(v[j]), nearest = (bits + 0x1000u) & 0xffffe000u;
            // NaN and infinity are not split, nor is a number that would round to infinity.
            bool whole = (nearest & 0x7f800000u) == 0x7f800000u;
            high[j] = whole ? v[j] : __uint_as_float(nearest);
            low[j] = whole ? 0.f : v[j] - high[j];
        }
        store<float, V>(upper, i, high);
        store<float, V>(lower, i, low);
    }
}

// Splits floats into sums of two: one rounded to eleven mantissa bits, and the remainder.
extern "C" __global__ void pauc_split_tf32(size_t n, const float *x, float *upper, float *lower) {
    if (n % 4 == 0 && (size_t)x % sizeof(Pack<float, 4>) == 0) split_tf32<4>(n, x, upper, lower);
    else split_tf32<1>(n, x, upper, lower);
}
