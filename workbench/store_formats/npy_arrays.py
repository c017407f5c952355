"""Reading ``.npy`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.files import raw
from workbench.errors import UserError
from workbench.store_formats.arrays import ForeignArray


def open_npy(path: Path) -> list[ForeignArray]:
    """Return the array of a file.

    Raises
    ------
    UserError
        If it is no ``.npy`` file, is cut off, or holds Python objects.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        why = "it holds Python objects, which are never loaded" if "object" in str(error).lower() else str(error)
        raise UserError(f"{path} cannot be read as .npy: {why}") from error
    if not isinstance(found, np.memmap) or found.ndim == 0:
        raise UserError(
            f"{path} is no array [rows, ...]: an .npz is a zip of .npy files: python -m zipfile -e {path} ."
        )
    shape, dtype, place = found.shape, found.dtype, found.offset
    is_in_order = found.flags.c_contiguous
    del found

    def read(first: int, end: int) -> NDArray[Any]:
        if not is_in_order:
            return native(stretch_of_columns(path, shape, dtype, place, first, end))
        values = np.empty((end - first, *shape[1:]), dtype)
        with path.open("rb", buffering=0) as file:
            fill(path, file, place + first * values[:1].nbytes, raw(values))
        return native(values)

    return [ForeignArray(path, path.stem, shape, dtype.name, read)]


def stretch_of_columns(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], place: int, first: int, end: int
) -> NDArray[Any]:
    """Read some rows of an array in Fortran's order, in which the same entry of all rows lies together."""
    columns = np.empty((int(np.prod(shape[1:], dtype=np.int64)), end - first), dtype)
    with path.open("rb", buffering=0) as file:
        for number, column in enumerate(columns):
            fill(path, file, place + (number * shape[0] + first) * dtype.itemsize, raw(column))
    return columns.reshape(-1).reshape((end - first, *shape[1:]), order="F")


def fill(path: Path, file: Any, place: int, buffer: memoryview) -> None:
    """Read bytes from a place of an unbuffered file until a buffer is full."""
    file.seek(place)
    while len(buffer):
        n = file.readinto(buffer)
        if not n:
            raise UserError(f"{path} ends too early")
        buffer = buffer[n:]


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return values in this machine's byte order, bit for bit, as an array of their own."""
    return np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
