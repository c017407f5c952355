"""Activation patching: swap one activation between the clean and the corrupted run, and see what the answer loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.circuit.graph import READS, Graph
from workbench.plugins.circuit.objectives import Objective
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.stream import Stream
from workbench.subjects.protocol import At, Batch, Edit, Edits, Subject

Direction = Literal["noising", "denoising"]
OnBatch = Callable[[int], None]

BATCH_SIZE = 16
MOST_PASSES = 20_000


def patch_nodes(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    *,
    direction: Direction = "noising",
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """Patch every source, one at a time; all that depends on it follows.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    pairs : Pairs
        Prompts and metric.
    graph : Graph
        Of the subject.
    direction : "noising" or "denoising"
        Noising puts the corrupted value into the clean run; the score is what the metric loses: is the source
        *needed*? Denoising puts the clean value into the corrupted run; the score is what the metric gains: is the
        source *enough*?
    batch_size : int
        Examples at once.
    on_batch : function, optional
        Called after each batch with the number of its examples.

    Returns
    -------
    float64 array [example, source]
        Positive: the source helps. A pass of the subject for every head and MLP; ``input`` takes none, since patching
        it exchanges the runs.
    """
    stream = Stream(subject, graph)
    objective = stream.objective(pairs, batch_size)
    scores = np.zeros((len(pairs), len(graph.sources)))
    layers = range(graph.n_layers)
    names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    names += [f"blocks.{layer}.hook_mlp_out" for layer in layers if graph.mlps]
    for at, clean, corrupted in stream.batches(pairs, batch_size):
        receiver, giver = (clean, corrupted) if direction == "noising" else (corrupted, clean)
        given = subject.run(giver, capture=names)
        assert given.value is not None
        before = scored(subject, receiver, objective, at)
        scores[at, 0] = objective(given.value, at).cpu().double().numpy() - before
        for layer in layers:
            name = f"blocks.{layer}.attn.hook_z"
            for head, source in enumerate(range(*graph.heads(layer).indices(len(graph.sources)))):
                edits: Edits = {name: head_from(given.captured[name], head)}
                scores[at, source] = scored(subject, receiver, objective, at, edits) - before
            if graph.mlps:
                name = f"blocks.{layer}.hook_mlp_out"
                edits = {name: taken_from(given.captured[name])}
                scores[at, graph.mlp(layer)] = scored(subject, receiver, objective, at, edits) - before
        if on_batch is not None:
            on_batch(len(at))
    return -scores if direction == "noising" else scores


def patch_edges(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    *,
    edges: np.ndarray | None = None,
    most_passes: int = MOST_PASSES,
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """Patch edges exactly, one at a time: the destination reads what the source adds in the corrupted run.

    Parameters
    ----------
    subject, pairs, graph
        See `patch_nodes`.
    edges : bool array [sources, destinations], optional
        Which; by default all.
    most_passes : int
        More passes than this are refused: an edge takes one for each batch.
    batch_size, on_batch
        See `patch_nodes`.

    Returns
    -------
    float64 array [sources, destinations]
        What the metric loses, mean over examples; NaN where nothing was patched.

    Raises
    ------
    UserError
        Above the budget of passes.
    """
    chosen = graph.real if edges is None else graph.shape_checked(edges)
    n_batches = math.ceil(len(pairs) / batch_size)
    if (passes := int(chosen.sum()) * n_batches) > most_passes:
        raise UserError(
            f"{int(chosen.sum()):,} edges in {n_batches} batches are {passes:,} passes, more than {most_passes:,}: "
            "take fewer edges or examples, larger batches, or attribution (attribute), which takes a few passes for all"
        )
    stream = Stream(subject, graph)
    objective = stream.objective(pairs, batch_size)
    lost = np.where(chosen, 0.0, np.nan)
    places = read_places(graph)
    for at, clean, corrupted in stream.batches(pairs, batch_size):
        now, logits = stream.values(clean)
        change = stream.values(corrupted)[0] - now
        before = objective(logits, at).cpu().double().numpy()
        for source, destination in np.argwhere(chosen):
            name, head = places[destination]
            after = scored(subject, clean, objective, at, {name: with_added(change[source], head)})
            lost[source, destination] += (before - after).sum()
        if on_batch is not None:
            on_batch(len(at))
    return lost / len(pairs)


def read_places(graph: Graph) -> list[tuple[str, int | None]]:
    """Hook point of each destination, and its head there."""
    places: list[tuple[str, int | None]] = []
    for layer in range(graph.n_layers):
        for which in READS:
            places += [(f"blocks.{layer}.hook_{which}_input", head) for head in range(graph.n_read(which))]
        if graph.mlps:
            places.append((f"blocks.{layer}.hook_mlp_in", None))
    return [*places, (f"blocks.{graph.n_layers - 1}.hook_resid_post", None)]


def scored(
    subject: Subject, batch: Batch, objective: Objective, at: np.ndarray, edits: Edits | None = None
) -> np.ndarray:
    """Run a batch under edits and score it -> float64 [batch]."""
    logits = subject.run(batch, edits=edits).value
    assert logits is not None
    return np.asarray(objective(logits, at).cpu().double().numpy())


def head_from(values: Tensor, head: int) -> Edit:
    """Return an edit that takes one head's value [batch, pos, head, ...] from another run."""

    def edit(activation: Tensor, at: At) -> Tensor:
        activation[:, :, head] = values[:, :, head]
        return activation

    return edit


def taken_from(values: Tensor) -> Edit:
    """Return an edit that takes the whole activation from another run."""

    def edit(activation: Tensor, at: At) -> Tensor:
        return values

    return edit


def with_added(change: Tensor, head: int | None) -> Edit:
    """Return an edit that adds `change` [batch, pos, d_model] to what one head reads, or to what an MLP reads."""

    def edit(activation: Tensor, at: At) -> Tensor:
        if head is None:
            return activation + change
        activation[:, :, head] += change
        return activation

    return edit
