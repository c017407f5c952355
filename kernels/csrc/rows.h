// Loops over one row of numbers: sums of scaled rows, dot products. Their order depends on nothing but the width.
#pragma once

#include "numbers.h"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int HELD = 24;  // vectors of a row that are summed in registers
#else
constexpr int HELD = 8;
#endif

// What a sum is made of: `factor(i)` times `row(i)`, i < n; `ahead(i)` tells a row that will be read soon.
//
// out[c] = start[c] + factor(0) row(0)[c] + factor(1) row(1)[c] + ..., in this order for every column.
template <class Factor, class Row>
inline void sum_rows(int64_t n, int64_t width, const float* start, Factor factor, Row row, float* out) {
    int64_t c = 0;
    const auto some = [&](auto vectors) {  // as many columns as fit into that many registers
        constexpr int V = decltype(vectors)::value;
        for (; c + V * LANES <= width; c += V * LANES) {
            Floats sums[V];
#pragma GCC unroll 24
            for (int v = 0; v < V; v++) sums[v] = start ? load<Floats>(start + c + LANES * v) : Floats{};
            for (int64_t i = 0; i < n; i++) {
                const float* const from = row(i) + c;
                const float* const soon = row(i + 2 < n ? i + 2 : i) + c;
                const Floats times = spread(factor(i));
#pragma GCC unroll 24
                for (int v = 0; v < V; v++) {
                    prefetch(soon + LANES * v);
                    sums[v] += times * load<Floats>(from + LANES * v);
                }
            }
#pragma GCC unroll 24
            for (int v = 0; v < V; v++) store(out + c + LANES * v, sums[v]);
        }
    };
    some(std::integral_constant<int, HELD>{});
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 1>{});
    for (; c < width; c++) {
        float sum = start ? start[c] : 0;
        for (int64_t i = 0; i < n; i++) sum += factor(i) * row(i)[c];
        out[c] = sum;
    }
}

inline float total(Floats v) {
    float lanes[LANES];
    store(lanes, v);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
    return lanes[0];
}

inline float dot(const float* a, const float* b, int64_t n) {
    Floats sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * LANES <= n; c += 4 * LANES)
        for (int i = 0; i < 4; i++) sums[i] += load<Floats>(a + c + LANES * i) * load<Floats>(b + c + LANES * i);
    for (; c + LANES <= n; c += LANES) sums[0] += load<Floats>(a + c) * load<Floats>(b + c);
    float sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; c < n; c++) sum += a[c] * b[c];
    return sum;
}

}  // namespace
