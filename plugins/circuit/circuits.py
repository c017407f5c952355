"""Circuits run alone: everything that a circuit leaves out is ablated, edge by edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.circuit.graph import READS, Graph
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import BATCH_SIZE, OnBatch, scored
from workbench.plugins.circuit.stream import ENTRY, POSITIONS, Stream, scale_name
from workbench.subjects.protocol import At, Batch, Edit, Subject

Ablation = Literal["resample", "mean", "zero"]


def run_circuit(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    present: np.ndarray,
    *,
    ablation: Ablation = "resample",
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """Run one circuit on the clean prompts; see `run_circuits`. Returns the metric, float64 [example]."""
    found = run_circuits(subject, pairs, graph, [present], ablation=ablation, batch_size=batch_size, on_batch=on_batch)
    return np.asarray(found[0])


def run_circuits(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    circuits: Sequence[np.ndarray],
    *,
    ablation: Ablation = "resample",
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """Run circuits on the clean prompts: along a present edge flows what the source adds in this very run.

    Parameters
    ----------
    subject, pairs, graph
        A causal language model, prompts and metric, the subject's graph.
    circuits : sequence of bool arrays [sources, destinations]
        The edges that are present in each.
    ablation : "resample", "mean" or "zero"
        What flows along an absent edge: what the source adds on the corrupted prompt; the mean of that over all pairs,
        at each position if all prompts are equally long; nothing (far from what the subject is used to).
    batch_size : int
        Examples at once.
    on_batch : function, optional
        Called after each batch with the number of its examples.

    Returns
    -------
    float64 array [circuit, example]
        The metric. With all edges that of the subject as it is; with none, resampled, that on the corrupted prompts.

    Raises
    ------
    UserError
        For edges of another shape.
    """
    stream = Stream(subject, graph)
    objective = stream.objective(pairs, batch_size)
    absent = [graph.real & ~graph.shape_checked(present) for present in circuits]
    mean = mean_values(stream, pairs, batch_size) if ablation == "mean" else None
    scores = np.zeros((len(circuits), len(pairs)))
    for at, clean, corrupted in stream.batches(pairs, batch_size):
        instead = None
        if ablation == "resample":
            instead = stream.values(corrupted)[0]
        elif mean is not None:
            instead = mean[:, :, : clean.inputs.shape[1]]
        for number, missing in enumerate(absent):
            edits = Ablated(stream, clean, missing, instead).edits()
            scores[number, at] = scored(subject, clean, objective, at, edits)
        if on_batch is not None:
            on_batch(len(at))
    return scores


def mean_values(stream: Stream, pairs: Pairs, batch_size: int) -> Tensor:
    """Mean over corrupted prompts of what each source adds [source, 1, pos or 1, d_model]."""
    equal = len(set(pairs.lengths.tolist())) == 1
    summed: list[Tensor] = []
    count = 0
    for _, _, corrupted in stream.batches(pairs, batch_size):
        values = stream.values(corrupted)[0].double()
        if equal:
            summed.append(values.sum(1, keepdim=True))
            count += corrupted.n_examples
        else:
            summed.append((values * corrupted.mask[None, :, :, None]).sum((1, 2), keepdim=True))
            count += int(corrupted.mask.sum())
    mean = (torch.stack(summed).sum(0) / count).to(stream.subject.dtype)
    return mean if equal else mean.expand(-1, -1, pairs.clean.shape[1], -1)


class Ablated:
    """The edits of one run in which absent edges carry something else.

    Every source is noted as the run reaches it; every destination then gets, for each absent edge, what flows instead
    less what flows now.

    Parameters
    ----------
    stream : Stream
        Of the subject.
    batch : Batch
        What is run.
    absent : bool array [sources, destinations]
        Edges that are left out.
    instead : Tensor [source, batch or 1, pos, d_model], optional
        What flows along them; nothing by default.
    """

    def __init__(self, stream: Stream, batch: Batch, absent: np.ndarray, instead: Tensor | None) -> None:
        self.stream, self.graph, self.instead = stream, stream.graph, instead
        subject = stream.subject
        self.absent = torch.from_numpy(absent).to(subject.device, subject.dtype)
        shape = len(self.graph.sources), *batch.inputs.shape, subject.d_model
        self.change = torch.zeros(shape, device=subject.device, dtype=subject.dtype)
        self.positions: Tensor | None = None
        self.scales: dict[int, Tensor] = {}

    def edits(self) -> dict[str, Edit]:
        """Return the edits by hook point."""
        graph = self.graph
        edits: dict[str, Edit] = {ENTRY: self.note_input}
        if POSITIONS in self.stream.subject.hook_points:
            edits[POSITIONS] = self.note_positions
        for layer in range(graph.n_layers):
            at = f"blocks.{layer}."
            for which in READS:
                self.add_read(edits, f"{at}hook_{which}_input", graph.reads(layer, which))
            edits[f"{at}attn.hook_result"] = self.note_heads(layer)
            if self.stream.gains[layer].weight is not None:
                edits[scale_name(layer)] = self.note_scale(layer)
            if graph.mlps:
                self.add_read(edits, f"{at}hook_mlp_in", graph.mlp_in(layer))
                edits[f"{at}hook_mlp_out"] = self.note_mlp(layer)
        self.add_read(edits, self.stream.exit, graph.logits)
        return edits

    def add_read(self, edits: dict[str, Edit], name: str, places: slice | int) -> None:
        """Edit what one destination, or all of a layer's queries, keys or values, read; only if an edge is missing."""
        weights = self.absent[:, places].reshape(len(self.absent), -1)  # [source, head or 1]
        used = torch.nonzero(weights.any(1)).flatten()
        if not len(used):
            return

        def edit(activation: Tensor, at: At) -> Tensor:
            change: Tensor = torch.tensordot(weights[used].T, self.change[used], dims=1)  # [head, batch, pos, d_model]
            return activation + (change[0] if isinstance(places, int) else change.permute(1, 2, 0, 3))

        edits[name] = edit

    def note(self, places: slice | int, values: Tensor) -> None:
        """Remember what flows instead of `values`, less those."""
        self.change[places] = -values if self.instead is None else self.instead[places] - values

    def note_positions(self, activation: Tensor, at: At) -> Tensor:
        """Positions belong to no source."""
        self.positions = activation
        return activation

    def note_input(self, activation: Tensor, at: At) -> Tensor:
        """The embedding."""
        self.note(0, activation if self.positions is None else activation - self.positions)
        return activation

    def note_scale(self, layer: int) -> Edit:
        """What a norm behind the attention divides by in this run; the heads' results have been noted before it."""

        def edit(activation: Tensor, at: At) -> Tensor:
            results = self.scales.pop(layer)
            self.note(self.graph.heads(layer), self.stream.added(layer, results, activation))
            return activation

        return edit

    def note_heads(self, layer: int) -> Edit:
        """The heads of a layer."""

        def edit(activation: Tensor, at: At) -> Tensor:
            if self.stream.gains[layer].weight is None:
                self.note(self.graph.heads(layer), self.stream.added(layer, activation, None))
            else:
                self.scales[layer] = activation
            return activation

        return edit

    def note_mlp(self, layer: int) -> Edit:
        """The MLP of a layer."""

        def edit(activation: Tensor, at: At) -> Tensor:
            self.note(self.graph.mlp(layer), activation)
            return activation

        return edit


def prune(graph: Graph, present: np.ndarray) -> np.ndarray:
    """Leave out nodes that nothing enters or nothing leaves, again and again, with their edges.

    With resampling this changes nothing: a node that nothing enters computes what it computes on the corrupted prompt.
    Where a norm behind the attention divides all heads of a layer by one number (Gemma 2), that is nearly so.

    Parameters
    ----------
    graph : Graph
        Of the subject.
    present : bool array [sources, destinations]
        The circuit.

    Returns
    -------
    bool array [sources, destinations]
        A part of the circuit.

    Raises
    ------
    UserError
        For edges of another shape.
    """
    kept = graph.shape_checked(present)
    feeds = graph.owners.astype(int)
    while True:
        entered = (kept.any(axis=0).astype(int) @ feeds) > 0
        entered[0] = True  # the input
        alive = entered & kept.any(axis=1)
        useful = (feeds @ alive.astype(int)) > 0
        useful[graph.logits] = True
        fewer = kept & alive[:, None] & useful
        if (fewer == kept).all():
            return kept
        kept = fewer
