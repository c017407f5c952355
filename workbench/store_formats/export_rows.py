"""What an export takes from a store: which hook points, in which number type, and which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import ActivationSpec, Store, narrow, to_array, widen
from workbench.cache.schema import STORED_AS, Dtype
from workbench.errors import UserError
from workbench.store_formats.choice import named

if TYPE_CHECKING:
    from torch import Tensor

BATCH_BYTES = 16 << 20  # what is read and written at a time
EXPORTED: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
"""Number types of exports; of int8 the values are exported, as float32, which has each of them exactly."""


@dataclass(frozen=True)
class Taken:
    """A hook point of an export.

    Attributes
    ----------
    name : str
        Hook point.
    spec : ActivationSpec
        What the store holds.
    dtype : "float32", "float16" or "bfloat16"
        Type of the exported values.
    """

    name: str
    spec: ActivationSpec
    dtype: Dtype

    @property
    def stored(self) -> np.dtype[Any]:
        """The arrays that `values` gives: bfloat16 as uint16 bit patterns."""
        return np.dtype(STORED_AS[self.dtype])

    @property
    def row_bytes(self) -> int:
        """Bytes of one exported row."""
        return self.stored.itemsize * int(np.prod(self.spec.shape, dtype=np.int64))

    def values(self, tensor: Tensor, first_row: int) -> NDArray[Any]:
        """Turn what the store's readers give into what is exported, [rows, ...]: bit for bit where the type is kept.

        Raises
        ------
        workbench.cache.StoreError
            If a finite value is too large for the type.
        """
        array = to_array(tensor)
        if self.dtype == self.spec.dtype:
            return array
        wide = widen(array) if self.spec.dtype == "bfloat16" else array.astype(np.float32, copy=False)
        return narrow(wide, self.dtype, hook_point=self.name, first_row=first_row)


def take_hook_points(store: Store, wanted: str | Sequence[str] | None, dtype: str | None) -> list[Taken]:
    """Choose hook points by name or pattern, in the store's order; by default all, in their own type.

    Raises
    ------
    UserError
        If a name or pattern matches nothing, or for an unknown type.
    """
    if dtype is not None and dtype not in EXPORTED:
        raise UserError(f"dtype {dtype!r}: must be one of {', '.join(EXPORTED)}")
    chosen = named(store.hook_points, wanted, str(store.folder))
    return [Taken(name, store.hook_points[name], own_type(store.hook_points[name], dtype)) for name in chosen]


def own_type(spec: ActivationSpec, asked: str | None) -> Dtype:
    """Return the type in which a hook point is exported: the one asked for, else its own if exports have it."""
    return next((known for known in EXPORTED if known == (asked or spec.dtype)), "float32")


def take_rows(store: Store, special: bool) -> NDArray[np.bool_]:
    """Return a mask [rows] of the rows to export.

    Raises
    ------
    UserError
        If there is none.
    """
    mask = np.ones(store.n_rows, np.bool_) if special else ~store.origins["special"]
    if not mask.any():
        why = "no rows" if not store.n_rows else "no rows but those of special tokens"
        raise UserError(f"{store.folder} has {why}: there is nothing to export")
    return mask


def whole_windows(
    origins: NDArray[Any], mask: NDArray[np.bool_], size: int | None, *, pack: bool
) -> tuple[int, NDArray[np.bool_]]:
    """Keep the rows that fill windows of one size.

    Parameters
    ----------
    origins : record array [rows]
        Of all rows.
    mask : bool [rows]
        Which are wanted.
    size : int, optional
        Rows of a window, >= 1; by default those of the longest stretch of wanted rows that follow each other in one
        sequence.
    pack : bool
        Lay the wanted rows end to end and cut them, whatever sequence they are of. Otherwise a window's rows are of one
        sequence and follow each other in it; longer stretches make several windows.

    Returns
    -------
    size : int
        Rows of a window.
    mask : bool [rows]
        Rows in windows, a multiple of `size`.

    Raises
    ------
    UserError
        If no window is full.
    """
    if size is not None and size < 1:
        raise UserError(f"context size {size}: must be at least 1")
    sequence, position = origins["sequence"][mask], origins["position"][mask]
    n_rows = len(sequence)
    follows = (sequence[1:] == sequence[:-1]) & (position[1:] == position[:-1] + 1)
    lengths = np.diff(np.concatenate([[0], np.flatnonzero(~follows) + 1, [n_rows]]))
    longest = int(lengths.max())
    wanted = longest if size is None else size
    stretches = np.array([n_rows]) if pack else lengths
    in_windows = stretches // wanted * wanted
    if not in_windows.any():
        what = f"{n_rows} rows in all" if pack else f"the longest has {longest}"
        raise UserError(f"context size {wanted}: no window has so many rows, {what}: give a smaller one")
    kept_and_not = np.stack([in_windows, stretches - in_windows], axis=1).reshape(-1)
    windows = np.zeros(len(mask), np.bool_)
    windows[mask] = np.repeat(np.arange(len(kept_and_not)) % 2 == 0, kept_and_not)
    return wanted, windows
