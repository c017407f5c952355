// The bfloat16 code of rows and latents, and its products by vdpbf16ps: two products of bfloat16 numbers, added to a
// float32, in every lane.
//
// A bfloat16 number keeps 8 digits of a float32 and all of its exponent. So every entry is rounded by its own size, one
// large entry spoils nothing, and nothing is rotated (gain 1; bounds.h). What is lost is some 0.0015 of a Gaussian
// row's norm, a fifth of what int8 loses: few enough candidates for the exact computation to take at once.
//
// What the instruction computes. It rounds to nearest, ties to even, takes subnormal numbers for zero and gives zero for
// subnormal results, whatever MXCSR says. A product of two bfloat16 numbers has 16 digits, so it is exact, and two are
// added to the sum with two roundings (Intel, AMD: one after the other; a processor that adds the products first, or
// rounds less, is covered as well). Hence, in the words of bounds.h, part 3:
//
// - Rounding. A sum over BF16_DEPTH columns is at most BF16_DEPTH roundings deep, and joining n such sums takes n more
//   (float32 additions): gamma(BF16_DEPTH + n) |A| |W'|. Scales are powers of two, which round nothing.
// - Flushing, inputs. Entries that would be subnormal are coded as zero, so the residual, which is measured, has them.
// - Flushing, sums. Each of the at most `depth` operations may lose 2^-126, and what follows enlarges that by less than
//   1 + gamma: at most 2^-125 depth. Where A and W' are not zero (else all sums are exact) both have an entry of at
//   least 2^-LARGEST_POWER, since the largest one is scaled to [1, 2) and then balanced: |A| |W'| >= 2^-48, and for
//   depth <= 2^15 the loss is at most 2^-62 |A| |W'|, less than u |A| |W'|: 8u becomes 9u.
// - Squares of residuals that are too small for float32: each is off by at most 2^-126, which is added.
#pragma once

#include "low.h"
#include "products.h"

namespace {

constexpr int64_t WIDEST_BF16 = 32768;
constexpr int64_t BF16_DEPTH = 192;  // columns summed at once: a panel of latents stays in the first-level cache
static_assert(LARGEST_POWER <= 24, "the bound on what is flushed rests on it");

struct Bf16Vector {
    using Type = __m512;
    static constexpr int MR = 6, NV = 4;  // 24 accumulators of 32 registers
    static Type spread(int32_t two) { return _mm512_castsi512_ps(_mm512_set1_epi32(two)); }
    static void add_products(Type& sum, Type latents, Type row) {  // in assembly as in vnni.h
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(latents), "v"(row));
    }
};

struct Bf16Row {
    double residual;  // norm of what is lost
    double kept;      // norm of what is kept
    double norm;      // of the row itself
};

// Round a row of normal or zero bfloat16 numbers from float32; n is a multiple of 2.
inline Bf16Row to_bf16(const float* x, int64_t n, uint16_t* out) {
    float lost = 0, kept = 0, all = 0;
#pragma omp simd reduction(+ : lost, kept, all)
    for (int64_t c = 0; c < n; c++) {
        uint32_t bits;
        std::memcpy(&bits, x + c, sizeof bits);
        bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;  // no infinities: entries are below 2^28
        bits = (bits & 0x7f800000u) ? bits : 0;
        float number;
        std::memcpy(&number, &bits, sizeof number);
        const float rest = x[c] - number;  // exact
        lost += rest * rest;
        kept += number * number;
        all += x[c] * x[c];
        out[c] = uint16_t(bits >> 16);
    }
    const float unseen = float(n) * 0x1p-126f;
    return {norm_of(lost + unseen, n), kept > 0 ? norm_of(kept + unseen, n) : 0, norm_of(all + unseen, n)};
}

// out[r, j] (+)= sum of products, and in the end times row_scale[r] latent_scale[j], plus bias[j].
struct Bf16Kernel : Products<Bf16Vector> {
    struct End {
        const float *row_scale, *latent_scale, *bias;
    };

