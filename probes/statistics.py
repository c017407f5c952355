"""How sure a score is: intervals over groups, permutation nulls, and correction for many tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from workbench.probes.errors import ProbeError
from workbench.probes.metrics import METRICS, Metric, evaluate, from_counts, from_histograms, row_losses

FEW_GROUPS = 20  # below this many groups with a positive row, percentile intervals are too narrow
N_BINS = 512  # per class, in intervals of rank metrics


class Interval(NamedTuple):
    """A value with its interval."""

    value: float
    lo: float
    hi: float


def bootstrap_weights(n_groups: int, n_draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws groups"]:
    """Draw groups with replacement: how often each of `n_groups` appears in each of `n_draws` samples.

    Use one array for all probes of the same rows, and their differences are paired.
    """
    if n_groups < 1 or n_draws < 1:
        raise ProbeError(f"n_groups={n_groups}, n_draws={n_draws}: both must be at least 1")
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)


def bootstrap_metrics(
    y: Bool[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, "draws groups"],
) -> dict[Metric, Float[np.ndarray, " draws"]]:
    """Return every metric in every resample of groups, by one matrix product of draws and counts per group.

    AUC and average precision take scores in at most 2 × 512 bins, whose edges are quantiles of each class; with no
    more distinct scores than that they are exact.

    Parameters
    ----------
    y, score : np.ndarray
        As in `evaluate`.
    groups : np.ndarray
        [rows] index of the row's group, below `weights.shape[1]`.
    weights : np.ndarray
        From `bootstrap_weights`.
    """
    n_groups = weights.shape[1]
    y = np.asarray(y, dtype=bool)
    cells = groups * 2 + y
    yes = score > 0

    def per_group(values: np.ndarray, n_columns: int = 1) -> np.ndarray:
        """Sum values of rows by group, class and column."""
        return np.asarray(np.bincount(values, minlength=n_groups * 2 * n_columns)).reshape(n_groups, 2, n_columns)

    confusion = np.einsum("dg,gcs->csd", weights, per_group(cells * 2 + yes, 2))
    (tn, fp), (fn, tp) = confusion
    loss = np.bincount(cells, weights=row_losses(y, score), minlength=n_groups * 2).reshape(n_groups, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        loss_draws = ((weights @ loss) / np.stack([tn + fp, fn + tp], axis=1)).mean(axis=1)

    bins, n_bins = _bins(y, score)
    counts = per_group(cells * n_bins + bins, n_bins)
    negative, positive = (np.ascontiguousarray(counts[:, each, ::-1], dtype=np.float64) for each in (0, 1))  # for BLAS
    ranked = from_histograms(weights @ positive, weights @ negative)
    return {**ranked, **from_counts(tp, fp, fn, tn), "log_loss": loss_draws}


def _bins(y: np.ndarray, score: np.ndarray) -> tuple[Int[np.ndarray, " rows"], int]:
    edges = np.unique(score)
    if len(edges) > 2 * N_BINS:
        at = np.linspace(0, 1, N_BINS)
        parts = [np.quantile(score[mask], at) for mask in (y, ~y) if mask.any()]
        edges = np.unique(np.concatenate(parts))
    return np.searchsorted(edges, score, side="right"), len(edges) + 1


def group_intervals(
    y: Bool[np.ndarray, " rows"],
    score: Float[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, "draws groups"],
    level: float = 0.95,
) -> dict[Metric, Interval]:
    """Return every metric with its percentile interval over groups.

    Resampling rows instead would treat the rows of one document as independent, and cover far too rarely.

    Parameters
    ----------
    y, score, groups, weights
        As in `bootstrap_metrics`.
    level : float
        Share of draws inside the interval.
    """
    values = evaluate(y, score)
    draws = bootstrap_metrics(y, score, groups, weights)
    # the bins' own effect on the point estimate, so that the interval lies around the exact value
    once = bootstrap_metrics(y, score, groups, np.ones((1, weights.shape[1])))
    intervals = {}
    for metric in METRICS:
        lo, hi = percentile_interval(draws[metric] + (values[metric] - once[metric][0]), level)
        intervals[metric] = Interval(values[metric], lo, hi)
    return intervals


def percentile_interval(draws: Float[np.ndarray, " draws"], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of draws, leaving out NaN (draws without one of the classes)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: the interval is NaN, and says so
        lo, hi = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def group_slices(groups: Shaped[np.ndarray, " rows"]) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, " groups"]]:
    """Return first row and number of rows of each run of equal groups.

    Raises
    ------
    ProbeError
        If a group's rows are not side by side: shifts inside groups need their order.
    """
    groups = np.asarray(groups)
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if len(groups) else np.empty(0, int)
    if len(np.unique(groups[starts])) != len(starts):
        raise ProbeError("rows of one group must be side by side")
    return starts, np.diff(starts, append=len(groups))


def varies_inside(values: Shaped[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"]) -> bool:
    """Tell whether any group has more than one value."""
    starts, sizes = group_slices(groups)
    return bool((np.asarray(values) != np.repeat(np.asarray(values)[starts], sizes)).any())


def permute_labels(
    values: Shaped[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    rng: np.random.Generator,
    strata: Int[np.ndarray, " rows"] | None = None,
) -> Shaped[np.ndarray, " rows"]:
    """Break the tie between rows and labels, keeping what the labels are like.

    Constant inside groups: groups exchange their labels, within strata. Else each group's labels are turned in a
    circle by a random step (never by none), which keeps runs and each group's prevalence.

    Parameters
    ----------
    values, groups : arrays, [rows]
        Label and group of each row; a group's rows side by side, in their own order.
    rng : np.random.Generator
        Drawn from once per group.
    strata : np.ndarray, optional
        [rows] constant inside groups: exchange only within one (train with train).

    Returns
    -------
    np.ndarray
        [rows] labels, permuted.
    """
    values = np.asarray(values)
    starts, sizes = group_slices(groups)
    if not varies_inside(values, groups):
        of_group = values[starts].copy()
        stratum = np.zeros(len(starts), dtype=int) if strata is None else np.asarray(strata)[starts]
        for each in np.unique(stratum):
            members = np.flatnonzero(stratum == each)
            of_group[members] = of_group[rng.permutation(members)]
        return np.repeat(of_group, sizes)
    step = 1 + np.floor(rng.random(len(starts)) * np.maximum(sizes - 1, 1)).astype(np.int64)
    place = np.arange(len(values)) - np.repeat(starts, sizes)
    turned = (place + np.repeat(step, sizes)) % np.repeat(sizes, sizes)
    return np.asarray(values[np.repeat(starts, sizes) + turned])


def permutation_p_value(observed: float, null: Float[np.ndarray, " draws"]) -> float:
    """Return `(1 + #{null ≥ observed}) / (1 + N)`: never 0; larger must mean better. NaN draws count as reached."""
    if np.isnan(observed):
        return float("nan")
    return float((1 + np.count_nonzero(~(np.asarray(null) < observed))) / (1 + len(null)))


def max_statistic_p_values(
    observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "draws tests"]
) -> Float[np.ndarray, " tests"]:
    """Return p-values corrected for looking at many hook points: each is held to the largest null of each draw.

    Holds the family-wise error if one permutation of the labels served all tests of a draw, and all tests have the
    same null distribution.
    """
    largest = np.max(np.asarray(null), axis=1)
    return np.array([permutation_p_value(value, largest) for value in observed])


def benjamini_hochberg(p: Sequence[float] | Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Return q-values: the smallest false discovery rate at which each test is still found.

    NaN stays NaN and does not count as a test. Benjamini & Hochberg 1995.
    """
    p = np.asarray(p, dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ProbeError("p-values must lie between 0 and 1")
    q = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(-p[tested], kind="stable")]
    rank = np.arange(len(order), 0, -1)
    q[order] = np.minimum(1, np.minimum.accumulate(p[order] * len(order) / rank))
    return q


def holm(p: Sequence[float] | Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Return p-values that hold the chance of any false find: Holm's step-down form of Bonferroni's.

    NaN stays NaN and does not count as a test. Holm 1979.
    """
    p = np.asarray(p, dtype=float)
    if ((p < 0) | (p > 1)).any():
        raise ProbeError("p-values must lie between 0 and 1")
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    left = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return adjusted
