"""scikit-learn's own contract, then each probe against an independent computation of what it claims."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from workbench.probes import (
    SELECTORS,
    CircleProbe,
    KSparseProbe,
    LDAProbe,
    LogisticProbe,
    MeanDifferenceProbe,
    ProbeError,
    RidgeProbe,
    SVMProbe,
    control_labels,
)
from workbench.probes.controls import TokenIdentity
from workbench.probes.moments import Moments
from workbench.probes.ridge import ALPHAS, fold_errors, leave_one_out_errors, ridge_path

PROBES = [KSparseProbe(), LogisticProbe(), SVMProbe(), LDAProbe(), MeanDifferenceProbe(), RidgeProbe(), CircleProbe()]


@parametrize_with_checks(PROBES)  # no check is excepted
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def rows(n=1500, d=12, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 5
    X[:, [2, 3]] += y[:, None] * [1.5, -4]
    return X, np.where(y, "yes", "no")


@pytest.mark.parametrize("selector", SELECTORS)
def test_sparse_probe_uses_its_support_only(selector):
    X, y = rows()
    probe = KSparseProbe(k=1 if selector == "enumerate" else 2, selector=selector).fit(X, y)
    assert set(np.flatnonzero(probe.coef_[0])) == set(probe.support_)
    assert (probe.gap_ == 0) == (selector == "optimal")
    changed = X.copy()
    changed[:, np.setdiff1d(np.arange(12), probe.support_)] = 99
    np.testing.assert_array_equal(probe.decision_function(X), probe.decision_function(changed))
    assert clone(probe).get_params() == probe.get_params()


def test_sparse_probe_refit_equals_scikit_learn():
    X, y = rows()
    probe = KSparseProbe(k=3, C=0.5).fit(X, y)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    model = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10, solver="newton-cholesky")
    theirs = model.fit(Z[:, probe.support_], y)
    np.testing.assert_allclose(probe.decision_function(X), theirs.decision_function(Z[:, probe.support_]), atol=1e-7)
    np.testing.assert_allclose(probe.predict_proba(X), theirs.predict_proba(Z[:, probe.support_]), atol=1e-7)


def test_many_classes_one_against_the_rest():
    X, y = rows()
    three = np.where(X[:, 0] > 6, "high", y)
    assert OneVsRestClassifier(KSparseProbe(k=2)).fit(X, three).score(X, three) > 0.8
    with pytest.raises(ProbeError, match="OneVsRestClassifier"):
        KSparseProbe().fit(X, three)


@pytest.mark.parametrize("d", [12, 600])
def test_logistic_probe_equals_scikit_learn(d):
    X, y = rows(400, d)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-12, max_iter=5000, solver="newton-cholesky")
    theirs = model.fit(Z, y).decision_function(Z)
    np.testing.assert_allclose(
        LogisticProbe(C=0.1).fit(X, y).decision_function(X), theirs, atol=1e-5 if d < 512 else 0.01
    )


def test_lda_equals_the_formula_and_scikit_learn_without_shrinkage():
    X, y = rows(60_000, 4)
    probe = LDAProbe().fit(X, y)
    plain = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    assert probe.shrinkage_ < 0.01
    np.testing.assert_allclose(probe.decision_function(X), plain.decision_function(X), atol=0.05)
    few = LDAProbe().fit(*rows(40, 30))
    assert 0.1 < few.shrinkage_ <= 1


def test_mean_difference_is_the_difference_and_its_threshold_moves():
    X, y = rows()
    probe = MeanDifferenceProbe().fit(X, y)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    difference = Z[y == "yes"].mean(axis=0) - Z[y == "no"].mean(axis=0)
    np.testing.assert_allclose(probe.coef_[0] * X.std(axis=0), difference)

    def balanced(model):
        right = model.predict(X) == y
        return (right[y == "yes"].mean() + right[y == "no"].mean()) / 2

    probe.intercept_ = probe.intercept_ + 3
    spoilt = balanced(probe)
    scores = probe.decision_function(X)
    best = max(
        ((scores[y == "yes"] > cut).mean() + (scores[y == "no"] <= cut).mean()) / 2 for cut in np.append(scores, -99)
    )
    assert balanced(probe.tune_threshold(X, y)) == pytest.approx(best)
    assert best > spoilt


def regression(n=400, d=15, t=3, seed=0):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 20, n)
    X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d))) + 4
    Y = X @ rng.normal(size=(d, t)) + 3 * rng.normal(size=(n, t)) + rng.normal(size=(20, t))[groups]
    return X, Y, groups


def test_ridge_path_equals_scikit_learn():
    X, Y, _ = regression()
    for alpha, coef in zip(ALPHAS, ridge_path(Moments.collect([(X, Y)]), ALPHAS), strict=True):
        theirs = Ridge(alpha=alpha, solver="svd").fit(X, Y).coef_.T
        np.testing.assert_allclose(coef, theirs, rtol=1e-9, atol=1e-11)


def test_closed_form_leave_one_out_equals_refits_and_ridge_cv():
    X, Y, _ = regression(60, 5)
    errors = leave_one_out_errors(X, Y, ALPHAS)
    for row, alpha in zip(errors, ALPHAS, strict=True):
        slow = np.zeros(Y.shape[1])
        for left in range(len(X)):
            rest = np.arange(len(X)) != left
            slow += (Ridge(alpha=alpha, solver="svd").fit(X[rest], Y[rest]).predict(X[[left]])[0] - Y[left]) ** 2
        np.testing.assert_allclose(row, slow, rtol=1e-9)
    theirs = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(X, Y).alpha_
    assert [ALPHAS[best] for best in errors.argmin(axis=0)] == theirs.tolist()


def test_downdated_folds_equal_refits():
    X, Y, groups = regression()
    held_out = [held for _, held in GroupKFold(5).split(X, Y, groups)]
    folds = []
    for held in held_out:
        part = Moments.around(X[0], Y[0])
        part.add(X[held], Y[held])
        folds.append(part)
    errors = fold_errors(folds, ALPHAS)
    for row, alpha in zip(errors, ALPHAS, strict=True):
        slow = 0.0
        for held in held_out:
            rest = np.setdiff1d(np.arange(len(X)), held)
            slow = slow + (
                (Ridge(alpha=alpha, solver="svd").fit(X[rest], Y[rest]).predict(X[held]) - Y[held]) ** 2
            ).sum(0)
        np.testing.assert_allclose(row, slow, rtol=1e-9)
    probe = RidgeProbe().fit(X, Y, groups)
    assert probe.alpha_.shape == (3,)
    assert probe.predict(X).shape == Y.shape


def test_control_labels_belong_to_token_types_and_keep_the_marginal():
    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.5, 5000) % 300
    y = rng.random(5000) < 0.2
    control = control_labels(tokens, y, rng)
    assert all(len(set(control[tokens == token])) == 1 for token in np.unique(tokens))
    assert 0.1 < control.mean() < 0.35


def test_what_remembers_token_types_shows_no_selectivity():
    """Specification H: a linear probe gains over the control task, a table of token types does not."""
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(200, 32))
    tokens = rng.integers(0, 200, 8000)
    y = (embedding[tokens] @ rng.normal(size=32) > 0) ^ (rng.random(8000) < 0.02)
    control = control_labels(tokens, y, rng)
    X = embedding[tokens] + 0.5 * rng.normal(size=(8000, 32))
    train, test = slice(0, 6000), slice(6000, None)

    def linear(labels):
        return LogisticProbe(C=0.01).fit(X[train], labels[train]).score(X[test], labels[test])

    def table(labels):
        score = TokenIdentity(tokens[train], labels[train])(tokens[test])
        return ((score > 0) == labels[test]).mean()

    assert linear(y) - linear(control) > 0.1
    assert abs(table(y) - table(control)) < 0.03


def test_token_identity_gives_unseen_tokens_no_evidence():
    scores = TokenIdentity(np.array([5, 5, 9, 9, 9]), np.array([True, True, False, False, True]))
    assert scores(np.array([5]))[0] > 0 > scores(np.array([9]))[0]
    assert scores(np.array([1, 7, 100])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        (KSparseProbe(k=13), "k=13: must be between 1 and 12"),
        (KSparseProbe(k=0), "k=0"),
        (KSparseProbe(selector="best"), "no selector 'best'"),
        (KSparseProbe(C=0.0), "C=0.0: must be above 0"),
        (LogisticProbe(C=-1), "C=-1"),
        (SVMProbe(C=0), "C=0"),
    ],
)
def test_bad_settings_are_explained(probe, says):
    with pytest.raises(ProbeError, match=says):
        probe.fit(*rows())


def test_bad_alphas_are_explained():
    with pytest.raises(ProbeError, match="alphas"):
        RidgeProbe(alphas=[0.0]).fit(*regression()[:2])
