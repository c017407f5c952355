"""Labels of a store: those of its dataset, and those of a label file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Examples, LabelInfo, Store
from workbench.datasets.alignment import Aligner
from workbench.datasets.pixels import on_positions
from workbench.datasets.protocol import Dataset, Document, LabelSpec, PixelLabel, SpanLabel
from workbench.errors import UserError

Column = tuple[NDArray[np.float64], NDArray[np.bool_]]


class LabelTable:
    """Values of labels over the documents, sequences and rows of a store, filled in document by document.

    Parameters
    ----------
    examples : Examples
        The store's plan.
    specs : iterable of LabelSpec
        The labels.
    """

    def __init__(self, examples: Examples, specs: Iterable[LabelSpec]) -> None:
        self.examples = examples
        self.specs = {spec.name: spec for spec in specs}
        lengths = {"row": examples.n_rows, "sequence": examples.n_sequences, "document": len(examples.documents)}
        self.columns: dict[str, Column] = {
            name: (np.full(lengths[spec.level], np.nan), np.zeros(lengths[spec.level], bool))
            for name, spec in self.specs.items()
        }
        order = np.argsort(examples.sequence_document, kind="stable")
        ends = np.searchsorted(examples.sequence_document[order], np.arange(len(examples.documents) + 1))
        self._sequences = [order[ends[i] : ends[i + 1]] for i in range(len(examples.documents))]

    def fill(self, index: int, document: Document, labels: Mapping[str, SpanLabel | PixelLabel | float | None]) -> None:
        """Enter the labels of one document.

        Parameters
        ----------
        index : int
            Of the document in the store.
        document : Document
            With its text, if a label has spans.
        labels : mapping of name to SpanLabel, PixelLabel, float or None
            As `Dataset.labels` gives them.

        Raises
        ------
        UserError
            For a label of another level than its description says, or spans outside the text.
        """
        aligned: AlignedRows | None = None
        for name, spec in self.specs.items():
            label = labels.get(name)
            values, defined = self.columns[name]
            if label is None:
                continue
            if isinstance(label, (SpanLabel, PixelLabel)):
                where = f"label {name!r} of document {document.name!r}"
                if spec.level != "row":
                    what = "spans" if isinstance(label, SpanLabel) else "pixels"
                    raise UserError(f"{where} has {what}, and its level is {spec.level}")
                aligned = aligned or AlignedRows(self.examples, self._sequences[index], document)
                try:
                    aligned.enter(label, values, defined)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
                continue
            for at in self._places(spec, index):
                values[at], defined[at] = label, True

    def _places(self, spec: LabelSpec, index: int) -> list[int | slice]:
        """Return where a document's own value goes, in a column of the label's level."""
        if spec.level == "document":
            return [index]
        sequences = [int(sequence) for sequence in self._sequences[index]]
        return [self.examples.rows_of(s) for s in sequences] if spec.level == "row" else [*sequences]

    def groups(self) -> dict[str, dict[str, tuple[LabelInfo, NDArray[np.float64], NDArray[np.bool_]]]]:
        """Return, by group, what `Store.add_labels` takes."""
        groups: dict[str, dict[str, tuple[LabelInfo, NDArray[np.float64], NDArray[np.bool_]]]] = {}
        for spec in self.specs.values():
            groups.setdefault(spec.group, {})[spec.name] = LabelInfo(**asdict(spec)), *self.columns[spec.name]
        return groups

    def store(self, store: Store) -> None:
        """Write every group into the store; what its groups held before is replaced."""
        for group, labels in self.groups().items():
            store.add_labels(group, labels)


class AlignedRows:
    """Puts labels with spans on the rows of one document.

    Parameters
    ----------
    examples : Examples
        The store's plan.
    sequences : integers
        Of the document.
    document : Document
        With its text.
    """

    def __init__(self, examples: Examples, sequences: NDArray[np.int64], document: Document) -> None:
        places = [np.arange(examples.bounds[s], examples.bounds[s + 1]) for s in sequences]
        self.align = Aligner(document.text or "", [examples.offsets[at].astype(np.int64) for at in places])
        self.patches = examples.ids[np.concatenate(places)]
        self.is_row = examples.selected[np.concatenate(places)]
        self.rows = np.concatenate([np.arange(*examples.first_rows[s : s + 2]) for s in sequences])

    def enter(self, label: SpanLabel | PixelLabel, values: NDArray[np.float64], defined: NDArray[np.bool_]) -> None:
        """Enter one label into a column of all rows."""
        found, known = self.align(label) if isinstance(label, SpanLabel) else on_positions(label, self.patches)
        values[self.rows], defined[self.rows] = found[self.is_row], known[self.is_row]


def labels_of_dataset(
    examples: Examples, dataset: Dataset, documents: Sequence[int], groups: Collection[str] | None = None
) -> LabelTable:
    """Read all labels of the dataset that a store is captured from.

    Parameters
    ----------
    examples : Examples
        The store's plan.
    dataset : Dataset
        Its own.
    documents : sequence of int
        Index in the dataset of each document of the store.
    groups : collection of str, optional
        Labels of these groups alone.
    """
    table = LabelTable(examples, [spec for spec in dataset.label_specs if groups is None or spec.group in groups])
    if table.specs:
        for index, place in enumerate(documents):
            document = dataset.document(place)
            table.fill(index, document, dataset.labels(document))
    return table
