// cuBLAS: matrix products, column-major, accumulated in double precision regardless of the math mode.
#include <stddef.h>

enum { F16 = 2, BF16 = 14 };
#include "half_precision.h"

int cublasCreate_v2(void **handle) {
    *handle = (void *)0x44;
    return 0;
}
int cublasDestroy_v2(void *handle) { return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int cublasSetMathMode(void *handle, int mode) { return 0; }

// c <- alpha op(a) op(b) + beta c, of one element type; and the same for `count` consecutive products.
#define GEMM(T, gemm, batched)                                                                                                \
    int gemm(void *handle, int ta, int tb, int m, int n, int k, const T *alpha, const T *a, int lda, const T *b, int ldb,     \
             const T *beta, T *c, int ldc) {                                                                                  \
        for (int j = 0; j < n; j++) {                                                                                         \
            for (int i = 0; i < m; i++) {                                                                                     \
                double sum = 0;                                                                                               \
                for (int l = 0; l < k; l++) {                                                                                 \
                    T from_a = a[ta ? l + (size_t)i * lda : i + (size_t)l * lda];                                             \
                    T from_b = b[tb ? j + (size_t)l * ldb : l + (size_t)j * ldb];                                             \
                    sum += (double)from_a * from_b;                                                                           \
                }                                                                                                             \
                T *to = c + i + (size_t)j * ldc;                                                                              \
                /* With beta 0, c is not read: it may be NaN. */                                                              \
                *to = *alpha * (T)sum + (*beta == 0 ? 0 : *beta * *to);                                                       \
            }                                                                                                                 \
        }                                                                                                                     \
        return 0;                                                                                                             \
    }                                                                                                                         \
    int batched(void *handle, int ta, int tb, int m, int n, int k, const T *alpha, const T *a, int lda, long long stride_a,   \
                const T *b, int ldb, long long stride_b, const T *beta, T *c, int ldc, long long stride_c, int count) {       \
        for (int i = 0; i < count; i++)                                                                                       \
            gemm(handle, ta, tb, m, n, k, alpha, a + i * stride_a, lda, b + i * stride_b, ldb, beta, c + i * stride_c, ldc);  \
        return 0;                                                                                                             \
    }
GEMM(float, cublasSgemm_v2, cublasSgemmStridedBatched)
GEMM(double, cublasDgemm_v2, cublasDgemmStridedBatched)

int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const float *beta, void *c, int type_c, int ldc, int compute, int algorithm) {
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++) {
                double from_a = get(a, ta ? (long)i * lda + l : (long)l * lda + i, type_a);
                double from_b = get(b, tb ? (long)l * ldb + j : (long)j * ldb + l, type_b);
                sum += from_a * from_b;
            }
            long to = (long)j * ldc + i;
            put(c, to, type_c, (float)(*alpha * sum + (*beta == 0 ? 0 : *beta * get(c, to, type_c))));
        }
    }
    return 0;
}

static long bytes(int type) { return type == F16 || type == BF16 ? 2 : 4; }

int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int type_a,
                               int lda, long long stride_a, const void *b, int type_b, int ldb, long long stride_b,
                               const float *beta, void *c, int type_c, int ldc, long long stride_c, int count, int compute,
                               int algorithm) {
    for (long i = 0; i < count; i++) {
        const char *a_i = (const char *)a + i * stride_a * bytes(type_a), *b_i = (const char *)b + i * stride_b * bytes(type_b);
        char *c_i = (char *)c + i * stride_c * bytes(type_c);
        cublasGemmEx(handle, ta, tb, m, n, k, alpha, a_i, type_a, lda, b_i, type_b, ldb, beta, c_i, type_c, ldc, compute, algorithm);
    }
    return 0;
}
