"""The autoencoder is the published one, and heads are scored by what their codes tell."""

import numpy as np
import pytest
import torch
from torch import nn

from workbench.plugins.circuit.discrete_sae import SaeSettings, discrete_codes, node_via_pairs
from workbench.plugins.circuit.head_outputs import Tokens, mean_head_outputs

QUICK = SaeSettings(latents=24, steps=40, train_examples=6)


def by_hand(X, settings, rng):
    """One autoencoder in float64, layer by layer, each row of a gradient made orthogonal by a loop."""
    n, n_heads, width = X.shape
    X = torch.from_numpy(X.astype(np.float64))
    if settings.scaled:
        X = X / X.pow(2).mean().sqrt()
    rows = X[np.sort(rng.choice(n, settings.train_examples, replace=False))].reshape(-1, width)
    encoder, decoder = (
        nn.Linear(width, settings.latents).double(),
        nn.Linear(settings.latents, width, bias=False).double(),
    )
    b = nn.Parameter(torch.zeros(width, dtype=torch.float64))
    with torch.no_grad():
        for layer in (encoder, decoder):
            layer.weight.copy_(torch.from_numpy(rng.standard_normal(layer.weight.shape, dtype=np.float32)))
        encoder.bias.zero_()
    optimiser = torch.optim.Adam([encoder.weight, decoder.weight, b, encoder.bias], lr=settings.lr)

    def passed(x):
        with torch.no_grad():
            for layer in (encoder, decoder):
                for row in layer.weight:
                    row /= row.norm()
        c = torch.relu(encoder(x - b))
        return c, decoder(c) + b

    for _ in range(settings.steps):
        c, x_hat = passed(rows)
        loss = ((x_hat - rows) ** 2).mean() + settings.penalty * c.abs().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        for layer in (encoder, decoder):
            for row, gradient in zip(layer.weight.detach(), layer.weight.grad, strict=True):
                gradient -= (gradient @ row) * row
        optimiser.step()
    with torch.no_grad():
        c, _ = passed(X.reshape(-1, width))
    return c.argmax(1).reshape(n, n_heads).numpy(), float((c.amax(1) == 0).double().mean())


@pytest.mark.slow  # torch.optim alone takes seconds to import
@pytest.mark.parametrize("scaled", [True, False])
def test_codes_equal_an_autoencoder_written_by_hand(scaled):
    X = np.random.default_rng(0).normal(size=(14, 5, 7)).astype(np.float32)
    settings = SaeSettings(latents=12, steps=25, train_examples=4, scaled=scaled)
    found = discrete_codes(X, 7, [np.random.default_rng(seed) for seed in (1, 2)], settings)
    for at, seed in enumerate((1, 2)):
        codes, silent = by_hand(X, settings, np.random.default_rng(seed))
        assert (found.codes[at] == codes).mean() > 0.98  # a near tie may fall either way in float32
        assert found.silent[at] == pytest.approx(silent, abs=0.03)


def planted_outputs(n=40, n_heads=6, width=10):
    """Head 2 writes one of four directions on positive examples only; the others write the same things on all."""
    rng = np.random.default_rng(0)
    directions = np.eye(width)
    X = directions[rng.integers(0, 3, size=(2 * n, n_heads))]
    X[:n, 2] = directions[rng.integers(4, 8, size=n)]
    return (X + 0.02 * rng.normal(size=X.shape)).astype(np.float32), n


def test_a_head_with_outputs_of_its_own_on_positive_examples_is_found():
    X, n = planted_outputs()
    codes = discrete_codes(1e-3 * X, n, [np.random.default_rng(seed) for seed in range(3)], QUICK)
    nodes, pairs = codes.node_scores().mean(0), codes.pair_scores()
    assert nodes.argmax() == 2
    assert (codes.node_scores(share=True) <= 1).all()
    assert node_via_pairs(pairs).mean(0).argmax() == 2
    assert pairs.mean(0)[2].sum() > np.delete(pairs.mean(0), 2, axis=0)[:, [0, 1, 3, 4, 5]].sum(1).max()
    shuffled = X[np.random.default_rng(1).permutation(len(X))]
    control = discrete_codes(shuffled, n, [np.random.default_rng(0)], QUICK)
    assert control.node_scores()[0, 2] < nodes[2] / 2


def test_small_outputs_silence_every_latent_unless_they_are_scaled():
    X, n = planted_outputs()
    raw = SaeSettings(latents=24, steps=300, train_examples=6, scaled=False, lr=1e-2)
    (silent,) = discrete_codes(1e-4 * X, n, [np.random.default_rng(0)], raw).silent
    assert silent > 0.9
    assert discrete_codes(1e-4 * X, n, [np.random.default_rng(0)], QUICK).silent[0] < 0.5


@pytest.mark.parametrize(
    ("X", "n_positive", "says"),
    [
        (np.ones((4, 2, 3)), 4, "4 positive and 0 negative"),
        (np.ones((4, 2, 3)), 2, "at least the 6"),
        (np.zeros((8, 2, 3)), 4, "root mean square 0.0"),
    ],
)
def test_what_cannot_be_encoded_is_refused(X, n_positive, says):
    with pytest.raises(ValueError, match=says):
        discrete_codes(X.astype(np.float32), n_positive, [np.random.default_rng(0)], QUICK)


def test_outputs_are_the_mean_of_hook_result_over_real_positions(random_subject):
    subject = random_subject()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 1]]
    got = mean_head_outputs(subject, Tokens.of(prompts), batch_size=2)
    for row, prompt in enumerate(prompts):
        batch = subject.batch([prompt])
        names = [f"blocks.{layer}.attn.hook_result" for layer in range(subject.n_layers)]
        alone = subject.capture(batch, names)
        want = torch.cat([alone[name][0].mean(0) for name in names])
        np.testing.assert_allclose(got[row], want.numpy(), atol=1e-6)
