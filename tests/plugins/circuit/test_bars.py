"""What the discrete SAE must reach on planted subjects, and what no method may find in random weights."""

import logging
from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.context import Context, Inputs
from workbench.plugins.circuit import CircuitConfig
from workbench.plugins.circuit.against_truth import units_of
from workbench.plugins.circuit.controls import random_copy
from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import find_known
from workbench.plugins.circuit.measures import roc_auc
from workbench.plugins.circuit.run import first
from workbench.plugins.circuit.scoring import score
from workbench.plugins.circuit.tasks.planted import Planted

TASKS, SEEDS = ("induction", "hops", "ioi"), range(5)
CONFIG = CircuitConfig()


def areas(subject, name, method, config, folder, n_pairs=16, n_prompts=250):
    """Score a subject by a method and hold it against the circuit of the planted subject `name`."""
    planted = wb.load_subject(f"zoo:{name}", device="cpu")
    graph = Graph.of(planted)
    known = find_known(planted, graph, "planted", "auto")
    context = Context(config, Inputs(), "cpu", 0, folder, logging.getLogger("workbench.test"))
    prompts = Planted().make(planted, n_prompts, np.random.default_rng(7))
    pairs = prompts.pairs.take(np.arange(n_pairs))
    scores = score(context, subject or planted, graph, method, pairs, first(prompts, n_prompts), folder, lambda: None)
    return {units.name: roc_auc(units.truth, units.mean()) for units in units_of(scores, graph, known)}


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_the_discrete_sae_finds_heads_without_shadows(task, tmp_path):
    found = {}
    for seed in SEEDS:
        name = f"planted-{task}-{seed}"
        found[name] = areas(None, name, "discrete-sae", CONFIG, tmp_path / name)
        print(name, {key: round(value, 3) for key, value in found[name].items()})
    assert min(each["nodes"] for each in found.values()) >= 0.95
    assert np.mean([each["pairs"] for each in found.values()]) >= 0.85


@pytest.mark.long
def test_shadows_blind_the_discrete_sae_and_not_patching(tmp_path):
    blind, seeing = [], []
    for seed in SEEDS:
        name = f"planted-ioi-shadow-{seed}"
        blind.append(areas(None, name, "discrete-sae", CONFIG, tmp_path / name / "sae")["nodes"])
        seeing.append(areas(None, name, "noising", CONFIG, tmp_path / name / "noising")["nodes"])
        print(name, round(blind[-1], 3), round(seeing[-1], 3))
    assert min(seeing) >= 0.95
    assert np.mean(blind) < 0.95


@pytest.mark.long
@pytest.mark.parametrize("method", ["noising", "eap-ig", "discrete-sae"])
def test_random_weights_have_no_circuit(method, tmp_path):
    config = replace(CONFIG, steps=5, sae=replace(CONFIG.sae, seeds=1))
    found = []
    for task in TASKS:
        for seed in SEEDS:
            name = f"planted-{task}-{seed}"
            planted = wb.load_subject(f"zoo:{name}", device="cpu")
            copied = random_copy(planted, np.random.default_rng([seed, TASKS.index(task)]))
            found.append(areas(copied, name, method, config, tmp_path / name, n_pairs=8, n_prompts=100)["nodes"])
    print(method, np.round(found, 2), f"mean {np.mean(found):.3f}, sd {np.std(found, ddof=1):.3f}")
    assert 0.4 <= np.mean(found) <= 0.6
