"""Dictionaries that write elsewhere than they read, or several hook points at once: planted, folded, spliced, run."""

import logging

import numpy as np
import pytest
import torch

from workbench.context import Context, Inputs
from workbench.dictionary import load_dictionary
from workbench.errors import UserError
from workbench.plugins.sae import EvaluateConfig, PagesConfig, Sae, SaeConfig, TrainConfig
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.attribution import Parts, decoder_shares
from workbench.plugins.sae.settings import L1, choose_settings
from workbench.plugins.sae.sites import Site, measured
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.weights import start
from workbench.ranks import ALONE

ROWS, HELD_OUT, FEATURES = 10_500, 500, 24
LN2, MLP_OUT, MID, POST = (
    f"blocks.0.{name}" for name in ("ln2.hook_normalized", "hook_mlp_out", "hook_resid_mid", "hook_resid_post")
)


def slow(architecture):
    """Leave an architecture to the slow tests."""
    return pytest.param(architecture, marks=pytest.mark.slow)


def planted(widths, seed=100):
    """Return unit features of each width, and rows of each that have the same activations: 2 of 24 on average."""
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(ROWS, FEATURES, generator=generator) < 2 / FEATURES
    codes = on * (0.5 + torch.rand(ROWS, FEATURES, generator=generator))
    features = [torch.randn(FEATURES, width, generator=generator) for width in widths]
    features = [torch.nn.functional.normalize(each, dim=1) for each in features]
    return features, codes, [codes @ each for each in features]


def fit(batch, reads, writes, architecture="topk", rows=120_000, latents=36) -> Trainer:
    """Train on rows in memory; the first are held out."""
    sample = {name: each[HELD_OUT:] for name, each in batch.items()}
    site = Site(*(tuple(measured(name, sample[name]) for name in names) for names in (reads, writes)))
    train = TrainConfig(rows=rows)
    config = SaeConfig(architecture=architecture, latents=latents, k=None if architecture in L1 else 3, train=train)
    widths = [sum(place.width for place in places) for places in (site.reads, site.writes)]
    settings = choose_settings(config, widths[0], ROWS - HELD_OUT, tuple(place.width for place in site.writes))
    x, y = site.take(sample, torch.device("cpu"))
    weights = start(x, y, settings, torch.Generator().manual_seed(0))
    weights.extra = ARCHITECTURES[architecture].extra(x, weights, settings)
    validation = {name: each[:HELD_OUT] for name, each in batch.items()}
    trainer = Trainer(settings, weights, site, float((y - y.mean(0)).pow(2).mean()), validation)
    order = torch.Generator().manual_seed(1)
    while trainer.rows_done < settings.rows:
        for at in torch.randperm(ROWS - HELD_OUT, generator=order).split(settings.batch_rows):
            if trainer.rows_done < settings.rows:
                trainer.one_step({name: each[at] for name, each in sample.items()})
    return trainer


# --- transcoders -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["topk", slow("jumprelu"), slow("standard")])
def test_a_transcoder_finds_what_is_written_for_what_is_read(architecture):
    (read, written), _, (x, y) = planted([20, 28])
    y = 7 * y + 3  # another scale and another mean
    trainer = fit({"x": x, "y": y}, ["x"], ["y"], architecture)
    assert trainer.explained_variance() > (0.6 if architecture == "standard" else 0.8)  # L1 shrinks activations
    cosine = written @ trainer.weights.W_dec.detach().T
    assert float(cosine.amax(1).mean()) > 0.95
    # the latent that writes a feature reads the same one: on rows with that feature alone it is the strongest
    codes = trainer.site.dictionary(trainer.weights, trainer.inference()).encode_dense(1.5 * read)
    assert float((codes.argmax(1) == cosine.argmax(1)).float().mean()) > 0.9


def test_a_transcoder_finds_nothing_where_what_is_written_does_not_follow():
    _, _, (x, y) = planted([20, 28])
    y = y[torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))]
    trainer = fit({"x": x, "y": y}, ["x"], ["y"])
    assert trainer.explained_variance() < 0.05


