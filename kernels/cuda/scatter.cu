// scatter_outer: for each latent the sum, in row order, of the rows in which it is active, each times its value.
//
// Gradients of the weights: a block owns latents and nobody else writes them, so there are no atomics on floats and the
// same input gives the same bits. Latents that are active nowhere are written as zeros.
#include "device.cuh"

namespace {

constexpr int UNROLL = 4; // rows of x on their way to one thread; most latents have few

// block: (threads over the width, latents); grid: (latents, pieces of the width)
template <class T, int V>
__device__ void scatter(const T* __restrict__ values, const u32* __restrict__ pairs, const u32* __restrict__ starts,
                        const T* __restrict__ x, T* __restrict__ out, i64 latents, int width, int k) {
    const int pack = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    const i64 latent = static_cast<i64>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (latent >= latents || pack >= width / V) return;
    const T* column = x + pack * V;
    const u32 per_row = static_cast<u32>(k);
    reinterpret_cast<Pack<T, V>*>(out + latent * width)[pack] = sum_of_rows<UNROLL, T, V>(
        starts[latent], starts[latent + 1], [&](u32 at) { return widen(values[pairs[at]]); },
        [&](u32 at) { return column + static_cast<i64>(pairs[at] / per_row) * width; });
}

} // namespace

#define PARAMETERS(T)                                                                                                  \
    (const T* values, const u32* pairs, const u32* starts, const T* x, T* out, i64 latents, int width, int k)
#define DEFINE(suffix, T)                                                                                              \
    DEFINE_KERNEL(scatter_outer_##suffix, 256, PARAMETERS(T),                                                          \
                  scatter<T, 1>(values, pairs, starts, x, out, latents, width, k))                                     \
    DEFINE_KERNEL(scatter_outer_packed_##suffix, 256, PARAMETERS(T),                                                   \
                  scatter<T, 16 / sizeof(T)>(values, pairs, starts, x, out, latents, width, k))

FOR_EACH_DTYPE(DEFINE)
