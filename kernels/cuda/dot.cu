// gathered_dot: each row of x with its own k rows of W.
//
// A warp takes DOTS of a row's latents at a time, so that the row of x is read once for all of them and DOTS rows of W
// are on their way at once. Lanes take turns over the width; sums are float32, folded across the warp in a fixed order.
#include "device.cuh"

namespace {

constexpr int DOTS = 4;

// block: warps; grid: enough of them for rows times ceil(k / DOTS)
template <class T, int V>
__device__ void dot(const T* __restrict__ x, const i64* __restrict__ indices, const T* __restrict__ W,
                    T* __restrict__ out, i64 rows, i64 latents, int width, int k) {
    using Packed = Pack<T, V>;
    const int lane = static_cast<int>(threadIdx.x) % 32, groups = static_cast<int>(ceil_div(k, DOTS));
    const i64 warp = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const i64 row = warp / groups;
    if (row >= rows) return;
    const int first = static_cast<int>(warp % groups) * DOTS, n_packs = width / V;
    const auto* left = reinterpret_cast<const Packed*>(x + row * width);
    const Packed* right[DOTS];
#pragma unroll
    for (int d = 0; d < DOTS; ++d) { // past the last latent: the last again, not written
        const int i = first + d < k ? first + d : k - 1;
        right[d] = reinterpret_cast<const Packed*>(W + checked(indices[row * k + i], latents) * width);
    }
    float sum[DOTS] = {};
    for (int p = lane; p < n_packs; p += 32) {
        const Packed a = left[p];
        Packed b[DOTS];
#pragma unroll
        for (int d = 0; d < DOTS; ++d) b[d] = right[d][p];
#pragma unroll
        for (int d = 0; d < DOTS; ++d)
#pragma unroll
            for (int v = 0; v < V; ++v) sum[d] = fmaf(widen(a.at[v]), widen(b[d].at[v]), sum[d]);
    }
#pragma unroll
    for (int d = 0; d < DOTS; ++d) {
        for (int by = 16; by; by /= 2) sum[d] += __shfl_down_sync(ALL_LANES, sum[d], by);
        if (lane == 0 && first + d < k) out[row * k + first + d] = narrow<T>(sum[d]);
    }
}

} // namespace

#define PARAMETERS(T) (const T* x, const i64* indices, const T* W, T* out, i64 rows, i64 latents, int width, int k)
#define DEFINE(suffix, T)                                                                                              \
    DEFINE_KERNEL(gathered_dot_##suffix, 256, PARAMETERS(T), dot<T, 1>(x, indices, W, out, rows, latents, width, k))   \
    DEFINE_KERNEL(gathered_dot_packed_##suffix, 256, PARAMETERS(T),                                                    \
                  dot<T, 16 / sizeof(T)>(x, indices, W, out, rows, latents, width, k))

FOR_EACH_DTYPE(DEFINE)
