"""The writer: rows in, committed shards out. Killed at any instant, it goes on from the last committed row."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cache import examples as examples_file
from workbench.cache import layout, manifest_file, schema
from workbench.cache.committing import Committing
from workbench.cache.errors import Damage, DamageError, StoreError
from workbench.cache.examples import Examples
from workbench.cache.files import (
    PART,
    as_folder,
    cannot_write,
    drop,
    file_digest,
    make_folder,
    sync_file,
    sync_folder,
)
from workbench.cache.incoming import FirstRows, check_batch, given_factors, to_stored
from workbench.cache.index import write_index
from workbench.cache.layout import Cut, columns
from workbench.cache.lock import WriterLock
from workbench.cache.manifest import Manifest, check_provenance
from workbench.cache.manifest_file import ShardEntry, shard_name
from workbench.cache.open_shard import OpenShard
from workbench.cache.schema import ROWS, ActivationSpec
from workbench.cache.shard import Shard, content_digest


class StoreWriter(Committing):
    """Writes a new store, or continues an unfinished one that has the same fingerprints; use as a context manager.

    A shard is committed as soon as it is full, on a thread of its own while the next one fills: synced, renamed, listed
    in the manifest. What is not committed when the writer ends, by whatever end, is written again next time, so that a
    store has the same bytes however often its writer was stopped, but for the derived ``index.h5``. Needs no torch.

    Parameters
    ----------
    folder : path
        The store; made if missing.
    activations : mapping of str to ActivationSpec
        What each hook point holds.
    examples : Examples
        The plan: which rows there will be, and where each comes from.
    manifest : mapping
        ``fingerprints`` (of model, dataset, tokenizer; str to str) and whatever else is to be known, as JSON values.
    rows_per_shard : int, optional
        Rows per shard, >= 1; by default some 32 shards of 16 MiB to 1 GiB.
    factors : mapping of str to array [...], optional
        Of every int8 hook point, a power of two for each entry of a row; by default chosen from the first chunk of rows
        (`workbench.cache.int8.choose_factors`). Those of another store (`Store.int8_factors`) to copy its rows.

    Attributes
    ----------
    next_row : int
        Row that the next `append` starts with; when just opened, the first that is not committed.
    n_rows : int
        Rows of the finished store.

    Raises
    ------
    StoreError
        If the folder is something else, was written with other fingerprints, is being written, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        activations: Mapping[str, ActivationSpec],
        examples: Examples,
        manifest: Mapping[str, Any],
        *,
        rows_per_shard: int | None = None,
        factors: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        self.folder = as_folder(folder)
        planned = _plan(activations, examples, manifest, rows_per_shard)
        self._manifest = replace(planned, int8_factors=given_factors(factors, planned))
        self._examples = examples
        self._open: OpenShard | None = None
        self._closed = False
        _make_folder(self.folder)
        self._lock = WriterLock(self.folder / ".lock")
        try:
            self._continue(rows_per_shard)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise cannot_write(self.folder, error) from error
            raise
        self._columns = columns(self._manifest)
        self._first_rows = FirstRows(self._manifest) if self._manifest.undecided else None
        super().__init__("store-commit")
        self.n_rows = examples.n_rows
        self.next_row = self._manifest.committed_rows

    @property
    def finished(self) -> bool:
        """Whether every row is committed and the writer that did it was closed."""
        return self._manifest.finished

    def append(self, batch: Mapping[str, NDArray[Any]]) -> None:
        """Write the next rows.

        Parameters
        ----------
        batch : mapping of str to array [rows, ...]
            Every hook point, equally many rows each. Arrays are of the stored type, kept bit for bit (bfloat16 as
            uint16 bit patterns; int8 together with float32 scales [rows] under ``scales/HOOK_POINT``), or float32,
            which is rounded.

        Raises
        ------
        StoreError
            For a hook point too many or missing, a wrong shape or type, more rows than planned, a float32 value that
            the stored type cannot hold, and where the disk is full: rows of committed shards are safe then.
        """
        if self._closed:
            raise StoreError(f"{self.folder}: this writer is closed; open another to go on from row {self.next_row}")
        arrays = check_batch(batch, self._manifest, self.next_row)
        stored = to_stored(arrays, self._manifest, self.next_row)  # also refuses values, before anything is changed
        try:
            if self._first_rows is None:
                self._write(stored)
            else:
                self._hold(self._first_rows, arrays)
        except (OSError, StoreError) as error:
            with suppress(StoreError):  # a full disk may spoil this too; the first error is the one to report
                self.close()
            raise self._failed(error) from error

    def _write(self, arrays: dict[str, NDArray[Any]]) -> None:
        n_rows, done = len(next(iter(arrays.values()))), 0
        while done < n_rows:
            shard = self._open or self._next_shard()
            n = min(shard.room, n_rows - done)
            shard.append({name: array[done : done + n] for name, array in arrays.items()})
            done += n
            self.next_row += n
            if not shard.room:
                entry = shard.finish()  # here, while the shard before it is synced
                self._wait()
                self._open, self._pending = None, self._commits.submit(self._commit, shard, entry)

    def _hold(self, first_rows: FirstRows, arrays: dict[str, NDArray[Any]]) -> None:
        """Hold the first rows of a store with int8 back until their factors are chosen; then write them."""
        first_rows.hold(arrays)
        self.next_row += len(next(iter(arrays.values())))
        if first_rows.enough:
            self._replace_manifest(replace(self._manifest, int8_factors=first_rows.factors()))
            self._columns = columns(self._manifest)
            self._first_rows, self.next_row = None, 0
            for held in first_rows.take():
                self._write(to_stored(held, self._manifest, self.next_row))

    def close(self) -> None:
        """Commit what is full, drop what is not, and mark the store finished if every row is there; safe to repeat."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._open is not None:
                self._open.discard()
            self._wait()
            finished = replace(self._manifest, finished=self._manifest.committed_rows == self.n_rows)
            write_index(self.folder, finished)  # first: a store that says it is finished has its index
            if finished != self._manifest:
                self._replace_manifest(finished)
        except (OSError, StoreError) as error:
            raise self._failed(error) from error
        finally:
            self.next_row = self._manifest.committed_rows
            self._commits.shutdown()
            self._lock.release()

    def _continue(self, rows_per_shard: int | None) -> None:
        """Take up what an earlier writer left: its manifest, its plan, and a shard that it could not list any more."""
        if (self.folder / manifest_file.FILE).exists():
            found = Manifest.read(self.folder)
            _refuse_another(self.folder, found, self._manifest)
            if rows_per_shard not in (None, found.rows_per_shard):
                raise StoreError(
                    f"{self.folder} has shards of {found.rows_per_shard} rows, not {rows_per_shard}: "
                    "leave rows_per_shard out to continue it"
                )
            if found.int8_factors and self._manifest.int8_factors not in ({}, found.int8_factors):
                raise StoreError(f"{self.folder} has other factors: leave factors out to continue it")
            self._manifest = replace(found, int8_factors=found.int8_factors or self._manifest.int8_factors)
        make_folder(self.folder / layout.FOLDER)
        for part in (*self.folder.glob(f"*{PART}"), *self.folder.glob(f"{layout.FOLDER}/*{PART}")):
            if part.is_file():
                drop(part)
        if not (self._manifest.finished and (self.folder / examples_file.FILE).exists()):
            self._examples.write(self.folder)
        if not (self.folder / manifest_file.FILE).exists():
            self._manifest.write(self.folder)
        for listed in self._manifest.shards:
            path = self.folder / layout.FOLDER / listed.name
            if not path.exists() or path.stat().st_size != listed.n_bytes:
                what = "is missing" if not path.exists() else "does not have the size that the manifest says"
                rows = (listed.first_row, listed.end_row)
                raise DamageError(self.folder, Damage(f"{layout.FOLDER}/{listed.name}", what, rows=rows))
        while (entry := self._adoptable()) is not None:
            self._replace_manifest(replace(self._manifest, shards=(*self._manifest.shards, entry)))

    def _adoptable(self) -> ShardEntry | None:
        """Return the entry of the next shard if it was renamed into place but not listed, and every value is right."""
        name, cut, first_row = self._next()
        path = self.folder / layout.FOLDER / name
        if not cut.n_rows or not path.exists() or self._manifest.undecided:
            return None
        wanted = columns(self._manifest)
        entry = ShardEntry(name, first_row, cut.n_rows, path.stat().st_size, "", "")
        shard = Shard(self.folder, entry, wanted, cut.chunk_rows)
        if not shard.is_of(self._manifest.capture):  # left by another, whose manifest was removed
            return None
        try:
            for column in wanted.values():
                for chunk in range(cut.n_chunks):
                    first, end = cut.chunk(chunk)
                    values = np.empty((end - first, *column.shape), column.dtype)
                    shard.read(column.name, first, values, verify=True)
                    planned = self._examples.origins(first_row + first, first_row + end)
                    if column.name == ROWS and values.tobytes() != planned.tobytes():
                        return None
            content = content_digest(wanted, shard.checksums())
            adopted = replace(entry, digest=file_digest(path), content=content)
            sync_file(path)
            sync_folder(path.parent)  # its writer may have been killed before it synced the name
            return adopted
        except DamageError:
            return None

    def _next(self) -> tuple[str, Cut, int]:
        """Return name, cut and first row of the shard after the last listed one."""
        first_row = self._manifest.committed_rows
        n_rows = min(self._manifest.rows_per_shard, self._manifest.n_rows - first_row)
        return shard_name(len(self._manifest.shards)), Cut(n_rows, self._manifest.chunk_rows), first_row

    def _next_shard(self) -> OpenShard:
        number, n_before = divmod(self.next_row, self._manifest.rows_per_shard)
        assert n_before == 0  # shards are full but for the last, and the last is the end
        n_rows = min(self._manifest.rows_per_shard, self.n_rows - self.next_row)
        cut = Cut(n_rows, self._manifest.chunk_rows)
        path = self.folder / layout.FOLDER / shard_name(number)
        origins = self._examples.origins(self.next_row, self.next_row + n_rows)
        self._open = OpenShard(path, self._columns, cut, self.next_row, origins, self._manifest.capture)
        return self._open

    def _commit(self, shard: OpenShard, entry: ShardEntry) -> None:
        try:
            shard.put_in_place()
        except BaseException:
            shard.discard()
            raise
        self._replace_manifest(replace(self._manifest, shards=(*self._manifest.shards, entry)))

    def _replace_manifest(self, manifest: Manifest) -> None:
        manifest.write(self.folder)
        self._manifest = manifest

    def _failed(self, error: OSError | StoreError) -> StoreError:
        said = cannot_write(self.folder, error) if isinstance(error, OSError) else error
        return StoreError(f"{said}; rows before {self._manifest.committed_rows} are safe: mend this and run again")


def _plan(
    activations: Mapping[str, ActivationSpec],
    examples: Examples,
    given: Mapping[str, Any],
    rows_per_shard: int | None,
) -> Manifest:
    schema.check_hook_point_names(activations)
    if rows_per_shard is not None and rows_per_shard < 1:
        raise StoreError(f"rows_per_shard={rows_per_shard}: must be at least 1")
    fingerprints, provenance = check_provenance(given)
    if any(spec.compression for spec in activations.values()):
        provenance["software"].setdefault("numcodecs", version("numcodecs"))  # its Blosc decides the bytes
    chunk_rows = schema.choose_chunk_rows(activations)
    return Manifest(
        modality=examples.modality,
        n_rows=examples.n_rows,
        rows_per_shard=rows_per_shard or schema.choose_rows_per_shard(activations, examples.n_rows, chunk_rows),
        chunk_rows=chunk_rows,
        activations=dict(activations),
        fingerprints=fingerprints,
        examples=examples.digest(),
        provenance=provenance,
    )


def _make_folder(folder: Path) -> None:
    """Make the store's folder; refuse one that holds something else."""
    files = {".lock", manifest_file.FILE, examples_file.FILE, "index.h5", "repair.json"}
    ours = files | {layout.FOLDER, "labels", "codes", "tokenizer", "tokenizer.old"}
    try:
        make_folder(folder)
        others = [path.name for path in folder.iterdir() if path.name.removesuffix(PART) not in ours]
    except (FileExistsError, NotADirectoryError):
        file = next((path for path in (folder, *folder.parents) if path.is_file() or path.is_symlink()), folder)
        what = "a link to nothing" if file.is_symlink() and not file.exists() else "a file"
        raise StoreError(f"{file} is {what}; a store is a folder") from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    if others and not (folder / manifest_file.FILE).exists():
        raise StoreError(f"{folder} is neither empty nor an activation store (it holds {sorted(others)[0]!r})")


def _refuse_another(folder: Path, found: Manifest, planned: Manifest) -> None:
    ours, theirs = planned.identity(), found.identity()
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            what = {
                "activations": "other hook points, shapes, types or compression",
                "examples": "other examples or rows",
            }
            why = what.get(name, f"another {name}")
            raise StoreError(
                f"{folder} was captured with {why} ({name} {theirs.get(name)}, now {ours.get(name)}): "
                "give another folder, or remove this one"
            )
