// The int8 code of rows and latents, with an int16 code for a second look at what int8 lets through.
//
// A row is whole numbers of -127..127 times one scale; a latent likewise, stored plus 128 as unsigned bytes, which is
// what processors multiply with signed ones (the sums then start at -128 times the row's sum). Candidates of int8 are
// rescored with whole numbers of int16, scaled so that a vector's norm stays below 46340: then no sum of products, nor
// any part of one, exceeds 2^31, by Cauchy and Schwarz.
#pragma once

#include "low.h"

namespace {

constexpr double INT16_NORM = 46300;
constexpr int64_t WIDEST_INT8 = 32768;  // int32 sums of 128 * 127 * 3 * width stay below 2^31 up to 44 000

struct Quantised {
    float scale;
    double residual;  // norm of what is lost
    double norm;      // of what is kept
    int32_t sum;
};

// Round numbers to multiples of `scale`, to the nearest.
template <class Whole>
inline Quantised quantise(const float* x, int64_t n, double scale, Whole* out) {
    constexpr float MAGIC = 12582912.0f;  // adding and taking away 1.5 * 2^23 rounds to the nearest whole number
    const float step = float(scale), per_step = 1.0f / step;
    float lost = 0, kept = 0;
    int32_t sum = 0;
#pragma omp simd reduction(+ : lost, kept, sum)
    for (int64_t c = 0; c < n; c++) {
        const float whole = (x[c] * per_step + MAGIC) - MAGIC;
        const float rest = x[c] - whole * step;
        lost += rest * rest;
        kept += whole * whole;
        sum += int32_t(whole);
        out[c] = Whole(int32_t(whole));
    }
    return {step, norm_of(lost, n), norm_of(kept, n) * step, sum};
}

struct Size {
    float largest, squares;
};

inline Size size_of(const float* x, int64_t n) {
    float largest = 0, squares = 0;
#pragma omp simd reduction(max : largest) reduction(+ : squares)
    for (int64_t c = 0; c < n; c++) {
        const float a = std::fabs(x[c]);
        largest = a > largest ? a : largest;
        squares += a * a;
    }
    return {largest, squares};
}

inline double int8_scale(Size size) { return size.largest > 0 ? double(size.largest) / 127 : 1; }

inline double int16_scale(Size size, int64_t n) {
    const double longest = norm_of(size.squares, n), allowed = INT16_NORM - 0.5 * std::sqrt(double(n));
    const double scale = std::max(longest / allowed, double(size.largest) / 32767);
    return scale > 0 ? scale : 1;
}

// Products of a with b and with c; n is a multiple of 4 LANES.
inline void two_dots(const int16_t* a, const int16_t* b, const int16_t* c, int64_t n, int32_t& with_b, int32_t& with_c) {
    Ints b0{}, b1{}, c0{}, c1{};
    for (int64_t i = 0; i < n; i += 4 * LANES) {
        b0 = add_products(b0, a + i, b + i);
        c0 = add_products(c0, a + i, c + i);
        b1 = add_products(b1, a + i + 2 * LANES, b + i + 2 * LANES);
        c1 = add_products(c1, a + i + 2 * LANES, c + i + 2 * LANES);
    }
    with_b = total(b0 + b1);
    with_c = total(c0 + c1);
}

template <class Kernel>
class Int8Code {
  public:
    static constexpr bool ROTATE = true, REFINES = true;
    static constexpr int64_t MR = Kernel::MR, NR = Kernel::NR;  // rows and latents of one product

    Int8Code(Arena& arena, const Transform& t, const CodedLatents& latents, int64_t) : depth(t.padded) {
        for (float** array : {&scale8, &scale16, &residual, &residual16}) *array = arena.take<float>(latents.padded);
        bytes = arena.take<uint8_t>(latents.padded * depth);
        words = arena.take<int16_t>(latents.n * depth);
    }

    // Code a transformed latent, of which 2^exponent times is meant.
    APART void latent(int64_t j, const float* w, int exponent, const Transform& t, CodedLatents& latents) {
        const Size size = size_of(w, depth);
        const double unit = std::ldexp(1.0, exponent), eta = t.eta();
        const double norm = norm_of(size.squares, depth) * (1 + 2 * eta);
        alignas(64) int8_t small[WIDEST_INT8];
        const Quantised q = quantise(w, depth, int8_scale(size), small);
        uint8_t* const to = bytes + (j / NR) * NR * depth + (j % NR) * 4;
        for (int64_t c = 0; c < depth; c += 4) {
            uint32_t four;
            std::memcpy(&four, small + c, 4);
            four ^= 0x80808080u;
            std::memcpy(to + c * NR, &four, 4);
        }
        scale8[j] = float(q.scale * unit);
        latents.norm[j] = bound_part(norm * unit);
        residual[j] = bound_part((q.residual + eta * norm + 8 * UNIT * q.norm) * unit);
        if (j >= latents.n) return;
        const Quantised fine = quantise(w, depth, int16_scale(size, depth), words + j * depth);
        scale16[j] = float(fine.scale * unit);
        residual16[j] = bound_part((fine.residual + eta * norm + 8 * UNIT * fine.norm) * unit);
    }

