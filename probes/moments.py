"""Sums over rows in one pass, from which means, variances and every linear least-squares probe follow.

Sums are taken in float64 around a shift (the first row seen): one-pass sums in float32 around zero lose a variance
that is small beside the squared mean altogether.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from workbench.probes.errors import ProbeError
from workbench.probes.weights import Standardiser


@dataclass
class Moments:
    """Count, sums and cross-products of rows X and targets Y around shifts; `a - b` and `a + b` join and part sets.

    Attributes
    ----------
    n : int
        Rows.
    x_shift, y_shift : np.ndarray
        [units], [targets] what was subtracted from every row.
    sx, sy : np.ndarray
        Sums of the shifted.
    xx, xy, yy : np.ndarray
        [units, units], [units, targets], [targets] (diagonal only) cross-products of the shifted.
    """

    n: int
    x_shift: Float[np.ndarray, " units"]
    y_shift: Float[np.ndarray, " targets"]
    sx: Float[np.ndarray, " units"]
    sy: Float[np.ndarray, " targets"]
    xx: Float[np.ndarray, "units units"]
    xy: Float[np.ndarray, "units targets"]
    yy: Float[np.ndarray, " targets"]

    @classmethod
    def around(cls, x_shift: Float[np.ndarray, " units"], y_shift: Float[np.ndarray, " targets"]) -> Moments:
        """Start with no rows."""
        d, t = len(x_shift), len(y_shift)
        shifts = np.asarray(x_shift, dtype=np.float64), np.asarray(y_shift, dtype=np.float64)
        return cls(0, *shifts, np.zeros(d), np.zeros(t), np.zeros((d, d)), np.zeros((d, t)), np.zeros(t))

    @classmethod
    def collect(cls, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Moments:
        """Sum over chunks (X [rows, units], Y [rows, targets]), shifting by the first row."""
        moments: Moments | None = None
        for X, Y in chunks:
            if len(X):
                moments = moments or cls.around(X[0], Y[0])
                moments.add(X, Y)
        if moments is None:
            raise ProbeError("no rows: moments need at least one")
        return moments

    def add(self, X: Float[np.ndarray, "rows units"], Y: Float[np.ndarray, "rows targets"]) -> None:
        """Add rows."""
        X, Y = X - self.x_shift, Y - self.y_shift
        self.n += len(X)
        self.sx += X.sum(axis=0)
        self.sy += Y.sum(axis=0)
        self.xx += X.T @ X
        self.xy += X.T @ Y
        self.yy += np.einsum("rt,rt->t", Y, Y)

    def _joined(self, other: Moments, sign: int) -> Moments:
        if not (np.array_equal(self.x_shift, other.x_shift) and np.array_equal(self.y_shift, other.y_shift)):
            raise ProbeError("moments around different shifts cannot be joined")
        names = ("sx", "sy", "xx", "xy", "yy")
        parts = [getattr(self, name) + sign * getattr(other, name) for name in names]
        return Moments(self.n + sign * other.n, self.x_shift, self.y_shift, *parts)

    def __add__(self, other: Moments) -> Moments:
        return self._joined(other, 1)

    def __sub__(self, other: Moments) -> Moments:
        return self._joined(other, -1)

    @property
    def x_mean(self) -> Float[np.ndarray, " units"]:
        """Mean row."""
        return self.x_shift + self.sx / self.n

    @property
    def y_mean(self) -> Float[np.ndarray, " targets"]:
        """Mean target."""
        return self.y_shift + self.sy / self.n

    @property
    def gram(self) -> Float[np.ndarray, "units units"]:
        """Centred `XᵀX`."""
        return self.xx - np.outer(self.sx, self.sx) / self.n

    @property
    def cross(self) -> Float[np.ndarray, "units targets"]:
        """Centred `XᵀY`."""
        return self.xy - np.outer(self.sx, self.sy) / self.n

    @property
    def target_squares(self) -> Float[np.ndarray, " targets"]:
        """Centred squares of each target."""
        return self.yy - self.sy**2 / self.n


@dataclass
class ClassMoments:
    """Count, mean and variance of every unit in both classes of many labels at once, from one product per chunk.

    A row may lack a label: its mask is 0 there.

    Attributes
    ----------
    n : np.ndarray
        [2, labels] rows, negative then positive.
    mean, variance : np.ndarray
        [2, labels, units].
    """

    n: Float[np.ndarray, "2 labels"]
    mean: Float[np.ndarray, "2 labels units"]
    variance: Float[np.ndarray, "2 labels units"]

    @classmethod
    def collect(
        cls, chunks: Iterable[tuple[np.ndarray | sp.csr_matrix, np.ndarray, np.ndarray]], n_labels: int
    ) -> ClassMoments:
        """Sum over chunks (X [rows, units], Y [rows, labels] of 0 and 1, mask [rows, labels] of 0 and 1)."""
        shift: np.ndarray | None = None
        n, first, second = np.zeros(2 * n_labels), np.zeros(0), np.zeros(0)
        for X, Y, mask in chunks:
            if not X.shape[0]:
                continue
            if shift is None:
                # a shift would make a sparse matrix dense; its values lie around zero already
                shift = np.zeros(X.shape[1]) if sp.issparse(X) else np.asarray(X[0], dtype=np.float64)
                first = np.zeros((2 * n_labels, X.shape[1]))
                second = np.zeros_like(first)
            classes = np.concatenate([mask * (1 - Y), mask * Y], axis=1).astype(np.float64)
            if isinstance(X, np.ndarray):
                shifted = X - shift
                squares = np.square(shifted)
            else:
                shifted, squares = X.astype(np.float64), X.astype(np.float64).power(2)
            n += classes.sum(axis=0)
            first += np.asarray((shifted.T @ classes).T)
            second += np.asarray((squares.T @ classes).T)
        if shift is None:
            raise ProbeError("no rows: moments need at least one")
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = first / n[:, None]
            variance = np.maximum(second / n[:, None] - mean**2, 0)
        units = len(shift)
        return cls(
            n.reshape(2, n_labels),
            (mean + shift).reshape(2, n_labels, units),
            variance.reshape(2, n_labels, units),
        )

    def standardiser(self, label: int) -> Standardiser:
        """Mean and scale of every unit over the rows that have a label."""
        share = self.n[:, label] / self.n[:, label].sum()
        mean = share @ self.mean[:, label]
        within = share @ self.variance[:, label]
        between = share @ (self.mean[:, label] - mean) ** 2
        return Standardiser.from_moments(mean, within + between, exact=False)
