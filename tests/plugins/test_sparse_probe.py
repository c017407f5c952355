"""A store with planted units: they are found, chance is not, and what is wrong is said."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models

from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
from workbench.context import Context, Inputs
from workbench.dictionary import Dictionary
from workbench.errors import UserError
from workbench.plugins.sparse_probe import BaselineConfig, Metric, Selector, SparseProbe, SparseProbeConfig
from workbench.plugins.sparse_probe.frames import labels_found, stays_at_floor, too_few_shuffles
from workbench.plugins.sparse_probe.tasks import Documents, make_tasks
from workbench.probes import METRICS, SELECTORS, benjamini_hochberg
from workbench.results import Result

NOISE, PLANTED = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"
N_DOCUMENTS, N_TOKENS, N_UNITS = 60, 50, 24
QUICK = SparseProbeConfig(
    k=(1, 2, 4), draws=100, contexts=3, baselines=BaselineConfig(shuffles=19, random_units=4, dense=True)
)


def planted_labels(rng):
    """Runs of 4 tokens, single tokens, and the genre of a document."""
    span = np.repeat(rng.random((N_DOCUMENTS, N_TOKENS // 5 + 1)) < 0.25, 5, axis=1)[:, :N_TOKENS]
    return span, rng.random((N_DOCUMENTS, N_TOKENS)) < 0.2, np.arange(N_DOCUMENTS) % 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """60 documents of 50 tokens in two windows; units 3 and 11 tell `span`, unit 5 tells genre=b, none `noise`."""
    folder = tmp_path_factory.mktemp("sparse_probe") / "acts"
    rng = np.random.default_rng(0)
    builder = ExamplesBuilder()
    for number in range(N_DOCUMENTS):
        document = builder.document(f"module{number}.py")
        tokens = rng.integers(1, 40, N_TOKENS)
        for window, part in enumerate(np.split(tokens, 2)):
            special = np.arange(len(part) + 1) == 0
            builder.sequence(document, np.append(0, part), special=special, window=window)
    examples = builder.build()
    origins = examples.origins(0, examples.n_rows)
    ordinary = ~origins["special"]
    span, noise, genre = planted_labels(rng)
    at = np.full(examples.n_rows, -1)
    at[ordinary] = np.arange(ordinary.sum())

    def of_row(values):
        return np.where(ordinary, values.ravel()[at], False)

    arrays = {name: rng.normal(size=(examples.n_rows, N_UNITS)).astype(np.float32) for name in (NOISE, PLANTED)}
    arrays[PLANTED][:, [3, 11]] += 2.0 * of_row(span)[:, None]
    arrays[PLANTED][:, 5] += 3.0 * (genre[origins["document"]] == 1)
    specs = {name: ActivationSpec(("d_mlp",), (N_UNITS,), "float32") for name in arrays}
    manifest = {
        "fingerprints": {"model": "m", "dataset": "d", "tokenizer": "t"},
        "model": {"address": "zoo:test", "fingerprint": "m"},
        "dataset": {"address": "test", "fingerprint": "d"},
    }
    with StoreWriter(folder, specs, examples, manifest) as writer:
        writer.append(arrays)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    opened = open_store(folder)
    kinds = {
        "span": ("scopes", "row", "binary", (), of_row(span)),
        "noise": ("kinds", "row", "binary", (), of_row(noise)),
        "rare": ("kinds", "row", "binary", (), np.arange(examples.n_rows) == 7),
        "mood": ("documents", "document", "categories", ("long", "never", "short"), 2.0 * (genre != 1)),
        "genre": ("documents", "document", "categories", ("a", "b", "c"), genre),
        "depth": ("scopes", "row", "number", (), np.arange(examples.n_rows)),
    }
    groups: dict[str, dict] = {}
    for name, (group, level, kind, categories, values) in kinds.items():
        info = LabelInfo(name, group, level, kind, categories)
        defined = ordinary if level == "row" else None
        groups.setdefault(group, {})[name] = (info, values.astype(float), defined)
    for group, labels in groups.items():
        opened.add_labels(group, labels)
    return opened


def probe(store, tmp_path, config=QUICK, dictionary=None, seed=0) -> Result:
    """Run the plugin as the workbench would."""
    inputs = Inputs(store=store, dictionary=dictionary)
    context = Context(config, inputs, "cpu", seed, tmp_path, logging.getLogger("workbench.test"))
    return SparseProbe().run(context)


@pytest.fixture(scope="module")
def result(store, tmp_path_factory):
    config = replace(QUICK, label=("span", "noise", "genre=b"))
    return probe(store, tmp_path_factory.mktemp("work"), config)


def row(result, label, k):
    best = result.tables["best"]
    return best[(best["label"] == label) & (best["k"] == k)].iloc[0]


def test_planted_units_are_chosen_at_the_planted_hook_point(result):
    assert row(result, "span", 1)["hook_point"] == row(result, "genre=b", 1)["hook_point"] == PLANTED
    assert set(row(result, "span", 2)["units"].split(", ")) == {"3", "11"}
    assert row(result, "genre=b", 1)["units"] == "5"


def test_planted_labels_stand_out_and_noise_does_not(result):
    for label in ("span", "genre=b"):
        found = row(result, label, 2)
        assert found["lo"] > 0.85
        assert found["value"] > max(found["shuffled"], found["random_units"], found["control"], found["floor"]) + 0.1
        assert found["p"] == pytest.approx(1 / 20)
        assert found["dense"] > 0.85
    noise = row(result, "noise", 4)
    assert noise["lo"] < 0.5 < noise["hi"]
    assert noise["q"] > 0.1
    assert abs(noise["dense"] - 0.5) < 0.08


def test_negative_control_covers_the_floor(result):
    """With permuted labels the intervals lie around chance, selection included, and so do shuffled draws."""
    scores = result.tables["scores"]
    assert stays_at_floor(scores, "auc").mean() == result.metrics["negative_control"].value >= 0.7
    null = scores[(scores["probe"] == "shuffled labels") & (scores["metric"] == "auc") & (scores["label"] == "span")]
    assert (abs(null["value"] - 0.5) < 0.05).all()


def test_scores_are_complete(result):
    scores = result.tables["scores"]
    kinds = {"k-sparse", "dense", "random units", "shuffled labels", "permuted rows", "token identity"}
    assert set(scores["probe"]) == kinds
    mine = scores[(scores["probe"] == "k-sparse") & (scores["split"] == "test")]
    assert len(mine) == 2 * 3 * 3 * len(METRICS)
    assert mine[["value", "lo", "hi", "floor", "control", "p", "p_max", "q", "C"]].notna().all().all()
    assert (mine["lo"] <= mine["hi"]).all()
    assert (mine["p"] <= mine["p_max"]).all()
    assert mine["converged"].all()
    assert (scores["seed"] == 0).all()


def test_units_examples_figures_and_pages(result):
    units = result.tables["units"]
    first = units[(units["label"] == "span") & (units["hook_point"] == PLANTED) & (units["k"] == 2)]
    assert (first["auc"] > 0.8).all()
    assert (first["coefficient"] > 0).all()
    examples = result.tables["examples"]
    spans = examples[examples["label"] == "span"]
    assert len(spans) == 3
    assert spans["label_holds"].all()
    assert spans["token"].str.startswith("w").all()
    assert set(result.figures) == {"curves", "hook-points", "best-units"}
    for figure in result.figures.values():
        assert figure.png()[:4] == b"\x89PNG"
    page = result.sections[f"units-of-{PLANTED}"].data["latents"]
    assert {latent["index"] for latent in page} == {3, 5} or {latent["index"] for latent in page} == {11, 5}


def test_another_seed_is_another_split_and_the_same_seed_the_same_bits(store, result, tmp_path):
    config = replace(QUICK, label=("span", "noise", "genre=b"))
    again = probe(store, tmp_path / "a", config).tables["scores"].drop(columns="seconds")
    assert again.equals(result.tables["scores"].drop(columns="seconds"))
    other = probe(store, tmp_path / "b", replace(config, label="span"), seed=1).tables["best"]
    assert (other["value"] != row(result, "span", 1)["value"]).any()


def test_an_interrupted_run_goes_on(store, result, tmp_path, monkeypatch):
    import workbench.plugins.sparse_probe.run as module

    config = replace(QUICK, label=("span", "noise", "genre=b"))
    real, calls = module.probe_hook_point, []

    def stop_at_second(context, hook_point, *rest):
        calls.append(hook_point)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(context, hook_point, *rest)

    monkeypatch.setattr(module, "probe_hook_point", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        probe(store, tmp_path, config)
    finished = probe(store, tmp_path, config)
    assert calls == [NOISE, PLANTED, PLANTED]
    columns = ["hook_point", "label", "probe", "k", "metric", "value", "lo", "hi", "p", "q"]
    assert finished.tables["scores"][columns].equals(result.tables["scores"][columns])


def test_latents_of_a_dictionary(store, tmp_path):
    """Latents that copy the planted units are found; a sparse matrix gives what a dense one would."""
    rng = np.random.default_rng(3)
    encoder = torch.tensor(rng.normal(size=(40, N_UNITS)) * 0.2, dtype=torch.float32)
    encoder[17], encoder[17, 3], encoder[17, 11] = 0.0, 1.0, 1.0
    dictionary = Dictionary(
        W_enc=encoder, b_enc=torch.zeros(40), W_dec=encoder.clone(), b_dec=torch.zeros(N_UNITS),
        b_pre=torch.zeros(N_UNITS), activation="topk", hook_in=PLANTED, hook_out=PLANTED, k=10,
        subject_fingerprint="m", address="test",
    )  # fmt: skip
    config = replace(QUICK, label="span", k=1)
    found = row(probe(store, tmp_path / "a", config, dictionary), "span", 1)
    assert (found["units"], found["hook_point"]) == ("17", PLANTED)
    assert found["lo"] > 0.85
    with pytest.raises(UserError, match="probe its latents with"):
        probe(store, tmp_path / "b", replace(config, hook_point=NOISE), dictionary)
    with pytest.raises(UserError, match="trained on"):
        probe(store, tmp_path / "c", config, replace(dictionary, subject_fingerprint="other"))


def test_default_labels_are_yes_no_ones_with_enough_documents(store):
    tasks = make_tasks(store, None, max_rows=1000, max_labels=6, seed=0, log=logging.getLogger())
    assert {task.name for task in tasks} == {"span", "noise"}  # `rare` has one positive row
    assert all(len(task.rows) <= 1000 for task in tasks)


@pytest.mark.parametrize(
    ("n_shuffles", "n_labels", "says"),
    [
        (0, 1, "no p-values"),
        (18, 1, "nothing can be found at 5 %, however good the scores are: at least 19 are needed"),
        (18, 3, "with 18 shuffles and 3 labels, nothing can be found"),
        (19, 3, "fewer than 3 labels can not be found at 5 %, however good their scores are: at least 59"),
        (29, 3, "fewer than 2 labels"),
    ],
)
def test_too_few_shuffles_are_said_to_be_too_few(n_shuffles, n_labels, says):
    assert says in too_few_shuffles(n_shuffles, n_labels)


def test_what_is_said_of_shuffles_is_what_the_correction_does():
    """So many labels with the smallest p-value are found as is said, and no fewer."""
    for n_labels in range(1, 30):
        assert not too_few_shuffles(20 * n_labels - 1, n_labels)
        for n_shuffles in (5, 19, 59, 100, 200):
            smallest = 1 / (n_shuffles + 1)
            counts = []
            for n_good in range(1, n_labels + 1):
                q = benjamini_hochberg([smallest] * n_good + [1.0] * (n_labels - n_good))
                if labels_found(pd.DataFrame({"k": 1, "q": q})):
                    counts.append(n_good)
            said = too_few_shuffles(n_shuffles, n_labels)
            if not counts:
                assert "nothing can be found" in said
            elif counts[0] > 1:
                assert f"fewer than {counts[0]} labels" in said
            else:
                assert not said


def test_the_default_shuffles_are_enough_for_the_default_labels():
    config = SparseProbeConfig()
    assert not too_few_shuffles(config.baselines.shuffles, config.max_labels)


def test_too_few_shuffles_are_in_the_log_the_report_and_the_metric(store, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = probe(store, tmp_path, replace(QUICK, label="span", k=1, baselines=BaselineConfig(5, 0, False)))
    assert result.metrics["labels_found"].value == 0
    for text in (caplog.text, result.metrics["labels_found"].description, str(result.sections["how-to-read"].data)):
        assert "with 5 shuffles and 1 label, nothing can be found at 5 %" in text


def test_a_store_of_class_tokens_alone_is_probed(tmp_path, caplog):
    rng = np.random.default_rng(0)
    builder = ExamplesBuilder("vision")
    for number in range(120):
        builder.image(builder.document(f"{number}.png"), f"{number}.png", (8, 8), [-1], special=[True])
    blue = np.arange(120) % 2
    x = rng.normal(size=(120, 6)).astype(np.float32)
    x[:, 2] += 4 * blue
    spec = {PLANTED: ActivationSpec(("d_mlp",), (6,), "float32")}
    with StoreWriter(tmp_path / "acts", spec, builder.build(), {}) as writer:
        writer.append({PLANTED: x})
    store = open_store(tmp_path / "acts")
    store.add_labels(
        "colours", {"blue": (LabelInfo("blue", "colours", "document", "binary"), blue.astype(float), None)}
    )
    with caplog.at_level(logging.INFO):
        best = row(probe(store, tmp_path / "work", replace(QUICK, label="blue", k=1)), "blue", 1)
    assert (best["units"], best["p"]) == ("2", pytest.approx(1 / 20))
    assert best["lo"] > 0.9
    assert "every row of the store is one of a special token" in caplog.text


@pytest.mark.parametrize("wanted", ["mood", "mood=*", ("mood=short", "mood=long")])
def test_of_two_categories_the_rarer_alone_is_probed(store, wanted, caplog):
    with caplog.at_level(logging.INFO):
        tasks = make_tasks(store, wanted, max_rows=1000, max_labels=6, seed=0, log=logging.getLogger())
    assert [task.name for task in tasks] == ["mood=long"]
    assert "left out: mood=short, the opposite of mood=long" in caplog.text
    options = {"max_rows": 1000, "max_labels": 6, "seed": 0, "log": logging.getLogger()}
    assert [task.name for task in make_tasks(store, "mood=short", **options)] == ["mood=short"]
    assert [task.name for task in make_tasks(store, "genre", **options)] == ["genre=a", "genre=b", "genre=c"]


def test_documents_are_never_divided_and_identical_ones_are_one(store):
    documents = Documents(store, 0)
    assert len(np.unique(documents.group_of)) == N_DOCUMENTS
    task = make_tasks(store, "span", max_rows=10**6, max_labels=6, seed=0, log=logging.getLogger())[0]
    assert all(len(np.unique(task.part[task.groups == group])) == 1 for group in np.unique(task.groups))
    origins = store.origins[task.rows]
    assert not origins["special"].any()
    place = origins["sequence"].astype(int) * 1000 + origins["position"]
    assert all((np.diff(place[task.groups == group]) > 0).all() for group in np.unique(task.groups))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 25}, "k=25: must be between 1 and 24"),
        ({"k": (1, 2), "selector": "enumerate"}, "at most 1 units"),
        ({"k": ()}, "give at least one"),
        ({"hook_point": "blocks.1.mlp.hook_pots"}, "nearest: blocks.1.mlp.hook_post"),
        ({"label": "spam"}, "nearest: span"),
        ({"label": "depth"}, "of kind 'number'"),
        ({"label": "rare"}, "label 'rare' has"),
        ({"label": "genre=d"}, "no label 'genre=d'"),
    ],
)
def test_bad_input_is_explained(store, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        probe(store, tmp_path, replace(QUICK, **changes))


def test_names_in_the_light_module_are_those_of_the_probes():
    from typing import get_args

    assert get_args(Selector) == SELECTORS
    assert get_args(Metric) == METRICS
