// What this project calls of cuBLAS beside dfdx: products of f32 and bf16, by columns, summed in double precision.
#include <stdint.h>
#include <string.h>

enum { BF16 = 14 };

static double get(const void *from, long i, int type) {
    if (type != BF16) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at, int lda, const void *b, int bt,
                 int ldb, const float *beta, void *c, int ct, int ldc, int compute, int algorithm) {
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++) sum += get(a, ta ? (long)i * lda + l : (long)l * lda + i, at) * get(b, tb ? (long)l * ldb + j : (long)j * ldb + l, bt);
            long to = (long)j * ldc + i;
            float v = (float)(*alpha * sum + (*beta == 0 ? 0 : *beta * get(c, to, ct)));
            if (ct != BF16) {
                ((float *)c)[to] = v;
                continue;
            }
            uint32_t u;
            memcpy(&u, &v, 4);
            ((uint16_t *)c)[to] = v != v ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
        }
    }
    return 0;
}
