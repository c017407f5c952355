"""Logistic regression by Newton's method: exact to rounding, for tens to hundreds of units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from workbench.probes.errors import ProbeError


@dataclass(frozen=True)
class LogisticFit:
    """A fitted readout `X @ coef + intercept`, in natural log odds.

    Attributes
    ----------
    coef : np.ndarray
        [units].
    intercept : float
        Not penalised.
    loss : float
        The objective at the solution.
    n_iter : int
        Newton steps (or L-BFGS iterations).
    converged : bool
        False if the iterations ran out.
    """

    coef: Float[np.ndarray, " units"]
    intercept: float
    loss: float
    n_iter: int
    converged: bool

    def __call__(self, X: Float[np.ndarray, "rows units"]) -> Float[np.ndarray, " rows"]:
        """Return the log odds of rows."""
        return np.asarray(X @ self.coef.astype(X.dtype) + X.dtype.type(self.intercept))


def fit_logistic(
    X: Float[np.ndarray, "rows units"],
    y: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    C: float = 1.0,
    start: LogisticFit | None = None,
    tol: float = 1e-10,
    max_iter: int = 100,
) -> LogisticFit:
    """Minimise `Σ w_i·ln(1 + exp(-y_i·f_i)) + ‖coef‖²/(2C)` with a free intercept.

    A step costs `rows · units²`; halved while the objective does not fall. Stops when the Newton decrement, twice the
    distance to the minimum in the objective, is below `tol` per unit of weight.

    Parameters
    ----------
    X : np.ndarray
        [rows, units], best standardised; float32 stays float32.
    y : np.ndarray
        [rows] True for the positive class.
    weights : np.ndarray
        [rows] at least 0.
    C : float
        Inverse strength of the penalty, above 0.
    start : LogisticFit, optional
        Where to start: the fit of a neighbouring C, or of fewer units padded with zeros.
    tol : float
        Of the decrement.
    max_iter : int
        At most so many steps.
    """
    if not C > 0:
        raise ProbeError(f"C={C}: must be above 0")
    k = X.shape[1]
    sign = np.where(y, 1.0, -1.0).astype(X.dtype)
    weights = weights.astype(X.dtype)
    total = float(weights.sum(dtype=np.float64))

    def objective(at: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (X @ at[:k].astype(X.dtype) + X.dtype.type(at[k]))
        losses = np.logaddexp(X.dtype.type(0), -margin)
        return float(weights @ losses) + float(at[:k] @ at[:k]) / (2 * C), margin

    if start is None:
        beta, loss, margin = np.zeros(k + 1), total * float(np.log(2)), np.zeros(len(X), X.dtype)
    else:
        beta = np.append(start.coef, start.intercept)
        loss, margin = objective(beta)
    ridge = np.append(np.full(k, 1 / C), 0.0)
    for step in range(max_iter):
        wrong = _sigmoid(-margin)
        pull = weights * wrong * sign
        bend = weights * wrong * (1 - wrong)
        gradient = np.append(-(pull @ X), -pull.sum()).astype(np.float64) + ridge * beta
        hessian = np.empty((k + 1, k + 1))
        hessian[:k, :k] = X.T @ (X * bend[:, None])
        hessian[k, :k] = hessian[:k, k] = bend @ X
        hessian[k, k] = bend.sum(dtype=np.float64)
        hessian[np.diag_indices(k + 1)] += ridge + 1e-12 * total  # the intercept's curvature may underflow
        move = np.linalg.solve(hessian, -gradient)
        decrement = float(-gradient @ move)
        if decrement <= tol * total:
            beta += move  # costs nothing, and squares what is left of the error
            return LogisticFit(beta[:k], float(beta[k]), loss - decrement / 2, step, True)
        size = 1.0
        while True:
            trial, trial_margin = objective(beta + size * move)
            if trial <= loss - 1e-4 * size * decrement:
                break
            size /= 2
            if size < 1e-4:  # at the rounding error of the objective
                return LogisticFit(beta[:k], float(beta[k]), loss, step, decrement <= 1e-5 * total)
        beta, loss, margin = beta + size * move, trial, trial_margin
    return LogisticFit(beta[:k], float(beta[k]), loss, max_iter, False)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
