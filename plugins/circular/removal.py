"""Frequencies taken out wherever the label stands: does the subject still answer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.context import Context
from workbench.plugins.circular.bench import frequencies_text, mean_interval, of_length, random_basis
from workbench.plugins.circular.features import Feature
from workbench.plugins.circular.prompts import Prompts, answers
from workbench.probes.rings import Rings
from workbench.probes.statistics import bootstrap_weights
from workbench.subjects.protocol import At, Edit

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows [rows, width] and their classes [rows]


def remove(
    context: Context, hook_point: str, feature: Feature, rings: Rings, prompts: Prompts, right: np.ndarray
) -> list[dict[str, Any]]:
    """Take the named frequencies out at every token that has the feature's label, and other frequencies beside them.

    Parameters
    ----------
    context : Context
        Of the run.
    hook_point : str
        Where.
    feature : Feature
        Its frequencies.
    rings : Rings
        Of the label's class means of activations there.
    prompts, right : Prompts, np.ndarray
        Scored are those that the subject answers rightly, at most `intervene.runs` of them.
    """
    usable = np.flatnonzero(right & prompts.scoring)
    rng = context.rng(f"removal {prompts.name}")
    if len(usable) > context.config.intervene.runs:
        usable = np.sort(rng.choice(usable, context.config.intervene.runs, replace=False))
    classes = classes_of(context, feature, prompts, usable)
    windows, at = [prompts.windows[i] for i in usable], prompts.answer_at[usable]
    members, group = np.unique(prompts.group[usable], return_inverse=True)
    weights = bootstrap_weights(len(members), context.config.draws, context.rng(f"problems {prompts.name}"))
    rows = []
    for way, (dimension, change) in ways_of(context, feature, rings, rng).items():

        def edits(here: slice, change: Change = change) -> dict[str, Edit]:
            return {hook_point: changed(change, classes[here])}

        guess = answers(context.subject(), windows, at, edits).argmax(axis=1)
        hit = guess == prompts.tokens[prompts.c[usable]]
        right_share, lo, hi = mean_interval(hit, group, weights)
        about = {"label": feature.label.name, "hook_point": hook_point, "way": way, "dimension": dimension}
        rows.append({**about, "n": len(hit), "n_problems": len(members), "right": right_share, "lo": lo, "hi": hi})
    return rows


def ways_of(
    context: Context, feature: Feature, rings: Rings, rng: np.random.Generator
) -> dict[str, tuple[int, Change]]:
    """Return what is done to rows [rows, width] in each way, and in how many dimensions."""
    named = sorted(feature.named or feature.by_share[:1])
    rest = [f for f in feature.by_share if f not in named]
    width = len(rings.mean)
    basis = rings.basis(named)

    def ring(classes: np.ndarray, frequencies: Sequence[int]) -> np.ndarray:
        return np.asarray(rings.points(classes, frequencies) - rings.mean)

    def part(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
        return np.asarray((x - rings.mean) @ directions.T @ directions)

    def without(frequencies: Sequence[int]) -> Change:
        return lambda x, classes: x - ring(classes, frequencies)

    def as_far(frequencies: Sequence[int]) -> Change:
        """As far as taking the named frequencies out moves each row, but along the rings of others."""
        return lambda x, classes: (
            x - of_length(ring(classes, frequencies), np.linalg.norm(ring(classes, named), axis=1))
        )

    def flat(directions: np.ndarray) -> Change:
        return lambda x, classes: x - part(x, directions)

    ways: dict[str, tuple[int, Change]] = {
        "none": (0, lambda x, classes: x),
        f"without {frequencies_text(named)}": (len(basis), without(named)),
        f"without the planes of {frequencies_text(named)}": (len(basis), flat(basis)),
        f"with no frequency but {', '.join(map(str, named))}": (len(rings.basis(rest)), without(rest)),
    }
    if len(rest) > len(named):
        strongest = sorted(rest[: len(named)])
        ways[f"without {frequencies_text(strongest)} (the next strongest)"] = (
            len(rings.basis(strongest)), without(strongest),
        )  # fmt: skip
    for number in range(context.config.intervene.controls):
        if len(rest) > len(named):
            other = sorted(rng.choice(rest, len(named), replace=False).tolist())
            ways[f"without as many other frequencies, draw {number + 1}"] = (len(rings.basis(other)), without(other))
            ways[f"as far along as many other frequencies, draw {number + 1}"] = (
                len(rings.basis(other)), as_far(other),
            )  # fmt: skip
        away = random_basis(len(basis), width, rng)
        ways[f"without a random subspace of as many dimensions, draw {number + 1}"] = (len(away), flat(away))
    return ways


def classes_of(context: Context, feature: Feature, prompts: Prompts, chosen: np.ndarray) -> list[np.ndarray]:
    """Return for each chosen prompt the class of the feature's label at each of its positions, −1 where it has none."""
    store = context.store
    values, defined = store.label(feature.label.name)
    origins = store.origins
    found = []
    for i in chosen:
        sequence = int(origins["sequence"][prompts.operand_row[i]])
        first = int(store.examples.first_rows[sequence])
        positions = store.examples.positions_of(sequence)
        rows = slice(first, first + len(positions))
        classes = np.full(len(prompts.windows[i].tokens), -1)
        classes[positions[defined[rows]]] = values[rows][defined[rows]] % feature.label.period
        found.append(classes)
    return found


def changed(change: Change, classes: list[np.ndarray]) -> Edit:
    """Return an edit that changes the rows of a batch that have a class."""

    def edit(activation: Tensor, at: At) -> Tensor:
        edited = activation.flatten(2).clone()
        of_row = np.full(edited.shape[:2], -1)
        for row, each in enumerate(classes):
            of_row[row, : len(each)] = each
        chosen = torch.from_numpy(of_row >= 0).to(edited.device)
        values = change(edited[chosen].double().cpu().numpy(), of_row[of_row >= 0])
        edited[chosen] = torch.from_numpy(values).to(edited)
        return edited.view_as(activation)

    return edit
