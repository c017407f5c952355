// The CUDA execution model on one CPU thread, for tests: what a kernel's source needs in order to be compiled by g++.
//
// A grid is a loop over blocks, in an order drawn from the launch's seed. The threads of a block are fibers; wherever
// they meet (barriers, warp operations) or touch an atomic, the next one to run is drawn from the seed too, so that a
// kernel which relies on an order that CUDA does not promise gives other results for other seeds. Misuse stops the
// launch with a message: a barrier that some threads do not reach, lanes of one warp that meet at different
// operations, a shuffle from a lane outside the mask, shared memory beyond what the launch gave.
//
// Not modelled: several blocks at once, memory that other threads see late, time.
#pragma once

#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __shared__ static // blocks run one after the other; AddressSanitizer guards it, but nothing refills it

struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace shim {

using Where = std::source_location;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- what the scheduler offers ---------------------------------------------------------------------------------------
void maybe_yield();                                    // at atomics: another thread may come first
int barrier(int value, const char* name, Where where); // returns how many threads of the block gave a value but zero
void* take_shared(size_t offset, size_t bytes);        // the part of the block's shared memory asked for by each thread
bool toss();                                           // a seeded coin, for things whose time CUDA leaves open
unsigned lane();
void copy_later(void* to, const void* from, size_t bytes, size_t valid); // cp.async
void close_copies();                                                     // cp.async.commit_group
void finish_copies(unsigned groups_left_open);                           // cp.async.wait_group

// Where lanes of a warp meet to exchange operands; kept until the last of them has read what it came for.
struct Meeting {
    const char* name;
    Where where;
    unsigned mask, arrived, left;
    alignas(16) char slots[32][48];
};
Meeting& meet(const char* name, unsigned mask, const void* operand, size_t bytes, Where where);
void leave(Meeting& meeting);

// Hand over an operand, wait for every lane of the mask, and compute this lane's result from all operands.
template <class Operand, class Combine>
auto together(const char* name, unsigned mask, const Operand& operand, Where where, Combine combine) {
    static_assert(sizeof(Operand) <= sizeof(Meeting::slots[0]) && std::is_trivially_copyable_v<Operand>);
    Meeting& meeting = meet(name, mask, &operand, sizeof operand, where);
    auto slot = [&](unsigned of) -> const Operand& { return *reinterpret_cast<const Operand*>(meeting.slots[of]); };
    const auto result = combine(slot);
    leave(meeting);
    return result;
}

// --- kernels by name ---------------------------------------------------------------------------------------------------
using Thunk = void (*)(void** arguments);

struct Registration {
    Registration(const char* name, Thunk thunk);
};

template <auto kernel> struct Caller;
template <class... Arguments, void (*kernel)(Arguments...)> struct Caller<kernel> {
    static void call(void** arguments) { call(arguments, std::index_sequence_for<Arguments...>{}); }
    template <size_t... i> static void call(void** arguments, std::index_sequence<i...>) {
        kernel(*static_cast<Arguments*>(arguments[i])...);
    }
};

} // namespace shim

#define EXPORT_KERNEL(name) static const shim::Registration register_##name(#name, &shim::Caller<&name>::call)

// --- barriers ------------------------------------------------------------------------------------------------------------
inline void __syncthreads(shim::Where where = shim::Where::current()) { shim::barrier(0, "__syncthreads", where); }
inline int __syncthreads_or(int value, shim::Where where = shim::Where::current()) {
    return shim::barrier(value, "__syncthreads_or", where) != 0;
}
inline int __syncthreads_count(int value, shim::Where where = shim::Where::current()) {
    return shim::barrier(value, "__syncthreads_count", where);
}
inline void __threadfence() { shim::maybe_yield(); }
inline void __threadfence_block() { shim::maybe_yield(); }
[[noreturn]] inline void __trap(shim::Where where = shim::Where::current()) {
    shim::fail("trap at %s:%u", where.file_name(), where.line());
}

#include "shim_numbers.h"
#include "shim_warp.h"
#include "shim_tensor_core.h"
