"""Logistic regression on all units and many labels at once, over chunks that are read again in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from workbench.probes.errors import ProbeError

Chunks = Callable[[], Iterable[tuple[np.ndarray | sp.csr_matrix, np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class StreamedFit:
    """Readouts of many labels: `X @ coef + intercept`, in natural log odds.

    Attributes
    ----------
    coef : np.ndarray
        [units, labels].
    intercept : np.ndarray
        [labels].
    n_iter : int
        L-BFGS iterations.
    converged : bool
        False if they ran out.
    """

    coef: Float[np.ndarray, "units labels"]
    intercept: Float[np.ndarray, " labels"]
    n_iter: int
    converged: bool

    def of_labels(self, labels: Int[np.ndarray, " kept"]) -> StreamedFit:
        """Return the readouts of some labels."""
        return replace(self, coef=self.coef[:, labels], intercept=self.intercept[labels])

    def __call__(self, X: np.ndarray | sp.csr_matrix) -> Float[np.ndarray, "rows labels"]:
        """Return the log odds of rows."""
        return np.asarray(X @ self.coef.astype(X.dtype) + self.intercept.astype(X.dtype))


def fit_streamed(
    chunks: Chunks,
    C: float | Float[np.ndarray, " labels"],
    *,
    start: StreamedFit | None = None,
    gram: Float[np.ndarray, "units units"] | None = None,
    tol: float = 1e-5,
    max_iter: int = 200,
) -> StreamedFit:
    """Minimise `Σ w_i·ln(1 + exp(-y_i·f_i)) + ‖coef‖²/(2C)` for each label, full batch, by L-BFGS.

    Deterministic for fixed chunks and threads. A pass costs `4 · rows · units · labels` operations.

    Parameters
    ----------
    chunks : callable
        Each call gives an iterator of (X [rows, units], Y [rows, labels] of 0 and 1, weights [rows, labels]; weight 0
        where a row lacks the label). X best has unit variance.
    C : float or np.ndarray
        Inverse strength of the penalty, one for all or one per label.
    start : StreamedFit, optional
        Where to start.
    gram : np.ndarray, optional
        [units, units] mean of `x xᵀ` over the rows. With it the search runs in coordinates in which the curvature at
        zero is about the identity, and needs a tenth of the passes; it changes the way, not the end.
    tol : float
        Largest entry of the gradient per unit of weight at the end.
    max_iter : int
        At most so many iterations, each of about one pass.
    """
    n_units, total = _shape(chunks)
    n_labels = len(total)
    penalty = 1 / (np.broadcast_to(np.asarray(C, dtype=np.float64), (n_labels,)) * total)
    # curvature of the logistic loss at zero is a quarter of the mean square
    root = None
    if gram is not None:
        root = scipy.linalg.cholesky(gram / 4 + penalty.mean() * np.eye(n_units), lower=True)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        free, intercept = _unflatten(flat, n_units)
        coef = free if root is None else scipy.linalg.solve_triangular(root, free, lower=True, trans=1)
        loss = 0.5 * float((penalty * coef**2).sum())
        gradient = np.concatenate([penalty * coef, np.zeros((1, n_labels))])
        for X, Y, weights in chunks():
            share = weights / total
            score = np.asarray(X @ coef.astype(X.dtype), dtype=np.float64) + intercept
            loss += float((share * np.logaddexp(0, np.where(Y > 0, -score, score))).sum())
            error = share * (0.5 * (1 + np.tanh(score / 2)) - Y)
            gradient[:-1] += np.asarray(X.T @ error.astype(X.dtype))
            gradient[-1] += error.sum(axis=0)
        if root is not None:
            gradient[:-1] = scipy.linalg.solve_triangular(root, gradient[:-1], lower=True)
        return loss, gradient.ravel()

    flat = np.zeros((n_units + 1) * n_labels)
    if start is not None:
        free = start.coef if root is None else root.T @ start.coef
        flat = np.concatenate([free, start.intercept[None]]).ravel()
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tol, "ftol": 0.0, "maxcor": 20}
    found = scipy.optimize.minimize(objective, flat, jac=True, method="L-BFGS-B", options=options)
    free, intercept = _unflatten(found.x, n_units)
    coef = free if root is None else scipy.linalg.solve_triangular(root, free, lower=True, trans=1)
    # the line search ends at the rounding error of float32 sums; that is as converged as such data can be
    converged = bool(found.status == 0 or np.abs(found.jac).max() <= 10 * tol)
    return StreamedFit(coef, intercept, int(found.nit), converged)


def _unflatten(flat: np.ndarray, n_units: int) -> tuple[np.ndarray, np.ndarray]:
    both = flat.reshape(n_units + 1, -1)
    return both[:-1], both[-1]


def _shape(chunks: Chunks) -> tuple[int, Float[np.ndarray, " labels"]]:
    n_units, total = 0, np.zeros(0)
    for X, _, weights in chunks():
        n_units = X.shape[1]
        summed = weights.sum(axis=0, dtype=np.float64)
        total = total + summed if len(total) else summed
    if not len(total) or (total <= 0).any():
        raise ProbeError("every label needs rows with a weight above 0")
    return n_units, total


def balanced_label_weights(
    Y: Bool[np.ndarray, "rows labels"], defined: Bool[np.ndarray, "rows labels"]
) -> Float[np.ndarray, "rows labels"]:
    """Return `n / (2 · n_class)` per label on the rows that have it, 0 elsewhere."""
    n = defined.sum(axis=0)
    n_positive = (Y & defined).sum(axis=0)
    if ((n_positive == 0) | (n_positive == n)).any():
        raise ProbeError("every label needs rows of both classes")
    return np.where(defined, np.where(Y, n / (2 * n_positive), n / (2 * (n - n_positive))), 0.0)
