"""A committed shard, read in whole chunks that are held against their checksums."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import layout
from workbench.cache.compression import decompress
from workbench.cache.errors import Damage, DamageError
from workbench.cache.files import raw, read_hdf5
from workbench.cache.handles import OpenFiles
from workbench.cache.layout import CHECKSUM, Column, Cut
from workbench.cache.manifest_file import ShardEntry

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
            with read_hdf5(self.path, texts=True) as file:
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
