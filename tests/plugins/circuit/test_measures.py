"""Measures against independent computations: scikit-learn, every pair, every threshold."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from workbench.plugins.circuit import measures

units = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=25).filter(
    lambda rows: len({truth for truth, _ in rows}) == 2
)


@settings(max_examples=40)
@given(units)
def test_areas_equal_counted_pairs(rows):
    truth, score = np.array([each for each, _ in rows]), np.array([float(each) for _, each in rows])
    duels = list(itertools.product(score[truth], score[~truth]))
    want = sum((a > b) + (a == b) / 2 for a, b in duels) / len(duels)
    assert measures.roc_auc(truth, score) == pytest.approx(want)
    assert measures.roc_auc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    strict = sum(a > b for a, b in duels) / len(duels)
    assert measures.roc_auc(truth, score, "staircase") == pytest.approx(strict)
    assert measures.average_precision(truth, score) == pytest.approx(average_precision_score(truth, score))


@settings(max_examples=40)
@given(units)
def test_precision_recall_and_f1_equal_every_threshold(rows):
    truth, score = np.array([each for each, _ in rows]), np.array([float(each) for _, each in rows])
    f1s, papers = [], [0.0]
    for threshold in np.unique(score):
        called = score >= threshold
        hits = (called & truth).sum()
        f1s.append(2 * hits / (called.sum() + truth.sum()))
        tpr, tnr = hits / truth.sum(), (~called & ~truth).sum() / (~truth).sum()
        papers.append(2 * tpr * tnr / (tpr + tnr) if tpr + tnr else 0.0)
    assert measures.at_best(truth, score).f1 == pytest.approx(max(f1s))
    assert measures.paper_f1(truth, score) == pytest.approx(max(papers))


def test_at_a_size_ties_are_shared_out():
    truth, score = np.array([True, True, False, False, True]), np.array([3.0, 2.0, 2.0, 2.0, 1.0])
    found = measures.at_size(truth, score)  # three: the first, and two of the three with 2
    assert (found.n, found.precision, found.recall) == (3, pytest.approx(5 / 9), pytest.approx(5 / 9))
    assert measures.at_size(truth, score, 0) == (0, 0.0, 0.0, 0.0)
    assert measures.at_size(truth, score, 5).recall == 1


def test_areas_of_a_sweep():
    x, y = np.array([0.1, 0.4, 0.2]), np.array([0.6, 0.9, 0.5])  # the last lies below the first
    assert measures.area(x, y, "trapezoid") == pytest.approx(0.03 + 0.3 * 0.75 + 0.6 * 0.95)
    assert measures.area(x, y, "staircase") == pytest.approx(0.9 * 0.6 + 0.6 * 0.3)


def test_no_class_and_no_number():
    assert np.isnan(measures.roc_auc(np.array([True, True]), np.array([0.0, 1.0])))
    assert np.isnan(measures.average_precision(np.array([False]), np.array([0.0])))
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        measures.roc_auc(np.array([True, False]), np.array([np.nan, 1.0]))
