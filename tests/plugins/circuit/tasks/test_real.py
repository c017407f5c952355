"""A Hugging Face checkpoint from a folder: default methods, a task of words, pairs of one's own, a second task."""

import json

import pytest
import torch

import workbench as wb
from workbench.testing.checkpoints import save_random

SMALL = {
    "examples": 8,
    "steps": 2,
    "draws": 20,
    "permutations": 10,
    "sae.examples": 10,
    "sae.train_examples": 4,
    "sae.latents": 20,
    "sae.steps": 20,
    "sae.seeds": 2,
}
PAIRS = [
    {
        "clean": "The book of Adam and Alice",
        "corrupted": "The book of Alan and Alice",
        "answer": " and",
        "wrong": " to",
    },
    {"clean": "The letter of Anna", "corrupted": "The letter of Alex", "answer": [" and"], "wrong": [" to", " the"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, worded_tokenizer):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    backend = worded_tokenizer
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=backend.get_vocab_size(), **ids
    )
    save_random(transformers.GPT2LMHeadModel(config), folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("data", ["ioi", "greater-than", None, "mine"])
def test_a_checkpoint_with_defaults(data, folder, tmp_path):
    if data == "mine":
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in 4 * PAIRS), encoding="utf-8")
        data = str(path)
    torch.manual_seed(0)
    result = wb.run("circuit", model=f"hf:{folder}", data=data, out=tmp_path / "run", device="cpu", set=SMALL)
    nodes = result.tables["nodes"]
    assert len(nodes) == 2 * (2 + 1)
    assert {"noising", "eap", "eap-ig", "discrete-sae"} <= set(nodes.columns)
    assert "known" not in nodes
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "files" / "circuit.json").is_file()


@pytest.mark.long
def test_two_tasks_of_one_subject(tmp_path):
    result = wb.run(
        "circuit", model="zoo:planted-induction-1", other="planted", out=tmp_path / "run", device="cpu",
        method=("noising", "eap-ig"), copies=0, set={"examples": 16},
    )  # fmt: skip
    (row,) = result.tables["overlap"].to_dict("records")
    assert row["jaccard"] == 1  # other prompts of the same task
    assert row["correlation"] > row["correlation_by_chance"] + 0.2
    crossed = result.tables["crossed"].set_index(["task", "without"])["left"]
    for task in ("planted", "planted (second)"):
        assert crossed.loc[(task, "random edges")] > 0.8
        assert max(crossed.loc[(task, without)] for without in ("planted", "planted (second)")) < 0.3
