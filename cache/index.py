"""The index: one HDF5 file in which all shards look like one. Made from the manifest, and never read by us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from workbench.cache.errors import Damage
from workbench.cache.files import read_hdf5, replace_hdf5
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
            made = _virtual_dataset(file, column, manifest)
            made.attrs.update(column.attributes)
            if column.factors is not None:
                file.create_dataset(column.attributes["factors"], data=column.factors)

    replace_hdf5(folder / FILE, fill)


def _virtual_dataset(file: Any, column: Column, manifest: Manifest) -> Any:
    """Make the virtual dataset of a column, and return it.

    In HDF5's own terms: through `h5py.VirtualLayout` ten thousand shards take three times as long.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.VIRTUAL)
    properties.set_fill_value(np.array([_missing(column)], column.dtype))
    space = h5py.h5s.create_simple((manifest.committed_rows, *column.shape))
    origin = (0,) * len(column.shape)
    for shard in manifest.shards:
        block = (shard.n_rows, *column.shape)
        space.select_hyperslab((shard.first_row, *origin), (1,) * len(block), block=block)
        source = f"{FOLDER}/{shard.name}".encode()
        properties.set_virtual(space, source, column.path.encode(), h5py.h5s.create_simple(block))
    kind = h5py.h5t.py_create(column.dtype, logical=True)
    parents = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    parents.set_create_intermediate_group(True)
    parents.set_char_encoding(h5py.h5t.CSET_UTF8)
    return h5py.Dataset(h5py.h5d.create(file.id, column.path.encode(), kind, space, properties, parents))


def check_index(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    """Yield the faults of the index of a finished store; that of an unfinished one may be of an earlier time.

    Nobody here reads it, but other programs do: it must say of every row where that is, and nothing else.
    """
    if not manifest.finished:
        return
    try:
        with read_hdf5(folder / FILE, texts=True) as file:
            for column in columns(manifest).values():
                if not _is_right(file, column, manifest):
                    yield Damage(FILE, "does not say where the rows are, as the manifest does", column.path)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        yield Damage(FILE, f"cannot be read ({error})")


def _is_right(file: Any, column: Column, manifest: Manifest) -> bool:
    dataset = file[column.path]
    found = []
    for source in dataset.virtual_sources():
        first, last = source.vspace.get_select_bounds()
        found.append((first[0], last[0] + 1, source.file_name, source.dset_name))
    shards = [(each.first_row, each.end_row, f"{FOLDER}/{each.name}", column.path) for each in manifest.shards]
    missing = np.array(_missing(column), column.dtype)
    return bool(
        (dataset.shape, dataset.dtype) == ((manifest.committed_rows, *column.shape), column.dtype)
        and sorted(found) == shards
        and all(dataset.attrs[name] == value for name, value in column.attributes.items())
        and np.asarray(dataset.fillvalue).tobytes() == missing.tobytes()
        and (column.factors is None or np.array_equal(file[column.attributes["factors"]], column.factors))
    )


def _missing(column: Column) -> Any:
    if column.name == ROWS:
        return np.array((-1, -1, -1, -1, False), column.dtype)
    return {"u": BFLOAT16_NAN, "i": 0}.get(column.dtype.kind, np.nan)  # int8: its scale is NaN
