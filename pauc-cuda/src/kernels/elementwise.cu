// Vectors: sums, multiples, copies.

extern "C" __global__ void pauc_add(size_t n, float a, const float *x, float *y) {
    FOR_EACH(i, n) y[i] += a * x[i];
}

// y <- y + a[0] b x
extern "C" __global__ void pauc_add_times(size_t n, const float *a, float b, const float *x, float *y) {
    FOR_EACH(i, n) y[i] += a[0] * b * x[i];
}

extern "C" __global__ void pauc_copy(size_t n, const float *x, float *y) {
    FOR_EACH(i, n) y[i] = x[i];
}

extern "C" __global__ void pauc_scale(size_t n, float a, float *x) {
    FOR_EACH(i, n) x[i] *= a;
}
