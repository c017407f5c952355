"""`zoo:modular`: it adds sums it was never shown, with the frequencies of its record; a short training does not."""

from dataclasses import replace

import numpy as np
import pytest

from workbench.datasets.modular_text import NUMBERS, PRIME
from workbench.zoo import modular
from workbench.zoo.loading import load_zoo
from workbench.zoo.shelf import zoo_record
from workbench.zoo.subject import ZooSubject
from workbench.zoo.trainer import new_decoder
from workbench.zoo.training import recipe_of, train_zoo


@pytest.fixture(scope="module")
def subject() -> ZooSubject:
    return load_zoo("modular", device="cpu")


def test_it_adds_sums_that_it_was_never_shown(subject):
    found, record = modular.accuracies(subject.network, subject.tokenizer), zoo_record("modular")
    assert subject.fingerprint() == record["fingerprint"]
    assert found == {name: record["accuracy"][name] for name in ("held_out", "shown")}
    assert found["held_out"] > 0.99
    untrained = new_decoder(subject.network.arch, 1)
    assert modular.accuracies(untrained, subject.tokenizer)["held_out"] < 0.1


def test_its_frequencies_are_those_of_an_independent_transform(subject):
    record = zoo_record("modular")["frequencies"]
    ids = [subject.tokenizer.encode(number).ids[1] for number in NUMBERS]
    embedding = subject.weights("W_E")[ids].double().numpy()
    angle = 2 * np.pi * np.outer(np.arange(1, PRIME // 2 + 1), np.arange(PRIME)) / PRIME
    power = np.square(np.cos(angle) @ embedding).sum(1) + np.square(np.sin(angle) @ embedding).sum(1)
    np.testing.assert_allclose(record["shares"], power / power.sum(), rtol=1e-6)
    assert sorted(record["used"]) == [int(i) + 1 for i in np.flatnonzero(power / power.sum() >= modular.USED_SHARE)]
    assert 2 <= len(record["used"]) <= 10


@pytest.mark.slow
def test_a_short_training_learns_the_answer_alone_and_does_not_generalise(tmp_path, monkeypatch):
    monkeypatch.setattr(modular, "RECIPE", replace(modular.RECIPE, batch_size=16))
    record = train_zoo("modular", tmp_path / "out", recipe_of("modular", steps=2))
    assert record["accuracy"]["held_out"] < 0.1
    assert record["losses"]["curve"][0][1] == pytest.approx(np.log(PRIME + 4), rel=0.05)
    lesson = modular.make_lesson()
    tokens, lengths = lesson.examples(0)
    assert (lengths == modular.N_CONTEXT).all()
    again, _ = modular.make_lesson().examples(0)
    assert np.array_equal(tokens, again)
    assert load_zoo(str(tmp_path / "out"), "cpu").fingerprint() == record["fingerprint"]
