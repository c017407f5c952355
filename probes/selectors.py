"""Which k units a sparse probe may look at: from a score per unit, or from fits that keep some and drop others.

All selectors take units of unit variance (`Standardiser`), dense or, uncentred, as sparse columns. Gurnee+ 2305.01610
§3 compares most of them; gradient forward selection is ours, and the optimal one replaces a commercial solver there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from workbench.probes.errors import ProbeError
from workbench.probes.lasso import fit_lasso
from workbench.probes.newton import LogisticFit, fit_logistic
from workbench.probes.optimal import best_subset
from workbench.probes.weights import balanced_weights

Selector = Literal[
    "standardised",
    "mean_difference",
    "mutual_information",
    "logistic_l1",
    "logistic_l2",
    "adaptive",
    "forward",
    "optimal",
    "enumerate",
]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
SCORES: tuple[Selector, ...] = ("standardised", "mean_difference", "mutual_information")  # one number per unit
N_CANDIDATES = 256  # units that costly selectors look at, best standardised difference first
N_OPTIMAL = 50
N_ENUMERATED = 30
N_BINS = 32
C_LASSO = 0.1

Units: TypeAlias = np.ndarray | sp.csc_matrix


def columns(X: Units, at: Int[np.ndarray, " kept"]) -> Float[np.ndarray, "rows kept"]:
    """Return some columns, dense."""
    return np.ascontiguousarray(X[:, at] if isinstance(X, np.ndarray) else X[:, at].toarray())


def rank(scores: Float[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
    """Return units by falling score, ties by index; NaN last."""
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")


def class_difference(X: Units, Y: Float[np.ndarray, "rows labels"]) -> Float[np.ndarray, "labels units"]:
    """Return the difference of class means of every unit, for many labels in one product.

    Parameters
    ----------
    X : np.ndarray or csc_matrix
        [rows, units].
    Y : np.ndarray
        [rows, labels] 1 for the positive class, 0 for the negative, in the dtype of X.
    """
    n_positive = Y.sum(axis=0, dtype=np.float64)[:, None]
    positive = np.asarray((X.T @ Y).T, dtype=np.float64)
    totals = np.asarray(X.sum(axis=0, dtype=np.float64)).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(positive / n_positive - (totals - positive) / (X.shape[0] - n_positive))


def mutual_information(
    X: Units, Y: Float[np.ndarray, "rows labels"], n_bins: int = N_BINS
) -> Float[np.ndarray, "labels units"]:
    """Return bits that each unit's quantile bin tells about each label; sees units that are not monotone.

    Equal values stay in one bin, so a silent unit has few. Plug-in estimate: about `(n_bins - 1)/(2·ln 2·rows)` bits
    too high for a unit that tells nothing.

    Parameters
    ----------
    X : np.ndarray or csc_matrix
        [rows, units].
    Y : np.ndarray
        [rows, labels] 1 for the positive class, 0 for the negative.
    n_bins : int
        Quantile bins of each unit.
    """
    n, n_labels = Y.shape
    scores = np.zeros((n_labels, X.shape[1]))
    at = np.linspace(0, 1, n_bins + 1)[1:-1]
    rate = Y.mean(axis=0)
    classes = np.stack([1 - rate, rate])
    for unit in range(X.shape[1]):
        column = columns(X, np.array([unit]))[:, 0]
        bins = np.searchsorted(np.unique(np.quantile(column, at)), column, side="right")
        members = sp.csr_matrix((np.ones(n, Y.dtype), (bins, np.arange(n))), shape=(n_bins, n))
        size = np.bincount(bins, minlength=n_bins)[:, None] / n
        positive = np.asarray(members @ Y, dtype=np.float64) / n
        joint = np.stack([size - positive, positive])
        with np.errstate(invalid="ignore", divide="ignore"):
            terms = joint * np.log2(joint / (size * classes[:, None]))
        scores[:, unit] = np.where(joint > 0, terms, 0).sum(axis=(0, 1))
    return scores


def label_scores(
    X: Units,
    Y: Float[np.ndarray, "rows labels"],
    selector: Selector = "standardised",
    scale: Float[np.ndarray, " units"] | None = None,
) -> Float[np.ndarray, "labels units"]:
    """Return `unit_scores` for many labels (or many permutations of one), at little more than the cost of one.

    Parameters
    ----------
    X : np.ndarray or csc_matrix
        [rows, units] of unit variance.
    Y : np.ndarray
        [rows, labels] 1 for the positive class, 0 for the negative, in the dtype of X.
    selector, scale
        As for `unit_scores`.
    """
    if selector == "mutual_information":
        return mutual_information(X, Y)
    difference = np.abs(class_difference(X, Y))
    return np.asarray(difference * scale) if selector == "mean_difference" and scale is not None else difference


def unit_scores(
    X: Units,
    y: Bool[np.ndarray, " rows"],
    selector: Selector = "standardised",
    scale: Float[np.ndarray, " units"] | None = None,
) -> Float[np.ndarray, " units"]:
    """Return one score per unit, higher for units that separate the classes better.

    Parameters
    ----------
    X : np.ndarray or csc_matrix
        [rows, units] of unit variance.
    y : np.ndarray
        [rows] label.
    selector : "standardised", "mean_difference" or "mutual_information"
        The first ranks as abs(correlation) and as the F statistic do; the second depends on the units' scale.
    scale : np.ndarray, optional
        [units] what the units were divided by; for the raw mean difference.
    """
    return np.asarray(label_scores(X, np.asarray(y, dtype=X.dtype)[:, None], selector, scale)[0])


def select_units(
    X: Units,
    y: Bool[np.ndarray, " rows"],
    ks: Sequence[int],
    selector: Selector = "standardised",
    *,
    scale: Float[np.ndarray, " units"] | None = None,
    C: float = 1.0,
) -> dict[int, Int[np.ndarray, " k"]]:
    """Choose k units for each k, from training rows alone.

    Parameters
    ----------
    X : np.ndarray or csc_matrix
        [rows, units] of unit variance.
    y : np.ndarray
        [rows] True for the positive class.
    ks : sequence of int
        1 <= k <= units.
    selector : str
        One of `SELECTORS`. Scores and ``forward`` look at all units; ``logistic_l1``, ``logistic_l2`` and ``adaptive``
        at the 256 with the largest standardised difference, ``optimal`` at 50, ``enumerate`` (k = 1) at 30.
    scale : np.ndarray, optional
        [units], for ``mean_difference``.
    C : float
        Of the logistic fits made on the way.

    Returns
    -------
    dict
        For each k the chosen units, best first.

    Raises
    ------
    ProbeError
        On an unknown selector, k out of range, or k above what the selector looks at.
    """
    if selector not in SELECTORS:
        raise ProbeError(f"no selector {selector!r}; there are {', '.join(SELECTORS)}")
    require_k(ks, X.shape[1])
    if selector in SCORES:
        order = rank(unit_scores(X, y, selector, scale))
        return {k: order[:k] for k in ks}
    if selector == "forward":
        order = forward(X, y, max(ks), C)
        return {k: order[:k] for k in ks}
    limit = {"optimal": N_OPTIMAL, "enumerate": N_ENUMERATED}.get(selector, N_CANDIDATES)
    most = 1 if selector == "enumerate" else min(limit, X.shape[1])
    if max(ks) > most:
        raise ProbeError(f"k={max(ks)}: selector {selector!r} chooses at most {most} units")
    candidates = rank(unit_scores(X, y))[:limit]
    Z = columns(X, candidates)
    return {k: candidates[kept] for k, kept in _among(Z, np.asarray(y, dtype=bool), ks, selector, C).items()}


def require_k(ks: Sequence[int], n_units: int) -> None:
    """Refuse a number of units below 1 or above what there is."""
    for k in ks:
        if not 1 <= k <= n_units:
            raise ProbeError(f"k={k}: must be between 1 and {n_units}, the number of units")


def _among(
    Z: Float[np.ndarray, "rows candidates"], y: Bool[np.ndarray, " rows"], ks: Sequence[int], selector: str, C: float
) -> dict[int, Int[np.ndarray, " k"]]:
    weights = balanced_weights(y)
    if selector == "enumerate":
        fits = [fit_logistic(Z[:, [unit]], y, weights, C) for unit in range(Z.shape[1])]
        return {1: np.array([np.argmin([fit.loss for fit in fits])])}
    if selector == "optimal":
        return {k: best_subset(Z, y, weights, k).support for k in ks}
    if selector == "adaptive":
        return adaptive(Z, y, ks, C)
    lasso = selector == "logistic_l1"
    coef = fit_lasso(Z, y, weights, C_LASSO) if lasso else fit_logistic(Z, y, weights, C).coef
    order = rank(np.abs(coef))  # candidates come best first, so coefficients of 0 tie by standardised difference
    return {k: order[:k] for k in ks}


def forward(X: Units, y: Bool[np.ndarray, " rows"], k: int, C: float = 1.0) -> Int[np.ndarray, " k"]:
    """Add the unit with the steepest loss, refit, and again: `argmax_j abs(Σ w_i·x_ij·(y_i − p_i))`."""
    y = np.asarray(y, dtype=bool)
    weights = balanced_weights(y)
    chosen: list[int] = []
    probability = np.full(len(y), 0.5)
    fit: LogisticFit | None = None
    while len(chosen) < k:
        residual = (weights * (y - probability)).astype(X.dtype)
        slope = np.abs(np.asarray(X.T @ residual)).ravel()
        slope[chosen] = -1
        chosen.append(int(np.argmax(slope)))
        Z = columns(X, np.array(chosen))
        fit = fit_logistic(Z, y, weights, C, start=fit and _widened(fit), tol=1e-8)
        probability = 0.5 * (1 + np.tanh(fit(Z).astype(np.float64) / 2))
    return np.array(chosen)


def _widened(fit: LogisticFit) -> LogisticFit:
    return LogisticFit(np.append(fit.coef, 0.0), fit.intercept, fit.loss, fit.n_iter, fit.converged)


def adaptive(
    Z: Float[np.ndarray, "rows units"], y: Bool[np.ndarray, " rows"], ks: Sequence[int], C: float = 1.0
) -> dict[int, Int[np.ndarray, " k"]]:
    """Fit all, keep the units with the largest abs(coefficient), refit, down to the smallest k.

    Halves on the way, so that a list of one k thresholds as gently as a list of many. Gurnee+ use an elastic net,
    whose zeros tie by index; the L2 penalty has none.
    """
    weights = balanced_weights(y)
    halves = {2**power for power in range(1, 20) if min(ks) < 2**power < Z.shape[1]}
    kept = np.arange(Z.shape[1])
    fit = fit_logistic(Z, y, weights, C, tol=1e-8)
    supports = {}
    for k in sorted(halves | set(ks), reverse=True):
        order = rank(np.abs(fit.coef))[:k]
        kept = kept[order]
        start = LogisticFit(fit.coef[order], fit.intercept, fit.loss, fit.n_iter, fit.converged)
        fit = fit_logistic(Z[:, kept], y, weights, C, start=start, tol=1e-8)
        supports[k] = kept[rank(np.abs(fit.coef))]
    return {k: supports[k] for k in ks}
