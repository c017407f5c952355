// The screen of topk_encode: approximate scores by tensor cores, and for each row the latents that can be among its k
// best. Scores live in registers; what is written is a short list of candidates a row.
//
// A block owns BM rows and a range of latents (a split), which it walks in ascending order, BN latents at a time. Operands
// come through a pipeline of asynchronous copies that runs on from one tile into the next, so that a tile's epilogue
// hides the first loads of the tile after it. The epilogue compares each score with its row's `cut`: the row's bar
// less the largest error in the tile. The bar is a number that the scores of k latents of the row are known to reach;
// a latent that cannot reach it is not among the k best. Scores that pass go to the row's list; when k more have
// come, a warp raises the row's bar to the k-th largest lower bound in the list and drops what cannot reach it.
//
// Ties. Latents of the block's own split come in ascending order, so one whose score can only equal the bar of k earlier
// ones loses to them: the block's own bar is passed strictly. The bar shared between the splits of a row is not.
//
// A list that stays full (mass ties, or errors as large as the spread of scores) stops the row: it is computed exactly
// elsewhere.
#include "encode.cuh"

namespace {

constexpr int BK = 64;     // numbers of a row in a stage: 128 bytes, 8 chunks of 16
constexpr int CHUNKS = 8;
constexpr int STAGES = 3;  // two on their way while one is worked on
constexpr int PER_LANE = CAPACITY / 32;
constexpr float UNSTRICT = 1e38f; // bars from here on are passed by equals: nothing lies above that could be told apart

struct Problem {
    const u16 *x, *W;          // [rows, padded], [latents, padded]
    const Facts *row_facts, *latent_facts;
    const float* bias;         // [latents]
    u32* bars;                 // [rows], `ascending`; shared between splits, 0 to begin with
    Candidate* lists;          // [rows, splits, CAPACITY]
    u32* counts;               // [rows, splits]
    u32* stopped;              // [rows]
    i64 rows;
    int latents, padded, k, splits;
    float sigma;
};

template <class Number> __device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
template <> __device__ __forceinline__ void multiply<Half>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_f16(d, a, b);
}
template <> __device__ __forceinline__ void multiply<BFloat16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_bf16(d, a, b);
}

// Chunk c of row r lies at c xor r mod 8: eight rows' chunks of one column fall into different banks.
__device__ __forceinline__ u16* chunk_at(u16* tile, int row, int chunk) {
    return tile + row * BK + ((chunk ^ (row & (CHUNKS - 1))) * 8);
}

// Rows first ... of a matrix into a tile; beyond its last row or column: zeros.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(u16* tile, const u16* matrix, i64 first, i64 rows, int padded, int column) {
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS, at = column + 8 * chunk;
        const bool there = first + row < rows && at < padded;
        copy_async(chunk_at(tile, row, chunk), there ? matrix + (first + row) * padded + at : matrix, there ? 16 : 0);
    }
}

// The k-th largest of the keys that the lanes hold, from below; 0 if there is none.
__device__ __forceinline__ u32 kth_largest(const u32 (&keys)[PER_LANE], int n, int k) {
    u32 low = 0, high = 0; // at least k keys reach low (or low is 0), fewer than k reach high
#pragma unroll
    for (int c = 0; c < PER_LANE; ++c)
        if (32 * c < n) high = keys[c] > high ? keys[c] : high;
    high = __reduce_max_sync(ALL_LANES, high) + 1;
    while (high - low > 1) {
        const u32 middle = low + (high - low) / 2;
        u32 reach = 0;
#pragma unroll
        for (int c = 0; c < PER_LANE; ++c)
            if (32 * c < n) reach += keys[c] >= middle;
        reach = __reduce_add_sync(ALL_LANES, reach);
        if (reach >= static_cast<u32>(k))
            low = middle;
        else
            high = middle;
        if (reach == static_cast<u32>(k)) break;
    }
    return low;
}

// What a block knows of its rows.
struct Rows {
    Facts* facts;
    float *bar, *cut; // bar: -infinity to begin with
    u32 *count, *next; // of the list; look again when it has come to `next`
};

