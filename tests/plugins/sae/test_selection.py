"""The best of a whole batch, against the full matrix."""

import pytest
import torch

from workbench.plugins.sae.selection import batch_topk
from workbench.ranks import part_of
from workbench.testing.ranks import on_threads


def full(x, W, b, n):
    """Choose from the matrix [rows, latents]: by descending score, ties by row, then by latent."""
    scores = (x @ W.T + b).relu()
    order = scores.flatten().argsort(descending=True, stable=True)[:n]
    return torch.zeros_like(scores).flatten().index_copy(0, order, scores.flatten()[order]).view_as(scores)


def dense(values, indices, latents):
    return values.new_zeros(len(values), latents).scatter_add(1, indices, values)


def case(rows, latents, width, seed, *, spread=0.0):
    """Random scores; with a spread some rows hold most of the large ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x *= torch.exp(spread * torch.randn(rows, 1, generator=generator, dtype=torch.float64))
    W = torch.randn(latents, width, generator=generator, dtype=torch.float64)
    return x, W, 0.1 * torch.randn(latents, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize(
    ("rows", "latents", "width", "k"), [(40, 60, 9, 3), (1, 17, 5, 4), (33, 50, 3, 1), (7, 5, 4, 5)]
)
def test_the_choice_is_that_of_the_full_matrix(rows, latents, width, k, spread):
    for seed in range(5):
        x, W, b = case(rows, latents, width, seed, spread=spread)
        values, indices = batch_topk(x, W, b, k * rows)
        torch.testing.assert_close(dense(values, indices, latents), full(x, W, b, k * rows))
        assert (values[:, :-1] >= values[:, 1:]).all()


def test_one_row_may_hold_them_all():
    x, W, b = case(20, 64, 8, 0)
    x[7] *= 1e4
    values, indices = batch_topk(x, W, b, 20)
    found = dense(values, indices, 64)
    torch.testing.assert_close(found, full(x, W, b, 20))
    assert (found[7] > 0).sum() == 20


def test_ties_go_to_the_first_rows_and_the_lowest_latents():
    x = torch.ones(3, 1, dtype=torch.float64)
    W, b = torch.ones(6, 1, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    values, indices = batch_topk(x, W, b, 8)
    assert dense(values, indices, 6).int().tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [0] * 6]


def test_no_more_than_the_positive_scores_are_chosen():
    x, W, b = case(10, 12, 4, 1)
    values, _ = batch_topk(x, W, b - 100, 30)
    assert not values.any()
    assert values.shape == (10, 1)
    few = b - (x @ W.T).max() + 0.5
    torch.testing.assert_close(dense(*batch_topk(x, W, few, 30), 12), full(x, W, few, 30))
    assert batch_topk(x[:0], W, b, 1)[0].shape == (0, 1)


def test_gradients_are_those_of_the_full_matrix():
    x, W, b = (tensor.requires_grad_() for tensor in case(20, 64, 8, 0))
    with torch.no_grad():
        x[3] *= 50  # this row is encoded twice
    weigh = torch.randn(20, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad((dense(*batch_topk(x, W, b, 60), 64) * weigh).sum(), [x, W, b])
    want = torch.autograd.grad((full(x, W, b, 60) * weigh).sum(), [x, W, b])
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_choose_what_one_chooses_that_has_all_rows(size):
    """Ties at the threshold, rows that take more than their candidates, and rows that take none among them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-2, 3, (14, 6), generator=generator).float()
    x[3] *= 20  # all of the batch's largest scores are in one row
    W_enc, b_enc = torch.randint(-2, 3, (50, 6), generator=generator).float(), torch.zeros(50)
    for n in (1, 14, 40, 200, 14 * 50):
        whole = dense(*batch_topk(x, W_enc, b_enc, n), 50)
        parts = on_threads(
            size,
            lambda ranks, n=n: batch_topk(x[part_of(ranks, 14)], W_enc, b_enc, n, n_rows=14, ranks=ranks),
        )
        assert torch.equal(torch.cat([dense(*part, 50) for part in parts]), whole)
