"""Maps over patches of what an image is said to show: by second-order neurons, by attention, by first-order effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.neurons import Neurons
from workbench.plugins.second_order.paths import ValuePaths
from workbench.plugins.second_order.readout import architecture
from workbench.plugins.second_order.tracing import Trace, trace
from workbench.subjects.protocol import Batch, Subject

SECOND, ATTENTION, FIRST = "second order", "class attention", "first order"
METHODS = (SECOND, ATTENTION, FIRST)
RANKS = "similar", "strong"  # by cosine, or by cosine times spread
LATE = 4  # layers, of those at the end


@dataclass(frozen=True)
class Variant:
    """One way of a method to make a map.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    name : str
        What is particular to it: ``50 neurons``, ``last layer``.
    """

    method: str
    name: str


class MapMaker:
    """Makes all variants of all methods' maps from one forward pass.

    Second order: the neurons of the layers that were looked at whose directions are most like the query (by absolute
    cosine, or by that times the spread of their effects); their activations on each patch, averaged with the sign of
    the cosine; or what each patch gives to the embedding through all neurons of a layer and the values of later heads,
    projected on the query: effects before they are summed over patches. Class attention: from the class
    token, averaged over heads. First order: what each patch gives to the class token through the heads, projected on
    the query (Gandelsman et al. 2024); both over the last layer, the last four, or all.

    Parameters
    ----------
    subject : Subject
        A vision tower read out at its class token.
    neurons : mapping of int to Neurons
        By layer.
    counts : sequence of int
        Numbers of neurons.
    """

    def __init__(self, subject: Subject, neurons: Mapping[int, Neurons], counts: Sequence[int]) -> None:
        self.subject, self.layers = subject, sorted(neurons)
        self.n_prefix = architecture(subject).n_prefix
        self.paths = ValuePaths(subject, 0)
        self.layer_paths = {layer: ValuePaths(subject, layer) for layer in self.layers}
        found = np.concatenate([neurons[layer].direction for layer in self.layers])
        self.directions = torch.from_numpy(found).to(self.paths.reads)
        self.spread = torch.from_numpy(np.concatenate([neurons[layer].spread for layer in self.layers])).to(
            self.directions
        )
        self.counts = sorted({min(count, len(found)) for count in counts})
        last = subject.n_layers - 1
        spans = {"last layer": [last], f"last {LATE} layers": [*range(max(0, last - LATE + 1), last + 1)]}
        self.spans = {**spans, "all layers": [*range(last + 1)]}
        if subject.n_layers <= LATE:
            del self.spans[f"last {LATE} layers"]
        head = self.paths.last_norm(self.paths.branches[0])
        self.heads = [self.paths.output_maps(layer) @ head for layer in range(subject.n_layers)]

    @property
    def variants(self) -> list[Variant]:
        """All of them."""
        return [
            *(Variant(SECOND, f"{count} {rank} neurons") for rank in RANKS for count in self.counts),
            *(Variant(SECOND, f"effects, layer {layer}") for layer in self.layers),
            Variant(SECOND, "effects, all these layers"),
            *(Variant(method, span) for method in (ATTENTION, FIRST) for span in self.spans),
        ]

    def __call__(self, batch: Batch, queries: Tensor) -> dict[Variant, np.ndarray]:
        """Make the maps of a batch.

        Parameters
        ----------
        batch : Batch
            Images.
        queries : Tensor
            [image, output] what is looked for in each.

        Returns
        -------
        dict of Variant to np.ndarray
            [image, patch] each.
        """
        every = range(self.subject.n_layers)
        more = [f"blocks.{layer}.attn.hook_{name}" for layer in every for name in ("v", "pattern")]
        traced = trace(self.subject, batch, self.layers, more)
        queries = queries.to(self.directions)
        second = {**self.second(traced, queries), **self.effects(traced, queries)}
        maps = {Variant(SECOND, name): values for name, values in second.items()}
        attention = torch.stack([self.pattern(traced, layer).mean(1) for layer in every])
        first = torch.stack([self.first(traced, layer, queries) for layer in every])
        for name, span in self.spans.items():
            maps[Variant(ATTENTION, name)] = attention[span].mean(0)
            maps[Variant(FIRST, name)] = first[span].sum(0)
        return {v: m.to("cpu", torch.float32).numpy() for v, m in maps.items()}

    def second(self, traced: Trace, queries: Tensor) -> dict[str, Tensor]:
        """Return the maps by second-order neurons, [image, patch], for each ranking and number of neurons."""
        post = torch.cat([traced.post(layer)[:, self.n_prefix :] for layer in self.layers], dim=2)
        cosines = queries @ self.directions.T
        found = {}
        for rank, weight in zip(RANKS, (torch.ones_like(self.spread), self.spread), strict=True):
            order = (cosines.abs() * weight).argsort(dim=1, descending=True)
            for count in self.counts:
                best = order[:, :count]
                sign = torch.zeros_like(cosines).scatter_(1, best, cosines.gather(1, best).sign())
                found[f"{count} {rank} neurons"] = torch.einsum("bpn,bn->bp", post, sign) / count
        return found

    def effects(self, traced: Trace, queries: Tensor) -> dict[str, Tensor]:
        """Return the maps by effects of all neurons, [image, patch], of each layer and of all that were looked at."""
        found = {}
        for layer, paths in self.layer_paths.items():
            along = torch.einsum("pme,peo,bo->bpm", paths.reads, paths.writes[0], queries)
            stream = traced.post(layer) @ paths.neurons()
            given = torch.einsum("bpi,bim,bpm->bi", traced.mixing(paths), stream, along)
            found[f"effects, layer {layer}"] = given[:, self.n_prefix :]
        return {**found, "effects, all these layers": torch.stack([*found.values()]).sum(0)}

    def pattern(self, traced: Trace, layer: int) -> Tensor:
        """Return attention from the class token to patches, [image, head, patch]."""
        return traced.captured[f"blocks.{layer}.attn.hook_pattern"][:, :, 0, self.n_prefix :]

    def first(self, traced: Trace, layer: int, queries: Tensor) -> Tensor:
        """Return what each patch gives to the class token through a layer's heads, along the query, [image, patch]."""
        v = traced.captured[f"blocks.{layer}.attn.hook_v"][:, self.n_prefix :]
        v = v.repeat_interleave(self.subject.n_heads // self.subject.n_key_value_heads, dim=2)
        along = torch.einsum("hdo,bo->bhd", self.heads[layer], queries)
        given = torch.einsum("bhp,bphd,bhd->bp", self.pattern(traced, layer), v, along)
        return given / traced.captured["ln_final.hook_scale"][:, 0]
