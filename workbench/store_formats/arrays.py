"""Arrays in foreign files, read a stretch at a time; and rows that are made of several of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UserError

Layout = Literal["rows", "sequences"]


@dataclass(frozen=True)
class ForeignArray:
    """One array of a file.

    Attributes
    ----------
    file : Path
        Where it is.
    key : str
        Its name in the file; of a file that is one array, the file's name without its ending.
    shape : tuple of int
        Of the whole array.
    dtype : str
        As NumPy or torch spell it: "float32", "bfloat16", "int64".
    read : callable
        Entries `first` to `end` (excluded) of the first axis, as an array of its own in native byte order; bfloat16 as
        uint16 bit patterns.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], NDArray[Any]]

    @property
    def address(self) -> str:
        """How it is called in messages."""
        return str(self.file) if self.key in {"", self.file.stem} else f"{self.file}, {self.key!r}"

    def whole(self) -> NDArray[Any]:
        """Read all of it."""
        return self.read(0, self.shape[0])


class Joined:
    """Rows of several arrays, one array after the other.

    Parameters
    ----------
    arrays : sequence of ForeignArray
        At least one.
    layout : "rows" or "sequences"
        Whether an array is [rows, ...] or [sequences, positions, ...].

    Attributes
    ----------
    shape : tuple of int
        Of one row.
    dtype : str
        Of the values.
    n_rows : int
        Rows of all arrays.

    Raises
    ------
    UserError
        If there are too few axes, or the arrays differ in type or in the shape of a row.
    """

    def __init__(self, arrays: Sequence[ForeignArray], layout: Layout) -> None:
        n_leading = 1 if layout == "rows" else 2
        for array in arrays:
            if len(array.shape) < n_leading:
                axes = "[rows, ...]" if layout == "rows" else "[sequences, positions, ...]"
                raise UserError(f"{array.address} has shape {list(array.shape)}, where {axes} is wanted")
            if (array.shape[n_leading:], array.dtype) != (arrays[0].shape[n_leading:], arrays[0].dtype):
                raise UserError(
                    f"{array.address} is {array.dtype} {list(array.shape)}, and {arrays[0].address} is "
                    f"{arrays[0].dtype} {list(arrays[0].shape)}: rows must be alike to lie in one hook point"
                )
        self.arrays = list(arrays)
        self.layout = layout
        self.shape = arrays[0].shape[n_leading:]
        self.dtype = arrays[0].dtype
        self._per_entry = [1 if layout == "rows" else array.shape[1] for array in arrays]
        counts = [array.shape[0] * n for array, n in zip(arrays, self._per_entry, strict=True)]
        self._ends = list(accumulate(counts))
        self.n_rows = self._ends[-1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each entry of the first axis, int64: 1, or the positions of each sequence."""
        return np.repeat(np.array(self._per_entry, np.int64), [array.shape[0] for array in self.arrays])

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Return rows `first` to `end` (excluded), [rows, ...]."""
        parts, start = [], 0
        for array, n, until in zip(self.arrays, self._per_entry, self._ends, strict=True):
            low, high = max(first, start) - start, min(end, until) - start
            if low < high:
                entries = array.read(low // n, -(-high // n))
                rows = entries.reshape(-1, *self.shape)
                parts.append(rows[low - low // n * n :][: high - low])
            start = until
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def natural(name: str) -> list[Any]:
    """Sort key under which ``batch_10`` comes after ``batch_9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def files_in(source: Path, suffix: str) -> list[Path]:
    """Return a file, or the files of a folder that end in `suffix`, in natural order.

    Raises
    ------
    UserError
        If there is none.
    """
    if source.is_file():
        return [source]
    found = sorted((path for path in source.glob(f"*{suffix}") if path.is_file()), key=lambda path: natural(path.name))
    if not found:
        raise UserError(f"{source} has no file that ends in {suffix}")
    return found
