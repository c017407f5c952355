// Screening in float32: a tiled product whose scores are looked at while they are in the cache.
//
// Latents are packed a chunk at a time by all threads together, so that no second copy of W is ever held; each thread
// then multiplies its own rows by the chunk. Two chunks take turns: while one is used, the other is packed, and one
// barrier per chunk is enough. Sums run over the width in blocks, so that a panel of latents stays in the first-level
// cache. In the words of bounds.h: e[r, j] = (gamma(width + blocks) + 8u) |x| |W[j]| + 5u |b[j]| + SMALLEST, the small
// things with plenty to spare; candidates are few, as the bound is.
#pragma once

#include "candidates.h"
#include "bounds.h"
#include "problem.h"

namespace {

#if defined(__AVX512F__)
constexpr int FLOAT_MR = 12, FLOAT_NV = 2;  // 24 accumulators of 32 registers
#elif defined(__aarch64__)
constexpr int FLOAT_MR = 6, FLOAT_NV = 4;
#elif defined(__AVX2__)
constexpr int FLOAT_MR = 6, FLOAT_NV = 2;  // 12 of 16
#else
constexpr int FLOAT_MR = 4, FLOAT_NV = 2;
#endif
constexpr int FLOAT_NR = FLOAT_NV * LANES;

constexpr int64_t FLOAT_CHUNK = 512;  // latents
constexpr int64_t FLOAT_DEPTH = 192;  // of the width, in a block
constexpr int64_t FLOAT_LOOK = 128;   // latents looked at in one go
constexpr int64_t FLOAT_ROWS = 96;    // whose scores on a chunk are made before they are looked at
constexpr int64_t FLOAT_PACKED = int64_t(64) << 20;  // bytes of rows that are packed at once, by all threads
static_assert(FLOAT_ROWS % FLOAT_MR == 0 && FLOAT_CHUNK % FLOAT_NR == 0);

// out[r, j] (+)= sum over c of x[c, r] w[c, j], for FLOAT_MR rows and FLOAT_NR latents packed side by side.
APART void float_product(const float* w, const float* x, int64_t depth, float* out, int64_t stride, bool add) {
    Floats sums[FLOAT_MR][FLOAT_NV];
#pragma GCC unroll 12
    for (int r = 0; r < FLOAT_MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < FLOAT_NV; v++) sums[r][v] = Floats{};
    for (int64_t c = 0; c < depth; c++) {
        Floats latents[FLOAT_NV];
#pragma GCC unroll 4
        for (int v = 0; v < FLOAT_NV; v++) latents[v] = load<Floats>(w + LANES * v);
#pragma GCC unroll 12
        for (int r = 0; r < FLOAT_MR; r++) {
            const Floats row = spread(x[r]);
#pragma GCC unroll 4
            for (int v = 0; v < FLOAT_NV; v++) sums[r][v] += row * latents[v];
        }
        w += FLOAT_NR;
        x += FLOAT_MR;
    }
#pragma GCC unroll 12
    for (int r = 0; r < FLOAT_MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < FLOAT_NV; v++) {
            float* const to = out + r * stride + LANES * v;
            store(to, add ? load<Floats>(to) + sums[r][v] : sums[r][v]);
        }
}

// Pack up to `group` rows of `width` numbers: [width][group], with zeros for rows that are not there.
template <class Row>
inline void pack(int64_t n, int64_t group, int64_t width, Row row, float* out) {
    constexpr int64_t STEP = 16;  // columns at a time: a cache line of each row
    for (int64_t start = 0; start < width; start += STEP) {
        const int64_t end = std::min(start + STEP, width);
        for (int64_t i = 0; i < group; i++) {
            const float* const from = i < n ? row(i) : nullptr;
            for (int64_t c = start; c < end; c++) out[c * group + i] = from ? from[c] : 0;
        }
    }
}

class FloatScreen {
  public:
    FloatScreen(Problem& problem, Arena& arena, int threads) : problem(problem) {
        width = problem.width;
        padded = round_up(problem.latents, FLOAT_CHUNK);
        n_blocks = (width + FLOAT_DEPTH - 1) / FLOAT_DEPTH;
        depth = (width + n_blocks - 1) / n_blocks;
        const int64_t share = (problem.rows + threads - 1) / threads;
        const int64_t most = std::max(FLOAT_PACKED / (4 * width * threads), FLOAT_ROWS);
        rows_at_once = round_up(std::min(share, most), FLOAT_MR);
        for (float*& chunk : chunks) chunk = arena.take<float>(FLOAT_CHUNK * width);
        for (float** array : {&norm, &extra, &bias}) *array = arena.take<float>(padded);
        const int64_t expected = std::max(problem.room, problem.k + FLOAT_LOOK);
        for (int i = 0; i < threads; i++) members.emplace_back(arena, problem, rows_at_once, expected);
    }

