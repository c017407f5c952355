"""Compressed chunks: payloads of HDF5's Blosc filter, made and opened by us so that threads can work side by side.

Plain h5py reads them after ``import hdf5plugin``. What is stored is what has a checksum: a chunk that is damaged never
gets to the decompressor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from workbench.cache.errors import StoreError

Compression = Literal["lz4", "zstd"]

FILTER_ID = 32001
"""Of Blosc, as registered with the HDF Group."""

HEADER_BYTES = 16
"""Blosc's own; also the most by which a chunk grows that cannot be made smaller."""


@dataclass(frozen=True)
class Codec:
    """What one choice means.

    Attributes
    ----------
    name : str
        Blosc's name of the compressor.
    number : int
        The HDF5 filter's number of it.
    level : int
        1 to 9.
    shuffle : int
        Blosc's: 1 puts equal bytes of all values together, 2 equal bits.
    """

    name: str
    number: int
    level: int
    shuffle: int


CODECS: dict[str, Codec] = {"lz4": Codec("lz4", 1, 5, 2), "zstd": Codec("zstd", 5, 1, 1)}
"""Chosen by `benchmarks/store_types.py`; `docs/performance.md` has the measurements."""


def check_compression(compression: object) -> None:
    """Refuse what is neither None nor a known compression."""
    if compression is not None and compression not in CODECS:
        raise StoreError(f"compression={compression!r}: must be None or one of {', '.join(get_args(Compression))}")


def compress(values: NDArray[Any], compression: str) -> bytes:
    """Return the payload of a C-contiguous array; the same bytes for the same values, whatever the threads."""
    from numcodecs import blosc

    codec = CODECS[compression]
    return bytes(blosc.compress(values, codec.name.encode(), codec.level, codec.shuffle))


def check_header(header: bytes | bytearray | memoryview, n_bytes: int, n_bytes_opened: int) -> None:
    """Raise ValueError where a payload, whose first bytes are given, does not say that it has these sizes."""
    opened, whole = (int.from_bytes(header[at : at + 4], "little") for at in (4, 12))  # of Blosc's header
    if n_bytes < HEADER_BYTES or (opened, whole) != (n_bytes_opened, n_bytes):
        raise ValueError(f"{n_bytes} bytes that say they are {whole} and become {opened}, not {n_bytes_opened}")


def decompress(payload: memoryview, out: memoryview) -> None:
    """Open a payload into a buffer of as many bytes as it holds.

    Raises
    ------
    ValueError
        If it holds another number of bytes, or cannot be opened.
    """
    from numcodecs import blosc

    check_header(payload, len(payload), out.nbytes)
    try:
        blosc.decompress(payload, out)
    except RuntimeError as error:
        raise ValueError(f"cannot be opened ({error})") from error


def filter_options(dtype: np.dtype[Any], chunk_bytes: int, compression: str) -> tuple[int, ...]:
    """Return the options of HDF5's filter: its version, Blosc's, bytes of a value and a chunk, and what was chosen."""
    codec = CODECS[compression]
    return 2, 2, dtype.itemsize, chunk_bytes, codec.level, codec.shuffle, codec.number
