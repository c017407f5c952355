// Every score of a few rows, computed exactly: for small batches, and for rows that no screen can settle.
#pragma once

#include <vector>

#include "problem.h"

namespace {

constexpr int64_t EXACT_ROWS = 16;  // at a time; their float64 copies stay in the cache while latents go by

class ExactRows {
  public:
    ExactRows(Problem& problem, Arena& arena, int threads) : problem(problem), padded(round_up(problem.width, SUMS)) {
        x = arena.take<double>(EXACT_ROWS * padded);
        for (int i = 0; i < threads; i++) {
            latents.push_back(arena.take<double>(padded));
            wide.push_back(arena.take<float>(problem.width));
            keys.push_back(arena.take<uint64_t>(EXACT_ROWS * Best::room(problem.k)));
            counts.push_back(arena.take<int64_t>(EXACT_ROWS));
        }
    }

    void run(const Team& team) {
        for (int64_t start = 0; start < problem.n_todo; start += EXACT_ROWS) {
            const int64_t n = std::min(EXACT_ROWS, problem.n_todo - start);
            for (int64_t i = team.first(n); i < team.last(n); i++)
                to_doubles(problem.row(problem.todo[start + i]), problem.width, x + i * padded);
            team.wait();
            look(team, n);
            team.wait();
            for (int64_t i = team.first(n); i < team.last(n); i++) merge(problem.todo[start + i], i, team.size);
            team.wait();
        }
    }

  private:
    // Offer this member's share of the latents to each row.
    void look(const Team& team, int64_t n) {
        std::vector<Best> best;
        uint64_t* const mine = keys[size_t(team.id)];
        for (int64_t i = 0; i < n; i++) best.emplace_back(mine + i * Best::room(problem.k), problem.k);
        double* const w = latents[size_t(team.id)];
        for (int64_t j = team.first(problem.latents); j < team.last(problem.latents); j++) {
            to_doubles(problem.W.row(j, wide[size_t(team.id)]), problem.width, w);
            const float b = problem.b.at(j);
            for (int64_t i = 0; i < n; i++)
                best[size_t(i)].offer(ranking_key(exact_score(x + i * padded, w, b, problem.width), j));
        }
        for (int64_t i = 0; i < n; i++) {
            best[size_t(i)].shrink();
            counts[size_t(team.id)][i] = best[size_t(i)].n;
        }
    }

    void merge(int64_t r, int64_t i, int size) {
        std::vector<uint64_t> all;
        for (int member = 0; member < size; member++) {
            const uint64_t* const theirs = keys[size_t(member)] + i * Best::room(problem.k);
            all.insert(all.end(), theirs, theirs + counts[size_t(member)][i]);
        }
        std::partial_sort(all.begin(), all.begin() + problem.k, all.end());
        std::vector<double> w(size_t(padded), 0.0);
        std::vector<float> buffer(size_t(problem.width), 0.0f);
        for (int64_t place = 0; place < problem.k; place++) {
            const int64_t j = latent_of(all[size_t(place)]);
            const float score = score_of(all[size_t(place)]);
            problem.write(r, place, score, j);
            if (score != -INFINITY) continue;
            to_doubles(problem.W.row(j, buffer.data()), problem.width, w.data());  // minus infinity, or NaN?
            problem.write(r, place, exact_score(x + i * padded, w.data(), problem.b.at(j), problem.width), j);
        }
        problem.found[r] = DONE;
    }

    Problem& problem;
    int64_t padded;
    double* x;
    std::vector<double*> latents;
    std::vector<float*> wide;
    std::vector<uint64_t*> keys;
    std::vector<int64_t*> counts;
};

}  // namespace
