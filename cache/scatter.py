"""Putting rows in their places: the one copy between the page cache and a shuffled batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD_UP_TO_ROWS = 500
"""NumPy keeps the interpreter's lock while it places fewer records than this, and other threads stand still."""


def records(data: Any, row_bytes: int, n_rows: int, place: int = 0) -> NDArray[Any]:
    """Return bytes as rows: an array [rows] of opaque records."""
    return np.ndarray(n_rows, np.dtype((np.void, row_bytes)), data, place)


def scatter(target: NDArray[Any], places: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Set ``target[places[i]] = rows[i]``, without the interpreter's lock if that can be.

    Parameters
    ----------
    target, rows : arrays of records
        From `records`, of one size.
    places : int64 [rows]
        In range; where two are equal, either row may stay.
    """
    row_bytes = rows.dtype.itemsize
    if len(rows) <= HELD_UP_TO_ROWS and row_bytes % 8 == 0:
        target.view(np.uint64).reshape(-1, row_bytes // 8)[places] = rows.view(np.uint64).reshape(-1, row_bytes // 8)
    else:
        target[places] = rows
