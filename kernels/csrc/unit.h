// What every unit exports: the functions of interface.h, made of the screens that the unit names.
#pragma once

#include "adam.h"
#include "codes.h"
#include "encode.h"

#define WORKBENCH_EXPORT extern "C" __attribute__((visibility("default")))

WORKBENCH_EXPORT void workbench_use_threads(void (*fork)(void (*)(void*), void*, unsigned, unsigned), int (*number)(),
                                            int (*count)()) {
    runtime = {fork, number, count};
}

WORKBENCH_EXPORT int64_t workbench_first_bad(const Codes* call) { return first_bad(*call); }
WORKBENCH_EXPORT void workbench_decode(const Codes* call) { decode(*call); }
WORKBENCH_EXPORT void workbench_dots(const Codes* call) { dots(*call); }
WORKBENCH_EXPORT void workbench_decode_error(const Codes* call) { decode_error(*call); }
WORKBENCH_EXPORT int64_t workbench_scatter_bytes(const Codes* call) { return scatter_bytes(*call); }
WORKBENCH_EXPORT void workbench_scatter(const Codes* call) { scatter(*call); }
WORKBENCH_EXPORT int64_t workbench_update_bytes(const Update* call) { return update_bytes(*call); }
WORKBENCH_EXPORT void workbench_update(const Update* call) { update(*call); }

// Define the encoder with this unit's low-precision screens.
#define WORKBENCH_ENCODER(...)                                                                   \
    WORKBENCH_EXPORT int64_t workbench_encode_bytes(const Encode* call) {                        \
        return encode_bytes<__VA_ARGS__>(*call);                                                 \
    }                                                                                            \
    WORKBENCH_EXPORT int32_t workbench_encode_screen(const Encode* call) {                       \
        return choose_screen<__VA_ARGS__>(*call);                                                \
    }                                                                                            \
    WORKBENCH_EXPORT void workbench_encode(const Encode* call) { encode<__VA_ARGS__>(*call); }
