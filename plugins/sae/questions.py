"""Yes/no questions about rows: labels of the store, on rows to fit probes on and on held-out rows to score them on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.plugins.sae.activity import yes_or_no

LEAST_ROWS = 20  # of either class, on either side
LEAST_DOCUMENTS = 3  # with a positive row, on either side


@dataclass(frozen=True)
class Question:
    """A label as a question, with its answers.

    Attributes
    ----------
    name : str
        The label, or LABEL=VALUE.
    fit, test : int64 array [n]
        Which of the rows to fit on, and of the rows to score on, have an answer.
    y_fit, y_test : bool array [n]
        The answers.
    """

    name: str
    fit: NDArray[np.int64]
    test: NDArray[np.int64]
    y_fit: NDArray[np.bool_]
    y_test: NDArray[np.bool_]


def choose_questions(
    store: Store, fit_rows: NDArray[np.int64], test_rows: NDArray[np.int64], most: int
) -> list[Question]:
    """Return questions with enough rows of both answers on both sides, one of each group of labels in turn.

    Yes/no labels come before values of the others.

    Parameters
    ----------
    store : Store
        With labels, or none.
    fit_rows, test_rows : int64 array
        Rows of the store, of different documents.
    most : int
        How many questions at most.
    """
    documents = store.origins["document"]
    by_group: dict[tuple[bool, str], list[Question]] = {}
    for label, info in store.labels.items():
        values, defined = store.label(label)
        on_fit, on_test = (np.flatnonzero(defined[rows]) for rows in (fit_rows, test_rows))
        answers_fit, answers_test = (
            dict(yes_or_no(info, values[rows], defined[rows])) for rows in (fit_rows, test_rows)
        )
        for name in sorted(answers_fit.keys() & answers_test.keys()):
            question = Question(name, on_fit, on_test, answers_fit[name][on_fit], answers_test[name][on_test])
            if enough(question.y_fit, documents[fit_rows[on_fit]]) and enough(
                question.y_test, documents[test_rows[on_test]]
            ):
                by_group.setdefault((info.kind != "binary", info.group), []).append(question)
    chosen: list[Question] = []
    for plain in (False, True):
        turns = zip_longest(*(by_group[key] for key in sorted(by_group) if key[0] is plain))
        chosen += [question for turn in turns for question in turn if question is not None]
    return chosen[:most]


def enough(y: NDArray[np.bool_], documents: NDArray[np.int32]) -> bool:
    """True if there are enough rows of both answers, and enough documents with a positive one."""
    return bool(y.sum() >= LEAST_ROWS and (~y).sum() >= LEAST_ROWS and len(np.unique(documents[y])) >= LEAST_DOCUMENTS)
