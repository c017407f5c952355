"""Making damaged shards whole: sound chunks are copied, lost ones computed again by whoever can."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.errors import DamageError, StoreError
from workbench.cache.examples import Examples
from workbench.cache.files import drop, file_digest, replace_file, sync_folder
from workbench.cache.incoming import Arrays, to_stored
from workbench.cache.int8 import restore
from workbench.cache.layout import FOLDER, Column, columns
from workbench.cache.manifest import Manifest
from workbench.cache.manifest_file import ShardEntry
from workbench.cache.narrow import widen
from workbench.cache.open_shard import OpenShard
from workbench.cache.salvage import Salvage, origins_of
from workbench.cache.schema import ROWS, scale_column
from workbench.cache.shard import Shard

INTENT = "repair.json"
"""Entries of shards that are about to be renamed into place, and are not those of the manifest."""

Recompute = Callable[[int, int], Mapping[str, NDArray[Any]]]
"""Given the first and the end row, every hook point's rows, as `StoreWriter.append` takes them."""


@dataclass(frozen=True)
class Repair:
    """What became of one damaged file.

    Attributes
    ----------
    file : str
        Relative to the store.
    what : str
        What was done, or what stands in the way.
    repaired : bool
        Whether it is sound now.
    """

    file: str
    what: str
    repaired: bool

    def __str__(self) -> str:
        return f"{self.file}: {'repaired' if self.repaired else 'NOT REPAIRED'}: {self.what}"


class CannotRepairError(StoreError):
    """Something that a repair needs is not there; the message says what."""


@dataclass(frozen=True)
class Difference:
    """How far values that are computed now are from those that were stored.

    Attributes
    ----------
    hook_point : str
        Where.
    rows : tuple of (int, int)
        Sound rows of the store that were computed again to find out, first and end.
    largest : float
        Largest absolute difference of two values; NaN if one is NaN and the other not.
    scale : float
        Largest absolute stored value.
    """

    hook_point: str
    rows: tuple[int, int]
    largest: float
    scale: float

    def __str__(self) -> str:
        first, end = self.rows
        return (
            f"sound rows {first} to {end - 1} of {self.hook_point}, computed again, differ by up to {self.largest:.3g} "
            f"(largest value {self.scale:.3g})"
        )


def repair_shard(
    folder: Path,
    manifest: Manifest,
    entry: ShardEntry,
    examples: Examples | None,
    recompute: Recompute | None,
    *,
    accept_different: bool = False,
    progress: Callable[[int], object] = lambda n_rows: None,
) -> tuple[Repair, Manifest]:
    """Make one damaged shard whole.

    It is built beside (``.part``), out of sound chunks as they are and rows computed anew; renamed into place if every
    checksum is the one that the manifest has a hash of. Under the lock of the store's writer, which the caller holds.

    Parameters
    ----------
    folder, manifest
        The store.
    entry : ShardEntry
        Which shard.
    examples : Examples, optional
        The plan, if it is sound: without, origins must be.
    recompute : callable, optional
        Computes rows anew; only called for chunks of which something is lost, in ascending order. It may raise
        `CannotRepairError`.
    accept_different : bool
        Put the shard in place even if rows came out with other bits than were stored.
    progress : callable
        Called with numbers of rows.

    Returns
    -------
    Repair
        What became of it.
    Manifest
        The store's, as it is now.
    """
    wanted = columns(manifest)
    file = f"{FOLDER}/{entry.name}"
    with closing(Salvage(folder, entry, wanted, manifest.chunk_rows, manifest.capture)) as salvage:
        try:
            origins = origins_of(salvage) if examples is None else examples.origins(entry.first_row, entry.end_row)
            if origins is None:
                raise CannotRepairError("the plan (examples.h5) is damaged, and so is /rows, which is made from it")
            builder = _Builder(folder, manifest, entry, wanted, salvage, origins, recompute, progress)
            found = builder.build()
            if found.content != entry.content and not salvage.vouched and recompute is not None:
                builder.open.discard()
                salvage.doubt()  # what seemed sound is not, as a whole
                found = builder.build()
        except CannotRepairError as error:
            return Repair(file, str(error), False), manifest
        try:
            if found.content == entry.content:
                salvage.close()
                said = builder.said()
                if found != entry:
                    said += "; laid out by another version of HDF5 or of this software: the manifest has its new digest"
                return Repair(file, said, True), _put(folder, manifest, builder.open, entry, found)
            said = f"{builder.said()}, but with other bits than were stored: {builder.compare()}"
            salvage.close()
            if not accept_different:
                builder.open.discard()
                advice = (
                    "repeat it on the kind of machine, with the versions and the number of threads of the capture, or "
                    "give --accept-different to keep what is computed now"
                )
                return Repair(file, f"{said}; {advice}", False), manifest
            return Repair(file, f"{said}; accepted", True), _put(folder, manifest, builder.open, entry, found)
        except BaseException:
            builder.open.discard()
            raise