    void run(const Team& team) {
        Member& member = members[size_t(team.id)];
        const int64_t at_once = rows_at_once * team.size;
        for (int64_t start = 0; start < problem.n_todo; start += at_once) {
            const int64_t all = std::min(at_once, problem.n_todo - start);
            const int64_t first = start + team.first(all), n = team.last(all) - team.first(all);
            take_rows(member, problem.todo + first, n);
            pack_latents(team, 0);
            team.wait();
            for (int64_t chunk = 0; chunk * FLOAT_CHUNK < padded; chunk++) {
                if ((chunk + 1) * FLOAT_CHUNK < padded) pack_latents(team, chunk + 1);
                for (int64_t row = 0; row < n; row += FLOAT_ROWS) screen(member, chunk, row, std::min(row + FLOAT_ROWS, n));
                team.wait();
            }
            for (int64_t i = 0; i < n; i++) {
                const int left = member.in_range[i] ? member.candidates.filter(i) : -1;
                problem.keep(problem.todo[first + i], member.candidates.list(i), left);
            }
        }
    }

  private:
    static constexpr double RANGE = 0x1p60;  // of norms: sums of products then stay far from infinity

    struct Member {
        Candidates candidates;
        float *packed, *tile, *buffer;
        RowBound* bounds;
        bool* in_range;

        Member(Arena& arena, const Problem& problem, int64_t rows, int64_t expected)
            : candidates(arena, rows, problem.k, expected, FLOAT_LOOK) {
            packed = arena.take<float>(rows * problem.width);
            tile = arena.take<float>(FLOAT_ROWS * FLOAT_CHUNK);
            buffer = arena.take<float>(FLOAT_NR * problem.width);
            bounds = arena.take<RowBound>(rows);
            in_range = arena.take<bool>(rows);
        }
    };

    double length(const float* row) const { return std::sqrt(wide_dot(row, row, width)) * (1 + UNIT); }

    void take_rows(Member& member, const int64_t* rows, int64_t n) {
        member.candidates.start(n);
        for (int64_t i = 0; i < n; i++) {
            const double size = length(problem.row(rows[i]));
            member.in_range[i] = size < RANGE;  // false for NaN
            const double share = gamma(double(width + n_blocks)) + 8 * UNIT + 2 * sum_error(width);
            member.bounds[i] = {bound_part(share * size), 0, 0};
        }
        for (int64_t i = 0; i < n; i += FLOAT_MR)
            pack(std::min<int64_t>(FLOAT_MR, n - i), FLOAT_MR, width,
                 [&](int64_t r) { return problem.row(rows[i + r]); }, member.packed + i * width);
    }

    void pack_latents(const Team& team, int64_t chunk) {
        float* const wide = members[size_t(team.id)].buffer;
        const int64_t panels = FLOAT_CHUNK / FLOAT_NR;
        for (int64_t p = team.first(panels); p < team.last(panels); p++) {
            const int64_t first = chunk * FLOAT_CHUNK + p * FLOAT_NR;
            const int64_t n = std::clamp<int64_t>(problem.latents - first, 0, FLOAT_NR);
            const float* rows[FLOAT_NR];
            for (int64_t i = 0; i < n; i++) rows[i] = problem.W.row(first + i, wide + i * width);
            pack(n, FLOAT_NR, width, [&](int64_t i) { return rows[i]; }, chunks[chunk % 2] + p * FLOAT_NR * width);
            for (int64_t i = 0; i < FLOAT_NR; i++) {
                const int64_t j = first + i;
                const double size = i < n ? length(rows[i]) : 0, b = i < n ? problem.b.at(j) : -INFINITY;
                const bool sound = i < n && size < RANGE && std::abs(b) < RANGE * RANGE;
                norm[j] = sound ? bound_part(size) : 0;
                bias[j] = sound || i >= n ? float(b) : 0;
                extra[j] = sound ? bound_part(6 * UNIT * std::abs(b) + SMALLEST) : i < n ? INFINITY : 0;
            }
        }
    }

    // Scores of rows [begin, end) of a thread on a chunk, and a look at them.
    void screen(Member& member, int64_t chunk, int64_t begin, int64_t end) {
        for (int64_t block = 0; block < n_blocks; block++) {
            const int64_t c = block * depth, here = std::min(depth, width - c);
            for (int64_t j = 0; j < FLOAT_CHUNK; j += FLOAT_NR)
                for (int64_t i = begin; i < end; i += FLOAT_MR)
                    float_product(chunks[chunk % 2] + j * width + c * FLOAT_NR,
                                  member.packed + i * width + c * FLOAT_MR, here,
                                  member.tile + (i - begin) * FLOAT_CHUNK + j, FLOAT_CHUNK, block > 0);
        }
        const int64_t first = chunk * FLOAT_CHUNK;
        for (int64_t i = begin; i < end; i++) {
            if (!member.in_range[i]) continue;
            float* const scores = member.tile + (i - begin) * FLOAT_CHUNK;
            for (int64_t j = 0; j < FLOAT_CHUNK; j += LANES)
                store(scores + j, load<Floats>(scores + j) + load<Floats>(bias + first + j));
            for (int64_t j = 0; j < FLOAT_CHUNK; j += FLOAT_LOOK)
                member.candidates.look(i, scores + j, int(FLOAT_LOOK), int32_t(first + j), member.bounds[i],
                                       {norm, norm, extra});
        }
    }

    Problem& problem;
    int64_t width, padded, n_blocks, depth, rows_at_once;
    float* chunks[2];
    float *norm, *extra, *bias;
    std::vector<Member> members;
};

}  // namespace
