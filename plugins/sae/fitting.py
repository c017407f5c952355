"""From a store to trained weights: what is sampled first, and the training itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.settings import Settings, choose_hook_points, choose_settings
from workbench.plugins.sae.sites import Batch, Site, measured
from workbench.plugins.sae.split import Split
from workbench.plugins.sae.trainer import Trainer
from workbench.plugins.sae.training import Training
from workbench.plugins.sae.weights import start
from workbench.provenance import recorded_model

SAMPLE_ROWS = 16_384
VALIDATION_ROWS = 2048


def first_rows(context: Context, hook_points: list[str], mask: NDArray[np.bool_], n: int = SAMPLE_ROWS) -> Batch:
    """Return up to `n` rows of some hook points, in a seeded order that is not the training's."""
    seed = int(context.rng("sample").integers(2**31))
    batch = next(iter(context.store.shuffled(hook_points, batch_rows=n, seed=seed, rows=mask)))
    assert isinstance(batch, dict)
    return batch


def fit(context: Context, split: Split) -> Trainer:
    """Train, from the last checkpoint if there is one."""
    store, log = context.store, context.log
    reads, writes = choose_hook_points(store, context.config)
    sample = first_rows(context, [*dict.fromkeys((*reads, *writes))], split.train)
    places = {name: measured(name, rows) for name, rows in sample.items()}
    site = Site(tuple(places[name] for name in reads), tuple(places[name] for name in writes))
    widths = [sum(place.width for place in site.reads), *(place.width for place in site.writes)]
    settings = choose_settings(context.config, widths[0], int(split.train.sum()), tuple(widths[1:]))
    log.info("%s: %d training rows, %d held out: %s", site.name, split.train.sum(), split.held_out.sum(), split.how)
    log.info("settings: %s", settings.to_json())
    trainer = make_trainer(context, site, settings, sample, split)
    training = Training([trainer], context.work / "checkpoint.safetensors")
    if training.load():
        log.info("continuing after %d of %d rows", training.rows_done, settings.rows)
    with context.progress(settings.rows, "rows", "training", training.rows_done) as ticker:
        training.run(
            lambda epoch, state: store.shuffled(
                trainer.site.hook_points,
                batch_rows=settings.batch_rows,
                seed=context.seed,
                epoch=epoch,
                rows=split.train,
                state=state,
            ),
            context.config.train.checkpoint_s,
            ticker,
        )
    return trainer


def make_trainer(context: Context, site: Site, settings: Settings, sample: Batch, split: Split) -> Trainer:
    """Return a trainer before its first step."""
    x, y = site.take(sample, context.torch_device)
    variance = float((y - y.mean(0)).pow(2).mean())
    weights = start(x, y, settings, context.torch_rng("start"))
    weights.extra = ARCHITECTURES[settings.architecture].extra(x, weights, settings)
    validation = first_rows(context, site.hook_points, split.held_out, VALIDATION_ROWS)
    return Trainer(settings, weights, site, variance, validation, context.torch_rng)


def as_dictionary(store: Store, trainer: Trainer) -> Dictionary:
    """Return what was trained as a dictionary of the store's subject."""
    model = recorded_model(store)
    return trainer.site.dictionary(
        trainer.weights,
        trainer.inference(),
        subject_address=model.address,
        subject_fingerprint=model.fingerprint,
    )