class _Builder:
    """Builds one shard anew."""

    open: OpenShard

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        entry: ShardEntry,
        wanted: dict[str, Column],
        salvage: Salvage,
        origins: NDArray[Any],
        recompute: Recompute | None,
        progress: Callable[[int], object],
    ) -> None:
        self._path = folder / FOLDER / entry.name
        self._manifest = manifest
        self._entry = entry
        self._wanted = wanted
        self._salvage = salvage
        self._origins = origins
        self._recompute = recompute
        self._progress = progress
        self._factors = manifest.factors()
        self.lost: dict[str, list[int]] = {}

    def build(self) -> ShardEntry:
        """Write the shard as ``.part``; returns its entry, whatever the rows are that came out."""
        self.lost = {
            name: [int(chunk) for chunk in np.flatnonzero(~self._is_sound(name))] for name in self._manifest.activations
        }
        lost = any(self.lost.values())
        if lost and self._recompute is None:
            raise CannotRepairError(f"{self._lost()} must be captured again")
        self.open = OpenShard(
            self._path, self._wanted, self._salvage.cut, self._entry.first_row, self._origins, self._manifest.capture
        )
        try:
            for chunk in range(self._salvage.cut.n_chunks):
                self._add(chunk)
            entry = self.open.finish()
            self._check_sound()
        except BaseException:
            self.open.discard()
            raise
        return entry

    def _is_sound(self, name: str) -> NDArray[np.bool_]:
        """Whether each chunk of a hook point is sound, its scales too: of int8, one is nothing without the other."""
        sound = self._salvage.sound[name].copy()
        if name in self._factors:
            sound &= self._salvage.sound[scale_column(name)]
        return sound

    def _add(self, chunk: int) -> None:
        first, end = self._salvage.cut.chunk(chunk)
        values: Arrays = {}
        packed: dict[str, bytes] = {}
        lost = [name for name, chunks in self.lost.items() if chunk in chunks]
        if lost and self._recompute is not None:
            values = self._computed(lost, self._entry.first_row + first, self._entry.first_row + end)
        for name, column in self._wanted.items():
            if name in values or name == ROWS:
                continue
            if column.compression is not None:
                packed[name] = self._salvage.payload(name, chunk)
            else:
                values[name] = self._salvage.chunk(name, chunk)
        self.open.append_chunk(values, packed)
        self._progress(end - first)

    def _computed(self, names: list[str], first_row: int, end_row: int) -> Arrays:
        """Return rows computed anew, as the columns of some hook points have them."""
        assert self._recompute is not None
        arrays = {name: np.asarray(array) for name, array in self._recompute(first_row, end_row).items()}
        return to_stored({name: arrays[name] for name in names}, self._manifest, first_row)

    def _check_sound(self) -> None:
        """Hold the chunks that were copied against their checksums once more, in the file that takes their place."""
        for name, sound in self._salvage.sound.items():
            hook_point = name.removeprefix("scales/")
            copied = self._is_sound(hook_point) if hook_point in self._manifest.activations else sound
            wrong = copied & (self.open.checksums[name] != self._salvage.checksums[name])
            if self._salvage.vouched and wrong.any():
                raise CannotRepairError(
                    f"chunk {int(np.flatnonzero(wrong)[0])} of {name} is sound, and was not copied as it is: the disk "
                    "or the memory changes bits"
                )

    def _lost(self) -> str:
        parts = []
        for name, chunks in self.lost.items():
            if chunks:
                rows = sum(end - first for first, end in map(self._salvage.cut.chunk, chunks))
                parts.append(f"{rows:,} rows of {name} ({_numbers(chunks)})")
        return " and ".join(parts)

    def said(self) -> str:
        """Say what was done."""
        if not any(self.lost.values()):
            return "no row was lost, it was written anew out of what it held"
        return f"captured again: {self._lost()}"

    def compare(self) -> str:
        """Compute sound rows again, the next to what was lost, and say how far they are from what is stored."""
        for name, chunks in self.lost.items():
            for rows, before in self._sound_rows(name) if chunks else ():
                now = self._computed([name], *rows)
                return str(_difference(name, rows, self._float64(name, before), self._float64(name, now)))
        return "no sound rows are left beside to say by how much"

    def _sound_rows(self, name: str) -> Iterator[tuple[tuple[int, int], Arrays]]:
        """Yield sound chunks of a hook point, rows and values: those next to what was lost, then other shards'."""
        of_hook_point = [name, scale_column(name)] if name in self._factors else [name]
        sound = [int(chunk) for chunk in np.flatnonzero(self._is_sound(name)) if self._salvage.vouched]
        for chunk in sorted(sound, key=lambda each: min(abs(each - lost) for lost in self.lost[name])):
            first, end = self._salvage.cut.chunk(chunk)
            rows = self._entry.first_row + first, self._entry.first_row + end
            yield rows, {column: self._salvage.chunk(column, chunk) for column in of_hook_point}
        shards = self._manifest.shards
        for entry in sorted(shards, key=lambda each: abs(each.first_row - self._entry.first_row))[1:]:
            shard = Shard(self._path.parent.parent, entry, self._wanted, self._manifest.chunk_rows)
            n_rows = shard.cut.chunk(0)[1]
            values = {}
            with suppress(DamageError):
                for column in (self._wanted[each] for each in of_hook_point):
                    values[column.name] = np.empty((n_rows, *column.shape), column.dtype)
                    shard.read(column.name, 0, values[column.name], verify=True)
                yield (entry.first_row, entry.first_row + n_rows), values

    def _float64(self, name: str, stored: Arrays) -> NDArray[np.float64]:
        values = restore(stored, [name], self._factors)[name]
        if self._manifest.activations[name].dtype == "bfloat16":
            values = widen(values)
        with np.errstate(invalid="ignore"):  # signalling NaN
            return values.astype(np.float64)


