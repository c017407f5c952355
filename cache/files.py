"""Files that are there whole or not at all: write beside, sync, rename; digests; the writer's lock."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache.errors import StoreError
from workbench.cache.heaps import check_heaps

PART = ".part"
LIBRARY_VERSIONS = ("v110", "v110")
"""Oldest and newest HDF5 whose format is used: from 1.10 on all of its own structure carries checksums."""

BLOCK_BYTES = 4 << 20


def as_folder(folder: str | Path) -> Path:
    """Return the path of a folder, which need not exist.

    Raises
    ------
    StoreError
        For the address of an object store, which would be taken for a folder's name (a `Path` of one has lost a slash:
        ``s3:/bucket/acts``), and for a path that the system does not allow.
    """
    scheme, _, rest = str(folder).partition(":/")
    if rest and len(scheme) > 1 and scheme.isalnum() and not Path(f"{scheme}:").exists():
        raise StoreError(
            f"{folder} is an address: a store is a folder on a disk, so mount that, or copy what is there; single "
            "shards are read through fsspec (docs/store.md, Ten terabytes)"
        )
    try:
        Path(folder).exists()
    except OSError as error:  # a name that is too long
        raise StoreError(f"cannot use {folder}: {error.strerror or error}") from error
    return Path(folder)


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
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network disks cannot sync folders
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, if need be, so that their names outlive a loss of power.

    The name is synced even if the folder is there: whoever made it may have been killed before that.
    """
    outermost = folder
    while not outermost.parent.exists():
        outermost = outermost.parent
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # a parent that may be passed through, and not listed
        while folder != outermost.parent:
            folder = folder.parent
            sync_folder(folder)


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
        if not path.parent.is_dir():
            make_folder(path.parent)
        write(part)
        put_in_place(part, path)
    except OSError as error:
        drop(part)
        raise cannot_write(path, error) from error


def drop(part: Path) -> None:
    """Remove an unfinished file if that can be done: what spoiled the writing may forbid this too."""
    with suppress(OSError):
        part.unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until HDF5 is done.

    Between two of its calls h5py would take the interruption for a failure of its own, and we that one for damage.
    """
    heard: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # interruptions are raised in the main thread alone
        return
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            before(*heard[0])


@contextmanager
def read_hdf5(path: Path, *, texts: bool = False) -> Iterator[Any]:
    """Open an HDF5 file for reading; gives the ``h5py.File``, or raises what h5py does for a file that is damaged.

    Whoever will read texts of it, attributes among them, or a virtual dataset, says so: their heaps are checked first,
    for which the file is read once.
    """
    if path.exists() and not path.is_file():  # HDF5 would wait for the other end of a pipe
        raise OSError(errno.EINVAL, "is no file", str(path))
    if texts:
        check_heaps(path)
    with undisturbed(), h5py.File(path, "r") as file:
        yield file


def replace_hdf5(path: Path, fill: Callable[[Any], None]) -> None:
    """Replace an HDF5 file atomically; `fill` gets the open ``h5py.File``.

    HDF5 works in memory and the bytes are written by us: where a disk is full, HDF5 2.0 fails at closing the file, in a
    way that can end the process.
    """
    image = io.BytesIO()
    with undisturbed(), h5py.File(image, "w", libver=LIBRARY_VERSIONS) as file:
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
