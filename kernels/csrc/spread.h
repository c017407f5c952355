// How widely the scores of a batch are spread beside its norms: what a screen's error is to be held against.
#pragma once

#include "problem.h"
#include "transform.h"

namespace {

// Choose the means and scales of a transform from samples of the rows to do and of the latents.
inline void choose_from_samples(const Problem& problem, Transform& t, float* buffer) {
    const int64_t n_rows = std::min(problem.n_todo, SAMPLED), n_latents = std::min(problem.latents, SAMPLED);
    const Columns x(n_rows, problem.width,
                    [&](int64_t i) { return problem.row(problem.todo[i * problem.n_todo / n_rows]); });
    const Columns W(n_latents, problem.width,
                    [&](int64_t i) { return problem.W.row(i * problem.latents / n_latents, buffer); });
    t.choose(x, W);
}

// The standard deviation of a row's scores in units of |row| |latent| / sqrt(width), mean of a few rows: 1 for Gaussian
// numbers, more where rows and latents lie in the same directions. Rotations change neither.
class Spread {
  public:
    Spread(const Problem& problem, Arena& arena) : problem(problem), t(arena, problem.width, false) {
        rows = arena.take<float>(ROWS * t.padded);
        latent = arena.take<float>(t.padded + problem.width);
    }

    void run(const Team& team) {
        if (team.id) return;
        choose_from_samples(problem, t, latent);
        struct Sums {
            double norm, once, twice;
        } sums[ROWS];
        int n = 0;
        for (int64_t i = 0; i < std::min<int64_t>(ROWS, problem.n_todo); i++) {
            float* const a = rows + n * t.padded;
            int exponent;
            if (!t.apply(problem.row(problem.todo[i * problem.n_todo / ROWS]), t.mean_x, t.scale_x, a, exponent)) continue;
            const double norm = std::sqrt(wide_dot(a, a, t.padded));
            if (norm > 0) sums[n++] = {norm, 0, 0};
        }
        const int64_t n_latents = std::min(problem.latents, SAMPLED);
        double squares = 0, used = 0;
        for (int64_t i = 0; i < n_latents; i++) {
            int exponent;
            const float* const w = problem.W.row(i * problem.latents / n_latents, latent + t.padded);
            if (!t.apply(w, t.mean_W, t.scale_W, latent, exponent)) continue;
            const double unit = std::ldexp(1.0, exponent);
            used++;
            squares += wide_dot(latent, latent, t.padded) * unit * unit;
            for (int r = 0; r < n; r++) {
                const double score = wide_dot(rows + r * t.padded, latent, t.padded) * unit;
                sums[r].once += score;
                sums[r].twice += score * score;
            }
        }
        if (n == 0 || !(squares > 0)) return;
        const double length = std::sqrt(squares / used);
        double total = 0;
        for (int r = 0; r < n; r++) {
            const double mean = sums[r].once / used;
            total += std::sqrt(std::max(0.0, sums[r].twice / used - mean * mean)) / (sums[r].norm * length);
        }
        spread = total / n * std::sqrt(double(problem.width));
    }

    double spread = 1;

  private:
    static constexpr int64_t ROWS = 32;

    const Problem& problem;
    Transform t;
    float *rows, *latent;
};

}  // namespace
