"""Training without a store: a bounded sample is kept to measure on, what is trained on is computed on the way."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.capture_plan import Planner
from workbench.capture_rows import activation_spec
from workbench.capturing import describe, require_positions, write_planned
from workbench.context import Context, Inputs
from workbench.errors import UserError
from workbench.live_rows import LiveRows
from workbench.plugins.sae.feeds import Feed
from workbench.plugins.sae.fitting import SAMPLE_ROWS, VALIDATION_ROWS
from workbench.plugins.sae.settings import named, settings_of
from workbench.plugins.sae.split import Split, split_rows
from workbench.plugins.sae.sweep import variants
from workbench.ranks import in_turn
from workbench.subjects.protocol import Subject

RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def go_live(context: Context) -> tuple[Context, Split, Feed]:
    """Plan which rows there are, keep a sample of them in a store, and return what takes a given store's place.

    Parameters
    ----------
    context : Context
        Of a run without a store.

    Returns
    -------
    context : Context
        With a store in its working folder: sequences of held-out documents, and of those trained on, as many as are
        measured on and sampled from; all of them, if there are not more.
    split : Split
        Of the rows of that store.
    feed : Feed
        The training rows, all of them, each computed when it is needed.
    """
    options, log = context.config.live, context.log
    subject, dataset = context.subject(), context.data()
    context = with_hook_point(context, subject)
    hook_points = wanted_hook_points(context, subject)
    longest = subject.n_context if options.context_length is None else options.context_length
    points = [subject.hook_points[name] for name in hook_points]
    specs = {point.name: activation_spec(point, subject, longest) for point in points}
    planner = Planner(subject, dataset, options.positions, options.context_length, context.seed)
    plan = planner.plan(options.rows)
    require_positions(points, plan)
    source = LiveRows(
        subject,
        dataset,
        plan,
        specs,
        batch_size=options.batch_size,
        buffer_rows=options.buffer_rows,
        ranks=context.ranks,
    )
    split = split_rows(source, context.config.evaluate, context.seed)
    if not context.has_dictionary:
        for variant in variants(context.config):  # wrong ones are refused before anything is written
            settings_of(source, variant.config, int(split.train.sum()))
    log.info(
        "no store: %d training rows are computed by %s as they are needed, and mixed in a buffer of %d (%.0f MB)",
        split.train.sum(), subject.address, min(options.buffer_rows, source.n_rows),
        min(options.buffer_rows, source.n_rows) * source.row_bytes / 1e6,
    )  # fmt: skip
    part = plan.part(sampled_sequences(context, source, split))
    manifest = describe(
        subject, dataset, part, hook_points, options.positions, options.rows, options.context_length, context.seed,
        options.batch_size,
    )  # fmt: skip
    store = in_turn(
        context.ranks,
        lambda: write_planned(
            subject, dataset, part, specs, manifest, context.work / "sample", batch_size=options.batch_size
        ),
    )
    inputs = Inputs(store=store, model=subject, dictionary=context.inputs.dictionary)
    return replace(context, inputs=inputs), of_sample(store, source, split), Feed(source, split.train, context.seed)


def with_hook_point(context: Context, subject: Subject) -> Context:
    """Return a context whose configuration names a hook point: by default the residual stream after the middle block.

    Raises
    ------
    UserError
        If none is named, and the subject has no such stream.
    """
    config = context.config
    if config.hook_point is not None or config.sweep.hook_point or context.has_dictionary:
        return context
    blocks = [int(match[1]) for name in subject.hook_points if (match := RESIDUAL.fullmatch(name))]
    if not blocks:
        raise UserError(
            f"{subject.address} has no hook point blocks.….hook_resid_post: choose one with hook_point=…, "
            f"such as {next(iter(subject.hook_points))}"
        )
    return replace(context, config=replace(config, hook_point=f"blocks.{(max(blocks) + 1) // 2}.hook_resid_post"))


def wanted_hook_points(context: Context, subject: Subject) -> list[str]:
    """Return all that is read or written, each once.

    Raises
    ------
    UserError
        If the subject has not got one of them.
    """
    if context.has_dictionary:
        dictionary = context.dictionary()
        return subject.expand([*dict.fromkeys((*dictionary.hooks_in, *dictionary.hooks_out))])
    names: list[str] = []
    for variant in variants(context.config):
        names += [*named(variant.config.hook_point), *named(variant.config.hook_out)]
    return list(dict.fromkeys(name for each in names for name in subject.expand([each])))


def sampled_sequences(context: Context, source: LiveRows, split: Split) -> NDArray[np.int64]:
    """Draw the sequences that are kept: enough of either side for all that is measured; all if there are not more."""
    evaluate = context.config.evaluate
    n_rows = {
        "train": max(SAMPLE_ROWS, evaluate.probe_rows if evaluate.labels else 0),
        "held out": max(VALIDATION_ROWS, evaluate.rows, evaluate.splice_tokens, evaluate.probe_rows),
    }
    sequence, n_sequences = source.origins["sequence"], source.plan.examples.n_sequences
    sides = {"train": split.train, "held out": split.held_out}
    if all(sides[side].sum() <= n_rows[side] for side in sides):
        return np.arange(n_sequences)
    drawn = []
    for side, rows in sides.items():
        of_sequence = np.bincount(sequence[rows], minlength=n_sequences)
        order = context.rng(f"sample, {side}").permutation(np.flatnonzero(of_sequence))
        enough = int(np.searchsorted(np.cumsum(of_sequence[order]), n_rows[side])) + 1
        drawn.append(order[:enough])
    return np.sort(np.concatenate(drawn))


def of_sample(store: Store, source: LiveRows, split: Split) -> Split:
    """Return the split of all rows for those of the sample: a document is on the same side in both."""
    held_out = {source.documents[document] for document in np.unique(source.origins["document"][split.held_out])}
    is_held_out = np.array([name in held_out for name in store.documents])[store.origins["document"]]
    return replace(split, train=store.ordinary & ~is_held_out, held_out=store.ordinary & is_held_out)
