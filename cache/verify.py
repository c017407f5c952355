"""Holding a whole store against what it should be: every file's digest, every chunk's checksum, in one reading."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from workbench.cache import labels
from workbench.cache.codes import check_codes
from workbench.cache.compression import HEADER_BYTES, check_header
from workbench.cache.errors import Damage, DamageError
from workbench.cache.examples import Examples
from workbench.cache.folders import check_folder
from workbench.cache.handles import OpenFiles
from workbench.cache.index import check_index
from workbench.cache.layout import SPECIAL, Column, columns
from workbench.cache.manifest import Manifest
from workbench.cache.manifest_file import ShardEntry
from workbench.cache.schema import ROWS
from workbench.cache.shard import Extent, Shard, content_digest

BLOCK_BYTES = 1 << 20
"""Read at a time: enough for the disk, and hashed twice while it is in the processor's cache."""

Progress = Callable[[int], object]


class _StoppedError(Exception):
    """The whole check was given up, while a shard was being read."""


def verify(folder: Path, manifest: Manifest, progress: Progress | None = None) -> list[Damage]:
    """Check every committed shard, the plan, the labels, the codes, the tokenizer and the index; shards in parallel.

    Parameters
    ----------
    folder, manifest
        The store.
    progress : callable, optional
        Called with the number of bytes that were checked since the last call, every megabyte of a shard; by one thread
        at a time, not always the same.

    Returns
    -------
    list of Damage
        In the order of the files; empty if all is well. A fault outside every chunk (in HDF5's own structure, an
        attribute, an alignment gap) names the shard alone.
    """
    wanted = columns(manifest)
    one_at_a_time, stopped = threading.Lock(), threading.Event()

    def tell(n_bytes: int) -> None:
        if progress is not None and n_bytes:
            with one_at_a_time:
                progress(n_bytes)

    def check(entry: ShardEntry) -> list[Damage]:
        left = entry.n_bytes

        def seen(n_bytes: int) -> None:
            nonlocal left
            if stopped.is_set():
                raise _StoppedError
            left -= n_bytes
            tell(n_bytes)

        found = check_shard(folder, entry, wanted, manifest.chunk_rows, seen)
        tell(left)  # of a shard that could not be read to its end
        return found

    found = list(_check_plan(folder, manifest))
    pool = ThreadPoolExecutor(os.cpu_count() or 1, "store-verify")
    try:
        for damage in pool.map(check, manifest.shards):
            found += damage
    except BaseException:
        stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [
        *found,
        *_check_labels(folder, manifest),
        *check_codes(folder),
        *check_folder(folder / "tokenizer"),
        *check_index(folder, manifest),
    ]


def check_shard(
    folder: Path, entry: ShardEntry, wanted: dict[str, Column], chunk_rows: int, progress: Progress | None = None
) -> list[Damage]:
    """Return the faults of one shard, which is read once from start to end; `progress` is told of each block."""
    shard = Shard(folder, replace(entry, content=""), wanted, chunk_rows)  # so that a damaged checksum names its chunk
    found: list[Damage] = []
    counts = None
    try:
        extents = shard.extents()
        with OpenFiles() as files:
            try:
                counts = shard.special_counts(files)
            except DamageError as error:
                found.append(error.damage)
        chunks = _Chunks(shard, wanted, counts)
        digest = xxhash.xxh3_128()
        for block, pieces in read_through(shard.path, extents):
            digest.update(block)
            for extent, at, data in pieces:
                chunks.take(extent, at, data)
            if progress is not None:
                progress(len(block))
    except DamageError as error:
        return [error.damage]
    except OSError as error:  # a bad sector, for one: what else can be read, chunk by chunk?
        return _read_apart(shard, wanted) or [shard.damage(f"cannot be read ({error.strerror or error})").damage]
    found += chunks.damage()
    if not found and digest.hexdigest() != entry.digest:
        found.append(shard.damage("differs from its digest in the manifest, though every chunk is right").damage)
    elif not found and content_digest(wanted, shard.checksums()) != entry.content:
        found.append(shard.damage("its checksums are not those that the manifest has").damage)
    return found


