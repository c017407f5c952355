"""From labels to yes/no tasks: which rows, which documents train, choose and test."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest

import numpy as np

from workbench.cache import LabelInfo, Store
from workbench.errors import UserError, nearest
from workbench.labelled_rows import FAMILIAR, DocumentRows
from workbench.probes import cap_rows, group_split
from workbench.probes.splits import PARTS

LEAST_ROWS = 10  # of either class, in each of train, select and test
LEAST_GROUPS = 2
WHOLE = 1 - 1e-9  # of a label's rows
ENOUGH_GROUPS = 20  # documents with a positive row, for a label that nobody named


@dataclass(frozen=True)
class Task:
    """One yes/no question about rows.

    Attributes
    ----------
    name : str
        The label, or LABEL=CATEGORY.
    label : str
        The label.
    description : str
        Of the label.
    rows : np.ndarray
        [n] rows of the store, a document's side by side and in the order of its text.
    y : np.ndarray
        [n] the answer.
    part : np.ndarray
        [n] 0 train, 1 select, 2 test; the same for all rows of a document.
    groups : np.ndarray
        [n] which document (identical ones count as one).
    tokens : np.ndarray
        [n] token id.
    own_split : bool
        True if the label is constant inside documents and the split stratified by it; else all tasks share one split.
    prevalence : float
        Share of positive rows before any were left out.
    """

    name: str
    label: str
    description: str
    rows: np.ndarray
    y: np.ndarray
    part: np.ndarray
    groups: np.ndarray
    tokens: np.ndarray
    own_split: bool
    prevalence: float

    def at(self, part: int) -> np.ndarray:
        """Return the mask of one part's rows."""
        return np.asarray(self.part == part)

    def n_positive_groups(self, part: int) -> int:
        """Count the documents of a part that have a positive row."""
        return len(np.unique(self.groups[self.at(part) & self.y]))

    def complaint(self) -> str | None:
        """Say why this task cannot be probed, if it cannot."""
        for number, name in enumerate(PARTS):
            for answer, word in ((True, "positive"), (False, "negative")):
                members = self.at(number) & (self.y == answer)
                n_groups = len(np.unique(self.groups[members]))
                if members.sum() < LEAST_ROWS or n_groups < LEAST_GROUPS:
                    return (
                        f"label {self.name!r} has {members.sum()} {word} rows in {n_groups} {name} documents; at least "
                        f"{LEAST_ROWS} rows in {LEAST_GROUPS} documents are needed"
                    )
        return None


class Documents(DocumentRows):
    """The store's rows by document, for the tasks of all labels; see `DocumentRows`."""

    def task(self, name: str, info: LabelInfo, positive: np.ndarray, defined: np.ndarray, max_rows: int) -> Task | None:
        """Make a task of the store's rows that are positive; None if none with the label is, or all are."""
        known = defined[self.order]
        y = positive[self.order][known]
        if not y.any() or y.all() or len(np.unique(self.groups[known])) < 3:
            return None
        kept = cap_rows(self.groups[known], y, max_rows, self.seed)
        at = np.flatnonzero(known)[kept]
        members, groups = np.unique(self.groups[at], return_inverse=True)
        share = np.bincount(groups, weights=y[kept]) / np.bincount(groups)
        constant = bool(np.isin(share, (0, 1)).all())
        part = group_split(self.names[members], self.seed, labels=share == 1).part if constant else self.part[members]
        return Task(
            name=name,
            label=info.name,
            description=info.description,
            rows=self.order[at],
            y=y[kept],
            part=part[groups],
            own_split=constant,
            groups=groups,
            tokens=self.tokens[at],
            prevalence=float(y.mean()),
        )

    def tasks_of(self, info: LabelInfo, max_rows: int, pattern: str = "*") -> Iterator[tuple[str, Task | None]]:
        """Go through the tasks of a label that a pattern names: itself, or by category if it is no yes/no label."""
        names = [info.name] if info.kind == "binary" else [f"{info.name}={category}" for category in info.categories]
        wanted = [at for at, name in enumerate(names) if fnmatchcase(info.name, pattern) or fnmatchcase(name, pattern)]
        if not wanted:
            return
        values, defined = self.store.label(info.name)
        for at in wanted:
            positive = values == (1 if info.kind == "binary" else at)
            yield names[at], self.task(names[at], info, positive, defined, max_rows)


