// Top-k encoding: which screen looks at which rows, and in what order.
//
// A screen may leave rows unsettled (too many candidates, numbers out of its range); the next one takes them: a low
// precision, then float32, then every score exactly, which always succeeds. The choice decides time only.
#pragma once

#include "exact_rows.h"
#include "floats.h"
#include "low.h"
#include "rescore.h"

namespace {

// Measured on two processors, and not critical.
constexpr int64_t FEW_ROWS = 16;         // computed exactly at once: packing latents would cost more
constexpr int64_t ROWS_FOR_LOW = 400;    // fewer do not repay coding the latents
constexpr int64_t ROWS_AT_ONCE = 16384;  // larger batches are cut, which bounds the workspace

// A low-precision screen of this unit: its name for callers, its code, and the widest rows it takes.
template <Screen NAME, class CODE, int64_t WIDEST>
struct Low {
    static constexpr Screen name = NAME;
    static constexpr int64_t widest = WIDEST;
    using Code = CODE;
};

inline Screen choose_screen(const Encode& call, Screen best_low, int64_t widest) {
    if (call.screen >= 0) return Screen(call.screen);
    if (call.rows < FEW_ROWS || call.latents < 4 * call.k || call.latents * call.width < 32768) return EXACT;
    const bool low = call.rows >= ROWS_FOR_LOW && call.latents >= 1024 && call.width >= 32 && call.width <= widest;
    return low ? best_low : FLOAT;
}

class Encoder {
  public:
    Encoder(const Encode& call, Arena& arena) : problem(call, arena), arena(arena), base(arena.used), most(base) {}

    // Convert rows to float32, and settle those whose scores are all NaN, or that are zero like another row.
    void look_at_rows() {
        constexpr int32_t ZERO = -3;
        in_parallel(problem.call.threads, [&](const Team& team) {
            const Matrix x{problem.call.x, problem.width, problem.call.dtype};
            for (int64_t r = team.first(problem.rows); r < team.last(problem.rows); r++) {
                const float* const row = x.row(r, problem.widened + (problem.widened ? r * problem.width : 0));
                bool broken = false, zero = true;
                for (int64_t c = 0; c < problem.width; c++) {
                    broken |= row[c] != row[c];
                    zero &= row[c] == 0;
                }
                problem.found[r] = broken ? DONE : zero ? ZERO : NOT_YET;
                for (int64_t i = 0; broken && i < problem.k; i++) problem.write(r, i, NAN, i);
            }
        });
        for (int64_t r = 0; r < problem.rows; r++) {
            if (problem.found[r] != ZERO) continue;
            if (first_zero < 0) problem.todo[0] = first_zero = r;
            problem.found[r] = r == first_zero ? int32_t(NOT_YET) : int32_t(DONE);
            if (r != first_zero) zeros.push_back(r);
        }
        if (zeros.empty()) return;
        problem.n_todo = 1;
        exact();
        for (int64_t r : zeros)
            for (int64_t i = 0; i < problem.k; i++)
                problem.write(r, i, problem.call.values[first_zero * problem.k + i],
                              problem.call.indices[first_zero * problem.k + i]);
    }

    // Each of these is a step on the rows in problem.todo; without a workspace they only say how much they need.
    template <class Low>
    void low() {
        with([&](int threads) { return LowScreen<typename Low::Code>(problem, arena, threads); },
             [&](auto& screen) { count(CANDIDATES, screen.n_candidates); });
    }
    void floats() {
        with([&](int threads) { return FloatScreen(problem, arena, threads); }, [](auto&) {});
    }
    void exact() {
        count(LEFT_EXACT, problem.n_todo);
        with([&](int threads) { return ExactRows(problem, arena, threads); }, [](auto&) {});
    }
    void rescore() {
        with([&](int threads) { return Rescore(problem, arena, threads); },
             [&](auto& step) { count(RESCORED, step.n_pairs()); });
    }

    void count(Count what, int64_t n) {
        if (problem.call.counts) problem.call.counts[what] += n;
    }

    Problem problem;
    int64_t most_bytes() const { return most; }
    bool dry = false;

  private:
    template <class Make, class Report>
    void with(Make make, Report report) {
        auto step = make(problem.call.threads);
        if (!dry) {
            in_parallel(problem.call.threads, [&](const Team& team) { step.run(team); });
            report(step);
        }
        most = std::max(most, arena.used);
        arena.used = base;  // steps follow one another: they share memory
    }

    Arena& arena;
    int64_t base, most, first_zero = -1;
    std::vector<int64_t> zeros;
};

// Bytes of workspace that encode needs.
template <class... Lows>
int64_t encode_bytes(Encode call) {
    call.rows = std::min(call.rows, ROWS_AT_ONCE);
    call.counts = nullptr;
    Arena arena(nullptr);
    Encoder encoder(call, arena);
    encoder.dry = true;
    const Screen screen = choose_screen(call, std::max({FLOAT, Lows::name...}), std::max({int64_t(0), Lows::widest...}));
    ((screen == Lows::name ? encoder.template low<Lows>() : void()), ...);
    if (screen != EXACT) encoder.floats();
    encoder.exact();
    encoder.rescore();
    return encoder.most_bytes();
}

template <class... Lows>
void encode_some(const Encode& call) {
    Arena arena(call.workspace);
    Encoder encoder(call, arena);
    encoder.look_at_rows();
    const Screen screen = choose_screen(call, std::max({FLOAT, Lows::name...}), std::max({int64_t(0), Lows::widest...}));
    if (encoder.problem.unsettled() && screen > FLOAT) {
        ((screen == Lows::name ? encoder.template low<Lows>() : void()), ...);
        encoder.problem.unsettled();
    }
    if (encoder.problem.n_todo && screen != EXACT) {
        encoder.count(LEFT_FLOAT, screen > FLOAT ? encoder.problem.n_todo : 0);
        encoder.floats();
    }
    if (encoder.problem.unsettled()) encoder.exact();
    encoder.rescore();
}

template <class... Lows>
void encode(const Encode& call) {
    const int64_t item = call.dtype == FLOAT32 ? 4 : 2;
    for (int64_t r = 0; r < call.rows; r += ROWS_AT_ONCE) {
        Encode part = call;
        part.rows = std::min(ROWS_AT_ONCE, call.rows - r);
        part.x = static_cast<const char*>(call.x) + r * call.width * item;
        part.values = call.values + r * call.k;
        part.indices = call.indices + r * call.k;
        encode_some<Lows...>(part);
    }
}

}  // namespace
