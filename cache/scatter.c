/* Putting rows in their places, past the processor's cache: a row is not looked at again before it is given out, and a
   plain store would first fetch the memory that it is about to overwrite. */

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define LINE_BYTES 64

/* target[places[i]] = rows[i], for records of row_bytes. Returns -1; or, before anything is written, the number of the
   first place that is not in 0 .. n_target - 1. rows and target are not to overlap. */
int64_t workbench_scatter(char *target, int64_t n_target, const int64_t *places, const char *rows, int64_t n_rows,
                          int64_t row_bytes)
{
    for (int64_t i = 0; i < n_rows; i++)
        if (places[i] < 0 || places[i] >= n_target)
            return i;
#if defined(__SSE2__)
    /* Whole lines alone: of a part of one, the memory would be read, changed and written each time. */
    if (((uintptr_t)target | (uintptr_t)row_bytes) % LINE_BYTES == 0) {
        for (int64_t i = 0; i < n_rows; i++) {
            __m128i *to = (__m128i *)(target + places[i] * row_bytes);
            const __m128i *from = (const __m128i *)(rows + i * row_bytes);
            for (const __m128i *end = from + row_bytes / 16; from != end; from += 4, to += 4) {
                __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
                __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
                _mm_stream_si128(to, a);
                _mm_stream_si128(to + 1, b);
                _mm_stream_si128(to + 2, c);
                _mm_stream_si128(to + 3, d);
            }
        }
        _mm_sfence(); /* before another thread is told that they are there */
        return -1;
    }
#endif
    for (int64_t i = 0; i < n_rows; i++)
        memcpy(target + places[i] * row_bytes, rows + i * row_bytes, (size_t)row_bytes);
    return -1;
}
