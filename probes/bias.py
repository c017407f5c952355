"""How differently a classifier treats two groups of rows: gaps of the true positive rate (Ravfogel et al. 2020 §5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.probes.errors import ProbeError

LEAST_ROWS = 10


@dataclass(frozen=True)
class RateGaps:
    """True positive rates of a main task's classes, by a protected yes/no attribute.

    Attributes
    ----------
    rate_without, rate_with : np.ndarray
        [classes] share of the rows of a class, without and with the attribute, that the classifier puts there; NaN
        below ten rows. A class that is never hit has rate 0: leaving it out would hide it.
    n_without, n_with : np.ndarray
        [classes] rows.
    """

    rate_without: Float[np.ndarray, " classes"]
    rate_with: Float[np.ndarray, " classes"]
    n_without: Float[np.ndarray, " classes"]
    n_with: Float[np.ndarray, " classes"]

    @property
    def gap(self) -> Float[np.ndarray, " classes"]:
        """Rate with the attribute less that without."""
        return np.asarray(self.rate_with - self.rate_without)

    @property
    def rms(self) -> float:
        """Root of the mean squared gap over classes with enough rows; NaN if there are none."""
        known = self.gap[~np.isnan(self.gap)]
        return float(np.sqrt(np.mean(known**2))) if len(known) else float("nan")

    @property
    def share(self) -> Float[np.ndarray, " classes"]:
        """Share of each class's rows that have the attribute."""
        return np.asarray(self.n_with / np.maximum(self.n_with + self.n_without, 1))

    @property
    def correlation(self) -> float:
        """Correlation over classes of gap and share: does the classifier favour who is common anyway? NaN if fixed."""
        known = ~np.isnan(self.gap)
        gap, share = self.gap[known], self.share[known]
        if len(gap) < 3 or not gap.std() or not share.std():
            return float("nan")
        return float(np.corrcoef(gap, share)[0, 1])


def rate_gaps(
    codes: Int[np.ndarray, " rows"],
    predicted: Int[np.ndarray, " rows"],
    protected: Bool[np.ndarray, " rows"],
    n_classes: int,
    weights: Float[np.ndarray, " rows"] | None = None,
) -> RateGaps:
    """Compare how often each class is recognised with and without an attribute.

    Parameters
    ----------
    codes, predicted : np.ndarray
        [rows] class of the main task, true and predicted.
    protected : np.ndarray
        [rows] whether the row has the attribute.
    n_classes : int
        Of the main task.
    weights : np.ndarray, optional
        [rows] how often each row counts, in a resample.

    Raises
    ------
    ProbeError
        If lengths differ.
    """
    if not len(codes) == len(predicted) == len(protected):
        raise ProbeError(
            f"{len(codes)} labels, {len(predicted)} predictions, {len(protected)} attributes: must be as many"
        )
    cells = codes * 2 + protected.astype(np.int64)
    share = np.ones(len(codes)) if weights is None else weights
    rows = np.bincount(cells, weights=share, minlength=2 * n_classes).reshape(n_classes, 2)
    hits = np.bincount(cells, weights=share * (codes == predicted), minlength=2 * n_classes).reshape(n_classes, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where(rows >= LEAST_ROWS, hits / rows, np.nan)
    return RateGaps(rates[:, 0], rates[:, 1], rows[:, 0], rows[:, 1])
