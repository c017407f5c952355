"""Texts, directions, names and masks: against independent computations and planted truth."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from sklearn.metrics import average_precision_score, roc_auc_score

from workbench.plugins.second_order.matching import centred_texts, match
from workbench.plugins.second_order.naming import agreement, named_concepts, renamings, selectivity
from workbench.plugins.second_order.neurons import describe_block, n_terms
from workbench.plugins.second_order.pool import named_by
from workbench.plugins.second_order.sample import Concept
from workbench.plugins.second_order.scoring import (
    THRESHOLDS,
    average_precision,
    enlarged,
    mean_iou,
    overlaps,
    pixel_accuracy,
)


def noise(*shape, seed=0):
    """Return seeded noise in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("terms", [1, 4, 11])
def test_matching_pursuit_is_scikit_learns(terms):
    texts, directions = centred_texts(noise(40, 12)), noise(7, 12, seed=1)
    found = match(directions, texts, terms)
    want = orthogonal_mp(texts.numpy().T, directions.numpy().T, n_nonzero_coefs=terms).T
    got = np.zeros_like(want)
    np.put_along_axis(got, found.texts.numpy(), found.coefficients.numpy(), axis=1)
    np.testing.assert_allclose(got, want, atol=1e-10)
    assert (found.coefficients.abs().diff(dim=1) <= 0).all()
    left = (directions - torch.from_numpy(want) @ texts).pow(2).sum(1) / directions.pow(2).sum(1)
    torch.testing.assert_close(found.explained, 1 - left)


def test_matching_pursuit_finds_what_was_planted_and_no_more():
    texts = centred_texts(noise(30, 16))
    planted = torch.stack([0.9 * texts[3] - 0.4 * texts[8], texts[5], torch.zeros(16, dtype=torch.float64)])
    found = match(planted, texts, 4)
    assert found.texts.tolist() == [[3, 8, -1, -1], [5, -1, -1, -1], [-1, -1, -1, -1]]
    torch.testing.assert_close(found.coefficients[0, :2], torch.tensor([0.9, -0.4], dtype=torch.float64))
    same = centred_texts(torch.cat([noise(5, 3), noise(5, 3)]))  # each text twice, fewer dimensions than terms
    assert (match(noise(2, 3, seed=4), same, 9).coefficients.abs() < 1e3).all()


def test_centred_texts_have_no_common_part():
    texts = noise(9, 5) + 7
    got = centred_texts(texts)
    np.testing.assert_allclose(got.norm(dim=1), 1)
    want = texts - texts.mean(0)
    np.testing.assert_allclose((got * want).sum(1), want.norm(dim=1))
    assert (centred_texts(torch.ones(3, 4)) == 0).all()
    assert [n_terms(None, 64), n_terms(None, 512), n_terms(None, 6), n_terms(40, 64)] == [8, 32, 1, 40]


def test_directions_are_those_of_a_plain_loop():
    effects, fit, test = noise(5, 30, 6), torch.arange(0, 20), torch.arange(20, 30)
    effects[4] = 0  # a neuron without effect
    kept = torch.zeros(4, 10, 6, dtype=torch.float64)
    pool = centred_texts(noise(12, 6, seed=2))
    got = describe_block(effects.clone(), fit, test, 8, pool, 6, kept)
    want = np.zeros((4, 10, 6))
    for neuron, values in enumerate(effects.numpy()):
        moved = values - values[:20].mean(0)
        length = np.linalg.norm(moved, axis=1)
        top = np.argsort(-length[:20])[:8]
        _, singular, rows = np.linalg.svd(moved[top])
        along = moved[top] @ rows[0]
        direction = rows[0] * np.sign(np.sign(along).sum() or along.sum())
        if neuron == 4:
            direction = np.zeros(6)
        else:
            assert got["rank_one"][neuron] == pytest.approx(singular[0] ** 2 / (singular**2).sum())
            ordered = np.sort(length[:20] ** 2)[::-1].cumsum()
            assert got["held_by"][neuron] == (np.argmax(ordered >= 0.9 * ordered[-1]) + 1) / 20
        np.testing.assert_allclose(got["direction"][neuron], direction, atol=1e-8)
        np.testing.assert_allclose(got["response"][neuron], moved @ direction, atol=1e-8)
        assert got["spread"][neuron] == pytest.approx(np.sqrt((length[:20] ** 2).mean()))
        large = (length[20:] > length[top[-1]])[:, None]
        for row, part in enumerate(
            (moved[20:] * large, moved[20:] * ~large, np.outer(moved[20:] @ direction, direction))
        ):
            want[row] += part
    np.testing.assert_allclose(kept[:3], want[:3], atol=1e-8)
    np.testing.assert_allclose(kept[3], want[2], atol=1e-6)  # six texts explain any direction of six dimensions


