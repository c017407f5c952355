"""Texts in HDF5 files: their heaps have no checksums, and HDF5 2.0 never comes back from some that are damaged."""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path

MARK = b"GCOL\x01\0\0\0"
"""Signature and version of a heap; no text of ours has a NUL in it."""

HEADER_BYTES = 16
"""Of a heap (the mark, and its size), and of each entry (number, references, and its size)."""


def check_heaps(path: Path) -> None:
    """Look at every heap of texts and of virtual datasets' sources in a file, before HDF5 does.

    HDF5 goes from entry to entry by their sizes; one that has none, as in a stretch of zeros, keeps it there for ever.

    Raises
    ------
    OSError
        If the file cannot be read, or an entry does not end after it begins, inside its heap.
    """
    found = path.stat()
    if found.st_size:
        _check(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(256)
def _check(path: Path, n_bytes: int, changed_ns: int, inode: int) -> None:
    """Check a file once, as long as it stays what it is; files of labels are opened often."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        at = memory.find(MARK)
        while at >= 0:
            end = at + _number(memory, at + 8)
            at += HEADER_BYTES
            if not at <= end <= len(memory):
                raise OSError("a heap of texts ends outside the file")
            while at + HEADER_BYTES <= end:  # less is left free
                is_free, n = not any(memory[at : at + 2]), _number(memory, at + 8)
                at += n if is_free else HEADER_BYTES + n + -n % 8
                if n < HEADER_BYTES * is_free or at > end:
                    raise OSError("an entry of a heap of texts has a size that cannot be")
            at = memory.find(MARK, at)


def _number(memory: mmap.mmap, at: int) -> int:
    return int.from_bytes(memory[at : at + 8], "little")
