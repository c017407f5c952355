"""The dataset ``calendar``: days and months arithmetic with operands and answer, and other sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import xxhash

from workbench.datasets.calendar_text import (
    MONTHS,
    NUMBERS,
    PHRASINGS,
    TASKS,
    WEEKDAYS,
    Problem,
    held_out_problems,
    listing,
    problems,
    prompt,
    seasonal,
    unrelated,
)
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Span, SpanLabel

WORD = re.compile(r"\w+")
TASK_NAMES = ("none", *TASKS)
PHRASING_NAMES = ("none", *PHRASINGS)
DIRECTIONS = ("none", "after", "before")


def _cyclic(name: str, group: str, words: tuple[str, ...], description: str) -> LabelSpec:
    return LabelSpec(name, group, "row", "cyclic", words, len(words), description=description)


def _of_prompt(name: str, words: tuple[str, ...], description: str) -> LabelSpec:
    return LabelSpec(name, "prompts", "document", "categories", words, description=description)


COUNTED = "how many days or months are counted, at its word"
HELD_OUT = "zoo:calendar was never shown these operands"
SPECS: tuple[LabelSpec, ...] = (
    _cyclic("weekday_operand", "arithmetic", WEEKDAYS, "the day that is counted from, at its word"),
    _cyclic("month_operand", "arithmetic", MONTHS, "the month that is counted from, at its word"),
    _cyclic("weekday_answer", "arithmetic", WEEKDAYS, "the right day, at the last word before it"),
    _cyclic("month_answer", "arithmetic", MONTHS, "the right month, at the last word before it"),
    LabelSpec("offset", "arithmetic", "row", "ordered", NUMBERS, unit="days or months", description=COUNTED),
    _of_prompt("task", TASK_NAMES, "what the arithmetic is about"),
    _of_prompt("direction", DIRECTIONS, "counted forward or back"),
    _of_prompt("phrasing", PHRASING_NAMES, "which sentence is used"),
    LabelSpec("held_out", "prompts", "document", "binary", description=HELD_OUT),
    _cyclic("weekday", "words", WEEKDAYS, "which day a word names, in any sentence"),
    _cyclic("month", "words", MONTHS, "which month a word names, in any sentence"),
)


class Calendar(Dataset):
    """One document per prompt: each problem in each phrasing up to its answer; and whole sentences about other things.

    A problem is an operand, an offset of 0 to 12 and a direction. Fields of its documents: ``task``, ``phrasing``,
    ``operand`` and ``answer`` (words), ``operand_index`` and ``answer_index``, ``offset``, ``direction`` (1 or -1) and
    ``held_out``. The others have the task ``none``.

    Parameters
    ----------
    n_other : int
        Sentences about other things.
    seed : int
        Of those sentences and of the order of the documents.
    """

    modality = "text"
    address = "calendar"
    label_specs = SPECS

    def __init__(self, n_other: int = 600, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, n_other])
        hidden = held_out_problems()
        asked = [
            arithmetic(problem, phrasing, problem in hidden)
            for task in TASKS
            for problem in problems(task)
            for phrasing in PHRASINGS
        ]
        makers = (unrelated, listing, lambda r: seasonal(r, 2.0))
        others = [
            Document(f"other/{i:04d}", makers[i % len(makers)](rng), fields={"task": "none", "held_out": False})
            for i in range(n_other)
        ]
        documents: list[Document] = asked + others
        self.documents: list[Document] = [documents[i] for i in rng.permutation(len(documents))]

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.documents)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        return self.documents[index]

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: names, texts and fields of all documents."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for document in self.documents:
            digest.update(repr((document.name, document.text, sorted(document.fields.items()))).encode())
        return digest.hexdigest()

    def labels(self, document: Document) -> Mapping[str, SpanLabel | float | None]:
        """See `Dataset.labels`."""
        text, fields = document.text or "", document.fields
        task, phrasing = str(fields["task"]), str(fields.get("phrasing", "none"))
        words = [(match.group(), *match.span()) for match in WORD.finditer(text)]
        labels: dict[str, SpanLabel | float | None] = {
            "weekday": named(words, WEEKDAYS),
            "month": named(words, MONTHS),
            "task": float(TASK_NAMES.index(task)),
            "direction": float({0: 0, 1: 1, -1: 2}[int(fields.get("direction", 0))]),
            "phrasing": float(PHRASING_NAMES.index(phrasing)),
            "held_out": None if task == "none" else float(fields["held_out"]),
            "offset": named(words, NUMBERS) if task != "none" else SpanLabel((), None),
        }
        for name, circle in (("weekday", WEEKDAYS), ("month", MONTHS)):
            asked = task == name
            labels[f"{name}_operand"] = named(words, circle) if asked else SpanLabel((), None)
            end = [Span(words[-1][1], words[-1][2], float(fields["answer_index"]))] if asked else []
            labels[f"{name}_answer"] = SpanLabel(end, None)
        return {spec.name: labels[spec.name] for spec in SPECS}


def arithmetic(problem: Problem, phrasing: str, held_out: bool) -> Document:
    """Return the prompt of a problem as a document."""
    words = TASKS[problem.task].words
    sign = "+" if problem.direction > 0 else "-"
    return Document(
        f"{problem.task}/{words[problem.operand]}{sign}{problem.offset}/{phrasing}",
        prompt(problem, phrasing),
        fields={
            "task": problem.task,
            "phrasing": phrasing,
            "operand": words[problem.operand],
            "operand_index": problem.operand,
            "offset": problem.offset,
            "direction": problem.direction,
            "answer": words[problem.answer],
            "answer_index": problem.answer,
            "held_out": held_out,
        },
    )


def named(words: list[tuple[str, int, int]], names: tuple[str, ...]) -> SpanLabel:
    """Return which of some names a word is, undefined on all other words."""
    return SpanLabel([Span(a, b, float(names.index(word))) for word, a, b in words if word in names], None)
