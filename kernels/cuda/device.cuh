// What every kernel starts from. The same source is compiled by nvcc or NVRTC for a GPU, without any header of theirs,
// and by g++ for the tests' model of one (`shim.h`), which offers the same names.
#pragma once

#if defined(__CUDACC__)
#include "hardware.cuh"
#else
#include "shim.h"
#endif

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

constexpr u32 ALL_LANES = 0xffffffffu;

// --- numbers as they lie in memory -------------------------------------------------------------------------------------
struct Half {
    u16 bits;
};
struct BFloat16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(Half value) { return half_bits_to_float(value.bits); }
__device__ __forceinline__ float widen(BFloat16 value) { return __uint_as_float(static_cast<u32>(value.bits) << 16); }

template <class T> __device__ __forceinline__ T narrow(float value);
template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }
template <> __device__ __forceinline__ Half narrow<Half>(float value) { return {float_to_half_bits(value)}; }
template <> __device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0}; // NaN: rounding could make it infinite
    return {static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)}; // to nearest, ties to even
}

// V numbers side by side, moved in one access of up to 16 bytes
template <class T, int V> struct __align__(sizeof(T) * V) Pack {
    T at[V];
};

__device__ __forceinline__ constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// An index that leaves the table stops the kernel, as torch's own device assertions do.
__device__ __forceinline__ i64 checked(i64 index, i64 size) {
    if (static_cast<u64>(index) >= static_cast<u64>(size)) __trap();
    return index;
}

// Add up weight(i) times V numbers at row(i), for i = first ... last - 1, in that order and in float32. Loads of UNROLL
// rows are sent off together: loads that wait for each other's sums would leave the memory idle.
template <int N, class T, int V, class At, class Weight, class Row>
__device__ __forceinline__ void add_rows(At first, Weight weight, Row row, float (&sum)[V]) {
    Pack<T, V> loaded[N];
    float times[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        times[n] = weight(first + n);
        loaded[n] = *reinterpret_cast<const Pack<T, V>*>(row(first + n));
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = fmaf(times[n], widen(loaded[n].at[v]), sum[v]);
}
template <int UNROLL, class T, int V, class At, class Weight, class Row>
__device__ __forceinline__ Pack<T, V> sum_of_rows(At first, At last, Weight weight, Row row) {
    float sum[V] = {};
    for (; first + UNROLL <= last; first += UNROLL) add_rows<UNROLL, T>(first, weight, row, sum);
    for (; first < last; ++first) add_rows<1, T>(first, weight, row, sum);
    Pack<T, V> result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(sum[v]);
    return result;
}

// A kernel that is found by name, and one for each dtype.
#define DEFINE_KERNEL(name, threads, parameters, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(threads) name parameters { __VA_ARGS__; }                             \
    EXPORT_KERNEL(name);
#define FOR_EACH_DTYPE(DEFINE) DEFINE(f32, float) DEFINE(f16, Half) DEFINE(bf16, BFloat16)
