// Adam on matrices with a row per latent, without ever forming their gradients as matrices.
//
// Pairs of all factors are sorted by latent; then one pass over the latents sums each row's gradient in the cache, and
// uses it at once. Every row's moments decay in each step, as Adam defines, also where the gradient is zero. Sums run
// in the order of factors and rows, whatever the number of threads.
#pragma once

#include <vector>

#include "by_latent.h"
#include "codes.h"
#include "interface.h"
#include "rows.h"

namespace {

// Rows and pairs of all factors, numbered one factor after another.
class Factors {
  public:
    explicit Factors(const Update& call) : first_rows{0}, first_pairs{0} {
        for (int64_t f = 0; f < call.n_factors; f++) {
            all.push_back(call.factors[f]);
            first_rows.push_back(rows() + all.back().n);
            first_pairs.push_back(pairs() + all.back().n * all.back().k);
        }
    }

    int64_t rows() const { return first_rows.back(); }
    int64_t pairs() const { return first_pairs.back(); }

    Span<int64_t> span(int64_t r) const {
        const size_t f = holder(first_rows, r);
        const int64_t first = (r - first_rows[f]) * all[f].k;
        return {all[f].indices + first, all[f].k, first_pairs[f] + first};
    }

    void find(int64_t pair, int64_t width, float& value, const float*& row) const {
        const size_t f = holder(first_pairs, pair);
        const int64_t p = pair - first_pairs[f];
        value = all[f].values[p];
        row = all[f].rows + p / all[f].k * width;
    }

  private:
    static size_t holder(const std::vector<int64_t>& firsts, int64_t number) {
        size_t f = 0;
        while (firsts[f + 1] <= number) f++;
        return f;
    }

    std::vector<Factor> all;
    std::vector<int64_t> first_rows, first_pairs;
};

class Adam {
  public:
    explicit Adam(const Update& call) : call(call) {}

    void step(int64_t n, const float* gradient, float* weight, float* first, float* second) const {
        const float beta2 = call.beta2, left1 = 1 - call.beta1, left2 = 1 - call.beta2;
        const float size = call.step_size, root = call.root, epsilon = call.epsilon;
#pragma omp simd
        for (int64_t c = 0; c < n; c++) {
            const float g = gradient[c];
            const float m = first[c] + left1 * (g - first[c]);
            const float v = beta2 * second[c] + left2 * g * g;
            first[c] = m;
            second[c] = v;
            weight[c] -= size * m / (std::sqrt(v) / root + epsilon);
        }
    }

  private:
    const Update& call;
};

class Step {
  public:
    Step(const Update& call, Arena& arena) : call(call), factors(call), order(arena, call.latents, factors.pairs()) {}

    void run(const Team& team) {
        order.sort(team, factors.rows(), [&](int64_t r) { return factors.span(r); });
        std::vector<float> gradient(size_t(call.width) + LANES), values;
        std::vector<const float*> rows;
        const Adam adam(call);
        order.each(team, PER_LATENT, [&](int64_t j, const int64_t* pairs, int64_t n) {
            values.resize(size_t(n));
            rows.resize(size_t(n));
            float sum = 0;
            for (size_t i = 0; i < size_t(n); i++) {
                factors.find(pairs[i], call.width, values[i], rows[i]);
                sum += values[i];
            }
            sum_rows(
                n, call.width, nullptr, [&](int64_t i) { return values[size_t(i)]; },
                [&](int64_t i) { return rows[size_t(i)]; }, gradient.data());
            move(adam, j, gradient.data());
            if (call.bias) adam.step(1, &sum, call.bias + j, call.bias_first + j, call.bias_second + j);
        });
    }

  private:
    void move(const Adam& adam, int64_t j, float* gradient) const {
        float* const w = call.W + j * call.width;
        if (call.tangent) {
            const float along = dot(gradient, w, call.width);
            for (int64_t c = 0; c < call.width; c++) gradient[c] -= along * w[c];
        }
        adam.step(call.width, gradient, w, call.W_first + j * call.width, call.W_second + j * call.width);
        if (call.unit_rows) {
            const float length = std::max(std::sqrt(dot(w, w, call.width)), 1e-12f);
            for (int64_t c = 0; c < call.width; c++) w[c] /= length;
        }
    }

    const Update& call;
    Factors factors;
    ByLatent order;
};

inline int64_t update_bytes(const Update& call) {
    Arena arena(nullptr);
    Step step(call, arena);
    return arena.used;
}

inline void update(const Update& call) {
    Arena arena(call.workspace);
    Step step(call, arena);
    in_parallel(call.threads, [&](const Team& team) { step.run(team); });
}

}  // namespace
