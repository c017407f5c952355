// What every unit exports: the functions of interface.h, made of the screens that the unit names.
#pragma once

#include "encode.h"

#define WORKBENCH_EXPORT extern "C" __attribute__((visibility("default")))

WORKBENCH_EXPORT void workbench_use_threads(void (*fork)(void (*)(void*), void*, unsigned, unsigned), int (*number)(),
                                            int (*count)()) {
    runtime = {fork, number, count};
}

// Define the encoder with this unit's low-precision screens.
#define WORKBENCH_ENCODER(...)                                                                   \
    WORKBENCH_EXPORT int64_t workbench_encode_bytes(const Encode* call) {                        \
        return encode_bytes<__VA_ARGS__>(*call);                                                 \
    }                                                                                            \
    WORKBENCH_EXPORT void workbench_encode(const Encode* call) { encode<__VA_ARGS__>(*call); }
