// What is done to rows and latents before they are quantised, so that little is lost: it changes no score's rank.
//
// - The mean of the rows, and of the latents, is taken away (bounds.h, equation 1).
// - Channels are balanced by powers of two, so that none dominates a side. The powers are relative to the middle one:
//   what all channels have in common is nobody's imbalance, and rounding it would scale some up and the others down.
// - Both sides are rotated alike, so that a large entry is spread over a block: random signs, a reflection that mixes
//   blocks, a Walsh-Hadamard transform of each block (unnormalised: it multiplies products by the block's size).
//
// Means and scales come from a sample; they decide how tight the bounds are, never whether they hold.
//
// Rounding (eta in bounds.h), each step relative to the norm it acts on, which no later step changes but by a constant:
// the subtraction 1u; a Hadamard level 1u, log2(block) of them; the reflection x_b - c (sum of x over n blocks) with
// c = fl(2/n): the sum (n - 1) u sqrt(n) |x|, times c sqrt(n), is 2(n - 1) u; its product with c and c's own rounding
// 2u each, the subtraction 1u (its result is no longer than x), and because c is not 2/n the map is off an orthogonal
// one by 2u: at most (2n + 7) u. Residuals are computed from fl(a) with 3u at most. Products of such factors: 1 %.
#pragma once

#include <algorithm>
#include <vector>

#include "bounds.h"

namespace {

constexpr int64_t SAMPLED = 256;  // rows, and latents, of which means and spreads are taken
constexpr int LARGEST_POWER = 24;
constexpr int LEAST_EXPONENT = -40, LARGEST_EXPONENT = 60;  // of a row's largest entry; others are left to other screens

template <int H, size_t... I>
inline Floats butterfly(Floats v, std::index_sequence<I...>) {
    const Floats partner = __builtin_shufflevector(v, v, int(I ^ H)...);
    const Floats signs = {(I & H ? -1.0f : 1.0f)...};
    return partner + signs * v;
}

template <int H>
inline void butterflies(float* x, int64_t n) {  // entries H apart, H < LANES
    for (int64_t i = 0; i < n; i += LANES)
        store(x + i, butterfly<H>(load<Floats>(x + i), std::make_index_sequence<LANES>{}));
}

// Unnormalised Walsh-Hadamard transform of n entries, n a power of two and at least LANES.
inline void hadamard(float* x, int64_t n) {
    for (int64_t h = n / 2; h >= LANES; h /= 2)
        for (int64_t start = 0; start < n; start += 2 * h)
            for (int64_t i = start; i < start + h; i += LANES) {
                const Floats a = load<Floats>(x + i), b = load<Floats>(x + i + h);
                store(x + i, a + b);
                store(x + i + h, a - b);
            }
    if constexpr (LANES > 8) butterflies<8>(x, n);
    if constexpr (LANES > 4) butterflies<4>(x, n);
    butterflies<2>(x, n);
    butterflies<1>(x, n);
}

// Means and spreads of columns over rows `row(i)`, i < n, that are not much longer than most.
struct Columns {
    std::vector<double> mean, spread;

    template <class Row>
    Columns(int64_t n, int64_t width, Row row) : mean(size_t(width), 0.0), spread(size_t(width), 0.0) {
        std::vector<double> squares;
        for (int64_t i = 0; i < n; i++) {
            const float* x = row(i);
            double total = 0;
            for (int64_t c = 0; c < width; c++) total += double(x[c]) * x[c];
            squares.push_back(std::isfinite(total) ? total : INFINITY);
        }
        std::vector<double> sorted(squares);
        std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.end());
        const double longest = 16 * sorted[size_t(n / 2)];
        int64_t used = 0;
        for (int64_t i = 0; i < n; i++) {
            if (!(squares[size_t(i)] <= longest) || std::isinf(squares[size_t(i)])) continue;
            const float* x = row(i);
            used++;
            for (int64_t c = 0; c < width; c++) {
                mean[size_t(c)] += x[c];
                spread[size_t(c)] += double(x[c]) * x[c];
            }
        }
        double all = 0;
        for (size_t c = 0; c < size_t(width); c++) {
            mean[c] = used ? mean[c] / double(used) : 0;
            spread[c] = used ? std::sqrt(std::max(0.0, spread[c] / double(used) - mean[c] * mean[c])) : 0;
            all += spread[c] * spread[c];
        }
        const double least = 1e-3 * std::sqrt(all / double(width));
        for (double& s : spread) s = std::max(s, least);
    }
};

