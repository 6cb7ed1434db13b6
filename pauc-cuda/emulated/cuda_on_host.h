// CUDA C++ for g++: the parts of the language and its library that the .cu files of dfdx and of this project
// use.
//
// The driver (driver.c) runs a block's threads one after another, or on fibers if they wait for each other.
// It sets the four indices before it calls a kernel. Nothing runs concurrently, so shared memory is static
// and atomics are plain updates.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __CUDA_ARCH__ 900

struct emu_index { unsigned x, y, z; };
extern "C" {
extern emu_index emu_tid, emu_bid, emu_bdim, emu_gdim;
void emu_sync(void);
void emu_register(const char *name, void (*run)(void **arguments), int uses_fibers);
}
#define threadIdx emu_tid
#define blockIdx emu_bid
#define blockDim emu_bdim
#define gridDim emu_gdim
#define __syncthreads() emu_sync()

// ---- The library ----

using std::isnan;
using std::signbit;
template <class A, class B> static inline typename std::common_type<A, B>::type max(A a, B b) { return a > b ? a : b; }
template <class A, class B> static inline typename std::common_type<A, B>::type min(A a, B b) { return a < b ? a : b; }

template <class To, class From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of the same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float f) { return emu_bits<unsigned>(f); }
static inline int __float_as_int(float f) { return emu_bits<int>(f); }
static inline float __uint_as_float(unsigned u) { return emu_bits<float>(u); }
static inline float __int_as_float(int i) { return emu_bits<float>(i); }
static inline long long __double_as_longlong(double d) { return emu_bits<long long>(d); }
static inline double __longlong_as_double(long long l) { return emu_bits<double>(l); }

template <class T, class U> static inline T atomicAdd(T *to, U value) {
    T before = *to;
    *to = before + (T)value;
    return before;
}
template <class T, class U> static inline T atomicMax(T *to, U value) {
    T before = *to;
    if ((T)value > before) *to = (T)value;
    return before;
}
template <class T, class U> static inline T atomicMin(T *to, U value) {
    T before = *to;
    if ((T)value < before) *to = (T)value;
    return before;
}
template <class T, class U, class V> static inline T atomicCAS(T *to, U expected, V value) {
    T before = *to;
    if (before == (T)expected) *to = (T)value;
    return before;
}

// ---- __half: an f32, only so that dfdx's kernels for it compile. This project's own f16 is in common.cuh. ----

struct __half {
    float v;
    __half() {}
    __half(float f) : v(f) {}
    __half(double f) : v((float)f) {}
    __half(int f) : v((float)f) {}
    __half(unsigned f) : v((float)f) {}
    __half(unsigned long f) : v((float)f) {}
    operator float() const { return v; }
    __half operator-() const { return __half(-v); }
    __half &operator+=(__half o) { v += o.v; return *this; }
    __half &operator-=(__half o) { v -= o.v; return *this; }
    __half &operator*=(__half o) { v *= o.v; return *this; }
    __half &operator/=(__half o) { v /= o.v; return *this; }
};
#define EMU_HALF_ARITHMETIC(op) \
    static inline __half operator op(__half a, __half b) { return __half(a.v op b.v); }
EMU_HALF_ARITHMETIC(+)
EMU_HALF_ARITHMETIC(-)
EMU_HALF_ARITHMETIC(*)
EMU_HALF_ARITHMETIC(/)
#define EMU_HALF_COMPARISON(op) \
    static inline bool operator op(__half a, __half b) { return a.v op b.v; }
EMU_HALF_COMPARISON(<)
EMU_HALF_COMPARISON(>)
EMU_HALF_COMPARISON(<=)
EMU_HALF_COMPARISON(>=)
EMU_HALF_COMPARISON(==)
EMU_HALF_COMPARISON(!=)
static inline bool __hisnan(__half a) { return std::isnan(a.v); }
static inline __half __hmax_nan(__half a, __half b) { return a.v > b.v ? a : b; }
static inline __half __hmin_nan(__half a, __half b) { return a.v < b.v ? a : b; }
static inline __half __hmax(__half a, __half b) { return __hmax_nan(a, b); }
static inline __half __habs(__half a) { return fabsf(a.v); }
static inline __half __float2half(float f) { return __half(f); }
static inline float __half2float(__half h) { return h.v; }
static inline __half hcos(__half a) { return cosf(a.v); }
static inline __half hsin(__half a) { return sinf(a.v); }
static inline __half hsqrt(__half a) { return sqrtf(a.v); }
static inline __half hlog(__half a) { return logf(a.v); }
static inline __half hexp(__half a) { return expf(a.v); }
static inline unsigned short __half_as_ushort(__half) { return 0; }
static inline __half __ushort_as_half(unsigned short) { return __half(0.f); }

// ---- Registration: wraps a kernel as a function of cuLaunchKernel's list of argument pointers ----

template <auto Kernel> struct EmuCall;
template <class... Parameters, void (*Kernel)(Parameters...)> struct EmuCall<Kernel> {
    template <size_t... I> static void with(void **arguments, std::index_sequence<I...>) {
        Kernel(*(typename std::remove_cv<Parameters>::type *)arguments[I]...);
    }
    static void run(void **arguments) { with(arguments, std::index_sequence_for<Parameters...>{}); }
};
#define EMU_REGISTER(kernel, uses_fibers) \
    static int emu_registered_##kernel = (emu_register(#kernel, &EmuCall<&kernel>::run, uses_fibers), 0);
