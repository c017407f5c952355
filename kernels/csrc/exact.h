// The scores that are returned, and their order: one computation, the same bits on every machine.
//
// Products of two float32 numbers are exact in float64. They are added in float64, in SUMS interleaved sums (product c
// goes to sum c mod SUMS, in ascending c; rows are continued with zeros to a multiple of SUMS), which are folded in
// halves: sum l takes sum l + 16, then l + 8, l + 4, l + 2, l + 1. The bias is added in float64, and the result is
// rounded to float32 once (a zero is +0). As products are exact, it does not matter whether the processor multiplies and adds in one
// operation; and nothing can overflow or be lost to zero on the way. workbench.kernels.exact says the same in PyTorch.
//
// Order: by descending score, equal scores by ascending latent. NaN counts as minus infinity.
#pragma once

#include <algorithm>
#include <cmath>

#include "numbers.h"

namespace {

constexpr int SUMS = 32;

// |float64 sum - real sum| <= sum_error(width) * (sum of |products| + |bias|): fewer than width + 8 additions.
inline double sum_error(int64_t width) { return double(width + 8 + SUMS) * UNIT_DOUBLE * 1.01; }

// Write a row as float64, continued with zeros to a multiple of SUMS.
inline void to_doubles(const float* row, int64_t width, double* out) {
    for (int64_t c = 0; c < width; c++) out[c] = row[c];
    for (int64_t c = width; c < round_up(width, SUMS); c++) out[c] = 0;
}

class ExactSum {
  public:
    template <class From>
    inline void add(const From* x, const double* w) {  // SUMS numbers of each
        for (int i = 0; i < N; i++) {
            if constexpr (sizeof(From) == 4)
                sums[i] += widen(x + DOUBLES * i) * load<Doubles>(w + DOUBLES * i);
            else
                sums[i] += load<Doubles>(x + DOUBLES * i) * load<Doubles>(w + DOUBLES * i);
        }
    }

    inline double total() {
        for (int n = N / 2; n; n /= 2)
            for (int i = 0; i < n; i++) sums[i] += sums[i + n];
        double lanes[DOUBLES];
        store(lanes, sums[0]);
        for (int n = DOUBLES / 2; n; n /= 2)
            for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
        return lanes[0];
    }

  private:
    static constexpr int N = SUMS / DOUBLES;
    Doubles sums[N] = {};
};

inline float exact_score(const double* x, const double* w, float b, int64_t width) {
    ExactSum sum;
    for (int64_t c = 0; c < width; c += SUMS) sum.add(x + c, w + c);
    return float(sum.total() + double(b)) + 0.0f;
}

// The same for a row that is still float32 and has no zeros after its end.
inline float exact_score(const float* x, const double* w, float b, int64_t width) {
    ExactSum sum;
    const int64_t whole = width / SUMS * SUMS;
    for (int64_t c = 0; c < whole; c += SUMS) sum.add(x + c, w + c);
    if (whole < width) {
        float rest[SUMS] = {};
        std::memcpy(rest, x + whole, sizeof(float) * size_t(width - whole));
        sum.add(rest, w + whole);
    }
    return float(sum.total() + double(b)) + 0.0f;
}

// A pair (score, latent) as one number: the best pair is the smallest.
inline uint64_t ranking_key(float score, int64_t latent) {
    if (std::isnan(score)) score = -INFINITY;
    const uint32_t bits = bits_of(score);
    const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(~ascending) << 32 | uint32_t(latent);
}

inline int64_t latent_of(uint64_t key) { return int64_t(key & 0xffffffffu); }

inline float score_of(uint64_t key) {  // minus infinity for NaN
    const uint32_t ascending = ~uint32_t(key >> 32);
    return as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

// The k best of a stream of pairs.
class Best {
  public:
    static int64_t room(int64_t k) { return 2 * k + 16; }

    Best(uint64_t* keys, int64_t k) : keys(keys), k(k) {}

    void offer(uint64_t key) {
        if (key >= bar) return;
        keys[n++] = key;
        if (n == room(k)) shrink();
    }

    // Leave the k best, in no order.
    void shrink() {
        if (n < k) return;
        std::nth_element(keys, keys + k - 1, keys + n);
        n = k;
        bar = keys[k - 1];
    }

    uint64_t* keys;
    int64_t k, n = 0;

  private:
    uint64_t bar = UINT64_MAX;  // nothing from here on is among the k best
};

}  // namespace
