// Which latents can still be among a row's k best: those whose upper bound reaches the row's bar.
//
// A screen gives approximate scores s[r, j] and an error bound e[r, j], with which (bounds.h)
//
//     s - e  <=  exact score - (a number of row r alone)  <=  s + e.
//
// The *bar* of a row is a number that the lower bounds of at least k of its latents reach. A latent whose upper bound
// is below the bar has an exact score below that of those k, so it is not among the k best, ties included. Any such
// number will do, so the k-th largest lower bound is only approximated (by bisection, from below), and lower bounds may
// be forgotten at will: both only let more latents through.
#pragma once

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace {

// Every latent's upper bound lies above it, but not that of the latents that pad a chunk, whose scores are -infinity.
constexpr float LOWEST = -3.4028234e38f;

// e[r, j] = A[r] norm[j] + B[r] residual[j] + extra[j] + D[r]; all at least 0.
struct RowBound {
    float A, B, D;
};
struct LatentBounds {
    const float *norm, *residual, *extra;
};

// At least k of the n numbers are at or above what is returned: one of them, the k-th largest or nearly so. Minus
// infinity if n < k.
inline float reached_by(const float* numbers, int n, int k) {
    if (n < k) return -INFINITY;
    float low = INFINITY, high = -INFINITY;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int i = 0; i < n; i++) {
        low = numbers[i] < low ? numbers[i] : low;
        high = numbers[i] > high ? numbers[i] : high;
    }
    for (int step = 0; step < 24; step++) {
        const float middle = 0.5f * low + 0.5f * high;
        if (!(middle > low && middle < high)) break;
        int reach = 0;
#pragma omp simd reduction(+ : reach)
        for (int i = 0; i < n; i++) reach += numbers[i] >= middle;
        if (reach >= k)
            low = middle;
        else
            high = middle;
        if (reach == k) break;
    }
    float least = high;
#pragma omp simd reduction(min : least)
    for (int i = 0; i < n; i++) least = numbers[i] >= low && numbers[i] < least ? numbers[i] : least;
    return least;
}

// Lists of the candidates of a few rows, in ascending order of latents.
class Candidates {
  public:
    // Memory for `rows` rows, for a screen that expects up to `expected` candidates in a row.
    Candidates(Arena& arena, int64_t rows, int64_t k, int64_t expected, int64_t chunk)
        : k(int(k)),
          room(int(round_up(expected + chunk, 16)) + LANES),
          lower_room(int(round_up(std::max<int64_t>(128, 2 * k + 64), 16))) {
        upper = arena.take<float>(rows * room);
        latent = arena.take<int32_t>(rows * room);
        lower = arena.take<float>(rows * lower_room);
        states = arena.take<State>(rows);
    }

    void start(int64_t rows) {
        for (int64_t r = 0; r < rows; r++) states[r] = {LOWEST, 0, 0, std::min(room, 1024), false};
    }

    // Look at the scores of latents first, first + 1, ... of a row; n is a multiple of LANES.
    APART void look(int64_t r, const float* scores, int n, int32_t first, RowBound row, LatentBounds latents) {
        State& state = states[r];
        if (state.full) return;
        if (state.n + n + LANES > state.limit) tighten(r, n);
        if (state.full) return;
        float* const u = upper + r * room;
        int32_t* const where = latent + r * room;
        float* const l = lower + r * lower_room;
        int taken = state.n, held = state.n_lower;
        Floats bar = spread(state.bar);
        const Floats A = spread(row.A), B = spread(row.B), D = spread(row.D);
        for (int i = 0; i < n; i += LANES) {
            const Floats s = load<Floats>(scores + i);
            const Floats error = A * load<Floats>(latents.norm + first + i) +
                                 (B * load<Floats>(latents.residual + first + i) +
                                  (D + load<Floats>(latents.extra + first + i)));
            taken = append(not_below(s + error, bar), s + error, first + i, u, where, taken);
            held = append(above(s - error, bar), s - error, l, held);
            if (held > lower_room - LANES) {
                state.n_lower = held;
                raise(r);
                held = state.n_lower;
                bar = spread(state.bar);
            }
        }
        state.n = taken;
        state.n_lower = held;
    }

    // Raise the bar of a row as far as its lower bounds allow, and keep the lower bounds above it.
    void raise(int64_t r) {
        State& state = states[r];
        float* const l = lower + r * lower_room;
        state.bar = std::max(state.bar, reached_by(l, state.n_lower, k));
        const Floats bar = spread(state.bar);
        int kept = 0;
        for (int i = 0; i < state.n_lower; i += LANES) {
            const Floats v = load<Floats>(l + i);
            kept = append(not_below(v, bar) & first_lanes(state.n_lower - i), v, l, kept);
        }
        state.n_lower = std::min(kept, lower_room - 2 * LANES);
    }

    // Keep the candidates of a row that reach its bar; returns how many they are, or -1 if there was no room.
    APART int filter(int64_t r) {
        State& state = states[r];
        if (state.full) return -1;
        raise(r);
        float* const u = upper + r * room;
        int32_t* const where = latent + r * room;
        const Floats bar = spread(state.bar);
        int kept = 0;
        for (int i = 0; i < state.n; i += LANES) {
            const Floats v = load<Floats>(u + i);
            const Mask pass = not_below(v, bar) & first_lanes(state.n - i);
            append(pass, load<Ints>(where + i), where, kept);
            kept = append(pass, v, u, kept);
        }
        return state.n = kept;
    }

    // Take better scores of a row's candidates, put into uppers(r), and drop those that they rule out.
    APART void refine(int64_t r, RowBound row, LatentBounds latents) {
        State& state = states[r];
        if (state.full) return;
        float* const u = upper + r * room;
        const int32_t* const where = latent + r * room;
        std::vector<float> lowers(size_t(state.n));
        for (int i = 0; i < state.n; i++) {
            const int32_t j = where[i];
            const float error = row.A * latents.norm[j] + (row.B * latents.residual[j] + (row.D + latents.extra[j]));
            lowers[size_t(i)] = u[i] - error;
            u[i] += error;
        }
        state.bar = std::max(state.bar, reached_by(lowers.data(), state.n, k));
        state.n_lower = 0;
        filter(r);
    }

    int32_t* list(int64_t r) const { return latent + r * room; }
    float* uppers(int64_t r) const { return upper + r * room; }
    float bar(int64_t r) const { return states[r].bar; }
    int count(int64_t r) const { return states[r].full ? -1 : states[r].n; }

    void prepare(int64_t r) const {  // the ends of a row's lists, which will be written next
        const State& state = states[r];
        for (int i = 0; i < 4; i++) {
            prefetch_to_write(upper + r * room + state.n + 16 * i);
            prefetch_to_write(latent + r * room + state.n + 16 * i);
        }
        prefetch_to_write(lower + r * lower_room + state.n_lower);
    }

  private:
    struct State {
        float bar;
        int n, n_lower, limit;
        bool full;
    };

    void tighten(int64_t r, int n) {
        State& state = states[r];
        filter(r);
        state.limit = std::min(room, std::max(1024, 2 * (state.n + n + LANES)));
        state.full = state.n + n + LANES > room;
    }

    int k, room, lower_room;
    float *upper, *lower;
    int32_t* latent;
    State* states;
};

}  // namespace
