"""Codes of a store: a dictionary's sparse activations on every row, read by row and by latent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cache.codes_manifest import FOLDER, CodesManifest
from workbench.cache.codes_shard import SHARDS, CodesShard
from workbench.cache.errors import Damage, DamageError, StoreError, nearest
from workbench.cache.manifest_file import FILE
from workbench.cache.rows import row_numbers

if TYPE_CHECKING:
    import scipy.sparse


def codes_names(store: Path) -> list[str]:
    """List the codes of a store, finished or not."""
    return sorted(path.parent.name for path in (store / FOLDER).glob(f"*/{FILE}"))


def open_codes(store: Path, name: str) -> Codes:
    """Open the codes of a name; reads their manifest and nothing else.

    Raises
    ------
    StoreError
        If there are none of that name (the nearest three are named), or a newer version wrote them.
    DamageError
        If their manifest is damaged.
    """
    known = codes_names(store)
    if name not in known:
        hint = "; 'workbench encode' makes them" if not known else f"; nearest: {nearest(name, known)}"
        raise StoreError(f"{store} has no codes {name!r}{hint}")
    return Codes(store, name, CodesManifest.read(store, name))


class Codes:
    """A dictionary's codes over a store; what was committed when they were opened is what they have.

    Attributes
    ----------
    name : str
        Their folder in ``codes/``.
    n_rows : int
        Committed rows; row i is row i of the store, special tokens included.
    n_latents : int
        Of the dictionary.
    n_entries : int
        Active latents of all rows.
    finished : bool
        Whether they cover the store.
    fingerprints : dict of str to str
        Of ``store`` and ``dictionary``.
    manifest : CodesManifest
        All that is written of them.
    """

    def __init__(self, store: Path, name: str, manifest: CodesManifest) -> None:
        self.name, self.manifest = name, manifest
        self.n_rows, self.n_latents = manifest.committed_rows, manifest.n_latents
        self.n_entries, self.finished = manifest.n_entries, manifest.finished
        self.fingerprints = dict(manifest.fingerprints)
        self._store = store
        self._shards = [CodesShard(store, name, entry, manifest) for entry in manifest.shards]
        self._first = np.array([entry.first_row for entry in manifest.shards], np.int64)

    def __reduce__(self) -> tuple[Callable[[Path, str], Codes], tuple[Path, str]]:
        return open_codes, (self._store, self.name)

    def __repr__(self) -> str:
        rows = f"{self.n_rows:,} rows" if self.finished else f"{self.n_rows:,} of {self.manifest.n_rows:,} rows so far"
        active = self.n_entries / max(1, self.n_rows)
        return f"Codes({self.name!r}, {rows}, {self.n_latents:,} latents, {active:.1f} active on a row)"

    def fingerprint(self) -> str:
        """Return a hash of what was encoded and of every value."""
        return self.manifest.fingerprint()

    # --- by row ---------------------------------------------------------------------------------------------------
    def row(self, row: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the active latents of a row, ascending, and their activations."""
        _, latents, values = self.read([row])
        return latents, values

    def read(
        self, rows: slice | ArrayLike | None = None, *, verify: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Return the active entries of some rows.

        Parameters
        ----------
        rows : slice, bool mask [rows], or integers, optional
            Which, in this order; by default all. Rows that lie together are read together.
        verify : bool
            Hold every chunk that is touched against its checksum.

        Returns
        -------
        bounds : int64 array [rows + 1]
            Of each row's entries.
        latents : int64 array [entries]
            Ascending in a row.
        values : float array [entries]
            Their activations.

        Raises
        ------
        StoreError
            If a row is out of range.
        DamageError
            If a shard is damaged.
        """
        numbers = row_numbers(slice(None) if rows is None else rows, self.n_rows)
        order = np.argsort(numbers, kind="stable")
        parts = list(self._in_order(numbers[order], verify))
        counts = np.concatenate([np.empty(0, np.int64), *(count for count, _, _ in parts)])
        latents = np.concatenate([np.empty(0, np.int64), *(latent for _, latent, _ in parts)]).astype(np.int64)
        values = np.concatenate([np.empty(0, self.manifest.value_type), *(value for _, _, value in parts)])
        starts = np.concatenate([[0], np.cumsum(counts)])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        wanted = counts[back]
        bounds = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
        at = ranges(starts[back], wanted)
        return bounds, latents[at], values[at]

    def csr(self, rows: slice | ArrayLike | None = None, *, verify: bool = True) -> scipy.sparse.csr_matrix:
        """Return rows as a scipy matrix [rows, latents]; otherwise as `read`."""
        import scipy.sparse

        bounds, latents, values = self.read(rows, verify=verify)
        return scipy.sparse.csr_matrix((values, latents, bounds), shape=(len(bounds) - 1, self.n_latents))

    def _in_order(
        self, numbers: NDArray[np.int64], verify: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]]:
        """Yield counts of entries, latents and values of ascending rows, a part for each stretch of rows."""
        of_shard = np.searchsorted(self._first, numbers, side="right") - 1
        for number in np.unique(of_shard):
            shard = self._shards[number]
            local = numbers[of_shard == number] - shard.entry.first_row
            present, repeats = np.unique(local, return_counts=True)
            bounds = shard.row_bounds
            breaks = np.flatnonzero(np.diff(present) > 1) + 1
            for stretch, times in zip(np.split(present, breaks), np.split(repeats, breaks), strict=True):
                first, end = int(stretch[0]), int(stretch[-1]) + 1
                start, stop = int(bounds[first]), int(bounds[end])
                latents, values = (
                    shard.read(array, start, stop, verify=verify) for array in ("rows/latents", "rows/values")
                )
                counts = np.diff(bounds[first : end + 1])
                if times.max() > 1:
                    again = ranges(np.repeat(bounds[first:end] - start, times), np.repeat(counts, times))
                    latents, values, counts = latents[again], values[again], np.repeat(counts, times)
                yield counts, latents, values

    # --- by latent ------------------------------------------------------------------------------------------------
    def latent(self, latent: int, *, verify: bool = True) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the rows on which a latent is active, ascending, and its activations there.

        Raises
        ------
        StoreError
            If there is no such latent.
        DamageError
            If a shard is damaged.
        """
        if not 0 <= latent < self.n_latents:
            raise StoreError(f"latent {latent}: codes {self.name!r} have {self.n_latents} latents, counted from 0")
        rows, values = [np.empty(0, np.int64)], [np.empty(0, self.manifest.value_type)]
        for shard in self._shards:
            start, end = shard.latent_bounds[latent : latent + 2].tolist()
            if end > start:
                local = shard.read("latents/rows", start, end, verify=verify).astype(np.int64)
                rows.append(local + shard.entry.first_row)
                values.append(shard.read("latents/values", start, end, verify=verify))
        return np.concatenate(rows), np.concatenate(values)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows on which each latent is active [latents]."""
        total = np.zeros(self.n_latents, np.int64)
        for shard in self._shards:
            total += np.diff(shard.latent_bounds)
        return total

    # --- integrity ------------------------------------------------------------------------------------------------
    def check(self) -> Iterator[Damage]:
        """Yield every fault of the committed shards."""
        for shard in self._shards:
            yield from shard.check()


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start on, as many as its length says, one after another.

    Examples
    --------
    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return numbers


def check_codes(store: Path) -> Iterator[Damage]:
    """Yield every fault of a store's codes."""
    for shards in sorted((store / FOLDER).glob(f"*/{SHARDS}")):
        if any(shards.glob("*.h5")) and not (shards.parent / FILE).exists():
            yield Damage(f"{FOLDER}/{shards.parent.name}/{FILE}", "is missing")
    for name in codes_names(store):
        try:
            yield from open_codes(store, name).check()
        except DamageError as error:
            yield error.damage
