"""A whole run on a small random model: what comes back, the controls, the pages, and bad input."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.context import Context, Inputs
from workbench.dictionary import Dictionary, load_dictionary
from workbench.errors import UserError
from workbench.plugins.sae import EvaluateConfig, MatryoshkaConfig, PagesConfig, Sae, SaeConfig, TrainConfig
from workbench.plugins.sae.sites import measured
from workbench.results import Result

CONFIG = SaeConfig(
    latents=48,
    k=4,
    train=TrainConfig(rows=20_000),
    evaluate=EvaluateConfig(held_out=0.2, splice_tokens=400, draws=50),
    pages=PagesConfig(latents=12, contexts=3, before=4, after=2, tokens=3),
)
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def result(store, subject, tmp_path_factory) -> Result:
    work = tmp_path_factory.mktemp("work")
    return Sae().run(Context(CONFIG, Inputs(store=store, model=subject), "cpu", 0, work))


@pytest.fixture(scope="module")
def dictionary(result, tmp_path_factory) -> Dictionary:
    folder = tmp_path_factory.mktemp("run")
    result.save(folder)
    return load_dictionary(folder)


def test_the_dictionary_beats_its_controls(result):
    quality = result.tables["comparison"].set_index("in place of the activation")
    explained = quality["explained_variance"]
    assert explained["this dictionary"] > 0.7
    assert explained["this dictionary"] > explained["random dictionary"] + 0.2
    assert abs(explained["mean of the training rows"]) < 0.1
    divergence = quality["divergence"]
    assert divergence["this dictionary"] < divergence["random dictionary"] < divergence["zeros"]
    assert quality["loss_recovered"]["subject as it is"] == 1
    assert quality["loss_recovered"]["zeros"] == 0


def test_latents_tell_labels_better_than_the_controls(result):
    """`is_seven` and the token's number modulo 3 are in the stream; permuted in fitting, they cannot be read."""
    metrics = {name: metric.value for name, metric in result.metrics.items()}
    assert metrics["sparse_probing_1"] > 0.55
    assert metrics["sparse_probing_5"] > metrics["sparse_probing_1"]
    assert metrics["sparse_probing_5"] > metrics["sparse_probing_5_permuted"] + 0.1
    assert 0.35 < metrics["sparse_probing_1_permuted"] < 0.65
    labels = result.tables["labels"].set_index("label")
    assert {"third=a", "third=b"} <= set(labels.index) <= {"is_seven", "third=a", "third=b", "third=c"}
    assert (labels["auc, activation"] > labels["auc, 1 latent"] - 0.05).all()
    assert labels["absorption"].dropna().between(0, 1).all()
    for name in ("sparse_probing_1", "absorption", "dense_latents"):
        assert result.metrics[name].lo <= result.metrics[name].value <= result.metrics[name].hi, name


def test_every_number_has_its_interval_and_description(result):
    for name in ("explained_variance", "mse", "cosine", "l0", "loss_clean", "loss_dictionary", "divergence"):
        metric = result.metrics[name]
        assert metric.lo <= metric.value <= metric.hi, name
    assert result.metrics["l0"].value <= 4
    assert result.metrics["held_out_documents"].value == 8
    assert all(metric.description for metric in result.metrics.values())
    assert set(result.figures) == {"loss-curves", "explained-variance", "latent-density", "decoder-cosines"}
    assert len(result.tables["latents"]) == 48


