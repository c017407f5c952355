"""How two results differ, in sentences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas
import xarray

from workbench.results import Figure, Metric, Result, Weights
from workbench.results_parts import File
from workbench.results_table import Table

KINDS = ("metrics", "tables", "arrays", "figures", "weights", "files", "sections")


def differences(
    got: Result, want: Result, varies: Collection[str] = (), *, same_types: bool = True, drawings: bool = True
) -> list[str]:
    """Say how two results differ, to the last bit.

    Parameters
    ----------
    got, want : Result
        The one that is judged, and the one that it should be.
    varies : collection of str
        Names of metrics, arrays and sections, and columns as ``TABLE.COLUMN``, that hold measured time and may differ.
    same_types : bool
        Whether columns of tables must have the same types, too: Parquet gives some texts another one.
    drawings : bool
        Whether figures must be drawn alike, beside being there.

    Returns
    -------
    list of str
        A sentence for each difference.
    """
    found = []
    for kind in KINDS:
        ours, theirs = getattr(got, kind), getattr(want, kind)
        if list(ours) != list(theirs):
            found.append(f"{kind}: {list(ours)}, not {list(theirs)}")
            continue
        for name in ours:
            if name in varies or (kind == "figures" and not drawings):
                continue
            found += [f"{kind} {name}: {what}" for what in _differ(ours[name], theirs[name], name, varies, same_types)]
    return found


def description_of(part: Any) -> str:
    """Return the description of a metric, table, array …"""
    return str(part.attrs["description"] if isinstance(part, xarray.DataArray) else part.description)


def _differ(ours: Any, theirs: Any, name: str, varies: Collection[str], same_types: bool) -> Iterator[str]:
    if description_of(ours) != description_of(theirs):
        yield f"described as {description_of(ours)!r}, not {description_of(theirs)!r}"
    if isinstance(ours, Metric):
        if ours.unit != theirs.unit:
            yield f"in {ours.unit!r}, not {theirs.unit!r}"
        for end in ("value", "lo", "hi"):
            if not same_number(getattr(ours, end), getattr(theirs, end)):
                yield f"{end} is {getattr(ours, end)!r}, not {getattr(theirs, end)!r}"
    elif isinstance(ours, Table):
        if dict(ours.units) != dict(theirs.units):
            yield f"units are {dict(ours.units)}, not {dict(theirs.units)}"
        left_out = {column for column in theirs.columns if f"{name}.{column}" in varies}
        yield from tables_differ(pandas.DataFrame(ours), pandas.DataFrame(theirs), left_out, same_types)
    elif isinstance(ours, xarray.DataArray):
        yield from arrays_differ(ours, theirs)
    elif isinstance(ours, Weights):
        yield from weights_differ(ours, theirs)
    elif isinstance(ours, Figure):
        if ours.figure is theirs.figure is None and ours.svg() != theirs.svg():
            yield "another drawing"  # one that is not yet an image changes its layout each time it is drawn
    elif isinstance(ours, File):
        if ours.data != theirs.data:
            yield "other bytes"
    elif (ours.kind, ours.data) != (theirs.kind, theirs.data):
        yield "other contents"


def same_number(ours: float | None, theirs: float | None) -> bool:
    """True for the same bits, or NaN both."""
    if isinstance(ours, float) and isinstance(theirs, float) and math.isnan(ours):
        return math.isnan(theirs)
    return type(ours) is type(theirs) and ours == theirs


def tables_differ(
    ours: pandas.DataFrame, theirs: pandas.DataFrame, left_out: Collection[str], same_types: bool
) -> Iterator[str]:
    """Say how two frames differ."""
    if list(ours.columns) != list(theirs.columns):
        yield f"columns {list(ours.columns)}, not {list(theirs.columns)}"
        return
    columns = [column for column in ours.columns if column not in left_out]
    try:
        pandas.testing.assert_frame_equal(ours[columns], theirs[columns], check_exact=True, check_dtype=same_types)
    except AssertionError as error:
        yield " ".join(str(error).split())


def arrays_differ(ours: xarray.DataArray, theirs: xarray.DataArray) -> Iterator[str]:
    """Say how two arrays differ."""
    if (ours.attrs, ours.dims) != (theirs.attrs, theirs.dims):
        yield f"axes {ours.dims} and {ours.attrs}, not {theirs.dims} and {theirs.attrs}"
    elif set(ours.coords) != set(theirs.coords):
        yield f"coordinates {sorted(map(str, ours.coords))}, not {sorted(map(str, theirs.coords))}"
    else:
        pairs = {"entries": (ours, theirs)}
        pairs |= {f"coordinate {name}": (ours[name], theirs[name]) for name in ours.coords}
        for what, (a, b) in pairs.items():
            if not same_entries(a.values, b.values):
                yield f"{what} differ"


def same_entries(ours: Any, theirs: Any) -> bool:
    """True for arrays of the same shape and type of number whose entries are the same, NaN for NaN."""
    a, b = (values.astype(str) if values.dtype.kind in "OU" else values for values in (ours, theirs))
    if a.shape != b.shape or (a.dtype != b.dtype and a.dtype.kind != "U"):
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


def weights_differ(ours: Weights, theirs: Weights) -> Iterator[str]:
    """Say how two sets of tensors differ."""
    import torch

    if (sorted(ours), ours.config) != (sorted(theirs), theirs.config):
        yield f"{sorted(ours)} with {ours.config}, not {sorted(theirs)} with {theirs.config}"
        return
    for name in ours:
        a, b = (tensor.detach().cpu().contiguous() for tensor in (ours[name], theirs[name]))
        same = a.dtype == b.dtype and a.shape == b.shape
        if not same or not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            yield f"tensor {name} differs"
