"""Scores of a yes/no probe, and what each would be for a probe that knows nothing.

AUC and average precision are computed from the probe's scores; F1, MCC and balanced accuracy from their sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from workbench.probes.errors import ProbeError

Metric = Literal["auc", "average_precision", "f1", "mcc", "balanced_accuracy", "log_loss"]
METRICS: tuple[Metric, ...] = ("auc", "average_precision", "f1", "mcc", "balanced_accuracy", "log_loss")
METRIC_HELP: Mapping[Metric, str] = {
    "auc": "probability that a positive row scores above a negative one",
    "average_precision": "mean precision over the positive rows, best score first",
    "f1": "harmonic mean of precision and recall at score 0",
    "mcc": "correlation of the sign of the score with the label",
    "balanced_accuracy": "mean of the two classes' accuracies at score 0",
    "log_loss": "cross-entropy in bits, both classes weighing the same",
}


def lower_is_better(metric: Metric) -> bool:
    """Tell whether a smaller value is the better one: log loss alone."""
    return metric == "log_loss"


def floor(metric: Metric, prevalence: float) -> float:
    """Return the value of the best probe that does not look at the row.

    F1: `2p/(1+p)` (always yes); average precision: p; AUC, balanced accuracy: 1/2; MCC: 0; log loss: 1 bit.
    """
    known: dict[str, float] = {
        "auc": 0.5,
        "average_precision": prevalence,
        "f1": 2 * prevalence / (1 + prevalence),
        "mcc": 0.0,
        "balanced_accuracy": 0.5,
        "log_loss": 1.0,
    }
    if metric not in known:
        raise ProbeError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    return known[metric]


def ratio(top: ArrayLike, bottom: ArrayLike) -> np.ndarray:
    """Divide, giving 0 where the denominator is 0: what F1 and MCC mean when a probe never says yes."""
    out = np.zeros_like(np.asarray(bottom, dtype=float))
    return np.asarray(np.divide(top, bottom, out=out, where=np.asarray(bottom) > 0))


def from_counts(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> dict[Metric, np.ndarray]:
    """Return F1, MCC and balanced accuracy from confusion counts, element by element.

    Balanced accuracy is NaN where a class is absent.
    """
    hit, alarm, miss, rest = (np.asarray(count, dtype=float) for count in (tp, fp, fn, tn))
    with np.errstate(invalid="ignore", divide="ignore"):
        balanced = (hit / (hit + miss) + rest / (rest + alarm)) / 2
    mcc = ratio(hit * rest - alarm * miss, np.sqrt((hit + alarm) * (hit + miss) * (rest + alarm) * (rest + miss)))
    return {"f1": ratio(2 * hit, 2 * hit + alarm + miss), "mcc": mcc, "balanced_accuracy": np.asarray(balanced)}


def from_histograms(positive: np.ndarray, negative: np.ndarray) -> dict[Metric, np.ndarray]:
    """Return AUC and average precision from counts per score, highest score first, along the last axis.

    Equal scores count one half in the AUC and are one step in average precision, as scikit-learn has it.
    NaN where a class is absent.

    Parameters
    ----------
    positive, negative : np.ndarray
        [..., scores] number (or weight) of rows of each class at each score.
    """
    above = np.cumsum(positive, axis=-1)
    wrong = np.cumsum(negative, axis=-1)
    n_positive, n_negative = above[..., -1], wrong[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        concordant = np.einsum("...s,...s->...", negative, above - positive / 2)
        auc = concordant / (n_positive * n_negative)
        average = np.einsum("...s,...s->...", positive, ratio(above, above + wrong)) / n_positive
    return {"auc": np.asarray(auc), "average_precision": np.asarray(average)}


def row_losses(y: Bool[np.ndarray, " rows"], score: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return each row's cross-entropy in bits, the score being a log odds (natural)."""
    return np.asarray(np.logaddexp(0.0, np.where(y, -score, score)) / np.log(2))


def evaluate(y: Bool[np.ndarray, " rows"], score: Float[np.ndarray, " rows"]) -> dict[Metric, float]:
    """Return every metric of scores against labels.

    Parameters
    ----------
    y : np.ndarray of bool
        [rows] label.
    score : np.ndarray
        [rows] the probe's log odds; positive says yes.

    Returns
    -------
    dict
        By metric; NaN where a class is absent.

    Raises
    ------
    ProbeError
        If there are no rows, or a score is not finite.
    """
    y = np.asarray(y, dtype=bool)
    score = np.asarray(score, dtype=float)
    if y.shape != score.shape or y.ndim != 1 or not len(y):
        raise ProbeError(f"labels {y.shape} and scores {score.shape}: must be one number each for at least one row")
    if not np.isfinite(score).all():
        raise ProbeError("scores must be finite")
    yes = score > 0
    counts = from_counts((y & yes).sum(), (~y & yes).sum(), (y & ~yes).sum(), (~y & ~yes).sum())
    order = np.argsort(-score)
    edges = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    hits = y[order].astype(float)
    ranked = from_histograms(np.add.reduceat(hits, edges), np.add.reduceat(1 - hits, edges))
    losses = row_losses(y, score)
    loss = (losses[y].mean() + losses[~y].mean()) / 2 if y.any() and not y.all() else np.nan
    values = {**ranked, **counts, "log_loss": np.asarray(loss)}
    return {metric: float(values[metric]) for metric in METRICS}
