"""Reading tensors that were saved by ``torch.save``; nothing but tensors is ever unpickled."""

from __future__ import annotations

import pickle  # noqa: TID251 - for the name of its error; nothing is loaded with it
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from workbench.errors import UserError
from workbench.store_formats.arrays import ForeignArray

MAPPED_BYTES = 64 << 20  # of a mapped file are read before it is mapped anew: what was read counts as memory


class TensorArchive:
    """A ``.pt`` file, mapped into memory.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    UserError
        If it holds anything but tensors and lists and dicts of them, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict[str, Any] | None = None
        self._n_read = 0

    def tensors(self) -> dict[str, Any]:
        """Return the tensors by name; their values are read when they are used."""
        import torch

        if self._tensors is None:
            try:
                content = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)  # noqa: TID251
            except pickle.UnpicklingError as error:
                raise UserError(
                    f"{self.path} holds Python objects other than tensors, which are never loaded: save a dict of "
                    "tensors, torch.save({hook_point: tensor}, path)"
                ) from error
            except (RuntimeError, OSError, ValueError, EOFError) as error:
                old = "_use_new_zipfile" in str(error)
                why = "it is of the format before torch 1.6: load and save it again" if old else str(error)
                raise UserError(f"{self.path} cannot be read as .pt: {why.splitlines()[0]}") from error
            self._tensors = dict(named_tensors(content, "", self.path))
        return self._tensors

    def read(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Return entries of a tensor's first axis as an array of its own."""
        from workbench.cache import to_array

        tensor = self.tensors()[name]
        part = tensor[first:end].clone()
        self._n_read += part.nbytes
        if end == len(tensor) or self._n_read > MAPPED_BYTES:
            self.forget()
        return to_array(part)

    def forget(self) -> None:
        """Map the file no longer, until it is used again."""
        self._tensors, self._n_read = None, 0


def named_tensors(content: Any, name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a loaded file; names inside names are joined by dots."""
    import torch

    if isinstance(content, torch.Tensor):
        if content.layout is not torch.strided or content.is_quantized or content.is_complex():
            raise UserError(f"{path}: tensor {name!r} is {content.dtype}, {content.layout}: plain tensors are wanted")
        yield name or path.stem, content
    elif isinstance(content, Mapping | list | tuple):
        entries = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in entries:
            yield from named_tensors(value, f"{name}.{key}" if name else str(key), path)


def open_torch(path: Path) -> list[ForeignArray]:
    """Return the tensors of a file, in its order; numbers and texts beside them are left alone.

    Raises
    ------
    UserError
        If there is none, or the file cannot be read.
    """
    archive = TensorArchive(path)
    found = [
        ForeignArray(
            path,
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            partial(archive.read, name),
        )
        for name, tensor in archive.tensors().items()
        if tensor.ndim
    ]
    archive.forget()
    if not found:
        raise UserError(f"{path} holds no tensor with rows")
    return found
