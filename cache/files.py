"""Files that are there whole or not at all: write beside, sync, rename; digests; the writer's lock."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from workbench.cache.errors import StoreError

PART = ".part"
LIBRARY_VERSIONS = ("v110", "v110")
"""Oldest and newest HDF5 whose format is used: from 1.10 on all of its own structure carries checksums."""

BLOCK_BYTES = 4 << 20


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, so that a rename in it outlives a loss of power."""
    if os.name == "nt":  # folders cannot be opened there, and renames are journaled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(part: Path, path: Path) -> None:
    """Sync a finished file and rename it: the commit."""
    sync_file(part)
    part.replace(path)
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file atomically by what `write` puts at the path that it is given.

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written; the old file stays.
    """
    part = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        put_in_place(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def replace_hdf5(path: Path, fill: Callable[[Any], None]) -> None:
    """Replace an HDF5 file atomically; `fill` gets the open ``h5py.File``.

    HDF5 works in memory and the bytes are written by us: where a disk is full, HDF5 2.0 fails at closing the file, in a
    way that can end the process.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBRARY_VERSIONS) as file:
        fill(file)
    replace_file(path, lambda part: _write_bytes(part, image.getbuffer()))


def _write_bytes(path: Path, data: memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)


def cannot_write(path: Path, error: OSError) -> StoreError:
    """Return the error for a file that could not be written: a full disk, a read-only folder."""
    return StoreError(f"cannot write {path}: {error.strerror or error}")


def raw(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def file_digest(path: Path) -> str:
    """Return the xxh3_128 of a whole file, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block):
            digest.update(memoryview(block)[:n])
    return digest.hexdigest()


class WriterLock:
    """The right to write a folder: one process, and one writer in it, at a time.

    An operating-system lock (``flock``, on Windows ``msvcrt.locking``) on an empty file: the kernel lets go of it when
    its process dies, however it dies, so none is ever left behind. The file itself stays.

    Parameters
    ----------
    path : Path
        The file, ``.lock`` in the folder that is written.
    timeout_s : float
        How long to wait for another writer, seconds.
    """

    def __init__(self, path: Path, timeout_s: float = 0) -> None:
        self._lock = FileLock(path, thread_local=False)
        try:
            self._lock.acquire(timeout=timeout_s)
        except Timeout:
            raise StoreError(f"{path.parent} is being written by another process; wait until that has ended") from None
        except OSError as error:
            raise cannot_write(path, error) from error

    def release(self) -> None:
        """Let go; safe to call twice."""
        self._lock.release(force=True)
