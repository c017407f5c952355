"""The clusters that are shown, looked at closely: intervals, how round each plane is, what halves of the text say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.plugins.circular import CircularConfig
from workbench.plugins.circular.discovery import Found
from workbench.plugins.circular.features import LEAST_OF_CLASS, Naming
from workbench.plugins.circular.planes import Cloud, quick_ranking, sample
from workbench.probes.circles import order_around, roundness
from workbench.probes.planar import mixture_sweep, separability_draws
from workbench.probes.projections import largest_angle
from workbench.probes.rings import class_means, fit_rings
from workbench.probes.statistics import bootstrap_weights, percentile_interval

if TYPE_CHECKING:
    from workbench.context import Context

MIXTURE_DRAWS = 60
HALVES = 8


def plane_rows(
    context: Context, rank: int, found: Found, naming: Naming | None, documents: np.ndarray
) -> list[dict[str, Any]]:
    """Return one row per plane: indices with intervals over documents, roundness, and what the label does in it.

    Parameters
    ----------
    context : Context
        Of the run.
    rank : int
        Of the cluster, from 1.
    found : Found
        The cluster.
    naming : Naming, optional
        Its label.
    documents : np.ndarray
        [rows] document of each row of the codes.
    """
    config: CircularConfig = context.config
    cloud = found.cloud
    at = sample(len(cloud.rows), config.index_rows, context.rng(f"indices {found.cluster.latents.tolist()}"))
    members, group = np.unique(documents[cloud.rows[at]], return_inverse=True)
    rng = context.rng(f"planes {rank}")
    weights = bootstrap_weights(len(members), config.draws, rng)
    rows = []
    for plane in found.planes:
        xy = cloud.scores[at][:, list(plane.axes)]
        draws = separability_draws(xy, weights[:, group])
        # what resampling itself adds to a histogram's bias is taken off, so that the interval lies around the value
        lo, hi = percentile_interval(draws + (plane.separability - separability_draws(xy, np.ones((1, len(xy))))[0]))
        resampled = np.array(
            [mixture_sweep(np.repeat(xy, weight[group].astype(int), axis=0)) for weight in weights[:MIXTURE_DRAWS]]
        )
        # likewise of a largest share, which is larger still in most resamples
        m_lo, m_hi = percentile_interval((resampled - resampled.mean() + plane.mixture).clip(0, 1))
        shape = roundness(xy)
        rows.append(
            {
                "rank": rank,
                "plane": f"{plane.axes[0] + 1}, {plane.axes[1] + 1}",
                "variance": float(cloud.variance[list(plane.axes)].sum()),
                "separability": plane.separability,
                "s_lo": lo,
                "s_hi": hi,
                "bias": plane.bias,
                "mixture": plane.mixture,
                "m_lo": m_lo,
                "m_hi": m_hi,
                "mixture_upper": plane.mixture_upper,
                # Least squares on another number of threads differ in the last bits.
                "radius_variation": round(shape.variation, 9),
                "coverage": round(shape.coverage, 9),
                "evenness": round(shape.evenness, 9),
                **in_plane(cloud, plane.axes, naming),
                "n_rows": len(at),
                "n_documents": len(members),
            }
        )
    return rows


def in_plane(cloud: Cloud, axes: tuple[int, int], naming: Naming | None) -> dict[str, Any]:
    """Return the strongest frequency of the label in a plane, its share, and how well classes keep their order."""
    if naming is None or not naming.names:
        return {"frequency": 0, "share": float("nan"), "order": float("nan")}
    classes = naming.label.classes[cloud.rows]
    there = classes >= 0
    means = class_means(cloud.scores[there][:, list(axes)], classes[there], naming.label.period)
    if np.bincount(classes[there], minlength=len(means)).min() < LEAST_OF_CLASS:
        return {"frequency": 0, "share": float("nan"), "order": float("nan")}
    rings = fit_rings(means)
    frequency = int(np.argmax(rings.shares)) + 1
    centred = means - rings.mean
    around = np.arctan2(centred[:, 1], centred[:, 0])
    return {"frequency": frequency, "share": float(rings.shares.max()), "order": order_around(around)}


def stability_row(context: Context, rank: int, found: Found, documents: np.ndarray) -> dict[str, Any]:
    """Return how a cluster's score and first plane vary between random halves of the documents.

    ``angle``: the largest principal angle between the first planes of a half and of the other half, in degrees; the
    median over eight divisions.
    """
    rng = context.rng(f"halves {rank}")
    cloud = found.cloud
    of_row = documents[cloud.rows]
    members, group = np.unique(of_row, return_inverse=True)
    scores, angles = [], []
    for _ in range(HALVES):
        first = np.zeros(len(members), dtype=bool)
        first[rng.permutation(len(members))[: len(members) // 2]] = True
        planes = []
        for half in (first[group], ~first[group]):
            centred = cloud.coordinates[half] - cloud.coordinates[half].mean(axis=0)
            axes = np.linalg.svd(centred.T @ centred)[0][:, : cloud.scores.shape[1]]
            planes.append(axes[:, :2])
            at = sample(len(centred), context.config.null.rows, rng)
            scores.append(quick_ranking((centred @ axes)[at], cloud.planes))
        angles.append(largest_angle(planes[0], planes[1]))
    return {
        "score_median": float(np.median(scores)),
        "score_least": float(np.min(scores)),
        "score_most": float(np.max(scores)),
        "angle": float(np.median(angles)),
    }
