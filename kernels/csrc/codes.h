// Sparse codes times matrices: decode, dot products with gathered rows, and sums into latents.
#pragma once

#include <vector>

#include "by_latent.h"
#include "interface.h"
#include "rows.h"

namespace {

constexpr int64_t ROWS_TAKEN = 8;   // by a thread at a time
constexpr int64_t WIDENED = 32;     // rows of a low-precision matrix that are held as float32 at a time
constexpr int64_t PER_LATENT = 16;  // what a row of output costs a thread, in pairs

// Call work(r) for all rows, a few at a time to whichever thread is free; results do not depend on who does what.
template <class Work>
void each_row(Counter& counter, int64_t rows, Work work) {
    for (;;) {
        const int64_t first = counter.next() * ROWS_TAKEN;
        if (first >= rows) return;
        for (int64_t r = first; r < std::min(first + ROWS_TAKEN, rows); r++) work(r);
    }
}

// The rows of W that one row's codes name, float32.
class Gathered {
  public:
    explicit Gathered(const Codes& call)
        : W{call.W, call.width, call.dtype}, buffer(call.dtype == FLOAT32 ? 0 : size_t(WIDENED * call.width)) {}

    // Call work(first, n, row) for pieces of a row's latents, where row(i) is the row of latent number first + i.
    template <class Work>
    void each(const int64_t* latents, int64_t k, Work work) {
        if (W.dtype == FLOAT32) {
            work(0, k, [&](int64_t i) { return static_cast<const float*>(W.data) + latents[i] * W.width; });
            return;
        }
        for (int64_t first = 0; first < k; first += WIDENED) {
            const int64_t n = std::min(WIDENED, k - first);
            for (int64_t i = 0; i < n; i++) W.row(latents[first + i], buffer.data() + i * W.width);
            work(first, n, [&](int64_t i) { return static_cast<const float*>(buffer.data()) + i * W.width; });
        }
    }

  private:
    Matrix W;
    std::vector<float> buffer;
};

inline void decode_row(const Codes& call, Gathered& gathered, int64_t r, float* out) {
    const float* const values = call.values + r * call.k;
    const float* start = call.bias;
    if (!call.k) sum_rows(0, call.width, start, [](int64_t) { return 0.0f; }, [&](int64_t) { return out; }, out);
    gathered.each(call.indices + r * call.k, call.k, [&](int64_t first, int64_t n, auto row) {
        sum_rows(n, call.width, start, [&](int64_t i) { return values[first + i]; }, row, out);
        start = out;
    });
}

inline void dot_row(const Codes& call, Gathered& gathered, int64_t r, const float* x, float* out) {
    gathered.each(call.indices + r * call.k, call.k, [&](int64_t first, int64_t n, auto row) {
        for (int64_t i = 0; i < n; i++) {
            const float* const soon = row(i + 2 < n ? i + 2 : i);
            for (int64_t c = 0; c < call.width; c += 16) prefetch(soon + c);
            out[first + i] = dot(x, row(i), call.width);
        }
    });
}

inline void decode(const Codes& call) {
    Counter counter;
    in_parallel(call.threads, [&](const Team&) {
        Gathered gathered(call);
        each_row(counter, call.rows,
                 [&](int64_t r) { decode_row(call, gathered, r, call.out + r * call.width); });
    });
}

inline void dots(const Codes& call) {
    Counter counter;
    in_parallel(call.threads, [&](const Team&) {
        Gathered gathered(call);
        each_row(counter, call.rows,
                 [&](int64_t r) { dot_row(call, gathered, r, call.x + r * call.width, call.out + r * call.k); });
    });
}

// What decoding leaves of x, its square sums, and its products with the rows of W while they are in the cache: the
// gradient of the square sums is made of these products.
inline void decode_error(const Codes& call) {
    Counter counter;
    in_parallel(call.threads, [&](const Team&) {
        Gathered gathered(call);
        each_row(counter, call.rows, [&](int64_t r) {
            float* const left = call.out + r * call.width;
            const float* const x = call.x + r * call.width;
            decode_row(call, gathered, r, left);
            for (int64_t c = 0; c < call.width; c++) left[c] = x[c] - left[c];
            call.errors[r] = dot(left, left, call.width);
            dot_row(call, gathered, r, left, call.dots + r * call.k);
        });
    });
}

class Scatter {
  public:
    Scatter(const Codes& call, Arena& arena) : call(call), order(arena, call.latents, call.rows * call.k) {}

    void run(const Team& team) {
        order.sort(team, call.rows, [&](int64_t r) {
            return Span<int64_t>{call.indices + r * call.k, call.k, r * call.k};
        });
        order.each(team, PER_LATENT, [&](int64_t j, const int64_t* pairs, int64_t n) {
            sum_rows(
                n, call.width, nullptr, [&](int64_t i) { return call.values[pairs[i]]; },
                [&](int64_t i) { return call.x + pairs[i] / call.k * call.width; }, call.out + j * call.width);
        });
    }

  private:
    const Codes& call;
    ByLatent order;
};

inline int64_t scatter_bytes(const Codes& call) {
    Arena arena(nullptr);
    Scatter scatter(call, arena);
    return arena.used;
}

inline void scatter(const Codes& call) {
    Arena arena(call.workspace);
    Scatter step(call, arena);
    in_parallel(call.threads, [&](const Team& team) { step.run(team); });
}

// The first index that names no latent, or -1.
inline int64_t first_bad(const Codes& call) {
    const int64_t n = call.rows * call.k;
    int64_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t p = 0; p < n; p++) bad |= int64_t(uint64_t(call.indices[p]) >= uint64_t(call.latents));
    for (int64_t p = 0; bad && p < n; p++)
        if (uint64_t(call.indices[p]) >= uint64_t(call.latents)) return p;
    return -1;
}

}  // namespace
