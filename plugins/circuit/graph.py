"""The graph of a subject model: what writes to its residual stream, what reads from it, and which comes first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.errors import UserError
from workbench.subjects.protocol import Subject

READS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """Sources, destinations and edges of a decoder whose residual stream is a sum of what its parts add.

    A source's value is what it adds to the stream, a destination's what it reads from the stream, before any norm.
    Biases and positional embeddings belong to no source.

    Attributes
    ----------
    n_layers, n_heads, n_key_value_heads : int
        Sizes. Where heads share keys and values (grouped-query attention), a shared key or value is one destination;
        take the graph of `workbench.subjects.ungrouping.ungrouped` to tell the heads' apart.
    mlps : bool
        Blocks have MLPs.
    parallel : bool
        An MLP reads what enters its block; otherwise it reads its own layer's heads too.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    mlps: bool
    parallel: bool

    @classmethod
    def of(cls, subject: Subject) -> Graph:
        """Return the graph of a subject.

        Raises
        ------
        UserError
            If the subject is not a causal language model, normalises the sum itself after each part (post-norm), or
            does not show what its parts read and write.
        """
        points = subject.hook_points
        if subject.modality != "text" or not subject.causal or "hook_output" not in points:
            raise UserError(f"{subject.address}: circuits are found in causal language models only")
        if any(name.endswith(("hook_normalized_resid_mid", "hook_normalized_resid_post")) for name in points):
            raise UserError(
                f"{subject.address} normalises its residual stream after each sum (post-norm), so the stream is no sum "
                "of what its parts add; circuits need a pre-norm model"
            )
        with_mlp = [f"blocks.{layer}.hook_mlp_out" in points for layer in range(subject.n_layers)]
        parallel = [f"blocks.{layer}.hook_resid_mid" not in points for layer in range(subject.n_layers)]
        if len(set(with_mlp)) > 1 or len(set(parallel)) > 1:
            raise UserError(f"{subject.address} has blocks of several kinds; circuits need blocks of one kind")
        mlps = with_mlp[0]
        found = cls(subject.n_layers, subject.n_heads, subject.n_key_value_heads, mlps, mlps and parallel[0])
        for layer in range(subject.n_layers):
            names = ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "attn.hook_z", "attn.hook_result"]
            names += [f"hook_{which}_input" for which in READS] + ["hook_mlp_in", "hook_mlp_out"] * mlps
            missing = [name for name in names if f"blocks.{layer}.{name}" not in points]
            if missing:
                raise UserError(f"{subject.address} has no hook point blocks.{layer}.{missing[0]}, which circuits need")
        return found

    # --- sources ------------------------------------------------------------------------------------------------
    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names in the order in which they are written: ``input``, ``a0.h0``, ..., ``m0``, ``a1.h0``, ..."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.mlps
        return tuple(names)

    @property
    def per_layer(self) -> int:
        """Sources of one layer."""
        return self.n_heads + self.mlps

    def heads(self, layer: int) -> slice:
        """Places of a layer's heads among the sources."""
        start = 1 + layer * self.per_layer
        return slice(start, start + self.n_heads)

    def mlp(self, layer: int) -> int:
        """Place of a layer's MLP among the sources."""
        return 1 + layer * self.per_layer + self.n_heads

    @property
    def head_sources(self) -> np.ndarray:
        """Places of all heads among the sources, int64, by layer, then head."""
        return np.concatenate([np.arange(len(self.sources))[self.heads(layer)] for layer in range(self.n_layers)])

    # --- destinations -------------------------------------------------------------------------------------------
    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names: for each layer its queries ``a0.h3<q>``, keys, values, then ``m0``; last ``logits``.

        A key or value that several heads share is called ``a0.kv1<k>``.
        """
        shared = "h" if self.n_key_value_heads == self.n_heads else "kv"
        names = []
        for layer in range(self.n_layers):
            for which in READS:
                unit = "h" if which == "q" else shared
                names += [f"a{layer}.{unit}{head}<{which}>" for head in range(self.n_read(which))]
            names += [f"m{layer}"] * self.mlps
        return (*names, "logits")

    def n_read(self, which: str) -> int:
        """Number of queries, keys or values (``q``, ``k``, ``v``) of a layer."""
        return self.n_heads if which == "q" else self.n_key_value_heads

    @property
    def read_per_layer(self) -> int:
        """Destinations of one layer."""
        return sum(self.n_read(each) for each in READS) + self.mlps

    def reads(self, layer: int, which: str) -> slice:
        """Places of a layer's queries, keys or values among the destinations."""
        start = layer * self.read_per_layer + sum(self.n_read(each) for each in READS[: READS.index(which)])
        return slice(start, start + self.n_read(which))

    def mlp_in(self, layer: int) -> int:
        """Place of a layer's MLP among the destinations."""
        return (layer + 1) * self.read_per_layer - 1

    @property
    def logits(self) -> int:
        """Place of the logits among the destinations."""
        return len(self.destinations) - 1

    # --- edges --------------------------------------------------------------------------------------------------
    def n_before(self, layer: int, *, mlp: bool = False) -> int:
        """Number of sources written before a layer's attention reads, or before its MLP does."""
        return 1 + layer * self.per_layer + (self.n_heads if mlp and not self.parallel else 0)

    @cached_property
    def n_upstream(self) -> np.ndarray:
        """Number of sources that each destination can read, int64 [destinations]: always the first ones."""
        counts = np.full(len(self.destinations), len(self.sources), np.int64)
        for layer in range(self.n_layers):
            counts[self.reads(layer, "q").start : self.reads(layer, "v").stop] = self.n_before(layer)
            if self.mlps:
                counts[self.mlp_in(layer)] = self.n_before(layer, mlp=True)
        return counts

    @cached_property
    def real(self) -> np.ndarray:
        """Which edges exist, bool [sources, destinations]."""
        return np.asarray(np.arange(len(self.sources))[:, None] < self.n_upstream)

    @property
    def n_edges(self) -> int:
        """Number of edges that exist."""
        return int(self.real.sum())

    @cached_property
    def owners(self) -> np.ndarray:
        """Which source each destination feeds, bool [destinations, sources]; a shared key feeds several heads."""
        fed = np.zeros((len(self.destinations), len(self.sources)), dtype=bool)
        for layer in range(self.n_layers):
            for which in READS:
                places = np.arange(len(self.destinations))[self.reads(layer, which)]
                share = self.n_heads // len(places)
                fed[np.repeat(places, share), np.arange(len(self.sources))[self.heads(layer)]] = True
            if self.mlps:
                fed[self.mlp_in(layer), self.mlp(layer)] = True
        return fed

    def edge(self, source: str, destination: str) -> tuple[int, int]:
        """Return the place of an edge by its names.

        Raises
        ------
        UserError
            If there is no such edge.
        """
        if source in self.sources and destination in self.destinations:
            place = self.sources.index(source), self.destinations.index(destination)
            if self.real[place]:
                return place
        raise UserError(f"there is no edge {source} -> {destination} in a graph of {self.n_layers} layers")

    def shape_checked(self, present: np.ndarray) -> np.ndarray:
        """Return a set of edges as bool [sources, destinations], edges that do not exist left out.

        Raises
        ------
        UserError
            For an array of another shape.
        """
        if present.shape != self.real.shape:
            raise UserError(f"edges {present.shape}: this graph has {self.real.shape} sources and destinations")
        return np.asarray(present.astype(bool) & self.real)