def _difference(name: str, rows: tuple[int, int], before: NDArray[np.float64], now: NDArray[np.float64]) -> Difference:
    same = (before == now) | (np.isnan(before) & np.isnan(now))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(before - now))
    return Difference(
        name, rows, float(apart.max(initial=0)), float(np.abs(before[np.isfinite(before)]).max(initial=0))
    )


def _numbers(chunks: list[int]) -> str:
    if len(chunks) == 1:
        return f"chunk {chunks[0]}"
    if chunks == list(range(chunks[0], chunks[-1] + 1)):
        return f"chunks {chunks[0]} to {chunks[-1]}"
    return f"{len(chunks)} chunks, {chunks[0]} the first"


def _put(folder: Path, manifest: Manifest, shard: OpenShard, old: ShardEntry, new: ShardEntry) -> Manifest:
    """Rename a shard into place, over the damaged one, and let the manifest know it; returns the manifest.

    Where the manifest has to change, the new entry is written down first: a repair that is killed between the two goes
    on from there, and does not take the new shard for a damaged one.
    """
    if new == old:
        shard.put_in_place()
        return manifest
    text = json.dumps(asdict(new))
    replace_file(folder / INTENT, lambda path: _write_text(path, text))
    shard.put_in_place()
    return finish_interrupted(folder, manifest)


def finish_interrupted(folder: Path, manifest: Manifest) -> Manifest:
    """List a shard that a repair renamed into place and could not list any more; returns the manifest as it is now."""
    path = folder / INTENT
    if not path.exists():
        return manifest
    try:
        entry = ShardEntry(**json.loads(path.read_text(encoding="utf-8")))
        is_there = file_digest(folder / FOLDER / entry.name) == entry.digest
    except (OSError, ValueError, TypeError):
        is_there = False
    if is_there:
        shards = tuple(entry if old.name == entry.name else old for old in manifest.shards)
        if shards != manifest.shards:
            manifest = replace(manifest, shards=shards)
            manifest.write(folder)
    drop(path)
    sync_folder(folder)
    return manifest


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
