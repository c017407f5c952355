// The end of topk_encode: exact scores of the candidates and the k best of them; and rows whose every latent is scored.
#include "encode.cuh"

namespace {

constexpr int THREADS = 256, TEAMS = THREADS / TEAM;
constexpr int MOST = 2048; // keys that a block sorts; k is at most half of it

// A number that the first halves of at least k of n pairs reach: the k-th largest of them. By one warp.
__device__ __forceinline__ u32 kth_largest(const u64* pairs, int n, int k) {
    const int lane = static_cast<int>(threadIdx.x);
    u32 low = 0, high = 0xffffffffu; // at least k reach low, fewer than k reach high
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        u32 reach = 0;
        for (int i = lane; i < n; i += 32) reach += static_cast<u32>(pairs[i] >> 32) >= middle;
        reach = __reduce_add_sync(ALL_LANES, reach);
        (reach >= static_cast<u32>(k) ? low : high) = middle;
        if (reach == static_cast<u32>(k)) break;
    }
    return low;
}

// A block for each row that the screen has not stopped. Bounds of the candidates of all splits decide which of them can
// still be among the k best; these are scored exactly. More candidates than a block holds stop the row after all.
template <class T, int V>
__device__ void select(const T* __restrict__ x, const T* __restrict__ W, const float* __restrict__ bias,
                       const Facts* __restrict__ row_facts, const Facts* __restrict__ latent_facts,
                       const u32* __restrict__ bars, const Candidate* __restrict__ lists,
                       const u32* __restrict__ counts, u32* __restrict__ stopped, T* __restrict__ values,
                       i64* __restrict__ indices, int width, int padded, int k, int splits, float sigma) {
    SharedArena arena;
    u64* keys = arena.take<u64>(MOST); // first (lower bound, latent), then what is sorted
    u32* upper = arena.take<u32>(MOST);
    u32* chosen = arena.take<u32>(MOST);
    u32* count = arena.take<u32>(3); // candidates, chosen ones, and the bar
    const i64 row = blockIdx.x;
    if (stopped[row]) return; // the same for all threads
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < 2) count[thread] = 0;
    __syncthreads();
    const RowBound bound = row_bound(row_facts[row], sigma, padded);
    const u32 shared_bar = bars[row];
    for (int split = 0; split < splits; ++split) {
        const Candidate* list = lists + (row * splits + split) * CAPACITY;
        for (int i = thread; i < static_cast<int>(counts[row * splits + split]); i += THREADS) {
            const Candidate candidate = list[i];
            const Facts latent = latent_facts[candidate.latent];
            const float e = error_bound(bound, latent.norm, latent.residual, bias[candidate.latent]);
            const float most = candidate.score + e;
            const u32 reach = most == most ? ascending(most) : ~0u; // NaN: anything is possible
            if (reach < shared_bar) continue;
            const u32 at = atomicAdd(&count[0], 1u);
            if (at >= MOST) continue;
            keys[at] = static_cast<u64>(ascending(candidate.score - e)) << 32 | candidate.latent;
            upper[at] = reach;
        }
    }
    __syncthreads();
    const int n_candidates = static_cast<int>(count[0]);
    if (n_candidates > MOST) {
        if (thread == 0) stopped[row] = 1;
        return;
    }
    if (thread < 32) {
        const u32 bar = kth_largest(keys, n_candidates, k);
        if (thread == 0) count[2] = bar;
    }
    __syncthreads();
    const u32 bar = count[2];
    for (int i = thread; i < n_candidates; i += THREADS)
        if (upper[i] >= bar) chosen[atomicAdd(&count[1], 1u)] = static_cast<u32>(keys[i]);
    __syncthreads();
    const int n = static_cast<int>(count[1]);
    const T* mine = x + row * width;
    for (int i = thread / TEAM; i < n; i += TEAMS) {
        const u32 latent = chosen[i];
        const T* other = W + static_cast<i64>(latent) * width;
        const float score = exact_score<T, V>(mine, other, bias[latent], width, team_mask(), thread % TEAM);
        if (thread % TEAM == 0) keys[i] = ranking_key(score, latent);
    }
    int room = 2;
    while (room < n) room *= 2;
    for (int i = n + thread; i < room; i += THREADS) keys[i] = ~0ull;
    sort_keys(keys, room);
    write_best<T, V>(keys, k, mine, W, bias, width, values + row * k, indices + row * k);
}

