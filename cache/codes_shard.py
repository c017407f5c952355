"""One shard of codes: the same entries by row and by latent, each read as a slice held against its checksums."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache.codes_manifest import CHUNK_ENTRIES, FOLDER, KIND, SCHEMA, CodesEntry, CodesManifest
from workbench.cache.errors import Damage, DamageError
from workbench.cache.files import file_digest, raw, read_hdf5, replace_hdf5

SHARDS = "shards"
BOUNDS = np.dtype("<i8")
ROW = np.dtype("<u4")
CHECKSUM = np.dtype("<u8")
ARRAYS = ("rows/bounds", "rows/latents", "rows/values", "latents/bounds", "latents/rows", "latents/values")


@dataclass(frozen=True)
class Entries:
    """Active entries of some rows, in row order.

    Attributes
    ----------
    bounds : int64 array [rows + 1]
        Row i has the entries ``bounds[i]`` to ``bounds[i + 1]`` (excluded).
    latents : uint16 or uint32 array [entries]
        Ascending in a row.
    values : float array [entries]
        Activations.
    """

    bounds: NDArray[np.int64]
    latents: NDArray[Any]
    values: NDArray[Any]

    def by_latent(self, n_latents: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[Any]]:
        """Return bounds [latents + 1], and rows and values [entries] sorted by latent, rows ascending in each."""
        order = stable_order(self.latents)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(self.latents, minlength=n_latents))]).astype(BOUNDS)
        rows = np.repeat(np.arange(len(self.bounds) - 1, dtype=ROW), np.diff(self.bounds))
        return bounds, rows[order], self.values[order]


def stable_order(latents: NDArray[Any]) -> NDArray[np.int64]:
    """Return the order that sorts numbers of latents, equal ones as they come.

    NumPy sorts 16 bits by counting, more by comparing: so 32 bits are sorted by their lower half, then by the upper.
    """
    if latents.dtype.itemsize <= 2:
        return np.argsort(latents, kind="stable")
    lower = np.argsort((latents & 0xFFFF).astype(np.uint16), kind="stable")
    upper = np.argsort((latents >> 16).astype(np.uint16)[lower], kind="stable")
    return lower[upper]


def write_shard(folder: Path, name: str, first_row: int, entries: Entries, manifest: CodesManifest) -> CodesEntry:
    """Write a shard of codes, atomically, and return its entry for the manifest.

    Parameters
    ----------
    folder : Path
        Of the codes.
    name : str
        File name in ``shards/``.
    first_row : int
        Number of its first row in the store.
    entries : Entries
        Its rows.
    manifest : CodesManifest
        Whose types are stored.
    """
    bounds, rows, values = entries.by_latent(manifest.n_latents)
    arrays: dict[str, NDArray[Any]] = {
        "rows/bounds": np.ascontiguousarray(entries.bounds, BOUNDS),
        "rows/latents": np.ascontiguousarray(entries.latents, manifest.latent_type),
        "rows/values": np.ascontiguousarray(entries.values, manifest.value_type),
        "latents/bounds": bounds,
        "latents/rows": np.ascontiguousarray(rows, ROW),
        "latents/values": np.ascontiguousarray(values, manifest.value_type),
    }
    checksums = {path: checksums_of(array) for path, array in arrays.items()}

    def fill(file: Any) -> None:
        n_rows = len(entries.bounds) - 1
        file.attrs.update(format=f"{KIND}, shard", schema=SCHEMA, first_row=first_row, n_rows=n_rows)
        file.attrs.update(n_latents=manifest.n_latents, chunk_entries=CHUNK_ENTRIES)
        for path, array in (*arrays.items(), *((f"checksums/{path}", sums) for path, sums in checksums.items())):
            file.create_dataset(path, data=array, track_times=False)

    path = folder / SHARDS / name
    replace_hdf5(path, fill)
    return CodesEntry(
        name=name,
        first_row=first_row,
        n_rows=len(entries.bounds) - 1,
        n_entries=len(entries.values),
        n_bytes=path.stat().st_size,
        digest=file_digest(path),
        content=content_of(checksums),
    )


def checksums_of(array: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the xxh3_64 of each chunk of an array."""
    starts = range(0, len(array), CHUNK_ENTRIES)
    return np.array([xxhash.xxh3_64_intdigest(raw(array[at : at + CHUNK_ENTRIES])) for at in starts], CHECKSUM)


def content_of(checksums: dict[str, NDArray[np.uint64]]) -> str:
    """Return the xxh3_128 of all checksums of a shard."""
    digest = xxhash.xxh3_128()
    for path in ARRAYS:
        digest.update(raw(np.ascontiguousarray(checksums[path], CHECKSUM)))
    return digest.hexdigest()


