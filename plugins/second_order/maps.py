"""Maps over patches of what an image is said to show: by second-order neurons, by attention, by first-order effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.effects import blocks
from workbench.plugins.second_order.neurons import Neurons
from workbench.plugins.second_order.paths import ValuePaths
from workbench.plugins.second_order.readout import architecture
from workbench.plugins.second_order.tracing import trace
from workbench.subjects.protocol import Batch, Subject

SECOND, ATTENTION, FIRST = "second order", "class attention", "first order"
METHODS = (SECOND, ATTENTION, FIRST)
LATE = 4  # layers, of those at the end
FEW_HEADS = 8


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


@dataclass(frozen=True)
class Seen:
    """What one forward pass gave, whatever is looked for in its images.

    Attributes
    ----------
    patterns : Tensor
        [image, layer, head, patch] attention from the class token.
    values : Tensor
        [image, layer, head, patch, d_head] what heads read there, over the scale of the last norm.
    post : Tensor
        [image, patch, neuron] activations, of the layers looked at, side by side.
    along : Tensor
        [image, patch, neuron] what each gives to the embedding from there, along the neuron's direction.
    streams, mixing : dict of int to Tensor
        By layer: what its MLP writes, [image, patch, d_model], and how it is mixed, [image, path, patch].
    """

    patterns: Tensor
    values: Tensor
    post: Tensor
    along: Tensor
    streams: dict[int, Tensor]
    mixing: dict[int, Tensor]

    def of(self, images: Tensor) -> Seen:
        """Return the same of some images, as often as each is named."""
        return Seen(
            self.patterns[images],
            self.values[images],
            self.post[images],
            self.along[images],
            {layer: each[images] for layer, each in self.streams.items()},
            {layer: each[images] for layer, each in self.mixing.items()},
        )


class MapMaker:
    """Makes all variants of all methods' maps from one forward pass.

    *Second order.* Neurons of the layers that were looked at whose directions are most like the query, by absolute
    cosine (``similar``) or by that times the spread of their effects (``strong``). Their activations on each patch,
    averaged with the sign of the cosine as in the paper, or weighted by the cosine times the spread (``weighted``); or
    their effects from each patch along their directions, weighted by the cosine (``effects of``). Or the effects of
    all neurons of a layer on the query, before they are summed over patches.

    *Class attention*: from the class token, averaged over heads. *First order*: what each patch gives to the class
    token through the heads, projected on the query (Gandelsman et al. 2024). Both over the last layer, the last four,
    all, or each by itself, with all heads or those few whose maps vary most; first order also with the positive parts
    of heads only.

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
        self.paths = {layer: ValuePaths(subject, layer) for layer in self.layers}
        any_paths = ValuePaths(subject, 0)
        by_layer = {layer: torch.from_numpy(neurons[layer].direction).to(any_paths.reads) for layer in self.layers}
        self.directions = torch.cat([*by_layer.values()])
        self.spread = torch.from_numpy(np.concatenate([neurons[layer].spread for layer in self.layers]))
        self.spread = self.spread.to(self.directions)
        self.unit = {layer: along_directions(self.paths[layer], each) for layer, each in by_layer.items()}
        self.counts = sorted({min(count, len(self.directions)) for count in counts})
        last = subject.n_layers - 1
        self.spans = {"last layer": [last], f"last {LATE} layers": [*range(max(0, last - LATE + 1), last + 1)]}
        if subject.n_layers <= LATE:
            del self.spans[f"last {LATE} layers"]
        self.spans |= {"all layers": [*range(last + 1)]} | {f"layer {layer}": [layer] for layer in range(last)}
        head = any_paths.last_norm(any_paths.branches[0])
        self.heads = torch.stack([any_paths.output_maps(layer) @ head for layer in range(subject.n_layers)])

    @property
    def variants(self) -> list[Variant]:
        """All of them."""
        heads = [f"{name}{more}" for name in self.spans for more in self.choices_of_heads(name)]
        second = [way for count in self.counts for way in ways(count)]
        second += [*(f"effects, layer {layer}" for layer in self.layers), "effects, all these layers"]
        first = [*heads, *(f"{name}, positive parts" for name in self.spans)]
        found = {SECOND: second, ATTENTION: heads, FIRST: first}
        return [Variant(method, name) for method, names in found.items() for name in names]

    def choices_of_heads(self, span: str) -> list[str]:
        """Return what is added to a span's name: nothing for all heads, and for a few where it has more."""
        return ["", f", {FEW_HEADS} heads"][: 1 + (len(self.spans[span]) * self.subject.n_heads > FEW_HEADS)]

    def look(self, batch: Batch) -> Seen:
        """Run a batch of images."""
        every = range(self.subject.n_layers)
        names = [f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "v") for layer in every]
        traced = trace(self.subject, batch, self.layers, names)
        patterns, values = (
            torch.stack([traced.captured[name] for name in each], dim=1)
            for each in (names[: len(every)], names[len(every) :])
        )
        values = values[:, :, self.n_prefix :].transpose(2, 3)
        values = values.repeat_interleave(self.subject.n_heads // self.subject.n_key_value_heads, dim=2)
        mixing = {layer: traced.mixing(paths)[..., self.n_prefix :] for layer, paths in self.paths.items()}
        posts = {layer: traced.post(layer)[:, self.n_prefix :] for layer in self.layers}
        along = [torch.einsum("bsp,sn->bpn", mixing[layer], self.unit[layer]) * posts[layer] for layer in self.layers]
        return Seen(
            patterns[:, :, :, 0, self.n_prefix :],
            values / traced.captured["ln_final.hook_scale"][:, 0].reshape(-1, 1, 1, 1, 1),
            torch.cat([*posts.values()], dim=2),
            torch.cat(along, dim=2),
            {layer: posts[layer] @ paths.neurons() for layer, paths in self.paths.items()},
            mixing,
        )

    def maps(self, seen: Seen, queries: Tensor) -> dict[Variant, np.ndarray]:
        """Make the maps of images for what is looked for in each, queries [image, output] -> [image, patch] each."""
        queries = queries.to(self.directions)
        found = {SECOND: {**self.neurons(seen, queries), **self.effects(seen, queries)}}
        given = torch.einsum("blhpd,lhdo,bo->blhp", seen.values * seen.patterns[..., None], self.heads, queries)
        found[ATTENTION], found[FIRST] = self.by_heads(seen.patterns), self.by_heads(given)
        for name, span in self.spans.items():
            found[FIRST][f"{name}, positive parts"] = given[:, span].clamp_min(0).sum((1, 2))
        return {
            Variant(method, name): values.to("cpu", torch.float32).numpy()
            for method, maps in found.items()
            for name, values in maps.items()
        }

    def neurons(self, seen: Seen, queries: Tensor) -> dict[str, Tensor]:
        """Return the maps by some neurons, [image, patch]."""
        cosines, found = queries @ self.directions.T, {}
        weighted = cosines * self.spread
        for count in self.counts:
            similar, strong = (mask_of_largest(each, count) for each in (cosines.abs(), weighted.abs()))
            weights = similar * cosines.sign(), strong * cosines.sign(), similar * weighted, similar * cosines
            values = seen.post, seen.post, seen.post, seen.along
            for name, value, weight in zip(ways(count), values, weights, strict=True):
                found[name] = torch.einsum("bpn,bn->bp", value, weight)
        return found

    def effects(self, seen: Seen, queries: Tensor) -> dict[str, Tensor]:
        """Return the maps by effects of all neurons, [image, patch], of each layer and of all that were looked at."""
        found = {}
        for layer, paths in self.paths.items():
            along = torch.einsum("pme,peo,bo->bpm", paths.reads, paths.writes[0], queries)
            found[f"effects, layer {layer}"] = torch.einsum(
                "bpi,bim,bpm->bi", seen.mixing[layer], seen.streams[layer], along
            )
        return {**found, "effects, all these layers": torch.stack([*found.values()]).sum(0)}

    def by_heads(self, given: Tensor) -> dict[str, Tensor]:
        """Add up what heads give, [image, layer, head, patch], over spans of layers and over a few of the heads."""
        found = {}
        for name, span in self.spans.items():
            flat = given[:, span].flatten(1, 2)
            for more in self.choices_of_heads(name):
                kept = mask_of_largest(flat.std(2), FEW_HEADS if more else flat.shape[1])
                found[name + more] = torch.einsum("bhp,bh->bp", flat, kept)
        return found


def ways(count: int) -> tuple[str, str, str, str]:
    """Return the names of the maps that are made of a number of neurons."""
    similar = f"{count} similar neurons"
    return similar, f"{count} strong neurons", f"{similar}, weighted", f"effects of {similar}"


def along_directions(paths: ValuePaths, directions: Tensor) -> Tensor:
    """Return what each neuron of a layer gives through each path along its own direction, [path, neuron]."""
    found = [
        torch.einsum("pno,no->pn", paths.carry(paths.neurons(block)), directions[block])
        for block in blocks(len(directions), paths, 1)
    ]
    return torch.cat(found, dim=1)


def mask_of_largest(values: Tensor, count: int) -> Tensor:
    """Return 1 at the largest values of each row, 0 elsewhere, [row, column]."""
    best = values.topk(min(count, values.shape[1]), dim=1).indices
    return torch.zeros_like(values).scatter_(1, best, 1.0)
