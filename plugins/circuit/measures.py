"""How well scores find a known circuit: areas under curves by name, and precision and recall at a size or a threshold.

Units are nodes or edges; a larger score says "in the circuit". Equal scores are one step: no measure depends on the
order in which ties happen to lie.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

AreaKind = Literal["mann-whitney", "staircase"]


class Found(NamedTuple):
    """Units called a circuit, held against the truth.

    Attributes
    ----------
    n : int
        How many were called so.
    precision, recall, f1 : float
        0 where nothing was called so.
    """

    n: int
    precision: float
    recall: float
    f1: float


def steps(
    truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"]
) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
    """Return true and false units found once each distinct score is reached, best score first.

    Raises
    ------
    ValueError
        If shapes differ, or a score is not finite.
    """
    truth, score = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64)
    if truth.shape != score.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and scores {score.shape}: must be one of each for every unit")
    if not np.isfinite(score).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(score))} of {len(score)} scores are not finite")
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # where a run of equal scores ends
    hits = np.cumsum(truth[order])[last]
    return hits, last + 1 - hits


def roc_points(
    truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    hits, alarms = steps(truth, score)
    return np.append(0.0, alarms / max(alarms[-1], 1)), np.append(0.0, hits / max(hits[-1], 1))


def roc_auc(
    truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"], kind: AreaKind = "mann-whitney"
) -> float:
    """Return the area under the ROC curve; NaN where all units or none are true.

    Parameters
    ----------
    truth, score : np.ndarray
        [units] whether it is of the circuit, and its score.
    kind : str
        ``mann-whitney``: a true and a false unit with equal scores count one half (the trapezoid through the
        points of all distinct scores is the same number). ``staircase``: ties count against the scores, as in ACDC.
    """
    truth = np.asarray(truth, dtype=bool)
    x, y = roc_points(truth, score)
    if truth.all() or not truth.any():
        return float("nan")
    return area(x, y, "trapezoid" if kind == "mann-whitney" else "staircase")


def area(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"], kind: Literal["trapezoid", "staircase"]
) -> float:
    """Return the area under points of an ROC curve, such as those of a sweep over thresholds.

    Parameters
    ----------
    x, y : np.ndarray
        [points] false and true positive rates. Points below another one further left are passed over, and (0, 0)
        and (1, 1) are added.
    kind : str
        ``trapezoid`` joins neighbours by lines; ``staircase`` is the pessimistic sum
        ``Σ (1 − x[i+1]) (y[i+1] − y[i])`` of ACDC, which never lies above it.
    """
    order = np.lexsort((y, x))
    x, y = np.concatenate([[0.0], np.asarray(x)[order], [1.0]]), np.concatenate([[0.0], np.asarray(y)[order], [1.0]])
    best = np.maximum.accumulate(y)
    kept = y >= best
    x, y = x[kept], y[kept]
    if kind == "trapezoid":
        return float(np.trapezoid(y, x)) if hasattr(np, "trapezoid") else float(((y[1:] + y[:-1]) / 2) @ np.diff(x))
    return float((1 - x[1:]) @ np.diff(y))


def average_precision(truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"]) -> float:
    """Return the mean precision over true units, best first, equal scores being one step; NaN without true units."""
    hits, alarms = steps(truth, score)
    if not hits[-1]:
        return float("nan")
    return float(np.diff(hits, prepend=0) @ (hits / (hits + alarms)) / hits[-1])


def at_size(truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"], n: int | None = None) -> Found:
    """Hold the n best units against the truth.

    Parameters
    ----------
    truth, score : np.ndarray
        [units].
    n : int, optional
        As many as are true, if not given. Where the n-th score is shared, the hits are those expected of a random
        choice among the units that share it.
    """
    hits, alarms = steps(truth, score)
    n = int(hits[-1]) if n is None else n
    return _found(n, float(np.interp(n, np.append(0, hits + alarms), np.append(0, hits))), int(hits[-1]))


def at_best(truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"]) -> Found:
    """Hold the units above the threshold with the best F1 against the truth: chosen with the truth in view."""
    hits, alarms = steps(truth, score)
    return max((_found(int(h + a), float(h), int(hits[-1])) for h, a in zip(hits, alarms, strict=True)), key=_f1_first)


def paper_f1(truth: Bool[np.ndarray, " units"], score: Float[np.ndarray, " units"]) -> float:
    """Return the best "F1" of O'Neill & Bui: the harmonic mean of the true positive rate and 1 − the false one."""
    x, y = roc_points(truth, score)
    total = y + 1 - x
    return float(np.max(np.divide(2 * y * (1 - x), total, out=np.zeros_like(total), where=total > 0)))


def _found(n: int, hits: float, n_true: int) -> Found:
    precision, recall = (hits / n if n else 0.0), (hits / n_true if n_true else 0.0)
    return Found(n, precision, recall, 2 * hits / (n + n_true) if n + n_true else 0.0)


def _f1_first(found: Found) -> tuple[float, int]:
    return found.f1, -found.n
