"""ACDC: equal to a naive loop over circuits, and it finds a planted circuit."""

from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.plugins.circuit.acdc import acdc, acdc_scores
from workbench.plugins.circuit.circuits import prune, run_circuit
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.pairs import Pairs
from workbench.zoo import planted_prompts
from workbench.zoo.loading import load_zoo
from workbench.zoo.planted_truth import truth

SMALL = {"norm": "none", "d_mlp": 0, "n_heads": 2, "d_head": 6}


@pytest.fixture(scope="module")
def pairs():
    return Pairs.of([[1, 2, 3], [4, 5, 6]], [[1, 7, 3], [4, 2, 9]], [[1], [2]], [[3], [4]])


def naive(subject, pairs, graph, threshold):
    """Visit every edge, whether anybody reads its destination or not."""
    pairs = replace(pairs, metric="kl")
    present, now = graph.real.copy(), 0.0
    order = [graph.destinations.index("logits")]
    for layer in reversed(range(graph.n_layers)):
        for head in reversed(range(graph.n_heads)):
            order += [graph.destinations.index(f"a{layer}.h{head}<{which}>") for which in "qkv"]
    for destination in order:
        for source in reversed(range(len(graph.sources))):
            if graph.real[source, destination]:
                present[source, destination] = False
                without = -run_circuit(subject, pairs, graph, present).mean()
                if without - now < threshold:
                    now = without
                else:
                    present[source, destination] = True
    return present


@pytest.mark.parametrize("threshold", [1e-3, 0.05])
def test_it_is_the_naive_loop(threshold, random_subject, pairs):
    subject = random_subject(**SMALL)
    graph = Graph.of(subject)
    found, want = acdc(subject, pairs, graph, threshold), naive(subject, pairs, graph, threshold)
    np.testing.assert_array_equal(found, want)
    assert 0 < found.sum() < graph.n_edges


def test_scores_are_the_largest_threshold_survived(random_subject, pairs):
    subject = random_subject(**SMALL)
    graph = Graph.of(subject)
    thresholds, left = [0.1, 1e-3, 1e9], []
    scores = acdc_scores(subject, pairs, graph, thresholds=thresholds, batch_size=1, on_threshold=left.append)
    low, high = (acdc(subject, pairs, graph, each) for each in (1e-3, 0.1))
    np.testing.assert_array_equal(scores, np.where(high, 0.1, np.where(low, 1e-3, 0.0)))
    assert left == [low.sum(), high.sum(), 0]


def test_wrong_input(random_subject, pairs):
    subject = random_subject(**SMALL)
    graph = Graph.of(subject)
    with pytest.raises(UserError, match="threshold 0: must be above 0"):
        acdc(subject, pairs, graph, 0.0)
    with pytest.raises(UserError, match="1,218 passes, more than 1,000: ACDC is for small models"):
        acdc_scores(subject, pairs, graph, batch_size=1, most_passes=1000)


@pytest.mark.long
@pytest.mark.parametrize("name", ["planted-ioi-shadow-2", "planted-induction-1"])
def test_it_finds_a_planted_circuit(name):
    subject, known = load_zoo(name, device="cpu"), truth(name)
    graph = Graph.of(subject)
    drawn = planted_prompts.pairs(name, 8, 0)
    pairs = Pairs.of(drawn.clean.tolist(), drawn.negative.tolist(), drawn.answer, drawn.wrong)
    found = prune(graph, acdc(subject, pairs, graph, 0.1))
    names = {(graph.sources[i], graph.destinations[j]) for i, j in np.argwhere(found)}
    assert names - known.structural <= known.edges
    assert len(names & known.edges) >= len(known.edges) - 2
