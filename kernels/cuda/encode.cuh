// What the kernels of topk_encode share: the exact score, its order, and how far a screen's score can be from it.
//
// Exact score. One computation gives the scores that are returned, the same bits here and in the CPU kernels
// (kernels/csrc/exact.h): products of float32 numbers, exact in float64, are added in float64 in 32 interleaved sums
// (number c in sum c mod 32, ascending), which are folded in halves, sum l taking sum l + 16, then 8, 4, 2, 1; the
// bias is added in float64 and the result rounded to float32; a zero is +0.
//
// Order. By descending score, equal scores by ascending latent; NaN counts as minus infinity.
//
// Bound. A screen computes s = fl(t) + b, t = the tensor cores' sum of x' W' over 16-bit numbers x', W' close to x, W.
// With |.| the Euclidean norm, u = 2^-24:
//
//     |x·W - x'·W'|  <=  |x - x'| |W| + |x'| |W - W'|          Cauchy and Schwarz; the residuals are measured
//     |t - x'·W'|    <=  ceil(width / 16) 2^-19 |x'| |W'|       (1)
//     all else       <=  8u |x'| |W'| + 8u |b| + tiny           (2)
//
// (1) A product of fragments adds 16 products to an accumulator. Products are exact; sums are aligned to their largest
//     term and cut. Measured on sm_80: 8 products and the accumulator at a time, one bit kept below float32's last; on
//     sm_90 16 and two. A cut term loses less than 2^-24 of the largest, which is at most |x'| |W'| (every term and
//     partial sum is, by Cauchy and Schwarz), and the sum of 9 is cut to float32, another 2^-23: in two such steps less
//     than 22 x 2^-24 < 2^-19. sm_90 loses less.
// (2) s is a product with powers of two (exact, or off by less than `tiny`) and a fused multiply-add (u |s|); the exact
//     score's last rounding is u |S|, its float64 sum vanishes beside that; s + e and s - e are rounded as well.
//
// With c = |x| + |x - x'| for a row, n = |W| + |W - W'| and r = |W - W'| for a latent, as `encode_prepare` gives them:
//
//     |S - s|  <=  e  =  (|x - x'| + sigma c) n + c r + 8u |b| + tiny,      sigma = ceil(width / 16) 2^-19 + 2^-21.
//
// In a row of zeros s = S = b, and e = 0. `e` is itself a float32 sum of a few terms: enlarged by 2^-20 of itself.
#pragma once

#include "device.cuh"

namespace {

enum Kind : int { ZERO = 0, REGULAR = 1, IRREGULAR = 2 }; // of a row or a latent; the last is never judged by its s

struct __align__(16) Facts {
    float scale;    // 16-bit numbers times this are near the numbers themselves; a power of two
    float norm;     // of the numbers or the 16-bit ones, whichever is larger, or more
    float residual; // norm of what the 16-bit numbers leave out, or more
    float kind;
};

constexpr float BIAS_SHARE = 0x1p-21f;
constexpr float ENLARGED = 1.0f + 0x1p-20f;

// A row's side of the bound.
struct RowBound {
    float a, c, bias_share, tiny;
};

__device__ __forceinline__ RowBound row_bound(Facts row, float sigma, int width) {
    const bool counts = row.kind != static_cast<float>(ZERO);
    return {row.residual + sigma * row.norm, row.norm, counts ? BIAS_SHARE : 0.0f,
            counts ? static_cast<float>(width + 8) * 0x1p-125f : 0.0f};
}

// e for one latent, or for many from the largest of each of their numbers
__device__ __forceinline__ float error_bound(RowBound row, float norm, float residual, float bias) {
    return (row.a * norm + row.c * residual + row.bias_share * fabsf(bias) + row.tiny) * ENLARGED;
}

// What the screen leaves of a row in one of its splits.
struct Candidate {
    float score;
    u32 latent;
};
constexpr int CAPACITY = 1024; // of such a list

// --- order ---------------------------------------------------------------------------------------------------------------
// Floats as whole numbers in the same order; NaN below everything.
__device__ __forceinline__ u32 ascending(float value) {
    const u32 bits = __float_as_uint(value);
    if (value != value) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ascending(u32 key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}
constexpr u32 LOWEST = 0x007fffffu; // of minus infinity

// A pair (score, latent): the best is the smallest.
__device__ __forceinline__ u64 ranking_key(float score, u32 latent) {
    const u32 rank = score != score ? LOWEST : ascending(score);
    return static_cast<u64>(~rank) << 32 | latent;
}

// --- the exact score -------------------------------------------------------------------------------------------------------
constexpr int TEAM = 8; // lanes that share a score; each keeps 4 of the 32 sums

// Lane `place` of a team, all of whose lanes are in `mask`, gives its part; the score comes out in each of them.
template <class T, int V>
__device__ __forceinline__ float exact_score(const T* __restrict__ x, const T* __restrict__ w, float bias, int width,
                                             u32 mask, int place) {
    double sum[4] = {};
#pragma unroll 4
    for (int c = 4 * place; c < width; c += 32) {
        if constexpr (V >= 4) {
            const auto a = *reinterpret_cast<const Pack<T, 4>*>(x + c), b = *reinterpret_cast<const Pack<T, 4>*>(w + c);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sum[i] = fma(static_cast<double>(widen(a.at[i])), static_cast<double>(widen(b.at[i])), sum[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (c + i < width)
                    sum[i] = fma(static_cast<double>(widen(x[c + i])), static_cast<double>(widen(w[c + i])), sum[i]);
        }
    }
#pragma unroll
    for (int by = 4; by; by /= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += __shfl_down_sync(mask, sum[i], by, TEAM);
    const double total = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    return __shfl_sync(mask, static_cast<float>(total + static_cast<double>(bias)) + 0.0f, 0, TEAM);
}

__device__ __forceinline__ u32 team_mask() { return 0xffu << (threadIdx.x % 32 / TEAM * TEAM); }

// Sort keys ascending; `n` is a power of two, and all threads of the block take part.
__device__ __forceinline__ void sort_keys(u64* keys, int n) {
    for (int size = 2; size <= n; size *= 2)
        for (int stride = size / 2; stride; stride /= 2) {
            __syncthreads();
            for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += static_cast<int>(blockDim.x)) {
                const int low = 2 * i - (i & (stride - 1)), high = low + stride;
                const bool up = (low & size) == 0;
                const u64 a = keys[low], b = keys[high];
                if ((a > b) == up) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    __syncthreads();
}

// Write the k best of sorted keys. A key does not tell NaN from minus infinity: those are computed again.
template <class T, int V>
__device__ __forceinline__ void write_best(const u64* keys, int k, const T* x, const T* W, const float* b, int width,
                                           T* values, i64* indices) {
    const int place = static_cast<int>(threadIdx.x) % TEAM, n_teams = static_cast<int>(blockDim.x) / TEAM;
    for (int i = static_cast<int>(threadIdx.x) / TEAM; i < k; i += n_teams) {
        const u32 latent = static_cast<u32>(keys[i]), rank = ~static_cast<u32>(keys[i] >> 32);
        float score = from_ascending(rank);
        if (rank == LOWEST)
            score = exact_score<T, V>(x, W + static_cast<i64>(latent) * width, b[latent], width, team_mask(), place);
        if (place == 0) {
            values[i] = narrow<T>(score);
            indices[i] = latent;
        }
    }
}

} // namespace
