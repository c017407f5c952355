"""The writer of codes: entries in, committed shards out. Killed at any instant, it goes on from the last shard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.codes_manifest import FOLDER, CodesManifest
from workbench.cache.codes_shard import SHARDS, Entries, write_shard
from workbench.cache.committing import Committing
from workbench.cache.errors import StoreError
from workbench.cache.files import PART, cannot_write, make_folder
from workbench.cache.lock import WriterLock
from workbench.cache.manifest_file import FILE, shard_name

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


class CodesWriter(Committing):
    """Writes a dictionary's codes over a store, or goes on with them; use as a context manager.

    A shard is committed when it is full, on a thread of its own while the next one fills: written beside, synced,
    renamed, listed in the manifest. What is not committed is encoded again next time. Needs no torch.

    Parameters
    ----------
    store : Path
        The store.
    name : str
        Letters, digits and ``-_.``.
    n_rows, n_latents : int
        Of the store and of the dictionary.
    dtype : "float32" or "float64"
        Of the activations.
    fingerprints : mapping of str to str
        Of ``store`` and ``dictionary``: codes that have others are refused.
    provenance : mapping
        What else is to be known, as JSON values.
    rows_per_shard : int
        Of new codes; those that are continued keep theirs.

    Attributes
    ----------
    next_row : int
        Row that the next `append` starts with; when just opened, the first that is not committed.
    rows_per_shard : int
        Rows of each shard but the last.

    Raises
    ------
    StoreError
        For a bad name, codes of another dictionary or store, and where they are being written or cannot be written.
    """

    def __init__(
        self,
        store: Path,
        name: str,
        *,
        n_rows: int,
        n_latents: int,
        dtype: str,
        fingerprints: Mapping[str, str],
        provenance: Mapping[str, Any],
        rows_per_shard: int,
    ) -> None:
        if NAME.fullmatch(name) is None:
            raise StoreError(f"codes {name!r}: a name has letters, digits, '-', '_' and '.', and starts with no sign")
        self.folder = store / FOLDER / name
        self._manifest = CodesManifest(
            n_rows, n_latents, rows_per_shard, dtype, dict(fingerprints), {**provenance, "name": name}
        )
        self._parts: list[Entries] = []
        self._closed = False
        try:
            make_folder(self.folder / SHARDS)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._lock = WriterLock(self.folder / ".lock")
        try:
            self._continue(store, name)
        except BaseException:
            self._lock.release()
            raise
        super().__init__("codes-commit")
        self.next_row = self._manifest.committed_rows
        self.rows_per_shard = self._manifest.rows_per_shard

    @property
    def finished(self) -> bool:
        """Whether every row is committed and listed as such."""
        return self._manifest.finished

    def append(self, counts: NDArray[Any], latents: NDArray[Any], values: NDArray[Any]) -> None:
        """Write the next rows; none may lie in two shards.

        Parameters
        ----------
        counts : integers [rows]
            Active latents of each row.
        latents : integers [entries]
            Row after row, ascending in each.
        values : float array [entries]
            Their activations.
        """
        end = self.next_row + len(counts)
        shard_end = min((self.next_row // self.rows_per_shard + 1) * self.rows_per_shard, self._manifest.n_rows)
        if self._closed or end > shard_end or int(counts.sum()) != len(latents) or len(latents) != len(values):
            raise StoreError(
                f"{self.folder}: rows {self.next_row} to {end - 1} with {len(latents)} entries do not fit: the open "
                f"shard ends at row {shard_end}, counts say {int(counts.sum())} entries"
            )
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        manifest = self._manifest
        self._parts.append(Entries(bounds, latents.astype(manifest.latent_type), values.astype(manifest.value_type)))
        self.next_row = end
        if end == shard_end:
            parts, self._parts = self._parts, []
            self._wait()
            self._pending = self._commits.submit(self._commit, parts)

    def close(self) -> None:
        """Commit what is full, drop what is not, and mark the codes finished if every row is there; safe to repeat."""
        if self._closed:
            return
        self._closed = True
        try:
            self._wait()
            if self._manifest.committed_rows == self._manifest.n_rows and not self.finished:
                self._replace(replace(self._manifest, finished=True))
        finally:
            self.next_row = self._manifest.committed_rows
            self._commits.shutdown()
            self._lock.release()

    def _continue(self, store: Path, name: str) -> None:
        """Take up what an earlier writer left; what it could not list any more is written again."""
        if (self.folder / FILE).exists():
            found = CodesManifest.read(store, name)
            ours, theirs = self._manifest.identity(), found.identity()
            for what in sorted(ours.keys() | theirs.keys()):
                if ours.get(what) != theirs.get(what):
                    raise StoreError(
                        f"{self.folder} holds codes with another {what} ({theirs.get(what)}, now {ours.get(what)}): "
                        "give them another name, or remove that folder"
                    )
            self._manifest = found
        else:
            self._manifest.write(self.folder)
        listed = {entry.name for entry in self._manifest.shards}
        shards = self.folder / SHARDS
        for path in shards.iterdir() if shards.is_dir() else ():
            if path.name not in listed:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / f"{FILE}{PART}").unlink(missing_ok=True)

    def _commit(self, parts: list[Entries]) -> None:
        counts = np.concatenate([np.diff(part.bounds) for part in parts])
        entries = Entries(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([part.latents for part in parts]),
            np.concatenate([part.values for part in parts]),
        )
        shards = self._manifest.shards
        entry = write_shard(
            self.folder, shard_name(len(shards)), self._manifest.committed_rows, entries, self._manifest
        )
        self._replace(replace(self._manifest, shards=(*shards, entry)))

    def _replace(self, manifest: CodesManifest) -> None:
        manifest.write(self.folder)
        self._manifest = manifest
