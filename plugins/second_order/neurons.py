"""Each neuron's effects over the images: mean, direction, which images matter, what approximations keep."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workbench.plugins.second_order.effects import blocks
from workbench.plugins.second_order.matching import match
from workbench.plugins.second_order.passes import Chunks
from workbench.plugins.second_order.paths import Convention, ValuePaths
from workbench.plugins.second_order.sample import FIT, TEST, Sample
from workbench.subjects.protocol import Subject

if TYPE_CHECKING:
    from workbench.context import Context

KEPT = ("significant", "insignificant", "rank one", "texts")
HELD_SHARE = 0.9  # of the squared length of a neuron's effects: how few images hold it?
MOST_TERMS, DIMENSIONS_PER_TERM = 32, 8
EFFECT_BYTES = 256 * 2**20  # of a block's effects on all images


@dataclass(frozen=True)
class Neurons:
    """What was found of the neurons of one layer; lengths are shares of the embedding's.

    Attributes
    ----------
    direction : np.ndarray
        [neuron, output] of length 1: first principal direction of the effects (less their mean) on the fitting images
        where they are largest, on the side to which most of these images project; 0 for a neuron without effect.
    spread : np.ndarray
        [neuron] root mean square length of the effects, less their mean, over fitting images.
    rank_one : np.ndarray
        [neuron] share of the squared length on those images that lies along the direction.
    positive : np.ndarray
        [neuron] share of those images that project positively.
    held_by : np.ndarray
        [neuron] smallest share of fitting images that holds nine tenths of the squared length.
    response : np.ndarray
        [image, neuron] projection of the effect, less its mean over fitting images, on the direction.
    peak : np.ndarray
        [image, neuron] largest activation on a patch.
    kept : np.ndarray
        [approximation, image, output] of `KEPT`, for test images: what the approximation keeps of the deviations of all
        neurons' effects from their means, added up.
    texts, coefficients : np.ndarray
        [neuron, term] of the direction's decomposition; no terms without a pool.
    explained : np.ndarray
        [neuron] share of the direction's squared length that the texts explain.
    """

    direction: np.ndarray
    spread: np.ndarray
    rank_one: np.ndarray
    positive: np.ndarray
    held_by: np.ndarray
    response: np.ndarray
    peak: np.ndarray
    kept: np.ndarray
    texts: np.ndarray
    coefficients: np.ndarray
    explained: np.ndarray

    def save(self, path: Path) -> None:
        """Write to a file that appears only when it is whole."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{field.name: getattr(self, field.name) for field in fields(self)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Neurons:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            return cls(**{field.name: held[field.name] for field in fields(cls)})


def describe_neurons(
    context: Context,
    subject: Subject,
    sample: Sample,
    chunks: Chunks,
    layer: int,
    convention: Convention,
    pool: Tensor | None,
) -> Neurons:
    """Describe the neurons of a layer from the coefficients that a pass left, a block of neurons at a time.

    Parameters
    ----------
    context, subject, sample
        Of the run.
    chunks : Chunks
        From `measure_neurons`.
    layer : int
        Which.
    convention : "linear" or "published"
        As in that pass.
    pool : Tensor, optional
        [text, output] centred texts.
    """
    paths = ValuePaths(subject, layer, convention)
    fit, test = (torch.from_numpy(sample.at(part)) for part in (FIT, TEST))
    n_top = min(context.config.top, len(fit))
    shift = torch.from_numpy(chunks.rows(f"offset_{layer}")).to(paths.dtype) if convention == "published" else None
    kept = torch.zeros(len(KEPT), len(test), paths.n_output, dtype=paths.dtype, device=subject.device)
    found: dict[str, list[np.ndarray]] = {}
    with context.progress(subject.d_mlp, "neurons", f"layer {layer}") as ticker:
        for block in blocks(subject.d_mlp, paths, len(sample), EFFECT_BYTES):
            mixed = torch.from_numpy(chunks.rows(f"by_neuron_{layer}", axis=1, block=block)).to(paths.neurons())
            effects = torch.bmm(mixed, paths.carry(paths.neurons(block)).transpose(0, 1))  # [neuron, image, output]
            if shift is not None:
                effects += shift.to(effects)
            part = describe_block(effects, fit, test, n_top, pool, n_terms(context.config.terms, paths.n_output), kept)
            for name, values in part.items():
                found.setdefault(name, []).append(values.cpu().numpy())
            ticker.advance(block.stop - block.start)
    joined = {name: np.concatenate(values) for name, values in found.items()}
    joined["response"] = joined["response"].T
    return Neurons(**joined, peak=chunks.rows(f"peak_{layer}"), kept=kept.cpu().numpy())


