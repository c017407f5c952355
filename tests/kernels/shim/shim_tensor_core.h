// Matrix fragments and asynchronous copies under the shim: who holds what, as the PTX manual lays it out (the sections
// on mma.m16n8k16, ldmatrix and cp.async), and sums as inexact as the hardware may make them. Included by shim.h.
#pragma once

namespace shim {

inline float bfloat16_to_float(unsigned short bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

// A tensor core aligns the terms of a sum to the largest of them and cuts what falls below; nothing is rounded to
// nearest. Here the accumulator and 8 products are cut to 24 bits below the largest term's leading one, then their sum to
// float32 towards zero: the coarsest that has been measured on sm_80, coarser than sm_90.
inline float truncated_sum(float accumulator, const float (&products)[8]) {
    float largest = std::fabs(accumulator);
    for (const float product : products) largest = std::fmax(largest, std::fabs(product));
    double sum = 0;
    if (!(largest < INFINITY)) { // infinite, or some term is NaN: ordinary arithmetic says what comes out
        sum = accumulator;
        for (const float product : products) sum += product;
        return static_cast<float>(sum);
    }
    int exponent = 0;
    std::frexp(largest, &exponent);
    const double unit = std::ldexp(1.0, std::max(exponent - 25, -149));
    auto cut = [&](double term) { sum += std::trunc(term / unit) * unit; };
    cut(accumulator);
    for (const float product : products) cut(product);
    const auto nearest = static_cast<float>(sum);
    return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

struct MmaOperand {
    float a[8], b[4]; // two numbers of each register, the lower half first
};

template <class ToFloat>
void mma(const char* name, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where, ToFloat convert) {
    MmaOperand mine;
    auto half = [&](unsigned pair, int odd) { return convert(static_cast<unsigned short>(pair >> (16 * odd))); };
    for (int i = 0; i < 8; ++i) mine.a[i] = half(a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) mine.b[i] = half(b[i / 2], i % 2);
    struct Result {
        float d[4];
    };
    const Result result = together(name, 0xffffffffu, mine, where, [&](auto slot) {
        const unsigned group = lane() / 4, place = lane() % 4;
        Result out;
        for (unsigned i = 0; i < 4; ++i) { // d[0], d[1]: row `group`; d[2], d[3]: row `group` + 8; columns 2 place, ... + 1
            const unsigned column = 2 * place + i % 2;
            float sum = d[i];
            for (unsigned step = 0; step < 2; ++step) { // k 0..7, then 8..15
                float products[8];
                for (unsigned k = 0; k < 8; ++k) // a: rows in lanes 4 group ..., registers (row half, k half); b: likewise
                    products[k] = slot(4 * group + k / 2).a[4 * step + 2 * (i / 2) + k % 2] *
                                  slot(4 * column + k / 2).b[2 * step + k % 2];
                sum = truncated_sum(sum, products);
            }
            out.d[i] = sum;
        }
        return out;
    });
    std::memcpy(d, result.d, sizeof result.d);
}

} // namespace shim

// d [16, 8] += a [16, 16] b [16, 8], the operands spread over the lanes of a warp
inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                    shim::Where where = shim::Where::current()) {
    shim::mma("mma_f16", d, a, b, where, half_bits_to_float);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     shim::Where where = shim::Where::current()) {
    shim::mma("mma_bf16", d, a, b, where, shim::bfloat16_to_float);
}

// Four 8 x 8 matrices of 16-bit numbers: lane i names the 16 bytes of row i % 8 of matrix i / 8, and receives entries
// (lane / 4, 2 (lane % 4)) and the next of each.
inline void load_matrices(unsigned (&out)[4], const void* row, shim::Where where = shim::Where::current()) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
        shim::fail("load_matrices at %s:%u: lane %u names an address that is no multiple of 16", where.file_name(),
                   where.line(), shim::lane());
    struct Result {
        unsigned matrix[4];
    };
    const Result result = shim::together("load_matrices", 0xffffffffu, row, where, [&](auto slot) {
        Result mine;
        for (unsigned i = 0; i < 4; ++i)
            std::memcpy(&mine.matrix[i],
                        static_cast<const char*>(slot(8 * i + shim::lane() / 4)) + 4 * (shim::lane() % 4), 4);
        return mine;
    });
    std::memcpy(out, result.matrix, sizeof result.matrix);
}

// 16 bytes to shared memory, of which `valid` are read and the rest is zero. They may land at once, or only when waited
// for; both happen here.
inline void copy_async(void* shared, const void* global, int valid) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        shim::fail("copy_async: an address is no multiple of 16");
    shim::copy_later(shared, global, 16, static_cast<size_t>(valid));
}
inline void copy_async_commit() { shim::close_copies(); }
template <int groups> void copy_async_wait() { shim::finish_copies(groups); }

namespace shim {

// The block's dynamic shared memory, dealt out array by array. Every thread must deal alike. Arrays are kept apart by
// bytes that nobody may touch, and hold numbers that are not zero (as floats: NaN) until they are written.
class Arena {
  public:
    template <class T> T* take(int count) {
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        auto* memory = static_cast<T*>(take_shared(used_, bytes));
        used_ += (bytes + 15) / 16 * 16;
        return memory;
    }

  private:
    size_t used_ = 0;
};

} // namespace shim

using SharedArena = shim::Arena;
