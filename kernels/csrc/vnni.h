// Products of int8 numbers by vpdpbusd: four products of unsigned and signed bytes, added to an int32, in every lane.
//
// One line of assembly stands for each vpdpbusd: around its intrinsic gcc 12 moves accumulators to memory and back, at
// twice the time.
#pragma once

#include "products.h"

namespace {

#if defined(__AVX512VNNI__)
struct VnniVector {
    using Type = __m512i;
    static constexpr int MR = 6, NV = 4;  // 24 accumulators of 32 registers
    static Type spread(int32_t four) { return _mm512_set1_epi32(four); }
    static void add_products(Type& sum, Type latents, Type row) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(latents), "v"(row));
    }
    static Floats to_floats(Type sum) { return (Floats)_mm512_cvtepi32_ps(sum); }
};
#elif defined(__AVXVNNI__)
struct VnniVector {
    using Type = __m256i;
    static constexpr int MR = 6, NV = 2;  // 12 accumulators of 16 registers
    static Type spread(int32_t four) { return _mm256_set1_epi32(four); }
    static void add_products(Type& sum, Type latents, Type row) {
        asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(latents), "x"(row));
    }
    static Floats to_floats(Type sum) { return (Floats)_mm256_cvtepi32_ps(sum); }
};
#endif

template <class V>
struct VnniKernel : Products<V> {
    using Products<V>::MR, Products<V>::NR;

    // out[r, j] = (start[r] + sum of products) row_scale[r] latent_scale[j] + bias[j]
    APART static void product(const uint8_t* w, const int8_t* x, int64_t depth, const int32_t* start, const float* row_scale,
                        const float* latent_scale, const float* bias, float* out, int64_t stride) {
        Products<V> products;
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V::NV; v++) products.sums[r][v] = V::spread(start[r]);
        products.add(w, x, depth / 4);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V::NV; v++) {
                const Floats scaled = V::to_floats(products.sums[r][v]) * spread(row_scale[r]);
                store(out + r * stride + LANES * v,
                      scaled * load<Floats>(latent_scale + LANES * v) + load<Floats>(bias + LANES * v));
            }
    }
};

}  // namespace
