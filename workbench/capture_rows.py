"""From a captured activation to rows of a store."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import ActivationSpec, to_array
from workbench.errors import UserError
from workbench.subjects.protocol import HookPoint, Subject

StoreDtype = Literal["float32", "float16", "bfloat16", "int8"]


def row_axis(point: HookPoint) -> str | None:
    """Return the axis along which rows lie: positions, or the queries of attention; None if there is none."""
    return next((axis for axis in ("pos", "query") if axis in point.axes), None)


def activation_spec(point: HookPoint, subject: Subject, context_length: int, store_dtype: str | None) -> ActivationSpec:
    """Say what one row of a hook point is: its axes without batch and position, keys as many as the context is long."""
    known = get_args(StoreDtype)
    kept = store_dtype or str(subject.dtype).removeprefix("torch.")
    if kept not in known:
        raise UserError(f"{kept} cannot be stored: choose a store dtype, one of {', '.join(known)}")
    if kept == "int8" and "key" in point.axes:
        raise UserError(
            f"{point.name} cannot be stored as int8, which has no NaN for keys past the end of an example: choose "
            "float16, bfloat16 or float32"
        )
    sizes = dict(zip(point.axes, point.shape, strict=True))
    axes = tuple(axis for axis in point.axes if axis not in {"batch", "pos", "query"})
    shape = tuple(context_length if axis == "key" else sizes[axis] for axis in axes)
    unknown = [axis for axis, size in zip(axes, shape, strict=True) if size is None]
    if unknown:
        raise UserError(f"{point.name} cannot be stored: the size of its axis {unknown[0]!r} differs between batches")
    return ActivationSpec(axes, cast("tuple[int, ...]", shape), cast("StoreDtype", kept))


def rows_of(
    point: HookPoint, value: Tensor, of_batch: Tensor, at: Tensor, lengths: Tensor, spec: ActivationSpec
) -> Tensor:
    """Take rows out of a captured activation.

    Parameters
    ----------
    point : HookPoint
        Names the axes of `value`.
    value : Tensor
        As captured.
    of_batch, at, lengths : int64 Tensor [rows]
        Example in the batch, position in it, and length of the example, of each row.
    spec : ActivationSpec
        What a row is.

    Returns
    -------
    Tensor [rows, ...]
        Keys of attention past the end of an example are NaN.
    """
    of_batch, at = of_batch.to(value.device), at.to(value.device)
    along = row_axis(point)
    if along is None:
        return value[of_batch]
    rows = value.movedim(point.axes.index(along), 1)[of_batch, at]
    if "key" not in spec.axes:
        return rows
    key = 1 + spec.axes.index("key")
    full = rows.new_full((len(rows), *spec.shape), torch.nan)
    full.narrow(key, 0, rows.shape[key]).copy_(rows)
    is_past = torch.arange(full.shape[key], device=full.device) >= lengths.to(full.device)[:, None]
    shape = [len(rows)] + [full.shape[key] if axis == key else 1 for axis in range(1, full.ndim)]
    return full.masked_fill_(is_past.view(shape), torch.nan)


def storable(rows: Tensor, name: str, spec: ActivationSpec, first_row: int) -> NDArray[Any]:
    """Return rows as the store takes them: of its own dtype bit for bit, of another as float32 for it to round.

    Raises
    ------
    UserError
        If the subject itself overflowed in float16.
    """
    if rows.dtype == torch.float16:
        # scores of positions that are not seen are minus infinity by design
        overflowed = torch.isposinf(rows) if name.endswith("attn_scores") else torch.isinf(rows)
        if overflowed.any():
            row = first_row + int(overflowed.flatten(1).any(1).nonzero()[0])
            raise UserError(
                f"{name}, row {row}: overflow, the subject runs in float16; load it with dtype bfloat16 or float32"
            )
    if str(rows.dtype) != f"torch.{spec.dtype}":
        rows = rows.float()
    return to_array(rows)
