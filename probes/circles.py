"""Circles in activations: a supervised probe with the plane it reads, and measures of how circular a cloud is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from workbench.probes.errors import ProbeError
from workbench.probes.planar import as_cloud


@dataclass(frozen=True)
class Circle:
    """A plane of activations with an angle in it.

    Attributes
    ----------
    mean : np.ndarray
        [width], of the fitting rows.
    plane : np.ndarray
        [2, width] orthonormal directions (the paper's PCA basis times Q).
    R : np.ndarray
        [2, 2] from coordinates in the plane to cosine and sine.
    period : float
        Of the label.
    frequency : int
        How often the circle goes round while the label does once.
    """

    mean: Float[np.ndarray, " width"]
    plane: Float[np.ndarray, "2 width"]
    R: Float[np.ndarray, "2 2"]
    period: float
    frequency: int = 1

    def coordinates(self, X: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows 2"]:
        """Return where rows lie in the plane, from the mean."""
        return np.asarray((np.asarray(X, dtype=np.float64) - self.mean) @ self.plane.T)

    def read(self, X: Float[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows 2"]:
        """Return the predicted cosine and sine of rows."""
        return np.asarray(self.coordinates(X) @ self.R)

    def points(self, label: Float[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 2"]:
        """Return the coordinates in the plane at which rows of these labels belong; the nearest if R is singular."""
        return np.asarray(turns(label, self.period, self.frequency) @ np.linalg.pinv(self.R, rcond=1e-9))

    def place(
        self, X: Float[np.ndarray, "rows width"], label: Float[np.ndarray, " rows"], *, keep: bool = True
    ) -> Float[np.ndarray, "rows width"]:
        """Return rows moved to other labels in the plane.

        Parameters
        ----------
        X, label : np.ndarray
            [rows, width] and the labels they shall have.
        keep : bool
            Leave what is outside the plane as it is; else put its mean there (the paper's form).
        """
        X = np.asarray(X, dtype=np.float64)
        rest = X - self.coordinates(X) @ self.plane if keep else self.mean
        return np.asarray(rest + self.points(label) @ self.plane)


def turns(label: Float[np.ndarray, " rows"], period: float, frequency: int = 1) -> Float[np.ndarray, "rows 2"]:
    """Return cosine and sine of the angle of a cyclic label."""
    angle = 2 * np.pi * frequency * np.asarray(label, dtype=np.float64) / period
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def circle_from_weights(
    mean: Float[np.ndarray, " width"], weights: Float[np.ndarray, "width 2"], period: float, frequency: int = 1
) -> Circle:
    """Return the circle that a linear map [width, 2] from centred rows to cosine and sine reads."""
    Q, R = np.linalg.qr(np.asarray(weights, dtype=np.float64))
    return Circle(np.asarray(mean, dtype=np.float64), Q.T, R, period, frequency)


class CircleProbe(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Least squares from the first principal components to the cosine and sine of a cyclic label.

    Parameters
    ----------
    period : float
        Of the label, above 0.
    frequency : int, default=1
        How often the circle goes round while the label does once.
    k : int, default=5
        Principal components that are read, at least 2; as many as there are, if fewer.

    Attributes
    ----------
    circle_ : Circle
        The plane, and how to place an angle in it.
    components_ : np.ndarray
        [k, width] principal components.
    weights_ : np.ndarray
        [k, 2] from centred component scores to cosine and sine; no constant, as in the paper.
    """

    def __init__(self, period: float = 7, frequency: int = 1, k: int = 5) -> None:
        self.period = period
        self.frequency = frequency
        self.k = k

    def fit(self, X: Any, y: Any) -> CircleProbe:
        """X : (n_rows, width) float; y : (n_rows,) label, a number modulo the period. Returns self."""
        if not self.period > 0 or self.k < 2 or self.frequency < 1:
            raise ProbeError(
                f"period={self.period}, frequency={self.frequency}, k={self.k}: period must be above 0, frequency at "
                "least 1, k at least 2"
            )
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        if len(X) < 3 or X.shape[1] < 2:
            raise ProbeError(
                f"n_samples={len(X)}, n_features={X.shape[1]}: a circle needs at least 3 rows and 2 columns"
            )
        mean = X.mean(axis=0)
        _, _, directions = np.linalg.svd(X - mean, full_matrices=False)
        self.components_ = directions[: self.k]
        scores = (X - mean) @ self.components_.T
        self.weights_ = np.linalg.lstsq(scores, turns(y, self.period, self.frequency), rcond=None)[0]
        self.circle_ = circle_from_weights(mean, self.components_.T @ self.weights_, self.period, self.frequency)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the predicted (n_rows, 2) cosine and sine."""
        check_is_fitted(self)
        return self.circle_.read(validate_data(self, X, dtype=np.float64, reset=False))

    def predict(self, X: Any) -> np.ndarray:
        """Return the (n_rows,) label, between 0 and period / frequency."""
        read = self.transform(X)
        around = np.arctan2(read[:, 1], read[:, 0]) % (2 * np.pi)
        return np.asarray(around / (2 * np.pi) * self.period / self.frequency)

    def score(self, X: Any, y: Any) -> float:
        """Return R², the mean of the cosine's and the sine's."""
        return float(r_squared(self.transform(X), turns(np.asarray(y), self.period, self.frequency)).mean())


def r_squared(
    predicted: Float[np.ndarray, "rows columns"], truth: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, " columns"]:
    """Return the share of each column's variance that is predicted; NaN for a constant column."""
    left = np.square(truth - predicted).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - left / np.square(truth - truth.mean(axis=0)).sum(axis=0))


def regressed_circle(
    X: Float[np.ndarray, "rows width"],
    a: Int[np.ndarray, " rows"],
    b: Int[np.ndarray, " rows"],
    c: Int[np.ndarray, " rows"],
    period: int,
    *,
    k: int = 20,
    frequency: int = 1,
) -> Circle:
    """Return the circle of an answer c where rows hold the operands a and b as well, by the paper's regression.

    Scores of k principal components are regressed on a constant, one-hots of a and b, the circle of a - b and that of
    c; the last two columns of the solution's pseudo-inverse are the map to c's circle.

    Parameters
    ----------
    X : np.ndarray
        [rows, width].
    a, b, c : np.ndarray
        [rows] whole numbers from 0.
    period : int
        Of a and c.
    k, frequency : int
        See `CircleProbe`.
    """
    X = np.asarray(X, dtype=np.float64)
    mean = X.mean(axis=0)
    _, _, directions = np.linalg.svd(X - mean, full_matrices=False)
    components = directions[:k]
    one_hots = [np.equal.outer(v, np.unique(v)).astype(np.float64) for v in (a, b)]
    columns = [np.ones((len(X), 1)), *one_hots, turns(np.asarray(a) - np.asarray(b), period, frequency)]
    explaining = np.concatenate([*columns, turns(c, period, frequency)], axis=1)
    solution = np.linalg.lstsq(explaining, (X - mean) @ components.T, rcond=1e-6)[0]
    to_circle = np.linalg.pinv(solution, rcond=1e-3)[:, -2:]
    return circle_from_weights(mean, components.T @ to_circle, period, frequency)


# --- how circular -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Roundness:
    """How near a cloud comes to a circle.

    Attributes
    ----------
    centre : np.ndarray
        [2], of the circle that fits best by least squares.
    radius : float
        Mean distance from it.
    variation : float
        Standard deviation of that distance over its mean: 0 on a circle.
    coverage : float
        1 minus the widest gap between angles, as a share of a turn: 1 for a whole circle, 1 - 1/7 for a heptagon.
    evenness : float
        1 minus the length of the mean direction: 1 where angles are spread evenly.
    """

    centre: Float[np.ndarray, " 2"]
    radius: float
    variation: float
    coverage: float
    evenness: float


def roundness(xy: Float[np.ndarray, "rows 2"]) -> Roundness:
    """Measure a cloud [rows, 2] against the circle fitted to it by least squares (Kåsa's form, linear).

    Raises
    ------
    ProbeError
        For something other than a cloud of at least three rows.
    """
    xy = as_cloud(xy, least=3)
    mean = xy.mean(axis=0)
    centred = xy - mean
    squares = np.square(centred).sum(axis=1)
    solved = np.linalg.lstsq(np.column_stack([2 * centred, np.ones(len(xy))]), squares, rcond=None)[0]
    away = centred - solved[:2]
    distance = np.hypot(*away.T)
    angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    gap = float(np.max(np.diff(angles, append=angles[0] + 2 * np.pi)))
    direction = np.abs(np.exp(1j * angles).mean())
    radius = float(distance.mean())
    return Roundness(
        centre=mean + solved[:2],
        radius=radius,
        variation=float(distance.std() / max(radius, 1e-300)),
        coverage=1 - gap / (2 * np.pi),
        evenness=float(1 - direction),
    )


def order_around(angles: Sequence[float] | Float[np.ndarray, " points"]) -> float:
    """Return how well points keep the order of a cyclic label around a circle: the circular rank correlation.

    Parameters
    ----------
    angles : sequence of float
        Radians, of the points in the order of their label; no ties.

    Returns
    -------
    float
        1 if they go once round in order, either way and from any start; about ``1 / sqrt(points)`` for none.
    """
    rank, place = _circular_ranks(angles)
    return float(max(np.abs(np.exp(1j * (rank - place)).mean()), np.abs(np.exp(1j * (rank + place)).mean())))


def circular_linear(angles: Sequence[float] | Float[np.ndarray, " points"]) -> float:
    """Return how well a label's rank is told by the angle: the circular-linear rank correlation (Mardia 1976).

    Parameters
    ----------
    angles : sequence of float
        Radians, of the points in the order of a label that does not go round; no ties.

    Returns
    -------
    float
        Between 0 and 1, which it reaches where the label grows from one side of the circle to the other, along both
        ways; in order once around it is some 0.6.
    """
    rank, _ = _circular_ranks(angles)
    n = len(rank)
    size = np.abs(np.arange(1, n + 1) @ np.exp(1j * rank)) ** 2
    if n % 2:
        return float(2 * np.sin(np.pi / n) ** 4 / (1 + np.cos(np.pi / n)) ** 3 * size)
    cot2 = 1 / np.tan(np.pi / n) ** 2
    return float(size / (1 + 5 * cot2 + 4 * cot2**2))


def _circular_ranks(angles: Sequence[float] | Float[np.ndarray, " points"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each angle and its place in the list, both as even steps around a circle, in radians."""
    around = np.asarray(angles, dtype=np.float64) % (2 * np.pi)
    n = len(around)
    if n < 3:
        raise ProbeError(f"{n} points: an order around a circle needs at least 3")
    step = 2 * np.pi / n
    return step * (np.argsort(np.argsort(around, kind="stable"), kind="stable") + 1), step * np.arange(n)
