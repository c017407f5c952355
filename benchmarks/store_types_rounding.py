"""How much of the variance 8 bits lose, in the form that stores have and in forms that they might have had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from store_types_data import Kind, captured

from workbench.cache import dequantize, narrow, quantize, widen
from workbench.cache.int8 import choose_factors

Rows = NDArray[np.float32]
FIRST_ROWS = 1024
LOOKED_AT = 16_000
PLANTED = [3, 77, 200]


def run(kinds: list[Kind], folder: Path, n_rows: int) -> None:
    """Print the loss of each form on captured rows, and on rows with planted outlier channels and massive rows."""
    print("\nrounding: error / variance, of all channels together and of the median channel")
    print(f"  {'':<44}" + "".join(f"{way:>21}" for way in WAYS))
    for kind in kinds:
        store = captured(kind, folder, n_rows)
        rows = store.read(kind.hook_point, np.flatnonzero(store.ordinary)[:LOOKED_AT])
        told(kind.name, rows)
        if kind.name == "residual stream":
            for factor in (100, 1000):
                outliers = rows.copy()
                outliers[:, PLANTED] *= factor
                told(f"  three channels times {factor}", outliers)
            massive = rows.copy()
            massive[::200, PLANTED] = 3000 * rows.std()
            told("  every 200th row massive; the other rows", massive, np.arange(len(rows)) % 200 != 0)


def told(name: str, rows: Rows, looked_at: NDArray[np.bool_] | slice = slice(None)) -> None:
    """Print one line."""
    rows = rows.reshape(len(rows), -1)
    line = f"  {name:<44}"
    for way in WAYS.values():
        error = ((way(rows) - rows)[looked_at].astype(np.float64) ** 2).mean(0)
        variance = rows[looked_at].astype(np.float64).var(0)
        line += f"{error.sum() / variance.sum():12.1e} {np.median(error / np.maximum(variance, 1e-30)):.1e} "
    print(line)


def in_groups(rows: Rows, width: int) -> Rows:
    """One scale for every `width` entries of a row."""
    back = np.empty_like(rows)
    for first in range(0, rows.shape[1], width):
        part = np.ascontiguousarray(rows[:, first : first + width])
        back[:, first : first + width] = rounded(part, np.ones(part.shape[1], np.float32))
    return back


def rounded(rows: Rows, factors: Rows) -> Rows:
    """There and back."""
    return dequantize(*quantize(rows, factors), factors)


WAYS: dict[str, Callable[[Rows], Rows]] = {
    "bfloat16": lambda rows: widen(narrow(rows, "bfloat16")),
    "int8": lambda rows: rounded(rows, choose_factors(rows[:FIRST_ROWS])),
    "scale per row only": lambda rows: rounded(rows, np.ones(rows.shape[1], np.float32)),
    "scale per 64": lambda rows: in_groups(rows, 64),
}
