"""What a store holds: types, shapes, and how rows are cut into chunks and shards. `docs/store.md` is the full text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from workbench.cache.compression import Compression, check_compression
from workbench.cache.errors import StoreError

FORMAT = "workbench activation store"
SCHEMA = 2
"""Newest schema; raised when a store of today could be misread by the reader of yesterday.

A store carries the oldest that can hold it: see `schema_of`.
"""

ROWS = "rows"
"""Name of the dataset of row origins; no hook point may be called so."""

Dtype = Literal["float32", "float16", "bfloat16", "int8"]
Modality = Literal["text", "vision"]
STORED_AS: dict[str, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|i1"}

CHUNK_BYTES = 1 << 20
MAX_CHUNK_ROWS = 4096
SHARDS_WANTED = 32
MIN_SHARD_BYTES, MAX_SHARD_BYTES = 16 << 20, 1 << 30


@dataclass(frozen=True)
class ActivationSpec:
    """What one row of a hook point is.

    Attributes
    ----------
    axes : tuple of str
        One word per axis of a row, without the row axis: ``("d_model",)``, ``("head", "key")``.
    shape : tuple of int
        Size of each axis, each at least 1.
    dtype : "float32", "float16", "bfloat16" or "int8"
        Type of the values; bfloat16 is stored as uint16 bit patterns, int8 with a scale per row
        (`workbench.cache.int8`).
    unit : str
        Of the values; empty for none.
    compression : "lz4" or "zstd", optional
        How chunks are compressed, without loss; by default not at all.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Dtype
    unit: str = ""
    compression: Compression | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype):
            raise StoreError(f"dtype={self.dtype!r}: must be one of {', '.join(get_args(Dtype))}")
        if len(self.axes) != len(self.shape):
            raise StoreError(f"axes {self.axes} and shape {self.shape} differ in length: one word per axis of a row")
        if any(size < 1 for size in self.shape):
            raise StoreError(f"shape {self.shape}: each axis must have at least one entry")
        check_compression(self.compression)

    @property
    def stored(self) -> np.dtype[Any]:
        """Type on disk, little-endian."""
        return np.dtype(STORED_AS[self.dtype])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's values."""
        return self.stored.itemsize * math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        entry = {**asdict(self), "axes": list(self.axes), "shape": list(self.shape)}
        if self.compression is None:
            del entry["compression"]  # as before there was any
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ActivationSpec:
        """Read an entry of the manifest."""
        return cls(tuple(entry["axes"]), tuple(entry["shape"]), entry["dtype"], entry["unit"], entry.get("compression"))


def schema_of(activations: Mapping[str, ActivationSpec]) -> int:
    """Return the oldest schema that can hold these: 2 for int8 and compression, else 1, which older versions read."""
    return 2 if any(spec.dtype == "int8" or spec.compression for spec in activations.values()) else 1


def scale_column(hook_point: str) -> str:
    """Return the name of the column that holds the scales of an int8 hook point; no hook point's can have a slash."""
    return f"scales/{hook_point}"


def origin_dtype(modality: Modality) -> np.dtype[Any]:
    """Return the record type of ``/rows``: what each row came from."""
    return np.dtype(
        [
            ("document", "<i4"),
            ("sequence", "<i4"),
            ("position", "<i4"),
            ("token" if modality == "text" else "patch", "<i4"),
            ("special", "?"),
        ]
    )


def ordinary_rows(origins: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows [rows] are no special tokens, given their origins; all where there are no others."""
    special = origins["special"]
    return np.ones(len(origins), dtype=bool) if special.all() else ~special


def check_hook_point_names(names: Mapping[str, ActivationSpec]) -> None:
    """Refuse names that HDF5 would read as a path, and an empty list."""
    if not names:
        raise StoreError("no hook point given: a store needs at least one")
    for name in names:
        if not name or "/" in name or not is_text(name) or name in {".", ROWS}:
            raise StoreError(f"hook point name {name!r}: must be UTF-8, not empty, '.' or {ROWS!r}, nor contain '/'")


def is_text(text: str) -> bool:
    """Whether HDF5 can hold a text: without NUL, and without what stands for bytes that are no UTF-8."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def choose_chunk_rows(activations: Mapping[str, ActivationSpec]) -> int:
    """Return rows per chunk: a power of two that makes the mean chunk at most 1 MiB.

    One number for all hook points, so that their chunks hold the same rows and are mixed as one. A megabyte is read at
    the disk's sequential rate from a random place, and leaves enough chunks in a buffer to mix rows well.
    """
    mean_row_bytes = sum(spec.row_bytes for spec in activations.values()) / len(activations)
    rows = max(1, int(CHUNK_BYTES / mean_row_bytes))
    return min(MAX_CHUNK_ROWS, 1 << (rows.bit_length() - 1))


def choose_rows_per_shard(activations: Mapping[str, ActivationSpec], n_rows: int, chunk_rows: int) -> int:
    """Return rows per shard: whole chunks, some 32 shards, each 16 MiB to 1 GiB.

    A shard is what a killed writer loses; a commit costs four fsyncs, so shards must not be tiny either.
    """
    row_bytes = sum(spec.row_bytes for spec in activations.values())
    target = min(max(n_rows * row_bytes // SHARDS_WANTED, MIN_SHARD_BYTES), MAX_SHARD_BYTES)
    return max(1, target // (row_bytes * chunk_rows)) * chunk_rows
