"""A shard that is being written: beside, as ``.part``, and committed by a rename."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import layout
from workbench.cache.compression import compress
from workbench.cache.files import PART, drop, file_digest, put_in_place, raw
from workbench.cache.layout import CHECKSUM, Column, Cut
from workbench.cache.manifest_file import ShardEntry
from workbench.cache.schema import ROWS
from workbench.cache.shard import content_digest

N_THREADS = min(8, os.cpu_count() or 1)


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
    capture : str
        Whose rows these are: `Manifest.capture`.
    """

    def __init__(
        self, path: Path, wanted: dict[str, Column], cut: Cut, first_row: int, origins: NDArray[Any], capture: str
    ) -> None:
        self.path = path
        self.first_row = first_row
        self.cut = cut
        self.n_written = 0
        self._columns = wanted
        self._part = path.with_name(path.name + PART)
        self._hashers = {name: xxhash.xxh3_64() for name in wanted}
        self._checksums = {name: np.zeros(cut.n_chunks, CHECKSUM) for name in wanted}
        self._compressed = {name: column.compression for name, column in wanted.items() if column.compression}
        self._filling: dict[str, NDArray[Any]] = {}
        self._entry: ShardEntry | None = None
        self._draft = layout.create(wanted, cut, first_row, capture)
        self._file: io.FileIO = self._part.open("w+b", buffering=0)
        try:
            if not self._compressed:
                self._write_structure()
            self._put(ROWS, 0, origins)
            starts = np.arange(0, len(origins), cut.chunk_rows)
            n_special = raw(np.add.reduceat(origins["special"], starts, dtype=layout.COUNT))
            self._write(self._draft.places[layout.SPECIAL], n_special)
            checksum = np.array([xxhash.xxh3_64_intdigest(n_special)], CHECKSUM)
            self._write(self._draft.places[layout.SPECIAL_CHECKSUM], raw(checksum))
        except BaseException:
            self.discard()
            raise

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return self.cut.n_rows - self.n_written

    @property
    def checksums(self) -> dict[str, NDArray[np.uint64]]:
        """Checksums of each column's chunks, as far as they are written."""
        return self._checksums

    def append(self, values: dict[str, NDArray[Any]]) -> None:
        """Write the next rows of every hook point: C-contiguous arrays [rows, ...] of the stored types."""
        for name, array in values.items():
            if name not in self._compressed:
                self._put(name, self.n_written, array)
        if self._compressed:
            self._put_compressed(values)
        self.n_written += len(next(iter(values.values())))

    def append_chunk(self, values: dict[str, NDArray[Any]], packed: Mapping[str, bytes]) -> None:
        """Write the next chunk of every hook point, after whole chunks alone.

        Parameters
        ----------
        values : dict of str to array [rows of the chunk, ...]
            As for `append`; hook points that are in `packed` may be missing.
        packed : mapping of str to bytes
            Of hook points that are compressed: the chunk as another shard has it.
        """
        chunk, first = divmod(self.n_written, self.cut.chunk_rows)
        assert first == 0
        start, end = self.cut.chunk(chunk)
        for name in self._columns:
            if name == ROWS:
                continue
            if name not in self._compressed:
                self._put(name, start, values[name])
                continue
            payload = packed.get(name)
            if payload is None:
                whole = self._fill(name, chunk, start, end, values[name])
                assert whole is not None
                payload = compress(whole, self._compressed[name])
            self._put_payload(name, chunk, payload)
        self.n_written = end

    def _put(self, name: str, first: int, array: NDArray[Any]) -> None:
        column, data = self._columns[name], raw(array)
        self._write(self._draft.places[column.path] + first * column.row_bytes, data)
        for chunk, start, end in self.cut.pieces(first, first + len(array)):
            hasher = self._hashers[name]
            hasher.update(data[(start - first) * column.row_bytes : (end - first) * column.row_bytes])
            if end == self.cut.chunk(chunk)[1]:
                self._checksums[name][chunk] = hasher.intdigest()
                hasher.reset()

    def _put_compressed(self, values: dict[str, NDArray[Any]]) -> None:
        """Compress the chunks that are full now, on threads, and write them in an order that no batches decide."""
        first = self.n_written
        full = [
            (name, chunk, filled)
            for chunk, start, end in self.cut.pieces(first, first + len(next(iter(values.values()))))
            for name in self._compressed
            if (filled := self._fill(name, chunk, start, end, values[name][start - first : end - first])) is not None
        ]

        def pack(entry: tuple[str, int, NDArray[Any]]) -> bytes:
            return compress(entry[2], self._compressed[entry[0]])

        with ThreadPoolExecutor(N_THREADS, "store-compress") as pool:  # starts no thread where nothing is full
            for (name, chunk, _), payload in zip(full, pool.map(pack, full), strict=True):
                self._put_payload(name, chunk, payload)

    def _put_payload(self, name: str, chunk: int, payload: bytes) -> None:
        place = self._draft.place(self._columns[name].path, self.cut.chunk(chunk)[0], payload)
        self._write(place, memoryview(payload))
        self._checksums[name][chunk] = xxhash.xxh3_64_intdigest(payload)

    def _fill(self, name: str, chunk: int, start: int, end: int, rows: NDArray[Any]) -> NDArray[Any] | None:
        """Put rows into a chunk; returns it once it is full."""
        first, until = self.cut.chunk(chunk)
        if end - start == self.cut.padded_rows:
            return rows
        if name not in self._filling:
            self._filling[name] = np.zeros((self.cut.padded_rows, *rows.shape[1:]), rows.dtype)
        self._filling[name][start - first : end - first] = rows
        return self._filling.pop(name) if end == until else None

    def _write_structure(self) -> None:
        """Write what HDF5 has to say, once it knows every place."""
        self._draft.close()
        self._file.truncate(self._draft.sketch.size)
        for place, data in self._draft.sketch.written:
            self._write(place, memoryview(data))

    def _write(self, place: int, data: memoryview) -> None:
        self._file.seek(place)
        while len(data):
            data = data[self._file.write(data) :]

    def finish(self) -> ShardEntry:
        """Write the checksums and close the ``.part``; returns its entry for the manifest. Safe to repeat."""
        if self._entry is not None:
            return self._entry
        if self._compressed:
            self._write_structure()
        for name, column in self._columns.items():
            self._write(self._draft.places[column.checksums], raw(self._checksums[name]))
        self._file.close()
        digest, n_bytes = file_digest(self._part), self._part.stat().st_size
        content = content_digest(self._columns, self._checksums)
        self._entry = ShardEntry(self.path.name, self.first_row, self.cut.n_rows, n_bytes, digest, content)
        return self._entry

    def put_in_place(self) -> None:
        """Sync what was finished and rename it."""
        put_in_place(self._part, self.path)

    def discard(self) -> None:
        """Drop what was written."""
        self._draft.close()
        self._file.close()
        drop(self._part)
