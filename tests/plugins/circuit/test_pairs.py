"""Pairs of prompts and the metrics on them, held against plain arithmetic; what does not fit is refused."""

import numpy as np
import pytest
import torch

from workbench.errors import UserError
from workbench.plugins.circuit.objectives import objective
from workbench.plugins.circuit.pairs import Pairs

CLEAN, CORRUPTED = [[5, 1, 2], [5, 3]], [[5, 2, 2], [5, 4]]
ANSWER, WRONG = [[1, 2], [0]], [[3], [1, 4, 2]]


def pairs(metric="logit-difference"):
    return Pairs.of(CLEAN, CORRUPTED, ANSWER, WRONG, positions={"end": [2, 1]}, metric=metric)


def test_padded_taken_and_halved():
    whole = pairs()
    assert whole.clean.tolist() == [[5, 1, 2], [5, 3, 0]]
    assert whole.lengths.tolist() == [3, 2]
    second = whole.take([1])
    assert (second.corrupted.tolist(), second.answer, second.positions["end"].tolist()) == ([[5, 4, 0]], ((0,),), [1])
    one, other = whole.halves(np.random.default_rng(0))
    assert sorted([*one.lengths, *other.lengths]) == [2, 3]
    assert whole.swapped().clean is whole.corrupted


def test_metrics_are_plain_arithmetic():
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    last = [logits[0, 2].numpy(), logits[1, 1].numpy()]
    p = [np.exp(each) / np.exp(each).sum() for each in last]
    want = {
        "logit-difference": [x[a].mean() - x[w].mean() for x, a, w in zip(last, ANSWER, WRONG, strict=True)],
        "probability-difference": [x[a].sum() - x[w].sum() for x, a, w in zip(p, ANSWER, WRONG, strict=True)],
        "logit-minus-max": [x[a].mean() - x[w].max() for x, a, w in zip(last, ANSWER, WRONG, strict=True)],
    }
    for metric, values in want.items():
        np.testing.assert_allclose(objective(pairs(metric))(logits, [0, 1]).numpy(), values, rtol=1e-12)
        np.testing.assert_allclose(objective(pairs(metric))(logits[1:], [1]).numpy(), values[1:], rtol=1e-12)
    reference = torch.full((2, 6), np.log(1 / 6), dtype=torch.float64)
    divergence = [-(1 / 6 * (np.log(1 / 6) - np.log(each))).sum() for each in p]
    np.testing.assert_allclose(objective(pairs("kl"), reference)(logits, [0, 1]).numpy(), divergence, rtol=1e-12)


def of(**changes):
    return Pairs.of(**{"clean": CLEAN, "corrupted": CORRUPTED, "answer": ANSWER, "wrong": WRONG, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {"corrupted": [[5, 2, 2], [5, 4, 1]]}, "example 1: the clean prompt has 2 tokens and the corrupted one 3",
            id="lengths",
        ),
        pytest.param({"clean": [], "corrupted": []}, "at least one", id="none"),
        pytest.param({"answer": [[1]]}, "answer of 1 examples, but there are 2", id="answers"),
        pytest.param({"wrong": [[3], []]}, "example 1 has no wrong token", id="no wrong answer"),
        pytest.param({"wrong": [[2], [1]]}, "example 0 has token 2 among both", id="answer is wrong"),
        pytest.param({"metric": "logit-diff"}, "nearest logit-difference", id="metric"),
        pytest.param({"clean": [[5, 1, 2], []], "corrupted": [[5, 2, 2], []]}, "example 1 has 0 tokens", id="empty"),
        pytest.param({"positions": {"S": [1]}}, "positions 'S' of 1", id="positions"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        of(**changes)


def test_divergence_needs_a_reference_and_one_example_has_no_halves():
    with pytest.raises(UserError, match="subject as it is"):
        objective(pairs("kl"))
    with pytest.raises(UserError, match="at least two"):
        pairs().take([0]).halves(np.random.default_rng(0))
