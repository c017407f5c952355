"""What every fit needs first: yes/no labels, balanced row weights, and the scale of each unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.probes.errors import ProbeError


def balanced_weights(y: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Return `n / (2 · n_class)` for each row: both classes weigh the same, the mean weight is 1.

    Raises
    ------
    ProbeError
        If one of the classes has no row.
    """
    y = np.asarray(y, dtype=bool)
    n_positive = int(y.sum())
    if n_positive in (0, len(y)):
        which = "positive" if n_positive == 0 else "negative"
        raise ProbeError(f"none of {len(y)} rows is {which}: a probe needs both classes")
    return np.where(y, len(y) / (2 * n_positive), len(y) / (2 * (len(y) - n_positive)))


@dataclass(frozen=True)
class Standardiser:
    """Mean and scale of each unit, from training rows.

    Attributes
    ----------
    mean, scale : np.ndarray
        [units] float64. A scale is the standard deviation, at least 1e-6 of the median one.
    constant : np.ndarray
        [units] bool: units that do not vary; they are mapped to 0 and never chosen.
    """

    mean: Float[np.ndarray, " units"]
    scale: Float[np.ndarray, " units"]
    constant: Bool[np.ndarray, " units"]

    @classmethod
    def from_moments(
        cls, mean: Float[np.ndarray, " units"], variance: Float[np.ndarray, " units"], exact: bool = True
    ) -> Standardiser:
        """Derive scales from means and variances; `exact=False` forgives rounding in the variances."""
        sd = np.sqrt(np.maximum(variance, 0))
        # rounding of float64 sums leaves constants a tiny variance
        constant = sd <= (0.0 if exact else 1e-12) * np.abs(mean)
        constant |= sd == 0
        least = 1e-6 * np.median(sd[~constant]) if (~constant).any() else 1.0
        return cls(mean, np.where(constant, 1.0, np.maximum(sd, least)), constant)

    @classmethod
    def fit(cls, X: Float[np.ndarray, "rows units"]) -> Standardiser:
        """Take means and standard deviations in float64, constants by comparison."""
        mean = X.mean(axis=0, dtype=np.float64)
        variance = np.square(X - mean).mean(axis=0)
        constant = (X[0] == X).all(axis=0)
        return cls.from_moments(mean, np.where(constant, 0.0, variance))

    def __call__(
        self, X: Float[np.ndarray, "rows units"], columns: Int[np.ndarray, " kept"] | None = None
    ) -> np.ndarray:
        """Return standardised rows in the dtype of X; `columns` names the units that X holds, where not all."""
        at = slice(None) if columns is None else columns
        Z = np.asarray(X - self.mean[at].astype(X.dtype))
        Z /= self.scale[at].astype(X.dtype)
        Z[:, self.constant[at]] = 0
        return Z
