"""A hook point of a foreign source: where its rows are, and the number type in which they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.cache import ActivationSpec, StoreError, narrow, widen
from workbench.cache.schema import STORED_AS, Dtype
from workbench.errors import UserError

FLOATS = ("float32", "float16", "bfloat16", "float64")
BITS = ("uint16", "void16")  # how NumPy's files hold the bits of bfloat16
ONE_AXIS = "width"


class Rows(Protocol):
    """Where the rows of a hook point are read from; `Joined` is one."""

    shape: tuple[int, ...]
    dtype: str
    n_rows: int

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Return rows `first` to `end` (excluded), [rows, ...]."""
        ...


@dataclass(frozen=True)
class Column:
    """A hook point of a source, as the store will have it.

    Attributes
    ----------
    spec : ActivationSpec
        What the store is told.
    rows : Rows
        Where the values are.
    convert : callable
        From arrays that `rows` gives, and the number of their first row, to arrays of the stored type.
    """

    spec: ActivationSpec
    rows: Rows
    convert: Callable[[NDArray[Any], int], NDArray[Any]]

    def read(self, first: int, end: int) -> NDArray[Any]:
        """Return rows `first` to `end` (excluded) as `StoreWriter.append` takes them bit for bit."""
        return self.convert(self.rows.read(first, end), first).reshape(end - first, *self.spec.shape)


def column(name: str, rows: Rows, asked: str | None, axes: tuple[str, ...] | None = None) -> Column:
    """Return a hook point made of rows.

    Parameters
    ----------
    name : str
        Hook point.
    rows : Rows
        Where the values are.
    asked : str, optional
        Type to store; the values' own if not given.
    axes : tuple of str, optional
        A word for each axis of a row.

    Raises
    ------
    UserError
        If the values are of a type that a store does not hold, and no type was asked for.
    """
    if axes is None:
        axes = (ONE_AXIS,) if len(rows.shape) == 1 else tuple(f"axis_{i + 1}" for i in range(len(rows.shape)))
    stored = stored_type(name, rows.dtype, asked)
    try:
        spec = ActivationSpec(axes, rows.shape, stored)
    except StoreError as error:
        raise UserError(f"{name}: {error}") from error
    return Column(spec, rows, lambda values, first: converted(name, values, rows.dtype, stored, first))


def stored_type(name: str, dtype: str, asked: str | None) -> Dtype:
    """Return the type in which values of a foreign type are stored."""
    if asked is not None and asked not in STORED_AS:
        raise UserError(f"dtype {asked!r}: must be one of {', '.join(STORED_AS)}")
    if dtype in BITS and asked != "bfloat16":
        raise UserError(f"{name} is {dtype}: if these are the bits of bfloat16, give --store-dtype bfloat16")
    if dtype == "float64" and asked is None:
        raise UserError(
            f"{name} is float64, which a store does not hold: give --store-dtype float32 to have it rounded"
        )
    if dtype not in FLOATS and dtype not in BITS:
        raise UserError(f"{name} is {dtype}: activations are floats; name the hook points with --hook NAME=PATTERN")
    return asked or dtype  # type: ignore[return-value]  # one of the literal's words, by the checks above


def converted(name: str, values: NDArray[Any], dtype: str, stored: Dtype, first_row: int) -> NDArray[Any]:
    """Return values in the stored type: bit for bit where it is their own, else rounded; for int8 as float32.

    Raises
    ------
    UserError
        If a finite value is too large for the type; the message names hook point and row.
    """
    if dtype in BITS:
        return values.view(np.uint16)
    if dtype == stored:
        return values
    if dtype == "bfloat16":
        values = widen(values)
    if dtype == "float32" and stored == "bfloat16" and not (values.view(np.uint32) & 0xFFFF).any():
        return (values.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16 all along, NaN with their payloads
    with np.errstate(over="ignore"):
        wide = values.astype(np.float32)
    if dtype == "float64" and (beyond := np.isinf(wide) & np.isfinite(values)).any():
        at = tuple(int(i) for i in np.argwhere(beyond)[0])
        raise UserError(f"{name}, row {first_row + at[0]}: {values[at]:.6g} is beyond float32's largest, 3.40282e+38")
    if stored == "int8":  # the writer chooses factors and rounds
        return wide
    return narrow(wide, stored, hook_point=name, first_row=first_row)
