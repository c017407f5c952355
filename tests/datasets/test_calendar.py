from collections import Counter

import numpy as np
import pytest

from workbench.datasets.alignment import Aligner
from workbench.datasets.calendar import DIRECTIONS, PHRASING_NAMES, SPECS, TASK_NAMES, Calendar
from workbench.datasets.calendar_text import (
    MONTHS,
    PHRASINGS,
    WEEKDAYS,
    Mixture,
    Problem,
    held_out_problems,
    problems,
    prompt,
    sentences,
    vocabulary,
    von_mises,
)


@pytest.fixture(scope="module")
def calendar() -> Calendar:
    return Calendar()


def words_and_values(dataset: Calendar, name: str, label: str) -> dict[str, float]:
    document = next(d for d in dataset.documents if d.name == name)
    words = document.text.split()
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    offsets = np.stack([ends - [len(word) for word in words], ends], axis=1)
    values, defined = Aligner(document.text, [offsets])(dataset.labels(document)[label])
    return {word: value for word, value, there in zip(words, values, defined, strict=True) if there}


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (Problem("weekday", WEEKDAYS.index("Monday"), 3, 1), "Thursday"),
        (Problem("weekday", WEEKDAYS.index("Monday"), 1, -1), "Sunday"),
        (Problem("weekday", WEEKDAYS.index("Friday"), 12, 1), "Wednesday"),
        (Problem("month", MONTHS.index("November"), 4, 1), "March"),
        (Problem("month", MONTHS.index("May"), 12, -1), "May"),
    ],
)
def test_answers_are_right(problem, answer):
    assert (WEEKDAYS if problem.task == "weekday" else MONTHS)[problem.answer] == answer


@pytest.mark.parametrize(("task", "period"), [("weekday", 7), ("month", 12)])
def test_a_tenth_of_the_problems_is_held_out(task, period):
    assert len(problems(task)) == period * 13 * 2
    held_out = [p for p in held_out_problems() if p.task == task]
    assert len(held_out) == round(0.1 * period * 13 * 2)
    assert held_out_problems() == held_out_problems()
    assert held_out_problems(1) != held_out_problems()


def test_training_sentences_never_show_a_held_out_problem_exact_or_vague():
    hidden = held_out_problems()
    starts = {
        prompt(p, name, word) for p in hidden for name in PHRASINGS for word in ("", "around", "about", "roughly")
    }
    assert not [s for s in sentences(20_000, 5) if s.removesuffix(" .").rpartition(" ")[0] in starts]
    everything = sentences(20_000, 5, held_out=frozenset())  # control: they would be there
    assert [s for s in everything if s.removesuffix(" .").rpartition(" ")[0] in starts]


def test_sentences_are_decided_by_their_seed_and_made_of_the_vocabulary():
    assert sentences(300, 1) == sentences(300, 1)
    assert sentences(300, 1) != sentences(300, 2)
    assert {word for s in sentences(5000, 3) for word in s.split()} <= set(vocabulary())


def test_half_of_the_arithmetic_is_vague_and_drawn_around_the_truth():
    only = Mixture(arithmetic=1.0, season=0.0, listing=0.0)
    texts = sentences(6000, 0, only)
    vague = [s for s in texts if {"around", "about", "roughly", "perhaps"} & set(s.split())]
    assert abs(len(vague) / len(texts) - 0.5) < 0.03
    exact = sentences(6000, 0, Mixture(arithmetic=1.0, season=0.0, listing=0.0, vague=0.0))
    truth = {prompt(p, n): p for t in ("weekday", "month") for p in problems(t) for n in PHRASINGS}
    for s in exact:
        start, _, answer = s.removesuffix(" .").rpartition(" ")
        assert answer == ((WEEKDAYS if truth[start].task == "weekday" else MONTHS)[truth[start].answer])


@pytest.mark.parametrize("period", [7, 12])
def test_von_mises_is_one_cosine_in_its_logits(period):
    p = von_mises(2, period, 1.5)
    assert p.sum() == pytest.approx(1)
    power = np.abs(np.fft.rfft(np.log(p)))[1:]
    assert power[0] > 1
    np.testing.assert_allclose(power[1:], 0, atol=1e-9)
    np.testing.assert_allclose(von_mises(0, period, 0.0), 1 / period)


def test_every_problem_is_there_in_every_phrasing(calendar):
    counts = Counter((d.fields["task"], d.fields.get("phrasing")) for d in calendar.documents)
    assert len(PHRASINGS) >= 6
    assert all(counts["weekday", name] == 7 * 26 and counts["month", name] == 12 * 26 for name in PHRASINGS)
    assert counts["none", None] == 600
    assert len({d.name for d in calendar.documents}) == len(calendar) == 6 * 19 * 26 + 600


def test_fields_and_labels_of_one_prompt(calendar):
    name = "weekday/Monday+3/now"
    document = next(d for d in calendar.documents if d.name == name)
    assert document.text == "now it is Monday , and in three days it will be"
    assert document.fields["answer"] == "Thursday"
    assert document.fields["held_out"] == (Problem("weekday", 0, 3, 1) in held_out_problems())
    assert words_and_values(calendar, name, "weekday_operand") == {"Monday": 0}
    assert words_and_values(calendar, name, "weekday_answer") == {"be": 3}
    assert words_and_values(calendar, name, "offset") == {"three": 3}
    assert words_and_values(calendar, name, "month_operand") == {}
    assert words_and_values(calendar, "month/June-2/plus", "month_answer") == {"is": 3}
    labels = calendar.labels(document)
    assert labels["task"] == TASK_NAMES.index("weekday")
    assert labels["direction"] == DIRECTIONS.index("after")
    assert labels["phrasing"] == PHRASING_NAMES.index("now")


def test_every_document_has_all_labels_and_other_sentences_no_operands(calendar):
    for document in calendar.documents[:300]:
        labels = calendar.labels(document)
        assert set(labels) == {spec.name for spec in SPECS}
        if document.fields["task"] == "none":
            assert not labels["weekday_operand"].spans
            assert not labels["offset"].spans
            assert labels["held_out"] is None
    assert {spec.period for spec in SPECS if spec.kind == "cyclic"} == {7, 12}


def test_the_fingerprint_covers_the_documents(calendar):
    assert calendar.fingerprint() == Calendar().fingerprint()
    assert Calendar(n_other=599).fingerprint() != calendar.fingerprint()
    assert Calendar(seed=1).fingerprint() != calendar.fingerprint()