class CodesShard:
    """A committed shard of codes, to be read; nothing is touched before the first read. Safe to share between threads.

    Parameters
    ----------
    store : Path
        The store.
    name : str
        Of the codes.
    entry : CodesEntry
        What the manifest says of it.
    manifest : CodesManifest
        Of the codes.
    """

    def __init__(self, store: Path, name: str, entry: CodesEntry, manifest: CodesManifest) -> None:
        self.entry = entry
        self.file = f"{FOLDER}/{name}/{SHARDS}/{entry.name}"
        self.path = store / self.file
        self._store = store
        n = entry.n_entries
        self.layout: dict[str, tuple[np.dtype[Any], int]] = {
            "rows/bounds": (BOUNDS, entry.n_rows + 1),
            "rows/latents": (manifest.latent_type, n),
            "rows/values": (manifest.value_type, n),
            "latents/bounds": (BOUNDS, manifest.n_latents + 1),
            "latents/rows": (ROW, n),
            "latents/values": (manifest.value_type, n),
        }

    def read(self, array: str, start: int = 0, end: int | None = None, *, verify: bool = True) -> NDArray[Any]:
        """Return a slice of one of `ARRAYS`, by default all of it.

        Raises
        ------
        DamageError
            If the shard is missing, too short or cannot be read, or a checksum differs.
        """
        dtype, length = self.layout[array]
        end = length if end is None else end
        first, last = start, end
        if verify:  # whole chunks
            first, last = start // CHUNK_ENTRIES * CHUNK_ENTRIES, min(-(-end // CHUNK_ENTRIES) * CHUNK_ENTRIES, length)
        places, checksums = self.look
        out = np.empty(max(0, last - first), dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                self._fill(file, places[array] + first * dtype.itemsize, raw(out), array)
        except OSError as error:
            self.damaged(f"cannot be read ({error.strerror or error})", array)
        if verify:
            for chunk in range(first // CHUNK_ENTRIES, -(-last // CHUNK_ENTRIES)):
                at = chunk * CHUNK_ENTRIES - first
                if xxhash.xxh3_64_intdigest(raw(out[at : at + CHUNK_ENTRIES])) != checksums[array][chunk]:
                    self.damaged("checksum differs", array, chunk)
        return out[start - first : end - first]

    @cached_property
    def row_bounds(self) -> NDArray[np.int64]:
        """Bounds of each row's entries [rows + 1]."""
        return self.read("rows/bounds")

    @cached_property
    def latent_bounds(self) -> NDArray[np.int64]:
        """Bounds of each latent's entries [latents + 1]."""
        return self.read("latents/bounds")

    @cached_property
    def look(self) -> tuple[dict[str, int], dict[str, NDArray[np.uint64]]]:
        """Look at the file once: where its arrays are in bytes, and their checksums, which the manifest vouches for."""
        if not self.path.is_file() or self.path.stat().st_size != self.entry.n_bytes:
            self.damaged("is missing" if not self.path.is_file() else "does not have the size that the manifest says")
        places, checksums = {}, {}
        try:
            with read_hdf5(self.path) as file:
                for array, (dtype, length) in self.layout.items():
                    found = file[array]
                    place = found.id.get_offset()
                    if (found.dtype, found.shape) != (dtype, (length,)) or (place is None and length):
                        raise ValueError(f"dataset {array} is not {dtype} of {length} in one piece")
                    places[array] = place or 0
                    checksums[array] = np.asarray(file[f"checksums/{array}"], CHECKSUM)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            self.damaged(f"its HDF5 structure is damaged ({error})")
        if content_of(checksums) != self.entry.content:
            self.damaged("its checksums are not those that the manifest has")
        return places, checksums

    def check(self) -> list[Damage]:
        """Hold every byte of the file against what it should be."""
        try:
            _ = self.look
        except DamageError as error:
            return [error.damage]
        found = []
        for array in ARRAYS:
            for start in range(0, self.layout[array][1], CHUNK_ENTRIES):
                try:
                    self.read(array, start, min(start + CHUNK_ENTRIES, self.layout[array][1]))
                except DamageError as error:
                    found.append(error.damage)
        if not found and file_digest(self.path) != self.entry.digest:
            rows = (self.entry.first_row, self.entry.end_row)
            what = "differs from its digest in the manifest, though every chunk is right"
            found.append(Damage(self.file, what, rows=rows))
        return found

    def damaged(self, what: str, array: str | None = None, chunk: int | None = None) -> NoReturn:
        """Raise what is wrong, with the rows that it may reach."""
        dataset = None if array is None else f"/{array}"
        rows = (self.entry.first_row, self.entry.end_row)
        raise DamageError(self._store, Damage(self.file, what, dataset, chunk, rows))

    def _fill(self, file: io.FileIO, place: int, buffer: memoryview, array: str) -> None:
        file.seek(place)
        while len(buffer):
            n = file.readinto(buffer)
            if not n:
                self.damaged("ends too early", array)
            buffer = buffer[n:]
