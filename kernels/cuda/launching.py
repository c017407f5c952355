"""What the host side of a kernel asks of whoever runs it: a GPU, or the tests' model of one on a CPU."""

import ctypes
from typing import Protocol

import torch
from torch import Tensor

SUFFIX = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
PACK_BYTES = 16  # the widest access of one thread

Argument = Tensor | ctypes.c_int | ctypes.c_longlong | ctypes.c_float
Extent = tuple[int, int] | tuple[int]


class Launcher(Protocol):
    """Runs kernels on one device.

    Attributes
    ----------
    n_processors : int
        Blocks are dealt out to so many multiprocessors.
    shared_bytes : int
        Largest shared memory of a block.
    """

    n_processors: int
    shared_bytes: int

    def launch(self, kernel: str, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Start a kernel, written `SOURCE.NAME`, behind whatever torch has queued on its current stream.

        `grid` and `block` are (x,) or (x, y). Tensors are handed over as pointers to their first element, numbers as
        the C type they are wrapped in.
        """


def int64(value: int) -> ctypes.c_longlong:
    """Wrap a `long long` of C."""
    return ctypes.c_longlong(value)


def float32(value: float) -> ctypes.c_float:
    """Wrap a `float` of C."""
    return ctypes.c_float(value)


def int32(value: int) -> ctypes.c_int:
    """Wrap an `int` of C; refuse what it cannot hold."""
    if not -(2**31) <= value < 2**31:
        raise OverflowError(f"{value} does not fit a 32-bit integer")
    return ctypes.c_int(value)


def pointers(arguments: tuple[Argument, ...]) -> "ctypes.Array[ctypes.c_void_p]":
    """Addresses of the arguments' values, as `cuLaunchKernel` takes them; keeps the values alive itself."""
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    array = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
    array.values = values  # type: ignore[attr-defined]  # an attribute is enough to hold them
    return array


def packs(width: int, *tensors: Tensor) -> int:
    """Numbers that a thread may move at once: 16 bytes' worth if every row starts on such a boundary, else 1."""
    size = tensors[0].element_size()
    aligned = width * size % PACK_BYTES == 0 and all(tensor.data_ptr() % PACK_BYTES == 0 for tensor in tensors)
    return PACK_BYTES // size if aligned else 1
