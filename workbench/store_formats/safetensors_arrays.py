"""Reading safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UserError
from workbench.store_formats.arrays import ForeignArray
from workbench.store_formats.npy_arrays import fill, native

# safetensors' codes of types: our word, and NumPy's for the bytes
TYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "|i1"),
    "U64": ("uint64", "<u8"),
    "U32": ("uint32", "<u4"),
    "U16": ("uint16", "<u2"),
    "U8": ("uint8", "|u1"),
    "BOOL": ("bool", "|b1"),
}
LARGEST_HEADER = 100 << 20


def open_safetensors(path: Path) -> list[ForeignArray]:
    """Return the tensors of a file, in the order of their names in it.

    Raises
    ------
    UserError
        If the file is damaged or cut off.
    """
    try:
        header, start = read_header(path)
        size = path.stat().st_size - start
        return [described(path, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header, and the place where values start."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= n_bytes <= min(LARGEST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header is {n_bytes} bytes long, the file {path.stat().st_size}")
        header = json.loads(file.read(n_bytes))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + n_bytes


def described(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> ForeignArray:
    """Return a tensor that a header describes; its place is held against its shape and the file's size."""
    first, end = (int(place) for place in entry["data_offsets"])
    shape = tuple(int(n) for n in entry["shape"])
    word, stored = TYPES.get(entry["dtype"], (str(entry["dtype"]), ""))
    if stored and end - first != np.dtype(stored).itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"tensor {name!r}: {end - first} bytes are no {word} of shape {list(shape)}")
    if not 0 <= first <= end <= size:
        raise ValueError(f"tensor {name!r} ends at byte {start + end}, the file at {start + size}")

    def read(low: int, high: int) -> NDArray[Any]:
        values = np.empty((high - low, *shape[1:]), stored)
        with path.open("rb", buffering=0) as file:
            fill(path, file, start + first + low * values[:1].nbytes, values.reshape(-1).view(np.uint8).data)
        return native(values)

    return ForeignArray(path, name, shape, word, read)
