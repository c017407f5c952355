"""Pairs of one's own are read as they stand, and what does not fit is said with its line."""

import json

import numpy as np
import pytest

from workbench.datasets.loading import load_dataset
from workbench.errors import UserError
from workbench.plugins.circuit.tasks.jsonl import PairsFile

TEXT = {
    "clean": "Then, Adam and Alice went to the store. Adam gave a ring to",
    "corrupted": "Then, Alan and Alex went to the store. Alan gave a ring to",
    "answer": [" Alice"],
    "wrong": " Adam",
}
IDS = {"clean": [0, 5, 6, 5], "corrupted": [0, 7, 8, 7], "answer": 6, "wrong": [5, 7], "negative": [0, 5, 6, 9]}


def write(folder, *records):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_texts_and_ids_side_by_side(tmp_path, subject):
    path = write(tmp_path, TEXT, IDS)
    task = PairsFile(str(path))
    prompts = task.make(subject, 10, np.random.default_rng(0))
    pairs = prompts.pairs
    assert pairs.metric == "logit-difference"
    assert "".join(subject.decode(pairs.clean[0, 1 : pairs.lengths[0]])) == TEXT["clean"]
    assert subject.decode(pairs.answer[0]) == [" Alice"]
    assert subject.decode(pairs.wrong[0]) == [" Adam"]
    assert pairs.corrupted[1, : pairs.lengths[1]].tolist() == IDS["corrupted"]
    assert (pairs.answer[1], pairs.wrong[1]) == ((6,), (5, 7))
    assert prompts.negatives.prompts(0, 2) == [
        pairs.corrupted[0, : pairs.lengths[0]].tolist(),
        IDS["negative"],
    ]
    assert task.fingerprint() != PairsFile(str(write(tmp_path, IDS))).fingerprint()


def test_fewer_examples_are_drawn_and_answers_may_be_left_out(tmp_path, subject):
    path = write(tmp_path, *[{"clean": [0, at], "corrupted": [0, at + 50]} for at in range(1, 21)])
    prompts = PairsFile(str(path)).make(subject, 8, np.random.default_rng(1))
    assert len(prompts.pairs) == 8
    assert prompts.pairs.metric == "kl"
    assert (np.diff(prompts.pairs.clean[:, 1]) > 0).all()


WRONG = [
    pytest.param([{**TEXT, "corrupted": 3}], r"line 1: corrupted is 3, where a text or a list", id="form"),
    pytest.param([{**TEXT, "corrupt": "x"}], "line 1: field 'corrupt' is unknown; nearest: corrupted", id="misspelt"),
    pytest.param([{"clean": [1]}], "line 1: corrupted is None", id="missing"),
    pytest.param(
        [TEXT, {**IDS, "corrupted": [0, 7]}],
        "line 2: the clean prompt has 4 tokens and the corrupted one 2",
        id="length",
    ),
    pytest.param([{**TEXT, "answer": ["Alice"]}], "'Alice' is .* tokens? after its prompt.*space in front", id="space"),
    pytest.param([{**TEXT, "answer": [" Alice Adam"]}], "' Alice Adam' is 2 tokens after its prompt", id="two tokens"),
    pytest.param([{**IDS, "answer": [" Alice"]}], "its prompt is token ids; give the answer's id", id="text answer"),
    pytest.param([{**IDS, "clean": [0, 5, 6, 10**6]}], "line 1, clean: token id 1000000; .* has ids 0 to", id="id"),
    pytest.param([{**IDS, "answer": [1.5]}], "answer has 1.5, where a text or a token id", id="number"),
    pytest.param([{**IDS, "answer": []}], "example 0 has no answer token", id="no answer"),
    pytest.param([], "there is no example in it", id="empty"),
]


@pytest.mark.parametrize(("records", "says"), WRONG)
def test_what_is_wrong_is_said_with_its_line(records, says, tmp_path, subject):
    records = [*records, IDS] if "no answer" in says else records
    with pytest.raises(UserError, match=says):
        PairsFile(str(write(tmp_path, *records))).make(subject, 10, np.random.default_rng(0))


def test_the_path_alone_is_recognised(tmp_path):
    assert isinstance(load_dataset(str(write(tmp_path, IDS))), PairsFile)
    (tmp_path / "texts.jsonl").write_text('{"text": "no pairs"}\n', encoding="utf-8")
    assert not isinstance(load_dataset(str(tmp_path / "texts.jsonl")), PairsFile)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no such file of pairs"):
        PairsFile(str(tmp_path / "none.jsonl"))