# --- crosscoders -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["topk", slow("batchtopk"), slow("standard")])
def test_a_crosscoder_tells_shared_features_from_those_of_one_hook_point(architecture):
    (one, other), codes, _ = planted([20, 28])
    shared, alone = slice(0, 8), slice(8, 16)  # and the others in the second hook point alone
    here, there = codes.clone(), codes.clone()
    here[:, 16:], there[:, alone] = 0, 0
    batch = {"a": here @ one, "b": 30 * (there @ other)}
    trainer = fit(batch, ["a", "b"], ["a", "b"], architecture)
    assert trainer.explained_variance() > 0.8
    W_dec = trainer.weights.W_dec.detach()
    both = torch.cat([trainer.site.reads[0].scale * one, 30 * trainer.site.reads[1].scale * other], dim=1)
    both[16:, :20], both[alone, 20:] = 0, 0
    cosine = torch.nn.functional.normalize(both, dim=1) @ W_dec.T
    assert float(cosine.amax(1).mean()) > 0.95
    shares = decoder_shares(W_dec, Parts("hook point", ["a", "b"], [20, 28]))[cosine.argmax(1).numpy()]
    assert abs(shares[shared, 0] - 0.5).mean() < 0.1
    assert np.median(shares[alone, 0]) > 0.9  # medians: a latent or two may have taken up something else
    assert np.median(shares[16:, 0]) < 0.1
    # the control: shares of where the training started tell nothing
    begun = start(*(2 * trainer.site.take(batch, torch.device("cpu"))[:1]), trainer.settings, torch.Generator())
    at_random = decoder_shares(begun.W_dec, Parts("hook point", ["a", "b"], [20, 28]))
    assert (abs(at_random[:, 0] - 0.5) < 0.35).all()


def test_the_penalty_weighs_activations_by_the_summed_lengths_at_each_hook_point():
    _, _, (x, y) = planted([20, 28])
    trainer = fit({"x": x, "y": y}, ["x", "y"], ["x", "y"], "standard", rows=300)
    weights, moment = trainer.weights, trainer.moment(trainer.dead(), 50, ALONE)
    rows, _ = trainer.site.take({"x": x[:50], "y": y[:50]}, torch.device("cpu"))
    kind = ARCHITECTURES["standard"]
    codes = kind.encode(weights.centred(rows), weights, trainer.settings, moment)
    total = 0.0
    for latent in range(36):
        lengths = weights.W_dec[latent, :20].norm() + weights.W_dec[latent, 20:].norm()
        total += float((codes.values[:, latent] * lengths).detach().sum()) / 50
    want = moment.sparsity * total / (48 * trainer.variance) ** 0.5
    assert float(kind.penalty(codes, rows, weights, trainer.settings, moment).detach()) == pytest.approx(want, rel=1e-4)


# --- as dictionaries -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("reads", "writes"), [("x", "y"), ("xy", "xy"), ("xy", "y")])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated"])
def test_scales_are_folded_into_the_weights(architecture, reads, writes):
    """The dictionary on the subject's own rows gives what the weights give on scaled ones."""
    _, _, (x, y) = planted([20, 28])
    batch = {"x": 5 * x + 1, "y": 0.1 * y - 2}
    trainer = fit(batch, list(reads), list(writes), architecture, rows=2_000)
    inside = trainer.site.scaled().dictionary(trainer.weights, trainer.inference())
    outside = trainer.site.dictionary(trainer.weights, trainer.inference())
    scaled, target = trainer.site.take(batch, torch.device("cpu"))
    values, indices = outside.encode(outside.rows_in(batch))
    torch.testing.assert_close(values, inside.encode(scaled)[0], rtol=1e-3, atol=1e-4)
    error = (outside.rows_out(batch) - outside.decode(values, indices)).pow(2)
    parts = torch.split(error, [place.width for place in trainer.site.writes], dim=1)
    for_scaled = sum(place.scale**2 * part.sum() for place, part in zip(trainer.site.writes, parts, strict=True))
    torch.testing.assert_close(for_scaled, (target - inside.reconstruct(scaled)).pow(2).sum(), rtol=1e-3, atol=1e-2)


