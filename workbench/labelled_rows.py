"""A store's ordinary rows in the order of their documents, parted into train, select and test by whole documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import UserError, nearest
from workbench.probes.splits import group_split, merge_identical

if TYPE_CHECKING:
    from workbench.cache import Store

# of `python-stdlib`: what a reader of code has in mind first
FAMILIAR = ("in_string", "in_docstring", "in_comment", "in_call_arguments", "is_keyword", "is_definition")


class DocumentRows:
    """The store's rows by document.

    Parameters
    ----------
    store : Store
        With labels.
    seed : int
        Of the split.

    Attributes
    ----------
    order : np.ndarray
        [n] ordinary rows of the store, a document's side by side and in the order of its text.
    groups, tokens : np.ndarray
        [n] which document (identical ones count as one), and token id (of images: patch).
    part : np.ndarray
        [documents] 0 train, 1 select, 2 test.
    names : np.ndarray
        [documents].

    Raises
    ------
    UserError
        If the store's rows come from fewer than three documents.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.seed = store, seed
        origins = store.origins
        if store.examples.modality == "text":
            self.group_of = merge_identical([ids.tobytes() for ids in _token_ids(store)])
            tokens = origins["token"]
        else:
            self.group_of = np.arange(len(store.documents))
            tokens = origins["patch"]
        order = np.lexsort((origins["position"], origins["sequence"], self.group_of[origins["document"]]))
        self.order = order[store.ordinary[order]]
        self.groups = self.group_of[origins["document"][self.order]].astype(np.int64)
        self.tokens = np.asarray(tokens[self.order], dtype=np.int64)
        self.names = np.array(store.documents)
        present = np.unique(self.groups)
        if len(present) < 3:
            raise UserError(f"{store.folder} has rows of {len(present)} documents: at least 3 are needed, to part them")
        self.part = np.zeros(len(self.names), dtype=np.int64)
        self.part[present] = group_split(self.names[present], seed).part


def _token_ids(store: Store) -> Iterator[np.ndarray]:
    """Go through the documents' token ids, windows in order."""
    examples = store.examples
    order = np.lexsort((examples.sequence_window, examples.sequence_document))
    sequences = np.split(order, np.searchsorted(examples.sequence_document[order], np.arange(1, len(store.documents))))
    for of_document in sequences:
        parts = [examples.ids[examples.bounds[s] : examples.bounds[s + 1]] for s in of_document]
        yield np.concatenate(parts) if parts else np.empty(0, examples.ids.dtype)


def matching_hook_points(store: Store, wanted: str | Sequence[str] | None) -> list[str]:
    """Return the store's hook points that names or patterns mean, in the order of the forward pass; None: all.

    Raises
    ------
    UserError
        If a name or pattern matches nothing.
    """
    patterns = ["*"] if wanted is None else [wanted] if isinstance(wanted, str) else wanted
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {name for name in store.hook_points if fnmatchcase(name, pattern)}
        if not matched:
            near = nearest(pattern, store.hook_points)
            raise UserError(f"{store.folder} has no hook point {pattern!r}; nearest: {near}")
        chosen |= matched
    return [name for name in store.hook_points if name in chosen]


def read_flat(store: Store, hook_point: str, rows: np.ndarray) -> np.ndarray:
    """Return activations [rows, units] as float32, trailing axes laid side by side.

    Raises
    ------
    UserError
        If an activation is not finite: a probe would be about that alone.
    """
    X = np.ascontiguousarray(store.read(hook_point, rows).reshape(len(rows), -1), dtype=np.float32)
    require_finite(X, hook_point, rows)
    return X


def require_finite(X: np.ndarray, hook_point: str, rows: np.ndarray) -> None:
    """Refuse rows [rows, ...] of which an entry is not finite, naming the row."""
    finite = np.isfinite(X).reshape(len(X), -1).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{hook_point}, row {rows[~finite][0]}: an activation is not finite; capture it in a wider dtype"
        )
