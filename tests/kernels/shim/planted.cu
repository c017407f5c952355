// Kernels that are right, and kernels with one planted error each: what the shim must accept and what it must find.
// `planted CASE SEED` exits with 0 if the result was right, 10 if it was wrong, 11 if the shim stopped the launch (and
// prints why); a sanitizer ends the process in its own way.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "device.cuh"

extern "C" int shim_launch(const char*, const unsigned*, const unsigned*, size_t, void**, uint64_t);
extern "C" const char* shim_message();

namespace {

constexpr int N = 64;

// --- barriers ------------------------------------------------------------------------------------------------------------
template <bool meets> __device__ void reverse(const int* in, int* out) {
    SharedArena arena;
    int* held = arena.take<int>(N);
    held[threadIdx.x] = in[threadIdx.x];
    if (meets) __syncthreads();
    out[threadIdx.x] = held[N - 1 - threadIdx.x];
}
__global__ void reverses(const int* in, int* out) { reverse<true>(in, out); }
EXPORT_KERNEL(reverses);
__global__ void forgets_the_barrier(const int* in, int* out) { reverse<false>(in, out); }
EXPORT_KERNEL(forgets_the_barrier);
__global__ void half_reach_the_barrier(const int* in, int* out) {
    if (threadIdx.x < N / 2) __syncthreads();
    out[threadIdx.x] = in[N - 1 - threadIdx.x];
}
EXPORT_KERNEL(half_reach_the_barrier);
__global__ void half_end_before_the_barrier(const int* in, int* out) {
    out[threadIdx.x] = in[N - 1 - threadIdx.x];
    if (threadIdx.x >= N / 2) return;
    __syncthreads();
}
EXPORT_KERNEL(half_end_before_the_barrier);
__global__ void two_barriers_for_one(const int* in, int* out) {
    if (threadIdx.x < N / 2)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = in[N - 1 - threadIdx.x];
}
EXPORT_KERNEL(two_barriers_for_one);

// --- warps ---------------------------------------------------------------------------------------------------------------
__global__ void sums_by_shuffles(const int* in, int* out) { // of each warp, by every kind of exchange
    const int lane = static_cast<int>(threadIdx.x) % 32, value = in[threadIdx.x];
    int up = value, down = value, across = value;
    for (int by = 1; by < 32; by *= 2) {
        const int from_below = __shfl_up_sync(ALL_LANES, up, static_cast<unsigned>(by));
        if (lane >= by) up += from_below;
        down += __shfl_down_sync(ALL_LANES, down, static_cast<unsigned>(by)) * (lane + by < 32);
        across += __shfl_xor_sync(ALL_LANES, across, by);
    }
    const int sum = __shfl_sync(ALL_LANES, up, 31);
    const bool agree = sum == across && sum == __shfl_sync(ALL_LANES, down, 0) &&
                       static_cast<unsigned>(sum) == __reduce_add_sync(ALL_LANES, static_cast<unsigned>(value));
    const unsigned odd = __ballot_sync(ALL_LANES, value % 2);
    const bool counted = __match_any_sync(ALL_LANES, static_cast<unsigned>(value % 2)) == (value % 2 ? odd : ~odd);
    out[threadIdx.x] = agree && counted && __any_sync(ALL_LANES, lane == 3) && !__all_sync(ALL_LANES, lane == 3) &&
                               __popc(odd) == 16
                           ? in[N - 1 - threadIdx.x]
                           : -1;
}
EXPORT_KERNEL(sums_by_shuffles);
__global__ void reads_a_lane_outside_the_mask(const int* in, int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xffffu, in[threadIdx.x], 8);
}
EXPORT_KERNEL(reads_a_lane_outside_the_mask);
__global__ void leaves_itself_out_of_the_mask(const int* in, int* out) {
    __syncwarp(0xffffu);
    out[threadIdx.x] = in[threadIdx.x];
}
EXPORT_KERNEL(leaves_itself_out_of_the_mask);
__global__ void half_a_warp_shuffles(const int* in, int* out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, in[threadIdx.x], 1);
}
EXPORT_KERNEL(half_a_warp_shuffles);
__global__ void lanes_at_different_operations(const int* in, int* out) {
    if (threadIdx.x % 32 < 16)
        out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, in[threadIdx.x], 1);
    else
        __syncwarp();
}
EXPORT_KERNEL(lanes_at_different_operations);
template <bool meets> __device__ void reverse_in_warp(const int* in, int* out) {
    SharedArena arena;
    int* held = arena.take<int>(N);
    held[threadIdx.x ^ 31] = in[threadIdx.x];
    if (meets) __syncwarp();
    out[N - 1 - (threadIdx.x ^ 31)] = held[threadIdx.x ^ 31 ^ 31] * 0 + in[threadIdx.x ^ 31];
    out[threadIdx.x ^ 32] = held[threadIdx.x];
}
__global__ void reverses_in_warps(const int* in, int* out) { reverse_in_warp<true>(in, out); }
EXPORT_KERNEL(reverses_in_warps);
__global__ void trusts_lanes_to_march_together(const int* in, int* out) { reverse_in_warp<false>(in, out); }
EXPORT_KERNEL(trusts_lanes_to_march_together);

