// sparse_decode: sums of k rows of W, one sum per row of the output.
//
// A thread owns V neighbouring numbers of an output row and walks over the row's k latents, so that a block reads each
// chosen row of W in one sweep. Sums run in the order of k, in float32.
#include "device.cuh"

namespace {

constexpr int UNROLL = 8; // rows of W on their way to one thread: 128 bytes a thread hide the memory's latency

// block: (threads over the width, rows of the output); grid: (rows, pieces of the width)
template <class T, int V>
__device__ void decode(const T* __restrict__ values, const i64* __restrict__ indices, const T* __restrict__ W,
                       T* __restrict__ out, i64 rows, i64 latents, int width, int k) {
    const int pack = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    const i64 row = static_cast<i64>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (row >= rows || pack >= width / V) return;
    const T *value = values + row * k, *column = W + pack * V;
    const i64* index = indices + row * k;
    reinterpret_cast<Pack<T, V>*>(out + row * width)[pack] = sum_of_rows<UNROLL, T, V>(
        0, k, [&](int i) { return widen(value[i]); }, [&](int i) { return column + checked(index[i], latents) * width; });
}

} // namespace

#define PARAMETERS(T)                                                                                                  \
    (const T* values, const i64* indices, const T* W, T* out, i64 rows, i64 latents, int width, int k)
#define DEFINE(suffix, T)                                                                                              \
    DEFINE_KERNEL(sparse_decode_##suffix, 256, PARAMETERS(T),                                                          \
                  decode<T, 1>(values, indices, W, out, rows, latents, width, k))                                      \
    DEFINE_KERNEL(sparse_decode_packed_##suffix, 256, PARAMETERS(T),                                                   \
                  decode<T, 16 / sizeof(T)>(values, indices, W, out, rows, latents, width, k))

FOR_EACH_DTYPE(DEFINE)
