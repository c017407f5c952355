// A batch to be encoded, and what has been found out about it so far.
#pragma once

#include <cstdint>

#include "exact.h"
#include "interface.h"
#include "team.h"

namespace {

enum Found : int32_t { NOT_YET = -1, DONE = -2 };

struct Problem {
    const Encode& call;
    int64_t rows, width, latents, k;
    Matrix W, b;
    const float* x;  // [rows, width], float32

    // For each row the latents that may be among its k best, in ascending order: found[r] of them, NOT_YET, or DONE
    // if the results have been written already.
    int32_t* found;
    int32_t* survivors;  // [rows, room]
    int64_t room;
    int64_t* todo;  // rows that a screen is to look at
    int64_t n_todo;

    Problem(const Encode& call, Arena& arena, int64_t spare)
        : call(call), rows(call.rows), width(call.width), latents(call.latents), k(call.k),
          W{call.W, call.width, call.dtype}, b{call.b, 1, call.dtype},
          room(std::min(round_up(k + spare, 16), round_up(latents, 16))) {
        float* const copy = call.dtype == FLOAT32 ? nullptr : arena.take<float>(rows * width);
        x = copy ? copy : static_cast<const float*>(call.x);
        widened = copy;
        found = arena.take<int32_t>(rows);
        survivors = arena.take<int32_t>(rows * room);
        todo = arena.take<int64_t>(rows);
    }

    const float* row(int64_t r) const { return x + r * width; }

    // List the rows that no screen has settled.
    int64_t unsettled() {
        n_todo = 0;
        for (int64_t r = 0; r < rows; r++)
            if (found[r] == NOT_YET) todo[n_todo++] = r;
        return n_todo;
    }

    // Take what a screen has left of a row; -1, or more than there is room for, leaves it to the next one. (Fewer than k
    // cannot be left, as the k latents that raised the bar reach it.)
    void keep(int64_t r, const int32_t* list, int64_t n) {
        if (n < k || n > room) return;
        std::copy_n(list, n, survivors + r * room);
        found[r] = int32_t(n);
    }

    void write(int64_t r, int64_t place, float score, int64_t latent) const {
        call.values[r * k + place] = score;
        call.indices[r * k + place] = latent;
    }

    float* widened;
};

}  // namespace
