// From survivors to results: the exact score of every pair that a screen left, and each row's k best of them.
#pragma once

#include <vector>

#include "by_latent.h"
#include "problem.h"

namespace {

// Pairs are computed in the order of latents: each row of W is then read once, and rows of x come from the cache.
class Rescore {
  public:
    Rescore(Problem& problem, Arena& arena, int threads)
        : problem(problem), order(arena, problem.latents, problem.rows * problem.room) {
        scores = arena.take<float>(problem.rows * problem.room);
        padded = round_up(problem.width, SUMS);
        for (int i = 0; i < threads; i++) {
            latents.push_back(arena.take<double>(padded));
            wide.push_back(arena.take<float>(problem.width));
            keys.push_back(arena.take<uint64_t>(problem.room));
        }
    }

    void run(const Team& team) {
        order.sort(team, problem.rows, [&](int64_t r) {
            const int64_t n = std::max(problem.found[r], 0);
            return Span<int32_t>{problem.survivors + r * problem.room, n, r * problem.room};
        });
        double* const w = latents[size_t(team.id)];
        order.each(team, 0, [&](int64_t j, const int64_t* pairs, int64_t n) {
            to_doubles(problem.W.row(j, wide[size_t(team.id)]), problem.width, w);
            const float b = problem.b.at(j);
            for (int64_t i = 0; i < n; i++) {
                if (i + 1 < n) {
                    const float* const next = problem.row(pairs[i + 1] / problem.room);
                    for (int64_t c = 0; c < problem.width; c += 16) prefetch(next + c);
                }
                scores[pairs[i]] = exact_score(problem.row(pairs[i] / problem.room), w, b, problem.width);
            }
        });
        team.wait();
        for (int64_t r = team.first(problem.rows); r < team.last(problem.rows); r++)
            if (problem.found[r] >= 0) choose(r, keys[size_t(team.id)]);
    }

    int64_t n_pairs() const { return order.n_pairs(); }

  private:
    void choose(int64_t r, uint64_t* key) {
        const int64_t n = problem.found[r], start = r * problem.room;
        for (int64_t i = 0; i < n; i++) key[i] = ranking_key(scores[start + i], i);  // survivors ascend
        std::partial_sort(key, key + problem.k, key + n);
        for (int64_t i = 0; i < problem.k; i++) {
            const int64_t place = start + latent_of(key[i]);
            problem.write(r, i, scores[place], problem.survivors[place]);
        }
    }

    Problem& problem;
    ByLatent order;
    float* scores;
    int64_t padded;
    std::vector<double*> latents;
    std::vector<float*> wide;
    std::vector<uint64_t*> keys;
};

}  // namespace
