"""How much of the task a circuit does: faithfulness over its size, the areas CPR and CMD, completeness, minimality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.errors import UserError
from workbench.plugins.circuit.graph import Graph
from workbench.probes import Interval
from workbench.probes.statistics import percentile_interval

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LEAST_ERRORS = 2.0  # standard errors that the whole model must lie above nothing
Order = Literal["signed", "magnitude"]


@dataclass(frozen=True)
class Ends:
    """What the faithfulness of circuits is measured between, example by example.

    Attributes
    ----------
    whole : array [example]
        The metric with all edges.
    nothing : array [example]
        The metric with none: everything is ablated.
    weights : array [draw, example]
        Resamples of examples behind intervals, the same for all circuits.
    """

    whole: np.ndarray
    nothing: np.ndarray
    weights: np.ndarray

    @property
    def gap(self) -> Interval:
        """What there is to explain, whole less nothing: its mean, two standard errors to either side."""
        difference = self.whole - self.nothing
        mean = float(difference.mean())
        error = float(difference.std(ddof=1)) / len(difference) ** 0.5 if len(difference) > 1 else float("inf")
        return Interval(mean, mean - LEAST_ERRORS * error, mean + LEAST_ERRORS * error)

    def check(self) -> None:
        """Refuse a gap that may be zero: a ratio to it means nothing.

        Raises
        ------
        UserError
            If the mean gap lies within two standard errors of 0.
        """
        if self.gap.lo <= 0 <= self.gap.hi:
            raise UserError(
                f"the metric is {self.whole.mean():.3g} with all of the model and {self.nothing.mean():.3g} with "
                "none of "
                f"it: the difference lies within two standard errors of 0 over {len(self.whole)} examples, so the "
                "subject does not solve the task, or more examples are needed, and faithfulness is not defined"
            )

    def faithfulness(self, scores: Float[np.ndarray, " example"]) -> Interval:
        """Return (m(C) − m(∅)) / (m(M) − m(∅)), a ratio of means, with its 95 % interval over examples."""
        top, bottom = scores - self.nothing, self.whole - self.nothing
        draws = (self.weights @ top) / (self.weights @ bottom)
        return Interval(float(top.mean() / bottom.mean()), *percentile_interval(draws))

    def areas(
        self, fractions: Sequence[float], curve: Float[np.ndarray, "fraction example"]
    ) -> tuple[Interval, Interval]:
        """Return the areas under f and under |1 − f|, by trapezoids from the first to the last fraction.

        Parameters
        ----------
        fractions : sequence of float
            Shares of the edges, ascending, on a linear axis.
        curve : array [fraction, example]
            The metric of each circuit.
        """
        x = np.asarray(fractions)
        top, bottom = curve - self.nothing, self.whole - self.nothing
        value = top.mean(1) / bottom.mean()
        draws = (self.weights @ top.T) / (self.weights @ bottom)[:, None]
        areas = []
        for values, many in ((value, draws), (np.abs(1 - value), np.abs(1 - draws))):
            areas.append(Interval(float(_trapezoid(x, values)), *percentile_interval(_trapezoid(x, many))))
        return areas[0], areas[1]


def _trapezoid(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Areas under y [..., point] over x [point]."""
    return np.asarray(((y[..., 1:] + y[..., :-1]) / 2) @ np.diff(x))


def ranked_edges(
    graph: Graph, scores: Float[np.ndarray, "source destination"], order: Order
) -> Int[np.ndarray, " edge"]:
    """Return the graph's edges as places in the flattened scores, best first; equal scores in the graph's order."""
    places = np.flatnonzero(graph.real)
    values = scores.ravel()[places]
    return places[np.argsort(-(np.abs(values) if order == "magnitude" else values), kind="stable")]


def of_size(graph: Graph, ranked: Int[np.ndarray, " edge"], n: int) -> Bool[np.ndarray, "source destination"]:
    """Return the n first edges as a circuit."""
    present = np.zeros(graph.real.size, dtype=bool)
    present[ranked[:n]] = True
    return present.reshape(graph.real.shape)


def sizes_of(graph: Graph, fractions: Sequence[float]) -> list[int]:
    """Return how many edges each fraction is: at least one."""
    return [max(1, round(fraction * graph.n_edges)) for fraction in fractions]


def node_sizes(n_nodes: int) -> list[int]:
    """Return numbers of nodes to draw a curve of: each about half as large again, up to all."""
    sizes = [0, 1]
    while sizes[-1] < n_nodes:
        sizes.append(min(n_nodes, sizes[-1] + max(1, sizes[-1] // 2)))
    return sizes


def among(graph: Graph, nodes: Bool[np.ndarray, " source"]) -> Bool[np.ndarray, "source destination"]:
    """Return all edges between some nodes, the input and the logits."""
    kept = nodes.copy()
    kept[0] = True
    ends = (graph.owners @ kept.astype(int)) > 0
    ends[graph.logits] = True
    return np.asarray(graph.real & kept[:, None] & ends)


def without_node(graph: Graph, present: Bool[np.ndarray, "source destination"], node: int) -> np.ndarray:
    """Return a circuit without one node's edges; a key or value that it shares with other heads stays."""
    mine = graph.owners[:, node] & (graph.owners.sum(1) == 1)
    left = present & ~mine
    left[node] = False
    return np.asarray(left)


def members(graph: Graph, present: Bool[np.ndarray, "source destination"]) -> Bool[np.ndarray, " source"]:
    """Return the nodes that a circuit's edges touch, the input left out."""
    fed = (present.any(0).astype(int) @ graph.owners.astype(int)) > 0
    touched = present.any(1) | fed
    touched[0] = False
    return np.asarray(touched)
