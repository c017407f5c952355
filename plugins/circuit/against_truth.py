"""Scores held against a known circuit: areas, precision and recall, intervals, and what permuted labels would give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.plugins.circuit.controls import edge_kinds, heads_matrix, later_pairs, node_kinds, permuted_within
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import Known
from workbench.plugins.circuit.measures import at_best, at_size, average_precision, paper_f1, roc_auc
from workbench.plugins.circuit.scoring import Scores
from workbench.probes import permutation_p_value
from workbench.probes.statistics import percentile_interval

SIGNED = ("discrete-sae",)  # counts: there is nothing negative about them


@dataclass(frozen=True)
class Units:
    """Units of one kind that a method scored.

    Attributes
    ----------
    name : str
        ``nodes``, ``edges``, ``pairs`` or ``node-via-pairs``.
    truth : bool array [unit]
        Of the known circuit.
    samples : array [sample, unit]
        Scores, whose mean counts.
    weights : array [sample]
        What each sample weighs in it.
    kinds : int array [unit]
        Units of a kind exchange labels as a control.
    """

    name: str
    truth: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray

    def mean(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the mean scores by size, under other weights of the samples if given."""
        chosen = self.weights if weights is None else self.weights * weights
        return np.asarray(np.abs(chosen @ self.samples / chosen.sum()))


def units_of(scores: Scores, graph: Graph, known: Known) -> Iterator[Units]:
    """Yield what a method scored and the known circuit tells, all structural edges left out.

    Heads alone are ranked where the known circuit names no MLP, or the method scores none.
    """
    kinds = node_kinds(graph)
    with_mlps = known.complete or (known.nodes & (kinds == 2)).any()
    ranked = ~np.isnan(scores.nodes).any(axis=0) & ((kinds == 1) | ((kinds == 2) & with_mlps))
    for name, values in (("nodes", scores.nodes), ("node-via-pairs", scores.via)):
        if values is not None:
            yield Units(name, known.nodes[ranked], values[:, ranked], np.ones(len(values)), kinds[ranked])
    if scores.edges is not None and scores.weights is not None:
        chosen = graph.real & ~known.structural
        kinds_of_edges = edge_kinds(graph)[chosen]
        yield Units("edges", known.edges[chosen], scores.edges[:, chosen], scores.weights, kinds_of_edges)
    if scores.pairs is not None:
        later = later_pairs(graph)
        labels = heads_matrix(graph, known.edges)[later]
        yield Units("pairs", labels, scores.pairs[:, later], np.ones(len(scores.pairs)), np.zeros(len(labels), int))


def truth_row(units: Units, method: str, draws: int, permutations: int, rng: np.random.Generator) -> dict[str, Any]:
    """Measure one method's units: a row of the table ``truth``."""
    mean = units.mean()
    n = len(units.samples)
    resampled = rng.multinomial(n, np.full(n, 1 / n), size=draws) if n > 1 else np.empty((0, n))
    bootstrap = np.array([roc_auc(units.truth, units.mean(weights)) for weights in resampled])
    labels = (permuted_within(units.truth, units.kinds, rng) for _ in range(permutations))
    null = np.array([roc_auc(each, mean) for each in labels])
    auc = roc_auc(units.truth, mean)
    exact, chosen = at_size(units.truth, mean), at_best(units.truth, mean)
    each = [roc_auc(units.truth, np.abs(sample)) for sample in units.samples] if method in SIGNED else []
    lo, hi = percentile_interval(bootstrap) if len(bootstrap) else (np.nan, np.nan)
    low, high = percentile_interval(null)
    return {
        "method": method,
        "units": units.name,
        "n": len(mean),
        "n_true": int(units.truth.sum()),
        "auc": auc,
        "lo": lo,
        "hi": hi,
        "auc_sd": float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"),
        "auc_staircase": roc_auc(units.truth, mean, "staircase"),
        "average_precision": average_precision(units.truth, mean),
        "precision": exact.precision,
        "recall": exact.recall,
        "f1": exact.f1,
        "best_f1": chosen.f1,
        "best_n": chosen.n,
        "paper_f1": paper_f1(units.truth, mean),
        "permuted": float(np.nanmean(null)),
        "permuted_lo": low,
        "permuted_hi": high,
        "p": permutation_p_value(auc, null),
    }
