"""What is left of a damaged shard: which chunks are sound, and where they lie, even if HDF5 cannot say any more."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import layout
from workbench.cache.compression import HEADER_BYTES, decompress
from workbench.cache.errors import DamageError
from workbench.cache.handles import OpenFiles
from workbench.cache.layout import CHECKSUM, Column, Cut
from workbench.cache.manifest_file import ShardEntry
from workbench.cache.schema import ROWS
from workbench.cache.shard import Extent, Shard, content_digest

MOST_DOUBTS = 10
"""So many chunks differ from their checksums at most, if each is asked whether it or its checksum is damaged."""

FORMAT_OF_BLOSC = b"\2"
"""First byte of its payloads."""


class Salvage:
    """A shard of which something is damaged, and what can be used of it.

    Parameters
    ----------
    folder : Path
        The store.
    entry : ShardEntry
        What the manifest says of the shard.
    wanted : dict of str to Column
        Its columns.
    chunk_rows : int
        Rows per chunk.
    capture : str
        `Manifest.capture`, with which its file was laid out.

    Attributes
    ----------
    sound : dict of str to bool array [chunks]
        By column: which chunks are as they were written.
    checksums : dict of str to uint64 array [chunks]
        By column: what the checksums should be, as far as that is known.
    vouched : bool
        Whether these are the checksums that the manifest has a hash of. Where they are not, some of them are damaged
        too or gone, or the shard is another's: chunks that are in `sound` probably are, which the hash over all
        chunks of the repaired shard has to show.
    """

    def __init__(
        self, folder: Path, entry: ShardEntry, wanted: dict[str, Column], chunk_rows: int, capture: str
    ) -> None:
        self.entry = entry
        self.cut = Cut(entry.n_rows, chunk_rows)
        self.path = folder / layout.FOLDER / entry.name
        self._wanted = wanted
        self._files = OpenFiles()
        self._extents, places = self._find(Shard(folder, replace(entry, content=""), wanted, chunk_rows), capture)
        known = {name: self._stored_checksums(places[column.checksums]) for name, column in wanted.items()}
        nothing = np.zeros(self.cut.n_chunks, CHECKSUM)
        self.checksums = {name: nothing.copy() if stored is None else stored for name, stored in known.items()}
        for name, column in wanted.items():
            if column.compression is not None and not any(each[0] == name for each in self._extents):
                self._extents |= {(name, chunk): at for chunk, at in self._search(column)}
        found = {name: np.zeros(self.cut.n_chunks, CHECKSUM) for name in wanted}
        readable = {name: np.zeros(self.cut.n_chunks, np.bool_) for name in wanted}
        for (name, chunk), extent in self._extents.items():
            with suppress(OSError, EOFError):
                found[name][chunk] = xxhash.xxh3_64_intdigest(self._stored(extent))
                readable[name][chunk] = True
        self.vouched = self._settle(found, readable)
        self.sound: dict[str, NDArray[np.bool_]] = {
            name: readable[name] & ((found[name] == self.checksums[name]) | (not self.vouched and known[name] is None))
            for name in wanted
        }
        if not self.vouched and all(sound.all() for sound in self.sound.values()):
            self.doubt()  # right in itself, and not what the manifest knows: another's

    def doubt(self) -> None:
        """Take nothing of it for sound."""
        self.sound = {name: np.zeros(self.cut.n_chunks, np.bool_) for name in self._wanted}

    def chunk(self, name: str, chunk: int) -> NDArray[Any]:
        """Return the values of a sound chunk, [rows, ...] of the stored type."""
        column = self._wanted[name]
        first, end = self.cut.chunk(chunk)
        stored = self._stored(self._extents[name, chunk])
        if column.compression is not None:
            opened = memoryview(bytearray(self.cut.padded_rows * column.row_bytes))
            decompress(stored, opened)
            stored = opened[: (end - first) * column.row_bytes]
        return np.frombuffer(stored, column.dtype).reshape(end - first, *column.shape)

    def payload(self, name: str, chunk: int) -> bytes:
        """Return a sound chunk that is compressed as it lies in the file."""
        return bytes(self._stored(self._extents[name, chunk]))

    def close(self) -> None:
        """Close the file."""
        self._files.close()

    def _find(self, shard: Shard, capture: str) -> tuple[dict[tuple[str, int], Extent], dict[str, int]]:
        """Return where chunks are, and where each dataset is; as HDF5 would lay it out, if the file does not say."""
        with suppress(DamageError):
            extents = shard.extents()
            return {(extent.column, extent.chunk): extent for extent in extents}, shard.places()
        draft = layout.create(self._wanted, self.cut, self.entry.first_row, capture)
        draft.close()
        found = {}
        for name, column in self._wanted.items():
            for chunk in range(self.cut.n_chunks) if column.compression is None else ():
                first, end = self.cut.chunk(chunk)
                place = draft.places[column.path] + first * column.row_bytes
                found[name, chunk] = Extent(place, (end - first) * column.row_bytes, name, chunk)
        return found, draft.places

    def _stored_checksums(self, place: int) -> NDArray[np.uint64] | None:
        """Return the checksums of a column; None where they are gone, as at the end of a file that was cut off."""
        stored = memoryview(bytearray(self.cut.n_chunks * CHECKSUM.itemsize))
        try:
            self._files.read(self.path, place, stored)
        except (OSError, EOFError):
            return None
        return np.frombuffer(stored, CHECKSUM).copy()

    def _search(self, column: Column) -> Iterator[tuple[int, Extent]]:
        """Look through the file for compressed chunks of a column, which are known by their checksums."""
        whole = self.cut.padded_rows * column.row_bytes
        wanted: dict[int, list[int]] = {}
        for chunk, checksum in enumerate(self.checksums[column.name].tolist()):
            wanted.setdefault(checksum, []).append(chunk)
        mark = bytes([column.dtype.itemsize]) + whole.to_bytes(4, "little")  # bytes 3 to 7 of a header
        with (
            suppress(OSError, ValueError),  # there is no file, or nothing in it
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
        ):
            at = memory.find(mark)
            while at >= 0:
                place, at = at - 3, memory.find(mark, at + 1)
                header = memory[max(0, place) : place + HEADER_BYTES]
                n_bytes = int.from_bytes(header[12:16], "little")
                if header[:1] == FORMAT_OF_BLOSC and HEADER_BYTES <= n_bytes <= whole + HEADER_BYTES:
                    for chunk in wanted.get(xxhash.xxh3_64_intdigest(memory[place : place + n_bytes]), ()):
                        yield chunk, Extent(place, n_bytes, column.name, chunk)

    def _stored(self, extent: Extent) -> memoryview:
        stored = memoryview(bytearray(extent.n_bytes))
        self._files.read(self.path, extent.place, stored)
        return stored

    def _settle(self, found: dict[str, NDArray[np.uint64]], readable: dict[str, NDArray[np.bool_]]) -> bool:
        """Find out which checksums are damaged themselves; returns whether the manifest vouches for all then."""
        doubtful = [
            (name, int(chunk))
            for name, values in found.items()
            for chunk in np.flatnonzero(readable[name] & (values != self.checksums[name]))
        ]
        everything = [(True,) * len(doubtful)]
        few = product((False, True), repeat=len(doubtful)) if len(doubtful) <= MOST_DOUBTS else iter(())
        for is_checksum in (*few, (False,) * len(doubtful), *everything):
            tried = {name: values.copy() for name, values in self.checksums.items()}
            for (name, chunk), damaged in zip(doubtful, is_checksum, strict=True):
                if damaged:
                    tried[name][chunk] = found[name][chunk]
            if content_digest(self._wanted, tried) == self.entry.content:
                self.checksums = tried
                return True
        return False


def origins_of(salvage: Salvage) -> NDArray[Any] | None:
    """Return ``/rows`` of a shard as it has them itself; None if some of them are damaged."""
    if not salvage.sound[ROWS].all():
        return None
    return np.concatenate([salvage.chunk(ROWS, chunk) for chunk in range(salvage.cut.n_chunks)])
