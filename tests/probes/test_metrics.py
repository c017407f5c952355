"""Every metric equals scikit-learn's; floors are what a blind probe gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from workbench.probes import METRICS, ProbeError, evaluate, floor


def by_scikit_learn(y, score):
    yes = score > 0
    weights = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    probability = 1 / (1 + np.exp(-score))
    return {
        "auc": reference.roc_auc_score(y, score),
        "average_precision": reference.average_precision_score(y, score),
        "f1": reference.f1_score(y, yes, zero_division=0),
        "mcc": reference.matthews_corrcoef(y, yes),
        "balanced_accuracy": reference.balanced_accuracy_score(y, yes),
        "log_loss": reference.log_loss(y, probability, sample_weight=weights) / np.log(2),
    }


@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_equal_to_scikit_learn(n, seed, tied):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    y[:2] = False, True
    score = rng.normal(size=n) + y
    if tied:
        score = np.round(score)
    ours, theirs = evaluate(y, score), by_scikit_learn(y, score)
    assert list(ours) == list(METRICS)
    for metric in METRICS:
        assert ours[metric] == pytest.approx(theirs[metric], abs=1e-9), metric


def test_floors_are_those_of_a_probe_that_does_not_look():
    y = np.random.default_rng(0).random(200_000) < 0.07
    prevalence = float(y.mean())
    yes = evaluate(y, np.full(len(y), 1e-12))
    for metric in METRICS:
        assert yes[metric] == pytest.approx(floor(metric, prevalence), abs=1e-9), metric
    noise = evaluate(y, np.random.default_rng(1).normal(size=len(y)))
    for metric in ("auc", "average_precision", "balanced_accuracy", "mcc"):
        assert noise[metric] == pytest.approx(floor(metric, prevalence), abs=0.01), metric


def test_one_class_gives_nan_where_there_is_no_answer():
    values = evaluate(np.array([True, True]), np.array([1.0, -1.0]))
    assert np.isnan([values[metric] for metric in ("auc", "balanced_accuracy", "log_loss")]).all()
    assert values["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("y", "score"), [([], []), ([True, False], [np.nan, 0.0]), ([True], [0.0, 1.0])], ids=["none", "nan", "shapes"]
)
def test_bad_input_is_explained(y, score):
    with pytest.raises(ProbeError):
        evaluate(np.array(y, dtype=bool), np.array(score))


def test_unknown_metric():
    with pytest.raises(ProbeError, match="no metric 'accuracy'"):
        floor("accuracy", 0.5)
