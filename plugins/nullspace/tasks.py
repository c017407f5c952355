"""From a label to classes of rows: which rows, and which documents fit, choose and test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import UserError, nearest
from workbench.labelled_rows import FAMILIAR, DocumentRows
from workbench.probes import cap_rows
from workbench.probes.splits import PARTS

LEAST_ROWS = 10  # of each class, in each of train, select and test
LEAST_GROUPS = 2
N_OTHERS = 5
NO_CLASS = -1


@dataclass(frozen=True)
class Labelled:
    """A label's class at every row of the store.

    Attributes
    ----------
    name : str
        The label, or LABEL=CATEGORY.
    classes : tuple of str
        Names of classes.
    codes : np.ndarray
        [rows of the store] class, −1 where the label is not defined (or the class too rare).
    """

    name: str
    classes: tuple[str, ...]
    codes: np.ndarray

    @property
    def binary(self) -> bool:
        """True for no and yes."""
        return self.classes == ("no", "yes")


@dataclass(frozen=True)
class Task:
    """Rows with a class each.

    Attributes
    ----------
    label : Labelled
        The whole store's classes.
    rows : np.ndarray
        [n] rows of the store, a document's side by side.
    codes, part, groups : np.ndarray
        [n] class; 0 train, 1 select, 2 test; document, from 0 (identical ones count as one).
    names : np.ndarray
        [groups] names of the documents.
    """

    label: Labelled
    rows: np.ndarray
    codes: np.ndarray
    part: np.ndarray
    groups: np.ndarray
    names: np.ndarray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.label.classes)

    def at(self, part: int) -> np.ndarray:
        """Return the positions of one part's rows."""
        return np.flatnonzero(self.part == part)

    def documents(self, part: int) -> tuple[np.ndarray, int]:
        """Return the document of each row of a part, numbered from 0, and how many there are."""
        members, groups = np.unique(self.groups[self.at(part)], return_inverse=True)
        return groups, len(members)


def labelled(documents: DocumentRows, name: str) -> Labelled:
    """Look up a label, or one category of it against the rest.

    Raises
    ------
    UserError
        If there is none of that name, or it is of another kind.
    """
    store = documents.store
    whole, _, category = name.partition("=")
    known = store.labels
    if whole not in known:
        raise UserError(f"{store.folder} has no label {name!r}; nearest: {nearest(whole, known)}")
    info = known[whole]
    if info.kind not in ("binary", "categories"):
        raise UserError(
            f"label {whole!r} is of kind {info.kind!r}: nullspace takes labels of kind binary or categories"
        )
    values, defined = store.label(whole)
    if not category:
        classes = ("no", "yes") if info.kind == "binary" else tuple(info.categories)
        return Labelled(name, classes, np.where(defined, values, NO_CLASS).astype(np.int64))
    if category not in info.categories:
        raise UserError(f"label {whole!r} has no category {category!r}; nearest: {nearest(category, info.categories)}")
    yes = values == info.categories.index(category)
    return Labelled(name, ("no", "yes"), np.where(defined, yes, NO_CLASS).astype(np.int64))


def make_task(documents: DocumentRows, name: str, max_rows: int, log: logging.Logger, main: Labelled | None) -> Task:
    """Choose a label's rows and leave out the classes that are too rare.

    Parameters
    ----------
    documents : DocumentRows
        The store, parted.
    name : str
        The label.
    max_rows : int
        How many rows at most.
    log : logging.Logger
        Told what is left out.
    main : Labelled, optional
        A main task: rows must have a class of it too, and none of both drowns the others.

    Raises
    ------
    UserError
        If fewer than two classes have enough rows in train, select and test documents.
    """
    found = labelled(documents, name)
    part_of_row = documents.part[documents.groups]
    codes = found.codes[documents.order]
    known = codes != NO_CLASS if main is None else (codes != NO_CLASS) & (main.codes[documents.order] != NO_CLASS)
    complaints = {}
    for each in range(len(found.classes)):
        if complaint := _complaint(documents, known & (codes == each), part_of_row):
            complaints[found.classes[each]] = complaint
    kept = [each for each, title in enumerate(found.classes) if title not in complaints]
    if len(kept) < 2:
        said = "; ".join(f"{title}: {complaint}" for title, complaint in list(complaints.items())[:3])
        raise UserError(
            f"{documents.store.folder}: label {name!r} has not two classes with {LEAST_ROWS} rows in {LEAST_GROUPS} "
            f"documents each of train, select and test ({said})"
        )
    if complaints:
        log.warning("label %r: classes left out as too rare: %s", name, ", ".join(complaints))
    new = np.full(len(found.classes) + 1, NO_CLASS)  # the last: what has no class
    new[kept] = np.arange(len(kept))
    label = Labelled(name, tuple(found.classes[each] for each in kept), new[found.codes])
    at = np.flatnonzero(known & (label.codes[documents.order] != NO_CLASS))
    cells = label.codes[documents.order[at]]
    if main is not None:
        cells = cells * len(main.classes) + main.codes[documents.order[at]]
    at = at[cap_rows(documents.groups[at], cells, max_rows, documents.seed)]
    members, groups = np.unique(documents.groups[at], return_inverse=True)
    rows = documents.order[at]
    return Task(label, rows, label.codes[rows], part_of_row[at], groups, documents.names[members])


def _complaint(documents: DocumentRows, chosen: np.ndarray, part_of_row: np.ndarray) -> str | None:
    for number, title in enumerate(PARTS):
        members = documents.groups[chosen & (part_of_row == number)]
        n_groups = len(np.unique(members))
        if len(members) < LEAST_ROWS or n_groups < LEAST_GROUPS:
            return f"{len(members)} rows in {n_groups} {title} documents"
    return None


def default_label(documents: DocumentRows) -> str:
    """Choose the first familiar yes/no label of the store, or the first at all.

    Raises
    ------
    UserError
        If it has none.
    """
    labels = documents.store.labels
    names = [name for name in FAMILIAR if name in labels] or [n for n, info in labels.items() if info.kind == "binary"]
    if not names:
        raise UserError(f"{documents.store.folder} has no yes/no label: name one with label=…, of {', '.join(labels)}")
    return names[0]


def other_labels(documents: DocumentRows, wanted: str | Sequence[str] | None, task: Task) -> list[Labelled]:
    """Return the yes/no labels by which damage is measured, those with enough of a task's rows.

    Raises
    ------
    UserError
        If one that was asked for does not exist, is no yes/no label, or has too few rows.
    """
    if wanted is None:
        known = documents.store.labels
        names = [n for n in FAMILIAR if n in known] or [n for n, info in known.items() if info.kind == "binary"]
    else:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
    found: list[Labelled] = []
    for name in names:
        if name == task.label.name or (wanted is None and len(found) == N_OTHERS):
            continue
        label = labelled(documents, name)
        if not label.binary:
            raise UserError(f"others={name}: must be a yes/no label, or one category of another as LABEL=CATEGORY")
        codes = label.codes[task.rows]
        sizes = [[int((codes[task.at(part)] == each).sum()) for each in (0, 1)] for part in range(3)]
        if min(map(min, sizes)) >= LEAST_ROWS:
            found.append(label)
        elif wanted is not None:
            raise UserError(
                f"others={name}: {min(map(min, sizes))} of the rows of {task.label.name!r} in a part have one of its "
                f"values; at least {LEAST_ROWS} are needed"
            )
    return found