    APART static void product(const uint16_t* w, const uint16_t* x, int64_t depth, bool first, const End* end, float* out,
                              int64_t stride) {
        Products products;
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < Bf16Vector::NV; v++) products.sums[r][v] = Type{};
        products.add(w, x, depth / 2);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < Bf16Vector::NV; v++) {
                float* const to = out + r * stride + LANES * v;
                Floats sum = (Floats)products.sums[r][v];
                if (!first) sum += load<Floats>(to);
                if (end)
                    sum = sum * spread(end->row_scale[r]) * load<Floats>(end->latent_scale + LANES * v) +
                          load<Floats>(end->bias + LANES * v);
                store(to, sum);
            }
    }
};

class Bf16Code {
  public:
    static constexpr bool ROTATE = false, REFINES = false;
    using Kernel = Bf16Kernel;
    static constexpr int64_t MR = Kernel::MR, NR = Kernel::NR;  // rows and latents of one product

    Bf16Code(Arena& arena, const Transform& t, const CodedLatents& latents, int64_t) : depth(t.padded) {
        for (float** array : {&scale, &residual}) *array = arena.take<float>(latents.padded);
        numbers = arena.take<uint16_t>(latents.padded * depth);
    }

    // Code a transformed latent, of which 2^exponent times is meant.
    APART void latent(int64_t j, const float* w, int exponent, const Transform& t, CodedLatents& latents) {
        const double unit = std::ldexp(1.0, exponent), eta = t.eta();
        const double roundings = double(BF16_DEPTH + (depth + BF16_DEPTH - 1) / BF16_DEPTH);
        const Bf16Row q = lay(w, depth, numbers + j / NR * NR * depth + j % NR * 2, NR);
        const double norm = q.norm * (1 + 2 * eta);
        scale[j] = float(unit);
        latents.norm[j] = bound_part(norm * unit);
        residual[j] = bound_part((q.residual + eta * norm + (gamma(roundings) + 9 * UNIT) * q.kept) * unit);
    }

    class Block {
      public:
        Block(Arena& arena, const Transform& t, int64_t rows) : depth(t.padded) {
            numbers = arena.take<uint16_t>(rows * depth);
            scale = arena.take<float>(rows);
            bounds = arena.take<RowBound>(rows);
        }

        // Code a transformed row, of which `unit` times is meant in the scores.
        APART void row(int64_t i, const float* a, double unit, double D, const Transform& t) {
            const Bf16Row q = lay(a, depth, numbers + i / MR * MR * depth + i % MR * 2, MR);
            const double inherent = (t.eta() + UNIT) * q.norm * (1 + 2 * t.eta());
            scale[i] = float(unit);
            bounds[i] = {bound_part((q.residual + inherent) * unit), bound_part(q.kept * unit), bound_part(D)};
        }

        // Rows up to the next multiple of MR are computed too, and not looked at.
        void end(int64_t n) { std::fill(scale + n, scale + round_up(n, MR), 0.0f); }

        RowBound bound(int64_t i) const { return bounds[i]; }

        int64_t depth;
        uint16_t* numbers;
        float* scale;
        RowBound* bounds;
    };

    // Scores of a block's n rows on a chunk of latents.
    void scores(const Block& block, int64_t n, int64_t first, const CodedLatents& latents, float* tile) const {
        for (int64_t j = first; j < first + CHUNK; j += NR)
            for (int64_t c = 0; c < depth; c += BF16_DEPTH) {
                const int64_t here = std::min(BF16_DEPTH, depth - c);
                const bool last = c + here == depth;
                for (int64_t i = 0; i < n; i += MR) {
                    const Kernel::End end{block.scale + i, scale + j, latents.bias + j};
                    Kernel::product(numbers + j * depth + c * NR, block.numbers + i * depth + c * MR, here, c == 0,
                                    last ? &end : nullptr, tile + i * CHUNK + (j - first), CHUNK);
                }
            }
    }

    float* residual;  // for Candidates::look

  private:
    // Round a row, and lay pairs of its numbers `group` pairs apart.
    static Bf16Row lay(const float* row, int64_t depth, uint16_t* to, int64_t group) {
        alignas(64) uint16_t coded[WIDEST_BF16];
        const Bf16Row q = to_bf16(row, depth, coded);
        for (int64_t c = 0; c < depth; c += 2) std::memcpy(to + c * group, coded + c, 4);
        return q;
    }

    int64_t depth;
    float* scale;
    uint16_t* numbers;
};

}  // namespace
