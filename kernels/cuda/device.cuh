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

// One kernel per dtype, found by name.
#define FOR_EACH_DTYPE(DEFINE) DEFINE(f32, float) DEFINE(f16, Half) DEFINE(bf16, BFloat16)
