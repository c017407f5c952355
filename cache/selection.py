"""Which rows a pass goes over, counted by chunk: never a list of all rows unless the caller gave one."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from workbench.cache.files import raw
from workbench.cache.handles import OpenFiles
from workbench.cache.rows import RowReader, on_threads, row_numbers
from workbench.cache.schema import ROWS

CHUNKS_AT_ONCE = 256

Counts = NDArray[np.int32]


class Selection:
    """The rows that a caller wants, special tokens among them or not.

    Memory is a few numbers per chunk, and what the caller gave.

    Parameters
    ----------
    reader : RowReader
        The store's rows.
    rows : slice, bool mask [rows], or integers, optional
        Which are wanted; by default all.
    special : bool
        Whether rows of special tokens are wanted too. Where there are no others, as in captures of class tokens, they
        are what was captured, and wanted anyway.

    Attributes
    ----------
    counts : int32 [chunks]
        Wanted rows of each chunk.
    n_rows : int
        Wanted rows.
    key : str
        Tells selections of a store apart.

    Raises
    ------
    StoreError
        For a mask of another length, or a row out of range.
    DamageError
        If a shard that must be looked at to count is damaged.
    """

    def __init__(self, reader: RowReader, rows: slice | ArrayLike | None, special: bool) -> None:
        self._reader = reader
        self._given = _given(rows, reader.n_rows)
        self.counts = reader.rows_of_chunks()
        in_chunk = self.counts
        if self._given is not None:
            self.counts = _counts(self._given, reader.chunk_firsts()).astype(np.int32)
        self._ordinary = False
        if not special:
            n_special = reader.special_counts()
            self._ordinary = int(n_special.sum(dtype=np.int64)) not in (0, reader.n_rows)
            if self._ordinary:
                self._leave_out(in_chunk, n_special)
        self.n_rows = int(self.counts.sum(dtype=np.int64))
        self.key = f"{_key(self._given)}{', ordinary' if self._ordinary else ''} of {reader.n_rows}"

    @property
    def every(self) -> bool:
        """Whether every row of the store is wanted."""
        return self.n_rows == self._reader.n_rows

    def places(self, chunk: int, *, verify: bool, files: OpenFiles) -> NDArray[np.bool_] | None:
        """Return which rows of a chunk are wanted, bool [rows of the chunk]; None for all.

        The origins are read only where some of the chunk's rows are of special tokens.
        """
        first, end = self._reader.chunk_bounds(chunk)
        if self.counts[chunk] == end - first:
            return None
        wanted = self._wanted(chunk, verify, files)
        if (n := np.count_nonzero(wanted)) != self.counts[chunk]:
            raise self._reader.damage(ROWS, chunk, f"has {n} of the wanted rows, {self.counts[chunk]} were counted")
        return wanted

    def _wanted(self, chunk: int, verify: bool, files: OpenFiles) -> NDArray[np.bool_]:
        first, end = self._reader.chunk_bounds(chunk)
        wanted = np.ones(end - first, np.bool_) if self._given is None else _inside(self._given, first, end)
        if self._ordinary and self._reader.special_counts()[chunk]:
            return wanted & ~self._reader.special_rows(chunk, verify=verify, files=files)
        return wanted

    def _leave_out(self, in_chunk: Counts, n_special: NDArray[np.uint32]) -> None:
        """Count no special rows. Only where a chunk is wanted in part and special in part must its origins be read."""
        if self._given is None:
            self.counts -= n_special.astype(np.int32)
            return
        chosen, ordinary = self.counts, in_chunk - n_special.astype(np.int32)
        self.counts = np.minimum(chosen, ordinary)
        mixed = (chosen > 0) & (chosen < in_chunk) & (n_special > 0) & (ordinary > 0)
        todo = np.flatnonzero(mixed).tolist()
        with OpenFiles() as files:

            def count(start: int) -> None:
                for chunk in todo[start : start + CHUNKS_AT_ONCE]:
                    self.counts[chunk] = np.count_nonzero(self._wanted(chunk, True, files))

            on_threads(count, range(0, len(todo), CHUNKS_AT_ONCE))


def _given(rows: slice | ArrayLike | None, n_rows: int) -> range | NDArray[Any] | None:
    """Return rows as a range that ascends, a mask, or row numbers that ascend; None for all."""
    if rows is None:
        return None
    if isinstance(rows, slice):
        numbers = range(*rows.indices(n_rows))
        return numbers if numbers.step > 0 else numbers[::-1]
    if isinstance(rows, np.ndarray) and rows.dtype == np.bool_ and rows.shape == (n_rows,):
        return rows
    return np.unique(row_numbers(rows, n_rows))


def _counts(given: range | NDArray[Any], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of the given rows lie in each chunk."""
    if isinstance(given, range):
        before = np.clip(-((given.start - firsts) // given.step), 0, len(given))
        return np.diff(before)
    if given.dtype == np.bool_:
        starts = firsts[:-1]
        return np.add.reduceat(given, starts, dtype=np.int64) if len(starts) else np.empty(0, np.int64)
    return np.diff(np.searchsorted(given, firsts))


def _inside(given: range | NDArray[Any], first: int, end: int) -> NDArray[np.bool_]:
    """Return which rows of a stretch are given."""
    if not isinstance(given, range) and given.dtype == np.bool_:
        return given[first:end]
    inside = np.zeros(end - first, np.bool_)
    if isinstance(given, range):
        start, stop, step = given.start, given.stop, given.step
        inside[max(0, start - first, (start - first) % step) : max(0, stop - first) : step] = True
    else:
        from_, to = np.searchsorted(given, (first, end))
        inside[given[from_:to] - first] = True
    return inside


def _key(given: range | NDArray[Any] | None) -> str:
    if given is None:
        return "all"
    if isinstance(given, range):
        return f"{given.start}:{given.stop}:{given.step}"
    return xxhash.xxh3_64_hexdigest(raw(np.packbits(given) if given.dtype == np.bool_ else given))