// --- atomics -------------------------------------------------------------------------------------------------------------
__global__ void counts(const int* in, int* out) {
    SharedArena arena;
    int* count = arena.take<int>(1);
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    atomicAdd(count, in[threadIdx.x]);
    __syncthreads();
    out[threadIdx.x] = *count == N * (N - 1) / 2 ? in[N - 1 - threadIdx.x] : -1;
}
EXPORT_KERNEL(counts);
__global__ void takes_places_in_order_of_arrival(const int* in, int* out) {
    SharedArena arena;
    int* count = arena.take<int>(1);
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    out[N - 1 - atomicAdd(count, 1)] = in[threadIdx.x];
}
EXPORT_KERNEL(takes_places_in_order_of_arrival);

// --- memory --------------------------------------------------------------------------------------------------------------
__global__ void writes_behind_shared_memory(const int* in, int* out) {
    SharedArena arena;
    int *held = arena.take<int>(N), *other = arena.take<int>(N);
    held[threadIdx.x + 1] = in[threadIdx.x];
    other[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = other[N - 1 - threadIdx.x] + held[threadIdx.x] * 0;
}
EXPORT_KERNEL(writes_behind_shared_memory);
__global__ void writes_behind_a_shared_variable(const int* in, int* out) {
    __shared__ int held[N];
    held[threadIdx.x + 1] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = held[threadIdx.x];
}
EXPORT_KERNEL(writes_behind_a_shared_variable);
__global__ void writes_behind_the_output(const int* in, int* out) { out[threadIdx.x + 1] = in[threadIdx.x]; }
EXPORT_KERNEL(writes_behind_the_output);
__global__ void takes_more_than_it_was_given(const int* in, int* out) {
    SharedArena arena;
    int *held = arena.take<int>(N), *more = arena.take<int>(8 * N);
    held[threadIdx.x] = more[threadIdx.x] = out[threadIdx.x] = in[threadIdx.x];
}
EXPORT_KERNEL(takes_more_than_it_was_given);
__global__ void reads_what_nobody_wrote(const int* in, int* out) {
    SharedArena arena;
    float* sum = arena.take<float>(N);
    if (threadIdx.x) sum[threadIdx.x] = 0;
    sum[threadIdx.x] += 1;
    out[threadIdx.x] = sum[threadIdx.x] == 1.0f ? in[N - 1 - threadIdx.x] : -1;
}
EXPORT_KERNEL(reads_what_nobody_wrote);
__global__ void loads_from_an_odd_address(const int* in, int* out) {
    const auto pair = *reinterpret_cast<const Pack<int, 2>*>(in + 1);
    out[threadIdx.x] = pair.at[0];
}
EXPORT_KERNEL(loads_from_an_odd_address);
__global__ void traps(const int* in, int* out) { out[0] = in[checked(N, N)]; }
EXPORT_KERNEL(traps);

// --- matrix fragments and asynchronous copies ------------------------------------------------------------------------------
// c [16, 8] = a [16, 16] b [8, 16] transposed, of small whole numbers; with `swapped` two registers of a change places
enum class Fault { none, swapped, no_wait, never_waits };
template <Fault fault> __device__ void multiply(const int* in, int* out) {
    SharedArena arena;
    u16 *a = arena.take<u16>(256), *b = arena.take<u16>(128);
    u16 *source = arena.take<u16>(384);
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 384; i += 32) source[i] = float_to_half_bits(static_cast<float>((in[i % N] * (i + 3)) % 7 - 3));
    __syncwarp();
    for (int i = lane; i < 48; i += 32) copy_async(i < 32 ? a + 8 * i : b + 8 * (i - 32), source + 8 * i, 16);
    copy_async_commit();
    if (fault == Fault::none || fault == Fault::swapped) copy_async_wait<0>();
    if (fault == Fault::no_wait) copy_async_wait<1>();
    __syncwarp();
    u32 left[4], both[4];
    load_matrices(left, a + (lane % 16) * 16 + lane / 16 * 8);
    load_matrices(both, b + lane % 8 * 16 + lane / 8 % 2 * 8);
    if (fault == Fault::no_wait) copy_async_wait<0>();
    if (fault == Fault::swapped) std::swap(left[1], left[2]);
    float sum[4] = {};
    const u32 right[2] = {both[0], both[1]};
    mma_f16(sum, left, right);
    bool exact = true;
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float want = 0;
        for (int k = 0; k < 16; ++k)
            want += half_bits_to_float(source[16 * row + k]) * half_bits_to_float(source[256 + 16 * column + k]);
        exact &= want == sum[i];
    }
    for (int i = lane; i < N; i += 32) out[i] = exact ? in[N - 1 - i] : -1;
}
__global__ void multiplies(const int* in, int* out) { multiply<Fault::none>(in, out); }
EXPORT_KERNEL(multiplies);
__global__ void mistakes_the_fragment(const int* in, int* out) { multiply<Fault::swapped>(in, out); }
EXPORT_KERNEL(mistakes_the_fragment);
__global__ void reads_before_the_copy_landed(const int* in, int* out) { multiply<Fault::no_wait>(in, out); }
EXPORT_KERNEL(reads_before_the_copy_landed);
__global__ void never_waits_for_the_copy(const int* in, int* out) { multiply<Fault::never_waits>(in, out); }
EXPORT_KERNEL(never_waits_for_the_copy);

