"""Newton, lasso and streamed fits equal scikit-learn's; moments survive what float32 does not."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from workbench.probes import ProbeError, Standardiser, balanced_weights
from workbench.probes.lasso import fit_lasso
from workbench.probes.moments import ClassMoments, Moments
from workbench.probes.newton import fit_logistic
from workbench.probes.streamed import balanced_label_weights, fit_streamed


def rows(n=2000, k=8, seed=0, prevalence=0.2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, k)) @ (np.eye(k) + 0.3 * rng.normal(size=(k, k)))
    logit = X @ rng.normal(size=k) - np.log(1 / prevalence - 1)
    return X, rng.random(n) < 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize(("n", "k", "C"), [(2000, 8, 1.0), (500, 1, 1e-3), (300, 32, 100.0), (20_000, 32, 1.0)])
def test_newton_equals_scikit_learn(n, k, C):
    X, y = rows(n, k)
    fit = fit_logistic(X, y, balanced_weights(y), C)
    theirs = LogisticRegression(C=C, class_weight="balanced", tol=1e-12, max_iter=5000, solver="newton-cholesky").fit(
        X, y
    )
    assert fit.converged
    np.testing.assert_allclose(fit.coef, theirs.coef_[0], atol=1e-7)
    assert fit.intercept == pytest.approx(theirs.intercept_[0], abs=1e-7)


def test_newton_in_float32_and_from_a_neighbour():
    X, y = rows()
    weights = balanced_weights(y)
    exact = fit_logistic(X, y, weights, 1.0)
    single = fit_logistic(X.astype(np.float32), y, weights, 1.0)
    assert single.converged
    np.testing.assert_allclose(single.coef, exact.coef, atol=1e-4)
    near = fit_logistic(X, y, weights, 2.0, start=exact)
    assert near.n_iter < fit_logistic(X, y, weights, 2.0).n_iter


def test_newton_ends_on_separable_rows():
    X = np.linspace(-1, 1, 40)[:, None]
    y = X[:, 0] > 0
    fit = fit_logistic(X, y, balanced_weights(y), 1e6)
    assert fit.converged
    assert ((fit(X) > 0) == y).all()


def test_lasso_meets_its_optimality_conditions():
    """At the minimum the smooth gradient is ±1/C on the coefficients that are kept and smaller elsewhere."""
    X, y = rows(1500, 20, prevalence=0.4)
    X = Standardiser.fit(X)(X)
    weights = balanced_weights(y)
    C = 0.01
    coef = fit_lasso(X, y, weights, C, tol=1e-9)
    offset = X @ coef
    intercept = 0.0
    for _ in range(50):  # the free intercept, by one-dimensional Newton
        p = 1 / (1 + np.exp(-(offset + intercept)))
        intercept -= (weights @ (p - y)) / (weights @ (p * (1 - p)))
    gradient = X.T @ (weights * (1 / (1 + np.exp(-(offset + intercept))) - y))
    kept = coef != 0
    assert 0 < kept.sum() < 20
    np.testing.assert_allclose(gradient[kept], -np.sign(coef[kept]) / C, rtol=1e-3)
    assert (np.abs(gradient[~kept]) <= 1 / C * (1 + 1e-3)).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_streamed_labels_equal_one_fit_each(sparse):
    X, first = rows(1200, 10, seed=3)
    X = np.where(np.abs(X) < 0.8, 0, X) if sparse else X
    second = X[:, 0] + np.random.default_rng(0).normal(size=1200) > 0
    Y = np.column_stack([first, second])
    defined = np.ones_like(Y)
    defined[:300, 1] = False  # the second label is unknown there
    weights = balanced_label_weights(Y, defined)
    matrix = sp.csr_matrix(X) if sparse else X

    def chunks():
        for start in range(0, 1200, 500):
            at = slice(start, start + 500)
            yield matrix[at], Y[at].astype(float), weights[at]

    fit = fit_streamed(chunks, np.array([1.0, 0.1]), tol=1e-9, max_iter=500)
    for label, C in enumerate([1.0, 0.1]):
        at = defined[:, label]
        alone = fit_logistic(X[at], Y[at, label], balanced_weights(Y[at, label]), C)
        np.testing.assert_allclose(fit.coef[:, label], alone.coef, atol=1e-5)
        assert fit.intercept[label] == pytest.approx(alone.intercept, abs=1e-5)
    assert fit(matrix).shape == (1200, 2)
    faster = fit_streamed(chunks, np.array([1.0, 0.1]), gram=X.T @ X / 1200, tol=1e-9, max_iter=500)
    np.testing.assert_allclose(faster.coef, fit.coef, atol=1e-5)
    assert faster.n_iter < fit.n_iter


def test_moments_join_part_and_survive_a_large_mean():
    rng = np.random.default_rng(0)
    X = (300 + rng.normal(size=(4000, 6)) * [1e-3, 0.1, 1, 1, 1, 1]).astype(np.float32)
    Y = rng.normal(size=(4000, 2))
    whole = Moments.collect((X[at : at + 700], Y[at : at + 700]) for at in range(0, 4000, 700))
    exact = X.astype(np.float64)
    np.testing.assert_allclose(np.diag(whole.gram) / 4000, exact.var(axis=0), rtol=1e-8)
    np.testing.assert_allclose(whole.cross, (exact - exact.mean(0)).T @ Y, rtol=1e-7, atol=1e-9)
    naive = (np.square(X).mean(axis=0) - X.mean(axis=0) ** 2)[0]
    assert abs(naive - exact.var(axis=0)[0]) > 50 * exact.var(axis=0)[0]  # the control: float32 around zero
    part = Moments.around(whole.x_shift, whole.y_shift)
    part.add(X[:1000], Y[:1000])
    rest = whole - part
    assert rest.n == 3000
    np.testing.assert_allclose(rest.x_mean, exact[1000:].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose((rest + part).target_squares, whole.target_squares)


@pytest.mark.parametrize("sparse", [False, True])
def test_class_moments_of_many_labels(sparse):
    rng = np.random.default_rng(1)
    X = np.maximum(rng.normal(size=(900, 5)), 0) if sparse else 50 + rng.normal(size=(900, 5))
    X[:, 4] = 0 if sparse else 7
    Y = rng.random((900, 2)) < [0.2, 0.6]
    mask = rng.random((900, 2)) < 0.8
    matrix = sp.csr_matrix(X) if sparse else X
    chunks = ((matrix[at : at + 400], Y[at : at + 400], mask[at : at + 400]) for at in range(0, 900, 400))
    moments = ClassMoments.collect(chunks, 2)
    for label in range(2):
        known = mask[:, label]
        for value in (0, 1):
            members = X[known & (Y[:, label] == value)]
            assert moments.n[value, label] == len(members)
            np.testing.assert_allclose(moments.mean[value, label], members.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(moments.variance[value, label], members.var(axis=0), rtol=1e-9, atol=1e-12)
        scaler = moments.standardiser(label)
        np.testing.assert_allclose(scaler.scale[:4], X[known].std(axis=0)[:4], rtol=1e-9)
        assert scaler.constant.tolist() == [False] * 4 + [True]


def test_standardiser_drops_constants_and_floors_tiny_scales():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 5)) * [1, 1, 1, 1e-12, 0] + 3
    scaler = Standardiser.fit(X)
    assert scaler.constant.tolist() == [False, False, False, False, True]
    assert scaler.scale[3] == pytest.approx(1e-6 * np.median(X.std(axis=0)[:4]))
    Z = scaler(X)
    assert (Z[:, 4] == 0).all()
    np.testing.assert_allclose(Z[:, :3].std(axis=0), 1)
    np.testing.assert_array_equal(scaler(X[:, [2, 4]], np.array([2, 4])), Z[:, [2, 4]])


@pytest.mark.parametrize("y", [np.ones(4, bool), np.zeros(4, bool)])
def test_one_class_is_refused(y):
    with pytest.raises(ProbeError, match="both classes"):
        balanced_weights(y)
