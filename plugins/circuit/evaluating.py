"""What circuits of growing size do on examples that their scores did not see, kept as it is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.plugins.circuit import CircuitConfig
from workbench.plugins.circuit.circuits import prune, run_circuits
from workbench.plugins.circuit.curves import (
    FRACTIONS,
    Ends,
    Order,
    among,
    node_sizes,
    of_size,
    ranked_edges,
    sizes_of,
    without_node,
)
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.scoring import Scores, kept
from workbench.probes import bootstrap_weights
from workbench.subjects.protocol import Subject

if TYPE_CHECKING:
    from workbench.context import Context

ENOUGH = 0.9  # of the task: the smallest circuit that does as much is shown
GROWTH = 1.4  # from one size that is tried to the next
MOST_NODES = 30  # whose leaving the circuit is measured


@dataclass(frozen=True)
class Evaluator:
    """Runs circuits on held-out pairs.

    Attributes
    ----------
    context : Context
        Of the run.
    subject, graph : Subject, Graph
        The subject.
    pairs : Pairs
        Those to evaluate on.
    """

    context: Context
    subject: Subject
    graph: Graph
    pairs: Pairs

    def run(
        self, circuits: Sequence[np.ndarray], pairs: Pairs | None = None, ablation: str | None = None
    ) -> np.ndarray:
        """Return the metric of circuits [circuit, example]; each is pruned first."""
        config: CircuitConfig = self.context.config
        return run_circuits(
            self.subject,
            self.pairs if pairs is None else pairs,
            self.graph,
            [prune(self.graph, each) for each in circuits],
            ablation=ablation or config.ablation,  # type: ignore[arg-type]
            batch_size=config.batch_size,
        )

    def ends(self, folder: Path, name: str, pairs: Pairs | None = None, ablation: str | None = None) -> Ends:
        """Return the metric of the whole model and of nothing."""
        real = self.graph.real
        found = kept(folder / f"{name}.npz", lambda: {"scores": self.run([real, real & False], pairs, ablation)})[
            "scores"
        ]
        n = found.shape[1]
        weights = bootstrap_weights(n, self.context.config.draws, self.context.rng(f"examples {name}"))
        return Ends(found[0], found[1], weights)


def edge_curve(evaluator: Evaluator, scores: np.ndarray, order: Order, complement: bool) -> dict[str, np.ndarray]:
    """Return the metric [fraction, example] of the best edges, and of all others if `complement`."""
    graph = evaluator.graph
    ranked = ranked_edges(graph, scores, order)
    circuits = [of_size(graph, ranked, n) for n in sizes_of(graph, FRACTIONS)]
    others = [graph.real & ~each for each in circuits] if complement else []
    found = evaluator.run([*circuits, *others])
    return {"circuit": found[: len(circuits)], "complement": found[len(circuits) :]}


def curve_rows(
    ends: Ends, method: str, order: str, sizes: Sequence[int], n_all: int, found: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Turn metrics of circuits into rows of the table ``curve``."""
    rows = []
    for at, size in enumerate(sizes):
        faithfulness = ends.faithfulness(found["circuit"][at])
        row = {"method": method, "order": order, "size": size, "share": size / n_all}
        row |= {"faithfulness": faithfulness.value, "lo": faithfulness.lo, "hi": faithfulness.hi}
        has_rest = len(found.get("complement", ())) > 0
        row["complement"] = ends.faithfulness(found["complement"][at]).value if has_rest else float("nan")
        rows.append(row)
    return rows


def evaluate_method(
    evaluator: Evaluator, ends: Ends, scores: Scores, folder: Path, advance: Callable[[], object]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of ``curve`` and of ``areas`` for one method."""
    graph, rows, areas = evaluator.graph, [], []
    if scores.edges is not None:
        for order in ("magnitude", "signed"):
            path = folder / f"{scores.method}-{order}.npz"
            found = kept(
                path,
                lambda order=order: edge_curve(evaluator, scores.edge_mean, order, order == "magnitude"),  # type: ignore[misc]
            )
            advance()
            rows += curve_rows(ends, scores.method, order, sizes_of(graph, FRACTIONS), graph.n_edges, found)
            under, beside = ends.areas(FRACTIONS, found["circuit"])
            name, area = ("CMD", beside) if order == "magnitude" else ("CPR", under)
            areas.append({"method": scores.method, "area": name, **area._asdict()})
    nodes = np.nan_to_num(np.abs(scores.node_mean), nan=np.inf)  # what the method cannot tell stays in
    nodes[0] = np.inf
    n_fixed = int(np.isinf(nodes).sum())
    sizes = node_sizes(len(nodes) - n_fixed)
    order_of_nodes = np.argsort(-nodes, kind="stable")

    def node_curve() -> dict[str, np.ndarray]:
        circuits = []
        for size in sizes:
            chosen = np.zeros(len(nodes), dtype=bool)
            chosen[order_of_nodes[: n_fixed + size]] = True
            circuits.append(among(graph, chosen))
        return {"circuit": evaluator.run(circuits)}

    found = kept(folder / f"{scores.method}-nodes.npz", node_curve)
    advance()
    rows += curve_rows(ends, scores.method, "nodes", sizes, len(nodes) - n_fixed, found)
    return rows, areas


def chosen_size(evaluator: Evaluator, scores: np.ndarray, scoring: Pairs, folder: Path) -> int:
    """Return how many edges the circuit shown has: as asked for, or the first size tried that does enough of the task.

    It is chosen on the examples that scores are from, so that what the circuit does on others is no choice.
    """
    config: CircuitConfig = evaluator.context.config
    graph = evaluator.graph
    if config.size is not None:
        return min(config.size, graph.n_edges)
    sizes = [1]
    while sizes[-1] < graph.n_edges:
        sizes.append(min(graph.n_edges, max(sizes[-1] + 1, round(GROWTH * sizes[-1]))))
    ranked = ranked_edges(graph, scores, "magnitude")
    ends = evaluator.ends(folder, "ends-scoring", scoring)

    def try_sizes() -> dict[str, np.ndarray]:
        return {"scores": evaluator.run([of_size(graph, ranked, n) for n in sizes], scoring)}

    done = (kept(folder / "choice.npz", try_sizes)["scores"] - ends.nothing).mean(axis=1) / ends.gap.value
    return next((size for size, share in zip(sizes, done, strict=True) if share >= ENOUGH), graph.n_edges)


def minimality_rows(
    evaluator: Evaluator, ends: Ends, present: np.ndarray, nodes: Sequence[int], folder: Path
) -> list[dict[str, Any]]:
    """Return what the circuit's faithfulness loses as each node leaves it: rows of ``minimality``."""
    graph = evaluator.graph
    chosen = list(nodes)[:MOST_NODES]
    circuits = [present, *(without_node(graph, present, node) for node in chosen)]
    found = kept(folder / "minimality.npz", lambda: {"scores": evaluator.run(circuits)})["scores"]
    rows = []
    for node, metric in zip(chosen, found[1:], strict=True):
        lost = ends.faithfulness(found[0] - metric + ends.nothing)  # a difference of two ratios to the same gap
        rows.append({"node": graph.sources[node], "lost": lost.value, "lo": lost.lo, "hi": lost.hi})
    return rows
