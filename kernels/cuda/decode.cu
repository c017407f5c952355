// sparse_decode: sums of k rows of W, one sum per row of the output.
//
// A thread owns V neighbouring numbers of an output row and walks over the row's k latents, so that a block reads each
// chosen row of W in one sweep, and keeps several of them in flight. Sums run in the order of k, in float32.
#include "device.cuh"

namespace {

constexpr int UNROLL = 8; // rows of W on their way to one thread: 128 bytes a thread hide the memory's latency

// Loads first, then sums: loads that wait for each other would leave the memory idle.
template <int N, class T, int V>
__device__ __forceinline__ void add(const T* value, const i64* index, const T* W, i64 latents, int width,
                                    float (&sum)[V]) {
    Pack<T, V> chosen[N];
    float weight[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
        weight[n] = widen(value[n]);
        chosen[n] = *reinterpret_cast<const Pack<T, V>*>(W + checked(index[n], latents) * width);
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] = fmaf(weight[n], widen(chosen[n].at[v]), sum[v]);
}

// block: (threads over the width, rows of the output); grid: (rows, pieces of the width)
template <class T, int V>
__device__ void decode(const T* __restrict__ values, const i64* __restrict__ indices, const T* __restrict__ W,
                       T* __restrict__ out, i64 rows, i64 latents, int width, int k) {
    using Packed = Pack<T, V>;
    const int n_packs = width / V;
    const int pack = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    const i64 row = static_cast<i64>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows || pack >= n_packs) return;
    const T* value = values + row * k;
    const i64* index = indices + row * k;
    float sum[V] = {};
    int i = 0;
    for (; i + UNROLL <= k; i += UNROLL) add<UNROLL>(value + i, index + i, W + pack * V, latents, width, sum);
    for (; i < k; ++i) add<1>(value + i, index + i, W + pack * V, latents, width, sum);
    Packed result;
#pragma unroll
    for (int v = 0; v < V; ++v) result.at[v] = narrow<T>(sum[v]);
    reinterpret_cast<Packed*>(out + row * width)[pack] = result;
}

} // namespace

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        sparse_decode_##suffix(const T* values, const i64* indices, const T* W, T* out, i64 rows, i64 latents,         \
                               int width, int k) {                                                                     \
        decode<T, 1>(values, indices, W, out, rows, latents, width, k);                                                \
    }                                                                                                                  \
    EXPORT_KERNEL(sparse_decode_##suffix);                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        sparse_decode_packed_##suffix(const T* values, const i64* indices, const T* W, T* out, i64 rows, i64 latents,  \
                                      int width, int k) {                                                              \
        decode<T, 16 / sizeof(T)>(values, indices, W, out, rows, latents, width, k);                                   \
    }                                                                                                                  \
    EXPORT_KERNEL(sparse_decode_packed_##suffix);

FOR_EACH_DTYPE(DEFINE)