# --- whole runs ------------------------------------------------------------------------------------------------------
CONFIG = {
    "latents": 64,
    "k": 4,
    "train": TrainConfig(rows=60_000),
    "evaluate": EvaluateConfig(held_out=0.2, splice_tokens=400, draws=50, labels=2),
    "pages": PagesConfig(latents=6, contexts=2),
}


def explained_of(result):
    quality = result.tables["comparison"].set_index("in place of the activation")["explained_variance"]
    return quality["this dictionary"], quality["random dictionary"]


def test_a_run_trains_a_transcoder_and_splices_it_in(context, store_of_five, subject, tmp_path):
    config = SaeConfig(hook_point=LN2, hook_out=MLP_OUT, **CONFIG)
    result = Sae().run(context(config, store=store_of_five))
    ours, random = explained_of(result)
    assert ours > random + 0.2
    losses = result.tables["comparison"].set_index("in place of the activation")["divergence"]
    assert losses["this dictionary"] < losses["random dictionary"]
    assert losses["this dictionary"] < losses["zeros"]
    assert "absorption" not in result.metrics  # of an activation that is not reconstructed
    result.save(tmp_path / "run")
    dictionary = load_dictionary(tmp_path / "run")
    assert (dictionary.hook_in, dictionary.hook_out) == (LN2, MLP_OUT)
    # by hand: the MLP's output replaced by what the transcoder makes of its input
    batch = subject.batch([[0, 3, 4, 5], [0, 7]])
    seen = subject.run(batch, capture=[LN2, MLP_OUT]).captured
    edited = subject.run(batch, capture=[LN2, MLP_OUT], edits=dictionary.edits()).captured
    ordinary = batch.mask & ~batch.special
    torch.testing.assert_close(edited[MLP_OUT][ordinary], dictionary.reconstruct(seen[LN2][ordinary]))
    assert torch.equal(edited[MLP_OUT][~ordinary], seen[MLP_OUT][~ordinary])
    assert torch.equal(edited[LN2], seen[LN2])
    inputs = Inputs(store=store_of_five, model=subject, dictionary=dictionary)
    with pytest.raises(UserError, match="leave hook_out out"):
        Sae().run(Context(SaeConfig(hook_out=POST), inputs, "cpu", 0, tmp_path))


def test_a_run_trains_a_crosscoder(context, store_of_five, subject, caplog, tmp_path):
    config = SaeConfig(hook_point=(MID, POST), **CONFIG)
    with caplog.at_level(logging.WARNING, "workbench"):
        result = Sae().run(context(config, store=store_of_five))
    assert f"the dictionary reconstructs {MID} + {POST} at once" in caplog.text
    table = result.tables["hook-points"].set_index("hook point")
    assert list(table.index) == [MID, POST]
    assert (table["dictionary"] > table["random"] + 0.15).all()
    shares = result.arrays["decoder-shares"]
    assert shares.shape == (64, 2)
    assert float(abs(shares.sum("part") - 1).max()) < 1e-6
    assert set(result.arrays["score-parts"].coords["part"].values) == {MID, POST}
    result.save(tmp_path / "run")
    dictionary = load_dictionary(tmp_path / "run")
    assert dictionary.hooks_in == dictionary.hooks_out == (MID, POST)
    with pytest.raises(UserError, match="no moment at which"):
        dictionary.edits()


def test_what_is_read_after_it_is_written_is_not_spliced_in(context, store_of_five, subject, caplog):
    config = SaeConfig(hook_point=POST, hook_out=MLP_OUT, **{**CONFIG, "train": TrainConfig(rows=2_000)})
    with caplog.at_level(logging.WARNING, "workbench"):
        result = Sae().run(context(config, store=store_of_five))
    assert f"the dictionary reads {POST}, which comes after {MLP_OUT}" in caplog.text
    assert "loss_clean" not in result.metrics
