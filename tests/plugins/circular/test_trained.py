"""Subjects that compute with circles: the bars that the method must reach, and copies without training that must not.

Long: each trains a dictionary. `pytest -m long tests/plugins/circular`.
"""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.datasets.calendar_text import vocabulary
from workbench.datasets.modular_text import NUMBERS
from workbench.zoo.loading import load_zoo
from workbench.zoo.shelf import zoo_record
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import new_decoder
from workbench.zoo.words import BOS, word_tokenizer

pytestmark = pytest.mark.long
QUICK = {"null.draws": 49, "intervene.runs": 60, "intervene.grid": 0, "rows": 5000}


def interventions(result, label):
    frame = result.tables["interventions"]
    return frame[frame["label"] == label].set_index("way")


@pytest.fixture(scope="module", params=[0, 1, 2])
def calendar(request, tmp_path_factory):
    """The run with no options but its seed, which is that of the dictionary and of everything else too."""
    return wb.run("circular", seed=request.param, out=tmp_path_factory.mktemp("calendar") / "run")


def test_weekdays_and_months_are_among_the_first_clusters(calendar):
    clusters = calendar.tables["clusters"]
    for label in ("weekday", "month"):
        first = clusters[clusters["label"] == label].iloc[0]
        assert first["rank"] <= 3
        assert first["p_holm"] < 0.05
    frequencies = calendar.tables["frequencies"]
    assert set(frequencies[frequencies["named"]]["label"]) == {"weekday", "month"}
    assert frequencies[(frequencies["frequency"] == 1)]["named"].all()
    assert calendar.metrics["negative_control"].value == 0


@pytest.mark.parametrize("label", ["weekday_operand", "month_operand"])
def test_the_found_feature_moves_the_answer_and_a_random_subspace_does_not(calendar, label):
    ways = interventions(calendar, label)
    prompts = calendar.tables["prompts"].set_index("label").loc[label]
    assert prompts["scored"] == "documents held out from the subject"
    assert prompts["n_scored_right"] >= 0.95 * prompts["n_scored"]
    assert ways.loc["none", "moved"] == 0
    assert ways.loc["whole feature", "moved"] >= 0.9
    assert ways.loc["all: from a run with the other operand", "moved"] >= 0.95
    if label == "weekday_operand":
        assert ways[ways.index.str.startswith("best plane (")]["moved"].iloc[0] >= 0.4
    assert ways[ways.index.str.startswith("random subspace")]["moved"].mean() < 0.15
    assert ways.loc["whole feature at its mean", "kept"] < 0.3
    assert ways.loc["all but the whole feature at its mean", "moved"] == 0


def test_it_works_where_the_subject_computes_and_nowhere_else(calendar):
    profile = calendar.tables["profile"]
    of = profile[(profile["way"] == "all rings") & (profile["label"] == "weekday_operand")]
    of = of.set_index(["hook_point", "position"])["moved"]
    assert of["blocks.0.hook_resid_pre", "operand"] > 0.9
    assert of["blocks.1.hook_resid_post", "answer"] > 0.9
    assert of["blocks.1.hook_resid_post", "operand"] < 0.1
    assert of["blocks.0.hook_resid_pre", "answer"] < 0.1
    probes = calendar.tables["probes"]
    first = probes[(probes["hook_point"] == "blocks.0.hook_resid_pre") & (probes["position"] == "operand")]
    assert first[(first["circle_of"] == "operand") & (first["frequency"] == 1)]["r2"].min() > 0.9
    assert first[first["circle_of"] == "answer"]["hi"].max() < 0.3


def untrained(name):
    subject = load_zoo(name, device="cpu")
    return ZooSubject(f"zoo:untrained-{name}", new_decoder(subject.network.arch, 1).eval(), subject.text)


def test_an_untrained_copy_yields_nothing(tmp_path):
    found = wb.run("circular", model=untrained("calendar"), out=tmp_path / "run")
    clusters = found.tables.get("clusters")
    assert clusters is None or not ((clusters["p_holm"] < 0.05) & (clusters["label"] != "")).any()
    assert "interventions" not in found.tables  # it answers nothing
    frequencies = found.tables.get("frequencies")
    assert frequencies is None or not frequencies["named"].any()


def test_the_frequencies_that_modular_uses_are_found_and_needed(tmp_path):
    found = wb.run("circular", model="zoo:modular", data="modular", out=tmp_path / "run")
    frequencies = found.tables["frequencies"]
    named = set(frequencies[frequencies["named"]]["frequency"])
    subject = load_zoo("modular", device="cpu")
    ids = [subject.tokenizer.token_to_id(number) for number in NUMBERS]
    power = np.square(np.abs(np.fft.fft(subject.weights("W_E")[ids].double().numpy(), axis=0))).sum(1)[1:30]
    strongest = np.argsort(-power) + 1
    assert named
    assert named == set(strongest[: len(named)].tolist()) == set(zoo_record("modular")["frequencies"]["used"])
    assert power[np.array(sorted(named)) - 1].sum() / power.sum() > 0.8
    removal = found.tables["removal"].set_index("way")["right"]
    assert removal["none"] == 1
    assert removal[removal.index.str.startswith("without frequenc")].iloc[0] < 0.1
    assert removal[removal.index.str.startswith("without the planes of")].iloc[0] < 0.1
    assert removal[removal.index.str.startswith("with no frequency but")].iloc[0] > 0.9
    controls = removal[removal.index.str.startswith("without") & removal.index.str.contains("draw|next strongest")]
    assert len(controls) >= 7
    assert controls.min() > 0.9
    assert interventions(found, "sum_operand").loc["whole feature", "moved"] >= 0.9


def test_a_model_of_hugging_face_with_words_for_tokens(tmp_path):
    """Random weights: everything runs, and nothing is found to be causal."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(vocabulary()), bos_token=BOS, eos_token=BOS, unk_token="<|unknown|>"
    )
    config = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=len(tokenizer), n_positions=32)
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    store = wb.capture(
        f"hf:{folder}", data="calendar", hooks="blocks.*.hook_resid_post", rows=6000, out=tmp_path / "acts"
    )
    options = {"hook_point": "blocks.0.hook_resid_post", "latents": 96, "k": 4, "train.rows": 20_000}
    wb.run("sae", store=store, out=tmp_path / "sae", set=options)
    found = wb.run("circular", store=store, dictionary=tmp_path / "sae", out=tmp_path / "run", set=QUICK)
    assert any("answers" in note for note in found.sections["how-to-read"].data)
    assert "probes" in found.tables
    assert (tmp_path / "run" / "report.html").is_file()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["subject"]["address"] == f"hf:{folder}"
