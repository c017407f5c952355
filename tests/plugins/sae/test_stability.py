"""Matching latents of two trainings: known permutations, an exhaustive search, and unrelated directions."""

from itertools import permutations

import numpy as np
import torch

from workbench.plugins.sae.stability import FOUND, greedy, matched_cosines


def directions(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_the_same_directions_in_another_order_and_length_match_fully():
    a = directions(40, 16, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(matched_cosines(a, 3 * a[order]), 1, atol=1e-6)
    np.testing.assert_allclose(matched_cosines(a[:7], a[order]), 1, atol=1e-6)
    np.testing.assert_allclose(greedy(np.eye(5)[[3, 1, 0, 4, 2]]), 1)


def test_the_matching_is_the_best_of_all():
    for seed in range(5):
        a, b = directions(6, 4, seed), directions(6, 4, seed + 100)
        cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
        best = max(
            sum(float(cosine[row, column]) for row, column in enumerate(each)) for each in permutations(range(6))
        )
        assert (
            matched_cosines(a, b).sum() == np.float64(best).round(9) or abs(matched_cosines(a, b).sum() - best) < 1e-5
        )
        assert greedy(cosine.double().numpy()).sum() <= best + 1e-6


def test_half_of_them_shared_is_half_of_them_found():
    a, b = directions(60, 32, 0), directions(60, 32, 1)
    b[:30] = a[:30]
    assert 0.5 <= (matched_cosines(a, b) > FOUND).mean() < 0.6


def test_unrelated_directions_are_not_found():
    """Negative control."""
    cosines = matched_cosines(directions(200, 64, 0), directions(200, 64, 1))
    assert cosines.mean() < 0.4
    assert (cosines > FOUND).mean() == 0


def test_large_dictionaries_are_matched_pair_by_pair(monkeypatch):
    monkeypatch.setattr("workbench.plugins.sae.stability.EXACT_UP_TO", 10)
    a = directions(40, 16, 0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(matched_cosines(a, a[order]), 1, atol=1e-6)
    cosine = np.array([[0.9, 0.8], [0.85, 0.1]])
    np.testing.assert_allclose(greedy(cosine), [0.9, 0.1])