// A warp looks through the list of a row, raises its bar, and keeps what can reach it.
__device__ __forceinline__ void raise_bar(const Problem& problem, const Rows& rows, int r, i64 row, int split, u32 most) {
    const int lane = static_cast<int>(threadIdx.x) % 32, n = static_cast<int>(rows.count[r]);
    Candidate* list = problem.lists + (row * problem.splits + split) * CAPACITY;
    const RowBound bound = row_bound(rows.facts[r], problem.sigma, problem.padded);
    auto error_of = [&](Candidate candidate) {
        const Facts latent = problem.latent_facts[candidate.latent];
        return error_bound(bound, latent.norm, latent.residual, problem.bias[candidate.latent]);
    };
    u32 lower[PER_LANE];
#pragma unroll
    for (int c = 0; c < PER_LANE; ++c) {
        lower[c] = 0;
        if (32 * c + lane < n) {
            const Candidate candidate = list[32 * c + lane];
            lower[c] = ascending(candidate.score - error_of(candidate));
        }
    }
    const u32 reached = n >= problem.k ? kth_largest(lower, n, problem.k) : 0;
    float bar = rows.bar[r], keeps = -INFINITY; // `keeps` is passed by equals: those of the list have come before
    if (reached > LOWEST) {
        keeps = fminf(from_ascending(reached), 3.4028234e38f);
        if (lane == 0) atomicMax(&problem.bars[row], ascending(keeps));
        bar = fmaxf(bar, keeps < UNSTRICT ? from_ascending(ascending(keeps) + 1) : keeps);
    }
    const u32 shared = __shfl_sync(ALL_LANES, lane == 0 ? problem.bars[row] : 0u, 0);
    if (shared > LOWEST) {
        keeps = fmaxf(keeps, from_ascending(shared));
        bar = fmaxf(bar, keeps);
    }
    int kept = 0;
    for (int first = 0; first < n; first += 32) {
        Candidate candidate{};
        bool stays = false;
        if (first + lane < n) {
            candidate = list[first + lane];
            stays = !(candidate.score + error_of(candidate) < keeps);
        }
        const u32 staying = __ballot_sync(ALL_LANES, stays); // and all have read before one writes
        if (stays) list[kept + __popc(staying & ((1u << lane) - 1))] = candidate;
        kept += __popc(staying);
        __syncwarp();
    }
    if (lane == 0) {
        rows.bar[r] = bar;
        rows.count[r] = static_cast<u32>(kept);
        const u32 more = static_cast<u32>(kept + (problem.k > 32 ? problem.k : 32));
        rows.next[r] = more < most ? more : most;
    }
    __syncwarp();
}

