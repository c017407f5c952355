// How far a screen's score can be from the exact one: the bound that selection rests on.
//
// Notation. x is a row, W[j] a latent, b[j] its bias; u = 2^-24 (UNIT); |v| is the Euclidean norm; "fl" marks what is
// computed in float32. The exact score (exact.h) is S[j] = fl(d[j]), where d[j] is x·W[j] + b[j] but for the rounding
// of its float64 sum, at most sum_error(width) (|x| |W[j]| + |b[j]|) by Cauchy and Schwarz.
//
// 1. What is screened. With m and n any two fixed rows, y = x - m, v[j] = W[j] - n and c[j] = b[j] + m·W[j],
//
//        x·W[j] + b[j]  =  y·v[j] + c[j] + y·n,                                                            (1)
//
//    and y·n is the same for all latents: it is left out, since only latents of one row are ever compared. Channels are
//    scaled, y by 2^-p and v by 2^p, and both sides go through one orthogonal map R times a constant (transform.h), so
//    that with a = R(2^-p y), w[j] = R(2^p v[j]):  a·w[j] = g y·v[j]. Powers of two cost no rounding. What the machine
//    holds is not a but fl(a), with |fl(a) - a| <= eta |a|; likewise for w.
//
// 2. Quantisation. fl(a) is replaced by A = (whole numbers) times one scale, or by bfloat16 numbers; the residual
//    fl(a) - A is known, and its norm measured. So |a - A| <= |fl(a) - A| + eta |a|, and, again by Cauchy and Schwarz,
//
//        |a·w - A·W'|  <=  |a - A| |w| + |A| |w - W'|.                                                     (2)
//
// 3. Arithmetic of the screen. A·W' is a sum of products that is exact (whole numbers in int32) or rounded to nearest
//    in float32, n roundings deep: off by at most gamma(n) |A| |W'|, gamma(n) = n u / (1 - n u). Turning it into a
//    float32 (u), multiplying by two scales (2u), adding fl(c) (u times the result, and fl(c) is off by u |c|), adding
//    or taking away the error bound (u times that result) add at most 6u |A| |W'| + 3u |c|, if u^2 is left out; 8u and
//    4u are used.
//
// 4. The exact score's own rounding: |S - d| <= u |d|, and by (1) |d| <= |y| |v| + |c| + |y·n| in units of the score.
//
// Together, divided by g and in units of the score, |fl(score) - (S[j] - y·n)| <= e[r, j] with
//
//        e = A[r] norm[j] + B[r] residual[j] + D[r] + extra[j]
//
//        A[r]        = |a - A| + u |a|                      (2) and 4
//        norm[j]     = |w[j]|
//        B[r]        = |A|
//        residual[j] = |w[j] - W'[j]| + (gamma + 8u) |W'[j]|    (2) and 3
//        D[r]        = u |y| |n| + sum errors of d[j] and c[j]  4
//        extra[j]    = 5u |c[j]| + SMALLEST                     3 and 4
//
// SMALLEST covers whatever is lost when numbers become too small for float32. e itself is computed in float32 from
// these parts, all of them at least 0, in at most 6 roundings: every part is enlarged by ENLARGED = 1 + 8u. Norms are
// float32 sums of squares, off by at most gamma(width + LANES) of themselves, in the same direction in every part:
// norm_margin. The parts are computed in float64, whose own rounding vanishes in these margins, and rounded up.
//
// The float32 screen (floats.h) is the case a = x, w = W, c = b, n = 0, without quantisation.
#pragma once

#include "numbers.h"

namespace {

constexpr double ENLARGED = 1 + 8 * UNIT;
constexpr double SMALLEST = 0x1p-120;
#ifndef WORKBENCH_BOUND_SCALE
#define WORKBENCH_BOUND_SCALE 1.0  // a test makes the bound too small, to see that it then notices
#endif

inline double gamma(double roundings) { return roundings * UNIT / (1 - roundings * UNIT); }

inline double norm_margin(int64_t width) { return 1 + gamma(double(width + LANES)); }

inline float bound_part(double part) { return not_less(part * ENLARGED * WORKBENCH_BOUND_SCALE); }

// sqrt of a float32 sum of squares, not less than the norm.
inline double norm_of(float squares, int64_t width) { return std::sqrt(double(squares)) * norm_margin(width); }

}  // namespace
