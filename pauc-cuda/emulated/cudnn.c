// cuDNN: convolutions with any strides, of f32, bf16 or f16, accumulated in double precision regardless of
// the math type.
#include <stdlib.h>

typedef struct { int type, n, c, h, w, sn, sc, sh, sw; } Tensor;
typedef struct { int type, last, k, c, h, w; } Filter;
typedef struct { int ph, pw, sh, sw, dh, dw, groups; } Conv;

enum { F16 = 2, BF16 = 9, NHWC = 1 };
#include "half_precision.h"

int cudnnCreate(void **handle) { *handle = (void *)1; return 0; }
int cudnnDestroy(void *handle) { return 0; }
int cudnnSetStream(void *handle, void *stream) { return 0; }
const char *cudnnGetErrorString(int error) { return "emulated"; }

#define OBJECT(name, type) \
    int cudnnCreate##name##Descriptor(type **made) { *made = calloc(1, sizeof(type)); return *made ? 0 : 2; } \
    int cudnnDestroy##name##Descriptor(type *made) { free(made); return 0; }
OBJECT(Tensor, Tensor)
OBJECT(Filter, Filter)
OBJECT(Convolution, Conv)

int cudnnSetTensor4dDescriptorEx(Tensor *t, int type, int n, int c, int h, int w, int sn, int sc, int sh, int sw) {
    *t = (Tensor){type, n, c, h, w, sn, sc, sh, sw};
    return 0;
}
int cudnnSetFilter4dDescriptor(Filter *f, int type, int format, int k, int c, int h, int w) {
    *f = (Filter){type, format == NHWC, k, c, h, w};
    return 0;
}
int cudnnSetConvolution2dDescriptor(Conv *v, int ph, int pw, int sh, int sw, int dh, int dw, int mode, int type) {
    *v = (Conv){ph, pw, sh, sw, dh, dw, 1};
    return 0;
}
int cudnnSetConvolutionGroupCount(Conv *v, int groups) { v->groups = groups; return 0; }
int cudnnSetConvolutionMathType(Conv *v, int type) { return 0; }

// Each pass has one algorithm, which needs no workspace.
typedef struct { int algorithm, status; float time; size_t memory; int deterministic, math, reserved[3]; } Performance;
#define ONE_ALGORITHM(name) \
    int cudnnGetConvolution##name##Algorithm_v7(void *h, void *a, void *b, void *v, void *c, int most, int *n, Performance *performance) { \
        memset(performance, 0, sizeof *performance); \
        *n = 1; \
        return 0; \
    } \
    int cudnnGetConvolution##name##WorkspaceSize(void *h, void *a, void *b, void *v, void *c, int algorithm, size_t *bytes) { \
        *bytes = 0; \
        return 0; \
    }
ONE_ALGORITHM(Forward)
ONE_ALGORITHM(BackwardData)
ONE_ALGORITHM(BackwardFilter)

static long offset(const Tensor *t, int n, int c, int h, int w) { return (long)n * t->sn + (long)c * t->sc + (long)h * t->sh + (long)w * t->sw; }
static long filter_offset(const Filter *f, int k, int c, int r, int s) {
    return f->last ? (((long)k * f->h + r) * f->w + s) * f->c + c : (((long)k * f->c + c) * f->h + r) * f->w + s;
}
// Loads beta times the old values. With beta 0 they are not read, since they may be NaN.
static void load_scaled(double *sums, const void *there, long n, int type, float beta) {
    for (long i = 0; i < n; i++) sums[i] = beta == 0 ? 0 : beta * get(there, i, type);
}
static long elements(const Tensor *t) { return (long)t->n * t->c * t->h * t->w; }

// A loop over the products of a convolution: of the input at offset X and the weight at offset W, for the
// output at offset Y. The body of the loop closes the brace.
#define EACH_PRODUCT \
    for (int n = 0; n < x->n; n++) \
    for (int k = 0; k < w->k; k++) \
    for (int c = 0; c < w->c; c++) \
    for (int oh = 0; oh < y->h; oh++) \
    for (int ow = 0; ow < y->w; ow++) \
    for (int r = 0; r < w->h; r++) \
    for (int s = 0; s < w->w; s++) { \
        int ih = oh * v->sh - v->ph + r * v->dh, iw = ow * v->sw - v->pw + s * v->dw; \
        if (ih < 0 || iw < 0 || ih >= x->h || iw >= x->w) continue; \
        long X = offset(x, n, k / (w->k / v->groups) * w->c + c, ih, iw), Y = offset(y, n, k, oh, ow), W = filter_offset(w, k, c, r, s);

static int store(double *sums, void *to, long n, int type) {
    for (long i = 0; i < n; i++) put(to, i, type, (float)sums[i]);
    free(sums);
    return 0;
}

int cudnnConvolutionForward(void *h, const float *alpha, Tensor *x, const void *xs, Filter *w, const void *ws, Conv *v, int algorithm,
                            void *space, size_t bytes, const float *beta, Tensor *y, void *ys) {
    long all = elements(y);
    double *sums = malloc(all * sizeof *sums);
    load_scaled(sums, ys, all, y->type, *beta);
    EACH_PRODUCT sums[Y] += *alpha * get(xs, X, x->type) * get(ws, W, w->type); }
    return store(sums, ys, all, y->type);
}
int cudnnConvolutionBackwardData(void *h, const float *alpha, Filter *w, const void *ws, Tensor *y, const void *ys, Conv *v,
                                 int algorithm, void *space, size_t bytes, const float *beta, Tensor *x, void *xs) {
    long all = elements(x);
    double *sums = malloc(all * sizeof *sums);
    load_scaled(sums, xs, all, x->type, *beta);
    EACH_PRODUCT sums[X] += *alpha * get(ys, Y, y->type) * get(ws, W, w->type); }
    return store(sums, xs, all, x->type);
}
int cudnnConvolutionBackwardFilter(void *h, const float *alpha, Tensor *x, const void *xs, Tensor *y, const void *ys, Conv *v,
                                   int algorithm, void *space, size_t bytes, const float *beta, Filter *w, void *ws) {
    long all = (long)w->k * w->c * w->h * w->w;
    double *sums = malloc(all * sizeof *sums);
    load_scaled(sums, ws, all, w->type, *beta);
    EACH_PRODUCT sums[W] += *alpha * get(xs, X, x->type) * get(ys, Y, y->type); }
    return store(sums, ws, all, w->type);
}
