"""Putting rows in their places: the one copy between the page cache and a shuffled batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.compiled import scatter_function

HELD_UP_TO_ROWS = 500
"""NumPy keeps the interpreter's lock while it places fewer records than this, and other threads stand still."""


def records(data: Any, row_bytes: int, n_rows: int, place: int = 0) -> NDArray[Any]:
    """Return bytes as rows: an array [rows] of opaque records."""
    return np.ndarray(n_rows, np.dtype((np.void, row_bytes)), data, place)


def scatter(target: NDArray[Any], places: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Set ``target[places[i]] = rows[i]``, without the interpreter's lock if that can be.

    Parameters
    ----------
    target, rows : C-contiguous arrays of records
        From `records`, of one size, in different memory.
    places : int64 [rows]
        In range, none negative; where two are equal, either row may stay.

    Raises
    ------
    IndexError
        If a place is out of range.
    """
    native = scatter_function()
    if native is None:
        scatter_by_numpy(target, places, rows)
        return
    places = np.ascontiguousarray(places, np.int64)
    row_bytes = rows.dtype.itemsize
    wrong = native(target.ctypes.data, len(target), places.ctypes.data, rows.ctypes.data, len(rows), row_bytes)
    if wrong >= 0:
        raise IndexError(f"row {wrong} goes to place {places[wrong]}; there are {len(target)} places")


def scatter_by_numpy(target: NDArray[Any], places: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Do the same where nothing can be compiled; parameters as for `scatter`."""
    row_bytes = rows.dtype.itemsize
    if len(rows) <= HELD_UP_TO_ROWS and row_bytes % 8 == 0:
        target.view(np.uint64).reshape(-1, row_bytes // 8)[places] = rows.view(np.uint64).reshape(-1, row_bytes // 8)
    else:
        target[places] = rows
