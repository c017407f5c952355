"""Iterative nullspace projection: fit a linear classifier, erase what it reads, fit the next on what is left.

Ravfogel et al. 2020. The projection is that onto the intersection of the classifiers' nullspaces, through the sum of
their row spaces; the product of the single projections would depend on their order, and be no projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import clone

from workbench.probes.accuracy import ClassCounts
from workbench.probes.errors import ProbeError
from workbench.probes.linear import LDAProbe, LogisticProbe
from workbench.probes.projections import Projection, row_basis
from workbench.probes.statistics import Interval

EMPTY = 1e-5  # of a unit's deviation: below, what an erasure left of it is rounding
Stopped = Literal["indistinguishable", "max_rounds", "nothing left"]


@dataclass(frozen=True)
class Held:
    """Rows that are not fitted on, by which the rounds are stopped.

    Attributes
    ----------
    X, codes : np.ndarray
        [rows, units] and [rows] class, 0 to classes − 1.
    groups : np.ndarray
        [rows] document, from 0.
    weights : np.ndarray
        [draws, groups] from `bootstrap_weights`.
    """

    X: Float[np.ndarray, "rows units"]
    codes: Int[np.ndarray, " rows"]
    groups: Int[np.ndarray, " rows"]
    weights: Float[np.ndarray, "draws groups"]


@dataclass(frozen=True)
class Round:
    """One classifier, fitted on rows with `rank` directions erased.

    Attributes
    ----------
    rank : int
        Directions erased before it.
    balanced_accuracy : Interval
        On the held rows, 95 % over groups.
    """

    rank: int
    balanced_accuracy: Interval


@dataclass(frozen=True)
class Inlp:
    """The result of `fit_inlp`.

    Attributes
    ----------
    projection : Projection
        Orthogonal; its columns are in the order of the rounds, so `after` gives that of each round.
    rounds : tuple of Round
        In order; the last one was not erased any more.
    stopped : str
        ``indistinguishable``: the interval reaches down to chance, and the value is no more than the margin above it.
        ``max_rounds``; ``nothing left``: no direction.
    chance : float
        One over the number of classes: balanced accuracy of the majority.
    """

    projection: Projection
    rounds: tuple[Round, ...]
    stopped: Stopped
    chance: float

    def after(self, n_rounds: int) -> Projection:
        """Return the projection as it was after so many rounds; 0 erases nothing."""
        basis = self.projection.removed[:, : self.rounds[n_rounds].rank]
        return Projection(basis, basis, self.projection.mean, about=self.projection.about)


def fit_inlp(
    X: Float[np.ndarray, "rows units"],
    codes: Int[np.ndarray, " rows"],
    held: Held,
    *,
    classifier: Any = None,
    max_rounds: int = 50,
    margin: float = 0.0,
    mean: Float[np.ndarray, " units"] | None = None,
    rows_of_round: Callable[[int], Bool[np.ndarray, " rows"]] | None = None,
    progress: Callable[[Round], None] = lambda _: None,
) -> Inlp:
    """Erase directions until a fresh classifier does no better than the majority on rows that it was not fitted on.

    Parameters
    ----------
    X : np.ndarray
        [rows, units] fitting rows.
    codes : np.ndarray
        [rows] class, 0 to classes − 1; both or all of them present.
    held : Held
        Rows of other documents.
    classifier : estimator, optional
        Linear: with `coef_` [(classes,) units] after `fit`, or one against the rest of such (scikit-learn's
        ``OneVsRestClassifier``). A logistic probe by default.
    max_rounds : int
        Classifiers erased at most.
    margin : float
        Once something was erased, go on while balanced accuracy lies more than this above chance, even if its interval
        reaches down there. The first interval that does is often a lucky one: with a margin of 0.02, in 28 of
        120 draws of planted classes the interval on fresh rows did not contain chance; with 0, in 7.
    mean : np.ndarray, optional
        [units] kept in the erased directions; by default the origin, as in the paper.
    rows_of_round : callable, optional
        ``rows_of_round(n)`` gives the mask of the rows that round n is fitted on: those of one class of the main task,
        so that what tells the main task's classes is spared (the paper's ``by_class``).
    progress : callable
        Called with each round.

    Raises
    ------
    ProbeError
        On fewer than two classes, or a classifier without coefficients.
    """
    if max_rounds < 0:
        raise ProbeError(f"max_rounds={max_rounds}: must be at least 0")
    n_classes = int(codes.max(initial=0)) + 1
    if n_classes < 2:
        raise ProbeError("all rows are of one class: there is nothing to erase")
    estimator = LogisticProbe() if classifier is None else classifier
    mean = np.zeros(X.shape[1]) if mean is None else np.asarray(mean, dtype=np.float64)
    basis = np.zeros((X.shape[1], 0))
    rows = _Centred(X)
    rounds: list[Round] = []
    stopped: Stopped = "nothing left"
    while True:
        at = slice(None) if rows_of_round is None else rows_of_round(len(rounds))
        if basis.shape[1] == X.shape[1]:
            score = Interval(1 / n_classes, 1 / n_classes, 1 / n_classes)  # nothing but the mean is left
            rounds.append(Round(basis.shape[1], score))
            break
        fitted = clone(estimator).fit(rows.without(X[at], basis), codes[at])
        predicted = predict_evenly(fitted, rows.without(held.X, basis))
        counts = ClassCounts.collect(held.codes, predicted, held.groups, held.weights.shape[1], n_classes)
        rounds.append(Round(basis.shape[1], counts.balanced_interval(held.weights)))
        progress(rounds[-1])
        score = rounds[-1].balanced_accuracy
        near = score.value <= 1 / n_classes + margin or not basis.shape[1]  # what was never read is left alone
        if score.lo <= 1 / n_classes and near:
            stopped = "indistinguishable"
            break
        if len(rounds) > max_rounds:
            stopped = "max_rounds"
            break
        new = row_basis(weights_of(fitted), basis)
        if not new.shape[1]:
            break
        basis = np.concatenate([basis, new], axis=1)
    return Inlp(Projection(basis, basis, mean), tuple(rounds), stopped, 1 / n_classes)


class _Centred:
    """Rows around the mean of the fitting rows, some directions erased, and not even their rounding left.

    A unit that an erasure empties keeps rounding, which a probe that standardises would blow up and read.
    """

    def __init__(self, X: Float[np.ndarray, "rows units"]) -> None:
        self.X, self.mean = X, X.mean(axis=0, dtype=np.float64)
        self.deviation = X.std(axis=0, dtype=np.float64)
        self.emptied = (np.zeros((X.shape[1], 0)), np.zeros(X.shape[1], dtype=bool))

    def without(self, X: Float[np.ndarray, "rows units"], basis: Float[np.ndarray, "units rank"]) -> np.ndarray:
        """Return rows [rows, units] less their share in an orthonormal basis [units, rank]."""
        if self.emptied[0] is not basis:
            deviation = self._erased(self.X, basis).std(axis=0, dtype=np.float64)
            self.emptied = (basis, deviation < EMPTY * self.deviation)
        erased = self._erased(X, basis)
        erased[:, self.emptied[1]] = 0
        return erased

    def _erased(self, X: np.ndarray, basis: np.ndarray) -> np.ndarray:
        around = X - self.mean
        around -= (around @ basis) @ basis.T
        return np.asarray(around.astype(X.dtype, copy=False))


def weights_of(fitted: Any) -> Float[np.ndarray, "rows units"]:
    """Return the rows whose common nullspace a fitted classifier cannot read.

    Raises
    ------
    ProbeError
        If it has no coefficients.
    """
    parts = getattr(fitted, "estimators_", [fitted])
    if not all(hasattr(part, "coef_") for part in parts):
        raise ProbeError(
            f"{type(fitted).__name__} has no coef_: iterative nullspace projection needs a linear classifier"
        )
    return np.concatenate([np.atleast_2d(np.asarray(part.coef_, dtype=np.float64)) for part in parts])


def even_scores(fitted: Any, X: Float[np.ndarray, "rows units"]) -> Float[np.ndarray, "rows classes"]:
    """Return scores of classes that weigh the same: a linear discriminant's prior is taken out again."""
    scores = np.asarray(fitted.decision_function(X), dtype=np.float64)
    if scores.ndim == 1:
        scores = np.column_stack([np.zeros_like(scores), scores])
    return np.asarray(scores - np.log(fitted.prior_)) if isinstance(fitted, LDAProbe) else scores


def predict_evenly(fitted: Any, X: Float[np.ndarray, "rows units"]) -> Int[np.ndarray, " rows"]:
    """Return the likelier class [rows], as its number, under classes that weigh the same."""
    return np.asarray(fitted.classes_[even_scores(fitted, X).argmax(axis=1)], dtype=np.int64)
