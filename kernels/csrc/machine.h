// What this unit's instruction set offers, under names that all kernels share. The flags of the unit decide.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {  // every unit keeps its own copies: units for different processors are loaded side by side

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;  // SSE2, NEON, or whatever the compiler makes of it
#endif
constexpr int LANES = VECTOR_BYTES / 4;

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(VECTOR_BYTES)));
typedef float HalfFloats __attribute__((vector_size(VECTOR_BYTES / 2)));  // as many floats as Doubles has doubles

// For loops that run long: they get all registers to themselves, and a line of their own in a profile.
#define APART __attribute__((noinline))

template <class Vector, class Number>
inline Vector load(const Number* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Vector, class Number>
inline void store(Number* to, Vector v) {
    std::memcpy(to, &v, sizeof v);
}

inline Floats spread(float number) { return number - Floats{}; }  // x - 0 is x, whatever x is

constexpr int DOUBLES = LANES / 2;  // in a vector

inline Doubles widen(const float* from) { return __builtin_convertvector(load<HalfFloats>(from), Doubles); }

// sum += the products of 2 LANES pairs of int16, two by two.
inline Ints add_products(Ints sum, const int16_t* a, const int16_t* b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, load<__m512i>(a), load<__m512i>(b));
#elif defined(__AVX512BW__)
    return sum + (Ints)_mm512_madd_epi16(load<__m512i>(a), load<__m512i>(b));
#elif defined(__AVX2__)
    return sum + (Ints)_mm256_madd_epi16(load<__m256i>(a), load<__m256i>(b));
#elif defined(__SSE2__)
    return sum + (Ints)_mm_madd_epi16(load<__m128i>(a), load<__m128i>(b));
#else
    for (int i = 0; i < LANES; i++) sum[i] += int32_t(a[2 * i]) * b[2 * i] + int32_t(a[2 * i + 1]) * b[2 * i + 1];
    return sum;
#endif
}

inline int32_t total(Ints v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
#endif
}

inline void prefetch(const void* address) { __builtin_prefetch(address); }
inline void prefetch_to_write(const void* address) { __builtin_prefetch(address, 1); }

// --- comparing lanes, and packing those that pass --------------------------------------------------------------
using Mask = uint32_t;  // bit i stands for lane i

inline Mask not_below(Floats a, Floats b) {  // true for NaN, so that what cannot be compared is not lost
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLT_UQ));
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmpnlt_ps((__m128)a, (__m128)b));
#else
    Mask mask = 0;
    for (int i = 0; i < LANES; i++) mask |= Mask(!(a[i] < b[i])) << i;
    return mask;
#endif
}

inline Mask above(Floats a, Floats b) {  // false for NaN
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b));
#else
    Mask mask = 0;
    for (int i = 0; i < LANES; i++) mask |= Mask(a[i] > b[i]) << i;
    return mask;
#endif
}

inline Mask first_lanes(int n) { return n >= LANES ? Mask((1ull << LANES) - 1) : Mask((1u << n) - 1); }

// Write the chosen lanes to out[n], out[n + 1], ...; up to LANES entries from out[n] on may be overwritten.
inline int append(Mask chosen, Floats v, float* out, int n) {
#if defined(__AVX512F__)
    store(out + n, (Floats)_mm512_maskz_compress_ps(__mmask16(chosen), (__m512)v));
    return n + __builtin_popcount(chosen);
#else
    for (; chosen; chosen &= chosen - 1) out[n++] = v[__builtin_ctz(chosen)];
    return n;
#endif
}

inline int append(Mask chosen, Ints v, int32_t* out, int n) {
#if defined(__AVX512F__)
    store(out + n, _mm512_maskz_compress_epi32(__mmask16(chosen), (__m512i)v));
    return n + __builtin_popcount(chosen);
#else
    for (; chosen; chosen &= chosen - 1) out[n++] = v[__builtin_ctz(chosen)];
    return n;
#endif
}

// The same for numbers and where they stand: lane i is number `first` + i.
inline int append(Mask chosen, Floats v, int32_t first, float* out, int32_t* where, int n) {
#if defined(__AVX512F__)
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_add_epi32(steps, _mm512_set1_epi32(first));
    store(out + n, (Floats)_mm512_maskz_compress_ps(__mmask16(chosen), (__m512)v));
    store(where + n, _mm512_maskz_compress_epi32(__mmask16(chosen), places));
    return n + __builtin_popcount(chosen);
#else
    for (; chosen; chosen &= chosen - 1) {
        const int i = __builtin_ctz(chosen);
        out[n] = v[i];
        where[n++] = first + i;
    }
    return n;
#endif
}

}  // namespace
