// What this project calls of cuBLAS beside dfdx: products of f32, bf16 and f16, by columns, summed in double precision.
#include <stdint.h>
#include <string.h>

enum { F16 = 2, BF16 = 14 };

static double get(const void *from, long i, int type) {
    if (type == F16) return ((const _Float16 *)from)[i];
    if (type != BF16) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

static void put(void *to, long i, int type, float v) {
    if (type == F16) {
        ((_Float16 *)to)[i] = (_Float16)v;
        return;
    }
    if (type != BF16) {
        ((float *)to)[i] = v;
        return;
    }
    uint32_t u;
    memcpy(&u, &v, 4);
    ((uint16_t *)to)[i] = v != v ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at, int lda, const void *b, int bt,
                 int ldb, const float *beta, void *c, int ct, int ldc, int compute, int algorithm) {
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++) sum += get(a, ta ? (long)i * lda + l : (long)l * lda + i, at) * get(b, tb ? (long)l * ldb + j : (long)j * ldb + l, bt);
            long to = (long)j * ldc + i;
            put(c, to, ct, (float)(*alpha * sum + (*beta == 0 ? 0 : *beta * get(c, to, ct))));
        }
    }
    return 0;
}

static long bytes(int type) { return type == F16 || type == BF16 ? 2 : 4; }

int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int at, int lda,
                               long long sa, const void *b, int bt, int ldb, long long sb, const float *beta, void *c, int ct, int ldc,
                               long long sc, int count, int compute, int algorithm) {
    for (long i = 0; i < count; i++)
        cublasGemmEx(h, ta, tb, m, n, k, alpha, (const char *)a + i * sa * bytes(at), at, lda, (const char *)b + i * sb * bytes(bt), bt, ldb,
                     beta, (char *)c + i * sc * bytes(ct), ct, ldc, compute, algorithm);
    return 0;
}
