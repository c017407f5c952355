"""The structures of csrc/interface.h for ctypes: names and order must agree."""

import ctypes

POINTER = ctypes.c_void_p
SIZE = ctypes.c_int64
NUMBER = ctypes.c_int32
FLOAT = ctypes.c_float


class Encode(ctypes.Structure):
    """A batch to be encoded."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "W", "b")),
        *((name, SIZE) for name in ("rows", "width", "latents", "k")),
        *((name, NUMBER) for name in ("dtype", "screen", "threads", "unused")),
        *((name, POINTER) for name in ("values", "indices", "counts", "workspace")),
    )


class Codes(ctypes.Structure):
    """Sparse codes and what they are multiplied with."""

    _fields_ = (
        *((name, POINTER) for name in ("values", "indices", "W", "x", "bias", "out", "dots", "errors")),
        *((name, SIZE) for name in ("rows", "k", "width", "latents")),
        *((name, NUMBER) for name in ("dtype", "threads")),
        ("workspace", POINTER),
    )


class Factor(ctypes.Structure):
    """A part of a gradient."""

    _fields_ = (*((name, POINTER) for name in ("values", "indices", "rows")), *((name, SIZE) for name in ("n", "k")))


class Update(ctypes.Structure):
    """One step of Adam."""

    _fields_ = (
        *((name, POINTER) for name in ("W", "W_first", "W_second", "bias", "bias_first", "bias_second", "factors")),
        *((name, SIZE) for name in ("n_factors", "latents", "width")),
        *((name, FLOAT) for name in ("step_size", "beta1", "beta2", "epsilon", "root")),
        *((name, NUMBER) for name in ("tangent", "unit_rows", "threads")),
        ("workspace", POINTER),
    )
