"""Large pieces of memory: on huge pages where the system has them, given back to it when nobody looks at them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE_BYTES = 2 << 20


class Memory:
    """Bytes that arrays are laid over; they live as long as any of these arrays, or a tensor or view of it.

    On huge pages: a shuffle writes rows all over it, and with small pages each row costs a walk through the page table.
    What is never touched costs nothing.

    Parameters
    ----------
    n_bytes : int
        Size.
    """

    def __init__(self, n_bytes: int) -> None:
        size = max(1, n_bytes) + HUGE_PAGE_BYTES
        if hasattr(mmap, "MAP_ANONYMOUS"):  # private: shared memory, the default, gets no huge pages
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._map = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._start = -np.frombuffer(self._map, np.uint8, 1).ctypes.data % HUGE_PAGE_BYTES

    def array(self, place: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array over the bytes from `place` on, and no view of another: whatever is made of it holds it."""
        return np.ndarray(shape, dtype, self._map, self._start + place)

    def bytes(self, place: int, n_bytes: int) -> memoryview:
        """Return some of the bytes."""
        return memoryview(self._map)[self._start + place : self._start + place + n_bytes]
