"""The loss against dense autograd, the auxiliary loss against its definition, and the start."""

import pytest
import torch

from workbench.plugins.sae import SaeConfig, TrainConfig
from workbench.plugins.sae.loss import Weights, geometric_median, losses, start
from workbench.plugins.sae.settings import choose_settings

ROWS, WIDTH, LATENTS, K, AUX_K = 12, 7, 24, 4, 3
SETTINGS = choose_settings(
    SaeConfig(latents=LATENTS, k=K, train=TrainConfig(aux_k=AUX_K, aux_weight=0.5)), width=WIDTH, epoch_rows=1000
)


def random_weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = [(LATENTS, WIDTH), (LATENTS,), (LATENTS, WIDTH), (WIDTH,)]
    return Weights(
        *(torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes)
    )


def rows() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense_losses(x, weights, variance, dead):
    """The same by [rows, latents] matrices, as in Gao et al. 2024."""
    scores = (x - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    top = scores.topk(K, dim=1)
    codes = torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())
    left = x - codes @ weights.W_dec - weights.b_dec
    error = left.pow(2).mean() / variance
    if not len(dead):
        return error, torch.zeros(())
    alive = torch.ones(LATENTS, dtype=torch.bool).index_fill(0, dead, False)
    again = (x - weights.b_dec).detach() @ weights.W_enc.T + weights.b_enc
    top = again.masked_fill(alive, -torch.inf).topk(min(AUX_K, len(dead)), dim=1)
    codes = torch.zeros_like(scores).scatter(1, top.indices, top.values.relu())
    target = left.detach()
    return error, (codes @ weights.W_dec - target).pow(2).mean() / target.pow(2).mean()


@pytest.mark.parametrize("dead", [[], [5], [1, 2, 3, 20], list(range(LATENTS))])
def test_losses_and_gradients_equal_the_dense_ones(dead):
    dead = torch.tensor(dead, dtype=torch.int64)
    weights = random_weights()
    found = losses(rows(), weights, 2.0, dead, SETTINGS)
    error, auxiliary = dense_losses(rows(), weights, 2.0, dead)
    torch.testing.assert_close(found.error, error.detach())
    torch.testing.assert_close(found.auxiliary.double(), auxiliary.detach().double())
    leaves = list(weights.named().values())
    got = torch.autograd.grad(found.total, leaves)
    want = torch.autograd.grad(error + 0.5 * auxiliary, leaves)
    for name, ours, theirs in zip(weights.named(), got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_dead_latents_learn_and_only_through_the_auxiliary_loss():
    """With no score ever reaching them, dead latents get a gradient with the auxiliary loss and none without."""
    weights = random_weights()
    with torch.no_grad():
        weights.b_enc[3] = -50.0
    for dead, learns in [([3], False), ([], False)]:
        total = losses(rows(), weights, 1.0, torch.tensor(dead, dtype=torch.int64), SETTINGS).total
        (grad,) = torch.autograd.grad(total, weights.W_enc)
        assert bool(grad[3].any()) is learns
    with torch.no_grad():
        weights.b_enc[3] = 0.0
        weights.W_enc[3] *= 1e-3  # never among the k best, yet positive somewhere
    total = losses(rows(), weights, 1.0, torch.tensor([3]), SETTINGS).total
    assert torch.autograd.grad(total, weights.W_enc)[0][3].any()


def test_fired_lists_the_latents_with_a_positive_activation():
    weights = random_weights()
    fired = losses(rows(), weights, 1.0, torch.tensor([], dtype=torch.int64), SETTINGS).fired
    scores = (rows() - weights.b_dec) @ weights.W_enc.T + weights.b_enc
    top = scores.topk(K, dim=1)
    assert sorted(fired.tolist()) == sorted(top.indices[top.values > 0].tolist())


def test_training_starts_tied_with_unit_rows_at_the_mean():
    sample = rows().float() + 3
    weights = start(sample, SETTINGS, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(weights.b_dec, sample.mean(0))
    cosine = torch.nn.functional.cosine_similarity(weights.W_enc, weights.W_dec, dim=1)
    torch.testing.assert_close(cosine.abs(), torch.ones(LATENTS))
    error = losses(sample, weights, 1.0, torch.tensor([], dtype=torch.int64), SETTINGS).error
    assert error < (sample - sample.mean(0)).pow(2).mean()  # better than the mean from the first step
    again = start(sample, SETTINGS, torch.Generator().manual_seed(0))
    assert torch.equal(again.W_enc, weights.W_enc)


def test_the_geometric_median_withstands_outliers():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    x[:20] += 1000
    assert geometric_median(x).norm() < 2 < x.mean(0).norm()
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(geometric_median(square), torch.zeros(2))