class Transform {
  public:
    Transform(Arena& arena, int64_t width, bool rotate) : width(width), rotate(rotate) {
        padded = round_up(width, 64);
        block = 64;
        for (int64_t larger : {128, 256})
            if (rotate && double(round_up(width, larger)) <= 1.07 * double(round_up(width, 64))) block = larger;
        if (rotate) padded = round_up(width, block);
        for (float** array : {&mean_x, &mean_W, &scale_x, &scale_W}) *array = arena.take<float>(padded);
    }

    // Choose means and scales from samples.
    void choose(const Columns& x, const Columns& W) {
        std::vector<double> powers, sorted;
        for (int64_t c = 0; c < width; c++) {
            const double power = 0.5 * std::log2(x.spread[size_t(c)] / W.spread[size_t(c)]);
            powers.push_back(std::isfinite(power) ? power : 0);
        }
        sorted = powers;
        std::nth_element(sorted.begin(), sorted.begin() + width / 2, sorted.end());
        const double middle = sorted[size_t(width / 2)];
        uint32_t random = 12345;
        double squares = 0;
        mean_W_norm = mean_x_norm = 0;
        for (int64_t c = 0; c < padded; c++) {
            const bool inside = c < width;
            mean_x[c] = inside ? float(x.mean[size_t(c)]) : 0;
            mean_W[c] = inside ? float(W.mean[size_t(c)]) : 0;
            squares += double(mean_W[c]) * mean_W[c];
            mean_x_norm += double(mean_x[c]) * mean_x[c];
            const double power = inside ? std::clamp(std::round(powers[size_t(c)] - middle), -double(LARGEST_POWER),
                                                     double(LARGEST_POWER)) : 0;
            random = random * 1664525u + 1013904223u;
            const double sign = rotate && random >> 31 ? -1 : 1;
            scale_x[c] = float(std::ldexp(sign, -int(power)));
            scale_W[c] = float(std::ldexp(sign, int(power)));
        }
        mean_W_norm = std::sqrt(squares);
        mean_x_norm = std::sqrt(mean_x_norm);
    }

    double gain() const { return rotate ? double(block) : 1; }  // g in bounds.h

    double eta() const {
        const double n = double(padded / block), levels = rotate ? std::log2(double(block)) : 0;
        return (4 + levels + (rotate && n > 1 ? 2 * n + 7 : 0)) * UNIT * 1.01;
    }

    // Write 2^-exponent times the transformed row; false if the row is out of range, or not finite.
    bool apply(const float* row, const float* mean, const float* scale, float* out, int& exponent) const {
        int32_t largest = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t c = 0; c < width; c++) {
            const float z = row[c] - mean[c];
            int32_t bits;
            std::memcpy(&bits, &z, sizeof bits);
            bits &= 0x7fffffff;
            largest = largest > bits ? largest : bits;
            out[c] = z;
        }
        exponent = largest ? (largest >> 23) - 127 : 0;
        if (exponent < LEAST_EXPONENT || exponent > LARGEST_EXPONENT) return false;
        const float factor = as_float(uint32_t(127 - exponent) << 23);
        for (int64_t c = 0; c < width; c++) out[c] *= scale[c] * factor;
        for (int64_t c = width; c < padded; c++) out[c] = 0;
        if (rotate) {
            mix(out);
            for (int64_t start = 0; start < padded; start += block) hadamard(out + start, block);
        }
        return true;
    }

    int64_t width, padded, block;
    bool rotate;
    float *mean_x, *mean_W, *scale_x, *scale_W;
    double mean_W_norm = 0, mean_x_norm = 0;

  private:
    void mix(float* x) const {
        const int64_t n = padded / block;
        if (n == 1) return;
        const float c = 2.0f / float(n);
        for (int64_t i = 0; i < block; i += LANES) {
            Floats sum = load<Floats>(x + i);
            for (int64_t b = 1; b < n; b++) sum += load<Floats>(x + b * block + i);
            sum *= spread(c);
            for (int64_t b = 0; b < n; b++) store(x + b * block + i, load<Floats>(x + b * block + i) - sum);
        }
    }
};

}  // namespace
