"""Known circuits: planted ones as constructed, published ones edge by edge."""

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import find_known, planted_circuit, published, published_circuit

SMALL = Graph(12, 12, 12, mlps=True, parallel=False)  # GPT-2 small
ATTENTION = Graph(4, 8, 8, mlps=False, parallel=False)  # attn-only-4l
RECORDS = {(each["task"], each["labels"]): each for each in published()}


def place(key, graph):
    return published_circuit(RECORDS[key], graph)


def names(known, graph):
    return {graph.sources[at] for at in np.flatnonzero(known.nodes)}


def test_what_ships():
    assert set(RECORDS) == {
        (t, labels) for t in ("ioi", "greater-than", "docstring") for labels in ("acdc", "oneill-bui")
    }
    assert RECORDS["ioi", "acdc"]["published"] == {"node": [0.868, 0.008], "node_via_pairs": [0.84, 0.024]}


def test_indirect_objects():
    known, other = place(("ioi", "acdc"), SMALL), place(("ioi", "oneill-bui"), SMALL)
    assert known.nodes.sum() == 26
    assert names(known, SMALL) - names(other, SMALL) == {"a9.h0"}
    assert names(other, SMALL) - names(known, SMALL) == {"a11.h3"}
    for source, destination in (
        ("input", "a0.h1<q>"), ("m1", "a2.h2<v>"), ("m6", "a7.h3<q>"), ("m8", "a9.h9<k>"), ("a2.h2", "a5.h5<k>"),
        ("a6.h9", "a7.h3<v>"), ("a3.h0", "a8.h10<k>"), ("a8.h6", "a10.h7<q>"), ("a9.h9", "logits"),
    ):  # fmt: skip
        assert known.edges[SMALL.edge(source, destination)]
    assert not known.edges[SMALL.edge("a7.h3", "a9.h9<k>")]
    assert not known.edges[SMALL.edge("a9.h9", "a10.h0<q>")]
    assert not (known.edges & ~SMALL.real).any()
    assert known.edges[:, SMALL.logits].sum() == 13  # three movers, eight backups, two negative


def test_greater_than_and_docstring():
    known = place(("greater-than", "acdc"), SMALL)
    mlps = {f"m{layer}" for layer in (0, 1, 2, 3, 8, 9, 10, 11)}
    assert names(known, SMALL) == mlps | {
        "a0.h1", "a0.h3", "a0.h5", "a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"
    }  # fmt: skip
    known = place(("docstring", "acdc"), ATTENTION)
    assert (known.nodes.sum(), known.edges.sum()) == (6, 24)
    swapped = place(("docstring", "oneill-bui"), ATTENTION)
    assert swapped.edges.sum() == 24
    assert names(swapped, ATTENTION) - names(known, ATTENTION) == {"a1.h0"}


def test_planted():
    import workbench as wb

    subject = wb.load_subject("zoo:planted-ioi-shadow-0", device="cpu")
    graph = Graph.of(subject)
    known = find_known(subject, graph, "planted", "auto")
    assert known.complete
    assert np.array_equal(known.edges, planted_circuit("planted-ioi-shadow-0", graph).edges)
    assert known.nodes.sum() == 3
    assert known.shadows(graph).any()
    assert not (known.edges & known.structural).any()
    assert find_known(subject, graph, "planted", "none") is None
    assert find_known(subject, graph, "induction", "auto") is None
    with pytest.raises(UserError, match=r"no published circuit of task 'induction'; there are docstring acdc"):
        find_known(subject, graph, "induction", "acdc")
    with pytest.raises(UserError, match="of gpt2, 12 layers of 12 heads; this subject has 6 of 6"):
        find_known(subject, graph, "ioi", "acdc")
