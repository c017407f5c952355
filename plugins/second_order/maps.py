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
    cosine); their activations on each patch, averaged with the sign of the cosine. Class attention: from the class
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
        found = np.concatenate([neurons[layer].direction for layer in self.layers])
        self.directions = torch.from_numpy(found).to(self.paths.reads)
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
            *(Variant(SECOND, f"{count} neurons") for count in self.counts),
            *(Variant(method, span) for method in (ATTENTION, FIRST) for span in self.spans),
        ]

    def __call__(self, batch: Batch, queries: Tensor) -> tuple[dict[Variant, np.ndarray], np.ndarray]:
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
        np.ndarray
            [image, neuron] indices of the most similar neurons, over the layers side by side, best first.
        """
        every = range(self.subject.n_layers)
        more = [f"blocks.{layer}.attn.hook_{name}" for layer in every for name in ("v", "pattern")]
        traced = trace(self.subject, batch, self.layers, more)
        queries = queries.to(self.directions)
        maps = {Variant(SECOND, f"{count} neurons"): values for count, values in self.second(traced, queries).items()}
        attention = torch.stack([self.pattern(traced, layer).mean(1) for layer in every])
        first = torch.stack([self.first(traced, layer, queries) for layer in every])
        for name, span in self.spans.items():
            maps[Variant(ATTENTION, name)] = attention[span].mean(0)
            maps[Variant(FIRST, name)] = first[span].sum(0)
        best = (queries @ self.directions.T).abs().argsort(dim=1, descending=True)[:, : self.counts[-1]]
        return {v: m.to("cpu", torch.float32).numpy() for v, m in maps.items()}, best.cpu().numpy()

    def second(self, traced: Trace, queries: Tensor) -> dict[int, Tensor]:
        """Return the maps by second-order neurons, [image, patch], for each number of neurons."""
        post = torch.cat([traced.post(layer)[:, self.n_prefix :] for layer in self.layers], dim=2)
        cosines = queries @ self.directions.T
        order = cosines.abs().argsort(dim=1, descending=True)
        found = {}
        for count in self.counts:
            sign = torch.zeros_like(cosines).scatter_(1, order[:, :count], cosines.gather(1, order[:, :count]).sign())
            found[count] = torch.einsum("bpn,bn->bp", post, sign) / count
        return found

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
