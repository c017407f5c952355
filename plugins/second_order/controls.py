"""Do texts name what neurons are selective for? And controls, in which they must not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.matching import match
from workbench.plugins.second_order.naming import Agreement, Selectivity, agreement, named_concepts, selectivity
from workbench.plugins.second_order.neurons import Neurons, describe_neurons, n_terms
from workbench.plugins.second_order.passes import measure_neurons
from workbench.plugins.second_order.pool import Pool
from workbench.plugins.second_order.sample import TEST, Sample
from workbench.subjects.vit_subject import VisionSubject

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.second_order import SecondOrderConfig
    from workbench.subjects.vit import VisionTransformer

BY_EFFECT, BY_ACTIVATION = "effects", "activations"
CONTROLS = ("random weights", "random directions", "permuted labels")


@dataclass(frozen=True)
class Held:
    """The most selective neurons, held to account.

    Attributes
    ----------
    what : str
        ``neurons``, or one of `CONTROLS`.
    response : str
        By what selectivity was measured on test images: projected effects, or largest activations.
    layer, neuron : np.ndarray
        [selected] which.
    concept, named : np.ndarray
        [selected] what each is selective for, what its texts name; -1 for none.
    auc : np.ndarray
        [selected] of the concept.
    agreement : Agreement
        Of the two.
    """

    what: str
    response: str
    layer: np.ndarray
    neuron: np.ndarray
    concept: np.ndarray
    named: np.ndarray
    auc: np.ndarray
    agreement: Agreement


@dataclass(frozen=True)
class Candidates:
    """All neurons looked at, side by side.

    Responses [image, neuron] by kind; [neuron] spread of the effect, layer, number, what is named.
    """

    responses: dict[str, np.ndarray]
    spread: np.ndarray
    layer: np.ndarray
    neuron: np.ndarray
    directions: np.ndarray
    named: np.ndarray
    sizes: tuple[int, ...]  # numbers of concepts of each label


def gather(config: SecondOrderConfig, neurons: Mapping[int, Neurons], pool: Pool, sample: Sample) -> Candidates:
    """Put the neurons of all layers side by side."""
    every = list(neurons.items())
    sizes = [len(each.direction) for _, each in every]
    texts, weights = (np.concatenate([getattr(each, name) for _, each in every]) for name in ("texts", "coefficients"))
    return Candidates(
        {
            BY_EFFECT: np.concatenate([each.response for _, each in every], axis=1),
            BY_ACTIVATION: np.concatenate([each.peak for _, each in every], axis=1),
        },
        np.concatenate([each.spread for _, each in every]),
        np.repeat([layer for layer, _ in every], sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        np.concatenate([each.direction for _, each in every]),
        named_concepts(texts, weights, pool.names, config.naming_terms),
        tuple(map(len, sample.concepts)),
    )


def hold_to_account(
    context: Context, subject: VisionSubject, sample: Sample, pool: Pool, texts: Tensor, neurons: Mapping[int, Neurons]
) -> list[Held]:
    """Hold the texts of the most selective neurons against what they are selective for on test images.

    Directions and texts come from fitting images, and saw no label. Controls: a copy with shuffled weights, random
    directions for the same neurons, labels permuted over images.
    """
    config = context.config
    test = sample.at(TEST)
    has = sample.has_concept()[test]
    candidates = gather(config, neurons, pool, sample)
    found = []
    for response in (BY_EFFECT, BY_ACTIVATION):
        held = held_by(context, "neurons", response, candidates, selectivity(candidates.responses[response][test], has))
        found.append(held)
        if response == BY_EFFECT and config.controls:
            found += [
                with_random_directions(context, held, candidates, pool, texts),
                with_permuted_labels(context, candidates, sample),
                with_random_weights(context, subject, sample, pool, texts, neurons),
            ]
    return found


def held_by(context: Context, what: str, response: str, candidates: Candidates, found: Selectivity) -> Held:
    """Take the most selective neurons and hold what they are said to name against what they are selective for.

    Between neurons that are equally selective, as those are that tell a concept apart without a fault, the larger
    effect comes first.
    """
    config = context.config
    best = np.lexsort((-candidates.spread, -found.value))[: config.selective]
    rng = context.rng(f"agreement {what} {response}")
    named, concept = candidates.named[best], found.concept[best]
    return Held(
        what,
        response,
        candidates.layer[best],
        candidates.neuron[best],
        concept,
        named,
        found.value[best],
        agreement(named, concept, candidates.sizes, config.permutations, config.draws, rng),
    )


def with_random_directions(context: Context, held: Held, candidates: Candidates, pool: Pool, texts: Tensor) -> Held:
    """Give the selected neurons random directions, and decompose those."""
    config = context.config
    drawn = torch.randn(len(held.neuron), candidates.directions.shape[1], generator=context.torch_rng("directions"))
    terms = match(torch.nn.functional.normalize(drawn, dim=1), texts.float(), n_terms(config.terms, texts.shape[1]))
    named = named_concepts(terms.texts.numpy(), terms.coefficients.numpy(), pool.names, config.naming_terms)
    rng = context.rng("agreement directions")
    result = agreement(named, held.concept, candidates.sizes, config.permutations, config.draws, rng)
    return Held("random directions", BY_EFFECT, held.layer, held.neuron, held.concept, named, held.auc, result)


def with_permuted_labels(context: Context, candidates: Candidates, sample: Sample) -> Held:
    """Permute the labels over test images, all labels of an image together, and measure selectivity anew."""
    test = sample.at(TEST)
    has = sample.has_concept()[context.rng("permuted labels").permutation(test)]
    found = selectivity(candidates.responses[BY_EFFECT][test], has)
    return held_by(context, "permuted labels", BY_EFFECT, candidates, found)


def with_random_weights(
    context: Context, subject: VisionSubject, sample: Sample, pool: Pool, texts: Tensor, neurons: Mapping[int, Neurons]
) -> Held:
    """Do it all with a copy of the subject whose weights are shuffled, each tensor in itself."""
    control = shuffled(subject, context.torch_rng("shuffled weights"))
    chunks = measure_neurons(context, control, sample, sorted(neurons), "linear", name="control")
    described = {}
    for layer in neurons:
        path = context.work / f"control-{layer}.npz"
        if not path.exists():
            describe_neurons(context, control, sample, chunks, layer, "linear", texts).save(path)
        described[layer] = Neurons.load(path)
    candidates = gather(context.config, described, pool, sample)
    test = sample.at(TEST)
    found = selectivity(candidates.responses[BY_EFFECT][test], sample.has_concept()[test])
    return held_by(context, "random weights", BY_EFFECT, candidates, found)


def shuffled(subject: VisionSubject, generator: torch.Generator) -> VisionSubject:
    """Return a copy of a vision tower with the entries of each weight in a random order."""
    network = cast("VisionTransformer", copy.deepcopy(subject.network))
    with torch.no_grad():
        for parameter in network.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return VisionSubject(f"{subject.address} with shuffled weights", network, subject.read_processor)
