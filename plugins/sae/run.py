"""A run of `sae`: train, measure on held-out documents beside controls, describe the latents."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import Store
from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.errors import UserError
from workbench.kernels.choice import in_use
from workbench.plugins.sae import SaeConfig, figures
from workbench.plugins.sae.activity import activity, label_correlations, nearest_directions
from workbench.plugins.sae.latents import Around, choose_latents, make_pages
from workbench.plugins.sae.loss import Weights, start
from workbench.plugins.sae.metrics import Resamples, choose_sequences, reconstruct, reconstruction_metrics
from workbench.plugins.sae.outcome import add_latents, add_quality, add_training
from workbench.plugins.sae.settings import Settings, Split, choose_hook_point, choose_settings, split_rows
from workbench.plugins.sae.splicing import Spliced, splice, why_not
from workbench.plugins.sae.training import Trainer
from workbench.report.latents import latents_section
from workbench.results import Result

SAMPLE_ROWS = 16_384
VALIDATION_ROWS = 2048
NEIGHBOURS = 5


def run(context: Context) -> Result:
    """Train a dictionary and measure it; see `Sae`."""
    config: SaeConfig = context.config
    store, log = context.store, context.log
    hook_point = choose_hook_point(store, config.hook_point)
    split = split_rows(store, config.evaluate, context.seed)
    settings = choose_settings(config, prod(store.hook_points[hook_point].shape), int(split.train.sum()))
    log.info("%s: %d training rows, %d held out: %s", hook_point, split.train.sum(), split.held_out.sum(), split.how)
    if store.origins["special"].all():
        log.info("every row of the store is one of a special token: they are trained on and measured")
    log.info("settings: %s", settings.to_json())
    context.kernels |= in_use(context.torch_device)

    sample = first_rows(store, hook_point, split.train, SAMPLE_ROWS, context).to(context.torch_device)
    scale, sample = normalised(sample, hook_point)
    trainer = fit(context, hook_point, split, settings, scale, sample)
    control = start(sample, settings, context.torch_rng("random dictionary"))
    dictionary, random = (
        as_dictionary(store, hook_point, weights, scale, settings.k) for weights in (trainer.weights, control)
    )
    ways = {"dictionary": dictionary, "random": random}
    mean = sample.mean(0) / scale

    log.info("measuring on held-out documents")
    rows = rows_of_sequences(store, split.held_out, config.evaluate.rows, context)
    found = reconstruct(store, hook_point, rows, ways, mean)
    resamples = Resamples.draw(len(found.n_rows), config.evaluate.draws, context.rng("documents"))
    quality = reconstruction_metrics(found, resamples)
    spliced = splice_in(context, split, ways, mean)

    result = Result()
    active = activity(found.codes, settings.latents)
    labels, correlation = label_correlations(store, found.codes, settings.latents)
    cosine, neighbour = nearest_directions(dictionary.W_dec, NEIGHBOURS)
    around = Around(labels, correlation, cosine, neighbour)
    add_quality(result, quality, spliced, found, split)
    add_latents(result, active, around, trainer)
    add_training(result, trainer)
    random_cosine, _ = nearest_directions(random.W_dec, 1)
    result.add_figure(
        "loss-curves",
        figures.loss_curves(trainer.history.numpy(), settings.rows / settings.n_steps),
        description="Training: what the reconstruction leaves of the variance, the auxiliary loss on what the dead "
        "latents make of the rest, and how many latents are dead.",
    )
    result.add_figure(
        "explained-variance",
        figures.explained_curve(trainer.checks, quality["random"]["explained_variance"].value),
        description="Explained variance of held-out rows over the training.",
    )
    result.add_figure(
        "latent-density",
        figures.density_histogram(active.density, active.n_rows),
        description="How often latents are active on held-out rows.",
    )
    result.add_figure(
        "decoder-cosines",
        figures.cosine_histogram(cosine[:, 0], random_cosine[:, 0]),
        description="How close each latent's decoder direction is to the nearest other one; near 1 means split or "
        "doubled features.",
    )
    result.add_weights(
        "dictionary", dictionary.tensors(), description=f"TopK autoencoder of {hook_point}", config=dictionary.config()
    )
    if config.pages.latents and not context.has_subject:
        log.warning("latents are not described: the store does not say which subject it is of; give --model")
    elif config.pages.latents:
        log.info("describing latents")
        chosen = choose_latents(active, around, config.pages.latents, context.rng("pages"))
        pages = make_pages(store, context.subject(), dictionary, active, around, chosen, config.pages)
        result.add_section(
            "latents",
            "latents",
            latents_section(pages, n_latents=settings.latents, label_measure="correlation"),
            f"{len(pages)} of {settings.latents} latents: the closest to a label, the strongest, densest and rarest, "
            "and some at random; contexts are of held-out documents.",
        )
    return result


def first_rows(store: Store, hook_point: str, mask: NDArray[np.bool_], n: int, context: Context) -> Tensor:
    """Return up to `n` rows in a seeded order that is not the training's, float32 [n, width]."""
    seed = int(context.rng("sample").integers(2**31))
    batch = next(iter(store.shuffled(hook_point, batch_rows=n, seed=seed, rows=mask)))
    assert isinstance(batch, Tensor)
    return batch.flatten(1).float()


