"""Where the bytes of a shard are: HDF5 lays a file out once, and says where; rows go past it, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from workbench.cache.compression import FILTER_ID, HEADER_BYTES, Compression
from workbench.cache.draft import Draft
from workbench.cache.files import read_hdf5, undisturbed
from workbench.cache.manifest import Manifest
from workbench.cache.schema import FORMAT, ROWS, origin_dtype, scale_column

FOLDER = "shards"
CHECKSUM = np.dtype("<u8")
COUNT = np.dtype("<u4")
SPECIAL, SPECIAL_CHECKSUM = "/special/counts", "/special/checksum"
"""Rows of special tokens in each chunk; shards of earlier versions lack them, and readers count for themselves."""

Chunks = dict[str, NDArray[np.int64]]
"""By dataset that is compressed: place and size in bytes of each chunk, [chunks, 2]."""

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
    factors : float32 array, optional
        Of an int8 hook point; kept beside, for whoever reads it without us.
    compression : str, optional
        How its chunks are compressed.
    """

    name: str
    path: str
    checksums: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    attributes: dict[str, str]
    factors: NDArray[np.float32] | None = None
    compression: Compression | None = None

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def schema(self) -> int:
        """The oldest that has such a column."""
        return 1 if self.factors is None and self.compression is None else 2


def columns(manifest: Manifest) -> dict[str, Column]:
    """Return the columns of a store: hook points in their order, each int8 one's scales after it, then the origins."""
    made: dict[str, Column] = {}
    factors = manifest.factors()
    for name, spec in manifest.activations.items():
        attributes = {"dtype": spec.dtype, "axes": " ".join(("row", *spec.axes)), "unit": spec.unit}
        path = f"/activations/{name}"
        made[name] = Column(
            name,
            path,
            f"/checksums/{name}",
            spec.stored,
            spec.shape,
            attributes,
            factors=factors.get(name),
            compression=spec.compression,
        )
        if spec.dtype == "int8":
            scales = scale_column(name)
            attributes |= {"rescale": RESCALE, "scales": f"/{scales}", "factors": f"/factors/{name}"}
            made[scales] = Column(scales, f"/{scales}", f"/scale_checksums/{name}", SCALE, (), {"of": path})
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

    @property
    def padded_rows(self) -> int:
        """Rows of each chunk of a compressed dataset: HDF5 has no shorter last one, so that is filled up with zeros."""
        return min(self.n_rows, self.chunk_rows)

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


def create(wanted: dict[str, Column], cut: Cut, first_row: int, capture: str) -> Draft:
    """Lay out a shard.

    Datasets lie in one piece, allocated at once and never filled, but for compressed ones, whose chunks find their
    places one by one (`Draft.place`). No times are recorded, so the same rows give the same bytes. `capture` is
    `Manifest.capture`, by which a shard that no manifest lists is known.
    """
    with undisturbed():
        draft = Draft(alignment_threshold=ALIGNED_FROM_BYTES, alignment_interval=PAGE_BYTES)
        schema = max(column.schema for column in wanted.values())
        draft.file.attrs.update(
            format=f"{FORMAT}: shard", schema=schema, capture=capture, first_row=first_row, chunk_rows=cut.chunk_rows
        )
        paths = [path for column in wanted.values() for path in (column.path, column.checksums)]
        for group in dict.fromkeys(["activations", "checksums", *(path.split("/")[1] for path in paths)]):
            if group != ROWS:
                draft.file.create_group(group)
        for column in wanted.values():
            shape, chunk = (cut.n_rows, *column.shape), (cut.padded_rows, *column.shape)
            if column.compression is None:
                made = draft.add(column.path, column.dtype, shape)
            else:
                made = draft.add_compressed(column.path, column.dtype, shape, chunk, column.compression)
            made.attrs.update(column.attributes)
            if column.factors is not None:
                draft.file.create_dataset(column.attributes["factors"], data=column.factors, track_times=False)
        for column in wanted.values():
            draft.add(column.checksums, CHECKSUM, (cut.n_chunks,))
        draft.file.create_group("special")
        draft.add(SPECIAL, COUNT, (cut.n_chunks,))
        draft.add(SPECIAL_CHECKSUM, CHECKSUM, (1,))
    return draft


def inspect(path: Path, wanted: dict[str, Column], cut: Cut) -> tuple[dict[str, int], Chunks]:
    """Return the place of each dataset of a shard in bytes, that of `SPECIAL` where there is one, and of its chunks.

    Raises
    ------
    ValueError, OSError, KeyError, RuntimeError
        If it is no HDF5 file, or has other datasets, types, sizes or factors than it should.
    """
    places: dict[str, int] = {}
    chunks: Chunks = {}
    size = path.stat().st_size
    with read_hdf5(path) as file:

        def find(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], compressed: Column | None = None) -> None:
            found = h5py.h5d.open(file.id, name.encode())  # `file[name]` would take most of a check of small shards
            if (found.dtype, found.shape) != (dtype, shape):
                raise ValueError(f"dataset {name} is not {dtype} of shape {shape}")
            if compressed is not None:
                chunks[name] = _chunks(found, compressed, cut, size)
                return
            place = found.get_offset()
            if place is None or place + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) > size:
                raise ValueError(f"dataset {name} is not stored in one piece inside the file")
            places[name] = place

        if SPECIAL in file:
            find(SPECIAL, COUNT, (cut.n_chunks,))
            find(SPECIAL_CHECKSUM, CHECKSUM, (1,))
        for column in wanted.values():
            find(column.path, column.dtype, (cut.n_rows, *column.shape), column if column.compression else None)
            find(column.checksums, CHECKSUM, (cut.n_chunks,))
            if column.factors is not None and not np.array_equal(file[column.attributes["factors"]], column.factors):
                raise ValueError(f"dataset {column.path} has other factors than the manifest")
    return places, chunks


def _chunks(found: Any, column: Column, cut: Cut, size: int) -> NDArray[np.int64]:
    """Return place and size of each chunk of a compressed dataset; raises ValueError if one cannot be."""
    filters = found.get_create_plist()
    cut_so = filters.get_layout() == h5py.h5d.CHUNKED and filters.get_chunk() == (cut.padded_rows, *column.shape)
    if not cut_so or filters.get_nfilters() != 1:
        raise ValueError(f"dataset {column.path} is not in compressed chunks of {cut.padded_rows} rows")
    if filters.get_filter(0)[0] != FILTER_ID:
        raise ValueError(f"dataset {column.path} is compressed with filter {filters.get_filter(0)[0]}, not {FILTER_ID}")
    chunks = np.zeros((cut.n_chunks, 2), np.int64)

    def note(info: Any) -> None:
        if not info.filter_mask:
            chunks[info.chunk_offset[0] // cut.padded_rows] = info.byte_offset, info.size

    found.chunk_iter(note)
    places, sizes = chunks.T
    wrong = (sizes < 1) | (sizes > cut.padded_rows * column.row_bytes + HEADER_BYTES) | (places + sizes > size)
    if wrong.any():
        raise ValueError(f"dataset {column.path} has no chunk {int(np.flatnonzero(wrong)[0])} inside the file")
    return chunks
