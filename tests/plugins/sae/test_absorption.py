"""Absorption and splitting on planted features: found where they are, not where they are not; against a naive loop."""

import numpy as np
import pytest
import scipy.sparse as sp

from workbench.plugins.sae.absorption import (
    ABSORBERS,
    ALIGNED,
    ALIGNED_PART,
    SHARE,
    absorbed,
    main_latents,
    numbers_of_main,
    partly,
)
from workbench.plugins.sae.questions import Question
from workbench.plugins.sae.readouts import chosen_latents, dense_probe, sparse_probes
from workbench.probes import evaluate

ROWS, WIDTH = 3000, 20


def planted(absorbing, *, split=False, seed=0):
    """Rows with a parent feature, a child that implies it, and noise features; and the codes of a dictionary of them.

    The parent latent stands for the parent. Where `absorbing`, it is silent wherever the child is, and the child's
    decoder carries the parent's direction too. With `split`, two latents share the parent's rows.
    """
    rng = np.random.default_rng(seed)
    features = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    parent = rng.random(ROWS) < 0.3
    child = parent & (rng.random(ROWS) < 0.03)  # too rare to count as a part of a split feature
    noise = (rng.random((ROWS, 6)) < 0.2) * (0.5 + rng.random((ROWS, 6)))
    x = np.outer(parent, 2 * features[0]) + np.outer(child, 2 * features[1]) + noise @ features[2:8]
    W_dec = features[:8].copy()
    codes = np.concatenate([np.stack([2.0 * parent, 2.0 * child], 1), noise], 1)
    if absorbing:
        codes[child, 0] = 0
        W_dec[1] = features[0] + features[1]  # one unit of the child's latent brings the parent along
    if split:
        half = rng.random(ROWS) < 0.5
        codes = np.concatenate([codes, (codes[:, 0] * half)[:, None]], 1)
        codes[half, 0] = 0
        W_dec = np.concatenate([W_dec, W_dec[:1]])
    order = rng.permutation(len(W_dec))
    numbers = {"parent": int(np.flatnonzero(order == 0)[0]), "child": int(np.flatnonzero(order == 1)[0])}
    if split:
        numbers["other half"] = int(np.flatnonzero(order == len(W_dec) - 1)[0])
    sparse = sp.csr_matrix(codes[:, order].astype(np.float32))
    return x.astype(np.float32), sparse, W_dec[order].astype(np.float32), parent, child, numbers


