"""Which latents belong together: by the angles between their directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from workbench.errors import UserError
from workbench.plugins.circular import ClusterConfig

ROWS_AT_ONCE = 1024
MOST_SPECTRAL = 20_000  # latents: 3.2 GB of affinities
LATENTS_PER_CLUSTER = 8


def unit_rows(directions: np.ndarray) -> np.ndarray:
    """Return rows [latents, width] of length 1, float32; rows of zeros stay."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / np.maximum(length, 1e-30), dtype=np.float32)


@dataclass(frozen=True)
class Cluster:
    """Latents that belong together.

    Attributes
    ----------
    latents : np.ndarray
        [n] ascending.
    cutoff : float
        The highest cosine similarity at which they are one component; NaN for spectral clusters.
    """

    latents: np.ndarray
    cutoff: float


def find_clusters(config: ClusterConfig, directions: np.ndarray, alive: np.ndarray, seed: int) -> list[Cluster]:
    """Return the different clusters of all cut-offs, largest first.

    Parameters
    ----------
    config : ClusterConfig
        How.
    directions : np.ndarray
        [latents, width] decoder rows.
    alive : np.ndarray
        [latents] which latents are ever active; the others belong to no cluster.
    seed : int
        Of spectral clustering.

    Raises
    ------
    UserError
        If spectral clustering is asked of more latents than its affinities fit into memory.
    """
    members = np.flatnonzero(alive)
    if len(members) < 2:
        return []
    unit = unit_rows(directions[members])
    ways: dict[float, np.ndarray]
    if config.method == "graph":
        cutoffs = config.cutoff if isinstance(config.cutoff, tuple) else (config.cutoff,)
        neighbours = nearest_neighbours(unit, config.top_k)
        ways = {cutoff: graph_labels(*neighbours, cutoff) for cutoff in sorted(cutoffs, reverse=True)}
    else:
        n = config.n or max(2, len(members) // LATENTS_PER_CLUSTER)
        ways = {float("nan"): spectral_labels(unit, n, seed)}
    found: dict[bytes, Cluster] = {}
    for cutoff, labels in ways.items():
        order = np.argsort(labels, kind="stable")
        for part in np.split(members[order], np.flatnonzero(np.diff(labels[order])) + 1):
            if config.smallest <= len(part) <= config.largest:
                latents = np.sort(part)
                found.setdefault(latents.tobytes(), Cluster(latents, cutoff))
    return sorted(found.values(), key=lambda each: (-len(each.latents), int(each.latents[0])))


def nearest_neighbours(unit: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each latent's nearest other ones [latents, top_k], and their cosines.

    A thousand latents at a time: a whole matrix of 24 000 would be 2 GB.
    """
    n = len(unit)
    k = min(top_k, n - 1)
    nearest, cosines = np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32)
    for first in range(0, n, ROWS_AT_ONCE):
        cosine = unit[first : first + ROWS_AT_ONCE] @ unit.T
        here = np.arange(len(cosine))
        cosine[here, first + here] = -np.inf  # none is its own neighbour
        best = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        nearest[first : first + ROWS_AT_ONCE] = best
        cosines[first : first + ROWS_AT_ONCE] = np.take_along_axis(cosine, best, axis=1)
    return nearest, cosines


def graph_labels(nearest: np.ndarray, cosines: np.ndarray, cutoff: float) -> np.ndarray:
    """Return the connected component of each latent where each is joined to its nearest ones above a cut-off."""
    n, k = nearest.shape
    above = cosines > cutoff
    rows = np.repeat(np.arange(n), k)[above.ravel()]
    graph = csr_matrix((np.ones(len(rows)), (rows, nearest[above])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1])


def spectral_labels(unit: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return the spectral cluster of each latent by the affinity 1 - angle / π."""
    from sklearn.cluster import SpectralClustering

    if len(unit) > MOST_SPECTRAL or n_clusters >= len(unit):
        raise UserError(
            f"clusters.method=spectral: {len(unit)} active latents in {n_clusters} clusters; at most {MOST_SPECTRAL} "
            "latents, and fewer clusters than those (clusters.method=graph takes more)"
        )
    affinity = 1 - np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
    return np.asarray(
        SpectralClustering(n_clusters, affinity="precomputed", random_state=seed % (1 << 32)).fit_predict(affinity)
    )


def mean_cosine(directions: np.ndarray, cluster: Sequence[int] | np.ndarray) -> float:
    """Return the mean cosine similarity of the pairs of a cluster's directions.

    For GPT-2 small, layer 7 (`gpt2-small-res-jb`), Engels et al. 2024 have 0.63, 0.53 and 0.55 for their clusters of
    weekdays, months and years.
    """
    unit = unit_rows(np.asarray(directions)[np.asarray(cluster)])
    n = len(unit)
    return float((np.square(unit.sum(axis=0, dtype=np.float64)).sum() - n) / (n * (n - 1)))


class Matched:
    """Random clusters that match a given one: of the same size, each latent about as often active as the one it is for.

    Parameters
    ----------
    density : np.ndarray
        [latents] share of rows on which each is active.
    """

    SPREAD = 16  # nearest latents by density, among which one is drawn

    def __init__(self, density: np.ndarray) -> None:
        self.members = np.flatnonzero(density > 0)
        self.by_density = self.members[np.argsort(density[self.members], kind="stable")]
        self.place = np.full(len(density), -1)
        self.place[self.by_density] = np.arange(len(self.by_density))

    def enough(self, cluster: np.ndarray) -> bool:
        """Return whether there are other latents for a cluster of this size, with some to choose from."""
        return len(self.members) >= 3 * len(cluster)

    def draw(self, cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a random cluster with none of the given one's latents in it; there must be enough (`enough`)."""
        taken = set(cluster.tolist())
        chosen: list[int] = []
        for latent in rng.permutation(cluster):
            near = self._near(int(self.place[latent]), taken)
            chosen.append(near[int(rng.integers(len(near)))])
            taken.add(chosen[-1])
        return np.sort(np.array(chosen, dtype=np.int64))

    def _near(self, place: int, taken: set[int]) -> list[int]:
        """Return the latents nearest in density to the one at a place that are not taken."""
        n, reach = len(self.by_density), self.SPREAD
        while True:
            window = self.by_density[max(0, place - reach) : place + reach + 1]
            free = [int(each) for each in window if int(each) not in taken]
            if len(free) >= self.SPREAD // 2 or len(window) >= n:
                return free
            reach *= 2