def normalised(sample: Tensor, hook_point: str) -> tuple[float, Tensor]:
    """Return the factor that makes rows of norm sqrt(width) on average, and the sample times it.

    Raises
    ------
    UserError
        If the rows are all zero, all alike, or not finite.
    """
    norm = float(sample.norm(dim=1).mean())
    if not np.isfinite(norm):
        raise UserError(f"{hook_point}: some activations are NaN or infinite; a dictionary cannot be trained on them")
    if not float((sample - sample.mean(0)).abs().max()):
        raise UserError(f"{hook_point}: all rows are alike; there is nothing to train a dictionary on")
    scale = sample.shape[1] ** 0.5 / norm
    return scale, sample * scale


def fit(context: Context, hook_point: str, split: Split, settings: Settings, scale: float, sample: Tensor) -> Trainer:
    """Train, from the last checkpoint if there is one."""
    store = context.store
    validation = scale * first_rows(store, hook_point, split.held_out, VALIDATION_ROWS, context).to(sample.device)
    variance = float((sample - sample.mean(0)).pow(2).mean())
    trainer = Trainer(settings, start(sample, settings, context.torch_rng("start")), scale, variance, validation)
    checkpoint = context.work / "checkpoint.safetensors"
    if trainer.load(checkpoint):
        context.log.info("continuing after %d of %d rows", trainer.rows_done, settings.rows)
    with context.progress(settings.rows, "rows", "training", trainer.rows_done) as ticker:
        trainer.train(
            lambda epoch, state: store.shuffled(
                hook_point,
                batch_rows=settings.batch_rows,
                seed=context.seed,
                epoch=epoch,
                rows=split.train,
                state=state,
            ),
            checkpoint,
            context.config.train.checkpoint_s,
            ticker,
        )
    return trainer


def as_dictionary(store: Store, hook_point: str, weights: Weights, scale: float, k: int) -> Dictionary:
    """Return trained weights as a dictionary of the store's subject."""
    return Dictionary(
        W_enc=weights.W_enc.detach(),
        b_enc=weights.b_enc.detach(),
        W_dec=weights.W_dec.detach(),
        b_dec=weights.b_dec.detach(),
        b_pre=weights.b_dec.detach(),
        activation="topk",
        hook_in=hook_point,
        hook_out=hook_point,
        k=k,
        scale=scale,
        subject_address=store.manifest["model"]["address"],
        subject_fingerprint=store.manifest["model"]["fingerprint"],
    )


def rows_of_sequences(store: Store, mask: NDArray[np.bool_], n: int, context: Context) -> NDArray[np.bool_]:
    """Keep about `n` of the rows in a mask, by drawing whole sequences."""
    drawn = choose_sequences(store, mask, n, context.rng("held-out sequences"))
    kept: NDArray[np.bool_] = mask & np.isin(store.origins["sequence"], drawn)
    return kept


def splice_in(context: Context, split: Split, ways: dict[str, Dictionary], mean: Tensor) -> Spliced | None:
    """Measure the subject's loss with reconstructions in place, or say in the log why not."""
    if not context.config.evaluate.splice_tokens:
        context.log.info("nothing is spliced into the subject: evaluate.splice_tokens=0")
        return None
    if not context.has_subject:
        context.log.warning("nothing is spliced into the subject: the store does not say which; give --model")
        return None
    subject = context.subject()
    if reason := why_not(context.store, subject, ways["dictionary"]):
        context.log.warning("nothing is spliced into the subject: %s", reason)
        return None
    ways["dictionary"].check_subject(subject)
    with torch.no_grad():
        return splice(context, subject, split.held_out, ways, mean)
