"""Dead latents begin again where the reconstruction is bad."""

import torch

from workbench.plugins.sae.resampling import ENCODER_SHARE, resample
from workbench.plugins.sae.weights import Weights


def make(b_pre=None) -> Weights:
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    return Weights(W_enc, torch.ones(6), torch.nn.functional.normalize(W_dec, dim=1), torch.zeros(4), b_pre=b_pre)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dead_latents_take_directions_that_are_left_over():
    weights, before = make(), make()
    left = torch.zeros(50, 4)
    left[:, 0] = 1e-3
    left[7] = torch.tensor([0.0, 3.0, 0, 0])  # one row is far worse than the others
    resample(weights, torch.tensor([1, 4]), torch.randn(50, 4), left, draw())
    for latent in (1, 4):
        torch.testing.assert_close(weights.W_dec[latent], torch.tensor([0.0, 1, 0, 0]))
        length = ENCODER_SHARE * before.W_enc[[0, 2, 3, 5]].norm(dim=1).mean()
        torch.testing.assert_close(weights.W_enc[latent], length * torch.tensor([0.0, 1, 0, 0]))
        assert weights.b_enc[latent] == 0
    for latent in (0, 2, 3, 5):
        assert torch.equal(weights.W_enc[latent], before.W_enc[latent])
        assert torch.equal(weights.W_dec[latent], before.W_dec[latent])


def test_the_encoder_of_a_transcoder_takes_the_row_that_was_read():
    weights = make(b_pre=torch.full((4,), 2.0))
    x, left = torch.full((1, 4), 2.0), torch.tensor([[0.0, 0, 5, 0]])
    x[0, 3] = 4.0
    resample(weights, torch.tensor([0]), x, left, draw())
    torch.testing.assert_close(torch.nn.functional.normalize(weights.W_enc[0], dim=0), torch.tensor([0.0, 0, 0, 1]))
    torch.testing.assert_close(weights.W_dec[0], torch.tensor([0.0, 0, 1, 0]))


def test_the_same_draw_gives_the_same_start_and_nothing_dead_changes_nothing():
    left, x = torch.randn(50, 4, generator=draw(1)), torch.randn(50, 4, generator=draw(2))
    first, again, other, none = make(), make(), make(), make()
    for weights, seed in ((first, 0), (again, 0), (other, 1)):
        resample(weights, torch.arange(6), x, left, draw(seed))
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    resample(none, torch.tensor([], dtype=torch.int64), x, left, draw())
    resample(none, torch.tensor([1]), x, torch.zeros(50, 4), draw())
    assert torch.equal(none.W_enc, make().W_enc)
