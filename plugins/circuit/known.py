"""Circuits that are known: those of planted subjects, and published ones, as places in a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit.graph import READS, Graph
from workbench.plugins.circuit.tasks.planted import planted_name
from workbench.subjects.protocol import Subject
from workbench.zoo.planted_truth import truth as planted_truth

SHELF = "workbench.plugins.circuit.published"
PLANTED = "planted"


@dataclass(frozen=True)
class Known:
    """A known circuit.

    Attributes
    ----------
    source : str
        Where it is known from.
    nodes : bool array [sources]
        Heads and MLPs of it.
    edges : bool array [sources, destinations]
        Edges of it.
    structural : bool array [sources, destinations]
        Edges that it needs, but that carry the same on clean and corrupted prompts: counted neither way.
    roles : mapping of str to str
        What is known of a node: ``nm``, ``shadow: by name``, ``induction``.
    complete : bool
        Whether the other units are known to have no part in it (a planted circuit) or were not found to.
    """

    source: str
    nodes: np.ndarray
    edges: np.ndarray
    structural: np.ndarray
    roles: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False

    def shadows(self, graph: Graph) -> np.ndarray:
        """Return which nodes carry the task's content to where nothing reads it, bool [sources]."""
        return np.array([self.roles.get(name, "").startswith("shadow") for name in graph.sources])


def find_known(subject: Subject, graph: Graph, task: str, truth: str) -> Known | None:
    """Return what is known of a subject's circuit for a task.

    Parameters
    ----------
    subject, graph : Subject, Graph
        The subject and its graph.
    task : str
        Name of the task.
    truth : str
        ``auto`` (a planted circuit, or ACDC's labels where the model is the one that they are of), ``none``, or the
        name of a set of labels: ``acdc``, ``oneill-bui``.

    Raises
    ------
    UserError
        If a set of labels was asked for that there is not, or whose model has another shape.
    """
    if truth == "none":
        return None
    name = planted_name(subject)
    if name is not None and task == PLANTED and truth == "auto":
        return planted_circuit(name, graph)
    shelf = {(each["task"], each["labels"]): each for each in published()}
    if truth == "auto":
        found = shelf.get((task, "acdc"))
        model = subject.address.partition(":")[2].partition("#")[0]
        return published_circuit(found, graph) if found and model in found["models"] else None
    if (task, truth) not in shelf:
        raise UserError(
            f"truth={truth}: no published circuit of task {task!r}; there are "
            f"{', '.join(f'{task} {labels}' for task, labels in shelf)}"
        )
    return published_circuit(shelf[task, truth], graph)


def planted_circuit(name: str, graph: Graph) -> Known:
    """Return the circuit of a planted subject."""
    truth = planted_truth(name)
    edges, structural = (np.zeros(graph.real.shape, dtype=bool) for _ in range(2))
    for chosen, named in ((edges, truth.edges), (structural, truth.structural)):
        for source, destination in named:
            chosen[graph.edge(source, destination)] = True
    nodes = np.isin(graph.sources, truth.heads)
    return Known(f"the construction of zoo:{name}", nodes, edges, structural, truth.roles, complete=True)


def published() -> list[dict[str, Any]]:
    """Return the published circuits that ship, in order of their names."""
    found = sorted((each for each in files(SHELF).iterdir() if each.name.endswith(".json")), key=lambda each: each.name)
    return [json.loads(each.read_text(encoding="utf-8")) for each in found]


def published_circuit(record: Mapping[str, Any], graph: Graph) -> Known:
    """Place a published circuit in a graph.

    Raises
    ------
    UserError
        If the graph has another number of layers or heads.
    """
    shape = (record["n_layers"], record["n_heads"])
    if (graph.n_layers, graph.n_heads) != shape or graph.n_key_value_heads != graph.n_heads:
        raise UserError(
            f"the published circuit of {record['task']} is of {record['models'][0]}, {shape[0]} layers of {shape[1]} "
            f"heads; this subject has {graph.n_layers} of {graph.n_heads}: take truth=none"
        )
    named = {group: [node_name(each) for each in members] for group, members in record["groups"].items()}
    mlps = [name for name in graph.sources if name.startswith("m")]
    named |= {"input": ["input", *mlps], "embedding": ["input"]}
    edges = np.zeros(graph.real.shape, dtype=bool)
    for rule in record["edges"]:
        for source in (each for group in rule["from"] for each in named[group]):
            for target in (each for group in rule["to"] for each in named.get(group, [group])):
                ends = [f"{target}<{which}>" for which in READS if which in rule["reads"]]
                for destination in ends if target.startswith("a") else [target]:
                    at = graph.sources.index(source), graph.destinations.index(destination)
                    edges[at] = graph.real[at]  # a later layer's node feeds no earlier one, though the rule names both
    roles = {each: group for group, members in named.items() if group in record["groups"] for each in members}
    nodes = np.isin(graph.sources, list(roles))
    return Known(record["source"], nodes, edges, np.zeros_like(edges), roles)


def node_name(short: str) -> str:
    """Turn ``9.6`` into ``a9.h6``; an MLP is ``m9`` already."""
    layer, _, head = short.partition(".")
    return f"a{layer}.h{head}" if head else short
