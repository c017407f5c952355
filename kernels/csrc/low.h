// Screening in low precision: the parts that int8 and bfloat16 share.
//
// Latents are coded once, by all threads together. Then each thread takes blocks of rows, codes them, and goes through
// all latents a chunk at a time: scores of the chunk (which stay in the second-level cache), then Candidates::look.
// What is left of a block when the latents are through is refined, if the code knows how, and kept.
#pragma once

#include <unistd.h>

#include "candidates.h"
#include "problem.h"
#include "spread.h"

namespace {

constexpr int64_t CHUNK = 256;  // latents; a multiple of every kernel's panel

// Where a row of int8 has so many candidates, a finer screen is faster (measured; the result is the same either way).
constexpr int64_t MANY_CANDIDATES = 1536;
inline int64_t most_candidates(int64_t k) { return std::max(MANY_CANDIDATES, 4 * k); }

constexpr double LARGEST_SCORE = 0x1p110;  // rows that could have larger ones are left to other screens

inline int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return std::clamp<int64_t>(bytes, 256 << 10, 2 << 20);
#endif
    return 512 << 10;
}

// What bounds.h says of latents, filled in by a code; padded to whole chunks with latents that are never candidates.
struct CodedLatents {
    int64_t n, padded;
    float *bias, *norm, *extra;

    CodedLatents(Arena& arena, int64_t latents) : n(latents), padded(round_up(latents, CHUNK)) {
        for (float** array : {&bias, &norm, &extra}) *array = arena.take<float>(padded);
    }

    // Compute c, and the parts of the bound that do not depend on the code. False: it must always be a candidate.
    bool start(int64_t j, float b, const Transform& t, const float* row, float* out, int& exponent, double& length) {
        length = std::sqrt(wide_dot(row, row, t.width));
        const double c = b + wide_dot(t.mean_x, row, t.width);
        bias[j] = float(c);
        const double lost = 2 * sum_error(t.width) * (t.mean_x_norm * length + std::abs(double(b)));
        extra[j] = bound_part(5 * UNIT * std::abs(c) + lost + SMALLEST);
        return std::isfinite(c) && std::abs(c) < 0x1p100 && t.apply(row, t.mean_W, t.scale_W, out, exponent);
    }

    void always(int64_t j) {
        bias[j] = norm[j] = 0;
        extra[j] = INFINITY;
    }

    void never(int64_t j) {
        bias[j] = -INFINITY;
        norm[j] = extra[j] = 0;
    }
};

template <class Code>
class LowScreen {
  public:
    LowScreen(Problem& problem, Arena& arena, int threads)
        : problem(problem), t(arena, problem.width, Code::ROTATE), latents(arena, problem.latents),
          code(arena, t, latents, problem.latents) {
        const int64_t most = round_up(std::clamp<int64_t>(second_level_cache() / 2 / (2 * t.padded), 32, 384), Code::MR);
        rows_at_once = std::min(most, round_up(problem.rows, Code::MR));
        expected = std::min<int64_t>(std::max<int64_t>(MANY_CANDIDATES * 4 / 3, 8 * problem.k), latents.padded);
        longest = arena.take<double>(threads);
        largest_bias = arena.take<double>(threads);
        for (int i = 0; i < threads; i++) members.emplace_back(arena, problem, t, rows_at_once, expected);
    }

    void run(const Team& team) {
        if (team.id == 0) choose_from_samples(problem, t, members[0].buffer);
        team.wait();
        code_latents(team);
        team.wait();
        double W_longest = 0, b_largest = 0;
        for (int i = 0; i < team.size; i++) {
            W_longest = std::max(W_longest, longest[i]);
            b_largest = std::max(b_largest, largest_bias[i]);
        }
        const int64_t at_least = (problem.n_todo + rows_at_once - 1) / rows_at_once;
        const int64_t blocks = round_up(std::max<int64_t>(at_least, 1), team.size);
        const int64_t rows = std::min(rows_at_once, round_up((problem.n_todo + blocks - 1) / blocks, Code::MR));
        Member& member = members[size_t(team.id)];
        for (;;) {
            const int64_t first = block_counter.next() * rows;
            if (first >= problem.n_todo || hopeless.load(std::memory_order_relaxed)) break;
            const int64_t n = std::min(rows, problem.n_todo - first);
            member.candidates.start(n);
            for (int64_t i = 0; i < n; i++) code_row(member, i, problem.todo[first + i], W_longest, b_largest);
            member.block.end(n);
            screen(member, n);
            settle(member, n, problem.todo + first);
        }
        n_candidates.fetch_add(member.n_candidates);
    }

