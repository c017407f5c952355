"""ACDC: take edges out one at a time, last nodes first, and leave out for good those that are hardly missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit.circuits import Ablated
from workbench.plugins.circuit.graph import READS, Graph
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import BATCH_SIZE, scored
from workbench.plugins.circuit.stream import Stream
from workbench.subjects.protocol import Subject

THRESHOLDS = tuple(float(each) for each in np.logspace(-4, 0, 21))
MOST_PASSES = 50_000


def acdc_scores(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    batch_size: int = BATCH_SIZE,
    most_passes: int = MOST_PASSES,
    on_threshold: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Score each edge by the largest threshold that it survives; see `acdc`.

    Parameters
    ----------
    subject, pairs, graph
        A small causal language model, prompts, the subject's graph.
    thresholds : sequence of float
        In nats, above 0.
    batch_size : int
        Examples at once; those of all batches are held.
    most_passes : int
        More passes than this are refused: at most one for each edge, threshold and batch.
    on_threshold : function, optional
        Called after each threshold with the number of edges that are left.

    Returns
    -------
    float64 array [sources, destinations]
        0 where no threshold is survived.

    Raises
    ------
    UserError
        Above the budget of passes, or for a threshold that is not above 0.
    """
    n_batches = math.ceil(len(pairs) / batch_size)
    passes = graph.n_edges * len(thresholds) * n_batches
    if passes > most_passes:
        raise UserError(
            f"{graph.n_edges:,} edges, {len(thresholds)} thresholds and {n_batches} batches are {passes:,} passes, "
            f"more than {most_passes:,}: ACDC is for small models (attribute scores all edges at once)"
        )
    search = Search(subject, pairs, graph, batch_size)
    scores = np.zeros(graph.real.shape)
    for threshold in sorted(thresholds):
        left = search.at(threshold)
        scores[left] = threshold
        if on_threshold is not None:
            on_threshold(int(left.sum()))
    return scores


def acdc(subject: Subject, pairs: Pairs, graph: Graph, threshold: float, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Find a circuit by taking out edges.

    Nodes are visited from the logits back to the input, and of each the edges that enter it, the latest source first.
    An edge is corrupted on top of those that already are; where the divergence KL(subject ‖ circuit) at the last token,
    mean over examples, rises by less than the threshold, it stays so. The metric of the pairs is not used.

    Parameters
    ----------
    subject, pairs, graph
        A small causal language model, prompts, the subject's graph.
    threshold : float
        In nats, above 0.
    batch_size : int
        Examples at once.

    Returns
    -------
    bool array [sources, destinations]
        The edges that are left.

    Raises
    ------
    UserError
        For a threshold that is not above 0.
    """
    return Search(subject, pairs, graph, batch_size).at(threshold)


class Search:
    """The search at any threshold, with what all thresholds share."""

    def __init__(self, subject: Subject, pairs: Pairs, graph: Graph, batch_size: int) -> None:
        self.stream, self.graph, self.n_examples = Stream(subject, graph), graph, len(pairs)
        pairs = replace(pairs, metric="kl")
        self.objective = self.stream.objective(pairs, batch_size)
        batches = self.stream.batches(pairs, batch_size)
        self.batches = [(at, clean, self.stream.values(corrupted)[0]) for at, clean, corrupted in batches]

    def divergence(self, present: np.ndarray) -> float:
        """Mean divergence of a circuit from the subject, in nats."""
        absent, total = self.graph.real & ~present, 0.0
        for at, clean, instead in self.batches:
            edits = Ablated(self.stream, clean, absent, instead).edits()
            total -= float(scored(self.stream.subject, clean, self.objective, at, edits).sum())
        return total / self.n_examples

    def at(self, threshold: float) -> np.ndarray:
        """Return the edges that are left at a threshold."""
        if not threshold > 0:
            raise UserError(f"threshold {threshold:g}: must be above 0 nats")
        present, now = self.graph.real.copy(), 0.0
        for destination in backwards(self.graph):
            owners = self.graph.owners[destination]
            if destination != self.graph.logits and not present[owners].any():
                present[:, destination] = False  # what it feeds is read by nobody any more
                continue
            for source in np.flatnonzero(present[:, destination])[::-1]:
                present[source, destination] = False
                without = self.divergence(present)
                if without - now < threshold:
                    now = without
                else:
                    present[source, destination] = True
        return present


def backwards(graph: Graph) -> Iterator[int]:
    """Destinations from the logits to the first layer; the queries, keys and values of a head one after the other."""
    yield graph.logits
    for layer in range(graph.n_layers - 1, -1, -1):
        if graph.mlps:
            yield graph.mlp_in(layer)
        for head in range(graph.n_heads - 1, -1, -1):
            for which in READS:
                if head < graph.n_read(which):
                    yield graph.reads(layer, which).start + head