class _Chunks:
    """The chunks of a shard, put together from the pieces in which they are read.

    Parameters
    ----------
    shard : Shard
        Whose.
    wanted : dict of str to Column
        Its columns.
    counts : uint32 [chunks], optional
        What it says of the number of special tokens in each chunk; None: nothing.
    """

    def __init__(self, shard: Shard, wanted: dict[str, Column], counts: np.ndarray | None) -> None:
        self._shard = shard
        self._wanted = wanted
        self._counts = counts
        self._hasher = xxhash.xxh3_64()
        self._n_special = 0
        self._header = b""
        self._found: dict[tuple[str, int], Damage] = {}
        self._n_whole = 0

    def take(self, extent: Extent, at: int, data: memoryview) -> None:
        """Take the next piece, from byte `at` of its chunk on; all pieces of a chunk come before those of another."""
        column = self._wanted[extent.column]
        self._hasher.update(data)
        if column.compression is not None and len(self._header) < HEADER_BYTES:
            self._header += bytes(data[: HEADER_BYTES - len(self._header)])
        if column.name == ROWS:
            size, first = column.dtype.itemsize, column.dtype.fields["special"][1]  # type: ignore[index]
            self._n_special += int(np.count_nonzero(np.frombuffer(data, np.uint8)[(first - at) % size :: size]))
        if at + len(data) == extent.n_bytes:
            self._end(column, extent.chunk, extent.n_bytes)

    def _end(self, column: Column, chunk: int, n_bytes: int) -> None:
        if self._hasher.intdigest() != self._shard.checksums()[column.name][chunk]:
            self._note(column.name, chunk, "checksum differs", column.path)
        elif column.compression is not None:
            try:
                check_header(self._header, n_bytes, self._shard.cut.padded_rows * column.row_bytes)
            except ValueError as error:  # with a right checksum: whoever wrote it compressed something else
                self._note(column.name, chunk, str(error), column.path)
        elif column.name == ROWS and self._counts is not None and self._n_special != self._counts[chunk]:
            what = f"says {self._counts[chunk]} rows of special tokens, /{ROWS} has {self._n_special}"
            self._note(ROWS, chunk, what, SPECIAL)  # with a right checksum: whoever wrote it counted wrongly
        self._hasher.reset()
        self._header = b""
        self._n_special = 0
        self._n_whole += 1

    def _note(self, name: str, chunk: int, what: str, dataset: str) -> None:
        self._found[name, chunk] = self._shard.damage(what, dataset, chunk).damage

    def damage(self) -> list[Damage]:
        """Return what is wrong, in the order of the columns and chunks."""
        if self._n_whole < len(self._wanted) * self._shard.cut.n_chunks:
            return [self._shard.damage("ends too early").damage]  # it was cut off while it was read
        order = list(self._wanted)
        return [self._found[key] for key in sorted(self._found, key=lambda key: (order.index(key[0]), key[1]))]


def read_through(
    path: Path, extents: Sequence[Extent]
) -> Iterator[tuple[memoryview, list[tuple[Extent, int, memoryview]]]]:
    """Read a file from start to end, once, and say which parts of it are of which chunk.

    Parameters
    ----------
    path : Path
        The file.
    extents : sequence of Extent
        In the order of the file, none over another.

    Yields
    ------
    block : memoryview
        The next bytes of the file; good until the next is asked for.
    pieces : list of (Extent, int, memoryview)
        Of the block: chunk, place in the chunk, bytes.
    """
    memory = memoryview(bytearray(BLOCK_BYTES))
    first, place = 0, 0
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(memory):
            block, pieces = memory[:n], []
            while first < len(extents) and extents[first].place < place + n:
                extent = extents[first]
                start, end = max(extent.place, place), min(extent.end, place + n)
                pieces.append((extent, start - extent.place, block[start - place : end - place]))
                if extent.end > place + n:
                    break
                first += 1
            yield block, pieces
            place += n


def _read_apart(shard: Shard, wanted: dict[str, Column]) -> list[Damage]:
    """Read each chunk by itself, and return those that cannot be read or are wrong."""
    found = []
    with OpenFiles() as files:
        for column in wanted.values():
            for chunk in range(shard.cut.n_chunks):
                first, end = shard.cut.chunk(chunk)
                room = memoryview(bytearray((end - first) * column.row_bytes))
                try:
                    shard.read_chunk(column.name, chunk, room, verify=True, files=files)
                except DamageError as error:
                    found.append(error.damage)
    return found


def _check_plan(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    try:
        Examples.read(folder, manifest.examples).check_derived(folder)
    except DamageError as error:
        yield error.damage


def _check_labels(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    for path in labels.group_files(folder):
        try:
            for stored in labels.read_group(folder, path, manifest.examples).values():
                labels.read_values(folder, stored)
        except DamageError as error:
            yield error.damage
