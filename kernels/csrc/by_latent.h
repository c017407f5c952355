// A counting sort of (row, latent) pairs by latent, rows in order, and its division among threads.
#pragma once

#include <algorithm>

#include "numbers.h"
#include "team.h"

namespace {

// The latents of one row, and the number of its first pair.
struct Span {
    const int32_t* latents;
    int64_t n, first;
};

class ByLatent {
  public:
    ByLatent(Arena& arena, int64_t latents, int64_t most) : n_latents(latents) {
        starts = arena.take<int64_t>(latents + 1);
        pairs = arena.take<int64_t>(most);
    }

    // `span(r)` gives the latents of row r. Each thread counts and fills in its own range of latents.
    template <class Rows>
    void sort(const Team& team, int64_t rows, Rows span) {
        const int64_t first = team.first(n_latents), last = team.last(n_latents);
        std::fill(starts + first, starts + last, 0);
        for (int64_t r = 0; r < rows; r++) {
            const Span row = span(r);
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
        // Filling moves each start to its latent's end, which is the next one's start: shifted back below.
        for (int64_t r = 0; r < rows; r++) {
            const Span row = span(r);
            for (int64_t i = 0; i < row.n; i++)
                if (row.latents[i] >= first && row.latents[i] < last) pairs[starts[row.latents[i]]++] = row.first + i;
        }
        team.wait();
    }

    // Call work(latent, pairs, n) for this member's latents that have pairs; threads get equal numbers of pairs.
    template <class Work>
    void each(const Team& team, Work work) const {
        const int64_t total = n_pairs();
        // A latent belongs to the thread in whose share its first pair lies, whatever its number of pairs.
        const int64_t share = total * team.id / team.size, end = total * (team.id + 1) / team.size;
        int64_t j = share ? std::lower_bound(starts, starts + n_latents, share) - starts + 1 : 0;
        for (; j < n_latents; j++) {
            const int64_t begin = j ? starts[j - 1] : 0;
            if (begin >= end) break;
            if (starts[j] > begin) work(j, pairs + begin, starts[j] - begin);
        }
    }

    int64_t n_pairs() const { return n_latents ? starts[n_latents - 1] : 0; }

  private:
    int64_t n_latents;
    int64_t *starts, *pairs;  // after sort: pairs of latent j end at starts[j]
};

}  // namespace