def make_tasks(
    store: Store,
    wanted: str | Sequence[str] | None,
    *,
    max_rows: int,
    max_labels: int,
    seed: int,
    log: logging.Logger,
) -> list[Task]:
    """Choose labels and make a task of each.

    Parameters
    ----------
    store : Store
        With labels.
    wanted : str or sequence of str, optional
        Names or patterns of labels, or of single categories (``LABEL=CATEGORY``). By default yes/no labels with enough
        documents: familiar ones where the store has them, else one of each group in turn.
    max_rows : int
        Rows of each task.
    max_labels : int
        How many are chosen by default.
    seed : int
        Of the split and of the choice of rows.
    log : logging.Logger
        Told what is left out.

    Raises
    ------
    UserError
        If a name matches nothing, a label is of another kind, or one that was asked for has too few rows.
    """
    documents = Documents(store, seed)
    if wanted is None:
        return _default_tasks(documents, max_rows, max_labels, log)
    tasks: dict[str, Task] = {}
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        exact = not any(sign in pattern for sign in "*?[")
        found = False
        for info in _probed_labels(store, pattern):
            for name, task in documents.tasks_of(info, max_rows, pattern):
                found = True
                complaint = f"label {name!r} has one value only" if task is None else task.complaint()
                if complaint and exact and name == pattern:
                    raise UserError(f"{store.folder}: {complaint}")
                if complaint:
                    log.warning("left out: %s", complaint)
                elif task is not None:
                    tasks[name] = task
        if not found:
            raise UserError(f"{store.folder} has no label {pattern!r}; nearest: {nearest(pattern, store.labels)}")
    if not tasks:
        raise UserError(f"{store.folder}: no label asked for has enough rows in train, select and test documents")
    return _without_mirrors(list(tasks.values()), log)


def _without_mirrors(tasks: Sequence[Task], log: logging.Logger) -> list[Task]:
    """Leave out one of two categories that are each other's opposite: it would be the same finding, counted twice.

    The rarer one stays, or the first by name.
    """
    kept: list[Task] = []
    for task in sorted(tasks, key=lambda task: (task.prevalence, task.name)):
        # every category is asked of the same rows, so that only two that leave nothing to a third make up the whole
        mirrors = [other for other in kept if other.label == task.label and task.prevalence + other.prevalence > WHOLE]
        if mirrors:
            log.info("left out: %s, the opposite of %s", task.name, mirrors[0].name)
        else:
            kept.append(task)
    names = {task.name for task in kept}
    return [task for task in tasks if task.name in names]


def _probed_labels(store: Store, pattern: str) -> list[LabelInfo]:
    """Return the labels that can be probed; one that is named outright must be among them."""
    labels = store.labels
    if pattern in labels and labels[pattern].kind not in ("binary", "categories"):
        kind = labels[pattern].kind
        raise UserError(
            f"label {pattern!r} is of kind {kind!r}: sparse-probe takes labels of kind binary or categories"
        )
    return [info for info in labels.values() if info.kind in ("binary", "categories")]


def _default_tasks(documents: Documents, max_rows: int, max_labels: int, log: logging.Logger) -> list[Task]:
    by_group: dict[str, list[Task]] = {}
    labels = documents.store.labels
    familiar = [labels[name] for name in FAMILIAR if name in labels]
    for info in familiar or labels.values():
        if info.kind == "binary":
            task = next(documents.tasks_of(info, max_rows))[1]
            complaint = "it has one value only" if task is None else task.complaint()
            n_groups = 0 if task is None else len(np.unique(task.groups[task.y]))
            if not complaint and n_groups < ENOUGH_GROUPS:
                complaint = f"only {n_groups} documents have a positive row"
            if complaint:
                log.info("label %r is left out: %s", info.name, complaint)
            elif task is not None:
                by_group.setdefault(info.group, []).append(task)
    groups = [[task] for tasks in by_group.values() for task in tasks] if familiar else list(by_group.values())
    in_turn = [task for tasks in zip_longest(*groups) for task in tasks if task is not None]
    if not in_turn:
        raise UserError(
            f"{documents.store.folder} has no yes/no label with positive rows in {ENOUGH_GROUPS} documents: name one "
            f"with label=…, of {', '.join(labels)}"
        )
    if len(in_turn) > max_labels:
        log.info(
            "%d labels are probed (max_labels); left out: %s; name them with label=…",
            max_labels,
            ", ".join(task.name for task in in_turn[max_labels:]),
        )
    return in_turn[:max_labels]
