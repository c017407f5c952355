"""Logistic regression with an L1 penalty, by accelerated proximal gradient."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def fit_lasso(
    X: Float[np.ndarray, "rows units"],
    y: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    C: float = 0.1,
    tol: float = 1e-6,
    max_iter: int = 2000,
) -> Float[np.ndarray, " units"]:
    """Minimise `Σ w_i·ln(1 + exp(-y_i·f_i)) + ‖coef‖₁/C` with a free intercept.

    FISTA with restarts (Beck & Teboulle 2009; O'Donoghue & Candès 2015). Stops when no coefficient moves by more than
    `tol` in a step.

    Parameters
    ----------
    X : np.ndarray
        [rows, units] of unit variance.
    y : np.ndarray
        [rows] True for the positive class.
    weights : np.ndarray
        [rows] at least 0.
    C : float
        Inverse strength of the penalty.
    tol : float
        Largest move of a coefficient at the end.
    max_iter : int
        At most so many steps.

    Returns
    -------
    np.ndarray
        [units] coefficients, many of them exactly 0.
    """
    n, k = X.shape
    sign = np.where(y, 1.0, -1.0)
    design = np.column_stack([X, np.ones(n)]).astype(np.float64)
    curvature = np.linalg.eigvalsh(design.T @ (design * weights[:, None]))[-1] / 4
    threshold = np.append(np.full(k, 1 / (C * curvature)), 0.0)
    beta = np.zeros(k + 1)
    ahead, pace = beta.copy(), 1.0
    for _ in range(max_iter):
        pull = weights * sign * 0.5 * (1 - np.tanh(0.5 * sign * (design @ ahead)))
        step = ahead + (pull @ design) / curvature
        new = np.sign(step) * np.maximum(np.abs(step) - threshold, 0)
        if (ahead - new) @ (new - beta) > 0:
            ahead, pace = beta.copy(), 1.0
            continue
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        moved = np.abs(new - beta).max()
        ahead, beta, pace = new + (pace - 1) / faster * (new - beta), new, faster
        if moved <= tol:
            break
    return beta[:k]
