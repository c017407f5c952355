"""The plugin from end to end: what is planted is found and drawn, shadows are told, files can be read again."""

import io
import json
import logging
from dataclasses import replace

import networkx
import numpy as np
import pandas as pd
import pytest

from workbench.context import Context, Inputs
from workbench.errors import UserError
from workbench.plugins.circuit import Circuit, CircuitConfig, SaeConfig
from workbench.plugins.circuit.curves import Ends
from workbench.plugins.circuit.present import over_copies
from workbench.plugins.circuit.tasks.ioi import IndirectObject

QUICK = CircuitConfig(
    examples=12,
    steps=3,
    copies=1,
    draws=40,
    permutations=20,
    sae=SaeConfig(examples=30, train_examples=6, latents=40, steps=60, seeds=2),
)


def find(folder, model, config=QUICK, data=None, seed=0):
    """Run the plugin as the workbench would."""
    inputs = Inputs(model=model, data=data)
    return Circuit().run(Context(config, inputs, "cpu", seed, folder, logging.getLogger("workbench.test")))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return find(tmp_path_factory.mktemp("work"), "zoo:planted-ioi-shadow-2")


@pytest.mark.slow
def test_causal_methods_find_what_is_planted(result):
    metrics = {name: metric.value for name, metric in result.metrics.items()}
    assert metrics["auc.nodes.noising"] == metrics["auc.nodes.eap-ig"] == 1
    assert metrics["auc.edges.eap-ig"] > 0.95
    assert metrics["faithfulness.known"] == pytest.approx(1, abs=0.05)
    assert metrics["faithfulness.shown"] > 0.85
    assert metrics["cmd.eap-ig"] < metrics["cmd.random"]
    assert result.metrics["cpr.eap-ig"].lo <= metrics["cpr.eap-ig"] <= result.metrics["cpr.eap-ig"].hi


@pytest.mark.slow
def test_tables_say_what_is_known(result):
    nodes = result.tables["nodes"]
    assert nodes["known"].sum() == 3
    assert set(nodes["role"][nodes["known"]]) == {"dup", "sinh", "nm"}
    assert set(nodes["node"][:3]) == set(nodes["node"][nodes["known"]])  # first by EAP-IG
    edges = result.tables["edges"]
    assert edges["known"].sum() == 9
    assert np.abs(edges["eap-ig"]).is_monotonic_decreasing
    circuits = result.tables["circuits"].set_index(["circuit", "ablation"])
    assert abs(circuits.loc[("known", "resample"), "complement"]) < 0.05
    curve = result.tables["curve"]
    whole = curve[(curve["share"] == 1) & (curve["order"] != "nodes")]
    assert np.allclose(whole["faithfulness"], 1, atol=1e-4)
    assert set(result.tables["minimality"]["node"]) >= set(nodes["node"][:3])
    assert result.tables["copies"]["auc"].between(0, 1).all()


@pytest.mark.slow
def test_edges_of_the_wrong_sign_are_named(result):
    """Gradients along a path may have another sign than the whole change; every edge of a planted circuit helps."""
    edges = result.tables["edges"]
    text = " ".join(result.sections["how-to-read"].data)
    edges = edges[edges["known"]]
    for _, row in edges[edges["eap-ig"] < 0].iterrows():
        assert f"EAP-IG gives {row['source']} → {row['destination']} -" in text
    assert ("Edges of the known circuit below 0" in text) == bool((edges[["eap", "eap-ig"]] < 0).any(axis=None))


def test_the_control_is_a_mean_over_copies_with_its_interval():
    rows = [(0, "nodes", 0.3), (0, "nodes", 0.5), (1, "nodes", 0.35), (1, "nodes", 0.49), (0, "edges", 0.9)]
    half = 12.7062047 * np.std([0.4, 0.42], ddof=1) / np.sqrt(2)  # Student's t of one degree of freedom, from a table
    found = over_copies(pd.DataFrame(rows, columns=["copy", "units", "auc"]))
    assert found == (pytest.approx(0.41), pytest.approx(0.41 - half), pytest.approx(0.41 + half))
    assert over_copies(pd.DataFrame([(0, "nodes", 0.1), (1, "nodes", 0.9)], columns=["copy", "units", "auc"]))[1:] == (
        0,
        1,
    )
    alone = over_copies(pd.DataFrame(rows[:2], columns=["copy", "units", "auc"]))
    assert alone == (pytest.approx(0.4), None, None)


@pytest.mark.slow
def test_blindness_to_shadows_is_a_finding(result):
    (finding,) = [text for text in result.sections["how-to-read"].data if text.startswith("Finding")]
    assert "blind" in finding
    assert "shadows" in finding


@pytest.mark.slow
def test_the_circuit_is_drawn_and_exported(result):
    record = json.loads(result.files["circuit.json"].data)
    assert record["subject"] == "zoo:planted-ioi-shadow-2"
    assert len(record["edges"]) == int(result.tables["edges"]["in circuit"].sum())
    drawn = networkx.read_graphml(io.BytesIO(result.files["circuit.graphml"].data), force_multigraph=True)
    assert drawn.number_of_edges() == len(record["edges"])
    assert {node["name"] for node in record["nodes"]} <= set(drawn.nodes) | {"logits"}
    assert list(result.figures) == ["circuit", "truth", "nodes", "curve", "minimality"]
    for figure in result.figures.values():
        assert figure.png().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_subject_that_cannot_do_the_task_is_not_called_faithful(tmp_path, random_subject):
    config = replace(QUICK, method=("noising", "eap"), examples=6)

    class Unrelated(IndirectObject):
        def make(self, subject, n, rng):
            from workbench.plugins.circuit.head_outputs import Tokens
            from workbench.plugins.circuit.pairs import Pairs
            from workbench.plugins.circuit.tasks.task import Prompts

            drawn = rng.integers(0, 9, (n, 6)).tolist()
            pairs = Pairs.of(drawn, drawn, [[9]] * n, [[10]] * n)
            return Prompts(pairs, Tokens.of(drawn), "Clean prompts, twice.")

    result = find(tmp_path, random_subject(), config, Unrelated())
    assert "curve" not in result.tables
    assert any("faithfulness is not defined" in text for text in result.sections["how-to-read"].data)
    assert "nodes" in result.tables


def test_a_gap_that_may_be_zero_is_refused():
    rng = np.random.default_rng(0)
    ends = Ends(rng.normal(size=20), rng.normal(size=20), np.ones((3, 20)))
    with pytest.raises(UserError, match="within two standard errors of 0 over 20 examples"):
        ends.check()
    Ends(5 + rng.normal(size=20), rng.normal(size=20), np.ones((3, 20))).check()


WRONG = [
    pytest.param({"data": "calendar"}, "has none: give --data ioi", id="no pairs"),
    pytest.param({"data": "ioi"}, "task ioi needs", id="tokenizer"),
    pytest.param({"config": replace(QUICK, truth="acdc")}, "no published circuit of task 'planted'", id="truth"),
    pytest.param({"config": replace(QUICK, other="greater-than")}, "task greater-than needs", id="other's tokenizer"),
    pytest.param({"config": replace(QUICK, other="calendar")}, "other=calendar: must be a task", id="other"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_what_does_not_fit_is_explained(change, says, tmp_path):
    with pytest.raises(UserError, match=says):
        find(tmp_path, "zoo:planted-induction-11", **change)
