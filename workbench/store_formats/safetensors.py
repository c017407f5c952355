"""safetensors: files of bounded size, with an index as in Hugging Face's sharded checkpoints.

A hook point's rows lie in several tensors, ``HOOK_POINT/00000``, ``HOOK_POINT/00001``, …, one to a file, and beside
each the origins of the same rows, ``rows.document/00000`` and so on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from workbench.cache.files import file_digest, raw
from workbench.store_formats.export_folder import FileRecord, write_json
from workbench.store_formats.export_format import ExportFormat, Extent
from workbench.store_formats.export_rows import Taken

INDEX = "activations.safetensors.index.json"
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "bool": "BOOL"}


class TensorFile:
    """A safetensors file whose tensors' shapes are known before their values.

    Parameters
    ----------
    path : Path
        The file; written anew.
    tensors : mapping of str to (str, int, tuple of int)
        Name to type (of `CODES`), bytes of one row, and shape.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, int, tuple[int, ...]]]) -> None:
        self.path = path
        self._row_bytes = {name: row_bytes for name, (_, row_bytes, _) in tensors.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        place = 0
        # the widest type first, so that each tensor starts at a multiple of its own
        for name in sorted(tensors, key=lambda name: -WIDTHS[tensors[name][0]]):
            dtype, row_bytes, shape = tensors[name]
            end = place + row_bytes * shape[0]
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [place, end]}
            place = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self._next = {name: start + header[name]["data_offsets"][0] for name in tensors}
        self._file: io.FileIO = path.open("w+b", buffering=0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(start + place)

    def append(self, name: str, array: NDArray[Any]) -> None:
        """Write the next rows of a tensor."""
        data = raw(np.ascontiguousarray(array))
        self._file.seek(self._next[name])
        self._next[name] += len(data)
        while len(data):
            data = data[self._file.write(data) :]

    def commit(self) -> FileRecord:
        """Wait until the file is on the disk; returns its size and hash."""
        os.fsync(self._file)
        self._file.close()
        return FileRecord(self.path.stat().st_size, file_digest(self.path))

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._file.close()


WIDTHS = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "bool": 1}


class SafetensorsExport(ExportFormat):
    """``activations-00001-of-00003.safetensors`` and so on, and their index."""

    name: ClassVar[str] = "safetensors"

    def __init__(self, folder: Path, taken: Sequence[Taken], extent: Extent) -> None:
        super().__init__(folder, taken, extent)
        self._open: TensorFile | None = None
        self._number = 0

    def begin(self, first_row: int) -> None:
        """Begin the file that starts with a row, anew if some of it is there."""
        self._number = first_row // self.piece_rows
        n_rows = min(self.piece_rows, self.extent.n_rows - first_row)
        self._open = TensorFile(self.folder / self._file(self._number), self._tensors(self._number, n_rows))

    def append(self, values: Mapping[str, NDArray[Any]], origins: NDArray[Any]) -> None:
        """Write the next rows: arrays [rows, ...] by hook point, and records [rows]."""
        assert self._open is not None
        for name, array in values.items():
            self._open.append(tensor_name(name, self._number), array)
        for field in self._fields():
            self._open.append(tensor_name(f"rows.{field}", self._number), origins[field])

    def commit(self) -> dict[str, FileRecord]:
        """Make the file durable."""
        assert self._open is not None
        return {self._open.path.name: self._open.commit()}

    def finish(self, files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        """Write the index."""
        weight_map, total = {}, 0
        for number in range(self.n_pieces):
            n_rows = min(self.piece_rows, self.extent.n_rows - number * self.piece_rows)
            for name, (_, row_bytes, _) in self._tensors(number, n_rows).items():
                weight_map[name] = self._file(number)
                total += row_bytes * n_rows
        path = self.folder / INDEX
        write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})
        return {INDEX: FileRecord(path.stat().st_size, file_digest(path))}

    def describe(self, point: Taken) -> dict[str, Any]:
        """Return where a hook point's values are and how they are written."""
        tensors = [tensor_name(point.name, number) for number in range(self.n_pieces)]
        return {"tensors": tensors, "dtype": point.dtype, "written_as": CODES[point.dtype]}

    def close(self) -> None:
        """Let go of the open file; safe to repeat."""
        if self._open is not None:
            self._open.close()

    def _file(self, number: int) -> str:
        return f"activations-{number + 1:05d}-of-{self.n_pieces:05d}.safetensors"

    def _fields(self) -> dict[str, np.dtype[Any]]:
        return {name: self.extent.origins[name] for name in self.extent.origins.names or ()}

    def _tensors(self, number: int, n_rows: int) -> dict[str, tuple[str, int, tuple[int, ...]]]:
        tensors = {
            tensor_name(point.name, number): (str(point.dtype), point.row_bytes, (n_rows, *point.spec.shape))
            for point in self.taken
        }
        for field, dtype in self._fields().items():
            tensors[tensor_name(f"rows.{field}", number)] = (dtype.name, dtype.itemsize, (n_rows,))
        return tensors


def tensor_name(name: str, number: int) -> str:
    """Name the tensor of a piece: names of hook points have no ``/``."""
    return f"{name}/{number:05d}"
