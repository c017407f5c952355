// What the screen works on: rows of x and of W as 16-bit numbers, and how much these leave out.
//
// float32 becomes float16 after each row is scaled by a power of two so that its largest number lies in [1, 2): eight
// times closer than bfloat16, at the same rate. float16 and bfloat16 stay as they are (residual 0), and are copied only
// where rows do not start on 16 bytes. Rows whose largest number is not finite, or beyond 2^50 either way, are not
// judged by their scores at all.
#include "encode.cuh"

namespace {

template <class T> struct Operand {
    static constexpr bool scaled = false;
    __device__ static u16 bits(T value, float) { return value.bits; }
};
template <> struct Operand<float> {
    static constexpr bool scaled = true;
    __device__ static u16 bits(float value, float scale) { return narrow<Half>(value * scale).bits; }
};

__device__ __forceinline__ float operand_value(float, u16 bits) { return widen(Half{bits}); }
__device__ __forceinline__ float operand_value(Half, u16 bits) { return widen(Half{bits}); }
__device__ __forceinline__ float operand_value(BFloat16, u16 bits) { return widen(BFloat16{bits}); }

constexpr int FARTHEST = 50; // exponents of regular rows: products of two, and their sums, stay within float32

// A warp for each row. out: [rows, padded], continued with zeros, or null.
template <class T, int V>
__device__ void prepare(const T* __restrict__ in, u16* __restrict__ out, Facts* __restrict__ facts, i64 rows, int width,
                        int padded) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const i64 row = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const T* numbers = in + row * width;
    u32 largest = 0; // as bits, in which NaN is larger than infinity
    for (int p = lane; p < width / V; p += 32) {
        const auto pack = reinterpret_cast<const Pack<T, V>*>(numbers)[p];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const u32 bits = __float_as_uint(widen(pack.at[v])) & 0x7fffffffu;
            largest = bits > largest ? bits : largest;
        }
    }
    largest = __reduce_max_sync(ALL_LANES, largest);
    const int exponent = static_cast<int>(largest >> 23) - 127;
    const bool in_range = largest < 0x7f800000u && exponent >= -FARTHEST && exponent <= FARTHEST;
    const Kind kind = largest == 0 ? ZERO : in_range ? REGULAR : IRREGULAR;
    const bool scaled = Operand<T>::scaled && kind == REGULAR;
    const float down = scaled ? __uint_as_float(static_cast<u32>(127 - exponent) << 23) : 1.0f;
    float squares = 0, left_out = 0;
    for (int p = lane; p < width / V; p += 32) {
        const auto pack = reinterpret_cast<const Pack<T, V>*>(numbers)[p];
        Pack<u16, V> bits;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            bits.at[v] = kind == REGULAR ? Operand<T>::bits(pack.at[v], down) : 0;
            const float value = widen(pack.at[v]) * down, rest = value - operand_value(pack.at[v], bits.at[v]);
            squares = fmaf(value, value, squares);
            left_out = fmaf(rest, rest, left_out);
        }
        if (out) *reinterpret_cast<Pack<u16, V>*>(out + row * padded + p * V) = bits;
    }
    if (out)
        for (int c = width + lane; c < padded; c += 32) out[row * padded + c] = 0;
    for (int by = 16; by; by /= 2) {
        squares += __shfl_xor_sync(ALL_LANES, squares, by);
        left_out += __shfl_xor_sync(ALL_LANES, left_out, by);
    }
    if (lane) return;
    // A sum of width / 32 + 5 roundings, its root and a few more: less than this share.
    const float more = 1.0f + 0x1p-16f + static_cast<float>(width) * 0x1p-28f;
    const float scale = scaled ? __uint_as_float(static_cast<u32>(127 + exponent) << 23) : 1.0f;
    const float residual = Operand<T>::scaled ? sqrtf(left_out) * more * scale : 0.0f;
    const float norm = sqrtf(squares) * more * scale + residual;
    if (kind == REGULAR)
        facts[row] = {scale, norm, residual, static_cast<float>(kind)};
    else
        facts[row] = {1.0f, kind == ZERO ? 0.0f : INFINITY, 0.0f, static_cast<float>(kind)};
}

} // namespace

#define PARAMETERS(T) (const T* in, u16* out, Facts* facts, i64 rows, int width, int padded)
#define DEFINE(suffix, T)                                                                                              \
    DEFINE_KERNEL(encode_prepare_##suffix, 256, PARAMETERS(T), prepare<T, 1>(in, out, facts, rows, width, padded))     \
    DEFINE_KERNEL(encode_prepare_packed_##suffix, 256, PARAMETERS(T),                                                  \
                  prepare<T, 16 / sizeof(T)>(in, out, facts, rows, width, padded))

FOR_EACH_DTYPE(DEFINE)
