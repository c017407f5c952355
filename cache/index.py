"""The index: one HDF5 file in which all shards look like one. Made from the manifest, and never read by us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from workbench.cache.files import replace_hdf5
from workbench.cache.layout import FOLDER, Column, columns
from workbench.cache.manifest import Manifest
from workbench.cache.schema import FORMAT, ROWS

FILE = "index.h5"
BFLOAT16_NAN = 0x7FC0


def write_index(folder: Path, manifest: Manifest) -> None:
    """Write ``index.h5``, atomically: a virtual dataset per hook point and ``/rows``, over the committed shards.

    Names of shards are relative, so a store can be moved. HDF5 reads a missing shard as the fill value without a word,
    so that is NaN (for bfloat16 the bits of one, for origins -1), which no one takes for a measurement.
    """

    def fill(file: Any) -> None:
        file.attrs.update(format=f"{FORMAT}: index", schema=manifest.schema, finished=manifest.finished)
        for column in columns(manifest).values():
            virtual = h5py.VirtualLayout((manifest.committed_rows, *column.shape), column.dtype)
            for shard in manifest.shards:
                source = (shard.n_rows, *column.shape)
                virtual[shard.first_row : shard.end_row] = h5py.VirtualSource(
                    f"{FOLDER}/{shard.name}", column.path, source, column.dtype
                )
            made = file.create_virtual_dataset(column.path, virtual, fillvalue=_missing(column))
            made.attrs.update(column.attributes)
            if column.factors is not None:
                file.create_dataset(column.attributes["factors"], data=column.factors)

    replace_hdf5(folder / FILE, fill)


def _missing(column: Column) -> Any:
    if column.name == ROWS:
        return np.array((-1, -1, -1, -1, False), column.dtype)
    return {"u": BFLOAT16_NAN, "i": 0}.get(column.dtype.kind, np.nan)  # int8: its scale is NaN
