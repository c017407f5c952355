// Products of small numbers: the loop that int8 and bfloat16 share.
//
// One instruction multiplies, in every lane, the few numbers that four bytes hold (four int8, two bfloat16) with those
// of another vector and adds the products to the lane's sum. The latents of a panel lie [steps][NR][4 bytes], the rows
// of a group [steps][MR][4 bytes].
#pragma once

#include "numbers.h"

namespace {

// A vector V names its Type, spread(four bytes), add_products(sum, latents, row), and how many rows (MR) and vectors of
// latents (NV) are multiplied at once.
template <class V>
struct Products {
    using Type = typename V::Type;
    static constexpr int MR = V::MR, NR = V::NV * LANES;

    Type sums[MR][V::NV];

    // Where four bytes of a group's row start; `column` counts bytes, and is a multiple of 4.
    static int64_t place(int64_t row, int64_t column) { return column * MR + row * 4; }

    __attribute__((always_inline)) void add(const void* latents, const void* rows, int64_t steps) {
        const uint8_t* w = static_cast<const uint8_t*>(latents);
        const uint8_t* x = static_cast<const uint8_t*>(rows);
        for (int64_t step = 0; step < steps; step++) {
            Type panel[V::NV];
#pragma GCC unroll 4
            for (int v = 0; v < V::NV; v++) {
                panel[v] = load<Type>(w + VECTOR_BYTES * v);
                prefetch(w + 1024 + VECTOR_BYTES * v);
            }
#pragma GCC unroll 8
            for (int r = 0; r < MR; r++) {
                const Type row = V::spread(load<int32_t>(x + 4 * r));
#pragma GCC unroll 4
                for (int v = 0; v < V::NV; v++) V::add_products(sums[r][v], panel[v], row);
            }
            w += 4 * NR;
            x += 4 * MR;
        }
    }
};

}  // namespace
