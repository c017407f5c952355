"""Ridge regression on many targets and penalties at once, the penalty chosen without splitting groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import GroupKFold
from sklearn.utils.validation import check_is_fitted, validate_data

from workbench.probes.errors import ProbeError
from workbench.probes.moments import Moments
from workbench.probes.weights import Standardiser

ALPHAS = tuple(10.0**power for power in range(-4, 7))


def ridge_path(moments: Moments, alphas: Sequence[float]) -> Iterator[Float[np.ndarray, "units targets"]]:
    """Yield the coefficients `(G + alpha)⁻¹XᵀY` for every alpha, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(moments.gram)
    rotated = vectors.T @ moments.cross
    for alpha in alphas:
        yield vectors @ (rotated / (np.maximum(values, 0) + alpha)[:, None])


def fold_errors(folds: Sequence[Moments], alphas: Sequence[float]) -> Float[np.ndarray, "alphas targets"]:
    """Return the squared error of every alpha, each fold predicted from the others.

    Training moments are those of all folds less one; no row is read again.

    Parameters
    ----------
    folds : sequence of Moments
        At least two, around the same shift, each of whole groups.
    alphas : sequence of float
        Penalties, above 0.
    """
    if len(folds) < 2:
        raise ProbeError(f"{len(folds)} folds: at least 2 are needed")
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    errors = np.zeros((len(alphas), len(total.sy)))
    for fold in folds:
        train = total - fold
        offset = train.x_mean - fold.x_mean
        gap = train.y_mean - fold.y_mean
        for row, coef in zip(errors, ridge_path(train, alphas), strict=True):
            # fold rows around the fold's own means, plus what the shift between the two sets of means adds
            inside = fold.target_squares - 2 * (coef * fold.cross).sum(axis=0)
            inside += np.einsum("ut,uv,vt->t", coef, fold.gram, coef)
            row += inside + fold.n * (gap - offset @ coef) ** 2
    return errors


def leave_one_out_errors(
    X: Float[np.ndarray, "rows units"], Y: Float[np.ndarray, "rows targets"], alphas: Sequence[float]
) -> Float[np.ndarray, "alphas targets"]:
    """Return the squared error of every alpha, each row predicted from all others, in closed form.

    `e_i = r_i/(1 − h_i)`, `h_i = 1/n + Σ_j z_ij²/(λ_j + alpha)`. Rows of one group give each other away here: use
    `fold_errors` unless rows are independent.
    """
    moments = Moments.collect([(X, Y)])
    values, vectors = np.linalg.eigh(moments.gram)
    rotated = (X - moments.x_mean) @ vectors
    target = Y - moments.y_mean
    projected = rotated.T @ target
    errors = []
    for alpha in alphas:
        shrink = 1 / (np.maximum(values, 0) + alpha)
        leverage = 1 / len(X) + (rotated**2) @ shrink
        residual = target - rotated @ (projected * shrink[:, None])
        errors.append(((residual / (1 - leverage)[:, None]) ** 2).sum(axis=0))
    return np.stack(errors)


class RidgeProbe(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Ridge regression on standardised units, one alpha per target, chosen by folds of whole groups.

    Parameters
    ----------
    alphas : sequence of float, default=10^-4 … 10^6
        Penalties to choose from, above 0.
    n_folds : int, default=5
        Folds; without groups each row is its own.

    Attributes
    ----------
    alpha_ : np.ndarray
        [targets].
    coef_ : np.ndarray
        [units], or [targets, units].
    intercept_ : float or np.ndarray
        For units as given.
    """

    def __init__(self, alphas: Sequence[float] = ALPHAS, n_folds: int = 5) -> None:
        self.alphas = alphas
        self.n_folds = n_folds

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit to rows.

        Parameters
        ----------
        X : array, [rows, units]
            Activations.
        y : array, [rows] or [rows, targets]
            Numbers.
        groups : array, [rows], optional
            The document of each row, which no fold divides.

        Returns
        -------
        self
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        alphas = [float(alpha) for alpha in self.alphas]
        if not alphas or min(alphas) <= 0:
            raise ProbeError(f"alphas={list(self.alphas)}: must be numbers above 0")
        Y = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        self.standardiser_ = Standardiser.fit(X)
        Z = self.standardiser_(X.astype(np.float64))
        folds = self._folds(Z, Y, groups)
        errors = fold_errors(folds, alphas) if len(folds) > 1 else leave_one_out_errors(Z, Y, alphas)
        chosen = errors.argmin(axis=0)
        total = folds[0]
        for fold in folds[1:]:
            total = total + fold
        path = list(ridge_path(total, alphas))
        coef = np.stack([path[best][:, target] for target, best in enumerate(chosen)]) / self.standardiser_.scale
        intercept = total.y_mean - coef @ self.standardiser_.mean
        self.alpha_ = np.array(alphas)[chosen]
        self.coef_: np.ndarray = coef if y.ndim == 2 else coef[0]
        self.intercept_: np.ndarray | float = intercept if y.ndim == 2 else float(intercept[0])
        return self

    def _folds(self, Z: np.ndarray, Y: np.ndarray, groups: Any) -> list[Moments]:
        names = np.arange(len(Z)) if groups is None else np.asarray(groups)
        n_folds = min(self.n_folds, len(np.unique(names)))
        if n_folds < 2:
            return [Moments.collect([(Z, Y)])]
        parts = []
        for _, held in GroupKFold(n_folds).split(Z, Y, names):
            part = Moments.around(Z[0], Y[0])
            part.add(Z[held], Y[held])
            parts.append(part)
        return parts

    def predict(self, X: Any) -> np.ndarray:
        """Return [rows] or [rows, targets] predictions."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(X @ self.coef_.T + self.intercept_)
