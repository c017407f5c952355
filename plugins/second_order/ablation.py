"""Which layers matter: second-order, first-order and total indirect effects of neurons, held at their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.plugins.second_order.judging import Judge, Scores
from workbench.plugins.second_order.passes import Chunks, measure_indirect
from workbench.plugins.second_order.sample import CHOOSE, FIT, TEST, Sample
from workbench.subjects.protocol import Subject

if TYPE_CHECKING:
    from workbench.context import Context

SECOND, FIRST, INDIRECT = "second order", "first order", "total indirect"
N_LAYERS = 5  # looked at where none is named


def ablate(
    context: Context, subject: Subject, sample: Sample, layers: Chunks, judge: Judge | None
) -> list[dict[str, Any]]:
    """Ablate the neurons of each layer in three ways, on test images.

    Second and first order: the layer's contribution to the embedding is replaced by its mean over fitting images. Total
    indirect: activations are held at their mean at each position and the subject runs on from there.

    Returns
    -------
    list of dict
        Rows: layer, effect, ``change`` (mean squared change of the embedding of length 1), and with a judge
        ``accuracy``, ``fall`` (paired) and their intervals over images. Layer -1 is the subject as it is.
    """
    fit, test = sample.at(FIT), sample.at(TEST)
    whole = layers.rows("embeddings")
    scores = Scores(len(test), context.config.draws, context.rng("test images"))
    clean = torch.from_numpy(whole[test])
    before = None if judge is None else judge.right(clean, test)
    rows = [{"layer": -1, "effect": "none", **judged(scores, clean, clean, judge, test, before)}]
    ways = {name: layers.rows(key) for name, key in ((SECOND, "second"), (FIRST, "first"))}
    for name, parts in ways.items():
        for layer in range(subject.n_layers - (name == SECOND)):
            without = torch.from_numpy(whole[test] - parts[test, layer] + parts[fit, layer].mean(0))
            rows.append({"layer": layer, "effect": name, **judged(scores, clean, without, judge, test, before)})
    if context.config.indirect:
        posts = layers.total("posts") / len(fit)
        held = measure_indirect(context, subject, sample, test, posts).rows("without")
        for layer in range(subject.n_layers):
            without = torch.from_numpy(held[:, layer])
            rows.append({"layer": layer, "effect": INDIRECT, **judged(scores, clean, without, judge, test, before)})
    return rows


def judged(
    scores: Scores,
    clean: torch.Tensor,
    without: torch.Tensor,
    judge: Judge | None,
    images: np.ndarray,
    before: np.ndarray | None,
) -> dict[str, float]:
    """Return what an ablation does to embeddings [image, output], and to guesses."""
    squares = (without - clean).pow(2).sum(1).double().numpy()
    found = {"change": float(squares.mean())}
    if judge is None or before is None:
        return found
    after = judge.right(without, images)
    right, fall = scores.mean(after), scores.fall(before, after)
    found |= {"accuracy": right.value, "lo": right.lo, "hi": right.hi}
    return found | {"fall": fall.value, "fall_lo": fall.lo, "fall_hi": fall.hi}


def matter_most(sample: Sample, layers: Chunks, judge: Judge | None) -> list[int]:
    """Return the layers whose second-order effects matter most, ascending: judged on images that are not for testing.

    By the fall of accuracy; where there is no judge, and between equals, by the change of the embedding.
    """
    fit, seen = sample.at(FIT), sample.at(FIT, CHOOSE)
    whole, second = layers.rows("embeddings"), layers.rows("second")
    n_layers = second.shape[1] - 1
    falls, changes = np.zeros(n_layers), np.zeros(n_layers)
    for layer in range(n_layers):
        moved = second[fit, layer].mean(0) - second[seen, layer]
        changes[layer] = (moved.astype(np.float64) ** 2).sum(1).mean()
        if judge is not None:
            before, after = (judge.right(torch.from_numpy(e), seen) for e in (whole[seen], whole[seen] + moved))
            falls[layer] = np.nanmean(before - after)
    order = np.lexsort((-changes, -falls))
    return sorted(int(layer) for layer in order[:N_LAYERS])
