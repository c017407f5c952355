"""Discovery: every cluster scored, ranked, and held against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.plugins.circular import CircularConfig
from workbench.plugins.circular.clusters import Cluster, Matched
from workbench.plugins.circular.planes import (
    Cloud,
    PlaneScore,
    Reconstructions,
    circularity,
    ranking,
    sample,
    score_planes,
)
from workbench.plugins.circular.work import once
from workbench.probes.statistics import benjamini_hochberg, holm, permutation_p_value

if TYPE_CHECKING:
    from workbench.context import Context

LEAST_ROWS = 50
SAME = 0.5  # clusters that share this part of all their latents are one find, and the better one stands for both


@dataclass(frozen=True)
class Found:
    """One cluster, scored.

    Attributes
    ----------
    cluster : Cluster
        Its latents.
    cloud : Cloud
        What they reconstruct.
    planes : list of PlaneScore
        Planes of neighbouring principal components.
    score : float
        Mean of (1 - M)·S.
    circularity : float
        See `workbench.plugins.circular.planes.circularity`.
    p, n_draws : float, int
        Against matched random clusters, and how many were drawn.
    p_isotropic : float
        Against clouds of the same number of rows that look alike from all directions.
    """

    cluster: Cluster
    cloud: Cloud
    planes: list[PlaneScore]
    score: float
    circularity: float
    p: float
    n_draws: int
    p_isotropic: float


@dataclass(frozen=True)
class Ranked:
    """Clusters in order of their score, and p-values corrected for looking at all of them."""

    found: list[Found]
    p_holm: np.ndarray
    q: np.ndarray
    n_candidates: int


def discover(context: Context, reconstructions: Reconstructions, clusters: Sequence[Cluster]) -> Ranked:
    """Score the clusters, leave out what is nearly a better one, and test the rest against chance."""
    config: CircularConfig = context.config
    scored: list[tuple[float, Cluster, Cloud, list[PlaneScore]]] = []
    with context.progress(len(clusters), "clusters", "indices") as ticker:
        for cluster in clusters:
            cloud = reconstructions.cloud(cluster.latents, config.components)
            if len(cloud.rows) >= LEAST_ROWS and cloud.planes:
                at = sample(len(cloud.rows), config.index_rows, context.rng(f"indices {cluster.latents.tolist()}"))
                planes = score_planes(cloud.scores[at], cloud.planes)
                scored.append((ranking(planes), cluster, cloud, planes))
            ticker.advance()
    scored.sort(key=lambda each: -each[0])
    kept: list[tuple[float, Cluster, Cloud, list[PlaneScore]]] = []
    for each in scored:
        if not any(overlap(each[1].latents, better[1].latents) >= SAME for better in kept):
            kept.append(each)
    found = []
    isotropic = Isotropic(context)
    matched = Matched(reconstructions.density)
    with context.progress(len(kept), "clusters", "against chance") as ticker:
        for score, cluster, cloud, planes in kept:

            def chance(cluster: Cluster = cluster, cloud: Cloud = cloud) -> dict[str, float]:
                p, n_draws, quick = against_random(context, reconstructions, matched, cluster, cloud)
                null = isotropic.draws(min(len(cloud.rows), config.null.rows), cloud.scores.shape[1])
                alike = permutation_p_value(quick, null)
                return {"p": p, "n_draws": n_draws, "p_isotropic": alike, "circularity": quick}

            one = once(context, f"chance {cluster.latents.tolist()}", chance)
            chances = one["circularity"], one["p"], int(one["n_draws"]), one["p_isotropic"]
            found.append(Found(cluster, cloud, planes, score, *chances))
            ticker.advance()
    p_values = np.array([np.maximum(each.p, each.p_isotropic) for each in found])  # it must beat both
    return Ranked(found, holm(p_values), benjamini_hochberg(p_values), len(scored))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the latents that two clusters share, as a part of all that are in either."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def against_random(
    context: Context, reconstructions: Reconstructions, matched: Matched, cluster: Cluster, cloud: Cloud
) -> tuple[float, int, float]:
    """Return the p-value of a cluster's circularity among matched random clusters, how many were drawn, and itself.

    A cluster that makes up so much of a dictionary that none can be drawn beside it has the p-value NaN: not tested.

    Drawing stops when enough random clusters have reached it: then h / l is an exact p-value (Besag and
    Clifford 1991).
    """
    config: CircularConfig = context.config
    rng = context.rng(f"random clusters {cluster.latents.tolist()}")

    def measured(one: Cloud) -> float:
        if len(one.rows) < 3 or not one.planes:
            return 0.0
        at = sample(len(one.rows), config.null.rows, rng)
        return circularity(one.scores[at], one.planes)

    observed = measured(cloud)
    if not matched.enough(cluster.latents):
        return float("nan"), 0, observed
    reached = 0
    for draw in range(1, config.null.draws + 1):
        reached += measured(reconstructions.cloud(matched.draw(cluster.latents, rng), config.components)) >= observed
        if reached == config.null.reached:
            return reached / draw, draw, observed
    return (reached + 1) / (config.null.draws + 1), config.null.draws, observed


class Isotropic:
    """The circularity of normal clouds without any structure, by number of rows and components; each made once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.known: dict[tuple[int, int], np.ndarray] = {}

    def draws(self, n_rows: int, components: int) -> np.ndarray:
        """Return that of such clouds; rotating one changes nothing, so no rotation need be drawn."""
        # Within a tenth the number of rows makes no difference to the test, and clouds are made once for many clusters.
        n = round(10 ** (np.floor(20 * np.log10(n_rows)) / 20))
        if (n, components) not in self.known:
            rng = self.context.rng(f"isotropic {n} {components}")
            pairs = [(i, i + 1) for i in range(components - 1)]
            n_draws = self.context.config.null.draws  # no fewer: a p-value is the larger of both
            values = [circularity(rng.normal(size=(n, components)), pairs) for _ in range(n_draws)]
            self.known[n, components] = np.array(values)
        return self.known[n, components]
