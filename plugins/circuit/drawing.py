"""A circuit on paper: layers from left to right, the strongest edges between them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from workbench.plugins.circuit.controls import layers
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import Known
from workbench.report import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_EDGES = 60
READ_COLOURS = {"q": COLOURS[0], "k": COLOURS[2], "v": COLOURS[1], "": "#555555"}
READ_NAMES = {"q": "read as query", "k": "as key", "v": "as value", "": "by an MLP or the logits"}
FOUND, MISSED, WRONG, PLAIN = "#cfe8cf", "#ffffff", "#f5d5c4", "#e3ebf5"


def read_of(destination: str) -> str:
    """Return what a destination reads as: q, k, v, or nothing for an MLP and the logits."""
    return destination[-2] if destination.endswith(">") else ""


def draw_circuit(graph: Graph, present: np.ndarray, scores: np.ndarray, known: Known | None) -> Figure:
    """Draw a circuit.

    Parameters
    ----------
    graph : Graph
        Of the subject.
    present : bool array [sources, destinations]
        Its edges; the strongest are drawn, at most `MOST_EDGES`.
    scores : array [sources, destinations]
        Their scores: wider is stronger, dashed is negative.
    known : Known, optional
        The true circuit: its nodes are green where found, white and dashed where missed; others are red.

    Returns
    -------
    matplotlib.figure.Figure
    """
    edges = strongest(graph, present, scores)
    nodes = {0, *(source for source, _, _ in edges), *(target for _, target, _ in edges if target >= 0)}
    if known is not None:
        nodes |= set(np.flatnonzero(known.nodes).tolist())
    places = node_places(graph, sorted(nodes))
    columns = sorted({x for x, _ in places.values()})
    tallest = max(sum(x == column for x, _ in places.values()) for column in columns)
    figure, (axis,) = new_figure(width_in=max(6.4, 1.25 * len(columns)), height_in=max(2.4, 0.5 * tallest + 1.5))
    axis.set_axis_off()
    heaviest = max((abs(scores[place]) for _, _, place in edges), default=1.0) or 1.0
    drawn, beside = set(), Counter(edge[:2] for edge in edges)
    nth: Counter[tuple[int, int]] = Counter()
    for source, target, place in edges:
        read = read_of(graph.destinations[place[1]])
        start, end = places[source], places[target]
        pair = source, target
        bend = 0.14 * (nth[pair] - (beside[pair] - 1) / 2)  # edges between the same two nodes lie side by side
        bend += 0.3 if end[0] - start[0] > 1 else 0.0  # long ones pass below the nodes between
        nth[pair] += 1
        axis.annotate(
            "",
            xy=end,
            xytext=start,
            arrowprops={
                "arrowstyle": "-|>",
                "color": READ_COLOURS[read],
                "linewidth": 0.5 + 2.5 * abs(scores[place]) / heaviest,
                "linestyle": "-" if scores[place] >= 0 else "--",
                "alpha": 0.75,
                "connectionstyle": f"arc3,rad={bend:.3f}",
                "shrinkA": 13,
                "shrinkB": 13,
            },
        )
        drawn.add(read)
    touched = {0, -1, *(source for source, _, _ in edges), *(target for _, target, _ in edges)}
    for node, (x, y) in places.items():
        colour, line = face(node, node in touched, known)
        name = "logits" if node < 0 else graph.sources[node]
        role = "" if known is None or node < 0 else known.roles.get(name, "").partition(":")[0]
        axis.text(
            x,
            y,
            f"{name}\n{role}" if role and role != "distractor" else name,
            ha="center",
            va="center",
            fontsize=7,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#444444", "linestyle": line},
        )
    xs, ys = zip(*places.values(), strict=True)
    axis.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    axis.set_ylim(min(ys) - 0.9, max(ys) + 0.6)
    handles = [
        axis.plot([], [], color=READ_COLOURS[read], label=READ_NAMES[read])[0] for read in READ_NAMES if read in drawn
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def strongest(graph: Graph, present: np.ndarray, scores: np.ndarray) -> list[tuple[int, int, tuple[int, int]]]:
    """Return the strongest edges: source, node that is fed (-1: logits; the first of a shared key's heads), place."""
    places = np.argwhere(present & graph.real)
    order = np.argsort(-np.abs(scores[tuple(places.T)]), kind="stable")[:MOST_EDGES]
    found = []
    for source, destination in places[order].tolist():
        fed = np.flatnonzero(graph.owners[destination])
        found.append((source, int(fed[0]) if len(fed) else -1, (source, destination)))
    return found


def node_places(graph: Graph, nodes: list[int]) -> dict[int, tuple[float, float]]:
    """Return where each node stands: a column for the input, the heads and the MLP of each layer used, the logits."""
    layer = layers(graph)
    column = {node: (int(layer[node]), graph.sources[node].startswith("m")) for node in nodes}
    order = {key: at for at, key in enumerate(sorted(set(column.values())))}
    places: dict[int, tuple[float, float]] = {}
    for key, x in order.items():
        members = [node for node in nodes if column[node] == key]
        for at, node in enumerate(members):
            places[node] = (float(x), (len(members) - 1) / 2 - at + 0.22 * (x % 2))  # so that long edges miss the next
    places[-1] = (float(len(order)), 0.0)
    return places


def face(node: int, touched: bool, known: Known | None) -> tuple[str, str]:
    """Return a node's colour and the style of its outline."""
    if known is None or node <= 0:
        return PLAIN, "-"
    if known.nodes[node]:
        return (FOUND, "-") if touched else (MISSED, "--")
    return WRONG, "-"
