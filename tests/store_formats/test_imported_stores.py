"""Stores that do not say which model they are of: what methods do with them, and what asks for the model."""

import logging

import numpy as np
import pytest

import workbench as wb
from workbench.context import Context, Inputs
from workbench.display import store_html
from workbench.errors import UserError
from workbench.label_files import label_from_file
from workbench.provenance import recorded_dataset, recorded_model
from workbench.store_formats.importing import import_store

HOOK = "mine"
N = 3000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows of four planted directions, two at a time, of 30 documents; direction 3 is a label."""
    folder = tmp_path_factory.mktemp("imported")
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((8, 8)))[0][:4]
    active = np.zeros((N, 4), bool)
    for row in active:
        row[rng.choice(4, 2, replace=False)] = True
    x = (active * rng.uniform(1, 2, (N, 4))) @ directions + 0.01 * rng.standard_normal((N, 8))
    np.save(folder / "acts.npy", x.astype(np.float32))
    np.save(folder / "documents.npy", np.repeat(np.arange(30), N // 30))
    np.save(folder / "tokens.npy", rng.integers(0, 50, N))
    store = import_store(folder, out=folder / "store", hooks=f"{HOOK}=acts.npy")
    lines = "\n".join(f"{row},{int(active[row, 3])}" for row in range(N))
    (folder / "planted.csv").write_text(f"row,third\n{lines}\n")
    label_from_file(store, folder / "planted.csv")
    return store


def test_it_says_that_it_does_not_know(store):
    assert recorded_model(store).address == recorded_dataset(store).address == ""
    assert "mine" in store_html(store)


def test_a_dictionary_is_trained_without_the_model(store, tmp_path, caplog):
    small = {"latents": 8, "k": 2, "train.rows": 1024, "train.batch_rows": 64, "evaluate.draws": 20}
    result = wb.run("sae", store=store, out=tmp_path / "run", hook_point=HOOK, **small)
    quality = result.tables["comparison"].set_index("in place of the activation")["explained_variance"]
    assert quality["this dictionary"] > quality["random dictionary"] + 0.15
    assert "loss_recovered" not in result.metrics
    assert "nothing is spliced into the subject" in caplog.text
    assert "latents are not described" in caplog.text
    assert wb.load_dictionary(tmp_path / "run").subject_fingerprint == ""


def test_labels_are_probed_without_the_model(store, tmp_path):
    result = wb.run("sparse-probe", store=store, out=tmp_path / "run", label="third", k=[8])
    assert result.metrics["auc.third.k8"].value > 0.95
    assert result.metrics["negative_control"].value == 1


def test_what_needs_the_model_asks_for_it(store, tmp_path, caplog):
    context = Context(None, Inputs(store=store), "cpu", 0, tmp_path)
    assert not context.has_subject
    with pytest.raises(UserError, match=r"does not say which model its activations are of .*: give --model ADDRESS"):
        context.subject()
    with pytest.raises(UserError, match="does not say which dataset"):
        context.data()
    with caplog.at_level(logging.WARNING):
        given = Context(None, Inputs(store=store, model="zoo:calendar"), "cpu", 0, tmp_path)
        assert given.has_subject
        assert given.subject().address == "zoo:calendar"
    assert "does not say which weights it is of: zoo:calendar is used unchecked" in caplog.text


def test_labels_of_spans_need_the_dataset(store, tmp_path):
    (tmp_path / "spans.jsonl").write_text('{"document": "3", "labels": {"x": {"spans": [[0, 1, true]]}}}\n')
    with pytest.raises(UserError, match=r"the dataset of .* is not at hand: .* does not say which dataset"):
        label_from_file(store, tmp_path / "spans.jsonl")
