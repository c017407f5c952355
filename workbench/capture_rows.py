"""From a captured activation to rows of a store."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import ActivationSpec, to_array
from workbench.cache.compression import CODECS, Compression
from workbench.errors import UserError
from workbench.subjects.protocol import HookPoint, Subject
from workbench.transfer import HostCopies, HostCopy, to_device

StoreDtype = Literal["float32", "float16", "bfloat16", "int8"]


def row_axis(point: HookPoint) -> str | None:
    """Return the axis along which rows lie: positions, or the queries of attention; None if there is none."""
    return next((axis for axis in ("pos", "query") if axis in point.axes), None)


def activation_spec(
    point: HookPoint,
    subject: Subject,
    context_length: int,
    store_dtype: str | None = None,
    compression: str | None = None,
) -> ActivationSpec:
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
    if compression not in (None, *CODECS):
        raise UserError(f"compression {compression!r}: must be one of {', '.join(CODECS)}, or left out for none")
    return ActivationSpec(
        axes,
        cast("tuple[int, ...]", shape),
        cast("StoreDtype", kept),
        compression=cast("Compression | None", compression),
    )


class Places(NamedTuple):
    """Where the rows of a batch are.

    Attributes
    ----------
    of_batch, at, lengths : int64 Tensor [rows]
        Example in the batch, position in it, and length of the example, of each row.
    """

    of_batch: Tensor
    at: Tensor
    lengths: Tensor

    def to(self, device: Any) -> Places:
        """Return them on a device; the host does not wait."""
        return Places(*(to_device(each, device) for each in self))


def rows_of(point: HookPoint, value: Tensor, places: Places, spec: ActivationSpec) -> Tensor:
    """Take rows out of a captured activation.

    Parameters
    ----------
    point : HookPoint
        Names the axes of `value`.
    value : Tensor
        As captured.
    places : Places
        Which, on the device of `value`.
    spec : ActivationSpec
        What a row is.

    Returns
    -------
    Tensor [rows, ...]
        Keys of attention past the end of an example are NaN.
    """
    along = row_axis(point)
    if along is None:
        return value[places.of_batch]
    rows = value.movedim(point.axes.index(along), 1)[places.of_batch, places.at]
    if "key" not in spec.axes:
        return rows
    key = 1 + spec.axes.index("key")
    full = rows.new_full((len(rows), *spec.shape), torch.nan)
    full.narrow(key, 0, rows.shape[key]).copy_(rows)
    is_past = torch.arange(full.shape[key], device=full.device) >= places.lengths[:, None]
    shape = [len(rows)] + [full.shape[key] if axis == key else 1 for axis in range(1, full.ndim)]
    return full.masked_fill_(is_past.view(shape), torch.nan)


class RowsOnTheWay:
    """Rows of one hook point on their way to the store: rounded on the subject's device, copied without waiting.

    Parameters
    ----------
    rows : Tensor [rows, ...]
        From `rows_of`. Where one may have overflowed, they are kept on the device as well.
    name : str
        The hook point.
    spec : ActivationSpec
        What the store takes.
    copies : HostCopies
        Takes them to the host.

    Attributes
    ----------
    n_bytes : int
        That they fill on the host.
    """

    def __init__(self, rows: Tensor, name: str, spec: ActivationSpec, copies: HostCopies) -> None:
        dtype = torch.float32 if spec.dtype == "int8" else getattr(torch, spec.dtype)  # int8: the store scales itself
        kept = rows.to(dtype)
        self.name, self._dtype = name, dtype
        self.n_bytes = kept.nbytes
        self._overflow: tuple[HostCopy, Tensor] | None = None
        if (rows.dtype != dtype or dtype == torch.float16) and not surely_fit(rows, dtype):
            # how a NaN is rounded differs between devices, and on one between the ends of a tensor and its middle
            kept = kept.masked_fill(rows.isnan(), torch.nan)
            self._overflow = copies.start(overflowed(rows, kept, name).any()), rows
        self._kept = copies.start(kept)

    def array(self, first_row: int) -> NDArray[Any]:
        """Return the rows as the store takes them, once they have arrived; otherwise as `tensor`."""
        return to_array(self.tensor(first_row))

    def tensor(self, first_row: int) -> Tensor:
        """Return the rows, rounded to what the store takes, once they have arrived.

        Parameters
        ----------
        first_row : int
            Number of the first row in the store, for the error message.

        Raises
        ------
        UserError
            If a finite value became infinite, in the subject itself or by rounding.
        """
        kept = self._kept.get()
        if self._overflow is not None and self._overflow[0].get():
            rows = self._overflow[1].cpu()
            at = tuple(int(i) for i in overflowed(rows, kept, self.name).nonzero()[0])
            where = f"{self.name}, row {first_row + at[0]}"
            if rows.dtype == torch.float16:
                raise UserError(
                    f"{where}: overflow, the subject runs in float16; load it with dtype bfloat16 or float32"
                )
            largest, said = torch.finfo(self._dtype).max, str(self._dtype).removeprefix("torch.")
            wider = "bfloat16 or float32" if self._dtype == torch.float16 else "float32"
            raise UserError(f"{where}: {rows[at]:.6g} is beyond {said}'s largest, {largest:.6g}; store as {wider}")
        return kept


def surely_fit(rows: Tensor, dtype: torch.dtype) -> bool:
    """Return whether it takes one look to see that no value is infinite, NaN or beyond a type's largest.

    False on a device: to look would be to wait for it.
    """
    if rows.device.type != "cpu" or not rows.numel():
        return False
    largest = min(torch.finfo(dtype).max, torch.finfo(rows.dtype).max)
    low, high = rows.aminmax()  # both are NaN if one is
    return bool(low >= -largest) and bool(high <= largest)


def overflowed(rows: Tensor, kept: Tensor, name: str) -> Tensor:
    """Return which values are infinite and should not be, bool [rows, ...]: `kept` is `rows` rounded."""
    if rows.dtype != torch.float16:
        return kept.isinf() & ~rows.isinf()
    # the subject itself overflows in float16; scores of positions that are not seen are minus infinity by design
    return rows.isposinf() if name.endswith("attn_scores") else rows.isinf()
