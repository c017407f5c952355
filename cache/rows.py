"""Reading any rows of a store, chunk by chunk and on several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cache.errors import StoreError
from workbench.cache.layout import columns
from workbench.cache.manifest import Manifest
from workbench.cache.shard import Shard

N_THREADS = min(8, os.cpu_count() or 1)
PIECE_BYTES = 8 << 20

T = TypeVar("T")


def on_threads(work: Callable[[T], None], pieces: list[T]) -> None:
    """Do every piece of work, on threads where there is more than one; the first error is raised."""
    if len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(N_THREADS, "store-read") as pool:
        try:
            list(pool.map(work, pieces))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def row_numbers(rows: slice | ArrayLike, n_rows: int) -> NDArray[np.int64]:
    """Return row numbers, int64, from a slice, a bool mask over all rows, or integers (negative: from the end).

    Raises
    ------
    StoreError
        If a mask has another length, or a number is out of range.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n_rows), dtype=np.int64)
    given = np.atleast_1d(np.asarray(rows))
    if given.ndim != 1:
        raise StoreError(f"rows have shape {given.shape}: must be a slice, a mask [{n_rows}] or a list of row numbers")
    if given.dtype == np.bool_:
        if len(given) != n_rows:
            raise StoreError(f"the mask has {len(given)} entries; the store has {n_rows} rows")
        return np.flatnonzero(given)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise StoreError(f"rows are {given.dtype}: must be integers or a bool mask")
    numbers = given.astype(np.int64)
    if outside := numbers[(numbers < -n_rows) | (numbers >= n_rows)].tolist():
        raise StoreError(f"row {outside[0]}: the store has {n_rows} rows, counted from 0")
    return np.where(numbers < 0, numbers + n_rows, numbers)


class RowReader:
    """The committed rows of a store.

    Parameters
    ----------
    folder, manifest
        The store.

    Attributes
    ----------
    n_rows : int
        Committed rows.
    columns : dict of str to Column
        Hook points and origins.
    factors : dict of str to float32 array [...]
        Of the hook points that are int8; see `workbench.cache.int8`.
    chunk_first : int64 [chunks]
        First row of each chunk; chunks are the same for every column, and none spans two shards.
    chunk_rows : int64 [chunks]
        Rows of each chunk.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.n_rows = manifest.committed_rows
        self.columns = columns(manifest)
        self.factors = manifest.factors()
        self._shards = [Shard(folder, entry, self.columns, manifest.chunk_rows) for entry in manifest.shards]
        self._shard_first = np.array([entry.first_row for entry in manifest.shards], np.int64)
        firsts = [np.arange(e.first_row, e.end_row, manifest.chunk_rows, dtype=np.int64) for e in manifest.shards]
        self.chunk_first = np.concatenate([np.empty(0, np.int64), *firsts])
        self.chunk_rows = np.diff(np.append(self.chunk_first, self.n_rows))

    def read_range(self, name: str, first: int, out: NDArray[Any], *, verify: bool) -> None:
        """Read consecutive rows of a column into a C-contiguous array [rows, ...] of the stored type."""
        step = max(1, PIECE_BYTES // self.columns[name].row_bytes)
        end = first + len(out)
        pieces = list(self._pieces(first, end, step))

        def read(piece: tuple[int, int]) -> None:
            self._read_piece(name, piece, out[piece[0] - first : piece[1] - first], verify)

        on_threads(read, pieces)

    def read_chunk(self, name: str, chunk: int, out: NDArray[Any], *, verify: bool) -> None:
        """Read one chunk of a column into a C-contiguous array [rows, ...] of the stored type."""
        first = int(self.chunk_first[chunk])
        self._read_piece(name, (first, first + int(self.chunk_rows[chunk])), out, verify)

    def read_rows(self, name: str, rows: NDArray[np.int64], *, verify: bool) -> NDArray[Any]:
        """Return rows of a column in the order asked for; every chunk is read once.

        Parameters
        ----------
        name : str
            Hook point, or "rows".
        rows : int64 [n]
            In range, in any order, repeats allowed.
        verify : bool
            Hold every chunk that is touched against its checksum.
        """
        column = self.columns[name]
        out = np.empty((len(rows), *column.shape), column.dtype)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        chunks = np.searchsorted(self.chunk_first, ascending, side="right") - 1
        bounds = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(rows)] if len(rows) else [0]

        def read(group: tuple[int, int]) -> None:
            wanted = ascending[group[0] : group[1]]
            first, end = int(wanted[0]), int(wanted[-1]) + 1
            if verify:
                chunk = chunks[group[0]]
                first = int(self.chunk_first[chunk])
                end = first + int(self.chunk_rows[chunk])
            values = np.empty((end - first, *column.shape), column.dtype)
            self._read_piece(name, (first, end), values, verify)
            out[order[group[0] : group[1]]] = values[wanted - first]

        on_threads(read, list(pairwise(bounds)))
        return out

    def _pieces(self, first: int, end: int, step: int) -> Iterable[tuple[int, int]]:
        """Cut a range of rows at the ends of shards, and at ends of chunks at most `step` rows or one chunk apart."""
        while first < end:
            shard = self._shards[self._shard_of(first)]
            chunk_rows, shard_first = shard.cut.chunk_rows, shard.entry.first_row
            n_chunks = (first - shard_first) // chunk_rows + max(1, step // chunk_rows)
            until = min(shard_first + n_chunks * chunk_rows, shard.entry.end_row, end)
            yield first, until
            first = until

    def _shard_of(self, row: int) -> int:
        return int(np.searchsorted(self._shard_first, row, side="right")) - 1

    def _read_piece(self, name: str, piece: tuple[int, int], out: NDArray[Any], verify: bool) -> None:
        shard = self._shards[self._shard_of(piece[0])]
        shard.read(name, piece[0] - shard.entry.first_row, out, verify=verify)
