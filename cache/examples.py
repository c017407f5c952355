"""The plan of a store, known before the first forward pass: every sequence or image, and which positions are rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache.draft import Draft
from workbench.cache.errors import Damage, DamageError
from workbench.cache.files import raw, read_hdf5, replace_file, undisturbed
from workbench.cache.schema import FORMAT, Modality, origin_dtype

FILE = "examples.h5"
KIND = f"{FORMAT}: examples"
FILE_SCHEMA = 1
"""In which the file is written; its form has not changed since."""


@dataclass(frozen=True)
class RowContext:
    """What surrounds a row in its sequence or image.

    Attributes
    ----------
    document : str
        Name.
    sequence : int
        Index.
    at : int
        Place of the row in the arrays below.
    ids : int32 [n]
        Token ids, or patch numbers.
    special : bool [n]
        Special tokens.
    offsets : int32 [n, 2]
        Start and end character in the document's text; -1, -1 where there is none.
    path : str
        Of the image; empty for text.
    size : tuple of (int, int)
        Width and height of the image in pixels; 0, 0 for text.
    """

    document: str
    sequence: int
    at: int
    ids: NDArray[np.int32]
    special: NDArray[np.bool_]
    offsets: NDArray[np.int32]
    path: str
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Examples:
    """Documents, their sequences (or images), the positions of each, and which positions are rows.

    Rows are numbered by sequence, then by position. Made by `ExamplesBuilder`.

    Attributes
    ----------
    modality : "text" or "vision"
        What a sequence is: a window of tokens, or an image of patches.
    documents : tuple of str
        Names, unique.
    document_fields : tuple of dict
        Plain values of each document (``held_out``, operands, an answer).
    sequence_document : int32 [sequences]
        Which document each belongs to.
    sequence_window : int32 [sequences]
        Number of the window in its document, from 0.
    bounds : int64 [sequences + 1]
        Sequence s has the positions ``bounds[s]`` to ``bounds[s + 1]`` (excluded) of the arrays below.
    ids : int32 [positions]
        Token ids; for images patch numbers, -1 for the class token, -2 and below for registers.
    special : bool [positions]
        Tokens that the tokenizer adds by itself; class token and registers.
    offsets : int32 [positions, 2]
        Start and end character in the document's text; -1, -1 where there is none.
    selected : bool [positions]
        Which positions are rows.
    paths : tuple of str
        Of images, one per sequence; empty for text.
    sizes : int32 [sequences, 2]
        Width and height of each image in pixels; 0, 0 for text.
    """

    modality: Modality
    documents: tuple[str, ...]
    document_fields: tuple[dict[str, Any], ...]
    sequence_document: NDArray[np.int32]
    sequence_window: NDArray[np.int32]
    bounds: NDArray[np.int64]
    ids: NDArray[np.int32]
    special: NDArray[np.bool_]
    offsets: NDArray[np.int32]
    selected: NDArray[np.bool_]
    paths: tuple[str, ...]
    sizes: NDArray[np.int32]

    @property
    def n_sequences(self) -> int:
        """Number of sequences or images."""
        return len(self.sequence_document)

    @property
    def n_rows(self) -> int:
        """Number of rows that the finished store will have."""
        return len(self._row_positions)

    @cached_property
    def _row_positions(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.selected)

    @cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """int64 [sequences + 1]: sequence s has the rows ``first_rows[s]`` to ``first_rows[s + 1]`` (excluded)."""
        return np.searchsorted(self._row_positions, self.bounds)

    def rows_of(self, sequence: int) -> slice:
        """Return the rows of a sequence."""
        return slice(int(self.first_rows[sequence]), int(self.first_rows[sequence + 1]))

    def positions_of(self, sequence: int) -> NDArray[np.int64]:
        """Return the positions of a sequence that are rows, int64 ascending."""
        return np.flatnonzero(self.selected[self.bounds[sequence] : self.bounds[sequence + 1]])

    def sequence_of(self, row: int) -> int:
        """Return the sequence that holds a row, 0 <= row < n_rows."""
        return int(np.searchsorted(self.bounds, self._row_positions[row], side="right")) - 1

    def origins(self, first: int, end: int) -> NDArray[Any]:
        """Return the origins of rows `first` to `end` (excluded), a record array as ``/rows`` holds it."""
        at = self._row_positions[first:end]
        sequence = np.searchsorted(self.bounds, at, side="right") - 1
        rows = np.empty(len(at), origin_dtype(self.modality))
        rows["document"] = self.sequence_document[sequence]
        rows["sequence"] = sequence
        rows["position"] = at - self.bounds[sequence]
        rows["token" if self.modality == "text" else "patch"] = self.ids[at]
        rows["special"] = self.special[at]
        return rows

    def around(self, row: int, before: int, after: int) -> RowContext:
        """Return what surrounds a row, cut at the ends of its sequence; see `Store.context`."""
        sequence = self.sequence_of(row)
        start, end, place = int(self.bounds[sequence]), int(self.bounds[sequence + 1]), int(self._row_positions[row])
        cut = slice(max(start, place - before), min(end, place + after + 1))
        width, height = self.sizes[sequence].tolist()
        return RowContext(
            document=self.documents[self.sequence_document[sequence]],
            sequence=sequence,
            at=place - cut.start,
            ids=self.ids[cut],
            special=self.special[cut],
            offsets=self.offsets[cut],
            path=self.paths[sequence] if self.paths else "",
            size=(width, height),
        )

    def digest(self) -> str:
        """Return a hash of everything above, 32 hexadecimal digits."""
        digest = xxhash.xxh3_128()
        texts = [self.modality, self.documents, self.document_fields, self.paths]
        digest.update(json.dumps(texts, sort_keys=True).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(raw(np.ascontiguousarray(array)))
        return digest.hexdigest()

    def _derived(self) -> dict[str, NDArray[Any]]:
        """Return what is in the file for whoever reads it without us, and is never read by us."""
        return {"sequences/first_row": self.first_rows[:-1], "sequences/n_rows": np.diff(self.first_rows)}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "sequences/document": self.sequence_document,
            "sequences/window": self.sequence_window,
            "sequences/bounds": self.bounds,
            "sequences/size": self.sizes,
            "positions/id": self.ids,
            "positions/special": self.special,
            "positions/offsets": self.offsets,
            "positions/selected": self.selected,
        }

    def write(self, folder: Path) -> None:
        """Write ``examples.h5`` into a store, atomically; takes no memory for the positions beside what they have."""
        arrays = self._arrays() | self._derived()
        fields = [json.dumps(entry, sort_keys=True) for entry in self.document_fields]
        texts = {"documents/name": self.documents, "documents/fields": fields, "sequences/path": self.paths}
        with undisturbed():
            draft = Draft()
            draft.file.attrs.update(format=KIND, schema=FILE_SCHEMA, modality=self.modality)
            for name, values in texts.items():
                draft.file.create_dataset(name, data=list(values), shape=(len(values),), dtype=h5py.string_dtype())
            draft.file.create_group("positions")
            for name, array in arrays.items():
                draft.add(name, array.dtype, array.shape)
        replace_file(folder / FILE, lambda path: draft.write(path, arrays))

    @classmethod
    def read(cls, folder: Path, digest: str) -> Examples:
        """Read ``examples.h5`` of a store and hold it against the digest in the manifest.

        Raises
        ------
        DamageError
            If the file is missing, cannot be read, or holds something else.
        """
        try:
            with read_hdf5(folder / FILE, texts=True) as file:
                names = ["document", "window", "bounds", "size"]
                document, window, bounds, sizes = (file[f"sequences/{name}"][()] for name in names)
                names = ["id", "special", "offsets", "selected"]
                ids, special, offsets, selected = (file[f"positions/{name}"][()] for name in names)
                documents, fields, paths = (
                    tuple(file[name].asstr()[()]) for name in ("documents/name", "documents/fields", "sequences/path")
                )
                examples = cls(
                    modality=file.attrs["modality"],
                    documents=documents,
                    document_fields=tuple(json.loads(entry) for entry in fields),
                    sequence_document=document,
                    sequence_window=window,
                    bounds=bounds,
                    ids=ids,
                    special=special,
                    offsets=offsets,
                    selected=selected,
                    paths=paths,
                    sizes=sizes,
                )
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DamageError(folder, Damage(FILE, f"cannot be read ({error})")) from error
        if examples.digest() != digest:
            raise DamageError(folder, Damage(FILE, "its contents differ from the digest in the manifest"))
        return examples

    def check_derived(self, folder: Path) -> None:
        """Hold what ``examples.h5`` has for other readers against this, the plan that was read from it.

        Raises
        ------
        DamageError
            If something differs.
        """
        try:
            with read_hdf5(folder / FILE, texts=True) as file:
                said = {name: file[name][()] for name in self._derived()}
                kind = (file.attrs["format"], int(file.attrs["schema"]))
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DamageError(folder, Damage(FILE, f"cannot be read ({error})")) from error
        if kind != (KIND, FILE_SCHEMA):
            raise DamageError(folder, Damage(FILE, f"says that it is {kind[0]!r} in schema {kind[1]}"))
        for name, wanted in self._derived().items():
            if not np.array_equal(said[name], wanted):
                raise DamageError(folder, Damage(FILE, "differs from the sequences and rows of the plan", f"/{name}"))
