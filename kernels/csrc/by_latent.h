// A counting sort of (row, latent) pairs by latent, rows in order, and its division among threads.
#pragma once

#include <algorithm>

#include "numbers.h"
#include "team.h"

namespace {

// The latents of one row, and the number of its first pair.
template <class Index>
struct Span {
    const Index* latents;
    int64_t n, first;
};

class ByLatent {
  public:
    ByLatent(Arena& arena, int64_t latents, int64_t most) : n_latents(latents) {
        starts = arena.take<int64_t>(latents + 1);
        pairs = arena.take<int64_t>(most);
    }

    // `span(r)` gives the latents of row r. Each thread counts and fills in its own range of latents.
    template <class Spans>
    void sort(const Team& team, int64_t rows, Spans span) {
        const int64_t first = team.first(n_latents), last = team.last(n_latents);
        std::fill(starts + first, starts + last, 0);
        for (int64_t r = 0; r < rows; r++) {
            const auto row = span(r);
            for (int64_t i = 0; i < row.n; i++)
                if (row.latents[i] >= first && row.latents[i] < last) starts[row.latents[i]]++;
        }
        team.wait();
        if (team.id == 0) {
            int64_t total = 0;
            for (int64_t j = 0; j <= n_latents; j++) {
                const int64_t here = j < n_latents ? starts[j] : 0;
                starts[j] = total;
                total += here;
            }
        }
        team.wait();
        for (int64_t r = 0; r < rows; r++) {
            const auto row = span(r);
            for (int64_t i = 0; i < row.n; i++)
                if (row.latents[i] >= first && row.latents[i] < last) pairs[starts[row.latents[i]]++] = row.first + i;
        }
        team.wait();  // filling has moved each start to the end of its latent's pairs
    }

    // Call work(latent, pairs, n) for each of this member's latents. A thread gets a share of the cost, which is
    // 1 for a pair and `for_itself` for a latent; with 0, latents without pairs are left out.
    template <class Work>
    void each(const Team& team, int64_t for_itself, Work work) const {
        const int64_t whole = n_pairs() + for_itself * n_latents;
        const int64_t from = whole * team.id / team.size, to = whole * (team.id + 1) / team.size;
        // A latent belongs to the share in which its cost begins.
        const auto cost_before = [&](int64_t j) { return begin(j) + for_itself * j; };
        int64_t low = 0, high = n_latents;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (cost_before(middle) < from)
                low = middle + 1;
            else
                high = middle;
        }
        for (int64_t j = low; j < n_latents && cost_before(j) < to; j++)
            if (for_itself || starts[j] > begin(j)) work(j, pairs + begin(j), starts[j] - begin(j));
    }

    int64_t n_pairs() const { return n_latents ? starts[n_latents - 1] : 0; }

  private:
    int64_t begin(int64_t j) const { return j ? starts[j - 1] : 0; }

    int64_t n_latents;
    int64_t *starts, *pairs;  // after sort, pairs of latent j end at starts[j]
};

}  // namespace
