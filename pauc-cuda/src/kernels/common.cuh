// The beginning of every file of kernels. Blocks are one-dimensional, with a power of two of threads, from 32
// to MOST_THREADS.
#define MOST_THREADS 256
#define THREADS blockDim.x

// The elements of a grid-wide loop.
#define FOR_EACH(i, n) \
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

// i / d. Divisions of 64-bit numbers are slow.
__device__ inline size_t quotient(size_t i, unsigned d) { return i >> 32 ? i / d : (unsigned)i / d; }

// The sum over the threads of a block, returned to all of them, always in the same order.
__device__ inline double block_sum(double v) {
    __shared__ double sums[MOST_THREADS];
    sums[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    double total = sums[0];
    __syncthreads();
    return total;
}

// The same for two sums and a maximum at once.
__device__ inline void block_totals(double &a, double &b, float &top) {
    __shared__ double sums[2][MOST_THREADS];
    __shared__ float tops[MOST_THREADS];
    unsigned i = threadIdx.x;
    sums[0][i] = a;
    sums[1][i] = b;
    tops[i] = top;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (i < half) {
            sums[0][i] += sums[0][i + half];
            sums[1][i] += sums[1][i + half];
            tops[i] = fmaxf(tops[i], tops[i + half]);
        }
        __syncthreads();
    }
    a = sums[0][0];
    b = sums[1][0];
    top = tops[0];
    __syncthreads();
}

// The maximum over the threads of a block, returned to all of them.
__device__ inline float block_max(float v) {
    __shared__ float values[MOST_THREADS];
    values[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] = fmaxf(values[threadIdx.x], values[threadIdx.x + half]);
        __syncthreads();
    }
    float top = values[0];
    __syncthreads();
    return top;
}

// bfloat16: eight exponent bits and eight mantissa bits, the upper half of a float.
struct bf16 {
    unsigned short bits;
};

// fp16: five exponent bits and eleven mantissa bits.
struct f16 {
    unsigned short bits;
};

__device__ inline float number(float v) { return v; }
__device__ inline float number(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ inline float number(f16 v) {
#ifdef __CUDACC_RTC__
    float to;
    asm("cvt.f32.f16 %0, %1;" : "=f"(to) : "h"(v.bits));
    return to;
#else
    _Float16 half;
    __builtin_memcpy(&half, &v, 2);
    return half;
#endif
}

__device__ inline void set(float &to, float v) { to = v; }
// Rounds to the nearest, ties to even. NaN stays NaN.
__device__ inline void set(bf16 &to, float v) {
    unsigned u = __float_as_uint(v);
    to.bits = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
// Rounds to the nearest, ties to even, and saturates instead of overflowing. NaN stays NaN.
__device__ inline void set(f16 &to, float v) {
    const float most = 65504;
    v = v > most ? most : v < -most ? -most : v;
#ifdef __CUDACC_RTC__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
    _Float16 half = v;
    __builtin_memcpy(&to, &half, 2);
#endif
}

// The power of two that scales `largest` to between 2^(top - 1) and 2^top; 1 if `largest` is zero.
__device__ inline float lift(float largest, int top) {
    if (!(largest > 0)) return 1;
    int up = top - 1 - ((int)(__float_as_uint(largest) >> 23) - 127);
    up = up > 126 ? 126 : up < -126 ? -126 : up;
    return __uint_as_float((unsigned)(up + 127) << 23);
}

// V numbers that a thread loads or stores at once.
template <class T, unsigned V> struct alignas(sizeof(T) * V) Pack {
    T of[V];
};

// A GPU ends the program if a pack of 16 bytes or less is not aligned to its size. So does the emulated one.
#ifdef __CUDACC_RTC__
#define ALIGNED(pack)
#else
#define ALIGNED(pack)                                                             \
    do {                                                                          \
        size_t size = sizeof(*(pack)) < 16 ? sizeof(*(pack)) : 16;                \
        if ((size_t)(pack) % size) __builtin_trap();                              \
    } while (0)
#endif

// Loads pack number `i` at `from`.
template <class T, unsigned V> __device__ inline void load(const void *from, size_t i, float (&to)[V]) {
    ALIGNED((const Pack<T, V> *)from);
    Pack<T, V> pack = ((const Pack<T, V> *)from)[i];
#pragma unroll
    for (unsigned v = 0; v < V; v++) to[v] = number(pack.of[v]);
}

template <class T, unsigned V> __device__ inline void store(void *to, size_t i, const float (&from)[V]) {
    ALIGNED((Pack<T, V> *)to);
    Pack<T, V> pack;
#pragma unroll
    for (unsigned v = 0; v < V; v++) set(pack.of[v], from[v]);
    ((Pack<T, V> *)to)[i] = pack;
}

// Instantiates a template for an element type and vector width: 0 and 1 are float, four at a time and one; 2
// and 3 bf16, eight and one; 4 and 5 f16, eight and one. The number comes from Element::code. Few kernels
// accept f16: this macro does not.
#define BY_ELEMENT(element, f, ...)                                                                                              \
    do {                                                                                                                         \
        if (element == 0) f<float, 4>(__VA_ARGS__);                                                                              \
        else if (element == 1) f<float, 1>(__VA_ARGS__);                                                                         \
        else if (element == 2) f<bf16, 8>(__VA_ARGS__);                                                                          \
        else f<bf16, 1>(__VA_ARGS__);                                                                                            \
    } while (0)
