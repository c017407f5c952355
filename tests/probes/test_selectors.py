"""Planted units are found; scores and certificates equal independent computations."""

from itertools import combinations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import LinearConstraint, milp
from sklearn.feature_selection import f_classif
from sklearn.metrics import mutual_info_score

from workbench.probes import SELECTORS, ProbeError, Standardiser, balanced_weights, select_units, unit_scores
from workbench.probes.newton import fit_logistic
from workbench.probes.optimal import best_subset
from workbench.probes.selectors import mutual_information


def planted(seed, n=3000, d=256):
    """Specification H: 4 of 256 GELU-like units shifted by 1.5 at prevalence 0.1, scales e^{0.8N}, 6 copies of one."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.1
    latent = rng.normal(size=(n, d))
    truth = rng.choice(d, 10, replace=False)
    units, copies = truth[:4], truth[4:]
    latent[:, units] += 1.5 * y[:, None]
    latent[:, copies] = latent[:, [units[0]]] + 0.3 * rng.normal(size=(n, 6))
    X = latent / (1 + np.exp(-1.702 * latent)) * np.exp(0.8 * rng.normal(size=d))
    return X, y, set(units), set(copies)


@pytest.mark.parametrize(
    ("selector", "least"),
    [("forward", 4), ("logistic_l2", 3), ("adaptive", 3), ("logistic_l1", 3), ("mutual_information", 1)],
)
def test_planted_units_are_found(selector, least):
    X, y, units, _ = planted(0)
    scaler = Standardiser.fit(X)
    chosen = select_units(scaler(X), y, [4], selector, scale=scaler.scale)[4]
    assert len(set(chosen.tolist()) & units) >= least


def test_shuffled_labels_find_planted_units_no_more():
    X, y, units, _ = planted(0)
    y = np.random.default_rng(1).permutation(y)
    for selector in ("forward", "standardised"):
        assert len(set(select_units(Standardiser.fit(X)(X), y, [4], selector)[4].tolist()) & units) <= 1


def test_standardised_difference_ranks_as_f_and_ignores_scale():
    X, y, _, _ = planted(1)
    scaler = Standardiser.fit(X)
    ours = np.argsort(-unit_scores(scaler(X), y), kind="stable")
    assert (ours == np.argsort(-f_classif(X, y)[0], kind="stable")).all()
    raw = unit_scores(scaler(X), y, "mean_difference", scaler.scale)
    np.testing.assert_allclose(raw, np.abs(X[y].mean(axis=0) - X[~y].mean(axis=0)), rtol=1e-9)


def test_mutual_information_equals_scikit_learn_and_sees_what_is_not_monotone():
    rng = np.random.default_rng(2)
    y = rng.random(3000) < 0.5
    X = rng.normal(size=(3000, 3))
    X[:, 1] *= np.where(y, 3, 0.3)  # equal means
    X[:, 2] += 0.3 * y
    scores = mutual_information(X, y[:, None].astype(float))[0]
    edges = np.quantile(X[:, 1], np.linspace(0, 1, 33)[1:-1])
    assert scores[1] == pytest.approx(mutual_info_score(y, np.searchsorted(edges, X[:, 1], "right")) / np.log(2))
    assert select_units(X, y, [1], "mutual_information")[1].tolist() == [1]
    assert select_units(X / X.std(axis=0), y, [1], "standardised")[1].tolist() == [2]
    assert scores[0] < 0.02


@pytest.mark.parametrize("selector", SELECTORS)
def test_sparse_columns_choose_as_dense_ones_do(selector):
    X, y, _, _ = planted(3, n=1200, d=40)
    X = np.maximum(X, 0)
    X /= X.std(axis=0)
    ks = [1] if selector == "enumerate" else [1, 3]
    dense = select_units(X, y, ks, selector)
    sparse = select_units(sp.csc_matrix(X), y, ks, selector)
    for k in ks:
        assert len(set(dense[k].tolist())) == k
        assert dense[k].tolist() == sparse[k].tolist()


def test_one_unit_by_enumeration_is_the_best_single_fit():
    X, y, _, _ = planted(4, n=1000, d=40)
    Z = Standardiser.fit(X)(X)
    losses = [fit_logistic(Z[:, [unit]], y, balanced_weights(y)).loss for unit in range(40)]
    assert select_units(Z, y, [1], "enumerate")[1].tolist() == [np.argmin(losses)]


def small(seed=0, n=200, d=16):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))
    y = X @ rng.normal(size=d) + rng.normal(size=n) > 0
    return Standardiser.fit(X)(X), y, balanced_weights(y)


def squared_loss(X, y, weights, units, ridge=1e-6):
    """Weighted ridge by plain augmented least squares."""
    share = weights / weights.sum()
    target = np.where(y, 1.0, -1.0) - share @ np.where(y, 1.0, -1.0)
    kept = (X - share @ X)[:, units]
    root = np.sqrt(share)
    design = np.concatenate([kept * root[:, None], np.sqrt(ridge) * np.eye(len(units))])
    aim = np.concatenate([target * root, np.zeros(len(units))])
    coef = np.linalg.lstsq(design, aim, rcond=None)[0]
    return float(((aim - design @ coef) ** 2).sum() / (share @ target**2))


@pytest.mark.parametrize("seed", [0, 1])
def test_branch_and_bound_equals_enumeration(seed):
    X, y, weights = small(seed)
    found = best_subset(X, y, weights, 3)
    best = min(combinations(range(16), 3), key=lambda units: squared_loss(X, y, weights, list(units)))
    assert found.certified
    assert sorted(found.support.tolist()) == sorted(best)
    assert found.loss == pytest.approx(squared_loss(X, y, weights, list(best)), rel=1e-9)
    assert found.bound <= found.loss


def test_branch_and_bound_equals_cutting_planes():
    """The same problem as a mixed-integer program: cuts `c(s) ≥ c(s') + g·(s − s')` until the bounds meet."""
    X, y, weights = small(2, n=60, d=8)
    ridge, k = 1e-1, 3
    share = weights / weights.sum()
    target = np.where(y, 1.0, -1.0) - share @ np.where(y, 1.0, -1.0)
    rows = (X - share @ X) * np.sqrt(share)[:, None]
    aim = target * np.sqrt(share)
    cuts, best = [], np.inf
    chosen = np.zeros(8)
    chosen[:k] = 1
    for _ in range(200):
        dual = np.linalg.solve(np.eye(len(aim)) + rows @ np.diag(chosen) @ rows.T / ridge, aim)
        value, slope = float(aim @ dual), -((rows.T @ dual) ** 2) / ridge
        best = min(best, value)
        cuts.append((np.append(slope, -1.0), slope @ chosen - value))
        exactly_k = LinearConstraint(np.append(np.ones(8), 0.0), k, k)
        below = [LinearConstraint(row, -np.inf, limit) for row, limit in cuts]
        program = milp(
            np.append(np.zeros(8), 1.0),
            integrality=np.append(np.ones(8), 0),
            constraints=[exactly_k, *below],
            bounds=(np.zeros(9), np.append(np.ones(8), np.inf)),
        )
        chosen = np.round(program.x[:8])
        if program.fun >= best - 1e-7:
            break
    found = best_subset(X, y, weights, k, ridge=ridge)
    assert found.loss == pytest.approx(best / (share @ target**2), rel=1e-5)


def test_planted_subset_is_certified_in_few_nodes():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(3000, 60))
    truth = [3, 17, 20, 41, 55]
    y = X[:, truth].sum(axis=1) + 0.5 * rng.normal(size=3000) > 0
    found = best_subset(X, y, balanced_weights(y), 5)
    assert sorted(found.support.tolist()) == truth
    assert found.certified
    assert found.n_nodes <= 8


def test_giving_up_reports_the_gap():
    X, y, weights = small(6, n=60, d=16)
    found = best_subset(X, y, weights, 5, max_nodes=2)
    assert not found.certified
    exact = best_subset(X, y, weights, 5)
    assert exact.certified
    assert found.bound <= exact.loss <= found.loss


@pytest.mark.parametrize(
    ("ks", "selector", "says"),
    [
        ([0], "standardised", "k=0: must be between 1 and 5"),
        ([6], "forward", "k=6: must be between 1 and 5"),
        ([2], "enumerate", "at most 1 units"),
        ([1], "saga", "no selector 'saga'"),
    ],
)
def test_bad_input_is_explained(ks, selector, says):
    with pytest.raises(ProbeError, match=says):
        select_units(np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 2 == 0, ks, selector)
