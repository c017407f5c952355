"""Erasure of a label in closed form: no linear readout is better than a constant, and rows change least.

Belrose et al. 2023: a label is out of reach of linear readouts exactly if the classes have equal means, that is if the
covariance of units and one-hot label is zero.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from workbench.probes.errors import ProbeError
from workbench.probes.moments import Moments
from workbench.probes.projections import Projection

LEAST_CORRELATION = 1e-8  # canonical correlations below are rounding: at any prevalence, as labels are standardised
ROWS_AT_ONCE = 4096


def label_moments(X: Float[np.ndarray, "rows units"], codes: Int[np.ndarray, " rows"], n_classes: int) -> Moments:
    """Sum rows [rows, units] with the one-hot form of their classes [rows]; add moments to fit on more rows.

    Raises
    ------
    ProbeError
        If there are no rows, or a class lies outside the range.
    """
    if len(X) != len(codes):
        raise ProbeError(f"X has {len(X)} rows and codes {len(codes)}: must be one class for each row")
    if len(codes) and not 0 <= codes.min() <= codes.max() < n_classes:
        raise ProbeError(f"classes {codes.min()} to {codes.max()}: must be between 0 and {n_classes - 1}")
    eye = np.eye(n_classes)

    def chunks() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(X), ROWS_AT_ONCE):
            at = slice(first, first + ROWS_AT_ONCE)
            yield np.asarray(X[at], dtype=np.float64), eye[codes[at]]

    return Moments.collect(chunks())


def fit_leace(moments: Moments, **about: str) -> Projection:
    """Return the erasure that changes rows least in mean square: `x − Σ^½UUᵀΣ^{−½}(x − μ)`.

    U are the left singular vectors of `Σ^{−½}Σ_xz`, each label column standardised. Its rank is at most the number of
    classes less one; the directions it removes are those of the differences of class means. Units that do not vary,
    and directions in which no row differs, are left alone.

    Parameters
    ----------
    moments : Moments
        From `label_moments`, of the fitting rows.
    **about : str
        Where it comes from.
    """
    values, vectors = np.linalg.eigh(moments.gram / moments.n)
    kept = values > len(values) * np.finfo(float).eps * max(values.max(initial=0.0), 0.0)
    # in the coordinates of the varying eigenvectors, where Σ^½ is a diagonal
    roots, axes = np.sqrt(values[kept]), vectors[:, kept]
    directions = _singular((axes.T @ _standardised_cross(moments)) / roots[:, None])
    return Projection((axes * roots) @ directions, (axes / roots) @ directions, moments.x_mean, about=about)


def fit_mean_projection(moments: Moments, **about: str) -> Projection:
    """Erase the differences of class means by an orthogonal projection: as thorough as LEACE, but changes rows more."""
    return Projection.orthogonal(_singular(_standardised_cross(moments)).T, moments.x_mean, **about)


def _standardised_cross(moments: Moments) -> Float[np.ndarray, "units classes"]:
    """Covariance of units and labels, labels of unit variance: otherwise a rare class would look like rounding."""
    deviation = np.sqrt(np.maximum(moments.target_squares, 0) / moments.n)
    present = deviation > 1e-9
    if present.sum() < 2:
        raise ProbeError("all rows are of one class: there is nothing to erase")
    return np.asarray(moments.cross[:, present] / moments.n / deviation[present])


def _singular(cross: Float[np.ndarray, "units classes"]) -> Float[np.ndarray, "units rank"]:
    left, sizes, _ = np.linalg.svd(cross, full_matrices=False)
    return np.asarray(left[:, sizes > LEAST_CORRELATION * max(1.0, sizes.max(initial=0.0))])
