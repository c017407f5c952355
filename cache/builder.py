"""Making a plan: documents and their sequences or images, in the order in which they are captured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cache.errors import StoreError
from workbench.cache.examples import Examples
from workbench.cache.schema import Modality, is_text


class ExamplesBuilder:
    """Collects documents and their sequences or images, in the order in which they are captured.

    Parameters
    ----------
    modality : "text" or "vision"
        Whether `sequence` or `image` is used.
    """

    def __init__(self, modality: Modality = "text") -> None:
        self.modality = modality
        self._documents: dict[str, dict[str, Any]] = {}
        self._sequences: list[tuple[int, int, str, tuple[int, int]]] = []
        self._lengths: list[int] = [0]
        self._ids: list[NDArray[np.int32]] = []
        self._special: list[NDArray[np.bool_]] = []
        self._offsets: list[NDArray[np.int32]] = []
        self._selected: list[NDArray[np.bool_]] = []

    @property
    def n_rows(self) -> int:
        """Rows selected so far."""
        return int(sum(np.count_nonzero(selected) for selected in self._selected))

    def document(self, name: str, fields: Mapping[str, Any] | None = None) -> int:
        """Add a document with its plain fields (JSON values) and return its index."""
        if name in self._documents:
            raise StoreError(f"document {name!r} was added twice: names must be unique")
        _check_text(name)
        try:
            self._documents[name] = json.loads(json.dumps(dict(fields or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise StoreError(f"document {name!r}: its fields must have a JSON form: {error}") from error
        return len(self._documents) - 1

    def sequence(
        self,
        document: int,
        tokens: ArrayLike,
        *,
        special: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        rows: ArrayLike | None = None,
        window: int = 0,
    ) -> int:
        """Add a window of a document and return its index.

        Parameters
        ----------
        document : int
            From `document`.
        tokens : integers [pos]
            Token ids, special tokens included, no padding.
        special : bool [pos], optional
            True at special tokens; by default none is.
        offsets : integers [pos, 2], optional
            Start and end character of each token in the document's text.
        rows : bool [pos], optional
            Which positions are rows; by default all.
        window : int
            Number of the window in its document.
        """
        self._expect("text", "sequence")
        return self._add(document, tokens, special, offsets, rows, window, "", (0, 0))

    def image(
        self,
        document: int,
        path: str,
        size: Sequence[int],
        patches: ArrayLike,
        *,
        special: ArrayLike | None = None,
        rows: ArrayLike | None = None,
    ) -> int:
        """Add an image and return its index.

        Parameters
        ----------
        document : int
            From `document`.
        path : str
            Of the image file.
        size : (int, int)
            Width and height in pixels.
        patches : integers [pos]
            Patch number in reading order; -1 for the class token, -2 and below for registers.
        special : bool [pos], optional
            By default True where `patches` is negative.
        rows : bool [pos], optional
            Which positions are rows; by default all.
        """
        self._expect("vision", "image")
        _check_text(str(path))
        ids = np.asarray(patches)
        special = ids < 0 if special is None else special
        return self._add(document, ids, special, None, rows, 0, str(path), (int(size[0]), int(size[1])))

    def build(self) -> Examples:
        """Return the plan."""
        documents, windows, paths, sizes = zip(*self._sequences, strict=True) if self._sequences else ((), (), (), ())
        return Examples(
            modality=self.modality,
            documents=tuple(self._documents),
            document_fields=tuple(self._documents.values()),
            sequence_document=np.array(documents, np.int32),
            sequence_window=np.array(windows, np.int32),
            bounds=np.cumsum(self._lengths, dtype=np.int64),
            ids=_joined(self._ids, np.empty(0, np.int32)),
            special=_joined(self._special, np.empty(0, np.bool_)),
            offsets=_joined(self._offsets, np.empty((0, 2), np.int32)),
            selected=_joined(self._selected, np.empty(0, np.bool_)),
            paths=tuple(paths) if self.modality == "vision" else (),
            sizes=np.array(sizes, np.int32).reshape(len(sizes), 2),
        )

    def _expect(self, modality: Modality, method: str) -> None:
        if self.modality != modality:
            raise StoreError(f"`{method}` is for {modality}; this plan is of {self.modality}")

    def _add(
        self,
        document: int,
        ids: ArrayLike,
        special: ArrayLike | None,
        offsets: ArrayLike | None,
        rows: ArrayLike | None,
        window: int,
        path: str,
        size: tuple[int, int],
    ) -> int:
        if not 0 <= document < len(self._documents):
            raise StoreError(f"document={document}: there are {len(self._documents)} documents, counted from 0")
        tokens = _int32(ids)
        length = tokens.shape[0]
        columns = {
            "ids": (tokens, (length,)),
            "special": (np.asarray(np.zeros(length) if special is None else special, np.bool_), (length,)),
            "offsets": (_int32(np.full((length, 2), -1) if offsets is None else offsets), (length, 2)),
            "rows": (np.asarray(np.ones(length) if rows is None else rows, np.bool_), (length,)),
        }
        for name, (array, shape) in columns.items():
            if array.shape != shape:
                raise StoreError(f"sequence {len(self._sequences)}: {name} has shape {array.shape}, expected {shape}")
        lists: list[list[NDArray[Any]]] = [self._ids, self._special, self._offsets, self._selected]
        for collected, (array, _) in zip(lists, columns.values(), strict=True):
            collected.append(array)
        self._sequences.append((document, window, path, size))
        self._lengths.append(length)
        return len(self._sequences) - 1


def _joined(arrays: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """Join arrays of one type; `empty` has that, so that nothing is widened on the way: a plan can fill the memory."""
    return np.concatenate([empty, *arrays])


def _check_text(text: str) -> None:
    """Refuse what HDF5 cannot hold: file names that are not UTF-8, and NUL."""
    if not is_text(text):
        raise StoreError(f"{text!r} cannot be stored: names and paths must be UTF-8 without NUL; rename the file")


def _int32(values: ArrayLike) -> NDArray[np.int32]:
    wide = np.atleast_1d(np.asarray(values))
    try:
        with np.errstate(invalid="ignore"):  # NaN, which is refused below
            narrow = wide.astype(np.int32)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"ids and offsets must be whole numbers of 32 bits; got {wide.dtype} ({error})") from error
    if not np.array_equal(narrow, wide):
        raise StoreError(f"ids and offsets must be whole numbers of 32 bits; got {wide[narrow != wide][0]}")
    return narrow
