"""Whether the page cache has a piece of a file, without asking the disk for what it has not."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

_mincore = getattr(ctypes.CDLL(None), "mincore", None) if sys.platform == "linux" else None
CAN_TELL = _mincore is not None


class Residency:
    """What the page cache has of an open file, by ``mincore`` on a mapping that is never touched.

    A read with ``RWF_NOWAIT`` would tell too, but makes the kernel read ahead what the cache lacks, so that a direct
    read after it is the second one of the same bytes. Where a process may not know, everything counts as there.

    Parameters
    ----------
    file : int
        Descriptor of a file that is not empty, open for reading.

    Raises
    ------
    OSError, ValueError
        If it cannot be mapped.
    """

    def __init__(self, file: int) -> None:
        self._map = mmap.mmap(file, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self._n_bytes = len(self._map)
        self._start = np.frombuffer(self._map, np.uint8, 1).ctypes.data

    def has(self, place: int, n_bytes: int) -> bool:
        """Return whether all of a piece is in the page cache; True as well for what is not in the file."""
        start = place - place % mmap.PAGESIZE
        end = place + n_bytes
        if _mincore is None or end > self._n_bytes or n_bytes == 0:
            return True
        pages = np.zeros(-(-(end - start) // mmap.PAGESIZE), np.uint8)
        address, length = ctypes.c_void_p(self._start + start), ctypes.c_size_t(end - start)
        if _mincore(address, length, ctypes.c_void_p(pages.ctypes.data)):
            return True
        return bool((pages & 1).all())

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
