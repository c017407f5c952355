// The plain C interface between the compiled kernels and Python; kernels/native.py mirrors these structures.
#pragma once

#include <cstdint>

enum Dtype : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

// How latents are chosen for the exact computation; cpu/units.py says which of these a unit has.
enum Screen : int32_t { EXACT = 0, FLOAT = 1, INT8 = 2, BF16 = 3 };

// What an encoder call did, for tests and for `workbench kernels status`.
enum Count : int32_t {
    CANDIDATES = 0,  // pairs that the low-precision screen let through
    RESCORED = 1,    // pairs computed exactly
    LEFT_FLOAT = 2,  // rows that a low-precision screen handed to the float32 screen
    LEFT_EXACT = 3,  // rows whose every latent was computed exactly
    FIRST_SCREEN = 4,  // not a count: the screen that it started with
    N_COUNTS = 5,
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

// Codes: row r has the latents indices[r, i] with values[r, i], i < k. Which arrays are read and written depends on the
// function; all are contiguous.
struct Codes {
    const float* values;     // [rows, k]
    const int64_t* indices;  // [rows, k]
    const void* W;           // [latents, width], of `dtype`
    const float* x;          // [rows, width]
    const float* bias;       // [width]
    float* out;              // decode, error: [rows, width]; dots: [rows, k]; scatter: [latents, width]
    float* dots;             // error: [rows, k]
    float* errors;           // error: [rows]
    int64_t rows, k, width, latents;
    int32_t dtype, threads;
    void* workspace;  // scatter: as many bytes as workbench_scatter_bytes says
};

// A gradient as it comes from the backward pass: the sum over r and i of values[r, i] rows[r] in row indices[r, i].
struct Factor {
    const float* values;
    const int64_t* indices;
    const float* rows;  // [n, width]
    int64_t n, k;
};

// One step of Adam on a matrix with a row per latent, and on a number per latent beside it, from their factors.
struct Update {
    float *W, *W_first, *W_second;           // [latents, width] and its moments
    float *bias, *bias_first, *bias_second;  // [latents] and its moments, or null; its gradient is the sum of values
    const Factor* factors;
    int64_t n_factors, latents, width;
    float step_size, beta1, beta2, epsilon, root;  // lr / (1 - beta1^t); sqrt(1 - beta2^t)
    int32_t tangent;    // take the part along the row from each row's gradient
    int32_t unit_rows;  // make rows of length 1 after the step
    int32_t threads;
    void* workspace;  // as many bytes as workbench_update_bytes says
};
