"""Memory that a shuffle writes rows into and gives out as batches, and uses again when nobody holds one of them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.layout import Column
from workbench.cache.memory import Memory

LINE_BYTES = 64


class Block:
    """Room for some rows of several columns.

    Parameters
    ----------
    columns : sequence of Column
        What a row is.
    n_rows : int
        How many fit; there is one more, for what nobody wants.

    Attributes
    ----------
    n_rows : int
        How many fit.
    rows : int64 [rows + 1]
        The number in the store of each row.
    """

    def __init__(self, columns: Sequence[Column], n_rows: int) -> None:
        self.n_rows = n_rows
        self.rows = np.empty(n_rows + 1, np.int64)
        self._columns = {column.name: column for column in columns}
        self._places: dict[str, int] = {}
        size = 0
        for column in columns:
            self._places[column.name] = size
            size += (n_rows + 1) * column.row_bytes
            size += -size % LINE_BYTES
        self._memory = Memory(size)
        self._given: list[weakref.ref[NDArray[Any]]] = []

    def fits(self, columns: Sequence[Column], n_rows: int) -> bool:
        """Whether this is what a block of these columns and so many rows would be."""
        return self.n_rows == n_rows and list(self._columns.values()) == list(columns)

    @property
    def held(self) -> bool:
        """Whether somebody holds a batch that was given out, or a tensor or view made of it."""
        self._given = [given for given in self._given if given() is not None]
        return bool(self._given)

    def records(self, name: str) -> NDArray[Any]:
        """Return the rows of a column as records [rows + 1]."""
        column = self._columns[name]
        return self._memory.array(self._places[name], (self.n_rows + 1,), np.dtype((np.void, column.row_bytes)))

    def bytes(self, name: str, first: int, n_rows: int) -> memoryview:
        """Return the bytes of some rows of a column."""
        row_bytes = self._columns[name].row_bytes
        return self._memory.bytes(self._places[name] + first * row_bytes, n_rows * row_bytes)

    def give(self, first: int, end: int) -> dict[str, NDArray[Any]]:
        """Return some rows of every column; the block is held as long as any of these arrays."""
        given = {}
        for name, column in self._columns.items():
            place = self._places[name] + first * column.row_bytes
            given[name] = self._memory.array(place, (end - first, *column.shape), column.dtype)
            self._given.append(weakref.ref(given[name]))
        return given

    def take(self, other: Block, first: int, n_rows: int) -> None:
        """Copy rows of another block to the start of this."""
        self.rows[:n_rows] = other.rows[first : first + n_rows]
        for name in self._columns:
            self.bytes(name, 0, n_rows)[:] = other.bytes(name, first, n_rows)
