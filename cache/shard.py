"""One shard: written beside and committed by a rename; read in whole chunks that are held against their checksums."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import layout
from workbench.cache.compression import compress, decompress
from workbench.cache.errors import Damage, DamageError
from workbench.cache.files import PART, drop, file_digest, put_in_place, raw, read_hdf5
from workbench.cache.handles import OpenFiles
from workbench.cache.layout import CHECKSUM, Column, Cut
from workbench.cache.manifest import ShardEntry
from workbench.cache.schema import ROWS

N_THREADS = min(8, os.cpu_count() or 1)
_looking = threading.Lock()
"""Held while a shard is looked at for the first time; one for all, as HDF5 has one of its own."""


def _renew_lock() -> None:
    global _looking
    _looking = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread that held it does not live on in the child
    os.register_at_fork(after_in_child=_renew_lock)


def content_digest(wanted: dict[str, Column], checksums: dict[str, NDArray[np.uint64]]) -> str:
    """Return the xxh3_128 of all chunk checksums of a shard."""
    digest = xxhash.xxh3_128()
    for name in wanted:
        digest.update(raw(np.ascontiguousarray(checksums[name], CHECKSUM)))
    return digest.hexdigest()


class Extent(NamedTuple):
    """A chunk as it lies in a shard's file.

    Attributes
    ----------
    place, n_bytes : int
        Where it starts, and how long it is; compressed, if it is.
    column : str
        Name of its column.
    chunk : int
        Its number in the shard.
    """

    place: int
    n_bytes: int
    column: str
    chunk: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.place + self.n_bytes


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

    def commit(self) -> ShardEntry:
        """Write the checksums, sync, rename into place; returns the entry for the manifest."""
        entry = self.finish()
        self.put_in_place()
        return entry

    def put_in_place(self) -> None:
        """Sync what was finished and rename it."""
        put_in_place(self._part, self.path)

    def finish(self) -> ShardEntry:
        """Write the checksums and close what is still a ``.part``; returns the entry for the manifest."""
        if self._compressed:
            self._write_structure()
        for name, column in self._columns.items():
            self._write(self._draft.places[column.checksums], raw(self._checksums[name]))
        self._file.close()
        digest, n_bytes = file_digest(self._part), self._part.stat().st_size
        content = content_digest(self._columns, self._checksums)
        return ShardEntry(self.path.name, self.first_row, self.cut.n_rows, n_bytes, digest, content)

    def discard(self) -> None:
        """Drop what was written."""
        self._draft.close()
        self._file.close()
        drop(self._part)


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
        self._known: tuple[dict[str, int], layout.Chunks, dict[str, NDArray[np.uint64]]] | None = None

    def read(self, name: str, first: int, out: NDArray[Any], *, verify: bool, files: OpenFiles | None = None) -> None:
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
            Hold every chunk that is touched against its checksum (partly wanted ones are read whole for that). Those
            that are compressed always are: a decompressor is given nothing that is damaged.
        files : OpenFiles, optional
            Keeps the file open for the next reading.

        Raises
        ------
        DamageError
            If the shard is missing, too short or cannot be read, or a checksum differs.
        """
        column, target = self._columns[name], raw(out)
        row_bytes = column.row_bytes
        with OpenFiles() if files is None else nullcontext(files) as handles:
            if not verify and column.compression is None:
                self._fill(handles, self.places()[column.path] + first * row_bytes, target, column.path)
                return
            for chunk, start, end in self.cut.pieces(first, first + len(out)):
                chunk_first, chunk_end = self.cut.chunk(chunk)
                piece = target[(start - first) * row_bytes : (end - first) * row_bytes]
                if (start, end) == (chunk_first, chunk_end):
                    self._chunk_bytes(handles, column, chunk, piece, verify)
                    continue
                buffer = memoryview(bytearray((chunk_end - chunk_first) * row_bytes))
                self._chunk_bytes(handles, column, chunk, buffer, verify)
                piece[:] = buffer[(start - chunk_first) * row_bytes : (end - chunk_first) * row_bytes]

    def read_chunk(self, name: str, chunk: int, buffer: memoryview, *, verify: bool, files: OpenFiles) -> None:
        """Read a whole chunk of a column into a buffer of its bytes; parameters and errors as for `read`."""
        self._chunk_bytes(files, self._columns[name], chunk, buffer, verify)

    def damage(self, what: str, dataset: str | None = None, chunk: int | None = None) -> DamageError:
        """Return the error for something wrong in the shard, in a dataset, or in a chunk of it."""
        first = self.entry.first_row
        start, end = (0, self.entry.n_rows) if chunk is None else self.cut.chunk(chunk)
        return DamageError(self._folder, Damage(self.file, what, dataset, chunk, (first + start, first + end)))

    def is_of(self, capture: str) -> bool:
        """Whether it says that it belongs to a capture; of a file that is damaged, False."""
        try:
            with read_hdf5(self.path) as file:
                return bool(file.attrs.get("capture") == capture)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError):
            return False

    def places(self) -> dict[str, int]:
        """Return the place of each dataset in bytes, asked from HDF5 once."""
        return self._look()[0]

    def checksums(self) -> dict[str, NDArray[np.uint64]]:
        """Return the checksums of each column's chunks, as the shard has them."""
        return self._look()[2]

    def extents(self) -> list[Extent]:
        """Return where each chunk of each column lies in the file, in the order of the file.

        Raises
        ------
        DamageError
            As `places`; and if two chunks would share bytes.
        """
        places, chunks, _ = self._look()
        found = []
        for column in self._columns.values():
            for chunk in range(self.cut.n_chunks):
                first, end = self.cut.chunk(chunk)
                if column.compression is None:
                    place, n_bytes = places[column.path] + first * column.row_bytes, (end - first) * column.row_bytes
                else:
                    place, n_bytes = chunks[column.path][chunk].tolist()
                found.append(Extent(place, n_bytes, column.name, chunk))
        found.sort()
        for before, after in pairwise(found):
            if before.end > after.place:
                path = self._columns[after.column].path
                raise self.damage(f"its HDF5 structure is damaged (dataset {path} lies over another)")
        return found

    def special_counts(self, files: OpenFiles) -> NDArray[np.uint32] | None:
        """Return the number of rows of special tokens in each chunk: uint32 [chunks]; None: the shard does not say."""
        places = self.places()
        if layout.SPECIAL not in places:
            return None
        counts, checksum = np.empty(self.cut.n_chunks, layout.COUNT), np.empty(1, CHECKSUM)
        self._fill(files, places[layout.SPECIAL], raw(counts), layout.SPECIAL)
        self._fill(files, places[layout.SPECIAL_CHECKSUM], raw(checksum), layout.SPECIAL_CHECKSUM)
        if xxhash.xxh3_64_intdigest(raw(counts)) != checksum[0]:
            raise self.damage("checksum differs", layout.SPECIAL)
        return counts

    def _look(self) -> tuple[dict[str, int], layout.Chunks, dict[str, NDArray[np.uint64]]]:
        """Look at the file once: its size, where its datasets and compressed chunks are, and its checksums.

        The manifest vouches for the last; without that, a shard that is right in itself but belongs elsewhere would be
        read.
        """
        if self._known is not None:
            return self._known
        with _looking:
            if self._known is None:
                self._check_size()
                checksums = {name: np.empty(self.cut.n_chunks, CHECKSUM) for name in self._columns}
                try:
                    places, chunks = layout.inspect(self.path, self._columns, self.cut)
                except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
                    raise self.damage(f"its HDF5 structure is damaged ({error})") from error
                with OpenFiles() as files:
                    for name, column in self._columns.items():
                        self._fill(files, places[column.checksums], raw(checksums[name]), column.checksums)
                if self.entry.content and content_digest(self._columns, checksums) != self.entry.content:
                    raise self.damage("its checksums are not those that the manifest has")
                self._known = places, chunks, checksums
            return self._known

    def _check_size(self) -> None:
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise self.damage(f"cannot be read ({error.strerror})") from error
        if size != self.entry.n_bytes:
            raise self.damage(f"has {size} bytes, the manifest says {self.entry.n_bytes}")

    def _chunk_bytes(self, files: OpenFiles, column: Column, chunk: int, buffer: memoryview, verify: bool) -> None:
        """Fill a buffer with a chunk as it is in memory: the one place where stored bytes become that."""
        places, chunks, checksums = self._look()
        stored, compressed = buffer, column.compression is not None
        if compressed:
            place, n_bytes = chunks[column.path][chunk].tolist()
            stored = memoryview(bytearray(n_bytes))
        else:
            place = places[column.path] + chunk * self.cut.chunk_rows * column.row_bytes
        self._fill(files, place, stored, column.path)
        if (verify or compressed) and xxhash.xxh3_64_intdigest(stored) != checksums[column.name][chunk]:
            files.forget(self.path)  # it may be repaired before it is read again
            raise self.damage("checksum differs", column.path, chunk)
        if compressed:
            self._open_chunk(column, chunk, stored, buffer)

    def _open_chunk(self, column: Column, chunk: int, stored: memoryview, buffer: memoryview) -> None:
        """Open a compressed chunk, whose checksum is right, into a buffer; a last, shorter one is filled up on disk."""
        n_bytes = self.cut.padded_rows * column.row_bytes
        room = buffer if len(buffer) == n_bytes else memoryview(bytearray(n_bytes))
        try:
            decompress(stored, room)
        except ValueError as error:
            raise self.damage(str(error), column.path, chunk) from error
        if room is not buffer:
            buffer[:] = room[: len(buffer)]

    def _fill(self, files: OpenFiles, place: int, buffer: memoryview, dataset: str) -> None:
        try:
            files.read(self.path, place, buffer)
        except EOFError:
            raise self.damage("ends too early", dataset) from None
        except OSError as error:
            raise self.damage(f"cannot be read ({error.strerror or error})", dataset) from error
