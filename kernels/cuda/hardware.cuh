// The instructions that C++ has no words for, as inline PTX (sm_80 and later). `tests/kernels/shim` models the same
// functions on a CPU.
#pragma once

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000) // NVRTC reads no header of the C library
#endif

#define EXPORT_KERNEL(name) // the shim keeps a table of kernels; a GPU's loader finds them by name

__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ unsigned short float_to_half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// d [16, 8] += a [16, 16] b [16, 8], the operands spread over the lanes of a warp
__device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit numbers: lane i names the 16 bytes of row i % 8 of matrix i / 8, and receives entries
// (lane / 4, 2 (lane % 4)) and the next of each.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// 16 bytes to shared memory past the registers and the first cache; `valid` are read and the rest is zero
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// The block's dynamic shared memory, dealt out array by array, each on a multiple of 16 bytes.
class SharedArena {
  public:
    template <class T> __device__ __forceinline__ T* take(int count) {
        extern __shared__ __align__(128) unsigned char shared_memory[];
        T* memory = reinterpret_cast<T*>(shared_memory + used_);
        used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
        return memory;
    }

  private:
    int used_ = 0;
};
