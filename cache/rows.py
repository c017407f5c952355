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

from workbench.cache.blocks import Block
from workbench.cache.errors import DamageError, StoreError
from workbench.cache.handles import OpenFiles
from workbench.cache.layout import COUNT, columns
from workbench.cache.manifest import Manifest
from workbench.cache.schema import ROWS
from workbench.cache.shard import Shard

N_THREADS = min(8, os.cpu_count() or 1)
PIECE_BYTES = 8 << 20

T = TypeVar("T")


def on_threads(work: Callable[[T], None], pieces: Iterable[T]) -> None:
    """Do every piece of work, on threads where there is more than one; the first error is raised."""
    todo = list(pieces)
    if len(todo) < 2:
        for piece in todo:
            work(piece)
        return
    with ThreadPoolExecutor(N_THREADS, "store-read") as pool:
        try:
            list(pool.map(work, todo))
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
    if outside := given[(given < -n_rows) | (given >= n_rows)].tolist():  # before uint64 could become negative
        raise StoreError(f"row {outside[0]}: the store has {n_rows} rows, counted from 0")
    numbers = given.astype(np.int64)
    return np.where(numbers < 0, numbers + n_rows, numbers)


class RowReader:
    """The committed rows of a store.

    Chunks are numbered over all shards; they are the same for every column, and none spans two shards. Where a chunk
    lies is worked out, not kept: a store of billions of rows has millions.

    Parameters
    ----------
    folder, manifest
        The store.

    Attributes
    ----------
    n_rows, n_chunks : int
        Committed.
    columns : dict of str to Column
        Hook points and origins.
    factors : dict of str to float32 array [...]
        Of the hook points that are int8; see `workbench.cache.int8`.
    chunk_rows : int
        Rows of each chunk but a shorter last one of a shard.
    spare : list of Block
        Memory of the last pass, kept for the next.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.n_rows = manifest.committed_rows
        self.columns = columns(manifest)
        self.factors = manifest.factors()
        self.chunk_rows = manifest.chunk_rows
        self._rows_per_shard = manifest.rows_per_shard
        self._chunks_per_shard = -(-manifest.rows_per_shard // manifest.chunk_rows)
        self._shards = [Shard(folder, entry, self.columns, manifest.chunk_rows) for entry in manifest.shards]
        self.n_chunks = sum(shard.cut.n_chunks for shard in self._shards)
        self.spare: list[Block] = []
        self._special: NDArray[np.uint32] | None = None

    def chunk_bounds(self, chunk: int) -> tuple[int, int]:
        """Return the first and the end row of a chunk."""
        shard, number = self._locate(chunk)
        first, end = shard.cut.chunk(number)
        return shard.entry.first_row + first, shard.entry.first_row + end

    def chunk_firsts(self) -> NDArray[np.int64]:
        """Return the first row of each chunk, and the end of the last: int64 [chunks + 1]."""
        shards, numbers = np.divmod(np.arange(self.n_chunks, dtype=np.int64), self._chunks_per_shard)
        return np.append(shards * self._rows_per_shard + numbers * self.chunk_rows, self.n_rows)

    def rows_of_chunks(self) -> NDArray[np.int32]:
        """Return the number of rows of each chunk: int32 [chunks]."""
        counts = np.full(self.n_chunks, self.chunk_rows, np.int32)
        counts[self._chunks_per_shard - 1 :: self._chunks_per_shard] -= (-self._rows_per_shard) % self.chunk_rows
        if self.n_chunks:
            first, end = self.chunk_bounds(self.n_chunks - 1)
            counts[-1] = end - first
        return counts

    def chunks_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the chunk of each row."""
        shards, rest = np.divmod(rows, self._rows_per_shard)
        found: NDArray[np.int64] = shards * self._chunks_per_shard + rest // self.chunk_rows
        return found

    def special_counts(self) -> NDArray[np.uint32]:
        """Return the number of rows of special tokens in each chunk: uint32 [chunks], found once.

        Shards of this version have them; of earlier ones all origins are read for it, chunk by chunk.
        """
        if self._special is None:
            counts = np.empty(self.n_chunks, COUNT)

            with OpenFiles() as files:

                def count(number: int) -> None:
                    shard, first = self._shards[number], number * self._chunks_per_shard
                    found = shard.special_counts(files)
                    if found is not None:
                        counts[first : first + len(found)] = found
                        return
                    for chunk in range(first, first + shard.cut.n_chunks):
                        counts[chunk] = np.count_nonzero(self.special_rows(chunk, verify=True, files=files))

                on_threads(count, range(len(self._shards)))
            self._special = counts
        return self._special

    def special_rows(self, chunk: int, *, verify: bool, files: OpenFiles) -> NDArray[np.bool_]:
        """Return which rows of a chunk are special tokens: bool [rows of the chunk]."""
        first, end = self.chunk_bounds(chunk)
        column = self.columns[ROWS]
        buffer = bytearray((end - first) * column.row_bytes)
        self.read_chunk(ROWS, chunk, memoryview(buffer), verify=verify, files=files)
        special: NDArray[np.bool_] = np.frombuffer(buffer, column.dtype)["special"]
        return special

    def read_chunk(self, name: str, chunk: int, buffer: memoryview, *, verify: bool, files: OpenFiles) -> None:
        """Read one chunk of a column into a buffer of its bytes."""
        shard, number = self._locate(chunk)
        shard.read_chunk(name, number, buffer, verify=verify, files=files)

    def damage(self, name: str, chunk: int, what: str) -> DamageError:
        """Return the error for a chunk of a column in which something is wrong."""
        shard, number = self._locate(chunk)
        return shard.damage(what, self.columns[name].path, number)

    def read_range(self, name: str, first: int, out: NDArray[Any], *, verify: bool) -> None:
        """Read consecutive rows of a column into a C-contiguous array [rows, ...] of the stored type."""
        step = max(1, PIECE_BYTES // self.columns[name].row_bytes)

        with OpenFiles() as files:

            def read(piece: tuple[int, int]) -> None:
                self._read_piece(name, piece, out[piece[0] - first : piece[1] - first], verify, files)

            on_threads(read, self._pieces(first, first + len(out), step))

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
        chunks = self.chunks_of(ascending)
        bounds = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(rows)] if len(rows) else [0]

        with OpenFiles() as files:

            def read(group: tuple[int, int]) -> None:
                wanted = ascending[group[0] : group[1]]
                first, end = int(wanted[0]), int(wanted[-1]) + 1
                if verify:
                    first, end = self.chunk_bounds(int(chunks[group[0]]))
                values = np.empty((end - first, *column.shape), column.dtype)
                self._read_piece(name, (first, end), values, verify, files)
                out[order[group[0] : group[1]]] = values[wanted - first]

            on_threads(read, pairwise(bounds))
        return out

    def _locate(self, chunk: int) -> tuple[Shard, int]:
        """Return the shard of a chunk, and its number in the shard."""
        shard, number = divmod(chunk, self._chunks_per_shard)
        return self._shards[shard], number

    def _pieces(self, first: int, end: int, step: int) -> Iterable[tuple[int, int]]:
        """Cut a range of rows at the ends of shards, and at ends of chunks at most `step` rows or one chunk apart."""
        while first < end:
            shard = self._shards[first // self._rows_per_shard]
            n_chunks = (first - shard.entry.first_row) // self.chunk_rows + max(1, step // self.chunk_rows)
            until = min(shard.entry.first_row + n_chunks * self.chunk_rows, shard.entry.end_row, end)
            yield first, until
            first = until

    def _read_piece(self, name: str, piece: tuple[int, int], out: NDArray[Any], verify: bool, files: OpenFiles) -> None:
        shard = self._shards[piece[0] // self._rows_per_shard]
        shard.read(name, piece[0] - shard.entry.first_row, out, verify=verify, files=files)
