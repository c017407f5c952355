"""The 8-bit form: a whole number per value, a scale per row, and a factor per channel that is fixed for a store.

``value = number * scale[row] * factor[channel]``. Scales have 17 significant bits and factors are powers of two, so
the product is exact in float32: whoever computes it, in whatever order, gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from workbench.cache.errors import StoreError
from workbench.cache.schema import scale_column

LARGEST_NUMBER = 127
MAX_EXPONENT = 30
BLOCK_BYTES = 1 << 18
SMALLEST_SCALE = np.float32(2.0**-126)
"""Smallest normal number: zero rows need no case of their own, and flushing subnormals to zero changes nothing."""


def choose_factors(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Choose the factor of each channel from some rows: 1, or more for channels that are always large.

    A few channels of a residual stream are often ten to a thousand times larger than the others. With one scale per row
    alone they would take the whole range, and the other channels would be rounded to nothing. A channel's size is its
    root mean square after rows that are larger than the median row are brought down to it, so that a few rows of huge
    values (the first token) count no more than others; its factor is that size over the median channel's, as the
    nearest power of two.

    Parameters
    ----------
    values : float32 array [rows, ...]
        Finite; the first rows of a store.

    Returns
    -------
    float32 array [...]
        Powers of two, 1 to 2**30, one for each entry of a row.
    """
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    largest = np.abs(rows).max(1, initial=0)[:, None]
    usual = np.median(largest) if len(rows) else 0.0
    shares = np.divide(usual, largest, out=np.ones(largest.shape), where=largest > usual)
    sizes = np.sqrt(np.square(rows * shares).sum(0))
    median = np.median(sizes[sizes > 0]) if (sizes > 0).any() else 1.0
    exponents = np.rint(np.log2(np.maximum(sizes / median, 1.0)))
    factors: NDArray[np.float32] = np.exp2(np.minimum(exponents, MAX_EXPONENT)).astype(np.float32)
    return factors.reshape(values.shape[1:])


