// Number formats, rounding upwards, and memory by the piece.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "interface.h"
#include "machine.h"

namespace {

constexpr double UNIT = 0x1p-24;         // a float32 result is off by at most this share of itself
constexpr double UNIT_DOUBLE = 0x1p-53;  // the same for float64

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A float that is not below a number.
inline float not_less(double number) {
    const float f = float(number);
    return double(f) < number ? std::nextafterf(f, INFINITY) : f;
}

inline float as_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

inline uint32_t bits_of(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return bits;
}

inline float half_to_float(uint16_t half) {
    const uint32_t size = uint32_t(half & 0x7fff) << 13;
    // Read as a float32 this has the right digits and an exponent 112 too small; subnormals come out right as well.
    const float finite = as_float(size) * 0x1p112f;
    const uint32_t bits = size >= (0x7c00u << 13) ? (size | 0x7f800000u) : bits_of(finite);
    return as_float(bits | uint32_t(half & 0x8000) << 16);
}

inline uint16_t float_to_bf16(float f) {  // to nearest, ties to even; not for NaN
    const uint32_t bits = bits_of(f);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float bf16_to_float(uint16_t b) { return as_float(uint32_t(b) << 16); }

// Products of float32 numbers, summed in float64 in some fixed order: for norms and the like.
inline double wide_dot(const float* a, const float* b, int64_t n) {
    Doubles sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * DOUBLES <= n; c += 4 * DOUBLES)
        for (int i = 0; i < 4; i++) sums[i] += widen(a + c + DOUBLES * i) * widen(b + c + DOUBLES * i);
    const Doubles sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0;
    for (int i = 0; i < DOUBLES; i++) total += sum[i];
    for (; c < n; c++) total += double(a[c]) * b[c];
    return total;
}

// Rows of a contiguous [rows, width] array of any dtype, as float32.
struct Matrix {
    const void* data;
    int64_t width;
    int32_t dtype;

    const float* row(int64_t r, float* buffer) const {
        if (dtype == FLOAT32) return static_cast<const float*>(data) + r * width;
        const uint16_t* from = static_cast<const uint16_t*>(data) + r * width;
        if (dtype == FLOAT16)
            for (int64_t c = 0; c < width; c++) buffer[c] = half_to_float(from[c]);
        else
            for (int64_t c = 0; c < width; c++) buffer[c] = bf16_to_float(from[c]);
        return buffer;
    }

    float at(int64_t r) const {  // of an array of one column
        float buffer;
        return *Matrix{data, 1, dtype}.row(r, &buffer);
    }

    const void* address(int64_t r) const {
        return static_cast<const char*>(data) + r * width * (dtype == FLOAT32 ? 4 : 2);
    }
};

// Cuts a workspace into arrays. Without a workspace it only counts, so the same code says how large one must be.
class Arena {
  public:
    explicit Arena(void* base) : base(static_cast<char*>(base)) {}

    template <class Item>
    Item* take(int64_t n) {
        constexpr int64_t LINE = 64;
        Item* piece = base ? reinterpret_cast<Item*>(base + used) : nullptr;
        used += round_up(n * int64_t(sizeof(Item)) + LINE, LINE);  // and a line to read or write past the end
        return piece;
    }

    int64_t used = 0;

  private:
    char* base;
};

}  // namespace
