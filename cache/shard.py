"""One shard: written beside and committed by a rename; read in whole chunks that are held against their checksums."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import layout
from workbench.cache.errors import Damage, DamageError
from workbench.cache.files import PART, file_digest, put_in_place, raw
from workbench.cache.layout import CHECKSUM, Column, Cut
from workbench.cache.manifest import ShardEntry
from workbench.cache.schema import ROWS


def content_digest(wanted: dict[str, Column], checksums: dict[str, NDArray[np.uint64]]) -> str:
    """Return the xxh3_128 of all chunk checksums of a shard."""
    digest = xxhash.xxh3_128()
    for name in wanted:
        digest.update(raw(np.ascontiguousarray(checksums[name], CHECKSUM)))
    return digest.hexdigest()


class OpenShard:
    """A shard that is being written as ``.part``.

    Parameters
    ----------
    path : Path
        Where it will be once committed.
    wanted : dict of str to Column
        Its columns.
    cut : Cut
        Its rows and chunks.
    first_row : int
        Number of its first row in the store.
    origins : record array [rows]
        Its ``/rows``.
    """

    def __init__(self, path: Path, wanted: dict[str, Column], cut: Cut, first_row: int, origins: NDArray[Any]) -> None:
        self.path = path
        self.first_row = first_row
        self.cut = cut
        self.n_written = 0
        self._columns = wanted
        self._part = path.with_name(path.name + PART)
        self._hashers = {name: xxhash.xxh3_64() for name in wanted}
        self._checksums = {name: np.zeros(cut.n_chunks, CHECKSUM) for name in wanted}
        sketch, self._places = layout.create(wanted, cut, first_row)
        self._file: io.FileIO = self._part.open("w+b", buffering=0)
        try:
            self._file.truncate(sketch.size)
            for place, data in sketch.written.items():
                self._write(place, memoryview(data))
            self._put(ROWS, 0, origins)
        except OSError:
            self.discard()
            raise

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self.cut.n_rows - self.n_written

    def append(self, values: dict[str, NDArray[Any]]) -> None:
        """Write the next rows of every hook point: C-contiguous arrays [rows, ...] of the stored types."""
        for name, array in values.items():
            self._put(name, self.n_written, array)
        self.n_written += len(array)

    def _put(self, name: str, first: int, array: NDArray[Any]) -> None:
        column, data = self._columns[name], raw(array)
        self._write(self._places[column.path] + first * column.row_bytes, data)
        for chunk, start, end in self.cut.pieces(first, first + len(array)):
            hasher = self._hashers[name]
            hasher.update(data[(start - first) * column.row_bytes : (end - first) * column.row_bytes])
            if end == self.cut.chunk(chunk)[1]:
                self._checksums[name][chunk] = hasher.intdigest()
                hasher.reset()

    def _write(self, place: int, data: memoryview) -> None:
        self._file.seek(place)
        while len(data):
            data = data[self._file.write(data) :]

    def commit(self) -> ShardEntry:
        """Write the checksums, sync, rename into place; returns the entry for the manifest."""
        for name, column in self._columns.items():
            self._write(self._places[column.checksums], raw(self._checksums[name]))
        self._file.close()
        digest, n_bytes = file_digest(self._part), self._part.stat().st_size
        put_in_place(self._part, self.path)
        content = content_digest(self._columns, self._checksums)
        return ShardEntry(self.path.name, self.first_row, self.cut.n_rows, n_bytes, digest, content)

    def discard(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class Shard:
    """A committed shard, to be read; nothing is touched before the first read. Safe to share between threads.

    Parameters
    ----------
    folder : Path
        The store.
    entry : ShardEntry
        What the manifest says of it; an empty `content` is not compared.
    wanted : dict of str to Column
        Its columns.
    chunk_rows : int
        Rows per chunk.
    """

    def __init__(self, folder: Path, entry: ShardEntry, wanted: dict[str, Column], chunk_rows: int) -> None:
        self.entry = entry
        self.cut = Cut(entry.n_rows, chunk_rows)
        self.path = folder / layout.FOLDER / entry.name
        self.file = f"{layout.FOLDER}/{entry.name}"
        self._folder = folder
        self._columns = wanted
        self._known: tuple[dict[str, int], dict[str, NDArray[np.uint64]]] | None = None
        self._lock = threading.Lock()

    def read(self, name: str, first: int, out: NDArray[Any], *, verify: bool) -> None:
        """Read rows of a column.

        Parameters
        ----------
        name : str
            Hook point, or "rows".
        first : int
            First row, counted in the shard.
        out : C-contiguous array [rows, ...] of the stored type
            Filled; its length says how many rows.
        verify : bool
            Hold every chunk that is touched against its checksum (partly wanted ones are read whole for that).

        Raises
        ------
        DamageError
            If the shard is missing, too short or cannot be read, or a checksum differs.
        """
        column, target = self._columns[name], raw(out)
        place, row_bytes = self.places()[column.path], column.row_bytes
        checksums = self.checksums()[name] if verify else None
        try:
            with self.path.open("rb", buffering=0) as file:
                if checksums is None:
                    self._fill(file, place + first * row_bytes, target, column)
                    return
                for chunk, start, end in self.cut.pieces(first, first + len(out)):
                    chunk_first, chunk_end = self.cut.chunk(chunk)
                    piece = target[(start - first) * row_bytes : (end - first) * row_bytes]
                    whole = (start, end) == (chunk_first, chunk_end)
                    buffer = piece if whole else memoryview(bytearray((chunk_end - chunk_first) * row_bytes))
                    self._fill(file, place + chunk_first * row_bytes, buffer, column)
                    if xxhash.xxh3_64_intdigest(buffer) != checksums[chunk]:
                        self._damaged("checksum differs", column, chunk)
                    if not whole:
                        piece[:] = buffer[(start - chunk_first) * row_bytes : (end - chunk_first) * row_bytes]
        except OSError as error:
            self._damaged(f"cannot be read ({error.strerror or error})", column)

    def places(self) -> dict[str, int]:
        """Return the place of each dataset in bytes, asked from HDF5 once."""
        return self._look()[0]

    def checksums(self) -> dict[str, NDArray[np.uint64]]:
        """Return the checksums of each column's chunks, as the shard has them."""
        return self._look()[1]

    def _look(self) -> tuple[dict[str, int], dict[str, NDArray[np.uint64]]]:
        """Look at the file once: its size, where its datasets are, and its checksums, which the manifest vouches for.

        Without the last, a shard that is right in itself but belongs elsewhere would be read.
        """
        with self._lock:
            if self._known is None:
                self._check_size()
                checksums = {name: np.empty(self.cut.n_chunks, CHECKSUM) for name in self._columns}
                try:
                    places = layout.inspect(self.path, self._columns, self.cut)
                    with self.path.open("rb", buffering=0) as file:
                        for name, column in self._columns.items():
                            self._fill(file, places[column.checksums], raw(checksums[name]), column)
                except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
                    self._damaged(f"its HDF5 structure is damaged ({error})")
                if self.entry.content and content_digest(self._columns, checksums) != self.entry.content:
                    self._damaged("its checksums are not those that the manifest has")
                self._known = places, checksums
            return self._known

    def _check_size(self) -> None:
        try:
            size = self.path.stat().st_size
        except OSError as error:
            self._damaged(f"cannot be read ({error.strerror})")
        if size != self.entry.n_bytes:
            self._damaged(f"has {size} bytes, the manifest says {self.entry.n_bytes}")

    def _fill(self, file: io.FileIO, place: int, buffer: memoryview, column: Column) -> None:
        file.seek(place)
        while len(buffer):
            n = file.readinto(buffer)
            if not n:
                self._damaged("ends too early", column)
            buffer = buffer[n:]

    def _damaged(self, what: str, column: Column | None = None, chunk: int | None = None) -> NoReturn:
        first = self.entry.first_row
        start, end = (0, self.entry.n_rows) if chunk is None else self.cut.chunk(chunk)
        dataset = None if column is None else column.path
        raise DamageError(self._folder, Damage(self.file, what, dataset, chunk, (first + start, first + end)))