def quantize(
    values: NDArray[np.float32], factors: NDArray[np.float32], *, hook_point: str = "", first_row: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round float32 to the 8-bit form, to nearest even.

    Parameters
    ----------
    values : float32 array [rows, ...]
        Finite.
    factors : float32 array [...]
        Of each entry of a row, powers of two from 1 on.
    hook_point : str
        For the error message.
    first_row : int
        Number of the first row in the store, for the error message.

    Returns
    -------
    numbers : int8 array [rows, ...]
        -127 to 127.
    scales : float32 array [rows]
        The row's largest value over its factor, over 127, rounded up to 17 significant bits; at least 2**-126. No value
        is changed by more than half of scale times factor (and what float32's division errs: 2**-17 of it).

    Raises
    ------
    StoreError
        For NaN and infinity, which the form cannot hold, and for a value so large that its rounded form would be
        infinite; the message names hook point and row.
    """
    if values.dtype != np.float32:
        raise StoreError(f"{hook_point or 'values'}: quantize takes float32, not {values.dtype}")
    rows, per_channel = values.reshape(len(values), factors.size), factors.reshape(-1)
    numbers = np.empty(rows.shape, np.int8)
    scales = np.empty(len(rows), np.float32)
    step = max(1, BLOCK_BYTES // max(1, 4 * rows.shape[1]))  # a block stays in the processor's cache
    for start in range(0, len(rows), step):
        at = slice(start, start + step)
        block = rows[at] / per_channel
        largest = np.abs(block).max(1)
        if not np.isfinite(largest).all():
            _refuse(rows[at], hook_point, first_row + start)
        scales[at] = _rounded_up(largest / np.float32(LARGEST_NUMBER))
        block /= scales[at, None]
        numbers[at] = np.rint(block, out=block)
        with np.errstate(over="ignore"):
            is_large = not np.isfinite(scales[at] * np.float32(LARGEST_NUMBER) * per_channel.max()).all()
            if is_large and not np.isfinite(dequantize(numbers[at], scales[at], per_channel)).all():
                _refuse(dequantize(numbers[at], scales[at], per_channel), hook_point, first_row + start)
    return numbers.reshape(values.shape), scales


def dequantize(
    numbers: NDArray[np.int8], scales: NDArray[np.float32], factors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the float32 values [rows, ...] of the 8-bit form, exactly."""
    rows = numbers.reshape(len(numbers), factors.size)
    per_channel = factors.reshape(-1)
    plain = bool((per_channel == 1).all())
    values = np.empty(rows.shape, np.float32)
    step = max(1, BLOCK_BYTES // max(1, 4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        at = slice(start, start + step)
        np.multiply(rows[at], scales[at, None], out=values[at])
        if not plain:
            values[at] *= per_channel
    return values.reshape(numbers.shape)


def stored_columns(names: Iterable[str], factors: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Return the columns that hold some hook points: those that have factors are stored as int8 with scales."""
    return [column for name in names for column in ((name, scale_column(name)) if name in factors else (name,))]


def restore(
    stored: Mapping[str, NDArray[Any]], names: Iterable[str], factors: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    """Return hook points from the columns that hold them: int8 as float32, others as they are."""
    return {
        name: dequantize(stored[name], stored[scale_column(name)], factors[name]) if name in factors else stored[name]
        for name in names
    }


def to_text(factors: NDArray[np.float32]) -> str:
    """Return factors as the manifest has them: the exponent of each, two hexadecimal digits, in C order."""
    return np.log2(factors).astype(np.uint8).tobytes().hex()


def from_text(text: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Read what `to_text` wrote."""
    return np.exp2(np.frombuffer(bytes.fromhex(text), np.uint8).astype(np.float32)).reshape(shape)


def check_factors(factors: Any, shape: tuple[int, ...], hook_point: str) -> NDArray[np.float32]:
    """Return given factors as float32 [...]; refuse another shape and what is no power of two from 1 to 2**30."""
    given = np.asarray(factors, np.float32)
    if given.shape != shape:
        raise StoreError(f"{hook_point}: factors have shape {given.shape}, rows have {shape}")
    exponents = np.log2(np.maximum(given, 1))
    wrong = (given != np.exp2(np.rint(exponents))) | (exponents > MAX_EXPONENT)
    if wrong.any():
        raise StoreError(f"{hook_point}: factor {given[wrong][0]:g}: must be a power of two, 1 to 2**{MAX_EXPONENT}")
    return given


def check_scales(scales: NDArray[Any], n_rows: int, hook_point: str, first_row: int) -> NDArray[np.float32]:
    """Return given scales as they are; refuse another type or length, and a scale that `quantize` cannot have made."""
    if scales.dtype != np.float32 or scales.shape != (n_rows,):
        raise StoreError(f"{hook_point}: scales are {scales.dtype} {scales.shape}, must be float32 ({n_rows},)")
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise StoreError(f"{hook_point}, row {first_row + at}: scale {scales[at]}: must be finite and positive")
    return scales


def _rounded_up(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round up to 17 significant bits, so that times an int8 nothing is left to round."""
    bits = (np.ascontiguousarray(scales, np.float32).view(np.uint32) + np.uint32(0x7F)) & np.uint32(0xFFFFFF80)
    return np.maximum(bits.view(np.float32), SMALLEST_SCALE)


def _refuse(rows: NDArray[np.float32], hook_point: str, first_row: int) -> NoReturn:
    at = tuple(int(i) for i in np.argwhere(~np.isfinite(rows))[0])
    found = "NaN" if np.isnan(rows[at]) else "infinite or too large to be rounded"
    raise StoreError(
        f"{hook_point or 'values'}, row {first_row + at[0]}: a value is {found}: int8 cannot hold it; "
        "store as bfloat16 or float32"
    )