    class Block {
      public:
        Block(Arena& arena, const Transform& t, int64_t rows) : depth(t.padded) {
            bytes = arena.take<int8_t>(rows * depth);
            words = arena.take<int16_t>(rows * depth);
            starts = arena.take<int32_t>(rows);
            for (float** array : {&scale8, &scale16}) *array = arena.take<float>(rows);
            for (RowBound** array : {&bounds8, &bounds16}) *array = arena.take<RowBound>(rows);
        }

        // Code a transformed row, of which `unit` times is meant in the scores.
        APART void row(int64_t i, const float* a, double unit, double D, const Transform& t) {
            const Size size = size_of(a, depth);
            const double norm = norm_of(size.squares, depth) * (1 + 2 * t.eta());
            alignas(64) int8_t small[WIDEST_INT8];
            const Quantised q = quantise(a, depth, int8_scale(size), small);
            int8_t* const group = bytes + i / MR * MR * depth;
            for (int64_t c = 0; c < depth; c += 4)
                std::memcpy(group + Kernel::place(i % MR, c), small + c, 4);
            starts[i] = -128 * q.sum;
            scale8[i] = float(q.scale * unit);
            const double inherent = (t.eta() + UNIT) * norm;
            bounds8[i] = {bound_part((q.residual + inherent) * unit), bound_part(q.norm * unit), bound_part(D)};
            const Quantised fine = quantise(a, depth, int16_scale(size, depth), words + i * depth);
            scale16[i] = float(fine.scale * unit);
            bounds16[i] = {bound_part((fine.residual + inherent) * unit), bound_part(fine.norm * unit), bound_part(D)};
        }

        // Rows up to the next multiple of MR are computed too, and not looked at.
        void end(int64_t n) {
            for (int64_t i = n; i < round_up(n, MR); i++) {
                starts[i] = 0;
                scale8[i] = 0;
            }
        }

        RowBound bound(int64_t i) const { return bounds8[i]; }

        int64_t depth;
        int8_t* bytes;
        int16_t* words;
        int32_t* starts;
        float *scale8, *scale16;
        RowBound *bounds8, *bounds16;
    };

    // Scores of a block's n rows on a chunk of latents.
    void scores(const Block& block, int64_t n, int64_t first, const CodedLatents& latents, float* tile) const {
        for (int64_t j = first; j < first + CHUNK; j += NR)
            for (int64_t i = 0; i < n; i += MR)
                Kernel::product(bytes + j * depth, block.bytes + i * depth, depth, block.starts + i, block.scale8 + i,
                                scale8 + j, latents.bias + j, tile + i * CHUNK + (j - first), CHUNK);
    }

    // Look at the candidates again with int16, a chunk of latents at a time, whose words then stay in the cache.
    APART void refine(const Block& block, int64_t n, Candidates& candidates, const CodedLatents& latents) {
        std::vector<int32_t> next(size_t(n), 0);
        for (int64_t end = CHUNK / 2; end < latents.padded + CHUNK / 2; end += CHUNK / 2)
            for (int64_t i = 0; i < n; i++) {
                const int32_t* const list = candidates.list(i);
                const int count = candidates.count(i);
                const int16_t* const a = block.words + i * depth;
                float* const scores = candidates.uppers(i);
                int32_t& q = next[size_t(i)];
                while (q < count && list[q] < end) {
                    const bool two = q + 1 < count && list[q + 1] < end;
                    const int64_t j = list[q], other = list[q + two];
                    int32_t dot, other_dot;
                    two_dots(a, words + j * depth, words + other * depth, depth, dot, other_dot);
                    scores[q] = float(dot) * block.scale16[i] * scale16[j] + latents.bias[j];
                    scores[q + two] = float(other_dot) * block.scale16[i] * scale16[other] + latents.bias[other];
                    q += 1 + two;
                }
            }
        for (int64_t i = 0; i < n; i++)
            candidates.refine(i, block.bounds16[i], {latents.norm, residual16, latents.extra});
    }

    float* residual;  // of int8, for Candidates::look

  private:
    int64_t depth;
    float *scale8, *scale16, *residual16;
    uint8_t* bytes;
    int16_t* words;
};

}  // namespace