template <class Number, int BM, int BN, int WARPS_M, int WARPS_N> __device__ void screen(const Problem problem) {
    constexpr int WARPS = WARPS_M * WARPS_N, THREADS = 32 * WARPS;
    constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8; // of a warp; in fragments
    static_assert(NT % 2 == 0 && BM <= THREADS && BN <= 2 * THREADS, "shapes that the loops below count on");
    constexpr u32 MOST = CAPACITY - BN; // a list must have room for a whole tile
    SharedArena arena;
    u16* tiles_x = arena.take<u16>(STAGES * BM * BK);
    u16* tiles_W = arena.take<u16>(STAGES * BN * BK);
    Facts* latent = arena.take<Facts>(BN);
    float* bias = arena.take<float>(BN);
    float* largest = arena.take<float>(3 * WARPS);
    const Rows rows = {arena.take<Facts>(BM), arena.take<float>(BM), arena.take<float>(BM), arena.take<u32>(BM),
                       arena.take<u32>(BM)};

    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
    const int row_tiles = static_cast<int>(ceil_div(problem.rows, BM));
    const int split = static_cast<int>(blockIdx.x) / row_tiles; // neighbours in time share a split, so its latents
    const i64 first_row = static_cast<i64>(static_cast<int>(blockIdx.x) % row_tiles) * BM;
    const int all_tiles = static_cast<int>(ceil_div(problem.latents, BN));
    const int first_tile = static_cast<int>(static_cast<i64>(all_tiles) * split / problem.splits);
    const int n_tiles = static_cast<int>(static_cast<i64>(all_tiles) * (split + 1) / problem.splits) - first_tile;
    const int steps = static_cast<int>(ceil_div(problem.padded, BK)); // for each tile

    if (thread < BM) {
        const i64 row = first_row + thread;
        const bool there = row < problem.rows;
        const Facts facts = there ? problem.row_facts[row] : Facts{1.0f, 0.0f, 0.0f, static_cast<float>(IRREGULAR)};
        const bool judged = facts.kind != static_cast<float>(IRREGULAR);
        rows.facts[thread] = facts;
        rows.bar[thread] = judged ? -INFINITY : INFINITY; // an infinite bar: the row is stopped
        rows.count[thread] = 0;
        rows.next[thread] = static_cast<u32>(problem.k) < MOST ? static_cast<u32>(problem.k) : MOST;
        if (there && !judged) problem.stopped[row] = 1;
    }

    auto load_step = [&](int step) { // counted over all tiles
        if (step < n_tiles * steps) {
            const int slot = step % STAGES, column = step % steps * BK;
            const i64 tile = first_tile + step / steps;
            load_tile<BM, THREADS>(tiles_x + slot * BM * BK, problem.x, first_row, problem.rows, problem.padded, column);
            load_tile<BN, THREADS>(tiles_W + slot * BN * BK, problem.W, tile * BN, problem.latents, problem.padded,
                                   column);
        }
        copy_async_commit(); // an empty group at the end, so that counting stays simple
    };
    for (int step = 0; step < STAGES - 1; ++step) load_step(step);

    int step = 0;
    for (int tile = 0; tile < n_tiles; ++tile) {
        float sum[MT][NT][4] = {};
        for (int of_tile = 0; of_tile < steps; ++of_tile, ++step) {
            copy_async_wait<STAGES - 2>();
            __syncthreads(); // this stage has landed for all, and all are done with the one that is filled next
            load_step(step + STAGES - 1);
            u16 *tile_x = tiles_x + step % STAGES * BM * BK, *tile_W = tiles_W + step % STAGES * BN * BK;
#pragma unroll
            for (int k16 = 0; k16 < BK / 16; ++k16) {
                u32 a[MT][4], b[NT][2];
#pragma unroll
                for (int m = 0; m < MT; ++m)
                    load_matrices(a[m], chunk_at(tile_x, warp_m + 16 * m + lane % 16, 2 * k16 + lane / 16));
#pragma unroll
                for (int n = 0; n < NT; n += 2) {
                    u32 pair[4];
                    const int column = warp_n + 8 * n + lane / 16 * 8 + lane % 8;
                    load_matrices(pair, chunk_at(tile_W, column, 2 * k16 + lane / 8 % 2));
                    b[n][0] = pair[0];
                    b[n][1] = pair[1];
                    b[n + 1][0] = pair[2];
                    b[n + 1][1] = pair[3];
                }
#pragma unroll
                for (int m = 0; m < MT; ++m)
#pragma unroll
                    for (int n = 0; n < NT; ++n) multiply<Number>(sum[m][n], a[m], b[n]);
            }
        }

        // --- epilogue: what the tile's latents are, and what each row's scores must reach -----------------------------
        const int first_latent = (first_tile + tile) * BN;
        float norm = 0, residual = 0, most_bias = 0;
        for (int n = thread; n < BN; n += THREADS) {
            const int j = first_latent + n;
            const Facts facts = j < problem.latents ? problem.latent_facts[j] : Facts{0.0f, 0.0f, 0.0f, 0.0f};
            latent[n] = facts;
            bias[n] = j < problem.latents ? problem.bias[j] : 0.0f;
            norm = fmaxf(norm, facts.norm);
            residual = fmaxf(residual, facts.residual);
            most_bias = bias[n] == bias[n] ? fmaxf(most_bias, fabsf(bias[n])) : INFINITY;
        }
        for (int by = 16; by; by /= 2) {
            norm = fmaxf(norm, __shfl_xor_sync(ALL_LANES, norm, by));
            residual = fmaxf(residual, __shfl_xor_sync(ALL_LANES, residual, by));
            most_bias = fmaxf(most_bias, __shfl_xor_sync(ALL_LANES, most_bias, by));
        }
        if (lane == 0) {
            largest[3 * warp] = norm;
            largest[3 * warp + 1] = residual;
            largest[3 * warp + 2] = most_bias;
        }
        __syncthreads();
        if (thread < BM) {
            for (int w = 0; w < WARPS; ++w) {
                norm = fmaxf(norm, largest[3 * w]);
                residual = fmaxf(residual, largest[3 * w + 1]);
                most_bias = fmaxf(most_bias, largest[3 * w + 2]);
            }
            const float bar = rows.bar[thread];
            const float e = error_bound(row_bound(rows.facts[thread], problem.sigma, problem.padded), norm, residual,
                                        most_bias);
            float cut = bar; // a row of zeros has no error: its ties are decided here
            if (bar < INFINITY && e != 0.0f) cut = e < INFINITY ? bar - e - 0x1p-22f * (fabsf(bar) + e) : -INFINITY;
            rows.cut[thread] = cut;
        }
        __syncthreads();

        // --- the scores that can reach it ------------------------------------------------------------------------------
#pragma unroll
        for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int r = warp_m + 16 * m + 8 * half + lane / 4;
                const float cut = rows.cut[r], scale = rows.facts[r].scale;
                Candidate* list = problem.lists + ((first_row + r) * problem.splits + split) * CAPACITY;
#pragma unroll
                for (int n = 0; n < NT; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int c = warp_n + 8 * n + 2 * (lane % 4) + i;
                        const float score = fmaf(sum[m][n][2 * half + i] * latent[c].scale, scale, bias[c]);
                        if (score < cut) continue; // NaN passes
                        if (cut == INFINITY || first_latent + c >= problem.latents) continue;
                        list[atomicAdd(&rows.count[r], 1u)] = {score, static_cast<u32>(first_latent + c)};
                    }
            }
        __syncthreads();

        // --- rows whose lists have grown -------------------------------------------------------------------------------
        const bool last = tile + 1 == n_tiles;
        for (int r = warp; r < BM; r += WARPS) {
            const i64 row = first_row + r;
            if (row >= problem.rows || rows.bar[r] == INFINITY) continue;
            if (rows.count[r] >= rows.next[r] || last) raise_bar(problem, rows, r, row, split, MOST);
            if (rows.count[r] > MOST && !last && lane == 0) {
                rows.bar[r] = INFINITY;
                problem.stopped[row] = 1;
            }
        }
    }
    copy_async_wait<0>();
    __syncthreads();
    if (thread < BM && first_row + thread < problem.rows)
        problem.counts[(first_row + thread) * problem.splits + split] = rows.count[thread];
}

} // namespace

#define PARAMETERS                                                                                                     \
    (const u16* x, const u16* W, const Facts* row_facts, const Facts* latent_facts, const float* bias, u32* bars,      \
     Candidate* lists, u32* counts, u32* stopped, i64 rows, int latents, int padded, int k, int splits, float sigma)
#define PROBLEM                                                                                                        \
    {x, W, row_facts, latent_facts, bias, bars, lists, counts, stopped, rows, latents, padded, k, splits, sigma}
#define DEFINE(suffix, Number)                                                                                         \
    DEFINE_KERNEL(encode_screen_large_##suffix, 256, PARAMETERS, screen<Number, 128, 256, 2, 4>(PROBLEM))              \
    DEFINE_KERNEL(encode_screen_small_##suffix, 128, PARAMETERS, screen<Number, 64, 128, 2, 2>(PROBLEM))

DEFINE(f16, Half)
DEFINE(bf16, BFloat16)
