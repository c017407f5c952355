"""From a store to trained weights: what is sampled first, and the training itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.feeds import Feed, widest
from workbench.plugins.sae.settings import Settings, choose_hook_points, settings_of
from workbench.plugins.sae.sites import Batch, Site, measured
from workbench.plugins.sae.split import Split
from workbench.plugins.sae.sweep import Variant
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.training import Training
from workbench.plugins.sae.weights import start
from workbench.provenance import recorded_model

SAMPLE_ROWS = 16_384
VALIDATION_ROWS = 2048


def first_rows(context: Context, hook_points: list[str], mask: NDArray[np.bool_], n: int = SAMPLE_ROWS) -> Batch:
    """Return up to `n` rows of some hook points, in a seeded order that is not the training's."""
    store, seed = context.store, int(context.rng("sample").integers(2**31))
    batch = next(iter(store.shuffled(hook_points, batch_rows=n, seed=seed, rows=mask, order_of=widest(store))))
    assert isinstance(batch, dict)
    return batch


def fit(context: Context, split: Split, feed: Feed, chosen: Sequence[Variant]) -> list[Trainer]:
    """Train side by side, each batch read once for all, from the last checkpoint if there is one.

    Parameters
    ----------
    context : Context
        With a store: starts and scales are measured on its rows, and progress is.
    split : Split
        Of the rows of the store.
    feed : Feed
        The training rows; those of the store, or more.
    chosen : sequence of Variant
        What is to be trained.
    """
    store, log = context.store, context.log
    pairs = [choose_hook_points(store, variant.config) for variant in chosen]
    hook_points = list(dict.fromkeys(name for reads, writes in pairs for name in (*reads, *writes)))
    sample = first_rows(context, hook_points, split.train)
    validation = first_rows(context, hook_points, split.held_out, VALIDATION_ROWS)
    places = {name: measured(name, rows) for name, rows in sample.items()}
    log.info("%d training rows, %d held out: %s", feed.n_rows, split.held_out.sum(), split.how)
    trainers = []
    for variant, (reads, writes) in zip(chosen, pairs, strict=True):
        site = Site(tuple(places[name] for name in reads), tuple(places[name] for name in writes))
        settings = settings_of(store, variant.config, feed.n_rows)
        trainers.append(make_trainer(context, variant, site, settings, sample, validation))
    log_settings(chosen, trainers, log)
    training = Training(trainers, context.work / "checkpoint.safetensors", context.ranks)
    settings = trainers[0].settings  # all have the same rows and batches
    if training.load():
        log.info("continuing after %d of %d rows", training.rows_done, settings.rows)
    with context.progress(settings.rows, "rows", "training", training.rows_done) as ticker:
        training.run(
            lambda epoch, state: feed.start(hook_points, settings.batch_rows, epoch, state),
            context.config.train.checkpoint_s,
            ticker,
        )
    return trainers


def log_settings(chosen: Sequence[Variant], trainers: Sequence[Trainer], log: logging.Logger) -> None:
    """Write down every number that is used: once what all have in common, then what each has of its own."""
    each = [{"site": trainer.site.name, **trainer.settings.to_json()} for trainer in trainers]
    common = {key: value for key, value in each[0].items() if all(own[key] == value for own in each)}
    log.info("settings: %s", common)
    for variant, own in zip(chosen, each, strict=True):
        if differing := {key: value for key, value in own.items() if key not in common}:
            log.info("settings of %s: %s", variant.name, differing)


def make_trainer(
    context: Context, variant: Variant, site: Site, settings: Settings, sample: Batch, validation: Batch
) -> Trainer:
    """Return a trainer before its first step."""
    seed = context.seed if variant.config.train.seed is None else variant.config.train.seed
    rng = replace(context, seed=seed).torch_rng
    x, y = site.take(sample, context.torch_device)
    variance = float((y - y.mean(0)).pow(2).mean())
    weights = start(x, y, settings, rng("start"))
    weights.extra = ARCHITECTURES[settings.architecture].extra(x, weights, settings)
    return Trainer(settings, weights, site, variance, validation, rng)


def as_dictionary(store: Store, trainer: Trainer) -> Dictionary:
    """Return what was trained as a dictionary of the store's subject."""
    model = recorded_model(store)
    return trainer.site.dictionary(
        trainer.weights,
        trainer.inference(),
        subject_address=model.address,
        subject_fingerprint=model.fingerprint,
    )