// --- 16-bit numbers ------------------------------------------------------------------------------------------------------
// Every half and bfloat16 widens and narrows to itself; the middle between two neighbours goes to the even one.
__global__ void converts(const int* in, int* out) {
    bool right = true;
    for (u32 bits = 0; bits < 0x7c00; ++bits) {
        const float here = widen(Half{static_cast<u16>(bits)}), next = widen(Half{static_cast<u16>(bits + 1)});
        right &= narrow<Half>(here).bits == bits && narrow<Half>(-here).bits == (bits | 0x8000);
        const float middle = bits == 0x7bff ? 65520.0f : (here + next) / 2;
        right &= narrow<Half>(middle).bits == bits + bits % 2 && narrow<Half>(std::nextafter(middle, 0.0f)).bits == bits;
    }
    for (u32 bits = 0; bits < 0x7f80; ++bits) {
        const float here = widen(BFloat16{static_cast<u16>(bits)});
        const float middle = __uint_as_float(bits << 16 | 0x8000);
        right &= narrow<BFloat16>(here).bits == bits && narrow<BFloat16>(middle).bits == bits + bits % 2;
    }
    right &= std::isnan(widen(narrow<Half>(NAN))) && std::isnan(widen(narrow<BFloat16>(NAN)));
    right &= widen(narrow<Half>(-INFINITY)) == -INFINITY && widen(narrow<BFloat16>(INFINITY)) == INFINITY;
    out[threadIdx.x] = right ? in[N - 1 - threadIdx.x] : -1;
}
EXPORT_KERNEL(converts);

} // namespace

int main(int, char** words) {
    const std::string name = words[1];
    std::vector<int> in(N), out(N, -2);
    for (int i = 0; i < N; ++i) in[static_cast<size_t>(i)] = i;
    const int *from = in.data();
    int *to = out.data();
    void* arguments[] = {&from, &to};
    const bool one_warp = name.find("fragment") != std::string::npos || name.find("cop") != std::string::npos ||
                          name == "multiplies";
    const bool one_thread = name == "converts";
    const unsigned grid[] = {1, 1, 1}, block[] = {one_thread ? 1u : one_warp ? 32u : N, 1, 1};
    if (shim_launch(words[1], grid, block, 2048, arguments, std::strtoull(words[2], nullptr, 10))) {
        std::puts(shim_message());
        return 11;
    }
    bool right = true;
    for (unsigned i = 0; i < (one_thread ? 1 : N); ++i) right &= out[i] == in[N - 1 - i];
    return right ? 0 : 10;
}
