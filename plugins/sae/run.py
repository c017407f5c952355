"""A run of `sae`: train or take dictionaries, measure them on held-out documents beside controls, describe latents."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import Store
from workbench.context import Context
from workbench.dictionary import Dictionary
from workbench.encoding import check_dictionary
from workbench.errors import UserError
from workbench.kernels.choice import in_use
from workbench.plugins.sae import SaeConfig, figures
from workbench.plugins.sae.activity import Activity, activity, densities, label_correlations, nearest_directions
from workbench.plugins.sae.comparing import Outcome, compare
from workbench.plugins.sae.control import random_dictionary
from workbench.plugins.sae.features import add_features
from workbench.plugins.sae.feeds import Feed
from workbench.plugins.sae.fitting import as_dictionary, first_rows, fit
from workbench.plugins.sae.latents import Around, choose_latents, make_pages
from workbench.plugins.sae.live import go_live
from workbench.plugins.sae.metrics import Resamples, choose_sequences, reconstruct, reconstruction_metrics
from workbench.plugins.sae.outcome import add_latents, add_quality, add_training
from workbench.plugins.sae.parts import add_parts
from workbench.plugins.sae.settings import named
from workbench.plugins.sae.splicing import Spliced, splice, why_not
from workbench.plugins.sae.split import Split, split_rows
from workbench.plugins.sae.sweep import announce, swept, variants
from workbench.plugins.sae.trainer import Trainer
from workbench.report.latents import latents_section
from workbench.results import Result

NEIGHBOURS = 5


def run(context: Context) -> Result:
    """Train dictionaries, or take the one that is given, and measure them; see `Sae`."""
    config: SaeConfig = context.config
    log = context.log
    if swept(config) and not context.has_dictionary:
        announce(variants(config), log)
    if context.inputs.store is None:
        context, split, feed = go_live(context)
    else:
        split = split_rows(context.store, config.evaluate, context.seed)
        feed = Feed(context.store, split.train, context.seed)
    store, chosen = context.store, variants(context.config)
    if store.origins["special"].all():
        log.info("every row of the store is one of a special token: they are trained on and measured")
    context.kernels |= in_use(context.torch_device)
    trainers = [] if context.has_dictionary else fit(context, split, feed, chosen)
    if context.ranks.rank:
        return Result()  # what is left is done by the first process
    if context.has_dictionary:
        return complete(context, split, given_dictionary(context), None)
    if not swept(config):
        (trainer,) = trainers
        return complete(context, split, as_dictionary(store, trainer), trainer)
    log.info("measuring on held-out documents")
    found = []
    for variant, trainer in zip(chosen, trainers, strict=True):
        if trainer.failed:
            found.append(Outcome(variant, trainer))
        else:
            result, _, _ = measure(context, split, as_dictionary(store, trainer), trainer)
            found.append(Outcome.of(variant, trainer, result))
        log.info("%s", found[-1])
    return compare(context, found)


def given_dictionary(context: Context) -> Dictionary:
    """Return the dictionary that was given; options that train one, or name other hook points, are refused."""
    config = context.config
    dictionary = context.dictionary().to(context.torch_device)
    check_dictionary(context.store, dictionary)
    if grid := swept(config):
        raise UserError(f"sweep.{next(iter(grid))}: nothing is trained where a dictionary is given; leave it out")
    for option, hook_points in (("hook_point", dictionary.hooks_in), ("hook_out", dictionary.hooks_out)):
        if named(getattr(config, option)) not in ((), hook_points):
            raise UserError(
                f"{option}={getattr(config, option)}: dictionary {dictionary.address} reads {dictionary.hook_in}, "
                f"reconstructs {dictionary.hook_out}; leave {option} out"
            )
    return dictionary


def complete(context: Context, split: Split, dictionary: Dictionary, trainer: Trainer | None) -> Result:
    """Measure one dictionary, and describe its latents."""
    config, store, log = context.config, context.store, context.log
    log.info("measuring on held-out documents")
    result, active, around = measure(context, split, dictionary, trainer)
    if config.pages.latents and not context.has_subject:
        log.warning("latents are not described: the store does not say which subject it is of; give --model")
    elif config.pages.latents:
        log.info("describing latents")
        chosen = choose_latents(active, around, config.pages.latents, context.rng("pages"))
        pages = make_pages(store, context.subject(), dictionary, active, around, chosen, config.pages)
        result.add_section(
            "latents",
            "latents",
            latents_section(pages, n_latents=dictionary.n_latents, label_measure="correlation"),
            f"{len(pages)} of {dictionary.n_latents} latents: the closest to a label, the strongest, densest and "
            "rarest, and some at random; contexts are of held-out documents.",
        )
    return result


def measure(
    context: Context, split: Split, dictionary: Dictionary, trainer: Trainer | None
) -> tuple[Result, Activity, Around]:
    """Measure a dictionary on held-out documents beside its controls; it is among the result's weights."""
    config, store = context.config, context.store
    sample = first_rows(context, [*dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out))], split.train)
    mean = dictionary.rows_out(sample).to(context.torch_device).float().mean(0)
    ways = {
        "dictionary": dictionary,
        "random": random_dictionary(dictionary, sample, context.torch_rng("random dictionary")),
    }
    rows = rows_of_sequences(store, split.held_out, config.evaluate.rows, context)
    found = reconstruct(store, rows, ways, mean)
    resamples = Resamples.draw(len(found.n_rows), config.evaluate.draws, context.rng("documents"))
    quality = reconstruction_metrics(found, resamples)
    spliced = splice_in(context, split, ways, mean)

    result = Result()
    active = activity(found.codes, dictionary.n_latents)
    labels, correlation = label_correlations(store, found.codes, dictionary.n_latents)
    cosine, neighbour = nearest_directions(dictionary.W_dec, NEIGHBOURS)
    around = Around(labels, correlation, cosine, neighbour)
    add_quality(result, quality, spliced, found, split)
    add_latents(result, active, around, trainer, densities(found.codes, dictionary.n_latents, resamples))
    add_parts(result, store, ways, found, resamples)
    add_features(context, result, split, ways)
    if trainer is not None:
        add_training(result, trainer, quality["random"]["explained_variance"].value)
    add_figures(result, active, cosine[:, 0], nearest_directions(ways["random"].W_dec, 1)[0][:, 0])
    result.add_weights(
        "dictionary",
        dictionary.tensors(),
        description=described(dictionary),
        config=dictionary.config(),
    )
    return result, active, around


def described(dictionary: Dictionary) -> str:
    """Say in a few words what a dictionary is."""
    where = " -> ".join(dict.fromkeys((dictionary.hook_in, dictionary.hook_out)))
    return f"{dictionary.activation} dictionary of {where}"


def add_figures(
    result: Result, active: Activity, cosine: NDArray[np.float64], random_cosine: NDArray[np.float64]
) -> None:
    """Add the figures of the latents."""
    result.add_figure(
        "latent-density",
        figures.density_histogram(active.density, active.n_rows),
        description="How often latents are active on held-out rows.",
    )
    result.add_figure(
        "decoder-cosines",
        figures.cosine_histogram(cosine, random_cosine),
        description="How close each latent's decoder direction is to the nearest other one; near 1 means split or "
        "doubled features.",
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
