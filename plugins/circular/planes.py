"""A cluster's reconstruction, without a matrix [rows, width]: its rows, principal components, and planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.probes.circles import roundness
from workbench.probes.planar import QUARTER_ANGLES, mixture_index, mixture_sweep, separability_index

if TYPE_CHECKING:
    import scipy.sparse

DEGENERATE = 0.01  # planes with an ε-mixture below this are left out of the ranking, as in the paper


@dataclass(frozen=True)
class Cloud:
    """What a cluster alone reconstructs, on the rows where any of its latents is active.

    Attributes
    ----------
    rows : np.ndarray
        [n] places of those rows among the codes' rows.
    coordinates : np.ndarray
        [n, r] reconstructions in an orthonormal basis of the cluster's directions.
    basis : np.ndarray
        [r, width] that basis.
    axes : np.ndarray
        [k, width] principal components, largest first.
    scores : np.ndarray
        [n, k] components of the centred reconstructions.
    variance : np.ndarray
        [k] shares of the variance.
    """

    rows: np.ndarray
    coordinates: np.ndarray
    basis: np.ndarray
    axes: np.ndarray
    scores: np.ndarray
    variance: np.ndarray

    @property
    def planes(self) -> list[tuple[int, int]]:
        """Pairs of neighbouring components, counted from 0."""
        k = self.scores.shape[1]
        return [(i, i + 1) for i in range(k - 1)]


class Reconstructions:
    """Reconstructions from any cluster of a dictionary.

    The codes are sorted by latent once, so that each cluster reads its own entries and no others: a sparse matrix of
    its columns times its directions. Those are first written in an orthonormal basis of their span, as a cluster has
    few of them: a row takes as many numbers as the cluster has latents, not the width.

    Parameters
    ----------
    codes : csr_matrix
        [rows, latents] activations.
    directions : np.ndarray
        [latents, width] decoder rows, in the subject's scale.
    """

    def __init__(self, codes: scipy.sparse.csr_matrix, directions: np.ndarray) -> None:
        self.codes = codes.tocsc()
        self.directions = np.asarray(directions, dtype=np.float64)
        self.density = np.diff(self.codes.indptr) / max(codes.shape[0], 1)

    def cloud(self, latents: Sequence[int] | np.ndarray, components: int = 5) -> Cloud:
        """Return a cluster's cloud, with as many components as it has directions at most."""
        mine = self.codes[:, np.asarray(latents)]
        rows, place = np.unique(mine.indices, return_inverse=True)
        compact = type(mine)((mine.data, place, mine.indptr), shape=(len(rows), mine.shape[1]))
        Q, T = np.linalg.qr(self.directions[np.asarray(latents)].T)
        coordinates = np.asarray(compact @ T.T)
        centred = coordinates - coordinates.mean(axis=0) if len(rows) else coordinates
        values, vectors = np.linalg.eigh(centred.T @ centred / max(len(rows), 1))
        order = np.argsort(-values)[:components]
        chosen = vectors[:, order]
        return Cloud(
            rows=rows,
            coordinates=coordinates,
            basis=Q.T,
            axes=(Q @ chosen).T,
            scores=centred @ chosen,
            variance=values[order].clip(0) / max(values.clip(0).sum(), 1e-300),
        )


@dataclass(frozen=True)
class PlaneScore:
    """The indices of one plane.

    Attributes
    ----------
    axes : pair of int
        Its principal components, from 0.
    separability, bias, mixture, mixture_upper : float
        See `workbench.probes.planar`.
    """

    axes: tuple[int, int]
    separability: float
    bias: float
    mixture: float
    mixture_upper: float

    @property
    def value(self) -> float:
        """What it adds to the ranking."""
        return (1 - self.mixture) * self.separability


def score_planes(scores: np.ndarray, planes: Sequence[tuple[int, int]]) -> list[PlaneScore]:
    """Return the indices of each plane of component scores [rows, k]."""
    found = []
    for pair in planes:
        xy = scores[:, list(pair)]
        s, m = separability_index(xy), mixture_index(xy)
        found.append(PlaneScore(pair, s.value, s.bias, m.value, m.upper))
    return found


def ranking(planes: Sequence[PlaneScore]) -> float:
    """Return the mean of (1 - M)·S over planes that are not degenerate; 0 if all are."""
    kept = [each.value for each in planes if each.mixture >= DEGENERATE]
    return float(np.mean(kept)) if kept else 0.0


def quick_ranking(scores: np.ndarray, planes: Sequence[tuple[int, int]]) -> float:
    """Return about what `ranking` would, from fewer angles and directions: for comparing many resamples."""
    found = []
    for pair in planes:
        mixture, value = _quick_value(scores[:, list(pair)])
        if mixture >= DEGENERATE:
            found.append(value)
    return float(np.mean(found)) if found else 0.0


def circularity(scores: np.ndarray, planes: Sequence[tuple[int, int]]) -> float:
    """Return how much of a cloud is one round, irreducible plane: the statistic of the tests against chance.

    The largest, over planes, of (1 - M)·S times the plane's share of the cloud's variance in these components times 1
    minus the variation of the radius. (1 - M)·S alone cannot tell a ring from any seven latents that are never active
    together: those lie on the corners of a simplex, of which every plane is irreducible and none has much of it.
    """
    variance = scores.var(axis=0)
    total = max(float(variance.sum()), 1e-300)
    best = 0.0
    for pair in planes:
        xy = scores[:, list(pair)]
        round_part = max(0.0, 1 - roundness(xy).variation) * float(variance[list(pair)].sum()) / total
        best = max(best, _quick_value(xy)[1] * round_part)
    return best


def _quick_value(xy: np.ndarray) -> tuple[float, float]:
    """Return M and (1 - M)·S of a cloud, from fewer directions and angles."""
    mixture = mixture_sweep(xy)
    return mixture, (1 - mixture) * separability_index(xy, angles=QUARTER_ANGLES).value


def sample(n: int, at_most: int, rng: np.random.Generator) -> np.ndarray:
    """Return which of n rows are looked at: all, or a seeded choice, ascending."""
    return np.arange(n) if n <= at_most else np.sort(rng.choice(n, at_most, replace=False))
