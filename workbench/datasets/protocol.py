"""What a dataset offers: documents in a fixed order, and labels on their characters or on the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from workbench.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Level = Literal["row", "sequence", "document"]
Kind = Literal["binary", "categories", "ordered", "number", "cyclic"]


@dataclass(frozen=True)
class LabelSpec:
    """What a label means.

    Attributes
    ----------
    name : str
        Unique in a dataset: ``in_string``.
    group : str
        Labels of one group are stored in one file: ``scopes``.
    level : "row", "sequence" or "document"
        What carries a value.
    kind : str
        ``binary`` (0, 1), ``categories`` (index into `categories`), ``ordered`` (whole number, order matters),
        ``number``, ``cyclic`` (number modulo `period`).
    categories : tuple of str
        Names of the values, where they have names.
    period : float, optional
        Of a cyclic label.
    unit, description : str
        For people.
    """

    name: str
    group: str
    level: Level
    kind: Kind
    categories: tuple[str, ...] = ()
    period: float | None = None
    unit: str = ""
    description: str = ""


class Span(NamedTuple):
    """A label's value on characters `start` (included) to `end` (excluded) of a document.

    It falls on the token that holds the span's first non-space character, or on `every` token that it touches.
    """

    start: int
    end: int
    value: float
    every: bool = False


@dataclass(frozen=True)
class SpanLabel:
    """A row-level label on one document: spans, and the value of tokens that no span reaches (None: undefined there).

    Where spans overlap on a token, the later one in the list wins. Many spans may be given as one array [span, 4] with
    the fields of `Span`: making half a million tuples takes seconds.
    """

    spans: Sequence[Span] | NDArray[np.float64]
    background: float | None = 0.0


@dataclass(frozen=True)
class PixelLabel:
    """A row-level label on one image: a value for each pixel, float64 [height, width], NaN where there is none.

    A patch takes the value that most of its pixels have; class token and registers have none.
    """

    values: NDArray[np.float64]


@dataclass(frozen=True)
class Document:
    """A source file, a prompt or an image: the group of every split and every interval.

    Attributes
    ----------
    name : str
        Unique in the dataset.
    text : str, optional
        Of a text document.
    image : Path, optional
        Of an image document.
    fields : mapping
        Plain values that travel with it (``held_out``, operands, an answer).
    """

    name: str
    text: str | None = None
    image: Path | None = None
    fields: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Description(NamedTuple):
    """A text of a pool of descriptions, and what it names: (label, category), several or none."""

    text: str
    names: frozenset[tuple[str, str]] = frozenset()


class Dataset(ABC):
    """Documents in a fixed order, and their labels.

    Attributes
    ----------
    address : str
        How the dataset was named: ``python-stdlib``, ``texts/corpus.jsonl``.
    modality : "text" or "vision"
        What the documents hold.
    label_specs : tuple of LabelSpec
        Labels that `labels` gives; may be empty.
    """

    address: str
    modality: Literal["text", "vision"]
    label_specs: tuple[LabelSpec, ...] = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}: {len(self):,} documents, {self.modality}>"

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents."""

    @abstractmethod
    def document(self, index: int) -> Document:
        """Return the document at a position, 0 <= index < len(self); reads no other."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of everything that decides the documents and their labels."""

    def labels(self, document: Document) -> Mapping[str, SpanLabel | PixelLabel | float | None]:
        """Return the document's value of each label: a number (None: undefined); for row level what says where.

        That is a `SpanLabel` for a text, a `PixelLabel` for an image.
        """
        return {}

    def class_prompts(self, label: str) -> Mapping[str, Sequence[str]]:
        """Return texts that name each category of a label, for subjects that match images with texts; may be empty."""
        return {}

    def descriptions(self) -> Sequence[Description]:
        """Return a pool of texts to describe what is seen in the documents; may be empty."""
        return ()

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Return where the objects of an image are, uint8 [height, width], 0 elsewhere; None where nobody knows."""
        return None

    def label_spec(self, name: str) -> LabelSpec:
        """Return a label's description; an unknown name is an error that gives the nearest three."""
        for spec in self.label_specs:
            if spec.name == name:
                return spec
        near = nearest(name, [spec.name for spec in self.label_specs])
        raise UserError(f"{self.address} has no label {name!r}; nearest: {near}")
