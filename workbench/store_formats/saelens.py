"""SAELens's folders of cached activations: a Hugging Face dataset whose rows are windows of one size.

A column per hook point, ``Array2D`` [window, width], and ``token_ids`` [window]; Arrow streams as `datasets` writes
them. They are written without that library, so that memory stays flat and every bit stays what it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.cache.files import file_digest
from workbench.errors import UserError
from workbench.store_formats.export_folder import FileRecord, write_json
from workbench.store_formats.export_format import ExportFormat, Extent
from workbench.store_formats.export_rows import Taken

TOKEN_IDS = "token_ids"
INFO, STATE = "dataset_info.json", "state.json"
ARROW = {"float32": pa.float32(), "float16": pa.float16()}
EXTENSION = "datasets.features.features.Array2DExtensionType"


class SaelensExport(ExportFormat):
    """``data-00000-of-00003.arrow`` and so on, ``dataset_info.json`` and ``state.json``."""

    name: ClassVar[str] = "saelens"
    has_windows: ClassVar[bool] = True

    def __init__(self, folder: Path, taken: Sequence[Taken], extent: Extent) -> None:
        super().__init__(folder, taken, extent)
        self._features = features(taken, extent)
        self._schema = schema(taken, extent, self._features)
        self._path = folder
        self._file: Any = None
        self._stream: Any = None

    @classmethod
    def fit(cls, point: Taken, asked: str | None) -> Taken:
        """Return how the format takes a hook point: it knows no bfloat16, of which float32 keeps every value."""
        if asked is not None and asked not in ARROW:
            raise UserError(f"dtype {asked!r}: SAELens's folders hold {' and '.join(ARROW)}")
        if "key" in point.spec.axes:
            raise UserError(
                f"{point.name} is one number per key, NaN where a sequence has none: SAELens cannot train on it; name "
                "other hook points with --hook"
            )
        return point if point.dtype in ARROW else replace(point, dtype="float32")

    @classmethod
    def remarks(
        cls, store: Store, taken: Sequence[Taken], *, n_wanted: int, n_rows: int, window_rows: int, pack: bool
    ) -> list[str]:
        """Return a sentence for each thing that the format does not express, or not in the store's own way."""
        said = super().remarks(store, taken, n_wanted=n_wanted, n_rows=n_rows, window_rows=window_rows, pack=pack)
        for point in taken:
            if len(point.spec.shape) != 1:
                shape = " × ".join(map(str, point.spec.shape)) or "one number"
                said.append(f"{point.name}: the {shape} of a row are laid side by side, {width(point)} numbers.")
        if n_left_out := n_wanted - n_rows:
            share = f"{n_left_out:,} of {n_wanted:,} rows ({100 * n_left_out / n_wanted:.1f} %)"
            cure = "" if pack else "; a smaller context size leaves out fewer, and pack only those of the last window"
            said.append(f"{share} are left out, because they fill no window of {window_rows} rows{cure}.")
        if pack:
            said.append("A window may hold rows of several sequences, one after the other.")
        if store.examples.modality != "text":
            said.append("Patches of images have no token ids: there is no column token_ids.")
        return said

    def begin(self, first_row: int) -> None:
        """Begin the file that starts with a row, anew if some of it is there."""
        self._path = self.folder / self._data_file(first_row // self.piece_rows)
        self._file = self._path.open("wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)

    def append(self, values: Mapping[str, NDArray[Any]], origins: NDArray[Any]) -> None:
        """Write the next windows: arrays [rows, ...] by hook point, and records [rows]."""
        window_rows = self.extent.window_rows
        columns = [windows(values[point.name].reshape(len(origins), -1), window_rows) for point in self.taken]
        if self._has_tokens():
            tokens = numbers(origins["token"], pa.int32())
            columns.append(pa.FixedSizeListArray.from_arrays(tokens, window_rows))
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema))

    def commit(self) -> dict[str, FileRecord]:
        """Make the file durable."""
        self._stream.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {self._path.name: FileRecord(self._path.stat().st_size, file_digest(self._path))}

    def finish(self, files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        """Write what `datasets` reads first."""
        info = {"citation": "", "description": "", "features": self._features, "homepage": "", "license": ""}
        names = [self._data_file(number) for number in range(self.n_pieces)]
        content = json.dumps([self._features, [files[name].xxh3_128 for name in names]]).encode()
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": xxhash.xxh3_64_hexdigest(content),  # names what `datasets` caches
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_json(self.folder / INFO, info)
        write_json(self.folder / STATE, state)
        paths = (self.folder / INFO, self.folder / STATE)
        return {path.name: FileRecord(path.stat().st_size, file_digest(path)) for path in paths}

    def describe(self, point: Taken) -> dict[str, Any]:
        """Return where a hook point's values are and how they are written."""
        return {"column": point.name, "dtype": point.dtype, "written_as": str(ARROW[point.dtype])}

    def close(self) -> None:
        """Let go of the open file; safe to repeat."""
        if self._file is not None:
            self._file.close()

    def _data_file(self, number: int) -> str:
        return f"data-{number:05d}-of-{self.n_pieces:05d}.arrow"

    def _has_tokens(self) -> bool:
        return "token" in (self.extent.origins.names or ())


def width(point: Taken) -> int:
    """Return how many numbers a row has, its axes laid side by side."""
    return int(np.prod(point.spec.shape, dtype=np.int64))


def features(taken: Sequence[Taken], extent: Extent) -> dict[str, Any]:
    """Return the columns as `datasets` describes them."""
    described: dict[str, Any] = {
        point.name: {"shape": [extent.window_rows, width(point)], "dtype": point.dtype, "_type": "Array2D"}
        for point in taken
    }
    if "token" in (extent.origins.names or ()):
        one = {"dtype": "int32", "_type": "Value"}
        described[TOKEN_IDS] = {"feature": one, "length": extent.window_rows, "_type": "Sequence"}
    return described


def schema(taken: Sequence[Taken], extent: Extent, described: Mapping[str, Any]) -> pa.Schema:
    """Return the Arrow schema that `datasets` gives such columns."""
    fields = []
    for point in taken:
        arguments = json.dumps([described[point.name]["shape"], point.dtype])
        extension = {"ARROW:extension:name": EXTENSION, "ARROW:extension:metadata": arguments}
        fields.append(pa.field(point.name, pa.list_(pa.list_(ARROW[point.dtype])), metadata=extension))
    if TOKEN_IDS in described:
        fields.append(pa.field(TOKEN_IDS, pa.list_(pa.int32(), extent.window_rows)))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def windows(values: NDArray[Any], window_rows: int) -> pa.Array:
    """Return rows [rows, width] as lists of lists, one for each window, without copying a number."""
    n_rows, n_wide = values.shape
    rows = numbers(np.arange(0, n_rows * n_wide + 1, n_wide, dtype=np.int32), pa.int32())
    bounds = numbers(np.arange(0, n_rows + 1, window_rows, dtype=np.int32), pa.int32())
    entries = numbers(values.reshape(-1), ARROW[values.dtype.name])
    return pa.ListArray.from_arrays(bounds, pa.ListArray.from_arrays(rows, entries))


def numbers(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return numbers as an Arrow array that shares their memory; `pa.array` would import pandas to find that out."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
