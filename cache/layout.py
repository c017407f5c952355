"""Where the bytes of a shard are: HDF5 lays a file out once, and says where; rows go past it, both ways."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from workbench.cache.files import LIBRARY_VERSIONS, read_hdf5, undisturbed
from workbench.cache.manifest import Manifest
from workbench.cache.schema import FORMAT, ROWS, origin_dtype, scale_column

FOLDER = "shards"
CHECKSUM = np.dtype("<u8")
COUNT = np.dtype("<u4")
SPECIAL, SPECIAL_CHECKSUM = "/special/counts", "/special/checksum"
"""Rows of special tokens in each chunk; shards of earlier versions lack them, and readers count for themselves."""

SCALE = np.dtype("<f4")
RESCALE = "float32: this * scales[row] * factors; those two name datasets"
"""For whoever reads an int8 dataset without us."""

PAGE_BYTES = 4096
ALIGNED_FROM_BYTES = 64 << 10


@dataclass(frozen=True)
class Column:
    """A dataset with one entry per row: a hook point's activations, the scales of one that is int8, or the origins.

    Attributes
    ----------
    name : str
        Hook point, ``scales/`` and a hook point, or "rows".
    path, checksums : str
        Datasets in a shard that hold the values and the checksum of each chunk.
    dtype : numpy dtype
        Of the values on disk.
    shape : tuple of int
        Of one row.
    attributes : dict of str to str
        Written to the dataset for whoever reads it without us.
    schema : int
        The oldest that has such a column.
    factors : float32 array, optional
        Of an int8 hook point; kept beside, for whoever reads it without us.
    """

    name: str
    path: str
    checksums: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    attributes: dict[str, str]
    schema: int = 1
    factors: NDArray[np.float32] | None = None

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def columns(manifest: Manifest) -> dict[str, Column]:
    """Return the columns of a store: hook points in their order, each int8 one's scales after it, then the origins."""
    made: dict[str, Column] = {}
    factors = manifest.factors()
    for name, spec in manifest.activations.items():
        attributes = {"dtype": spec.dtype, "axes": " ".join(("row", *spec.axes)), "unit": spec.unit}
        path = f"/activations/{name}"
        per_channel = factors.get(name)
        made[name] = Column(name, path, f"/checksums/{name}", spec.stored, spec.shape, attributes, factors=per_channel)
        if spec.dtype == "int8":
            scales = scale_column(name)
            attributes |= {"rescale": RESCALE, "scales": f"/{scales}", "factors": f"/factors/{name}"}
            made[scales] = Column(scales, f"/{scales}", f"/scale_checksums/{name}", SCALE, (), {"of": path}, schema=2)
    made[ROWS] = Column(ROWS, f"/{ROWS}", f"/checksums/{ROWS}", origin_dtype(manifest.modality), (), {})
    return made


@dataclass(frozen=True)
class Cut:
    """How a shard's rows are cut into chunks.

    Attributes
    ----------
    n_rows, chunk_rows : int
        Rows of the shard; rows of each chunk but a shorter last one.
    """

    n_rows: int
    chunk_rows: int

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.n_rows // self.chunk_rows)

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk, first row, end row) for the parts of the chunks that lie in a range of the shard's rows."""
        while first < end:
            chunk = first // self.chunk_rows
            until = min((chunk + 1) * self.chunk_rows, end)
            yield chunk, first, until
            first = until

    def chunk(self, chunk: int) -> tuple[int, int]:
        """Return the first and the end row of a chunk."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.n_rows)


class Sketch(io.RawIOBase):
    """A file of which only what HDF5 writes of itself is kept: the values' places stay empty, and cost no memory.

    Attributes
    ----------
    written : dict of int to bytes
        What was written, by place.
    size : int
        Of the file, in bytes.
    """

    def __init__(self) -> None:
        self.written: dict[int, bytes] = {}
        self.size = 0
        self._at = 0

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the start or from the end."""
        self._at = place + (self.size if whence == io.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        self.written[self._at] = bytes(data)
        self._at += len(self.written[self._at])
        self.size = max(self.size, self._at)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self.size = self._at if size is None else size
        return self.size


def create(wanted: dict[str, Column], cut: Cut, first_row: int, capture: str) -> tuple[Sketch, dict[str, int]]:
    """Lay out a shard, and return HDF5's own bytes and the place of each dataset in bytes.

    Contiguous datasets, allocated at once and never filled; no times are recorded, so the same rows give the same
    bytes. `capture` is `Manifest.capture`, by which a shard that no manifest lists is known.
    """
    sketch = Sketch()
    create_plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create_plist.set_layout(h5py.h5d.CONTIGUOUS)
    create_plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create_plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create_plist.set_obj_track_times(False)
    places: dict[str, int] = {}
    alignment = {"alignment_threshold": ALIGNED_FROM_BYTES, "alignment_interval": PAGE_BYTES}
    with undisturbed(), h5py.File(sketch, "w", libver=LIBRARY_VERSIONS, **alignment) as file:
        schema = max(column.schema for column in wanted.values())
        file.attrs.update(
            format=f"{FORMAT}: shard", schema=schema, capture=capture, first_row=first_row, chunk_rows=cut.chunk_rows
        )
        paths = [path for column in wanted.values() for path in (column.path, column.checksums)]
        for group in dict.fromkeys(["activations", "checksums", *(path.split("/")[1] for path in paths)]):
            if group != ROWS:
                file.create_group(group)

        def add(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
            kind = h5py.h5t.py_create(dtype, logical=True)
            space = h5py.h5s.create_simple(shape)
            made = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, create_plist))
            places[name] = made.id.get_offset()
            return made

        for column in wanted.values():
            add(column.path, column.dtype, (cut.n_rows, *column.shape)).attrs.update(column.attributes)
            if column.factors is not None:
                file.create_dataset(column.attributes["factors"], data=column.factors, track_times=False)
        for column in wanted.values():
            add(column.checksums, CHECKSUM, (cut.n_chunks,))
        file.create_group("special")
        add(SPECIAL, COUNT, (cut.n_chunks,))
        add(SPECIAL_CHECKSUM, CHECKSUM, (1,))
    return sketch, places


def inspect(path: Path, wanted: dict[str, Column], cut: Cut) -> dict[str, int]:
    """Return the place of each dataset of a shard in bytes; that of `SPECIAL` where there is one.

    Raises
    ------
    ValueError, OSError, KeyError, RuntimeError
        If it is no HDF5 file, or has other datasets, types, sizes or factors than it should.
    """
    places: dict[str, int] = {}
    size = path.stat().st_size
    with read_hdf5(path) as file:

        def find(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
            found = file[name]
            if not isinstance(found, h5py.Dataset) or (found.dtype, found.shape) != (dtype, shape):
                raise ValueError(f"dataset {name} is not {dtype} of shape {shape}")
            place = found.id.get_offset()
            if place is None or place + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) > size:
                raise ValueError(f"dataset {name} is not stored in one piece inside the file")
            places[name] = place

        if SPECIAL in file:
            find(SPECIAL, COUNT, (cut.n_chunks,))
            find(SPECIAL_CHECKSUM, CHECKSUM, (1,))
        for column in wanted.values():
            find(column.path, column.dtype, (cut.n_rows, *column.shape))
            find(column.checksums, CHECKSUM, (cut.n_chunks,))
            if column.factors is not None and not np.array_equal(file[column.attributes["factors"]], column.factors):
                raise ValueError(f"dataset {column.path} has other factors than the manifest")
    return places
