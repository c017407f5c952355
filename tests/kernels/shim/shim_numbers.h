// Numbers under the shim: 16-bit formats, directed rounding, bit counting, atomics. Included by shim.h.
#pragma once

#include <algorithm>

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcs(T* address, T value) { *address = value; }

inline float half_bits_to_float(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    const float value = __uint_as_float(magnitude << 13) * 0x1p112f; // moves the exponent's bias; exact, subnormals too
    return sign ? -value : value;
}

// Round to nearest, ties to even: the spacing of halves at this magnitude decides, down to the subnormal one.
inline unsigned short float_to_half_bits(float value) {
    const auto sign = static_cast<unsigned short>((__float_as_uint(value) >> 16) & 0x8000u);
    if (std::isnan(value)) return 0x7fff;
    const float magnitude = std::fabs(value);
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(magnitude, &exponent); // magnitude in [2^(exponent-1), 2^exponent)
    const int spacing = magnitude == 0 ? -24 : std::max(exponent - 11, -24);
    const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, -spacing)));
    // Units of 2^spacing continue into the next exponent by themselves: 2048 units are the next power of two.
    const unsigned bits = spacing == -24 ? units : (static_cast<unsigned>(spacing + 24) << 10) + units;
    return static_cast<unsigned short>(sign | bits);
}

// One thread runs at a time, so an atomic is a plain read and write; another thread may be given the turn before it.
template <class T> T atomicAdd(T* address, std::type_identity_t<T> value) {
    static_assert(std::is_integral_v<T>, "sums of floats in no order are not repeatable");
    shim::maybe_yield();
    return std::exchange(*address, static_cast<T>(*address + value));
}
template <class T> T atomicMax(T* address, std::type_identity_t<T> value) {
    shim::maybe_yield();
    return std::exchange(*address, *address < value ? value : *address);
}
template <class T> T atomicMin(T* address, std::type_identity_t<T> value) {
    shim::maybe_yield();
    return std::exchange(*address, value < *address ? value : *address);
}
template <class T> T atomicOr(T* address, std::type_identity_t<T> value) {
    shim::maybe_yield();
    return std::exchange(*address, *address | value);
}
template <class T> T atomicExch(T* address, std::type_identity_t<T> value) {
    shim::maybe_yield();
    return std::exchange(*address, value);
}
template <class T> T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    shim::maybe_yield();
    return std::exchange(*address, *address == expected ? value : *address);
}
