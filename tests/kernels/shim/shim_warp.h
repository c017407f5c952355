// Warp operations under the shim: each lane named in the mask must come, to the same line. Included by shim.h.
#pragma once

namespace shim {

// The lane a shuffle reads from must lie in the mask; CUDA leaves what it gets otherwise open.
inline void require_in_mask(const char* name, unsigned mask, unsigned source, Where where) {
    if (!(mask >> source & 1))
        fail("%s at %s:%u: lane %u reads lane %u, which is not in the mask %08x", name, where.file_name(), where.line(),
             lane(), source, mask);
}

template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, int width, Where where, Source source_in_segment) {
    if (width <= 0 || width > 32 || (width & (width - 1))) fail("%s: width %d is not a power of two", name, width);
    const int segment = static_cast<int>(lane()) & ~(width - 1), place = static_cast<int>(lane()) & (width - 1);
    const int source = source_in_segment(place);
    const unsigned from = static_cast<unsigned>(source < 0 || source >= width ? segment + place : segment + source);
    require_in_mask(name, mask, from, where);
    return together(name, mask, value, where, [&](auto slot) { return slot(from); });
}

} // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, shim::Where where = shim::Where::current()) {
    return shim::shuffle("__shfl_sync", mask, value, width, where, [&](int) { return source & (width - 1); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, shim::Where where = shim::Where::current()) {
    return shim::shuffle("__shfl_up_sync", mask, value, width, where,
                         [&](int place) { return place - static_cast<int>(by); });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, shim::Where where = shim::Where::current()) {
    return shim::shuffle("__shfl_down_sync", mask, value, width, where,
                         [&](int place) { return place + static_cast<int>(by); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, shim::Where where = shim::Where::current()) {
    return shim::shuffle("__shfl_xor_sync", mask, value, width, where, [&](int place) { return place ^ by; });
}

inline void __syncwarp(unsigned mask = 0xffffffffu, shim::Where where = shim::Where::current()) {
    shim::together("__syncwarp", mask, 0, where, [](auto) { return 0; });
}

inline unsigned __ballot_sync(unsigned mask, int yes, shim::Where where = shim::Where::current()) {
    return shim::together("__ballot_sync", mask, yes, where, [&](auto slot) {
        unsigned bits = 0;
        for (unsigned i = 0; i < 32; ++i)
            if (mask >> i & 1 && slot(i)) bits |= 1u << i;
        return bits;
    });
}
inline int __any_sync(unsigned mask, int yes, shim::Where where = shim::Where::current()) {
    return __ballot_sync(mask, yes, where) != 0;
}
inline int __all_sync(unsigned mask, int yes, shim::Where where = shim::Where::current()) {
    return __ballot_sync(mask, yes, where) == mask;
}
inline unsigned __match_any_sync(unsigned mask, unsigned value, shim::Where where = shim::Where::current()) {
    return shim::together("__match_any_sync", mask, value, where, [&](auto slot) {
        unsigned bits = 0;
        for (unsigned i = 0; i < 32; ++i)
            if (mask >> i & 1 && slot(i) == value) bits |= 1u << i;
        return bits;
    });
}

namespace shim {

template <class Combine>
unsigned reduce(const char* name, unsigned mask, unsigned value, Where where, Combine combine) {
    return together(name, mask, value, where, [&](auto slot) {
        unsigned result = value;
        for (unsigned i = 0; i < 32; ++i)
            if (mask >> i & 1 && i != lane()) result = combine(result, slot(i));
        return result;
    });
}

} // namespace shim

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, shim::Where where = shim::Where::current()) {
    return shim::reduce("__reduce_add_sync", mask, value, where, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, shim::Where where = shim::Where::current()) {
    return shim::reduce("__reduce_max_sync", mask, value, where, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, shim::Where where = shim::Where::current()) {
    return shim::reduce("__reduce_min_sync", mask, value, where, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
