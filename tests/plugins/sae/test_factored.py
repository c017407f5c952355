"""Training without dense gradients goes the way of training with them: same weights, moments and losses."""

from dataclasses import replace

import pytest
import torch

from workbench.plugins.sae import SaeConfig, TrainConfig
from workbench.plugins.sae.adam import Adam
from workbench.plugins.sae.factored import FactoredOptimiser, FactoredWeights
from workbench.plugins.sae.settings import choose_settings
from workbench.plugins.sae.sites import Place, Site
from workbench.plugins.sae.topk import TopK
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.weights import Weights, start

ROWS, WIDTH, LATENTS, K, STEPS = 40, 12, 30, 3, 8
HOOK = "here"
DEAD = torch.arange(3, 30, 4)


def batch(number: int) -> dict[str, torch.Tensor]:
    return {HOOK: torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(number))}


def make_trainer(*, own_centre: bool, **train) -> Trainer:
    config = SaeConfig(latents=LATENTS, k=K, train=TrainConfig(rows=STEPS * ROWS, batch_rows=ROWS, lr=0.01, **train))
    settings = choose_settings(config, WIDTH, STEPS * ROWS)
    place = Place(HOOK, WIDTH, 1.0)
    x = batch(100)[HOOK]
    weights = start(x, x, settings, torch.Generator().manual_seed(0))
    weights.b_enc[DEAD] = -3.0  # seldom among the best
    if own_centre:
        weights = replace(weights, b_pre=torch.full((WIDTH,), 0.1))
    return Trainer(settings, weights, Site((place,), (place,)), 1.0, batch(101))


@pytest.mark.parametrize("own_centre", [False, True], ids=["centred by b_dec", "a pre-bias of its own"])
@pytest.mark.parametrize(
    "train",
    [
        pytest.param({}, id="plain"),
        pytest.param({"aux_k": 4, "aux_weight": 0.5, "dead_after": ROWS}, id="auxiliary loss"),
        pytest.param({"resample": 2, "dead_after": ROWS}, id="resampling"),
    ],
)
def test_weights_go_the_same_way(train, own_centre, monkeypatch):
    factored = make_trainer(own_centre=own_centre, **train)
    monkeypatch.setattr(TopK, "factored", False)
    dense = make_trainer(own_centre=own_centre, **train)
    assert isinstance(factored.optimiser, FactoredOptimiser)
    assert isinstance(dense.optimiser, Adam)
    before = {name: tensor.detach().clone() for name, tensor in dense.weights.named().items()}
    for number in range(STEPS):
        for trainer in (factored, dense):
            trainer.one_step(batch(number))
    for name, tensor in dense.weights.named().items():
        torch.testing.assert_close(factored.weights.named()[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
        assert (tensor - before[name]).abs().max() > 0.02, name  # they have moved
    torch.testing.assert_close(factored.history, dense.history, rtol=1e-4, atol=1e-6)
    assert (dense.history[:, 2].max() > 0) == ("aux_k" in train or "resample" in train)


def test_only_what_can_keep_factors_does():
    """Another precision, and architectures that use their matrices in other ways, have ordinary weights."""
    for options in ({"train": TrainConfig(precision="bfloat16")}, {"architecture": "batchtopk"}):
        settings = choose_settings(SaeConfig(latents=LATENTS, k=K, **options), WIDTH, 1000)
        x = batch(0)[HOOK]
        weights = start(x, x, settings, torch.Generator().manual_seed(0))
        place = Place(HOOK, WIDTH, 1.0)
        trainer = Trainer(settings, weights, Site((place,), (place,)), 1.0, batch(1))
        assert type(trainer.weights) is Weights
        trainer.one_step(batch(2))


def test_factored_weights_share_the_memory_of_those_they_are_made_of():
    settings = choose_settings(SaeConfig(latents=LATENTS, k=K), WIDTH, 1000)
    x = batch(0)[HOOK]
    weights = start(x, x, settings, torch.Generator().manual_seed(0))
    factored = FactoredWeights.of(weights)
    assert factored.encoder.rows.data_ptr() == weights.W_enc.data_ptr() == factored.W_enc.data_ptr()
    assert factored.decoder.rows.data_ptr() == weights.W_dec.data_ptr()