def test_selectivity_is_the_area_under_the_curve_and_leaves_out_what_is_undefined():
    rng = np.random.default_rng(0)
    response = np.round(rng.normal(size=(60, 4)), 1)  # with ties
    has = (rng.random((60, 3)) < 0.4).astype(float)
    has[:10, 1:] = np.nan
    has[:, 2] = np.where(np.isnan(has[:, 2]), np.nan, 1)  # nobody is without it
    found = selectivity(response, has)
    for neuron in range(4):
        assert found.auc[neuron, 0] == pytest.approx(roc_auc_score(has[:, 0], response[:, neuron]))
        assert found.auc[neuron, 1] == pytest.approx(roc_auc_score(has[10:, 1], response[10:, neuron]))
    assert (found.auc[:, 2] == 0.5).all()
    assert (found.value == found.auc.max(1)).all()


def test_names_come_from_signed_terms_and_agreement_from_more_than_chance():
    names = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    texts = np.array([[1, 0, 3], [2, 1, -1], [3, 0, -1], [3, 3, -1]])
    weights = np.array([[-0.9, 0.2, 0.1], [0.9, 0.4, 0.0], [0.8, -0.7, 0.0], [0.5, 0.2, 0.0]])
    assert named_concepts(texts, weights, names, 3).tolist() == [0, 0, -1, -1]
    rng = np.random.default_rng(0)
    concept = rng.integers(0, 8, 50)
    right = np.where(rng.random(50) < 0.6, concept, rng.integers(0, 8, 50))
    planted = agreement(right, concept, [8], 2000, 200, rng)
    assert planted.p < 0.001
    assert planted.share.lo > 0.45
    assert planted.chance == pytest.approx(1 / 8, abs=0.05)
    # a name that all neurons are given is no agreement, however many are selective for it
    same = agreement(np.zeros(50, int), np.where(rng.random(50) < 0.8, 0, 1), [8], 500, 200, rng)
    assert same.p > 0.05
    assert agreement(rng.integers(0, 8, 50), concept, [8], 500, 200, rng).p > 0.01
    assert agreement(np.full(50, -1), concept, [8], 100, 20, rng)[1:] == (0, 1)  # no neuron's texts name anything


def test_agreement_by_luck_is_as_rare_as_its_p_value_says_when_neurons_come_in_groups():
    rng = np.random.default_rng(1)
    p = []
    for _ in range(200):
        group = rng.integers(0, 6, 50)  # neurons of a group write along one direction: one name, one concept
        named, concept = rng.integers(0, 12, (2, 6))
        p.append(agreement(named[group], concept[group], [4, 8], 300, 2, rng).p)
    assert np.mean(np.array(p) < 0.05) < 0.1


def test_concepts_are_renamed_within_their_label_and_lone_ones_among_each_other():
    found = renamings([3, 1, 2, 1], 400, np.random.default_rng(0))
    assert {tuple(row) for row in found[:, :3]} == set(itertools.permutations(range(3)))
    assert {tuple(row) for row in found[:, [3, 6]]} == {(3, 6), (6, 3)}
    assert {tuple(row) for row in found[:, 4:6]} == {(4, 5), (5, 4)}


def test_texts_name_the_longest_category_they_contain():
    concepts = [Concept("place", each, ()) for each in ("top", "top left", "ring")]
    texts = ["a star at the top left", "the top of it", "rings", "string", "TOP"]
    assert named_by(texts, concepts).astype(int).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_overlap_of_a_map_and_a_mask():
    rng = np.random.default_rng(0)
    counts, weights = [], np.array([[1.0, 1, 1], [0, 2, 1]])
    masks, maps = rng.random((3, 9, 7)) < 0.3, rng.normal(size=(3, 9, 7))
    for values, mask in zip(maps, masks, strict=True):
        counts.append(overlaps(values, mask))
        want = (
            average_precision_score(mask.ravel(), values.ravel())
            + average_precision_score(~mask.ravel(), -values.ravel())
        ) / 2
        assert average_precision(values, mask) == pytest.approx(want)
    for at, threshold in enumerate(THRESHOLDS):
        said = np.stack([(m - m.mean()) / m.std() > threshold for m in maps])
        for draw, images in enumerate(([0, 1, 2], [1, 1, 2])):
            s, t = said[images], masks[images]
            iou = [(a & b).sum() / (a | b).sum() for a, b in ((~s, ~t), (s, t))]
            chosen = np.stack(counts)[:, at]
            assert mean_iou(chosen, weights)[draw] == pytest.approx(np.mean(iou))
            assert pixel_accuracy(chosen, weights)[draw] == pytest.approx((s == t).mean())


def test_maps_are_enlarged_and_what_no_patch_sees_repeats_the_edge():
    got = enlarged(np.arange(4.0, dtype=np.float32), [2, 2], (3, 3), (7, 8))
    assert got.shape == (7, 8)
    assert (got[0, 0], got[5, 5]) == (0, 3)
    assert (got[6] == got[5]).all()
    assert (got[:, 7] == got[:, 5]).all()
