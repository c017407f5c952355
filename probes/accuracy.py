"""Accuracy of any number of classes, counted by group, so that intervals are over groups."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from workbench.probes.statistics import Interval, percentile_interval


@dataclass(frozen=True)
class ClassCounts:
    """Hits and rows of every class in every group.

    Attributes
    ----------
    hits, rows : np.ndarray
        [groups, classes].
    """

    hits: Float[np.ndarray, "groups classes"]
    rows: Float[np.ndarray, "groups classes"]

    @classmethod
    def collect(
        cls,
        codes: Int[np.ndarray, " rows"],
        predicted: Int[np.ndarray, " rows"],
        groups: Int[np.ndarray, " rows"],
        n_groups: int,
        n_classes: int,
    ) -> ClassCounts:
        """Count rows by their true class and group.

        Parameters
        ----------
        codes, predicted : np.ndarray
            [rows] true and predicted class.
        groups : np.ndarray
            [rows] group, below `n_groups`.
        n_groups, n_classes : int
            Sizes of the table.
        """
        cells, size = groups * n_classes + codes, n_groups * n_classes
        hits = np.bincount(cells[codes == predicted], minlength=size)
        counts = np.bincount(cells, minlength=size)
        return cls(*(each.reshape(n_groups, n_classes).astype(float) for each in (hits, counts)))

    def accuracy(self, weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        """Return the share of rows that are right, in each resample of groups."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weights @ self.hits.sum(1)) / (weights @ self.rows.sum(1)))

    def balanced(self, weights: Float[np.ndarray, "draws groups"]) -> Float[np.ndarray, " draws"]:
        """Return the mean over classes of the share that is right; a class without rows does not count."""
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any row is NaN
            return np.asarray(np.nanmean((weights @ self.hits) / (weights @ self.rows), axis=1))

    def balanced_interval(self, weights: Float[np.ndarray, "draws groups"], level: float = 0.95) -> Interval:
        """Return balanced accuracy with its percentile interval over groups."""
        value = float(self.balanced(np.ones((1, len(self.rows))))[0])
        return Interval(value, *percentile_interval(self.balanced(weights), level))
