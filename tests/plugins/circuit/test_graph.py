"""The graph of a subject: exact counts of edges, and which subjects have one."""

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.plugins.circuit.graph import Graph
from workbench.subjects.ungrouping import ungrouped


@pytest.mark.parametrize(
    ("graph", "sources", "destinations", "edges"),
    [
        pytest.param(Graph(12, 12, 12, True, False), 157, 445, 32_491, id="gpt2 small"),
        pytest.param(Graph(4, 8, 8, False, False), 33, 97, 1281, id="attention only"),
        pytest.param(Graph(1, 1, 1, False, False), 2, 4, 5, id="one head"),
    ],
)
def test_counts_are_exact(graph, sources, destinations, edges):
    assert (len(graph.sources), len(graph.destinations), graph.n_edges) == (sources, destinations, edges)


@pytest.mark.parametrize("n_kv", [2, 4])
@pytest.mark.parametrize(("mlps", "parallel"), [(False, False), (True, False), (True, True)])
def test_edges_are_those_of_a_naive_loop(n_kv, mlps, parallel):
    graph = Graph(3, 4, n_kv, mlps, parallel)
    order = {"a": 0, "m": 0 if parallel else 1}

    def stage(name):
        return (-1, 0) if name == "input" else (99, 0) if name == "logits" else (int(name[1]), order[name[0]])

    for i, source in enumerate(graph.sources):
        for j, destination in enumerate(graph.destinations):
            assert graph.real[i, j] == (stage(source) < stage(destination)), (source, destination)
    assert len(set(graph.sources)) == len(graph.sources)
    assert len(set(graph.destinations)) == len(graph.destinations)
    assert graph.owners.any(axis=1).tolist() == [True] * (len(graph.destinations) - 1) + [False]
    for i, destination in enumerate(graph.destinations[:-1]):
        share = 4 // n_kv if "kv" in destination else 1
        assert graph.owners[i].sum() == share
        assert all(stage(graph.sources[s]) == stage(destination) for s in np.flatnonzero(graph.owners[i]))


def test_graph_of_a_subject(random_subject):
    assert Graph.of(random_subject()) == Graph(2, 4, 4, True, False)
    assert Graph.of(random_subject(norm="none", d_mlp=0)) == Graph(2, 4, 4, False, False)
    shared = random_subject(n_key_value_heads=1)
    assert Graph.of(shared) == Graph(2, 4, 1, True, False)
    assert Graph.of(ungrouped(shared)) == Graph.of(random_subject())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"norm": "post"}, "pre-norm model", id="post-norm"),
        pytest.param({"causal": False}, "causal language models only", id="encoder"),
    ],
)
def test_subjects_without_a_graph_are_refused(changes, says, random_subject):
    with pytest.raises(UserError, match=says):
        Graph.of(random_subject(**changes))


def test_unknown_edges_and_wrong_shapes_are_refused():
    graph = Graph(2, 2, 2, False, False)
    assert graph.edge("a0.h1", "a1.h0<k>") == (2, graph.destinations.index("a1.h0<k>"))
    with pytest.raises(UserError, match=r"no edge a1.h1 -> a0.h0<q>"):
        graph.edge("a1.h1", "a0.h0<q>")
    with pytest.raises(UserError, match="sources and destinations"):
        graph.shape_checked(np.ones((2, 2), dtype=bool))
