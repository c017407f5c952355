"""Number types: from float32 down to what is stored, and bfloat16 back to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache.errors import StoreError
from workbench.cache.schema import STORED_AS, Dtype

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}


def narrow(values: NDArray[np.float32], dtype: Dtype, *, hook_point: str = "", first_row: int = 0) -> NDArray[Any]:
    """Round float32 to a stored type, to nearest even; never to infinity.

    Parameters
    ----------
    values : float32 array [rows, ...]
        NaN stays NaN and infinity stays infinity.
    dtype : "float32", "float16" or "bfloat16"
        The type wanted; bfloat16 comes back as uint16 bit patterns. For int8 see `workbench.cache.int8.quantize`.
    hook_point : str
        For the error message.
    first_row : int
        Number of the first row in the store, for the error message.

    Returns
    -------
    array [rows, ...]
        float32, float16 or uint16.

    Raises
    ------
    StoreError
        If a finite value is too large for the type; the message names hook point and row.
    """
    if values.dtype != np.float32:
        raise StoreError(f"{hook_point or 'values'}: narrow takes float32, not {values.dtype}")
    if dtype == "int8":
        raise StoreError(f"{hook_point or 'values'}: int8 has a scale per row; use quantize")
    if dtype == "float32":
        return values
    with np.errstate(over="ignore"):
        narrowed: NDArray[Any] = values.astype(np.float16) if dtype == "float16" else _to_bfloat16(values)
    infinite = narrowed.view(np.uint16) & 0x7FFF == (0x7C00 if dtype == "float16" else 0x7F80)
    if infinite.any():
        overflowed = infinite & np.isfinite(values)
        if overflowed.any():
            at = tuple(int(i) for i in np.argwhere(overflowed)[0])
            raise StoreError(
                f"{hook_point or 'values'}, row {first_row + at[0]}: {values[at]:.6g} is beyond {dtype}'s largest, "
                f"{LARGEST[dtype]:.6g}; store as bfloat16 or float32"
            )
    return narrowed.astype(STORED_AS[dtype], copy=False)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    quiet_nan = ((bits >> 16) | 0x0040).astype(np.uint16)  # rounding could carry a NaN's mantissa away to infinity
    return np.where(np.isnan(values), quiet_nan, rounded).reshape(values.shape)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bit patterns, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)
