"""Two tasks on one subject: how much their circuits share, and what one task loses without the other's circuit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.plugins.circuit.controls import permuted_within
from workbench.probes import permutation_p_value


class Shared(NamedTuple):
    """How alike two tasks' scores of nodes are.

    Attributes
    ----------
    jaccard, correlation : float
        Of the n best nodes: how many are shared of those that are in either. Of all scores: rank correlation.
    jaccard_by_chance, correlation_by_chance : float
        Means over permutations of one task's scores within layers.
    jaccard_p, correlation_p : float
        Share of permutations that reach as much.
    """

    jaccard: float
    jaccard_by_chance: float
    jaccard_p: float
    correlation: float
    correlation_by_chance: float
    correlation_p: float


def shared(
    first: Float[np.ndarray, " node"],
    second: Float[np.ndarray, " node"],
    layer: Int[np.ndarray, " node"],
    n: int,
    permutations: int,
    rng: np.random.Generator,
) -> Shared:
    """Compare two tasks' scores of the same nodes, larger being more important.

    Parameters
    ----------
    first, second : np.ndarray
        [nodes] sizes of scores.
    layer : np.ndarray
        [nodes] each node's layer: scores are permuted within it, since important nodes of any tasks lie in like layers.
    n : int
        Nodes of a circuit.
    permutations : int
        How many.
    rng : np.random.Generator
        Of the permutations.
    """
    jaccards, correlations = np.empty(permutations), np.empty(permutations)
    mine, theirs = best(first, n), best(second, n)
    ranks = rank(first), rank(second)
    for draw in range(permutations):
        other = permuted_within(second, layer, rng)
        jaccards[draw], correlations[draw] = jaccard(mine, best(other, n)), correlation(ranks[0], rank(other))
    found = jaccard(mine, theirs), correlation(*ranks)
    return Shared(
        found[0], float(jaccards.mean()), permutation_p_value(found[0], jaccards),
        found[1], float(correlations.mean()), permutation_p_value(found[1], correlations),
    )  # fmt: skip


def best(scores: Float[np.ndarray, " node"], n: int) -> Bool[np.ndarray, " node"]:
    """Return which nodes are the n best; equal ones by their order."""
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(-scores, kind="stable")[:n]] = True
    return chosen


def jaccard(first: Bool[np.ndarray, " node"], second: Bool[np.ndarray, " node"]) -> float:
    """Return how many nodes are in both, as a share of those in either; 0 where both are empty."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def rank(scores: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """Return ranks from 1, equal scores sharing the mean of theirs."""
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.reshape(-1)], dtype=np.float64) if len(values) else scores


def correlation(first: Float[np.ndarray, " node"], second: Float[np.ndarray, " node"]) -> float:
    """Return the correlation of ranks; 0 where one is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / norm) if norm else 0.0
