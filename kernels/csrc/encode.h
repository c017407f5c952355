// Top-k encoding: which screen looks at which rows, and in what order.
//
// A screen may leave rows unsettled (too many candidates, numbers out of its range); the next one takes them: a low
// precision (int8, then bfloat16 where the unit has both), then float32, then every score exactly, which always
// succeeds. The choice decides time only.
#pragma once

#include "exact_rows.h"
#include "floats.h"
#include "low.h"
#include "rescore.h"

namespace {

// Measured on two or three processors, and not critical.
constexpr int64_t FEW_ROWS = 16;         // computed exactly at once: packing latents would cost more
constexpr int64_t ROWS_FOR_LOW = 400;    // fewer do not repay coding the latents
constexpr double INT8_LOST = 0.0082;     // of a norm, by rounding: a row's largest entry is 3.6 times as large as most,
                                         // and steps are a 127th of it, of which sqrt(1 / 12) is lost
constexpr double BF16_LOST = 0.0016;     // 8 digits, of which sqrt(1 / 12) of the last is lost
constexpr double MOST_FOR_INT8 = 0.09;   // of all latents let through; more, and bfloat16 is faster
constexpr int64_t ROWS_AT_ONCE = 16384;  // larger batches are cut, which bounds the workspace

// A low-precision screen of this unit: its name for callers, its code, and the widest rows it takes.
template <Screen NAME, class CODE, int64_t WIDEST>
struct Low {
    static constexpr Screen name = NAME;
    static constexpr int64_t widest = WIDEST;
    using Code = CODE;
};

// How many latents a low precision is expected to let through, for scores that are spread as a normal distribution is
// (which a rotation makes of most). The k-th best is then z standard deviations above the mean, and a latent passes that
// is less than 2 e below it. A standard deviation is |x| |W| / sqrt(width), and e what is `lost` of each norm.
inline double expected_candidates(double lost, double width, double latents, double k) {
    const auto share_above = [](double z) { return 0.5 * std::erfc(z * std::sqrt(0.5)); };
    double low = -8, high = 8;
    for (int step = 0; step < 40; step++) {
        const double middle = 0.5 * (low + high);
        (share_above(middle) > k / latents ? low : high) = middle;
    }
    const double e = 2 * lost * std::sqrt(width);
    return latents * share_above(low - 2 * e);
}

// The same for int8, in units of what it can do with; `spread` is that of the scores (spread.h).
inline double expected_for_int8(const Encode& call, double spread) {
    const double latents = double(call.latents);
    const double most = std::min(MOST_FOR_INT8 * latents, 0.92 * double(most_candidates(call.k)));
    return expected_candidates(INT8_LOST / spread, double(call.width), latents, double(call.k)) / most;
}

// Whether this unit has a screen for rows of a width.
template <class... Lows>
bool takes(Screen screen, int64_t width) {
    return screen <= FLOAT || ((screen == Lows::name && width <= Lows::widest) || ...);
}

// How latents are chosen: what the caller says, else by the sizes. int8 forms scores twice as fast as bfloat16, but a
// second look at what it lets through costs more than that once it is too much. (Measured on AMD Zen 5, 16 384 latents:
// at 8 % int8 is 1.06 times as fast, at 12 % bfloat16 1.6 times.) If rows are harder than expected, int8 gives up and
// bfloat16 follows.
template <class... Lows>
Screen choose_screen(const Encode& call) {
    const auto fits = [&](Screen screen) { return takes<Lows...>(screen, call.width); };
    if (call.screen >= 0) return fits(Screen(call.screen)) ? Screen(call.screen) : FLOAT;
    if (call.rows < FEW_ROWS || call.latents < 4 * call.k || call.latents * call.width < 32768) return EXACT;
    if (call.rows < ROWS_FOR_LOW || call.latents < 1024 || call.width < 32) return FLOAT;
    const bool coarse = expected_for_int8(call, 1) > 1;
    for (Screen screen : {coarse ? BF16 : INT8, coarse ? INT8 : BF16})
        if (fits(screen)) return screen;
    return FLOAT;
}

// Whether bfloat16 was chosen by so little that int8 may be the faster one if scores are spread more than expected.
template <class... Lows>
bool unsure(const Encode& call, Screen screen) {
    return call.screen < 0 && screen == BF16 && takes<Lows...>(INT8, call.width) && expected_for_int8(call, 1) < 1.5;
}

// The screen for rows that a low precision was too coarse for: int8, if nobody asked for it, hands them to bfloat16.
template <class... Lows>
Screen finer_screen(const Encode& call, Screen screen) {
    return call.screen < 0 && screen == INT8 && takes<Lows...>(BF16, call.width) ? BF16 : FLOAT;
}

// Room for latents of a row that are to be computed exactly, beyond k: bfloat16 is looked at once only.
template <class... Lows>
int64_t spare_room(const Encode& call, Screen screen) {
    const int64_t few = std::max<int64_t>(96, call.k / 2), many = 1024;
    if (screen != BF16 && finer_screen<Lows...>(call, screen) != BF16) return few;
    const double expected = expected_candidates(BF16_LOST, double(call.width), double(call.latents), double(call.k));
    return std::max(few, std::min(many, int64_t(1.5 * expected) + 128 - call.k));
}

class Encoder {
  public:
    Encoder(const Encode& call, Arena& arena, int64_t spare)
        : problem(call, arena, spare), arena(arena), base(arena.used), most(base) {}

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
    void low_precision() {
        with([&](int threads) { return LowScreen<typename Low::Code>(problem, arena, threads); }, [&](auto& screen) {
            count(CANDIDATES, screen.n_candidates);
            too_coarse = screen.hopeless;
        });
    }
    template <class... Lows>
    void low(Screen screen) {
        ((screen == Lows::name ? low_precision<Lows>() : void()), ...);
    }
    double spread() {
        double found = 1;
        with([&](int) { return Spread(problem, arena); }, [&](auto& sample) { found = sample.spread; });
        return found;
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
    bool dry = false, too_coarse = false;

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
    const Screen screen = choose_screen<Lows...>(call);
    Encoder encoder(call, arena, spare_room<Lows...>(call, screen));
    encoder.dry = true;
    encoder.low<Lows...>(screen);
    encoder.low<Lows...>(finer_screen<Lows...>(call, screen));
    if (unsure<Lows...>(call, screen)) {
        encoder.spread();
        encoder.low<Lows...>(INT8);
    }
    if (screen != EXACT) encoder.floats();
    encoder.exact();
    encoder.rescore();
    return encoder.most_bytes();
}

template <class... Lows>
void encode_some(const Encode& call) {
    Arena arena(call.workspace);
    Screen screen = choose_screen<Lows...>(call);
    Encoder encoder(call, arena, spare_room<Lows...>(call, screen));
    encoder.look_at_rows();
    if (encoder.problem.unsettled() && unsure<Lows...>(call, screen) && expected_for_int8(call, encoder.spread()) <= 1)
        screen = INT8;
    encoder.count(FIRST_SCREEN, screen - (call.counts ? call.counts[FIRST_SCREEN] : 0));
    if (encoder.problem.n_todo && screen > FLOAT) encoder.low<Lows...>(screen);
    encoder.problem.unsettled();
    if (encoder.too_coarse) encoder.low<Lows...>(finer_screen<Lows...>(call, screen));
    encoder.problem.unsettled();
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
