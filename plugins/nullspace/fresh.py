"""Probes fitted anew on what an erasure leaves: linear ones, a small network, an RBF kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.kernel_approximation import Nystroem
from sklearn.neural_network import MLPClassifier

from workbench.probes import ClassCounts, LDAProbe, LogisticProbe, Projection, Standardiser
from workbench.probes.inlp import EMPTY, even_scores
from workbench.probes.statistics import Interval, group_intervals, percentile_interval

LINEAR = ("logistic", "lda")
NONLINEAR = ("network", "rbf")
CS = (1e-4, 1e-2, 1.0)
N_EPOCHS = 12
N_HIDDEN = 64
N_CENTRES = 300
FIT_AT_MOST = 10_000  # rows of the non-linear probes


@dataclass(frozen=True)
class Sets:
    """Rows and classes of the three parts.

    Attributes
    ----------
    X, codes : tuple of np.ndarray
        Train, select, test: [rows, units] and [rows].
    groups : np.ndarray
        [test rows] document, from 0.
    n_classes : int
        Number of classes.
    """

    X: tuple[np.ndarray, np.ndarray, np.ndarray]
    codes: tuple[np.ndarray, np.ndarray, np.ndarray]
    groups: np.ndarray
    n_classes: int

    @property
    def prior(self) -> np.ndarray:
        """Log share [classes] of the training rows."""
        counts = np.bincount(self.codes[0], minlength=self.n_classes)
        return np.asarray(np.log(counts / counts.sum()))


@dataclass(frozen=True)
class Fresh:
    """What a fresh probe says of test rows.

    Attributes
    ----------
    scores : np.ndarray
        [test rows, classes] log odds of classes that weigh the same.
    C : float
        The inverse penalty that select documents chose; NaN for probes without one.
    """

    scores: np.ndarray
    C: float = float("nan")


def erased_rows(erase: Projection, X: np.ndarray) -> np.ndarray:
    """Return rows [rows, units] with an erasure applied, and units that it emptied at their mean.

    What rounding leaves of such a unit is tiny, but a probe that standardises would blow it up and read it.
    """
    left = erase(X)
    emptied = left.std(axis=0, dtype=np.float64) < EMPTY * X.std(axis=0, dtype=np.float64)
    left[:, emptied] = left[:, emptied].mean(axis=0, dtype=np.float64)
    return left


def fit_fresh(probe: str, sets: Sets, rng: np.random.Generator, Cs: Sequence[float] = CS) -> Fresh:
    """Fit a probe on train, choose its penalty among some (or when to stop) on select, and score test rows."""
    train, select, test = sets.X
    if probe == "lda":
        return Fresh(even_scores(LDAProbe().fit(train, sets.codes[0]), test))
    if probe == "logistic":
        return _chosen_logistic([train, select, test], sets.codes[0], sets, Cs)
    kept = np.sort(rng.permutation(len(train))[:FIT_AT_MOST])
    scaler = Standardiser.fit(train)
    scaled, codes = [scaler(each) for each in (train[kept], select, test)], sets.codes[0][kept]
    if probe == "network":
        return Fresh(_network(scaled, codes, sets, int(rng.integers(2**31))))
    half = min(500, len(kept) // 2)
    pairs = scaled[0][rng.permutation(len(kept))[: 2 * half]].astype(np.float64)
    distance = float(np.median(np.square(pairs[:half] - pairs[half:]).sum(1)))
    kernel = Nystroem(
        gamma=1 / max(distance, 1e-12), n_components=min(N_CENTRES, len(kept)), random_state=int(rng.integers(2**31))
    ).fit(scaled[0])
    return _chosen_logistic([kernel.transform(each) for each in scaled], codes, sets, Cs)


def _chosen_logistic(parts: list[np.ndarray], codes: np.ndarray, sets: Sets, Cs: Sequence[float]) -> Fresh:
    best, found = np.inf, Fresh(np.zeros((len(parts[2]), sets.n_classes)))
    for C in Cs:
        fitted = LogisticProbe(C=C).fit(parts[0], codes)
        loss = _even_loss(even_scores(fitted, parts[1]), sets.codes[1]) if len(Cs) > 1 else 0.0
        if loss < best:
            best, found = loss, Fresh(even_scores(fitted, parts[2]), C)
    return found


def _network(scaled: list[np.ndarray], codes: np.ndarray, sets: Sets, seed: int) -> np.ndarray:
    """One hidden layer; the epoch is chosen on the select rows."""
    network = MLPClassifier((N_HIDDEN,), batch_size=min(256, len(codes)), alpha=1e-3, random_state=seed)
    prior = np.log(np.bincount(codes, minlength=sets.n_classes) / len(codes))
    best, scores = np.inf, np.zeros((len(scaled[2]), sets.n_classes))
    for _ in range(N_EPOCHS):
        network.partial_fit(scaled[0], codes, classes=np.arange(sets.n_classes))
        selected, tested = (np.log(network.predict_proba(each).clip(1e-12)) - prior for each in scaled[1:])
        loss = _even_loss(selected, sets.codes[1])
        if loss < best:
            best, scores = loss, tested
    return scores


def _even_loss(scores: np.ndarray, codes: np.ndarray) -> float:
    """Cross-entropy, nats, every class weighing the same."""
    losses = -log_softmax(scores, axis=1)[np.arange(len(codes)), codes]
    counts = np.bincount(codes, minlength=scores.shape[1])
    return float((losses / counts[codes]).sum())


def measured(scores: np.ndarray, sets: Sets, weights: np.ndarray) -> dict[str, tuple[Interval, float]]:
    """Return what scores [test rows, classes] are worth, with 95 % intervals over documents, and what no score gives.

    ``accuracy``: share of rows that are right, against always naming the class that is most frequent in training;
    ``balanced_accuracy``: mean over classes, against one over their number; ``bits``: what a row tells of its class,
    against 0; ``auc``, of two classes: that a row of the second scores above one of the first, against 1/2.

    Parameters
    ----------
    scores : np.ndarray
        From `fit_fresh`.
    sets : Sets
        As there.
    weights : np.ndarray
        [draws, test documents] from `bootstrap_weights`.
    """
    codes, n_groups = sets.codes[2], weights.shape[1]
    once = np.ones((1, n_groups))
    even = ClassCounts.collect(codes, scores.argmax(1), sets.groups, n_groups, sets.n_classes)
    full = ClassCounts.collect(codes, (scores + sets.prior).argmax(1), sets.groups, n_groups, sets.n_classes)
    at = np.arange(len(codes))
    gained = (log_softmax(scores + sets.prior, axis=1)[at, codes] - sets.prior[codes]) / np.log(2)
    bits = np.bincount(sets.groups, weights=gained, minlength=n_groups)
    rows = full.rows.sum(1)
    majority = float((codes == sets.prior.argmax()).mean())

    def interval(value: float, draws: np.ndarray) -> Interval:
        return Interval(value, *percentile_interval(draws))

    found = {
        "accuracy": (interval(float(full.accuracy(once)[0]), full.accuracy(weights)), majority),
        "balanced_accuracy": (even.balanced_interval(weights), 1 / sets.n_classes),
        "bits": (interval(float(bits.sum() / rows.sum()), (weights @ bits) / (weights @ rows)), 0.0),
    }
    if sets.n_classes == 2:
        found["auc"] = (group_intervals(codes == 1, scores[:, 1] - scores[:, 0], sets.groups, weights)["auc"], 0.5)
    return found
