"""Curves and areas against naive computations, circuits by size, overlap and controls."""

import itertools

import numpy as np
import pytest
import scipy.stats

from workbench.plugins.circuit import controls, curves, overlap
from workbench.plugins.circuit.graph import Graph

GRAPH = Graph(2, 3, 3, mlps=True, parallel=False)


def test_faithfulness_and_areas_equal_naive_ones():
    rng = np.random.default_rng(0)
    whole, nothing, curve = rng.normal(3, 1, 12), rng.normal(0, 1, 12), rng.normal(1, 1, (4, 12))
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=50).astype(float)
    ends, fractions = curves.Ends(whole, nothing, weights), [0.1, 0.2, 0.5, 1.0]
    f = [(row.mean() - nothing.mean()) / (whole.mean() - nothing.mean()) for row in curve]
    assert ends.faithfulness(curve[1]).value == pytest.approx(f[1])
    draws = []
    for draw in weights.astype(int):
        w, z, c = (np.repeat(each, draw) for each in (whole, nothing, curve[1]))
        draws.append((c.mean() - z.mean()) / (w.mean() - z.mean()))
    assert ends.faithfulness(curve[1]).lo == pytest.approx(np.quantile(draws, 0.025))
    cpr, cmd = ends.areas(fractions, curve)
    steps = list(zip(fractions, fractions[1:], f, f[1:], strict=False))
    assert cpr.value == pytest.approx(sum((b - a) * (p + q) / 2 for a, b, p, q in steps))
    assert cmd.value == pytest.approx(sum((b - a) * (abs(1 - p) + abs(1 - q)) / 2 for a, b, p, q in steps))
    assert cmd.lo <= cmd.value <= cmd.hi


def test_circuits_by_size():
    scores = np.random.default_rng(1).normal(size=GRAPH.real.shape)
    for order, size in (("signed", lambda s: -s), ("magnitude", lambda s: -abs(s))):
        ranked = curves.ranked_edges(GRAPH, scores, order)
        want = sorted(np.flatnonzero(GRAPH.real), key=lambda at: size(scores.ravel()[at]))
        assert ranked.tolist() == want
        assert curves.of_size(GRAPH, ranked, 5).sum() == 5
    assert curves.sizes_of(GRAPH, [0.001, 1.0]) == [1, GRAPH.n_edges]
    sizes = curves.node_sizes(40)
    assert (sizes[0], sizes[-1]) == (0, 40)
    assert all(a < b for a, b in itertools.pairwise(sizes))


def test_nodes_and_edges_of_a_circuit():
    nodes = np.isin(GRAPH.sources, ["a0.h1", "m1"])
    present = curves.among(GRAPH, nodes)
    named = {(GRAPH.sources[s], GRAPH.destinations[d]) for s, d in np.argwhere(present)}
    assert named == {
        ("input", "a0.h1<q>"), ("input", "a0.h1<k>"), ("input", "a0.h1<v>"), ("input", "m1"), ("input", "logits"),
        ("a0.h1", "m1"), ("a0.h1", "logits"), ("m1", "logits"),
    }  # fmt: skip
    assert np.array_equal(curves.members(GRAPH, present), nodes)
    left = curves.without_node(GRAPH, present, GRAPH.sources.index("a0.h1"))
    assert {(GRAPH.sources[s], GRAPH.destinations[d]) for s, d in np.argwhere(left)} == {
        ("input", "m1"), ("input", "logits"), ("m1", "logits")
    }  # fmt: skip


def test_labels_are_permuted_among_their_like():
    kinds = controls.edge_kinds(GRAPH)[GRAPH.real]
    labels = np.random.default_rng(2).random(len(kinds)) < 0.3
    permuted = controls.permuted_within(labels, kinds, np.random.default_rng(3))
    assert not np.array_equal(permuted, labels)
    for kind in np.unique(kinds):
        assert permuted[kinds == kind].sum() == labels[kinds == kind].sum()
    pair = controls.edge_kinds(GRAPH)
    assert pair[GRAPH.edge("input", "a0.h0<q>")] != pair[GRAPH.edge("input", "a0.h0<k>")]
    assert pair[GRAPH.edge("a0.h0", "a1.h0<q>")] == pair[GRAPH.edge("a0.h2", "a1.h1<q>")]


def test_a_copy_has_random_heads_and_leaves_the_subject_alone(random_subject):
    subject = random_subject()
    before = subject.fingerprint()
    other = controls.random_copy(subject, np.random.default_rng(0))
    assert subject.fingerprint() == before != other.fingerprint()
    for role in ("W_Q", "W_O", "W_in"):
        mine, theirs = subject.weights(role, 1), other.weights(role, 1)
        assert abs(float((mine * theirs).sum() / (mine.norm() * theirs.norm()))) < 0.5
        assert float(theirs.norm() / mine.norm()) == pytest.approx(1, rel=0.4)
    assert (subject.weights("W_E") == other.weights("W_E")).all()


def test_overlap_is_held_against_permutations_within_layers():
    rng = np.random.default_rng(4)
    layer = np.repeat(np.arange(6), 10)
    first = rng.random(60) + layer  # late layers matter in both tasks: alike by that alone
    second = rng.random(60) + layer
    found = overlap.shared(first, second, layer, 20, 200, rng)
    assert found.correlation == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert found.jaccard > 0.9  # both have the two last layers
    assert found.jaccard_p > 0.05
    assert found.correlation_p > 0.01
    alike = overlap.shared(first, first + 0.05 * rng.random(60), layer, 15, 200, rng)
    assert alike.jaccard > alike.jaccard_by_chance + 0.2
    assert alike.jaccard_p < 0.02