    std::atomic<int64_t> n_candidates{0};
    std::atomic<bool> hopeless{false};  // given up: too many candidates

  private:
    struct Member {  // what one thread works on
        typename Code::Block block;
        Candidates candidates;
        float *tile, *buffer;
        bool* in_range;
        int64_t n_candidates = 0;

        Member(Arena& arena, const Problem& problem, const Transform& t, int64_t rows, int64_t expected)
            : block(arena, t, rows), candidates(arena, rows, problem.k, expected, CHUNK) {
            tile = arena.take<float>(rows * CHUNK);
            buffer = arena.take<float>(t.padded + 2 * t.width);
            in_range = arena.take<bool>(rows);
        }
    };

    void code_latents(const Team& team) {
        float* const out = members[size_t(team.id)].buffer;
        float* const wide = out + t.padded;
        double long_one = 0, large_bias = 0;
        const int64_t panels = latents.padded / Code::NR;
        for (int64_t j = team.first(panels) * Code::NR; j < team.last(panels) * Code::NR; j++) {
            const bool real = j < latents.n;
            const float b = real ? problem.b.at(j) : 0;
            int exponent = 0;
            double length = 0;
            if (real && latents.start(j, b, t, problem.W.row(j, wide), out, exponent, length)) {
                code.latent(j, out, exponent, t, latents);
                long_one = std::max(long_one, length);
                large_bias = std::max(large_bias, std::abs(double(b)));
                continue;
            }
            std::fill(out, out + t.padded, 0.0f);
            code.latent(j, out, 0, t, latents);
            real ? latents.always(j) : latents.never(j);
        }
        longest[team.id] = long_one;
        largest_bias[team.id] = large_bias;
    }

    void code_row(Member& member, int64_t i, int64_t r, double W_longest, double b_largest) {
        int exponent = 0;
        const float* const x = problem.row(r);
        const double length = std::sqrt(wide_dot(x, x, t.width)) + t.mean_x_norm;  // |x - m| and |x| are no longer
        member.in_range[i] = t.apply(x, t.mean_x, t.scale_x, member.buffer, exponent) &&
                             length * (W_longest + t.mean_W_norm) < LARGEST_SCORE;
        if (!member.in_range[i]) {
            exponent = 0;
            std::fill(member.buffer, member.buffer + t.padded, 0.0f);
        }
        const double D = UNIT * length * t.mean_W_norm + 2 * sum_error(t.width) * (length * W_longest + b_largest);
        member.block.row(i, member.buffer, std::ldexp(1.0, exponent) / t.gain(), D, t);
    }

    void screen(Member& member, int64_t n) {
        for (int64_t first = 0; first < latents.padded; first += CHUNK) {
            code.scores(member.block, n, first, latents, member.tile);
            for (int64_t i = 0; i < n; i++) {
                if (i + 1 < n) member.candidates.prepare(i + 1);
                if (!member.in_range[i]) continue;
                member.candidates.look(i, member.tile + i * CHUNK, int(CHUNK), int32_t(first), member.block.bound(i),
                                       {latents.norm, code.residual, latents.extra});
            }
        }
    }

    void settle(Member& member, int64_t n, const int64_t* rows) {
        int64_t total = 0;
        for (int64_t i = 0; i < n; i++) {
            const int left = member.in_range[i] ? member.candidates.filter(i) : 0;
            total += left < 0 ? expected : left;
        }
        member.n_candidates += total;
        if (total > n * (Code::REFINES ? most_candidates(problem.k) : problem.room)) {
            hopeless.store(true, std::memory_order_relaxed);
            return;
        }
        if constexpr (Code::REFINES) code.refine(member.block, n, member.candidates, latents);
        for (int64_t i = 0; i < n; i++) {
            const int left = member.in_range[i] ? member.candidates.count(i) : -1;
            problem.keep(rows[i], member.candidates.list(i), left);
        }
    }

    Problem& problem;
    Transform t;
    CodedLatents latents;
    Code code;
    std::vector<Member> members;
    int64_t rows_at_once, expected;
    double *longest, *largest_bias;
    Counter block_counter;
};

}  // namespace
