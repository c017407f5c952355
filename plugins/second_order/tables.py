"""Tables of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.plugins.second_order.controls import BY_EFFECT
from workbench.plugins.second_order.judging import Judge, Scores
from workbench.plugins.second_order.naming import named_concepts, selectivity
from workbench.plugins.second_order.neurons import KEPT, Neurons
from workbench.plugins.second_order.sample import FIT, TEST, Sample

if TYPE_CHECKING:
    from workbench.context import Context
    from workbench.plugins.second_order.controls import Held
    from workbench.plugins.second_order.pool import Pool
    from workbench.plugins.second_order.run import Findings

SHOWN_TERMS = 8
COHERENT_TERMS = 5  # pairs of these tell whether a neuron's texts belong together
POLYSEMOUS = 12  # neurons listed
NOTHING_KEPT, ALL_KEPT = "all at their means", "as they are"


def term_text(texts: np.ndarray, coefficients: np.ndarray, pool: Pool, n: int = SHOWN_TERMS) -> str:
    """Write the first terms of one neuron: ``+0.52 a red ring, -0.20 blue``."""
    pairs = [(weight, text) for weight, text in zip(coefficients[:n], texts[:n], strict=True) if text >= 0]
    return ", ".join(f"{'−' if weight < 0 else '+'}{abs(weight):.2f} {pool.texts[text]}" for weight, text in pairs)


def coherence(texts: np.ndarray, coefficients: np.ndarray, pool: Tensor) -> np.ndarray:
    """Return the mean cosine between pairs of each neuron's first terms, each with its sign, [neuron]."""
    first = torch.from_numpy(np.maximum(texts[:, :COHERENT_TERMS], 0))
    sign = torch.from_numpy(np.sign(coefficients[:, :COHERENT_TERMS])).to(pool)
    rows = torch.nn.functional.normalize(pool[first], dim=2) * sign[:, :, None]
    total = rows.sum(1).pow(2).sum(1) - sign.abs().sum(1)
    n = sign.abs().sum(1)
    return np.asarray((total / (n * (n - 1)).clamp_min(1)).numpy())


def neuron_table(found: Findings, config: Any) -> pd.DataFrame:
    """Return a row for each neuron looked at."""
    frames = []
    test = found.sample.at(TEST)
    has = found.sample.has_concept()[test]
    concepts = found.sample.all_concepts
    for layer, neurons in found.neurons.items():
        frame: dict[str, Any] = {
            "layer": layer,
            "neuron": np.arange(len(neurons.direction)),
            "spread": neurons.spread,
            "rank_one": neurons.rank_one,
            "positive": neurons.positive,
            "held_by": neurons.held_by,
        }
        if found.pool is not None and found.texts is not None:
            pairs = zip(neurons.texts, neurons.coefficients, strict=True)
            frame["texts"] = [term_text(texts, weights, found.pool) for texts, weights in pairs]
            frame["explained"] = neurons.explained
            frame["coherence"] = coherence(neurons.texts, neurons.coefficients, found.texts)
        if has.size and (~np.isnan(has)).any():
            chosen = selectivity(neurons.response[test], has)
            frame["selective_for"] = [concepts[c].name for c in chosen.concept]
            frame["auc"] = chosen.value
            if found.pool is not None:
                named = named_concepts(neurons.texts, neurons.coefficients, found.pool.names, config.naming_terms)
                frame["named"] = [concepts[c].name if c >= 0 else "" for c in named]
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def polysemous(neurons: pd.DataFrame) -> pd.DataFrame:
    """Return neurons whose texts belong together least, among the half with the largest effects."""
    large = neurons[neurons["spread"] >= neurons["spread"].median()]
    return large.nsmallest(POLYSEMOUS, "coherence").reset_index(drop=True)


def approximation_rows(
    context: Context, sample: Sample, neurons: dict[int, Neurons], embeddings: Tensor, judge: Judge | None
) -> list[dict[str, Any]]:
    """Return what classification keeps when all neurons of a layer are replaced by an approximation, on test images."""
    test = sample.at(TEST)
    clean = embeddings[torch.from_numpy(test)]
    scores = Scores(len(test), context.config.draws, context.rng("test images"))
    rows = []
    for layer, each in neurons.items():
        total = torch.from_numpy(each.kept[0] + each.kept[1])
        ways = {ALL_KEPT: total, **{name: torch.from_numpy(each.kept[i]) for i, name in enumerate(KEPT)}}
        ways[NOTHING_KEPT] = torch.zeros_like(total)
        if not each.texts.shape[1]:
            del ways["texts"]
        power = float(total.pow(2).sum())
        for name, kept in ways.items():
            row: dict[str, Any] = {"layer": layer, "kept": name, "error": float((kept - total).pow(2).sum()) / power}
            if judge is not None:
                right = scores.mean(judge.right((clean - total + kept).float(), test))
                row |= {"accuracy": right.value, "lo": right.lo, "hi": right.hi}
            rows.append(row)
    return rows


def held_rows(held: Sequence[Held]) -> list[dict[str, Any]]:
    """Return a row for the neurons and each control."""
    return [
        {
            "what": each.what,
            "selective_by": each.response,
            "n": len(each.neuron),
            "share": each.agreement.share.value,
            "lo": each.agreement.share.lo,
            "hi": each.agreement.share.hi,
            "chance": each.agreement.chance,
            "p": each.agreement.p,
            "lowest_auc": float(each.auc.min()),
        }
        for each in held
    ]


def selective_table(found: Findings) -> pd.DataFrame:
    """Return the most selective neurons with what their texts name."""
    held = next(each for each in found.held if each.what == "neurons" and each.response == BY_EFFECT)
    concepts = found.sample.all_concepts
    rows = []
    for layer, neuron, concept, named, auc in zip(
        held.layer, held.neuron, held.concept, held.named, held.auc, strict=True
    ):
        of_layer = found.neurons[int(layer)]
        assert found.pool is not None
        rows.append(
            {
                "layer": int(layer),
                "neuron": int(neuron),
                "selective_for": concepts[concept].name,
                "auc": float(auc),
                "named": concepts[named].name if named >= 0 else "",
                "agrees": bool(named == concept),
                "texts": term_text(of_layer.texts[neuron], of_layer.coefficients[neuron], found.pool),
            }
        )
    return pd.DataFrame(rows)


def top_images(neurons: Neurons, neuron: int, n: int) -> np.ndarray:
    """Return the images whose effect reaches furthest along a neuron's direction, furthest first."""
    return np.argsort(-neurons.response[:, neuron], kind="stable")[:n]


def parts_of(sample: Sample) -> str:
    """Say how many images are in each part."""
    n_fit, n_test = len(sample.at(FIT)), len(sample.at(TEST))
    return f"{n_fit} images fit, {len(sample) - n_fit - n_test} choose, {n_test} test"
