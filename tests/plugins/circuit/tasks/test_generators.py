"""Prompts say what their task says, align token by token, and are the same for equal seeds."""

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.plugins.circuit.tasks.docstring import Docstring
from workbench.plugins.circuit.tasks.greater_than import GreaterThan
from workbench.plugins.circuit.tasks.induction import Induction
from workbench.plugins.circuit.tasks.ioi import TEMPLATES, IndirectObject
from workbench.plugins.circuit.tasks.planted import Planted

TASKS = {
    "ioi": IndirectObject(),
    "ioi:s2-io": IndirectObject("s2-io"),
    "greater-than": GreaterThan(),
    "docstring": Docstring(),
    "induction": Induction(),
}


@pytest.fixture(params=list(TASKS))
def made(request, subject):
    return request.param, TASKS[request.param].make(subject, 24, np.random.default_rng(3))


def text(subject, row, length):
    return "".join(subject.decode(row[:length]))


def test_prompts_align_and_are_reproducible(made, subject):
    name, prompts = made
    pairs = prompts.pairs
    assert len(pairs) == len(prompts.negatives) == 24
    assert "<unk>" not in text(subject, pairs.clean[0], pairs.lengths[0])
    assert all((pairs.positions[key] < pairs.lengths).all() for key in pairs.positions)
    assert (pairs.positions["end"] == pairs.lengths - 1).all()
    again = TASKS[name].make(subject, 24, np.random.default_rng(3))
    other = TASKS[name].make(subject, 24, np.random.default_rng(4))
    assert np.array_equal(again.pairs.clean, pairs.clean)
    assert np.array_equal(again.negatives.ids, prompts.negatives.ids)
    assert other.pairs.clean.shape != pairs.clean.shape or not np.array_equal(other.pairs.clean, pairs.clean)
    assert TASKS[name].fingerprint() == type(TASKS[name])(TASKS[name].form).fingerprint()


def names_at(pairs, key, which="clean"):
    return getattr(pairs, which)[np.arange(len(pairs)), pairs.positions[key]]


@pytest.mark.parametrize("form", ["abc", "s2-io"])
def test_indirect_objects(subject, form):
    prompts = IndirectObject(form).make(subject, 40, np.random.default_rng(0))
    pairs = prompts.pairs
    io, s1, s2 = (names_at(pairs, key) for key in ("IO", "S1", "S2"))
    assert [each[0] for each in pairs.answer] == io.tolist()
    assert [each[0] for each in pairs.wrong] == s1.tolist() == s2.tolist()
    assert (io != s1).all()
    first = pairs.positions["IO"] < pairs.positions["S1"]
    assert first.sum() == 20  # ABBA and BABA
    changed = (pairs.clean != pairs.corrupted).sum(1)
    if form == "abc":
        assert (changed == 3).all()
        three = np.stack([names_at(pairs, key, "corrupted") for key in ("IO", "S1", "S2")])
        assert all(len({*column, *pair}) == 5 for column, pair in zip(three.T, zip(io, s1, strict=True), strict=True))
        assert np.array_equal(prompts.negatives.ids, pairs.corrupted)
    else:
        assert (changed == 1).all()
        assert (names_at(pairs, "S2", "corrupted") == io).all()
    assert len(set(TEMPLATES)) == 15


def test_years(subject):
    pairs = GreaterThan().make(subject, 30, np.random.default_rng(0)).pairs
    for row in range(len(pairs)):
        clean, corrupted = (text(subject, side[row], pairs.lengths[row]) for side in (pairs.clean, pairs.corrupted))
        year = int(clean[clean.index("year ") + 7 :][:2])
        assert 2 <= year <= 98
        assert corrupted == clean.replace(f"{year:02d} to", "01 to")
        right, wrong = (["".join(subject.decode([each])) for each in side[row]] for side in (pairs.answer, pairs.wrong))
        assert right == [f"{y:02d}" for y in range(year + 1, 100)]
        assert wrong == [f"{y:02d}" for y in range(year + 1)]
    assert pairs.metric == "probability-difference"


def test_docstrings(subject):
    pairs = Docstring().make(subject, 10, np.random.default_rng(0)).pairs
    for row in range(len(pairs)):
        clean, corrupted = (text(subject, side[row], pairs.lengths[row]) for side in (pairs.clean, pairs.corrupted))
        arguments = clean[clean.index("(") + 1 : clean.index(")")].split(", ")[1:]
        assert len(arguments) == 6
        assert f":param {arguments[2]}: " in clean
        assert f":param {arguments[3]}: " in clean
        assert clean.endswith("\n    :param")
        assert subject.decode(pairs.answer[row]) == [f" {arguments[4]}"]
        others = corrupted[corrupted.index("(") + 1 : corrupted.index(")")].split(", ")[1:]
        assert [a == b for a, b in zip(arguments, others, strict=True)] == [True, True, False, False, False, True]
        assert not any(f":param {each}:" in corrupted for each in (*arguments, *others))
        assert len(pairs.wrong[row]) == 10
        assert set(subject.decode(pairs.wrong[row])) >= {f" {each}" for each in arguments if each != arguments[4]}
    assert pairs.metric == "logit-minus-max"


def test_induction(subject):
    prompts = Induction().make(subject, 30, np.random.default_rng(0))
    pairs = prompts.pairs
    assert (names_at(pairs, "A1") == names_at(pairs, "end")).all()
    assert names_at(pairs, "B1").tolist() == [each[0] for each in pairs.answer]
    assert (names_at(pairs, "A1", "corrupted") == names_at(pairs, "end", "corrupted")).all()
    for clean, corrupted, negative in zip(pairs.clean, pairs.corrupted, prompts.negatives.ids, strict=True):
        assert set(clean) & set(corrupted) == {0}  # the beginning
        assert len(set(negative)) == len(negative) == len(set(clean)) + 1


WRONG = [
    pytest.param(lambda subject: IndirectObject("abd"), "no form 'abd'; nearest: abc", id="form"),
    pytest.param(lambda subject: Induction("long"), "no form 'long'; it takes none", id="no forms"),
    pytest.param(
        lambda subject: Planted().make(subject, 4, np.random.default_rng(0)), "is none: give --data", id="not planted"
    ),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_what_does_not_fit_is_explained(make, says, subject):
    with pytest.raises(UserError, match=says):
        make(subject)


def test_tokenizers_that_do_not_fit_are_explained():
    import workbench as wb

    planted = wb.load_subject("zoo:planted-ioi-0", device="cpu")
    with pytest.raises(UserError, match=r"task ioi needs 1 objects of one token each.*or the task induction"):
        IndirectObject().make(planted, 4, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"greater-than needs"):
        GreaterThan().make(planted, 4, np.random.default_rng(0))
    made = Planted("corrupted").make(planted, 4, np.random.default_rng(0))
    assert np.array_equal(made.negatives.ids, made.pairs.corrupted)
    erased = Planted().make(planted, 4, np.random.default_rng(0))
    assert np.array_equal(erased.pairs.clean, made.pairs.clean)
    assert not np.array_equal(erased.negatives.ids, made.negatives.ids)


def test_a_task_holds_no_documents():
    task = IndirectObject()
    assert bool(task)
    assert len(task) == 0
    with pytest.raises(UserError, match="'workbench run circuit' reads it"):
        task.document(0)
