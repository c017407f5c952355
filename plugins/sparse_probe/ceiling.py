"""The dense probe: what all units together tell, as a ceiling for the sparse ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.plugins.sparse_probe.tasks import Task
from workbench.plugins.sparse_probe.units import ROWS_AT_ONCE, Matrix, Scaled
from workbench.probes import evaluate
from workbench.probes.streamed import StreamedFit, balanced_label_weights, fit_streamed

CS = tuple(10.0**power for power in range(-4, 1))
PASSES = 100
GRAM_UNITS = 4096  # above, the units' cross-products cost more than the passes that they save


@dataclass(frozen=True)
class Dense:
    """A logistic probe on all units.

    Attributes
    ----------
    select, test : np.ndarray
        Scores of the select and the test rows, in the task's order.
    C : float
        Chosen on the select documents by log loss.
    converged : bool
        False if the passes over the rows ran out.
    seconds : float
        This label's share of the time.
    """

    select: np.ndarray
    test: np.ndarray
    C: float
    converged: bool
    seconds: float


def dense_probes(X: Matrix, tasks: Sequence[Task], places: Sequence[np.ndarray]) -> list[Dense]:
    """Fit all tasks that share a split at once.

    Parameters
    ----------
    X : np.ndarray or csr_matrix
        [rows, units].
    tasks : sequence of Task
        Tasks; those with a split of their own are fitted by themselves.
    places : sequence of np.ndarray
        For each task, which rows of X its rows are.
    """
    together = [at for at, task in enumerate(tasks) if not task.own_split]
    batches = [together] * bool(together) + [[at] for at, task in enumerate(tasks) if task.own_split]
    found: dict[int, Dense] = {}
    for batch in batches:
        fits = _fit(X, [tasks[at] for at in batch], [places[at] for at in batch])
        found |= dict(zip(batch, fits, strict=True))
    return [found[at] for at in range(len(tasks))]


def _fit(X: Matrix, tasks: Sequence[Task], places: Sequence[np.ndarray]) -> list[Dense]:
    started = time.perf_counter()
    Y = np.zeros((X.shape[0], len(tasks)), dtype=bool)
    defined = np.zeros_like(Y)
    for label, (task, at) in enumerate(zip(tasks, places, strict=True)):
        members = task.at(0)
        Y[at[members], label], defined[at[members], label] = task.y[members], True
    train = np.asarray(defined.any(axis=1))
    rows = np.flatnonzero(train)
    scaled = Scaled.fit(X, train)
    values = scaled.values.tocsr() if not isinstance(scaled.values, np.ndarray) else scaled.values
    Z, truth = np.ascontiguousarray(values[rows]) if isinstance(values, np.ndarray) else values[rows], Y[rows]
    weights = balanced_label_weights(truth, defined[rows])
    target = truth.astype(np.float64)
    gram = _gram(Z) if X.shape[1] <= GRAM_UNITS else None
    best: dict[int, tuple[float, float, StreamedFit, int]] = {}  # select loss, C, fit, the label's column in it
    fit: StreamedFit | None = None
    active = np.arange(len(tasks))
    for C in CS:
        if not len(active):
            break
        fit = _fit_labels(Z, target[:, active], weights[:, active], C, fit, gram)
        better = []
        for column, label in enumerate(active.tolist()):
            task, at = tasks[label], places[label]
            loss = evaluate(task.y[task.at(1)], _scores(values, at[task.at(1)], fit, column))["log_loss"]
            better.append(label not in best or loss < best[label][0])
            if better[-1]:
                best[label] = loss, C, fit, column
        # a label that does worse with a weaker penalty is done
        active, fit = active[better], fit.of_labels(np.flatnonzero(better))
    seconds = (time.perf_counter() - started) / len(tasks)
    dense = []
    for label, (task, at) in enumerate(zip(tasks, places, strict=True)):
        _, C, fit, column = best[label]
        scores = [_scores(values, at[task.at(part)], fit, column) for part in (1, 2)]
        dense.append(Dense(scores[0], scores[1], C, fit.converged, seconds))
    return dense


def _fit_labels(
    Z: Matrix, target: np.ndarray, weights: np.ndarray, C: float, start: StreamedFit | None, gram: np.ndarray | None
) -> StreamedFit:
    def chunks() -> Iterator[tuple[Matrix, np.ndarray, np.ndarray]]:
        for first in range(0, len(target), ROWS_AT_ONCE):
            at = slice(first, first + ROWS_AT_ONCE)
            yield Z[at], target[at], weights[at]

    return fit_streamed(chunks, C, start=start, gram=gram, tol=1e-4, max_iter=PASSES)


def _gram(Z: Matrix) -> np.ndarray:
    product = Z.T @ Z
    dense = product if isinstance(product, np.ndarray) else product.toarray()
    return np.asarray(dense / np.float64(Z.shape[0]), dtype=np.float64)


def _scores(values: Matrix, rows: np.ndarray, fit: StreamedFit, label: int) -> np.ndarray:
    coef = fit.coef[:, label].astype(np.float32)
    return np.asarray(values[rows] @ coef, dtype=np.float64) + float(fit.intercept[label])
