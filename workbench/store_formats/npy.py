"""``.npy``: an array per hook point and one of origins."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache.files import BLOCK_BYTES, raw
from workbench.errors import UserError
from workbench.store_formats.export_folder import FileRecord
from workbench.store_formats.export_format import ExportFormat, Extent
from workbench.store_formats.export_rows import Taken

ROWS_FILE = "rows.npy"
PIECE_BYTES = 256 << 20  # made durable at a time


class GrowingArray:
    """A ``.npy`` file of a known number of rows that is written from its beginning to its end.

    Parameters
    ----------
    path : Path
        The file.
    dtype : numpy dtype
        Of the values.
    shape : tuple of int
        Of the whole array.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path = path
        self._row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        header = io.BytesIO()
        layout = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, layout)
        self._header = header.getvalue()
        self._digest = xxhash.xxh3_128()
        self._file: io.FileIO | None = None

    def go_to(self, row: int) -> None:
        """Open the file to go on with a row; what is there of later rows is dropped."""
        self.close()
        there = len(self._header) + row * self._row_bytes
        if row == 0:
            self.path.write_bytes(self._header)
        self._file = self.path.open("r+b", buffering=0)
        self._digest.reset()
        block = bytearray(BLOCK_BYTES)
        while there and (n := self._file.readinto(memoryview(block)[: min(there, BLOCK_BYTES)])):
            self._digest.update(memoryview(block)[:n])
            there -= n
        if there:
            raise UserError(f"{self.path} is {there} bytes shorter than it was left: remove {self.path.parent}")
        self._file.truncate()

    def append(self, array: NDArray[Any]) -> None:
        """Write the next rows."""
        assert self._file is not None
        data = raw(np.ascontiguousarray(array))
        self._digest.update(data)
        while len(data):
            data = data[self._file.write(data) :]

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        assert self._file is not None
        os.fsync(self._file)

    def record(self) -> FileRecord:
        """Return size and hash of what was written."""
        return FileRecord(self.path.stat().st_size, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file; safe to repeat."""
        if self._file is not None:
            self._file.close()
            self._file = None


class NpyExport(ExportFormat):
    """``HOOK_POINT.npy`` [rows, ...] for each hook point, bfloat16 as uint16 bit patterns, and ``rows.npy``."""

    name: ClassVar[str] = "npy"

    def __init__(self, folder: Path, taken: Sequence[Taken], extent: Extent) -> None:
        super().__init__(folder, taken, Extent(extent.n_rows, extent.origins, extent.window_rows, PIECE_BYTES))
        n = extent.n_rows
        self._arrays = {
            point.name: GrowingArray(folder / f"{point.name}.npy", point.stored, (n, *point.spec.shape))
            for point in taken
        }
        self._origins = GrowingArray(folder / ROWS_FILE, extent.origins, (n,))
        self._all = [*self._arrays.values(), self._origins]
        self._is_open = False

    def begin(self, first_row: int) -> None:
        """Begin the piece that starts with a row, anew if some of it is there."""
        if not self._is_open:
            for array in self._all:
                array.go_to(first_row)
            self._is_open = True

    def append(self, values: Mapping[str, NDArray[Any]], origins: NDArray[Any]) -> None:
        """Write the next rows: arrays [rows, ...] by hook point, and records [rows]."""
        for name, array in values.items():
            self._arrays[name].append(array)
        self._origins.append(origins)

    def commit(self) -> dict[str, FileRecord]:
        """Make the piece durable; a file is finished with the last one only."""
        for array in self._all:
            array.sync()
        return {}

    def finish(self, files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
        """Return what the files are."""
        self.begin(self.extent.n_rows)
        return {array.path.name: array.record() for array in self._all}

    def describe(self, point: Taken) -> dict[str, Any]:
        """Return where a hook point's values are and how they are written."""
        return {"file": f"{point.name}.npy", "dtype": point.dtype, "written_as": str(point.stored)}

    def close(self) -> None:
        """Let go of open files; safe to repeat."""
        for array in self._all:
            array.close()
        self._is_open = False
