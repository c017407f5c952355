// The plain C interface between the compiled kernels and Python; kernels/native.py mirrors these structures.
#pragma once

#include <cstdint>

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

// How latents are chosen for the exact computation. Which of these a unit has is told by workbench_screens.
enum Screen : int32_t { EXACT = 0, FLOAT = 1, INT8 = 2, BF16 = 3 };

// What an encoder call did, for tests and for `workbench kernels status`.
enum Count : int32_t {
    CANDIDATES = 0,  // pairs that the low-precision screen let through
    RESCORED = 1,    // pairs computed exactly
    LEFT_FLOAT = 2,  // rows that a low-precision screen handed to the float32 screen
    LEFT_EXACT = 3,  // rows whose every latent was computed exactly
    N_COUNTS = 4,
};

// Scores are x[r]·W[j] + b[j]; all arrays are contiguous, of one dtype.
struct Encode {
    const void* x;  // [rows, width]
    const void* W;  // [latents, width]
    const void* b;  // [latents]
    int64_t rows, width, latents, k;
    int32_t dtype, screen, threads, unused;
    float* values;     // [rows, k], best first
    int64_t* indices;  // [rows, k]
    int64_t* counts;   // [N_COUNTS]
    void* workspace;   // as many bytes as workbench_encode_bytes says
};
