"""Circuits that are known: patching and attribution find them in planted subjects, and nothing in random ones."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from workbench.plugins.circuit.attribution import attribute
from workbench.plugins.circuit.circuits import run_circuits
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import patch_edges, patch_nodes
from workbench.zoo import planted_prompts
from workbench.zoo.loading import load_zoo
from workbench.zoo.planted_truth import truth

KINDS = [f"planted-{task}{shadow}" for task in ("induction", "hops", "ioi") for shadow in ("", "-shadow")]
MODELS = [f"{kind}-{seed}" for kind in KINDS for seed in range(5)]
EXACT = ["planted-induction-shadow-2", "planted-ioi-shadow-2", "planted-hops-2"]
BATCH = 32


class Planted:
    """A planted subject, its graph, prompts, and the truth as arrays."""

    def __init__(self, name, n):
        self.subject, known = load_zoo(name, device="cpu"), truth(name)
        self.graph = Graph.of(self.subject)
        drawn = planted_prompts.pairs(name, n, seed=3)
        self.pairs = Pairs.of(drawn.clean.tolist(), drawn.negative.tolist(), drawn.answer, drawn.wrong)
        self.heads = self.graph.head_sources
        self.true_heads = np.array([self.graph.sources[i] in known.heads for i in self.heads])
        self.true, self.structural = np.zeros_like(self.graph.real), np.zeros_like(self.graph.real)
        for edge in known.edges:
            self.true[self.graph.edge(*edge)] = True
        for edge in known.structural:
            self.structural[self.graph.edge(*edge)] = True

    def node_auc(self, scores):
        """Of heads, by the size of their mean score; scores [example, source]."""
        return roc_auc_score(self.true_heads, np.abs(scores.mean(axis=0))[self.heads])

    def edge_auc(self, scores):
        """Of all edges but structural ones, by the size of their score."""
        kept = self.graph.real & ~self.structural
        return roc_auc_score(self.true[kept], np.abs(scores)[kept])

    def faithfulness(self, circuit):
        """Of a circuit, and of what it leaves out."""
        circuits = [self.graph.real, self.graph.real & False, circuit, self.graph.real & ~circuit]
        whole, none, inside, outside = run_circuits(
            self.subject, self.pairs, self.graph, circuits, batch_size=BATCH
        ).mean(axis=1)
        return (inside - none) / (whole - none), (outside - none) / (whole - none)


def check_found(planted, steps):
    subject, pairs, graph = planted.subject, planted.pairs, planted.graph
    assert planted.node_auc(patch_nodes(subject, pairs, graph, batch_size=BATCH)) >= 0.95
    scores = attribute(subject, pairs, graph, method="eap-ig", steps=steps, batch_size=BATCH)
    assert planted.node_auc(scores.nodes) >= 0.95
    assert planted.edge_auc(scores.edges) >= 0.95
    gap = patch_nodes(subject, pairs, graph, batch_size=BATCH).mean(axis=0)[0] if steps == 20 else None
    if gap is not None:
        assert scores.edges[0].sum() == pytest.approx(gap, rel=0.01)
    inside, outside = planted.faithfulness(planted.true | planted.structural)
    assert inside == pytest.approx(1, abs=0.03)
    assert outside == pytest.approx(0, abs=0.03)


def test_patching_and_attribution_find_a_planted_circuit():
    check_found(Planted("planted-ioi-shadow-2", 12), steps=5)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_they_find_every_planted_circuit(name):
    check_found(Planted(name, 32), steps=20)


@pytest.mark.long
@pytest.mark.parametrize("name", EXACT)
def test_patching_edges_exactly_shows_the_planted_circuit(name):
    planted = Planted(name, 16)
    lost = patch_edges(planted.subject, planted.pairs, planted.graph, batch_size=BATCH)
    assert planted.edge_auc(lost) == 1
    assert np.abs(lost[planted.structural]).max() < 0.1 < np.abs(lost[planted.true]).min()
    others = planted.graph.real & ~planted.true
    assert np.abs(lost[others]).max() < 0.1 * lost[planted.true].max()


@pytest.mark.long
def test_sharp_attention_starves_gradients_but_not_patching():
    blunt = []
    for beta in (16, 30):
        planted = Planted(f"planted-ioi-2-beta{beta}", 32)
        subject, pairs, graph = planted.subject, planted.pairs, planted.graph
        assert planted.node_auc(patch_nodes(subject, pairs, graph, batch_size=BATCH)) >= 0.95
        blunt.append(planted.node_auc(attribute(subject, pairs, graph, method="eap", batch_size=BATCH).nodes))
        along = attribute(subject, pairs, graph, method="eap-ig", batch_size=BATCH)
        assert planted.node_auc(along.nodes) >= 0.95
    assert min(blunt) < 0.95


@pytest.mark.long
def test_random_weights_hold_no_circuit():
    areas = {"noising": [], "eap-ig": []}
    for seed in range(15):
        planted = Planted(f"{KINDS[seed % 6]}-{seed}", 32)
        generator = torch.Generator().manual_seed(seed)
        for block in planted.subject.network.stack.blocks:
            for weight in block.parameters():
                size = weight.pow(2).mean().sqrt()
                weight.data = size * torch.randn(weight.shape, generator=generator)
        subject, pairs, graph = planted.subject, planted.pairs, planted.graph
        areas["noising"].append(planted.node_auc(patch_nodes(subject, pairs, graph, batch_size=BATCH)))
        found = attribute(subject, pairs, graph, method="eap-ig", batch_size=BATCH)
        areas["eap-ig"].append(planted.node_auc(found.nodes))
    means = {method: float(np.mean(each)) for method, each in areas.items()}
    assert all(0.4 <= mean <= 0.6 for mean in means.values()), means
