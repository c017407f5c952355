"""What `StoreWriter.append` is given: held against what the store expects, and brought to the stored form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import int8
from workbench.cache.errors import StoreError
from workbench.cache.manifest import Manifest
from workbench.cache.narrow import narrow
from workbench.cache.schema import scale_column

Arrays = dict[str, NDArray[Any]]


def check_batch(batch: Mapping[str, Any], manifest: Manifest, next_row: int) -> Arrays:
    """Return a batch as arrays, of float32 or the stored type, equally many rows of every hook point.

    The scales of a hook point that comes as int8 are among them, as ``scales/HOOK_POINT``.

    Raises
    ------
    StoreError
        For a hook point too many or missing, a wrong shape or type, or more rows than planned.
    """
    activations = manifest.activations
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    scales = {scale_column(n): n for n in manifest.int8_hook_points if n in arrays and arrays[n].dtype == np.int8}
    if arrays.keys() != activations.keys() | scales.keys():
        raise StoreError(f"append got hook points {sorted(arrays)}; the store has {sorted(activations)}")
    lengths = {name: len(np.atleast_1d(array)) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise StoreError(f"append got different numbers of rows: {lengths}")
    n_rows = next(iter(lengths.values()))
    if next_row + n_rows > manifest.n_rows:
        raise StoreError(f"append got {n_rows} rows at row {next_row}; the plan has {manifest.n_rows} in all")
    for name, spec in activations.items():
        found = arrays[name]
        if found.shape[1:] != spec.shape:
            raise StoreError(f"{name}: rows have shape {found.shape[1:]}, the store's have {spec.shape}")
        if found.dtype not in (np.float32, spec.stored):
            form = {"bfloat16": ", as uint16 bit patterns", "int8": f" with scales as {scale_column(name)!r}"}
            raise StoreError(
                f"{name}: got {found.dtype}; the store takes {spec.dtype}{form.get(spec.dtype, '')}, or float32"
            )
    for column, name in scales.items():
        if manifest.undecided:
            raise StoreError(f"{name}: rows of int8 go with the factors that they were made with; give factors")
        int8.check_scales(arrays[column], n_rows, name, next_row)
    return arrays


def to_stored(arrays: Arrays, manifest: Manifest, first_row: int) -> Arrays:
    """Return what `check_batch` gave as the store has it: a C-contiguous array for each column.

    Raises
    ------
    StoreError
        For a float32 value that the stored type cannot hold.
    """
    stored: Arrays = {}
    for name, array in arrays.items():
        if array.dtype == np.float32 and name in manifest.int8_hook_points:
            factors = manifest.factors()[name]
            numbers, scales = int8.quantize(array, factors, hook_point=name, first_row=first_row)
            stored |= {name: numbers, scale_column(name): scales}
        elif array.dtype == np.float32 and name in manifest.activations:
            spec = manifest.activations[name]
            stored[name] = np.ascontiguousarray(narrow(array, spec.dtype, hook_point=name, first_row=first_row))
        else:
            stored[name] = np.ascontiguousarray(array)
    return stored


class FirstRows:
    """The first rows of a store with int8 hook points, held back until there are enough to choose factors.

    These come from exactly the first chunk of rows, however the rows are batched, so that a store has the same bytes
    however it was written.

    Parameters
    ----------
    manifest : Manifest
        Of a store whose factors are not decided.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._batches: list[Arrays] = []
        self._n_rows = 0

    @property
    def enough(self) -> bool:
        """Whether there is a chunk of rows, or all rows of the store."""
        return self._n_rows >= min(self._manifest.chunk_rows, self._manifest.n_rows)

    def hold(self, arrays: Arrays) -> None:
        """Keep a copy of what `check_batch` gave."""
        self._batches.append({name: array.copy() for name, array in arrays.items()})
        self._n_rows += len(next(iter(arrays.values())))

    def take(self) -> list[Arrays]:
        """Return all that was held, and hold nothing."""
        taken, self._batches, self._n_rows = self._batches, [], 0
        return taken

    def factors(self) -> dict[str, str]:
        """Choose factors, in the form that the manifest has."""
        chosen = {}
        for name in self._manifest.int8_hook_points:
            rows = np.concatenate([batch[name] for batch in self._batches])[: self._manifest.chunk_rows]
            chosen[name] = int8.to_text(int8.choose_factors(rows))
        return chosen


def given_factors(factors: Mapping[str, Any] | None, manifest: Manifest) -> dict[str, str]:
    """Return factors that a caller gave, in the form that the manifest has.

    Raises
    ------
    StoreError
        If they are not those of all int8 hook points, and of no others, or not powers of two of the right shape.
    """
    if factors is None:
        return {}
    if factors.keys() != set(manifest.int8_hook_points):
        raise StoreError(f"factors are of {sorted(factors)}; the int8 hook points are {manifest.int8_hook_points}")
    shapes = {name: manifest.activations[name].shape for name in factors}
    return {name: int8.to_text(int8.check_factors(factors[name], shapes[name], name)) for name in shapes}
