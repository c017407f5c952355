"""What a capture will do, settled before the first forward pass: sequences in order, rows, batches.

The plan follows from subject, dataset and options alone. A capture that was stopped makes the same plan again, so that
it can run the batch in which it stopped once more, the same sequences side by side, and go on with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Examples, ExamplesBuilder
from workbench.capture_positions import parse_positions
from workbench.datasets.images import image_size
from workbench.datasets.protocol import Dataset, Document
from workbench.errors import UserError
from workbench.subjects.protocol import Subject, TokenWindow

SORTED_SEQUENCES = 512  # sequences that are sorted by length together, to save padding
# A sample of rows takes no more than one part in so many from one document, while others have any: intervals are over
# documents, and a tenth to a fifth of them are held out.
LEAST_DOCUMENTS = 256
BATCH_POSITIONS = 8192  # positions of a batch whose size was not given
LARGEST_BATCH = 256  # sequences


@dataclass(frozen=True)
class PlannedSequence:
    """A window of a document, or an image, that is part of a plan.

    Attributes
    ----------
    document : int
        Index in the dataset.
    number : int
        Of the window in its document.
    window : TokenWindow
        Tokens, or patch numbers.
    rows : bool [pos]
        Positions that become rows.
    """

    document: int
    number: int
    window: TokenWindow
    rows: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What a capture will do.

    Attributes
    ----------
    examples : Examples
        What the store is told.
    documents : tuple of int
        Index in the dataset of each document of `examples`.
    root : str
        Folder of the images; empty for text.
    """

    examples: Examples
    documents: tuple[int, ...]
    root: str = ""

    def batch_size(self, size: int | None) -> int:
        """Return how many sequences a batch has: as many as were asked for, or as have 8192 positions."""
        longest = int(np.diff(self.examples.bounds).max(initial=1))
        return size or max(1, min(LARGEST_BATCH, BATCH_POSITIONS // longest))

    def batches(self, size: int | None, from_row: int) -> Iterator[range]:
        """Go through the batches (ranges of sequences), from the one that holds a row.

        Where batches begin follows from their size and the plan, not from the row.
        """
        size = self.batch_size(size)
        n = self.examples.n_sequences
        for first in range(0, n, size):
            if self.examples.first_rows[min(first + size, n)] > from_row:
                yield range(first, min(first + size, n))

    def window(self, sequence: int) -> TokenWindow:
        """Return the tokens of a sequence as a subject takes them."""
        at = slice(*self.examples.bounds[sequence : sequence + 2])
        examples = self.examples
        return TokenWindow(
            examples.ids[at].astype(np.int64), examples.special[at], examples.offsets[at].astype(np.int64)
        )

    def part(self, sequences: NDArray[np.int64]) -> Plan:
        """Return the plan of some of the sequences, given by number, ascending, and of their documents alone."""
        examples = self.examples
        documents, sequence_document = np.unique(examples.sequence_document[sequences], return_inverse=True)
        lengths = np.diff(examples.bounds)
        bounds = np.concatenate([[0], np.cumsum(lengths[sequences])])
        chosen = np.zeros(examples.n_sequences, dtype=bool)
        chosen[sequences] = True
        at = np.repeat(chosen, lengths)
        part = replace(
            examples,
            documents=tuple(examples.documents[document] for document in documents),
            document_fields=tuple(examples.document_fields[document] for document in documents),
            sequence_document=sequence_document.astype(np.int32),
            sequence_window=examples.sequence_window[sequences],
            bounds=bounds,
            ids=examples.ids[at],
            special=examples.special[at],
            offsets=examples.offsets[at],
            selected=examples.selected[at],
            paths=tuple(examples.paths[sequence] for sequence in sequences) if examples.paths else (),
            sizes=examples.sizes[sequences],
        )
        return Plan(part, tuple(self.documents[document] for document in documents), self.root)


class Planner:
    """Makes a plan.

    Parameters
    ----------
    subject : Subject
        Cuts documents into windows.
    dataset : Dataset
        Of the subject's modality.
    positions : str
        See `workbench.capture_positions.parse_positions`.
    context_length : int, optional
        Longest sequence, special tokens included; the subject's own if not given.
    seed : int
        Of the sample and of positions that are a share; 0 to 2**63 - 1.

    Raises
    ------
    UserError
        For a dataset of another modality than the subject's, or a value that is out of range or means nothing.
    """

    def __init__(
        self,
        subject: Subject,
        dataset: Dataset,
        positions: str = "all",
        context_length: int | None = None,
        seed: int = 0,
    ) -> None:
        if dataset.modality != subject.modality:
            words = {"text": "texts", "vision": "images"}
            takes, holds = words[subject.modality], words[dataset.modality]
            raise UserError(f"{subject.address} takes {takes}, and {dataset.address} holds {holds}")
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: must be 0 to 2**63 - 1 ({2**63 - 1})")
        if context_length is not None and not 1 <= context_length <= subject.n_context:
            raise UserError(f"context length {context_length}: {subject.address} takes 1 to {subject.n_context} tokens")
        if context_length is not None and subject.modality == "vision":
            raise UserError("a context length is for texts; an image is taken whole")
        self.subject, self.dataset, self.seed = subject, dataset, seed
        self.context_length = context_length
        self.select = parse_positions(positions, subject, dataset, seed)
        self.positions = positions
        self._patches: TokenWindow | None = None

    def plan(self, rows: int | None = None) -> Plan:
        """Make the plan.

        Parameters
        ----------
        rows : int, optional
            How many rows; the last sequence keeps only as many as are wanted. Without it all are taken, in the
            dataset's order. With it documents are drawn in a seeded order, and of each a seeded choice of its windows,
            at most one part in 256 of the rows; once all documents were drawn, the windows left are taken. So a sample
            has many documents in it, and its first rows are a sample themselves.

        Raises
        ------
        UserError
            If no row is left.
        """
        if rows is not None and rows < 1:
            raise UserError(f"rows {rows}: must be at least 1")
        chosen = list(self.sequences(range(len(self.dataset)))) if rows is None else self.sample(rows)
        if not chosen:
            raise UserError(f"{self.dataset.address} gives no row: positions {self.positions!r} select nothing in it")
        by_length: list[PlannedSequence] = []
        for first in range(0, len(chosen), SORTED_SEQUENCES):
            by_length += sorted(chosen[first : first + SORTED_SEQUENCES], key=lambda each: len(each.window.tokens))
        return self.build(by_length, list(dict.fromkeys(sequence.document for sequence in chosen)))

    def sequences(self, documents: range | list[int]) -> Iterator[PlannedSequence]:
        """Go through the sequences of some documents that have a row."""
        for index in documents:
            document = self.dataset.document(index)
            windows = self.windows(document)
            for number, (window, rows) in enumerate(zip(windows, self.select(document, windows), strict=True)):
                if rows.any():
                    yield PlannedSequence(index, number, window, rows)

    def windows(self, document: Document) -> list[TokenWindow]:
        """Cut a document into sequences."""
        if self.subject.modality == "vision":
            return [self.patches(document)]
        return self.subject.windows(document.text or "", self.context_length)

    def patches(self, image: Document) -> TokenWindow:
        """Number the positions of an image; every image has as many as the first one."""
        if self._patches is None:
            n_positions = int(self.subject.batch([image_of(image)]).mask.shape[1])
            numbers = self.subject.patch_index(n_positions)
            self._patches = TokenWindow(numbers, numbers < 0, np.full((n_positions, 2), -1))
        return self._patches

    def sample(self, rows: int) -> list[PlannedSequence]:
        """Draw sequences until there are `rows` rows, few of each document at first."""
        order = np.random.default_rng(self.seed).permutation(len(self.dataset)).tolist()
        most = -(-rows // LEAST_DOCUMENTS)
        taken: dict[int, list[PlannedSequence]] = {}
        left = rows
        for every in (False, True):
            for index in order:
                before = {sequence.number for sequence in taken.get(index, [])}
                new = [sequence for sequence in self.sequences([index]) if sequence.number not in before]
                if not every:
                    new = self.some_of(new, most, index)
                for sequence in new:
                    if left > 0:
                        kept = first_true(sequence.rows, left)
                        left -= int(kept.sum())
                        taken.setdefault(index, []).append(replace(sequence, rows=kept))
                if left <= 0:
                    return in_order(taken)
        return in_order(taken)

    def some_of(self, sequences: list[PlannedSequence], most: int, index: int) -> list[PlannedSequence]:
        """Choose sequences of one document until they have `most` rows."""
        shuffled = np.random.default_rng([self.seed, index]).permutation(len(sequences))
        chosen, n_rows = [], 0
        for place in shuffled:
            if n_rows < most:
                chosen.append(sequences[place])
                n_rows += int(sequences[place].rows.sum())
        return chosen

    def build(self, sequences: list[PlannedSequence], documents: list[int]) -> Plan:
        """Write sequences and documents down, in the orders given, as the store wants them."""
        builder = ExamplesBuilder(self.subject.modality)
        places = {}
        images: dict[int, tuple[str, tuple[int, int]]] = {}
        root = ""
        for index in documents:
            document = self.dataset.document(index)
            places[index] = builder.document(document.name, fields_of(document))
            if self.subject.modality == "vision":
                path, root = image_path(document)
                images[index] = path, image_size(image_of(document))
        for sequence in sequences:
            place, tokens, special = places[sequence.document], sequence.window.tokens, sequence.window.special
            if self.subject.modality == "text":
                offsets, number = sequence.window.offsets, sequence.number
                builder.sequence(place, tokens, special=special, offsets=offsets, rows=sequence.rows, window=number)
            else:
                path, size = images[sequence.document]
                builder.image(place, path, size, tokens, special=special, rows=sequence.rows)
        return Plan(builder.build(), tuple(documents), root)


def in_order(taken: dict[int, list[PlannedSequence]]) -> list[PlannedSequence]:
    """Return the sequences in the order in which documents were drawn, windows of each in reading order."""
    return [sequence for of_one in taken.values() for sequence in sorted(of_one, key=lambda each: each.number)]


def first_true(mask: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Keep the first `n` true entries of a mask."""
    return mask & (np.cumsum(mask) <= n)


def fields_of(document: Document) -> dict[str, str | int | float | bool]:
    """Return a document's plain fields, of types that JSON has."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in document.fields.items()}


def image_of(document: Document) -> Path:
    """Return where a document's image is."""
    if document.image is None:
        raise UserError(f"document {document.name!r} has no image")
    return document.image


def image_path(document: Document) -> tuple[str, str]:
    """Return an image's path in its folder, and the folder: a store stays the same when the images are moved."""
    path = image_of(document).resolve().as_posix()
    if path.endswith("/" + document.name):
        return document.name, path[: -len(document.name) - 1]
    return path, ""
