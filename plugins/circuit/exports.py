"""A circuit for other programs: JSON, and GraphML for networkx, Gephi and yEd."""

from __future__ import annotations

import json
from typing import Any

import networkx
import numpy as np

from workbench.plugins.circuit.controls import layers
from workbench.plugins.circuit.curves import members
from workbench.plugins.circuit.drawing import read_of
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import Known


def circuit_record(
    graph: Graph, present: np.ndarray, edges: np.ndarray, nodes: np.ndarray, known: Known | None, about: dict[str, Any]
) -> dict[str, Any]:
    """Return a circuit as plain JSON values.

    Parameters
    ----------
    graph : Graph
        Of the subject.
    present : bool array [sources, destinations]
        The circuit.
    edges, nodes : arrays [sources, destinations], [sources]
        Scores.
    known : Known, optional
        The true circuit.
    about : dict
        Subject, task, method and what else to write at the top.
    """
    layer, inside = layers(graph), members(graph, present)
    inside[0] = True
    return {
        **about,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "nodes": [
            {
                "name": graph.sources[at],
                "layer": int(layer[at]),
                "score": None if np.isnan(nodes[at]) else float(nodes[at]),
                "role": "" if known is None else known.roles.get(graph.sources[at], ""),
                "known": None if known is None else bool(known.nodes[at]),
            }
            for at in np.flatnonzero(inside)
        ],
        "edges": [
            {
                "source": graph.sources[source],
                "destination": graph.destinations[destination],
                "read": read_of(graph.destinations[destination]),
                "score": float(edges[source, destination]),
                "known": None if known is None else bool(known.edges[source, destination]),
            }
            for source, destination in sorted(np.argwhere(present).tolist(), key=lambda at: -abs(edges[at[0], at[1]]))
        ],
    }


def to_json(record: dict[str, Any]) -> str:
    """Write a circuit as JSON."""
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def to_graphml(record: dict[str, Any], graph: Graph) -> str:
    """Write a circuit as GraphML: a directed multigraph, whose edges say what they are read as."""
    drawn = networkx.MultiDiGraph(
        **{key: value for key, value in record.items() if isinstance(value, str | int | float)}
    )
    for node in record["nodes"]:
        drawn.add_node(
            node["name"], **{key: value for key, value in node.items() if key != "name" and value is not None}
        )
    drawn.add_node("logits", layer=graph.n_layers)
    for edge in record["edges"]:
        at = graph.destinations.index(edge["destination"])
        fed = [graph.sources[node] for node in np.flatnonzero(graph.owners[at])] or ["logits"]
        facts = {key: edge[key] for key in ("destination", "read", "score", "known") if edge[key] is not None}
        for name in fed:  # a shared key or value feeds several heads
            drawn.add_edge(edge["source"], name, **facts)
    return "\n".join(networkx.generate_graphml(drawn)) + "\n"
