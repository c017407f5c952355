"""Attribution: what patching each edge would do, estimated from gradients in a few passes for all edges at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.circuit.graph import READS, Graph
from workbench.plugins.circuit.objectives import Objective
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.patching import BATCH_SIZE, OnBatch
from workbench.plugins.circuit.stream import ENTRY, Stream
from workbench.subjects.protocol import At, Batch, Edit, Subject

Method = Literal["eap", "eap-ig", "eap-ig-activations", "clean-corrupted"]
Rule = Literal["midpoint", "left"]
STEPS = 20


@dataclass(frozen=True)
class EdgeScores:
    """What attribution gave.

    Attributes
    ----------
    edges : float64 array [sources, destinations]
        Mean over examples of what the metric would lose if the edge were corrupted; positive: the edge helps. 0 where
        there is no edge.
    nodes : float64 array [example, source]
        The same of each source as a whole, by example: the sum over the edges that leave it.
    """

    edges: np.ndarray
    nodes: np.ndarray


@dataclass(frozen=True)
class Point:
    """One run with gradients.

    Attributes
    ----------
    weight : float
        Share of this run in the scores.
    credited : slice
        Sources whose edges it counts for.
    hook_point : str, optional
        Where the clean value is replaced.
    alpha : float
        By corrupted + alpha (clean - corrupted).
    """

    weight: float
    credited: slice
    hook_point: str | None = None
    alpha: float = 1.0


def attribute(
    subject: Subject,
    pairs: Pairs,
    graph: Graph,
    *,
    method: Method = "eap",
    steps: int = STEPS,
    rule: Rule = "midpoint",
    batch_size: int = BATCH_SIZE,
    on_batch: OnBatch | None = None,
) -> EdgeScores:
    """Score all edges: minus the change of the source's value, times the metric's gradient at the destination.

    Sums run over positions and width, the mean over examples. An example's score does not depend on its batch.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    pairs : Pairs
        Prompts and metric.
    graph : Graph
        Of the subject.
    method : str
        Where the gradient is taken. ``eap``: at the clean run. ``clean-corrupted``: mean of both ends. ``eap-ig``: mean
        along a straight path of the embedding from the corrupted to the clean prompt. ``eap-ig-activations``: for each
        layer's heads, each MLP and the embedding in turn along a path of their own output, counted for the edges that
        leave them.
    steps : int
        Points of a path.
    rule : "midpoint" or "left"
        Points at (k + ½) / steps, or at k / steps as in published code, which never reaches the clean end.
    batch_size : int
        Examples at once; for each, the change of every source at every position is held.
    on_batch : function, optional
        Called after each batch with the number of its examples.

    Raises
    ------
    UserError
        For fewer than one step.
    """
    if steps < 1:
        raise UserError(f"steps={steps}: at least 1")
    stream = Stream(subject, graph)
    objective = stream.objective(pairs, batch_size)
    points = list(path(graph, method, steps, rule))
    edges = np.zeros(graph.real.shape)
    nodes = np.zeros((len(pairs), len(graph.sources)))
    for at, clean, corrupted in stream.batches(pairs, batch_size):
        ends = Ends.of(stream, clean, corrupted, {point.hook_point for point in points if point.hook_point})
        for point in points:
            found = Contraction(graph, ends.change, point)
            differentiate(subject, clean, objective, at, found, ends)
            edges += found.edges
            nodes[at] += found.nodes
        if on_batch is not None:
            on_batch(len(at))
    return EdgeScores(np.where(graph.real, edges / len(pairs), 0.0), nodes)


def path(graph: Graph, method: Method, steps: int, rule: Rule) -> Iterator[Point]:
    """Yield the runs of a method."""
    every = slice(0, len(graph.sources))
    alphas = [(k + (0.5 if rule == "midpoint" else 0.0)) / steps for k in range(steps)]
    match method:
        case "eap":
            yield Point(1.0, every)
        case "clean-corrupted":
            yield Point(0.5, every)
            yield Point(0.5, every, ENTRY, 0.0)
        case "eap-ig":
            yield from (Point(1 / steps, every, ENTRY, alpha) for alpha in alphas)
        case "eap-ig-activations":
            groups = [(ENTRY, slice(0, 1))]
            for layer in range(graph.n_layers):
                groups.append((f"blocks.{layer}.hook_attn_out", graph.heads(layer)))
                if graph.mlps:
                    groups.append((f"blocks.{layer}.hook_mlp_out", slice(graph.mlp(layer), graph.mlp(layer) + 1)))
            yield from (Point(1 / steps, places, name, alpha) for name, places in groups for alpha in alphas)
        case _:
            raise UserError(f"method {method!r}: must be eap, eap-ig, eap-ig-activations or clean-corrupted")


@dataclass(frozen=True)
class Ends:
    """Both ends of the paths of one batch.

    Attributes
    ----------
    change : Tensor [source, batch, pos, d_model]
        Corrupted less clean.
    clean, corrupted : dict of str to Tensor
        Hook points along whose values paths lead.
    """

    change: Tensor
    clean: dict[str, Tensor]
    corrupted: dict[str, Tensor]

    @classmethod
    def of(cls, stream: Stream, clean: Batch, corrupted: Batch, hook_points: set[str]) -> Ends:
        """Run both ends."""
        wanted = [*dict.fromkeys([*stream.hook_points, *sorted(hook_points)])]
        one, other = (stream.subject.run(batch, capture=wanted).captured for batch in (clean, corrupted))
        change = stream.gather(other) - stream.gather(one)
        wide = change if change.dtype == torch.float64 else change.float()
        return cls(wide, *({name: found[name] for name in hook_points} for found in (one, other)))


class Contraction:
    """What one run's gradients come to, contracted with the change of the sources as they arrive.

    The gradients of all destinations are never held together.

    Parameters
    ----------
    graph : Graph
        Of the subject.
    change : Tensor [source, batch, pos, d_model]
        Corrupted less clean.
    point : Point
        The run.

    Attributes
    ----------
    edges : float64 array [sources, destinations]
        Sum over examples, by the point's weight.
    nodes : float64 array [batch, source]
        Likewise, by example.
    """

    def __init__(self, graph: Graph, change: Tensor, point: Point) -> None:
        self.graph, self.change, self.point = graph, change, point
        self.edges = np.zeros(graph.real.shape)
        self.nodes = np.zeros((change.shape[1], len(graph.sources)))

    def edits(self, exit_name: str) -> dict[str, list[Edit]]:
        """Return edits that change nothing and hang a backward function on every source and destination."""
        graph = self.graph
        edits: dict[str, list[Edit]] = {ENTRY: [watched(self.source(slice(0, 1)))]}
        for layer in range(graph.n_layers):
            at, n_before = f"blocks.{layer}.", graph.n_before(layer)
            for which in READS:
                edits[f"{at}hook_{which}_input"] = [watched(self.read(graph.reads(layer, which), n_before))]
            edits[f"{at}hook_attn_out"] = [watched(self.source(graph.heads(layer)))]
            if graph.mlps:
                place, one = graph.mlp_in(layer), graph.mlp(layer)
                read = self.read(slice(place, place + 1), graph.n_before(layer, mlp=True))
                edits[f"{at}hook_mlp_in"] = [watched(read)]
                edits[f"{at}hook_mlp_out"] = [watched(self.source(slice(one, one + 1)))]
        last = self.read(slice(graph.logits, graph.logits + 1), len(graph.sources))
        edits[exit_name] = [watched(last)]
        return edits

    def read(self, places: slice, n_before: int) -> Callable[[Tensor], None]:
        """Contract the gradient of a destination [batch, pos, d_model], or of several [batch, pos, head, d_model]."""
        rows = slice(self.point.credited.start, min(self.point.credited.stop, n_before))

        def arrived(gradient: Tensor) -> None:
            if rows.start >= rows.stop:
                return
            by_head = gradient.unsqueeze(2) if gradient.ndim == 3 else gradient
            flat = by_head.permute(0, 1, 3, 2).reshape(-1, by_head.shape[2]).to(self.change)
            found = self.change[rows].flatten(1) @ flat
            self.edges[rows, places] -= self.point.weight * found.cpu().double().numpy()

        return arrived

    def source(self, places: slice) -> Callable[[Tensor], None]:
        """Contract the gradient at the output of some sources [batch, pos, d_model]: it is the same for all of them."""
        rows = slice(max(places.start, self.point.credited.start), min(places.stop, self.point.credited.stop))

        def arrived(gradient: Tensor) -> None:
            if rows.start >= rows.stop:
                return
            found = torch.einsum("sbpd,bpd->bs", self.change[rows], gradient.to(self.change))
            self.nodes[:, rows] -= self.point.weight * found.cpu().double().numpy()

        return arrived


def watched(arrived: Callable[[Tensor], None]) -> Edit:
    """Return an edit that changes nothing and calls `arrived` with the gradient at the activation."""

    def edit(activation: Tensor, at: At) -> Tensor:
        if not activation.requires_grad:
            activation = activation.detach().requires_grad_()
        activation.register_hook(arrived)  # type: ignore[no-untyped-call]
        return activation

    return edit


def between(corrupted: Tensor, clean: Tensor, alpha: float) -> Edit:
    """Return an edit that puts a point of the straight path between two values."""

    def edit(activation: Tensor, at: At) -> Tensor:
        return corrupted + alpha * (clean - corrupted)

    return edit


def differentiate(
    subject: Subject, clean: Batch, objective: Objective, at: np.ndarray, found: Contraction, ends: Ends
) -> None:
    """Run the clean batch forward, with one value replaced if the point says so, and the metric's sum backward."""
    edits = found.edits(f"blocks.{found.graph.n_layers - 1}.hook_resid_post")
    name = found.point.hook_point
    if name is not None:  # replaced first, so that the gradient is taken at what takes its place
        edits[name].insert(0, between(ends.corrupted[name], ends.clean[name], found.point.alpha))
    logits = subject.run(clean, edits=edits, grad=True).value
    assert logits is not None
    torch.autograd.backward(objective(logits, at).sum())