def n_terms(wanted: int | None, n_output: int) -> int:
    """Return how many texts a decomposition takes.

    By default 32, and no more than an eighth of the embedding's size: with as many texts as dimensions any direction is
    explained, and coefficients grow large and cancel.
    """
    return wanted or max(1, min(MOST_TERMS, n_output // DIMENSIONS_PER_TERM))


def describe_block(
    effects: Tensor, fit: Tensor, test: Tensor, n_top: int, pool: Tensor | None, terms: int, kept: Tensor
) -> dict[str, Tensor]:
    """Describe a block of neurons, effects [neuron, image, output]; adds to `kept` what approximations keep."""
    effects -= effects[:, fit].mean(1, keepdim=True)
    lengths = effects.norm(dim=2)
    of_fit = lengths[:, fit]
    largest, at = of_fit.topk(n_top, dim=1)
    directions, rank_one, positive = principal(effects[torch.arange(len(effects))[:, None], fit[at]])
    squares = of_fit.pow(2).sort(dim=1, descending=True).values.cumsum(1)
    enough = squares >= HELD_SHARE * squares[:, -1:]
    response = torch.einsum("nio,no->ni", effects, directions)
    tested = effects[:, test]
    significant = (lengths[:, test] > largest[:, -1:])[:, :, None]
    kept[0] += (tested * significant).sum(0)
    kept[1] += (tested * ~significant).sum(0)
    kept[2] += response[:, test].T @ directions
    out = {
        "direction": directions,
        "spread": of_fit.pow(2).mean(1).sqrt(),
        "rank_one": rank_one,
        "positive": positive,
        "held_by": torch.where(squares[:, -1] > 0, (enough.int().argmax(1) + 1) / len(fit), torch.nan),
        "response": response,
    }
    if pool is None:
        nothing = directions.new_zeros(len(directions), 0)
        return out | {
            "texts": nothing.long(),
            "coefficients": nothing,
            "explained": directions.new_zeros(len(directions)),
        }
    found = match(directions, pool.to(directions), terms)
    rebuilt = torch.einsum("nk,nko->no", found.coefficients, pool.to(directions)[found.texts.clamp_min(0)])
    rebuilt = torch.nn.functional.normalize(rebuilt, dim=1)
    kept[3] += torch.einsum("nio,no->ni", tested, rebuilt).T @ rebuilt
    return out | {"texts": found.texts, "coefficients": found.coefficients, "explained": found.explained}


def principal(effects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first principal direction of each neuron's effects, without centring them.

    Parameters
    ----------
    effects : Tensor
        [neuron, image, output].

    Returns
    -------
    directions : Tensor
        [neuron, output] of length 1, on the side to which most of the images project; 0 if all is 0.
    share : Tensor
        [neuron] of the squared length that lies along it.
    positive : Tensor
        [neuron] share of images that project positively.
    """
    if effects.shape[1] <= effects.shape[2]:  # the smaller of the two Gram matrices has the same first value
        first = torch.linalg.eigh(effects @ effects.transpose(1, 2)).eigenvectors[..., -1]
        directions = torch.einsum("ni,nio->no", first, effects)
    else:
        directions = torch.linalg.eigh(effects.transpose(1, 2) @ effects).eigenvectors[..., -1]
    directions = torch.nn.functional.normalize(directions, dim=1)
    total = effects.pow(2).sum((1, 2))
    directions = directions * (total > 0)[:, None]
    along = torch.einsum("nio,no->ni", effects, directions)
    share = along.pow(2).sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny)
    positive = (along > 0).to(total.dtype).mean(1)
    turn = (positive < 0.5) | ((positive == 0.5) & (along.sum(1) < 0))  # a tie goes to the larger sum
    directions = torch.where(turn[:, None], -directions, directions)
    return directions, share, torch.where(turn, (along < 0).to(total.dtype).mean(1), positive)
