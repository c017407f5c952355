"""Where training starts."""

import torch

from workbench.plugins.sae import SaeConfig
from workbench.plugins.sae.architecture import Moment
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.settings import choose_settings
from workbench.plugins.sae.weights import geometric_median, start

ROWS, WIDTH, LATENTS, K = 12, 7, 24, 4


def test_training_starts_tied_with_unit_rows_at_the_mean():
    settings = choose_settings(SaeConfig(latents=LATENTS, k=K), width=WIDTH, epoch_rows=1000)
    sample = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) + 3
    weights = start(sample, sample, settings, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.W_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(weights.b_dec, sample.mean(0))
    cosine = torch.nn.functional.cosine_similarity(weights.W_enc, weights.W_dec, dim=1)
    torch.testing.assert_close(cosine.abs(), torch.ones(LATENTS))
    moment = Moment(1.0, torch.tensor([], dtype=torch.int64), K)
    error = ARCHITECTURES["topk"].losses(sample, sample, weights, settings, moment).error
    assert error < (sample - sample.mean(0)).pow(2).mean()  # better than the mean from the first step
    again = start(sample, sample, settings, torch.Generator().manual_seed(0))
    assert torch.equal(again.W_enc, weights.W_enc)


def test_the_geometric_median_withstands_outliers():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    x[:20] += 1000
    assert geometric_median(x).norm() < 2 < x.mean(0).norm()
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(geometric_median(square), torch.zeros(2))