def test_the_saved_run_is_a_dictionary_of_the_subject(dictionary, subject, store):
    dictionary.check_subject(subject)
    assert (dictionary.hook_in, dictionary.k, dictionary.n_latents) == (HOOK, 4, 48)
    x = torch.from_numpy(store.read(HOOK, ~store.origins["special"]))
    explained = 1 - (x - dictionary.reconstruct(x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert explained > 0.7


def test_pages_show_true_activations(result, dictionary, store, subject):
    section = result.sections["latents"].data
    assert (section["n_latents"], len(section["latents"])) == (48, 12)
    n_rows = int(result.metrics["held_out_documents"].description.split(", ")[1].split()[0])
    sequences = {}
    for sequence in range(store.examples.n_sequences):
        rows = store.examples.rows_of(sequence)
        text = "".join(subject.decode(store.origins["token"][rows].tolist()))
        codes = dictionary.encode_dense(torch.from_numpy(store.read(HOOK, rows)))
        codes[torch.from_numpy(store.origins["special"][rows].copy())] = 0  # special tokens are not encoded
        sequences[text] = (store.documents[store.examples.sequence_document[sequence]], codes)
    for page in section["latents"]:
        assert len(page["top_tokens"]) == len(page["bottom_tokens"]) == 3
        assert {label for label, _ in page["labels"]} == {"is_seven", "third=a", "third=b", "third=c"}
        assert sum(page["histogram"]["counts"]) == pytest.approx(page["density"] * n_rows, rel=1e-3)
        peaks = [context["activations"][context["peak"]] for context in page["contexts"]]
        assert peaks == sorted(peaks, reverse=True)
        assert peaks[0] == pytest.approx(page["max_activation"], rel=1e-3)
        for context in page["contexts"]:
            words = "".join(context["tokens"])
            ((document, codes),) = [found for text, found in sequences.items() if words in text]
            assert document == context["document"]
            (whole,) = [text for text in sequences if words in text]
            first = whole[: whole.index(words)].count("<")
            want = codes[first : first + len(context["tokens"]), page["index"]].numpy()
            np.testing.assert_allclose(context["activations"], want, rtol=2e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(context, tmp_path):
    small = SaeConfig(
        latents=20, k=2, train=TrainConfig(rows=2_000), evaluate=EvaluateConfig(splice_tokens=0), pages=PagesConfig(0)
    )
    first, again, other = (
        Sae().run(context(small, work=tmp_path / name, seed=seed)).weights["dictionary"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_enc"], other["W_enc"])


def test_what_was_trained_before_an_interruption_is_not_trained_again(context, tmp_path, caplog):
    small = SaeConfig(train=TrainConfig(rows=2_000), evaluate=EvaluateConfig(splice_tokens=0), pages=PagesConfig(0))
    with caplog.at_level(logging.INFO, "workbench"):
        first = Sae().run(context(small))
        again = Sae().run(context(small))
    assert "continuing after 2000 of 2000 rows" in caplog.text
    assert torch.equal(first.weights["dictionary"]["W_enc"], again.weights["dictionary"]["W_enc"])


@pytest.mark.parametrize(
    ("architecture", "options", "activation"),
    [
        ("batchtopk", {}, "jumprelu"),
        ("matryoshka", {"matryoshka": MatryoshkaConfig((0.5, 0.5))}, "jumprelu"),
        ("jumprelu", {}, "jumprelu"),
        ("gated", {"k": None, "sparsity": 0.8, "train": TrainConfig(rows=150_000)}, "jumprelu"),
        ("standard", {"k": None, "sparsity": 0.6, "train": TrainConfig(rows=300_000)}, "relu"),
    ],
)
def test_the_others_beat_their_controls_with_as_many_active_latents(architecture, options, activation, context):
    config = replace(CONFIG, architecture=architecture, pages=PagesConfig(0), **options)
    result = Sae().run(context(config))
    assert 2.5 < result.metrics["l0"].value < 5.5
    quality = result.tables["comparison"].set_index("in place of the activation")
    assert quality["explained_variance"]["this dictionary"] > 0.7
    assert quality["explained_variance"]["this dictionary"] > quality["explained_variance"]["random dictionary"] + 0.15
    assert result.weights["dictionary"].config["activation"] == activation


def test_a_dictionary_that_is_given_is_measured_and_shown_not_trained(result, dictionary, store, subject, tmp_path):
    """Ours, and the same in SAELens's layout: the numbers of the run that trained it."""
    dictionary.save(tmp_path / "saelens", layout="saelens")
    for given in (dictionary, load_dictionary(tmp_path / "saelens")):
        inputs = Inputs(store=store, model=subject, dictionary=given)
        measured_again = Sae().run(Context(CONFIG, inputs, "cpu", 0, tmp_path))
        for name in ("explained_variance", "mse", "l0", "loss_dictionary", "divergence"):
            assert measured_again.metrics[name].value == pytest.approx(result.metrics[name].value, rel=1e-4), name
        before, after = (each.sections["latents"].data["latents"] for each in (result, measured_again))
        assert [page["index"] for page in after] == [page["index"] for page in before]
        assert "training" not in measured_again.tables
        assert "dead_latents" not in measured_again.metrics
    with pytest.raises(UserError, match="leave hook_point out"):
        Sae().run(Context(replace(CONFIG, hook_point="elsewhere"), inputs, "cpu", 0, tmp_path))
    stranger = replace(dictionary, hook_in="blocks.0.hook_resid_pots", hook_out="blocks.0.hook_resid_pots")
    with pytest.raises(UserError, match=r"reads blocks\.0\.hook_resid_pots, which .* does not hold; nearest: blocks.0"):
        Sae().run(Context(CONFIG, Inputs(store=store, model=subject, dictionary=stranger), "cpu", 0, tmp_path))


def test_rows_that_cannot_be_learned_from_are_refused():
    for rows, says in [(torch.zeros(5, 3), "all rows are alike"), (torch.full((5, 3), torch.nan), "NaN or infinite")]:
        with pytest.raises(UserError, match=says):
            measured("here", rows)
