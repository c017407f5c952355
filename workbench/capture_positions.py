"""Which positions of a sequence or image become rows of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.datasets.alignment import Aligner
from workbench.datasets.pixels import on_positions
from workbench.datasets.protocol import Dataset, Document, PixelLabel, SpanLabel
from workbench.errors import UserError, nearest
from workbench.subjects.protocol import Subject, TokenWindow

Masks = list[NDArray[np.bool_]]
Positions = Callable[[Document, Sequence[TokenWindow]], Masks]

FORMS = ("all", "last", "class", "label:NAME", "share:0.1")


def parse_positions(words: str, subject: Subject, dataset: Dataset, seed: int) -> Positions:
    """Return the function that selects positions: windows of a document to one mask [pos] for each.

    Parameters
    ----------
    words : str
        ``all``; ``last``: the last token of each sequence that is not special; ``class``: the class token of an image
        or of a BERT-style encoder, or the end token that a causal text tower is read at; ``label:NAME``: tokens on
        which a span of the label falls (of a binary label, with the value 1), or all of a document that has a label of
        its own; ``share:F``: each position with probability 0 < F <= 1, by seed, document name and window.
    subject, dataset : Subject, Dataset
        Decide what is possible.
    seed : int
        Of ``share``.

    Raises
    ------
    UserError
        For any other words, an unknown label, or positions that this subject does not have.
    """
    form, _, argument = words.partition(":")
    match form, argument:
        case "all", "":
            return lambda document, windows: [np.ones(len(window.tokens), bool) for window in windows]
        case "last", "":
            if subject.modality != "text":
                raise UserError("positions 'last' are of texts; for images give all, class, label:NAME or share:0.1")
            return lambda document, windows: [last_token(window) for window in windows]
        case "class", "":
            return lambda document, windows: [class_token(window, subject) for window in windows]
        case "label", name if name:
            return labelled(name, dataset)
        case "share", number if number:
            return share(number, seed)
    raise UserError(f"positions {words!r}: must be one of {', '.join(FORMS)}; nearest: {nearest(words, FORMS, 1)}")


def last_token(window: TokenWindow) -> NDArray[np.bool_]:
    """Select the last token that is not special."""
    mask = np.zeros(len(window.tokens), bool)
    mask[np.flatnonzero(~window.special)[-1:]] = True
    return mask


def class_token(window: TokenWindow, subject: Subject) -> NDArray[np.bool_]:
    """Select the token that stands for the whole sequence or image."""
    mask = np.zeros(len(window.tokens), bool)
    if subject.modality == "vision":
        mask[window.tokens == -1] = True
    else:
        at = -1 if subject.causal else 0  # only the last token of a causal text tower has seen them all
        mask[at] = window.special[at]
    if not mask.any():
        raise UserError(f"{subject.address} has no class token: give positions all, last, label:NAME or share:0.1")
    return mask


def labelled(name: str, dataset: Dataset) -> Positions:
    """Select positions that carry a label."""
    binary = dataset.label_spec(name).kind == "binary"

    def select(document: Document, windows: Sequence[TokenWindow]) -> Masks:
        label = dataset.labels(document).get(name)
        if isinstance(label, PixelLabel):
            on_patches = (on_positions(label, window.tokens) for window in windows)
            return [known & (values != 0) if binary else known for values, known in on_patches]
        if not isinstance(label, SpanLabel):
            carried = label is not None and (label != 0 or not binary)
            return [np.full(len(window.tokens), carried) for window in windows]
        offsets = [window.offsets for window in windows]
        values, reached = Aligner(document.text or "", offsets)(SpanLabel(label.spans, background=None))
        chosen = reached & (values != 0) if binary else reached
        return np.split(chosen, np.cumsum([len(window) for window in offsets])[:-1])

    return select


def share(number: str, seed: int) -> Positions:
    """Select each position with the same probability."""
    try:
        fraction = float(number)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"positions 'share:{number}': the share must be a number above 0, up to 1: share:0.1")

    def select(document: Document, windows: Sequence[TokenWindow]) -> Masks:
        seeds = (xxhash.xxh3_64_intdigest(f"{seed}:{document.name}:{i}".encode()) for i in range(len(windows)))
        return [
            np.random.default_rng(one).random(len(window.tokens)) < fraction
            for one, window in zip(seeds, windows, strict=True)
        ]

    return select
