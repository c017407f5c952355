"""One label at one hook point: choose units, fit, score once, and measure what chance would have given."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.plugins.sparse_probe.tasks import Task
from workbench.plugins.sparse_probe.units import Scaled
from workbench.probes import (
    METRICS,
    Interval,
    balanced_weights,
    bootstrap_weights,
    control_labels,
    evaluate,
    group_intervals,
    permute_labels,
    select_units,
)
from workbench.probes.metrics import Metric
from workbench.probes.newton import LogisticFit, fit_logistic
from workbench.probes.selectors import SCORES, Selector, columns, label_scores, rank

CS = tuple(10.0**power for power in range(-4, 3))
NULL_TOL = 1e-2  # one Newton step from zero: shuffled labels leave next to nothing to fit
SHUFFLES_AT_ONCE = 50


@dataclass(frozen=True)
class Fitted:
    """A k-sparse probe.

    Attributes
    ----------
    support : np.ndarray
        [k] units, best first.
    fit : LogisticFit
        On scaled units.
    C : float
        Chosen on the select documents by log loss.
    select : dict
        Metrics on the select documents.
    test : dict
        Metrics with their intervals on the test documents.
    control : dict
        Metrics of the same procedure on the control task.
    seconds : float
        To choose and fit.
    """

    support: np.ndarray
    fit: LogisticFit
    C: float
    select: dict[Metric, float]
    test: dict[Metric, Interval]
    control: dict[Metric, float]
    seconds: float


class Measurement:
    """A task on the units of one hook point.

    Parameters
    ----------
    task : Task
        Rows and answers.
    units : Scaled
        [rows of the task, units].
    ks : sequence of int
        How many units, ascending.
    selector : str
        How they are chosen.
    """

    def __init__(self, task: Task, units: Scaled, ks: Sequence[int], selector: Selector) -> None:
        self.task, self.units, self.ks, self.selector = task, units, ks, selector
        self.parts = [np.flatnonzero(task.at(part)) for part in range(3)]
        self.train = units.values[self.parts[0]]

    def choose(self, y: np.ndarray) -> dict[int, np.ndarray]:
        """Choose units for every k from the training rows, with labels [rows]."""
        return select_units(
            self.train, y[self.parts[0]], self.ks, self.selector, scale=self.units.scaler.scale.astype(np.float32)
        )

    def rows_of(self, support: np.ndarray) -> np.ndarray:
        """Return [rows, k] values of some units, dense."""
        return columns(self.units.values, support)

    def fit(self, Z: np.ndarray, y: np.ndarray, C: float, tol: float = 1e-10) -> LogisticFit:
        """Fit to the training rows of Z [rows, k] and y [rows]."""
        train = self.parts[0]
        return fit_logistic(Z[train], y[train], balanced_weights(y[train]), C, tol=tol)

    def score(self, Z: np.ndarray, y: np.ndarray, fit: LogisticFit, part: int) -> dict[Metric, float]:
        """Return metrics of a fit on one part."""
        at = self.parts[part]
        return evaluate(y[at], fit(Z[at]))

    def sparse(self, weights: np.ndarray, rng: np.random.Generator) -> dict[int, Fitted]:
        """Return the probe of every k.

        Parameters
        ----------
        weights : np.ndarray
            [draws, groups] from `bootstrap_weights`, over the test documents.
        rng : np.random.Generator
            Of the control task.
        """
        y = self.task.y
        groups = np.unique(self.task.groups[self.parts[2]], return_inverse=True)[1]
        started = time.perf_counter()
        supports = self.choose(y)
        choosing = (time.perf_counter() - started) / len(self.ks)
        control_y = control_labels(self.task.tokens, y, rng)
        controls = self.choose(control_y) if self._both_classes(control_y) else {}
        found = {}
        for k, support in supports.items():
            started = time.perf_counter()
            Z = self.rows_of(support)
            fit, C = self._best_fit(Z)
            seconds = choosing + time.perf_counter() - started
            control = dict.fromkeys(METRICS, np.nan)
            if controls:
                Zc = self.rows_of(controls[k])
                control = self.score(Zc, control_y, self.fit(Zc, control_y, C), 2)
            at = self.parts[2]
            test = group_intervals(y[at], fit(Z[at]).astype(np.float64), groups, weights)
            found[k] = Fitted(support, fit, C, self.score(Z, y, fit, 1), test, control, seconds)
        return found

    def control(
        self, weights: np.ndarray, rng: np.random.Generator, fitted: dict[int, Fitted]
    ) -> dict[int, dict[Metric, Interval]]:
        """Return test metrics with intervals for every k after the labels were permuted over all rows of each part.

        Nothing is left to find, so that the intervals should cover the floor: the negative control.
        """
        y = self.task.y.copy()
        for at in self.parts:
            y[at] = rng.permutation(y[at])
        test, found = self.parts[2], {}
        groups = np.unique(self.task.groups[test], return_inverse=True)[1]
        for k, support in self.choose(y).items():
            Z = self.rows_of(support)
            fit = self.fit(Z, y, fitted[k].C, tol=1e-8)
            found[k] = group_intervals(y[test], fit(Z[test]).astype(np.float64), groups, weights)
        return found

    def _both_classes(self, y: np.ndarray) -> bool:
        return all(y[at].any() and not y[at].all() for at in self.parts)

    def _best_fit(self, Z: np.ndarray) -> tuple[LogisticFit, float]:
        """Fit every C, each starting from the stronger penalty's fit; the select part chooses."""
        y, (train, select, _) = self.task.y, self.parts
        weights = balanced_weights(y[train])
        fit: LogisticFit | None = None
        best: tuple[float, LogisticFit, float] | None = None
        for C in CS:
            fit = fit_logistic(Z[train], y[train], weights, C, start=fit)
            loss = evaluate(y[select], fit(Z[select]))["log_loss"]
            if best is None or loss < best[0]:
                best = loss, fit, C
        assert best is not None
        return best[1], best[2]

    def random_units(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return [draws, ks, metrics] test metrics of probes on units chosen at random, the same ones nested over k."""
        y, most = self.task.y, max(self.ks)
        values = np.full((n_draws, len(self.ks), len(METRICS)), np.nan)
        for draw in range(n_draws):
            Z = self.rows_of(rng.choice(self.units.usable, most, replace=False))
            for at, k in enumerate(self.ks):
                values[draw, at] = list(self.score(Z[:, :k], y, self.fit(Z[:, :k], y, 1.0, tol=1e-8), 2).values())
        return values

    def shuffled(self, n_draws: int, rng: np.random.Generator, fitted: dict[int, Fitted]) -> np.ndarray:
        """Return [draws, ks, metrics] test metrics of the same procedure on permuted labels.

        Units are chosen and fitted anew in each draw; C is that of the true labels. The generator's draws do not
        depend on the units, so that one seed gives the same permutations at every hook point.
        """
        values = np.full((n_draws, len(self.ks), len(METRICS)), np.nan)
        for draw, (y, supports) in enumerate(self._choices(n_draws, rng)):
            if not self._both_classes(y):
                continue
            nested = all((supports[k] == supports[self.ks[-1]][:k]).all() for k in self.ks)
            widest = self.rows_of(supports[self.ks[-1]]) if nested else None
            for at, k in enumerate(self.ks):
                Z = self.rows_of(supports[k]) if widest is None else widest[:, :k]
                fit = self.fit(Z, y, fitted[k].C, tol=NULL_TOL)
                values[draw, at] = list(self.score(Z, y, fit, 2).values())
        return values

    def _choices(self, n_draws: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """Go through permuted labels and the units chosen by them."""
        task, train = self.task, self.parts[0]
        for first in range(0, n_draws, SHUFFLES_AT_ONCE):
            n = min(SHUFFLES_AT_ONCE, n_draws - first)
            permuted = [permute_labels(task.y, task.groups, rng, task.part) for _ in range(n)]
            if self.selector not in SCORES:
                for y in permuted:
                    yield y, self.choose(y) if self._both_classes(y) else {k: np.arange(k) for k in self.ks}
                continue
            Y = np.stack([y[train] for y in permuted], axis=1).astype(np.float32)
            scores = label_scores(self.train, Y, self.selector, self.units.scaler.scale.astype(np.float32))
            for y, row in zip(permuted, scores, strict=True):
                order = rank(row)
                yield y, {k: order[:k] for k in self.ks}


def resamples_of_test(task: Task, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw resamples of a task's test documents, to be shared by all probes of the task."""
    return bootstrap_weights(len(np.unique(task.groups[task.at(2)])), n_draws, rng)
