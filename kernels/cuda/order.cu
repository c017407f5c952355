// Pairs (row, place) in the order of their latents, and in row order within one: what sums over rows need.
//
// A stable radix sort of pair numbers by 8 bits of the latent at a time, lowest first. Pairs are cut into chunks, one
// for each block. No order of arrival enters the result, so the same input gives the same bits.
#include "device.cuh"

namespace {

constexpr int DIGITS = 256;
constexpr int WARPS = 8;

__device__ __forceinline__ u32 pair_at(const u32* pairs, i64 place) {
    return pairs ? pairs[place] : static_cast<u32>(place); // before the first pass: as they come
}

} // namespace

// How often each digit occurs in each chunk: counts [digits, chunks]. block: 256 threads; grid: chunks.
extern "C" __global__ void __launch_bounds__(256)
    order_count(const i64* __restrict__ indices, const u32* __restrict__ pairs, u32* __restrict__ counts, i64 n,
                i64 latents, int chunk, int shift) {
    SharedArena arena;
    u32* count = arena.take<u32>(DIGITS);
    count[threadIdx.x] = 0;
    __syncthreads();
    const i64 first = static_cast<i64>(blockIdx.x) * chunk, last = first + chunk < n ? first + chunk : n;
    for (i64 at = first + threadIdx.x; at < last; at += blockDim.x) {
        const i64 latent = checked(indices[pair_at(pairs, at)], latents);
        atomicAdd(&count[latent >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    counts[threadIdx.x * gridDim.x + blockIdx.x] = count[threadIdx.x];
}
EXPORT_KERNEL(order_count);

// Turn counts into the places where they begin, in the order of the array. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) order_scan(u32* __restrict__ counts, int n) {
    SharedArena arena;
    u32* of_warp = arena.take<u32>(32);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    u32 before = 0; // everything left of this sweep
    for (int first = 0; first < n; first += 1024) {
        const int at = first + static_cast<int>(threadIdx.x);
        const u32 count = at < n ? counts[at] : 0;
        u32 sum = count; // of the lanes up to this one
        for (int by = 1; by < 32; by *= 2) {
            const u32 left = __shfl_up_sync(ALL_LANES, sum, by);
            if (lane >= by) sum += left;
        }
        if (lane == 31) of_warp[warp] = sum;
        __syncthreads();
        u32 sums = of_warp[lane]; // each warp sums up all warps for itself
        for (int by = 1; by < 32; by *= 2) {
            const u32 left = __shfl_up_sync(ALL_LANES, sums, by);
            if (lane >= by) sums += left;
        }
        const u32 warps_before = warp ? __shfl_sync(ALL_LANES, sums, warp - 1) : 0;
        if (at < n) counts[at] = before + warps_before + sum - count;
        before += __shfl_sync(ALL_LANES, sums, 31);
        __syncthreads();
    }
}
EXPORT_KERNEL(order_scan);

// Move each pair to its place. Warps own consecutive parts of the chunk and walk through them in order, 32 pairs at a
// time; among those, equal digits are placed by lane.
extern "C" __global__ void __launch_bounds__(256)
    order_place(const i64* __restrict__ indices, const u32* __restrict__ pairs, const u32* __restrict__ starts,
                u32* __restrict__ out, i64 n, int chunk, int shift) {
    SharedArena arena;
    u32* next = arena.take<u32>(WARPS * DIGITS); // first a count, then where the warp's next pair of that digit goes
    for (int i = static_cast<int>(threadIdx.x); i < WARPS * DIGITS; i += 256) next[i] = 0;
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int part = chunk / WARPS;
    const i64 first = static_cast<i64>(blockIdx.x) * chunk + static_cast<i64>(warp) * part;
    const i64 last = first + part < n ? first + part : n;
    u32* mine = next + warp * DIGITS;
    for (i64 at = first + lane; at < last; at += 32)
        atomicAdd(&mine[indices[pair_at(pairs, at)] >> shift & (DIGITS - 1)], 1u);
    __syncthreads();
    u32 place = starts[threadIdx.x * gridDim.x + blockIdx.x];
    for (int w = 0; w < WARPS; ++w) {
        u32& cell = next[w * DIGITS + static_cast<int>(threadIdx.x)];
        const u32 count = cell;
        cell = place;
        place += count;
    }
    __syncthreads();
    for (i64 at = first + lane; at - lane < last; at += 32) {
        const bool there = at < last;
        const u32 pair = there ? pair_at(pairs, at) : 0;
        const u32 digit = there ? static_cast<u32>(indices[pair] >> shift) & (DIGITS - 1) : DIGITS;
        const u32 alike = __match_any_sync(ALL_LANES, digit);
        const u32 rank = static_cast<u32>(__popc(alike & ((1u << lane) - 1)));
        if (there) out[mine[digit] + rank] = pair;
        __syncwarp(); // all have read before the first of each kind moves on
        if (there && rank == 0) mine[digit] += static_cast<u32>(__popc(alike));
        __syncwarp();
    }
}
EXPORT_KERNEL(order_place);

// starts[j]: the first place whose latent is j or above, for j = 0 ... latents. A thread for each.
extern "C" __global__ void __launch_bounds__(256)
    order_starts(const i64* __restrict__ indices, const u32* __restrict__ pairs, u32* __restrict__ starts, i64 n,
                 i64 latents) {
    const i64 latent = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (latent > latents) return;
    i64 low = 0, high = n;
    while (low < high) {
        const i64 middle = (low + high) / 2;
        if (indices[pairs[middle]] < latent)
            low = middle + 1;
        else
            high = middle;
    }
    starts[latent] = static_cast<u32>(low);
}
EXPORT_KERNEL(order_starts);
