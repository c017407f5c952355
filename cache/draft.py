"""The HDF5 structure of a file that is being written: HDF5 says where everything belongs, and we write it there.

HDF5 itself never writes to the disk: it is not crash-safe, and a full disk can end its process.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from workbench.cache.compression import FILTER_ID, Compression, filter_options
from workbench.cache.files import LIBRARY_VERSIONS, raw, undisturbed


class Sketch(io.RawIOBase):
    """A file of which only what HDF5 writes of itself is kept: the values' places stay empty, and cost no memory.

    Attributes
    ----------
    written : list of (int, bytes)
        Place and bytes of what was written, in order: a later write over the same place counts.
    size : int
        Of the file, in bytes.
    """

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
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
        self.written.append((self._at, bytes(data)))
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """Give back what was written; zero where nothing was."""
        start, end = self._at, self._at + len(buffer)
        image = bytearray(len(buffer))
        for place, data in self.written:
            first, until = max(place, start), min(place + len(data), end)
            if first < until:
                image[first - start : until - start] = data[first - place : until - place]
        buffer[:] = image
        self._at = end
        return len(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        self.size = self._at if size is None else size
        return self.size


class Draft:
    """Datasets of a file as HDF5 lays them out, in memory, without their values.

    Attributes
    ----------
    file : h5py.File
        Open until `close`.
    places : dict of str to int
        Place in bytes of each dataset that lies in one piece.
    sketch : Sketch
        HDF5's own bytes; complete when closed.
    """

    def __init__(self, **options: Any) -> None:
        self.sketch = Sketch()
        self.places: dict[str, int] = {}
        self.file: Any = h5py.File(self.sketch, "w", libver=LIBRARY_VERSIONS, **options)

    def add(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """Add a dataset that lies in one piece, and return it."""
        properties = _properties()
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        made = self._create(name, dtype, shape, properties)
        place = made.id.get_offset()
        if place is not None:  # a dataset without values has none
            self.places[name] = place
        return made

    def add_compressed(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], chunk: tuple[int, ...], compression: Compression
    ) -> Any:
        """Add a dataset of compressed chunks, and return it."""
        import hdf5plugin  # noqa: F401  # tells HDF5 of the filter: its name goes into the file

        properties = _properties()
        properties.set_chunk(chunk)
        options = filter_options(dtype, dtype.itemsize * int(np.prod(chunk, dtype=np.int64)), compression)
        properties.set_filter(FILTER_ID, h5py.h5z.FLAG_MANDATORY, options)
        return self._create(name, dtype, shape, properties)

    def place(self, name: str, first_row: int, payload: bytes) -> int:
        """Return the place of a compressed chunk, given its first row in the shard, after HDF5 has made room for it."""
        with undisturbed():
            dataset = self.file[name].id
            at = (first_row, *(0 for _ in dataset.shape[1:]))
            dataset.write_direct_chunk(at, payload)
        written = self.sketch.written  # asking HDF5 where it put a chunk takes longer, the more chunks there are
        newest = next(entry for entry in reversed(range(len(written))) if written[entry][1] == payload)
        return written.pop(newest)[0]

    def close(self) -> None:
        """Let HDF5 write what it has left to write; safe to repeat."""
        with undisturbed():
            self.file.close()

    def write(self, path: Path, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the whole file from its start to its end: what HDF5 has to say, and all that lies in one piece."""
        self.close()
        at = 0
        with path.open("wb") as file:
            for place, name in sorted((place, name) for name, place in self.places.items()):
                file.write(self._said(at, place))
                at = place + file.write(raw(np.ascontiguousarray(values[name])))
            file.write(self._said(at, self.sketch.size))

    def _said(self, start: int, end: int) -> bytearray:
        """Return HDF5's own bytes in a stretch of the file."""
        said = bytearray(end - start)
        self.sketch.seek(start)
        self.sketch.readinto(said)
        return said

    def _create(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], properties: Any) -> Any:
        kind = h5py.h5t.py_create(dtype, logical=True)
        space = h5py.h5s.create_simple(shape)
        return h5py.Dataset(h5py.h5d.create(self.file.id, name.encode(), kind, space, properties))


def _properties() -> Any:
    """Return what all datasets have in common: no fill values, no times."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    return properties
