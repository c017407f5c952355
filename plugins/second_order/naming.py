"""Which concept a neuron is selective for, which one its texts name, and whether the two agree beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from workbench.probes.statistics import Interval, bootstrap_weights, percentile_interval, permutation_p_value


class Selectivity(NamedTuple):
    """How well a neuron's response tells images of a concept from others.

    Attributes
    ----------
    auc : np.ndarray
        [neuron, concept] chance that an image of the concept has the larger response; 0.5 where that is not defined.
    concept : np.ndarray
        [neuron] of the largest.
    value : np.ndarray
        [neuron] the largest.
    """

    auc: np.ndarray
    concept: np.ndarray
    value: np.ndarray


def selectivity(response: np.ndarray, has: np.ndarray) -> Selectivity:
    """Measure selectivity, response [image, neuron], has [image, concept] 1, 0 or NaN (label not defined)."""
    auc = np.full((response.shape[1], has.shape[1]), 0.5)
    undefined = np.isnan(has)
    for pattern in np.unique(undefined, axis=1).T:  # concepts of one label are defined on the same images
        columns = np.flatnonzero((undefined == pattern[:, None]).all(axis=0))
        known = ~pattern
        if known.sum() < 2:
            continue
        ranks = rankdata(response[known], axis=0)
        inside = has[known][:, columns]
        n_in = inside.sum(axis=0)
        n_out = len(inside) - n_in
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (ranks.T @ inside - n_in * (n_in + 1) / 2) / (n_in * n_out)
        auc[:, columns] = np.where((n_in > 0) & (n_out > 0), found, 0.5)
    best = auc.argmax(axis=1)
    return Selectivity(auc, best, auc.max(axis=1))


def named_concepts(texts: np.ndarray, coefficients: np.ndarray, names: np.ndarray, n_terms: int) -> np.ndarray:
    """Return the concept that the first terms of each decomposition name most, -1 where they name none.

    A text that names a concept adds its coefficient to it, divided by the number of concepts that it names.

    Parameters
    ----------
    texts, coefficients : np.ndarray
        [neuron, term], largest first.
    names : np.ndarray
        [text, concept] from `Pool`.
    n_terms : int
        How many terms count.
    """
    share = names / np.maximum(names.sum(axis=1, keepdims=True), 1)
    first, weight = texts[:, :n_terms], coefficients[:, :n_terms]
    scores = np.einsum("nk,nkc->nc", np.where(first >= 0, weight, 0.0), share[np.maximum(first, 0)])
    return np.where(scores.max(axis=1) > 0, scores.argmax(axis=1), -1)


class Agreement(NamedTuple):
    """Of how many neurons the texts name the concept that they are selective for.

    Attributes
    ----------
    share : Interval
        With its interval over neurons.
    chance : float
        Mean share when concepts are renamed at random, see `renamings`.
    p : float
        Of a share as large under that.
    """

    share: Interval
    chance: float
    p: float


def agreement(
    named: np.ndarray,
    concept: np.ndarray,
    sizes: Sequence[int],
    n_permutations: int,
    n_draws: int,
    rng: np.random.Generator,
) -> Agreement:
    """Hold names against concepts, [neuron] each; `sizes` are the numbers of concepts of each label, side by side.

    Neurons are no independent draws: many write along the same direction, and share its texts and its concept. So
    chance is not what neurons come to when names are dealt out among them, but when the concepts' names are mixed up.
    """
    right = (named == concept).astype(float)
    names = renamings(sizes, n_permutations, rng)
    null = ((names[:, np.maximum(named, 0)] == concept) & (named >= 0)).mean(axis=1)
    weights = bootstrap_weights(len(right), n_draws, rng)
    interval = percentile_interval(weights @ right / len(right))
    return Agreement(
        Interval(float(right.mean()), *interval), float(null.mean()), permutation_p_value(right.mean(), null)
    )


def renamings(sizes: Sequence[int], n: int, rng: np.random.Generator) -> np.ndarray:
    """Return n random renamings [n, concept]: of a label's concepts among themselves, of lone ones likewise."""
    ends = np.cumsum(sizes)
    groups = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    lone = [group for group in groups if len(group) == 1]
    groups = [group for group in groups if len(group) > 1] + ([np.concatenate(lone)] if lone else [])
    found = np.zeros((n, int(np.sum(sizes))), int)
    for group in groups:
        found[:, group] = group[rng.random((n, len(group))).argsort(axis=1)]
    return found