def question_of(y):
    half = np.arange(ROWS // 2)
    return Question("parent", half, half, y[: ROWS // 2], y[ROWS // 2 :])


def measure(x, codes, W_dec, y):
    half = ROWS // 2
    question = question_of(y)
    dense = dense_probe(question, x[:half], x[half:])
    sparse = sparse_probes(question, codes[:half], codes[half:])
    main = main_latents(sparse.latents, sparse.f1)
    found = absorbed(
        codes[half:], x[half:], question.y_test, dense.score, dense.direction, main, W_dec, np.zeros(WIDTH, np.float32)
    )
    return main, found, dense


def test_absorption_is_found_where_it_is_planted():
    x, codes, W_dec, parent, child, numbers = planted(absorbing=True)
    main, found, _ = measure(x, codes, W_dec, parent)
    assert main == [numbers["parent"]]
    on_child = child[ROWS // 2 :][found.rows]
    assert on_child.sum() > 5
    np.testing.assert_array_equal(found.full, on_child)
    assert found.fraction[on_child].min() > 0.9
    assert found.fraction[~on_child].max() < 0.1


def test_no_absorption_is_found_where_the_parents_latent_is_always_active():
    """Negative control: the same features, each with a latent of its own that is active whenever it is there."""
    x, codes, W_dec, parent, _, numbers = planted(absorbing=False)
    main, found, _ = measure(x, codes, W_dec, parent)
    assert main == [numbers["parent"]]
    assert len(found.rows) > 300
    assert not found.full.any()
    assert found.fraction.max() == 0


def test_a_feature_that_two_latents_share_is_split_in_two():
    x, codes, W_dec, parent, _, numbers = planted(absorbing=False, split=True)
    main, found, _ = measure(x, codes, W_dec, parent)
    assert set(main) == {numbers["parent"], numbers["other half"]}
    assert not found.full.any()


def test_permuted_labels_leave_nothing_to_read():
    _, codes, _, parent, _, _ = planted(absorbing=False)
    question = question_of(parent)
    rng = np.random.default_rng(1)
    half = ROWS // 2
    aucs = []
    for _ in range(10):
        permuted = Question("permuted", question.fit, question.test, rng.permutation(question.y_fit), question.y_test)
        score = sparse_probes(permuted, codes[:half], codes[half:], most=1).score(1)
        positive, negative = score[question.y_test], score[~question.y_test]
        aucs.append((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2)
    assert abs(np.mean(aucs) - 0.5) < 0.25
    true = sparse_probes(question, codes[:half], codes[half:], most=1).score(1)
    assert ((true > 0) == question.y_test).mean() > 0.99


def naive(codes, x, y, score, direction, main, W_dec, b_dec):
    """The criteria of SAEBench row by row, with dense codes."""
    unit = direction / np.linalg.norm(direction)
    cosine = W_dec @ unit / np.linalg.norm(W_dec, axis=1)
    full, fraction = [], []
    for row in np.flatnonzero(y & (score > 0)):
        parts = codes[row] * (W_dec @ unit)
        projection = (x[row] - b_dec) @ unit
        top = int(np.where(codes[row] > 0, parts, -np.inf).argmax())
        silent = not codes[row, main].any()
        carries = parts[top] >= SHARE * projection and projection > 0 and codes[row].any()
        full.append(bool(silent and cosine[top] >= ALIGNED and carries))
        able = [parts[j] for j in range(len(parts)) if j not in main and cosine[j] >= ALIGNED_PART and parts[j] > 0]
        total, own = sum(sorted(able)[-ABSORBERS:]), parts[main].sum()
        if own >= projection or total < SHARE * projection:
            fraction.append(0.0)
        elif own <= 0:
            fraction.append(1.0)
        else:
            share = min(total, projection - own)
            fraction.append(share / (share + own))
    return np.array(full), np.array(fraction)


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    codes = np.maximum(rng.normal(size=(200, 30)) - 1, 0)
    W_dec, b_dec, direction = rng.normal(size=(30, 8)), rng.normal(size=8), rng.normal(size=8)
    x = codes @ W_dec + b_dec + 0.3 * rng.normal(size=(200, 8))
    y, score, main = rng.random(200) < 0.7, rng.normal(size=200) + 1, [3, 17]
    found = absorbed(sp.csr_matrix(codes), x, y, score, direction, main, W_dec, b_dec)
    full, fraction = naive(codes, x, y, score, direction, main, W_dec, b_dec)
    np.testing.assert_array_equal(found.full, full)
    np.testing.assert_allclose(found.fraction, fraction)
    assert 0 < full.mean() < 1
    assert 0 < fraction.mean() < 1


def test_latents_are_added_while_the_score_rises():
    assert main_latents([5, 6, 7], [0.5, 0.6, 0.62]) == [5, 6]
    assert main_latents([5, 6, 7], [0.5, 0.5, 0.9]) == [5]
    assert main_latents([], []) == []
    assert partly(0.5, 2.0, 1.0) == 0
    assert partly(0.5, 0.0, 1.0) == 1
    assert partly(0.5, 0.5, 1.0) == 0.5


def test_splitting_is_counted_anew_in_every_resample_of_documents():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(12, size=600))
    y = rng.random(600) < 0.4
    part = rng.random(600) < 0.5 + 0.45 * (groups % 2)  # in half of the documents one latent has nearly all of it
    first, both = (np.where(y & keep, 1.0, -1.0) for keep in (part, rng.random(600) < 0.97))
    scores = [first, both, both + 0.1]
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=200).astype(float)
    want = []
    for weight in weights:
        rows = np.repeat(np.arange(600), weight[groups].astype(int))
        f1 = [evaluate(y[rows], score[rows])["f1"] for score in scores]
        want.append(len(main_latents([0, 1, 2], f1)))
    got = numbers_of_main(scores, y, groups, weights)
    assert got.tolist() == want
    assert {1.0, 2.0} >= set(got.tolist())
    alone = numbers_of_main([both], y, groups, weights)  # negative control: nothing to split
    assert set(alone.tolist()) == {1.0}
    assert numbers_of_main([], y, groups, weights).tolist() == [0.0] * 200


def test_only_latents_that_speak_for_a_yes_are_chosen():
    rng = np.random.default_rng(0)
    y = rng.random(500) < 0.4
    codes = np.zeros((500, 3))
    codes[:, 0] = ~y * rng.random(500)  # tells no
    codes[:, 1] = y * (rng.random(500) < 0.6)
    chosen, fits = chosen_latents(sp.csc_matrix(codes), y, 3)
    assert chosen == [1]
    assert len(fits) == 1
    nothing = sparse_probes(
        Question("q", np.arange(500), np.arange(500), y, y), sp.csr_matrix((500, 3)), sp.csr_matrix((500, 3))
    )
    assert nothing.score(1) is None