// A block for each row; all latents are scored exactly. Rows that `stopped` does not name are left alone (null: none is).
template <class T, int V>
__device__ void exact(const T* __restrict__ x, const T* __restrict__ W, const float* __restrict__ bias,
                      const u32* __restrict__ stopped, T* __restrict__ values, i64* __restrict__ indices, int latents,
                      int width, int k) {
    SharedArena arena;
    u64* keys = arena.take<u64>(MOST);
    u32* count = arena.take<u32>(1);
    const i64 row = blockIdx.x;
    if (stopped && !stopped[row]) return;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) *count = 0;
    const T* mine = x + row * width;
    u64 bar = ~0ull; // nothing from here on is among the k best
    __syncthreads();
    for (int first = 0; first < latents; first += TEAMS) {
        const int latent = first + thread / TEAM;
        if (latent < latents) {
            const T* other = W + static_cast<i64>(latent) * width;
            const float score = exact_score<T, V>(mine, other, bias[latent], width, team_mask(), thread % TEAM);
            const u64 key = ranking_key(score, static_cast<u32>(latent));
            if (thread % TEAM == 0 && key < bar) keys[atomicAdd(count, 1u)] = key;
        }
        __syncthreads();
        const int n = static_cast<int>(*count);
        if (n <= MOST - TEAMS && first + TEAMS < latents) {
            __syncthreads(); // all have read the count before it grows
            continue;
        }
        for (int i = n + thread; i < MOST; i += THREADS) keys[i] = ~0ull;
        sort_keys(keys, MOST);
        bar = keys[k - 1];
        if (thread == 0) *count = static_cast<u32>(n < k ? n : k);
        __syncthreads();
    }
    write_best<T, V>(keys, k, mine, W, bias, width, values + row * k, indices + row * k);
}

// Exact scores of a few rows, for k beyond what a block sorts. A team for each score; grid: (latents, rows).
template <class T, int V>
__device__ void score_all(const T* __restrict__ x, const T* __restrict__ W, const float* __restrict__ bias,
                          float* __restrict__ scores, int latents, int width) {
    const i64 row = blockIdx.y;
    const int latent = static_cast<int>((static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / TEAM);
    if (latent >= latents) return; // the same for all lanes of a team
    const T* other = W + static_cast<i64>(latent) * width;
    const int place = static_cast<int>(threadIdx.x) % TEAM;
    const float score = exact_score<T, V>(x + row * width, other, bias[latent], width, team_mask(), place);
    if (place == 0) scores[row * latents + latent] = score;
}

} // namespace

#define SELECT_PARAMETERS(T)                                                                                           \
    (const T* x, const T* W, const float* bias, const Facts* row_facts, const Facts* latent_facts, const u32* bars,    \
     const Candidate* lists, const u32* counts, u32* stopped, T* values, i64* indices, int width, int padded, int k,   \
     int splits, float sigma)
#define SELECT                                                                                                         \
    (x, W, bias, row_facts, latent_facts, bars, lists, counts, stopped, values, indices, width, padded, k, splits, sigma)
#define EXACT_PARAMETERS(T)                                                                                            \
    (const T* x, const T* W, const float* bias, const u32* stopped, T* values, i64* indices, int latents, int width,   \
     int k)
#define EXACT (x, W, bias, stopped, values, indices, latents, width, k)
#define SCORES_PARAMETERS(T)                                                                                           \
    (const T* x, const T* W, const float* bias, float* scores, int latents, int width)
#define SCORES (x, W, bias, scores, latents, width)
#define DEFINE(suffix, T)                                                                                              \
    DEFINE_KERNEL(encode_select_##suffix, THREADS, SELECT_PARAMETERS(T), select<T, 1> SELECT)                          \
    DEFINE_KERNEL(encode_select_packed_##suffix, THREADS, SELECT_PARAMETERS(T), select<T, 4> SELECT)                   \
    DEFINE_KERNEL(encode_exact_##suffix, THREADS, EXACT_PARAMETERS(T), exact<T, 1> EXACT)                              \
    DEFINE_KERNEL(encode_exact_packed_##suffix, THREADS, EXACT_PARAMETERS(T), exact<T, 4> EXACT)                       \
    DEFINE_KERNEL(encode_scores_##suffix, THREADS, SCORES_PARAMETERS(T), score_all<T, 1> SCORES)                       \
    DEFINE_KERNEL(encode_scores_packed_##suffix, THREADS, SCORES_PARAMETERS(T), score_all<T, 4> SCORES)

FOR_EACH_DTYPE(DEFINE)
